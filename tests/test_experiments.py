"""What is committed as an experiment's result is whole, and its page was made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featherweight.experiments import EXPERIMENTS, Outcome
from featherweight.experiments.deep_compression import recipe_of
from featherweight.experiments.reproduce import page, read_outcomes

ROOT = Path(__file__).parents[1]
DEEP_COMPRESSION = ROOT / "experiments" / "deep_compression"


def _folder(name: str) -> Path:
    return ROOT / "experiments" / name.replace("-", "_")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_cells_are_those_of_the_code(name: str) -> None:
    assert [outcome.cell for outcome in read_outcomes(_folder(name))] == list(EXPERIMENTS[name].cells(False))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_page_is_made_from_the_results(name: str) -> None:
    folder = _folder(name)
    assert (folder / "README.md").read_text() == page(name, EXPERIMENTS[name], read_outcomes(folder))
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_front_page_has_the_best_net() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- result:begin")[2].partition("<!-- result:end -->")[0]
    best = max(
        (outcome for outcome in read_outcomes(DEEP_COMPRESSION) if outcome.cell["net"] == "lenet5"),
        key=lambda outcome: [step["validation_accuracy"] for step in outcome.result["steps"] if step["accepted"]][-1],
    )
    assert f"({best.result['after']['size_bytes']:,} B)" in table


@pytest.mark.parametrize("outcome", read_outcomes(DEEP_COMPRESSION), ids=lambda o: f"{o.cell['net']}-{o.cell['seed']}")
def test_files_come_from_the_committed_recipe(outcome: Outcome) -> None:
    net, seed = outcome.cell["net"], outcome.cell["seed"]
    recorded = outcome.result["recipe"]
    recipe = json.loads(json.dumps(recipe_of(net).as_dict()))
    assert recorded["seed"] == seed
    assert recorded["training"] == recipe["training"]
    for then, now in zip(recorded["step"], recipe["step"], strict=True):
        assert then == {name: now[name] for name in then}  # a step may have got an option since then
    file = DEEP_COMPRESSION / "results" / f"{net}-seed{seed}.fw"
    assert file.stat().st_size == outcome.result["after"]["size_bytes"]
