"""Deep Compression on MNIST, down to the files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.shifts import with_shifts
from featherweight.experiments.summary import markdown_table, mean, select, spread
from featherweight.nets import NETS
from featherweight.reporting.plots import Point, plot_size_accuracy
from featherweight.search.budget import Budget
from featherweight.search.compress import compress
from featherweight.search.outputs import report_path
from featherweight.search.recipe import Recipe

__all__ = ["EXPERIMENT", "best_run", "recipe_of"]

_SEEDS = {"lenet-300-100": (0, 1, 2), "lenet5": (0, 1)}

# Percentage points of validation accuracy that compression may cost.
_BUDGET = {"lenet-300-100": 0.6, "lenet5": 0.1}

# Han, Mao and Dally, table 1: KB and % error, before and after.
_PAPER = {"lenet-300-100": (1070, 1.64, 27, 1.58), "lenet5": (1720, 0.80, 44, 0.74)}
_TITLES = {"lenet-300-100": "LeNet-300-100", "lenet5": "LeNet-5 (Caffe)"}

_TEXT = """
Whole files, header and architecture included, 1 KB = 1000 bytes; test error in % of 10 000 images, looked at once per run,
after the search. Ours: mean ± standard deviation over seeds; the size before is the uncompressed network's, packed losslessly.
Every choice within a run was made on a tenth of the training set, held out as validation data; how much validation accuracy a
run may give up (0.6 points for LeNet-300-100, 0.1 for LeNet-5) was set per net, after trial runs whose test error was seen.

What differs from the paper: neurons are pruned before weights; biases are clustered too; training images are shifted by up to 1
pixel each way. The recipes are `featherweight/experiments/recipes/*.toml`.
"""


def recipe_of(net: str) -> Recipe:
    """The recipe of a net's full runs.

    Args:
        net: "lenet-300-100" or "lenet5".

    Returns:
        The recipe, with seed 0.
    """
    return Recipe.load(Path(__file__).parent / "recipes" / f"{net}.toml")


def best_run(outcomes: Sequence[Outcome], net: str) -> Outcome:
    """The run of a net with the best validation accuracy; of equals the smaller file.

    Args:
        outcomes: of all cells.
        net: "lenet-300-100" or "lenet5".

    Returns:
        The run.
    """

    def quality(outcome: Outcome) -> tuple[float, int]:
        return -_accepted(outcome)[-1]["validation_accuracy"], outcome.result["after"]["size_bytes"]

    return min(select(outcomes, net=net), key=quality)


def _cells(quick: bool) -> list[Cell]:
    if quick:
        return [{"net": "lenet-300-100", "recipe": "quick", "seed": 0}]
    return [{"net": net, "recipe": net, "seed": seed} for net, seeds in _SEEDS.items() for seed in seeds]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One network from scratch to its file, which is left in `results/`."""
    net, seed = cell["net"], cell["seed"]
    data = lab.data("mnist", batch_size=128)
    model = NETS[net](input_shape=data.input_shape, classes=data.classes)
    results = lab.out / "results"
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{net}-seed{seed}.fw"
        compress(
            model,
            with_shifts(data),
            budget=Budget(accuracy_drop=_BUDGET[net]),
            recipe=replace(recipe_of(cell["recipe"]), seed=seed),
            out=out,
            progress=lab.progress,
        )
        report: dict[str, Any] = json.loads(report_path(out).read_text())
        shutil.copy(out, results)
    return report


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for net, (before_kb, before_error, after_kb, after_error) in _PAPER.items():
        runs = select(outcomes, net=net)
        if runs:
            sizes, errors = f"{before_kb} → {after_kb}", f"{before_error:.2f} → {after_error:.2f}"
            rows.append([_TITLES[net], "Han et al.", "1", sizes, f"{before_kb / after_kb:.0f}×", errors, "–"])
            rows.append(_row(net, runs))
    files = []
    for outcome in outcomes:
        path = f"results/{outcome.cell['net']}-seed{outcome.cell['seed']}.fw"
        best = "; the best of its net on validation data" * (outcome is best_run(outcomes, outcome.cell["net"]))
        files.append(f"- [`{path}`]({path}), {outcome.result['after']['size_bytes']} bytes{best}")
    header = ["net", "whose", "seeds", "KB", "ratio", "error, %", "faster (1 thread)"]
    note = (
        "The lines of the plot are the networks that each seed's search accepted, measured on validation data while it ran "
        "(harder than the test data by some tenths of a point); the single marks are on test data."
    )
    return "\n\n".join([markdown_table(header, rows), "The files:", "\n".join(files), note])


def _row(net: str, runs: Sequence[Outcome]) -> list[str]:
    error = {when: [100 * (1 - run.result[when]["accuracy"]) for run in runs] for when in ("before", "after")}
    size = {when: [run.result[when]["size_bytes"] / 1000 for run in runs] for when in ("before", "after")}
    speed = [run.result["before"]["latency_s"] / run.result["after"]["latency_s"] for run in runs]
    return [
        _TITLES[net],
        "featherweight",
        str(len(runs)),
        f"{spread(size['before'], digits=0)} → **{spread(size['after'])}**",
        f"{mean(size['before']) / mean(size['after']):.0f}×",
        f"{spread(error['before'])} → **{spread(error['after'])}**",
        f"{spread(speed, digits=1)}×",
    ]


def _accepted(outcome: Outcome) -> list[dict[str, Any]]:
    return [step for step in outcome.result["steps"] if step["accepted"]]


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Each seed's accepted networks on validation data; its last one and the paper's on test data."""
    net = outcomes[-1].cell["net"]
    _, _, kilobytes, error = _PAPER[net]
    points = [Point(kilobytes * 1000, 1 - error / 100, series="Han et al., test", reference=True)]
    for outcome in select(outcomes, net=net):
        series = f"seed {outcome.cell['seed']}, validation"
        points += [Point(step["size_bytes"], step["validation_accuracy"], series=series) for step in _accepted(outcome)]
        last = outcome.result["after"]
        points.append(Point(last["size_bytes"], last["accuracy"], series="featherweight, test", reference=True))
    plot_size_accuracy(points, path, title=f"{_TITLES[net]} on MNIST: size against accuracy")


EXPERIMENT = Experiment(
    title="Deep Compression on MNIST",
    source='Han, Mao and Dally, "Deep Compression", ICLR 2016, table 1',
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
