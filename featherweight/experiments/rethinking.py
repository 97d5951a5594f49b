"""Rethinking the value of pruning: pruned networks, fine-tuned, against the same architectures trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.sizes import conv_net, count_work, epochs_for_work, restart
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.constraint import duplicate
from featherweight.pruning import apply_masks, plan_weights, prune_neurons
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT"]

_SPARSITIES = {"neurons": (0.25, 0.5, 0.75), "weights": (0.8, 0.95)}
_RATES = (0.1, 0.01)
_REDRAWN = 1000  # added to the seed for new weights

_WAYS = {
    "tuned": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "ticket": "Scratch-E from the first weights (the ticket)",
}

# Liu et al., ImageNet, top-1 in %, the authors' tables: fine-tuned, Scratch-E, Scratch-B.
_PAPER = {
    "theirs, filters by L1 norm: ResNet-34-A": ("72.56", "72.77", "73.08"),
    "theirs, network slimming 50 %: VGG-11": ("68.62", "70.00", "71.18"),
    "theirs, weights 60 %: VGG-16": ("73.63", "71.50", "73.42"),
    "theirs, weights 60 %: ResNet-50": ("76.09", "73.69", "74.90"),
}

_TEXT = """
A network is trained, pruned and fine-tuned; the same small architecture, or the same mask, is trained from new weights for as
many epochs as the big network had (Scratch-E) and for its compute, but at most twice the epochs (Scratch-B). Neurons: the
same share of the filters of every layer goes, by magnitude. Weights: the smallest of all layers go, in one ranking; a weight
that is zero counts as no compute. The winning ticket starts from the big network's own first weights, and Scratch-E is its
control: the same mask, other first weights.

Ours is a conv net of 24,170 parameters with batch norm on 4000 images of Fashion-MNIST: 12 epochs of SGD with momentum in
batches of 64, a cosine to zero from the learning rate given, weight decay 1e-4; then 3 epochs of fine-tuning at that rate or
a tenth of it, whichever does better on validation data. Theirs are ImageNet networks. The test set was looked at once per
network.

What the full runs say: pruned by neurons, Scratch-B is level with fine-tuning at a quarter and the large rate, and ahead
everywhere else, the more so the more went, as Liu et al. have it; at the large rate Scratch-E is, too. Pruned by weights,
Scratch-B is level or ahead as well, where theirs was behind on ImageNet; our fine-tuning is short. At the small rate 12
epochs are too few to converge, so much of Scratch-B's lead there is its length. The ticket's lead over its control depends on
the rate, as theirs did: some four points at the small one, less than one at the large.
"""


def _cells(quick: bool) -> list[Cell]:
    if quick:
        size = {"samples": 1000, "epochs": 4, "tuning_epochs": 1}
        return [{"pruning": kind, "rate": 0.1, "sparsities": [0.5], "seed": 0, **size} for kind in _SPARSITIES]
    size = {"samples": 4000, "epochs": 12, "tuning_epochs": 3}
    return [
        {"pruning": kind, "rate": rate, "sparsities": list(sparsities), "seed": seed, **size}
        for seed in range(3)
        for kind, sparsities in _SPARSITIES.items()
        for rate in _RATES
    ]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One big network, and all that is made of it."""
    data = lab.data("fashion-mnist", batch_size=64, samples=cell["samples"])
    start = conv_net()
    dense = _trained(start, data, cell["epochs"], cell["rate"], cell["seed"])
    points = []
    for done, sparsity in enumerate(cell["sparsities"], start=1):
        points.append({"sparsity": sparsity, **_compare(start, dense, sparsity, data, cell)})
        lab.progress("sparsities", done, len(cell["sparsities"]))
    return {"dense": evaluate(dense, data.test), "points": points}


def _compare(start: nn.Module, dense: nn.Module, sparsity: float, data: Data, cell: Cell) -> dict[str, float]:
    """The test accuracy of each way to a network of this sparsity, and how long Scratch-B was."""
    epochs, rate, seed = cell["epochs"], cell["rate"], cell["seed"]
    starts: dict[str, nn.Module] = {}
    if cell["pruning"] == "neurons":
        pruned = prune_neurons(dense, data.example, sparsity=sparsity, allocation="uniform")
        fresh = restart(pruned, seed=seed + _REDRAWN)
    else:
        masks = plan_weights(dense, sparsity=sparsity)
        pruned, fresh = apply_masks(dense, masks), apply_masks(restart(dense, seed=seed + _REDRAWN), masks)
        starts["ticket"] = apply_masks(start, masks)
    starts["scratch_e"] = fresh
    longer = epochs_for_work(epochs, count_work(dense, data.example), count_work(pruned, data.example))
    nets = {way: _trained(net, data, epochs, rate, seed) for way, net in starts.items()}
    nets["scratch_b"] = _trained(fresh, data, longer, rate, seed)
    tuned = [_trained(pruned, data, cell["tuning_epochs"], factor * rate, seed) for factor in (0.1, 1.0)]
    nets["tuned"] = max(tuned, key=lambda net: evaluate(net, data.validation))
    return {way: evaluate(net, data.test) for way, net in nets.items()} | {"scratch_b_epochs": longer}


def _trained(model: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """A trained copy."""
    net = duplicate(model)
    fit(net, data.train, Tuning(epochs=epochs, learning_rate=rate, optimizer="sgd", weight_decay=1e-4), seed=seed)
    return net


def _settings(outcomes: Sequence[Outcome]) -> list[tuple[str, float, list[Outcome]]]:
    """Kinds of pruning and learning rates, each with its seeds."""
    pairs = dict.fromkeys((outcome.cell["pruning"], outcome.cell["rate"]) for outcome in outcomes)
    return [(kind, rate, select(outcomes, pruning=kind, rate=rate)) for kind, rate in pairs]


def _percents(outcomes: Sequence[Outcome], sparsity: float, way: str) -> list[float]:
    points = [point for outcome in outcomes for point in outcome.result["points"] if point["sparsity"] == sparsity]
    return [100 * point[way] for point in points if way in point]


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = [[title, "", *accuracies, ""] for title, accuracies in _PAPER.items()]
    for kind, rate, mine in _settings(outcomes):
        dense = spread([100 * outcome.result["dense"] for outcome in mine])
        for sparsity in mine[0].cell["sparsities"]:
            cells = [_percents(mine, sparsity, way) for way in _WAYS]
            title = f"ours, {kind} {100 * sparsity:.0f} %, learning rate {rate:g}"
            rows.append([title, dense, *(spread(values) if values else "" for values in cells)])
    seeds = len({outcome.cell["seed"] for outcome in outcomes})
    note = f"Accuracy in %; ours: mean ± standard deviation over {seeds} seeds."
    return markdown_table(["", "big network", *_WAYS.values()], rows) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for kind, rate, mine in _settings(outcomes):
        lines = []
        sparsities = mine[0].cell["sparsities"]
        for way, title in _WAYS.items():
            values = [_percents(mine, sparsity, way) for sparsity in sparsities]
            if values[0]:
                lines.append(Line(title, sparsities, [mean(v) for v in values], [deviation(v) for v in values]))
        panels.append(LinePanel(f"{kind}, learning rate {rate:g}", "sparsity", "test accuracy in %", lines))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Rethinking the value of pruning",
    source='Liu, Sun, Zhou, Huang and Darrell, "Rethinking the Value of Network Pruning", ICLR 2019 (arXiv:1810.05270)',
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
