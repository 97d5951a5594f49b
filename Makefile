# Needs Python 3.11, pip and make; nothing has to be activated. Everything lands in .venv, made on first use.
PYTHON = $(or $(shell for p in python3.11 python3; do $$p -c 'import venv' 2>/dev/null && echo $$p && break; done),python3.11)
BIN := .venv/bin
WORKERS := 2

.PHONY: demo test lint format bench coverage experiments

demo: .venv/.installed-data
	@mkdir -p demo
	OMP_NUM_THREADS=1 $(BIN)/featherweight compress zoo:lenet-300-100 --data digits --budget accuracy_drop=2pp --out demo/digits.fw
	@echo "the packed network is in demo/digits.fw"

# One thread for each worker: the workers share the cores already.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: .venv/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.installed-test
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python $$script; done

# Hours on one thread; networks that have a record are not measured again.
coverage: .venv/.installed-coverage
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage/coverage.py --both
	$(BIN)/python benchmarks/coverage/report.py

# Hours on one thread; finished cells are kept. MNIST is looked for as `featherweight --data mnist` does; DATA=DIR names a folder.
experiments: .venv/.installed-test
	@set -e; for name in $$($(BIN)/featherweight reproduce --list); do \
	  $(BIN)/featherweight reproduce $$name --out experiments/$$(echo $$name | tr - _) $(if $(DATA),--data-dir $(DATA)); done
	$(BIN)/python experiments/deep_compression/front_page.py

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# The stamp says which extra is installed; it is stale as soon as what to install has changed.
.venv/.installed-%: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing featherweight[$*] into .venv (minutes, the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@
