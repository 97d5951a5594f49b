"""The frame: finished cells are kept, the rest goes on, and the page is made from the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from featherweight.errors import DataError, RequestError
from featherweight.experiments import Cell, Experiment, Lab, Outcome, reproduce
from featherweight.experiments.reproduce import page, read_outcomes
from featherweight.training import TensorLoader


class Counting:
    """An experiment of three cells that counts its runs and can be made to break."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.breaks_at: int | None = None

    def run(self, cell: Cell, lab: Lab) -> Mapping[str, Any]:
        if cell["seed"] == self.breaks_at:
            raise KeyboardInterrupt
        self.runs.append(cell["seed"])
        return {"drawn": torch.rand(()).item(), "pair": (1, 2)}

    @property
    def experiment(self) -> Experiment:
        return Experiment(
            title="Counting",
            source="Nobody (2020)",
            text="It counts.",
            cells=lambda quick: [{"rate": 0.5, "seed": seed} for seed in range(1 if quick else 3)],
            run=self.run,
            table=lambda outcomes: " ".join(f"{o.cell['seed']}:{o.result['drawn']:.6f}:{o.result['pair']}" for o in outcomes),
            draw=_draw,
        )


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    path.write_bytes(bytes(len(outcomes)))


def test_an_interrupted_run_goes_on_and_ends_with_the_same_table(tmp_path: Path) -> None:
    whole, broken = Counting(), Counting()
    expected = reproduce("counting", whole.experiment, tmp_path / "whole")
    assert whole.runs == [0, 1, 2]

    broken.breaks_at = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce("counting", broken.experiment, tmp_path / "broken")
    assert [outcome.cell["seed"] for outcome in read_outcomes(tmp_path / "broken")] == [0, 1]
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["results.json"]

    broken.breaks_at = None
    torch.rand(7)  # what happened to the global generator meanwhile does not matter
    assert reproduce("counting", broken.experiment, tmp_path / "broken") == expected
    assert broken.runs == [0, 1, 2]


def test_cells_are_seeded_and_leave_the_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(())
    torch.manual_seed(9)
    reproduce("counting", Counting().experiment, tmp_path)
    assert torch.rand(()) == expected
    torch.manual_seed(2)
    assert read_outcomes(tmp_path)[2].result["drawn"] == torch.rand(()).item()


def test_a_finished_run_is_only_tabled_and_drawn_again(tmp_path: Path) -> None:
    counting = Counting()
    reproduce("counting", counting.experiment, tmp_path)
    written = (tmp_path / "README.md").read_text()
    for name in ("README.md", "plot.png"):
        (tmp_path / name).unlink()
    reproduce("counting", counting.experiment, tmp_path)
    assert counting.runs == [0, 1, 2]
    assert (tmp_path / "README.md").read_text() == written == page("counting", counting.experiment, read_outcomes(tmp_path))
    assert (tmp_path / "plot.png").read_bytes() == bytes(3)


def test_page_has_everything(tmp_path: Path) -> None:
    counting = Counting()
    table = reproduce("counting", counting.experiment, tmp_path, quick=True)
    written = (tmp_path / "README.md").read_text()
    for part in (
        "# Counting",
        "Nobody (2020)",
        "It counts.",
        table,
        "![plot](plot.png)",
        "`featherweight reproduce counting --quick`",
        "each of the 1 cells",
    ):
        assert part in written


def test_results_of_other_settings_are_not_overwritten(tmp_path: Path) -> None:
    reproduce("counting", Counting().experiment, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(RequestError, match=r"has 2 of others .*choose another --out"):
        reproduce("counting", Counting().experiment, tmp_path, quick=True)
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [{"cell": {}}]}', '{"cells": 3}'])
def test_a_foreign_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RequestError, match="must hold an experiment's results"):
        reproduce("counting", Counting().experiment, tmp_path)
    assert (tmp_path / "results.json").read_text() == content


def test_results_name_the_experiment_and_the_machine(tmp_path: Path) -> None:
    reproduce("counting", Counting().experiment, tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["experiment"] == "counting"
    assert record["environment"]["torch"] == torch.__version__
    assert record["cells"][1]["cell"] == {"rate": 0.5, "seed": 1}


def test_lab_gives_loaders_of_ones_own() -> None:
    lab = Lab(Path())
    some = lab.data("digits", batch_size=8, samples=20)
    assert isinstance(some.train, TensorLoader)
    assert isinstance(some.test, TensorLoader)
    assert [len(targets) for _, targets in some.train] == [8, 8, 4]
    assert len(some.test) == 1
    every = lab.data("digits").train
    assert isinstance(every, TensorLoader)
    assert len(every.targets) > 1000
    assert every.inputs.data_ptr() == some.train.inputs.data_ptr()  # read once


def test_lab_needs_data_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "streams.py").write_text(
        "import torch\ndef data():\n    batch = [(torch.zeros(2, 3), torch.tensor([0, 1]))]\n    return batch, batch, batch\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="in memory, got list"):
        Lab(tmp_path).data("streams:data")
