"""Why prune at all: big networks made small, at once or little by little, against networks that were small from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.sizes import restart, weight_sparsity_for
from featherweight.experiments.summary import deviation, markdown_table, mean, spread
from featherweight.graph.constraint import duplicate
from featherweight.measuring import count_parameters
from featherweight.nets import lenet_300_100
from featherweight.pruning import prune_neurons, prune_weights
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT", "fewer_neurons", "shares"]

_KEPT = (0.5, 0.2, 0.1, 0.05, 0.02)
_HIDDEN = {"fc1": 300, "fc2": 100}
_RATE = 1e-3
_REDRAWN = 1000  # added to the seed for new weights

_WAYS = {
    "scratch": "small from the start",
    "neurons_at_once": "neurons, at once",
    "neurons_gradually": "neurons, little by little",
    "weights_at_once": "weights, at once",
    "weights_gradually": "weights, little by little",
}

_TEXT = """
Does it pay to train a big network and make it small? LeNet-300-100 is trained on 10 000 images of Fashion-MNIST, then pruned
and tuned; a network with the same number of parameters is trained from the start, for as many epochs as the big one's
training and tuning together, at the better of two learning rates on validation data. Pruned by neurons, both have the very
same layers; pruned by weights, the big network keeps exactly as many parameters that are not zero.

And does it pay to go slowly? Both ways tune for eight epochs, each epoch with its own cosine from 1e-3 to zero (Adam, batches
of 128); they differ only in when the parameters go: all before the first epoch, or equal shares of what is left before each
of the first six. Neurons go by magnitude, the same share of both layers; weights by magnitude, in one ranking. The test set
was looked at once per network.

Theirs: pruned large networks "consistently outperform" small dense ones of the same size (Zhu and Gupta); pruning and tuning
in turns took AlexNet from 5 to 9 times fewer weights at no loss of accuracy, against once (Han et al.).

What the full runs say: pruned by weights, the big network is ahead of the small one from a tenth of its size downwards, and
the more the smaller they are. Pruned by neurons it is behind at every size: there the layers are what counts, and a network
that has them from the start has had longer to learn (as Liu et al. found, see `rethinking`). Going slowly is worth nothing
measurable down to a tenth of the parameters, and costs weights half a point or more below a twentieth: what goes late has few
epochs left to be made good. That is not against Han et al., who tune to the end after each step, but their gain needs that
time.
"""


def shares(kept: float, *, rounds: int, growing: int) -> list[float]:
    """How much is left in each round: equal shares of what is left go in the first `growing` of them.

    Args:
        kept: the share left at the end, in (0, 1].
        rounds: how many there are.
        growing: in how many of them something goes, in [1, rounds].

    Returns:
        The shares, falling to `kept`.

    Example:
        >>> shares(0.25, rounds=3, growing=2), shares(0.25, rounds=3, growing=1)
        ([0.5, 0.25, 0.25], [0.25, 0.25, 0.25])
    """
    return [kept ** min((done + 1) / growing, 1.0) for done in range(rounds)]


def _cells(quick: bool) -> list[Cell]:
    if quick:
        return [{"samples": 2000, "epochs": 3, "rounds": 3, "growing": 2, "kept": [0.1], "seed": 0}]
    size = {"samples": 10_000, "epochs": 10, "rounds": 8, "growing": 6, "kept": list(_KEPT)}
    return [{**size, "seed": seed} for seed in range(3)]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One big network, and every way to every size."""
    data = lab.data("fashion-mnist", samples=cell["samples"])
    big = _trained(lenet_300_100(), data, cell["epochs"], _RATE, cell["seed"])
    points = []
    for done, kept in enumerate(cell["kept"], start=1):
        points.append(_compare(big, kept, data, cell))
        lab.progress("sizes", done, len(cell["kept"]))
    return {"big": evaluate(big, data.test), "parameters": count_parameters(big), "points": points}


def _compare(big: nn.Module, kept: float, data: Data, cell: Cell) -> dict[str, Any]:
    """The size that is left of so many neurons, and the test accuracy of every way to it."""
    rounds, seed = cell["rounds"], cell["seed"]
    target = fewer_neurons(big, kept, data.example)
    parameters, full = count_parameters(target), count_parameters(big)

    def remove_neurons(net: nn.Module, share: float) -> nn.Module:
        return fewer_neurons(net, share, data.example)

    def remove_weights(net: nn.Module, share: float) -> nn.Module:
        return prune_weights(net, sparsity=weight_sparsity_for(big, round(share * full)))

    nets: dict[str, nn.Module] = {}
    for pace, growing in (("at_once", 1), ("gradually", cell["growing"])):
        for what, remove, least in (("neurons", remove_neurons, kept), ("weights", remove_weights, parameters / full)):
            nets[f"{what}_{pace}"] = _shrink(big, remove, shares(least, rounds=rounds, growing=growing), data, seed)
    small = restart(target, seed=seed + _REDRAWN)
    trained = [_trained(small, data, cell["epochs"] + rounds, factor * _RATE, seed) for factor in (1, 3)]
    nets["scratch"] = max(trained, key=lambda net: evaluate(net, data.validation))
    return {"parameters": parameters, **{way: evaluate(net, data.test) for way, net in nets.items()}}


def fewer_neurons(net: nn.Module, share: float, example: torch.Tensor) -> nn.Module:
    """LeNet-300-100, pruned or not, with a share of its original hidden units left.

    Args:
        net: not changed.
        share: of the 300 and of the 100 units, rounded, at least one each.
        example: a batch of inputs.

    Returns:
        The smaller network; the strongest units by magnitude stay.

    Example:
        >>> fewer_neurons(lenet_300_100(), 0.1, torch.zeros(1, 1, 28, 28)).fc2
        Linear(in_features=30, out_features=10, bias=True)
    """
    widths = {layer: len(net.get_parameter(f"{layer}.weight")) for layer in _HIDDEN}
    sparsities = {f"{layer}.*": 1 - max(1, round(share * _HIDDEN[layer])) / width for layer, width in widths.items()}
    return prune_neurons(net, example, sparsity=None, allocation=sparsities)


def _shrink(
    big: nn.Module, remove: Callable[[nn.Module, float], nn.Module], kept: Sequence[float], data: Data, seed: int
) -> nn.Module:
    """Removes down to each share, and tunes for an epoch after it."""
    net = big
    for done, share in enumerate(kept):
        net = _trained(remove(net, share), data, 1, _RATE, 100 * seed + done)
    return net


def _trained(model: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """A trained copy."""
    net = duplicate(model)
    fit(net, data.train, Tuning(epochs=epochs, learning_rate=rate), seed=seed)
    return net


def _percents(outcomes: Sequence[Outcome], place: int, way: str) -> list[float]:
    return [100 * outcome.result["points"][place][way] for outcome in outcomes]


def _table(outcomes: Sequence[Outcome]) -> str:
    first = outcomes[0].result
    rows = []
    for place, point in enumerate(first["points"]):
        size = f"{point['parameters']:,} ({point['parameters'] / first['parameters']:.1%})"
        rows.append([size, *(spread(_percents(outcomes, place, way)) for way in _WAYS)])
    big = spread([100 * outcome.result["big"] for outcome in outcomes])
    note = (
        f"Test accuracy in %, mean ± standard deviation over {len(outcomes)} seeds. The big network has "
        f"{first['parameters']:,} parameters and {big} % before anything is removed."
    )
    return markdown_table(["parameters left", *_WAYS.values()], rows) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    sizes = [point["parameters"] for point in outcomes[0].result["points"]]
    lines = []
    for way, title in _WAYS.items():
        values = [_percents(outcomes, place, way) for place in range(len(sizes))]
        lines.append(Line(title, sizes, [mean(v) for v in values], [deviation(v) for v in values]))
    panel = LinePanel("LeNet-300-100 on Fashion-MNIST", "parameters left", "test accuracy in %", lines, logarithmic=True)
    draw_panels([panel], path)


EXPERIMENT = Experiment(
    title="Why prune",
    source=(
        'Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 '
        '(arXiv:1506.02626); Zhu and Gupta, "To prune, or not to prune", 2017 (arXiv:1710.01878)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
