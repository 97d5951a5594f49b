"""Which block pays: networks of different blocks with as many parameters, their accuracy and their time on the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import look_up
from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.cost import count_macs
from featherweight.measuring import compare_latency, count_parameters
from featherweight.nets import Fire, GhostBottleneck, InvertedResidual, SplitUnit
from featherweight.nets.layers import classifier, conv_norm, max_pool
from featherweight.training import Tuning, evaluate, fit

__all__ = ["BLOCKS", "EXPERIMENT", "block_net", "widest_net"]

_RATE = 2e-3
_BATCH = 64
_SINGLE = (128, 14)  # channels and side of a single block, as in the middle of a net for 224 x 224
_WIDTH_STEP = 0.25

BLOCKS: Mapping[str, Callable[[int, int, int], nn.Module]] = {
    "plain": lambda incoming, outgoing, stride: conv_norm(incoming, outgoing, 3, stride=stride),
    "separable": lambda incoming, outgoing, stride: nn.Sequential(
        conv_norm(incoming, incoming, 3, stride=stride, groups=incoming), conv_norm(incoming, outgoing)
    ),
    "inverted": lambda incoming, outgoing, stride: InvertedResidual(incoming, 6 * incoming, outgoing, stride=stride),
    "fire": lambda incoming, outgoing, stride: nn.Sequential(
        max_pool(stride), Fire(incoming, max(1, outgoing // 8), outgoing), nn.BatchNorm2d(outgoing)
    ),
    "shuffle": lambda incoming, outgoing, stride: SplitUnit(incoming, outgoing, stride=stride),
    "ghost": lambda incoming, outgoing, stride: GhostBottleneck(incoming, 3 * incoming, outgoing, stride=stride),
}
"""(channels in, channels out, stride) -> a block, as the paper that made it known has it."""

_TEXT = """
Every compact block saves weights and multiply-accumulates against a plain convolution of the same width. But a plain network
can also be made narrower, and what is saved on paper need not be saved on the clock. So here all networks get the same number
of parameters, and each block as much width as that buys: a 3x3 convolution with stride 2, three stages of two blocks at 14x14,
7x7 and 4x4 pixels with u, 2u and 4u channels, the mean over all pixels, and a linear layer. `plain` is a 3x3 convolution with
batch norm and ReLU; `separable` MobileNet's depthwise and 1x1 convolution; `inverted` MobileNetV2's, six times wider inside;
`fire` SqueezeNet's with its squeeze to an eighth, and a batch norm behind it, which SqueezeNet has not; `shuffle` the unit of
ShuffleNet V2; `ghost` GhostNet's bottleneck, three times wider inside.

All are trained alike, and briefly, which favours what learns fast: 6000 images of Fashion-MNIST, four epochs in batches of 64,
Adam from 2e-3 down to zero by a cosine. The test set was looked at once per network. Latency is that of the exported network in
ONNX Runtime on one thread; the six networks of a size take turns, so the multiples of `plain` are what to look at, not the
microseconds of a shared machine.

The last table is about one block by itself, as in the middle of a network for 224x224 images, without stride: what its
multiply-accumulates promise, and what the clock gives.

What the full run says: in the middle of a network for large images a separable, fire or shuffle block takes a tenth to a
seventh of a plain one's time, about what its multiply-accumulates promise. In networks this small nothing beats a narrower
plain one: at equal parameters it is the fastest, and only ghost and shuffle blocks come within the spread of its accuracy.
"""


def block_net(block: str, width: float) -> nn.Sequential:
    """Six blocks in three stages: (B, 1, 28, 28) -> (B, 10).

    Args:
        block: a name in `BLOCKS`.
        width: of the first stage, in channels; the others have twice and four times as many. All are rounded to even numbers.

    Returns:
        The network, with new weights.

    Example:
        >>> block_net("separable", 8.0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    make = look_up(BLOCKS, block, "a block")
    widths = [max(2, 2 * round(width * 2**stage / 2)) for stage in range(3)]
    layers: list[nn.Module] = [conv_norm(1, widths[0], 3, stride=2)]
    channels = widths[0]
    for stage, outgoing in enumerate(widths):
        layers += [make(channels, outgoing, 1 if stage == 0 else 2), make(outgoing, outgoing, 1)]
        channels = outgoing
    return nn.Sequential(*layers, classifier(channels, 10))


def widest_net(block: str, parameters: int) -> nn.Sequential:
    """The widest network of a block that has at most so many parameters.

    Args:
        block: a name in `BLOCKS`.
        parameters: the most it may have.

    Returns:
        The network, with new weights; 2 channels in the first stage if all are too many.

    Example:
        >>> count_parameters(widest_net("plain", 20_000))
        19074
    """
    width = 2.0
    with torch.device("meta"):
        while count_parameters(block_net(block, width + _WIDTH_STEP)) <= parameters:
            width += _WIDTH_STEP
    return block_net(block, width)


def _cells(quick: bool) -> list[Cell]:
    if quick:
        return [{"parameters": 6000, "samples": 1000, "epochs": 2, "seed": 0}, {"timed": [6000], "seconds": 0.1, "seed": 0}]
    sizes = [12_500, 50_000]
    training = [
        {"parameters": parameters, "samples": 6000, "epochs": 4, "seed": seed} for seed in range(3) for parameters in sizes
    ]
    return [*training, {"timed": sizes, "seconds": 2.0, "seed": 0}]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Trains a network of each block; or measures what does not depend on the weights."""
    if "timed" in cell:
        return _measure(cell, lab)
    data = lab.data("fashion-mnist", batch_size=_BATCH, samples=cell["samples"])
    accuracies = {}
    for done, block in enumerate(BLOCKS, start=1):
        net = widest_net(block, cell["parameters"])
        fit(net, data.train, Tuning(epochs=cell["epochs"], learning_rate=_RATE), seed=cell["seed"])
        accuracies[block] = evaluate(net, data.test)
        lab.progress("blocks", done, len(BLOCKS))
    return accuracies


def _measure(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Counts and latencies of all blocks: networks of each size, and the blocks by themselves."""
    channels, side = _SINGLE
    blocks = {block: make(channels, channels, 1) for block, make in BLOCKS.items()}
    found = {"single": _compare(blocks, (channels, side, side), cell["seconds"])}
    for done, parameters in enumerate(cell["timed"], start=1):
        nets = {block: widest_net(block, parameters) for block in BLOCKS}
        found[str(parameters)] = _compare(nets, (1, 28, 28), cell["seconds"])
        lab.progress("sizes", done, len(cell["timed"]))
    return found


def _compare(nets: Mapping[str, nn.Module], shape: tuple[int, ...], seconds: float) -> dict[str, dict[str, float]]:
    example = torch.zeros(2, *shape)
    programs = {block: to_module(net.eval(), example) for block, net in nets.items()}
    latencies = compare_latency(list(programs.values()), example, seconds=seconds)
    return {
        block: {
            "parameters": count_parameters(net),
            "macs": count_macs(net.program, tensors_of(net, net.program)),
            "latency_s": latency.median_s,
            "spread_s": latency.spread_s,
        }
        for (block, net), latency in zip(programs.items(), latencies, strict=True)
    }


def _table(outcomes: Sequence[Outcome]) -> str:
    rows, singles = [], []
    for size, measured in _measured(outcomes).items():
        for block in BLOCKS:
            if size == "single":
                singles.append([block, *_counts(measured, block)])
            else:
                accuracy = spread(_accuracies(outcomes, size, block))
                rows.append([f"{block}, {int(size):,}", *_counts(measured, block), accuracy])
    columns = ["parameters", "million MACs", "latency in µs", "of plain's"]
    channels, side = _SINGLE
    parts = [
        markdown_table(["block, most parameters", *columns, "test accuracy in %"], rows),
        "Accuracy: mean ± standard deviation over seeds. Latency: median and interquartile range of a run with one image. "
        f"One block by itself, {channels} channels on {side}x{side} pixels:",
        markdown_table(["block", *columns], singles),
    ]
    return "\n\n".join(parts)


def _counts(measured: Mapping[str, Mapping[str, float]], block: str) -> list[str]:
    mine, seconds = measured[block], measured["plain"]["latency_s"]
    latency = f"{1e6 * mine['latency_s']:.0f} (IQR {1e6 * mine['spread_s']:.0f})"
    return [f"{mine['parameters']:,}", f"{mine['macs'] / 1e6:.2f}", latency, f"{mine['latency_s'] / seconds:.2f} x"]


def _measured(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the timing cell found: by size, and "single" last."""
    result = next(outcome.result for outcome in outcomes if "timed" in outcome.cell)
    return {**{size: found for size, found in result.items() if size != "single"}, "single": result["single"]}


def _accuracies(outcomes: Sequence[Outcome], size: str, block: str) -> list[float]:
    return [100 * outcome.result[block] for outcome in select(outcomes, parameters=int(size))]


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    measured = _measured(outcomes)
    sizes = [size for size in measured if size != "single"]
    panels = []
    for title, xlabel, key, unit in (
        ("Equal parameters", "parameters", "parameters", 1.0),
        ("On the clock", "latency of one image in µs, 1 thread", "latency_s", 1e6),
    ):
        lines = []
        for block in BLOCKS:
            accuracies = [_accuracies(outcomes, size, block) for size in sizes]
            x = [unit * measured[size][block][key] for size in sizes]
            lines.append(Line(block, x, [mean(a) for a in accuracies], [deviation(a) for a in accuracies]))
        panels.append(LinePanel(title, xlabel, "test accuracy in %", lines, logarithmic=True))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Which block pays",
    source=(
        'Howard et al., "MobileNets", 2017 (arXiv:1704.04861); Sandler et al., "MobileNetV2", CVPR 2018 (arXiv:1801.04381); '
        'Iandola et al., "SqueezeNet", 2016 (arXiv:1602.07360); Ma et al., "ShuffleNet V2", ECCV 2018 (arXiv:1807.11164); '
        'Han et al., "GhostNet", CVPR 2020 (arXiv:1911.11907)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
