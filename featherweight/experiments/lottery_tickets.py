"""Lottery tickets: accuracy and speed of learning against the weights kept."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.constraint import duplicate
from featherweight.nets import lenet_300_100
from featherweight.pruning.lottery import search_tickets
from featherweight.pruning.weights import apply_masks
from featherweight.training import Data, Loader, TensorLoader, Tuning, evaluate, fit, predict

__all__ = ["EXPERIMENT"]

_RATE = 0.2
_LOOKS = 20  # at the validation loss, during each training
_REDRAWN = (3, 7, 10, 13, 16)  # the rounds whose masks are trained from new weights, too

_LINES = {"init": "rewound to the initialisation", "epoch": "rewound to epoch 1", "redrawn": "same masks, new weights"}
_TITLES = {"lenet-300-100": "LeNet-300-100 on MNIST", "conv": "A small conv net on Fashion-MNIST"}

_TEXT = """
Each round trains a network, removes the 20 % smallest of the weights that are left (one ranking over all layers), and puts the
others back: to the initialisation, or to what they were after the first epoch. The control trains the first line's masks from
newly drawn weights. The iteration of early stopping is that with the smallest loss on 2000 validation images, looked at 20
times per training; where it is the last one, training was too short to tell.

What differs from the paper: for LeNet-300-100 15 000 training images, 5 epochs of batches of 128, Adam at a constant 2e-3
(theirs: 55 000 images, 50 000 iterations of 60, Adam at 1.2e-3), and layers share one ranking, where the paper removes a fixed
share of each. The conv net has two 3×3 convolutions of stride 2 with 8 and 16 channels and 64 hidden units (52 138
parameters); it sees 5000 images for 8 epochs, Adam at 5e-3. The test set was looked at once per training, for both numbers.
"""


def _conv(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    side = -(-input_shape[1] // 4)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(input_shape[0], 8, 3, stride=2, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(1),
        "fc1": nn.Linear(16 * side * side, 64),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(64, classes),
    }
    return nn.Sequential(OrderedDict(layers))


_NETS: Mapping[str, tuple[Callable[..., nn.Module], str]] = {
    "lenet-300-100": (lenet_300_100, "mnist"),
    "conv": (_conv, "fashion-mnist"),
}


# In the full runs. The conv net learns slowly at the rate of the other.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lenet-300-100": {"samples": 15_000, "epochs": 5, "learning_rate": 2e-3, "rounds": 16},
    "conv": {"samples": 5_000, "epochs": 8, "learning_rate": 5e-3, "rounds": 10},
}


def _cells(quick: bool) -> list[Cell]:
    starts = ("init", "epoch")
    if quick:
        size = {"samples": 5000, "epochs": 3, "learning_rate": 2e-3, "rounds": 7}
        return [{"net": "lenet-300-100", "start": start, "seed": 0, **size} for start in starts]
    return [
        {"net": net, "start": start, "seed": seed, **settings}
        for net, settings in _SETTINGS.items()
        for seed in range(3)
        for start in starts
    ]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One search, from the dense network to the last round."""
    make, name = _NETS[cell["net"]]
    data = lab.data(name, samples=cell["samples"])
    model = make(input_shape=data.input_shape, classes=data.classes)
    tuning = Tuning(epochs=cell["epochs"], learning_rate=cell["learning_rate"], schedule="constant")
    gone = 0
    if cell["start"] == "epoch":
        fit(model, data.train, replace(tuning, epochs=1), seed=cell["seed"] + 1000)  # other batches than the epochs to come
        tuning, gone = replace(tuning, epochs=tuning.epochs - 1), len(data.train)
    trainings: list[dict[str, float]] = []

    def tune(net: nn.Module) -> None:
        trainings.append(_train(net, data, tuning, seed=cell["seed"], gone=gone))

    lines: dict[str, list[dict[str, float]]] = {cell["start"]: []}
    for step in search_tickets(model, tune, rounds=cell["rounds"], rate=_RATE):
        kept = (1 - _RATE) ** step.number
        lines[cell["start"]].append({"kept": kept, **trainings[-1]})
        if cell["start"] == "init" and step.number in _REDRAWN:
            tune(apply_masks(make(input_shape=data.input_shape, classes=data.classes), step.masks))
            lines.setdefault("redrawn", []).append({"kept": kept, **trainings[-1]})
        lab.progress("rounds", step.number + 1, cell["rounds"] + 1, f"kept {kept:.1%}")
    return lines


def _train(net: nn.Module, data: Data, tuning: Tuning, *, seed: int, gone: int) -> dict[str, float]:
    """Trains in place; where the validation loss was smallest, and the test accuracy there and at the end."""
    looking = _first(data.validation, 2000)
    steps = tuning.epochs * len(data.train)
    every = max(steps // _LOOKS, 1)
    best: dict[str, Any] = {"loss": math.inf}
    step = 0

    def look(model: nn.Module, done: float) -> None:
        nonlocal step
        step += 1
        if step % every == 0:
            loss = cross_entropy(*predict(model, looking)).item()
            if loss < best["loss"]:
                best.update(loss=loss, iteration=step + gone, net=duplicate(model))

    fit(net, data.train, tuning, seed=seed, after_step=look)
    return {"iteration": best["iteration"], "stopped": evaluate(best["net"], data.test), "final": evaluate(net, data.test)}


def _first(loader: Loader, samples: int) -> TensorLoader:
    inputs, targets = (torch.cat(parts)[:samples] for parts in zip(*loader, strict=True))
    return TensorLoader(inputs, targets, samples)


def _points(outcomes: Sequence[Outcome], line: str) -> dict[float, list[dict[str, float]]]:
    """The trainings of a line at each share of weights kept, over seeds."""
    found: dict[float, list[dict[str, float]]] = {}
    for outcome in outcomes:
        for point in outcome.result.get(line, []):
            found.setdefault(point["kept"], []).append(point)
    return found


def _nets(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    return {net: found for net in _NETS if (found := select(outcomes, net=net))}


def _table(outcomes: Sequence[Outcome]) -> str:
    parts = [_claims(outcomes)]
    for net, mine in _nets(outcomes).items():
        seeds = len({outcome.cell["seed"] for outcome in mine})
        parts.append(f"**{_TITLES[net]}** ({seeds} seeds). Iteration of early stopping: test accuracy there; at the end, in %.")
        parts.append(_rounds_table(mine))
    return "\n\n".join(parts)


def _rounds_table(outcomes: Sequence[Outcome]) -> str:
    points = {line: _points(outcomes, line) for line in _LINES}
    rows = []
    for kept in points["init"]:
        row = [f"{kept:.1%}"]
        for line in _LINES:
            found = points[line].get(kept, [])
            stopped, final = ([100 * point[value] for point in found] for value in ("stopped", "final"))
            iterations = [point["iteration"] for point in found]
            row.append(f"{spread(iterations, digits=0)}: {spread(stopped)}; {spread(final)}" if found else "")
        rows.append(row)
    return markdown_table(["weights kept", *_LINES.values()], rows)


def _claims(outcomes: Sequence[Outcome]) -> str:
    """What the paper says of LeNet-300-100 on MNIST (its section 2 and figures 3 and 4), and what we find."""
    mine = _nets(outcomes)["lenet-300-100"]
    stopped, final, iteration = (_means(_points(mine, "init"), value) for value in ("stopped", "final", "iteration"))
    fastest, best = min(iteration, key=iteration.__getitem__), max(stopped, key=stopped.__getitem__)
    as_good = min(kept for kept in final if final[kept] >= final[1.0])
    control, near = _points(mine, "redrawn"), (1 - _RATE) ** 7
    slower = _means(control, "iteration")[near] / iteration[near]
    ahead = 100 * (stopped[near] - _means(control, "stopped")[near])
    rows = [
        [
            "early stopping comes soonest with these weights kept",
            "21 %: 38 % sooner",
            f"{fastest:.0%}: {1 - iteration[fastest] / iteration[1.0]:.0%} sooner",
        ],
        [
            "accuracy at early stopping is highest with",
            "13.5 %: + 0.3 points",
            f"{best:.1%}: {100 * (stopped[best] - stopped[1.0]):+.2f} points",
        ],
        ["as accurate as the dense network down to", "3.6 %", f"{as_good:.1%}" + ", the least tried" * (as_good == min(final))],
        ["same masks, new weights at 21 %: stop", "2.5× later", f"{slower:.2f}× as late"],
        ["and are behind by", "0.5 points", f"{ahead:.2f} points"],
    ]
    return markdown_table(["LeNet-300-100 on MNIST", "Frankle and Carbin", "ours"], rows)


def _means(points: Mapping[float, list[dict[str, float]]], value: str) -> dict[float, float]:
    """The mean over seeds at each share of weights kept."""
    return {kept: mean([point[value] for point in found]) for kept, found in points.items()}


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for net, mine in _nets(outcomes).items():
        for value, label, factor in (
            ("final", "test accuracy at the end, %", 100),
            ("iteration", "iteration of early stopping", 1),
        ):
            lines = []
            for line, title in _LINES.items():
                points = _points(mine, line)
                values = [[factor * point[value] for point in found] for found in points.values()]
                lines.append(Line(title, [100 * k for k in points], [mean(v) for v in values], [deviation(v) for v in values]))
            panels.append(LinePanel(_TITLES[net], "weights kept, %", label, lines, logarithmic=True, reversed=True))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Lottery tickets",
    source=(
        'Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019 (arXiv:1803.03635); rewinding: Frankle, Dziugaite, Roy '
        'and Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020 (arXiv:1912.05671)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
