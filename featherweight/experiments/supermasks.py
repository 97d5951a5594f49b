"""Supermasks: how well a network does whose weights were never trained, only chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.constraint import duplicate, fold
from featherweight.graph.selection import select_weights
from featherweight.nets import lenet_300_100
from featherweight.pruning.lottery import choose_masks
from featherweight.pruning.supermask import set_signed_constants, train_supermask
from featherweight.pruning.weights import apply_masks
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT"]

_HEURISTICS = ("large_final_same_sign", "large_final", "random")
_SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
_LEARNED = ("learned", "learned-rescaled", "edge-popup")

# How the scores are trained.
_TUNING: Mapping[str, Tuning] = {
    "learned": Tuning(learning_rate=100.0, optimizer="sgd"),
    "learned-rescaled": Tuning(learning_rate=100.0, optimizer="sgd"),
    "edge-popup": Tuning(learning_rate=1.0, optimizer="sgd"),
}

_WEIGHTS = {"drawn": "as drawn", "signed": "signed constant"}
_NAMES = {
    "dense": "all weights, trained",
    "random": "chosen at random",
    "large_final": "large after training",
    "large_final_same_sign": "large after training, same sign",
    "learned": "learned",
    "learned-rescaled": "learned, rescaled",
    "edge-popup": "edge-popup",
}

# Zhou et al., MNIST with the fully connected net, test accuracy in %. Ramanujan et al. have no MNIST.
_PAPER: Mapping[tuple[str, str], float] = {
    ("large_final_same_sign", "drawn"): 80.0,
    ("large_final_same_sign", "signed"): 86.0,
    ("learned", "drawn"): 95.3,
    ("learned-rescaled", "signed"): 98.0,
}

_TEXT = """
LeNet-300-100 on MNIST: Glorot normal weights, biases zero, and neither is ever trained; what is chosen is which weights to use.
"Signed constant" replaces each weight by its sign times its layer's standard deviation. The heuristic masks come from training
a copy of the network: they keep what became large, or what became large without changing its sign. Their sparsity is the best
of {sparsities} on validation data. The learned masks train a score for each weight: the probability of staying (Zhou et al.),
or a rank of which the upper half stays (edge-popup).

What differs from the papers: {samples:,} training images, {epochs} epochs of batches of 128, far fewer than theirs; tested is
one draw of a learned mask. Ramanujan et al. show edge-popup on CIFAR-10 and ImageNet. The learning rates of the scores were
chosen on validation data. The test set was looked at once per network. Where the table says 80, Zhou et al. say "over 80 %".
"""

_SAMPLES, _EPOCHS = 20_000, 10


def _cells(quick: bool) -> list[Cell]:
    size = {"samples": 4000, "epochs": 5} if quick else {"samples": _SAMPLES, "epochs": _EPOCHS}
    kinds = [("heuristic", "drawn"), ("heuristic", "signed")]
    kinds += [(kind, weights) for kind in _LEARNED for weights in _WEIGHTS]
    return [
        {"kind": kind, "weights": weights, "seed": seed, **size} for seed in range(1 if quick else 3) for kind, weights in kinds
    ]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """For each name of a mask its test accuracy and the share of weights it keeps."""
    data = lab.data("mnist", samples=cell["samples"])
    drawn = _draw_net(data)
    model = set_signed_constants(drawn) if cell["weights"] == "signed" else drawn
    if cell["kind"] == "heuristic":
        return _try_heuristics(drawn, model, data, epochs=cell["epochs"] // 2, seed=cell["seed"])
    tuning = replace(_TUNING[cell["kind"]], epochs=cell["epochs"])
    masked = train_supermask(model, data.train, tuning, kind=cell["kind"], seed=cell["seed"], progress=lab.progress)
    return {cell["kind"]: _measure(masked, data)}


def _draw_net(data: Data) -> nn.Module:
    net = lenet_300_100(input_shape=data.input_shape, classes=data.classes)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_normal_(parameter)
    return net


def _try_heuristics(drawn: nn.Module, model: nn.Module, data: Data, *, epochs: int, seed: int) -> dict[str, Any]:
    trained = duplicate(drawn)
    fit(trained, data.train, Tuning(epochs=epochs, learning_rate=2e-3), seed=seed)
    found = {"dense": _measure(trained, data)}
    for criterion in _HEURISTICS:
        tried = []
        for sparsity in _SPARSITIES:
            masks = choose_masks(drawn, trained, sparsity=sparsity, criterion=criterion, allocation="uniform", seed=seed)
            masked = apply_masks(model, masks)
            tried.append((evaluate(masked, data.validation), masked))
        _, best = max(tried, key=lambda pair: pair[0])
        found[criterion] = _measure(best, data)
    return found


def _measure(net: nn.Module, data: Data) -> dict[str, float]:
    folded = fold(net)
    weights = torch.cat([weight.flatten() for weight in select_weights(folded).values()])
    return {"accuracy": evaluate(folded, data.test), "kept": float((weights != 0).float().mean())}


def _measured(outcomes: Sequence[Outcome], name: str, weights: str) -> list[dict[str, float]]:
    """What was measured with a mask, over seeds."""
    return [outcome.result[name] for outcome in select(outcomes, weights=weights) if name in outcome.result]


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for name, title in _NAMES.items():
        for weights in _WEIGHTS if name != "dense" else ["drawn"]:
            found = _measured(outcomes, name, weights)
            theirs = _PAPER.get((name, weights))
            rows.append([
                title,
                _WEIGHTS[weights] if name != "dense" else "trained",
                "–" if theirs is None else f"{theirs:g}",
                f"**{spread([100 * point['accuracy'] for point in found])}**",
                spread([100 * point["kept"] for point in found], digits=0),
                str(len(found)),
            ])  # fmt: skip
    return markdown_table(["mask", "weights", "Zhou et al., %", "ours, %", "weights kept, %", "seeds"], rows)


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for weights, title in _WEIGHTS.items():
        bars = []
        for name, label in _NAMES.items() if weights == "drawn" else list(_NAMES.items())[1:]:
            values = [100 * point["accuracy"] for point in _measured(outcomes, name, weights)]
            bars.append(Bar(label, mean(values), deviation(values), _PAPER.get((name, weights))))
        panels.append(BarPanel(f"weights: {title}", "test accuracy, %", bars, limits=(0, 100)))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Supermasks: good networks without training a weight",
    source=(
        'Zhou, Lan, Liu and Yosinski, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019 '
        "(arXiv:1905.01067); edge-popup: Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari, \"What's Hidden in a Randomly "
        'Weighted Neural Network?", CVPR 2020 (arXiv:1911.13299)'
    ),
    text=_TEXT.format(samples=_SAMPLES, epochs=_EPOCHS, sparsities=", ".join(map(str, _SPARSITIES))),
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
