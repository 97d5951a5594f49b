"""What makes a lottery ticket: which weights are kept, their signs, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.constraint import Constraint, constrain, duplicate
from featherweight.graph.program import tensor_called
from featherweight.graph.selection import select_weights
from featherweight.nets import lenet_300_100
from featherweight.pruning.lottery import choose_masks
from featherweight.pruning.weights import apply_masks
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT"]

# What is kept, with what figures 2 to 4 of the paper say of it.
_CRITERIA: Mapping[str, str] = {
    "large_final": "good",
    "magnitude_increase": "best, by a little",
    "movement": "good",
    "large_init_large_final": "good",
    "large_init": "poor",
    "random": "poor",
    "small_init": "poor",
    "small_final": "worse than random",
}

# What the kept weights start from, in one mask (large_final).
_STARTS: Mapping[str, str] = {
    "as first drawn": "works",
    "drawn again, first signs": "works",
    "reshuffled, first signs": "works",
    "± constant, first signs": "works",
    "drawn again": "fails",
    "reshuffled": "fails",
    "± constant, random signs": "fails",
}

# What the removed weights are held at, in the same mask.
_ZEROS: Mapping[str, str] = {
    "zero": "works",
    "as first drawn": "worse",
    "zero if moved towards it, else as first drawn": "best, by a little",
}

_PARTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "criteria": ("Which weights are kept", _CRITERIA),
    "starts": ("What the kept weights start from", _STARTS),
    "zeros": ("What the removed weights are held at", _ZEROS),
}

_SAMPLES, _EPOCHS = 10_000, 5

_TEXT = f"""
A LeNet-300-100 is trained on MNIST, weights are removed by a criterion of their first and their trained values, the others go
back to their first values (or what the second table says), and the sparse network is trained. The words under "theirs" are our
reading of the paper's figures.

What differs from the paper: weights are removed at once (theirs: in rounds), in one ranking over all layers; {_SAMPLES:,}
training images, {_EPOCHS} epochs in batches of 128, Adam at a constant 2e-3. Test accuracy is that at the end of training,
looked at once per network.
"""


class _Held(Constraint):
    """weight = original where it is kept, and a fixed value elsewhere."""

    mask: torch.Tensor
    values: torch.Tensor

    def __init__(self, mask: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("values", values.clone())

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, original, self.values)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        self.mask, self.values = self.mask.index_select(axis, indices), self.values.index_select(axis, indices)


def _cells(quick: bool) -> list[Cell]:
    size = {"samples": 4000, "epochs": 3} if quick else {"samples": _SAMPLES, "epochs": _EPOCHS}
    settings = [("criteria", 0.2), ("criteria", 0.05), ("starts", 0.05), ("zeros", 0.05)][quick:]
    return [{"part": part, "kept": kept, "seed": seed, **size} for seed in range(1 if quick else 3) for part, kept in settings]


def _run(cell: Cell, lab: Lab) -> dict[str, float]:
    """The test accuracy of each row of a part, and of the dense network."""
    data = lab.data("mnist", samples=cell["samples"])
    first = lenet_300_100(input_shape=data.input_shape, classes=data.classes)
    tuning = Tuning(epochs=cell["epochs"], learning_rate=2e-3, schedule="constant")
    last = duplicate(first)
    accuracy = {"dense": _train(last, data, tuning, cell["seed"])}
    rows = _PARTS[cell["part"]][1]
    for done, name in enumerate(rows, start=1):
        criterion = name if cell["part"] == "criteria" else "large_final"
        masks = choose_masks(first, last, sparsity=1 - cell["kept"], criterion=criterion, seed=cell["seed"])
        if cell["part"] == "zeros":
            net = _hold(first, last, masks, name)
        else:
            net = apply_masks(_restart(first, masks, name, cell["seed"]) if cell["part"] == "starts" else first, masks)
        accuracy[name] = _train(net, data, tuning, cell["seed"])
        lab.progress("trainings", done, len(rows), name)
    return accuracy


def _train(net: nn.Module, data: Data, tuning: Tuning, seed: int) -> float:
    fit(net, data.train, tuning, seed=seed)
    return evaluate(net, data.test)


def _restart(first: nn.Module, masks: Mapping[str, torch.Tensor], start: str, seed: int) -> nn.Module:
    """A copy whose kept weights start as a row of `_STARTS` says."""
    net = duplicate(first)
    generator = torch.Generator().manual_seed(seed)
    for name, mask in masks.items():
        weight = tensor_called(net, name).detach()
        kept = weight[mask]
        if start.startswith("drawn again"):
            values = weight.flatten()[torch.randint(weight.numel(), kept.shape, generator=generator)]
        elif start.startswith("reshuffled"):
            values = kept[torch.randperm(len(kept), generator=generator)]
        elif start.startswith("± constant"):
            values = weight.std() * torch.randint(2, kept.shape, generator=generator).mul(2).sub(1)
        else:
            values = kept
        weight[mask] = values.abs() * kept.sign() if start.endswith("first signs") else values
    return net


def _hold(first: nn.Module, last: nn.Module, masks: Mapping[str, torch.Tensor], what: str) -> nn.Module:
    """A copy whose removed weights are held at what a row of `_ZEROS` says."""
    net = duplicate(first)
    trained = select_weights(last)
    for name, weight in select_weights(first).items():
        if what == "zero":
            values = torch.zeros_like(weight)
        elif what == "as first drawn":
            values = weight
        else:
            values = torch.where(trained[name].abs() < weight.abs(), 0, weight)
        constrain(net, name, _Held(masks[name], values))
    return net


def _values(outcomes: Sequence[Outcome], name: str, **settings: object) -> list[float]:
    return [100 * outcome.result[name] for outcome in select(outcomes, **settings)]


def _levels(outcomes: Sequence[Outcome], part: str) -> list[float]:
    return sorted({outcome.cell["kept"] for outcome in select(outcomes, part=part)}, reverse=True)


def _table(outcomes: Sequence[Outcome]) -> str:
    tables = []
    for part, (title, rows) in _PARTS.items():
        levels = _levels(outcomes, part)
        lines = [
            [name, said, *(spread(_values(outcomes, name, part=part, kept=kept)) for kept in levels)]
            for name, said in rows.items()
        ]
        tables.append(markdown_table([title, "theirs", *(f"ours, {kept:.0%} kept" for kept in levels)], lines))
    dense = _values(outcomes, "dense", part="starts")
    note = f"Test accuracy in %, mean ± standard deviation over {len(dense)} seeds. The dense network has {spread(dense)}."
    return "\n\n".join([*tables, note])


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for part, (title, rows) in _PARTS.items():
        kept = _levels(outcomes, part)[-1]
        values = {name: _values(outcomes, name, part=part, kept=kept) for name in ("dense", *rows)}
        bars = [Bar(_wrapped(name), mean(found), deviation(found)) for name, found in values.items()]
        low, high = min(bar.value - bar.error for bar in bars), max(bar.value + bar.error for bar in bars)
        margin = 0.05 * (high - low) + 0.1
        panels.append(BarPanel(title, f"test accuracy with {kept:.0%} kept, %", bars, limits=(low - margin, high + margin)))
    draw_panels(panels, path)


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n")


EXPERIMENT = Experiment(
    title="Deconstructing lottery tickets",
    source='Zhou, Lan, Liu and Yosinski, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019 '
    "(arXiv:1905.01067)",
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
