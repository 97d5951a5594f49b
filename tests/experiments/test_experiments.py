"""Every experiment's quick cells run from the command line, on data so few that it takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featherweight.cli import app
from featherweight.experiments import EXPERIMENTS, Experiment
from tests.search.conftest import no_export  # noqa: F401

DONE, WRONG, INTERRUPTED = 0, 2, 130


def test_list_prints_the_names() -> None:
    result = CliRunner().invoke(app, ["reproduce", "--list"])
    assert result.exit_code == DONE
    assert result.stdout.splitlines() == [
        "deep-compression",
        "lottery-tickets",
        "deconstructing",
        "supermasks",
        "weight-agnostic",
        "rethinking",
        "why-prune",
        "weights-or-neurons",
        "binary",
        "storage-record",
        "hinton-mnist",
        "unseen-digit",
        "temperature",
        "ensemble",
        "assistants",
        "blocks",
        "depthwise-separable",
        "compact-nets",
        "dynamic",
    ]


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_run(name: str, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", name, "--quick", "--data-dir", str(small_mnist)])
    assert result.exit_code == DONE, result.output
    folder = tmp_path / "reproduced" / f"{name}-quick"
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    cells = [entry["cell"] for entry in json.loads((folder / "results.json").read_text())["cells"]]
    assert cells == list(EXPERIMENTS[name].cells(True))
    table = result.stdout.strip()
    assert table.startswith("|")
    assert table in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cells_are_plain_seeded_and_different(name: str) -> None:
    for quick in (True, False):
        cells = EXPERIMENTS[name].cells(quick)
        assert all(isinstance(cell["seed"], int) for cell in cells)
        assert len({json.dumps(cell, sort_keys=True) for cell in cells}) == len(cells) > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lottery-ticket"], "did you mean 'lottery-tickets'"),
        ([], "an experiment must be one of deep-compression"),
        (["lottery-tickets", "--quick"], "the data set 'mnist' was not found"),
        (["lottery-tickets", "--quick", "--out", "taken"], "must be a folder"),
    ],
)
def test_wrong_requests(arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATHERWEIGHT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "taken").write_text("a file")
    result = CliRunner().invoke(app, ["reproduce", *arguments])
    assert result.exit_code == WRONG
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    experiment = Experiment("T", "S", "", lambda quick: [{"seed": 0}], break_off, str, break_off)  # type: ignore[arg-type]
    monkeypatch.setattr("featherweight.experiments.EXPERIMENTS", {"slow": experiment})
    result = CliRunner().invoke(app, ["reproduce", "slow", "--out", str(tmp_path)])
    assert result.exit_code == INTERRUPTED
    assert f"what was done is kept in {tmp_path}, the same command goes on" in result.output
