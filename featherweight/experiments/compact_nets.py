"""The compact networks beside a plain one: at as many parameters, and at as much time on the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import look_up
from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.measuring import compare_latency, count_parameters, measure
from featherweight.measuring.latency import Latency
from featherweight.nets import NETS
from featherweight.training import Tuning, evaluate, fit

__all__ = ["EXPERIMENT", "FAMILY", "make_net", "nearest_width"]

FAMILY: Sequence[str] = (
    "resnet20", "squeezenet", "mobilenet-v1", "mobilenet-v2", "mobilenet-v3-small", "shufflenet-v1", "shufflenet-v2",
    "xception", "ghostnet",
)  # fmt: skip
"""Names in `NETS` of networks with a width; the first is the plain one."""

_SHAPE, _CLASSES = (1, 28, 28), 10
_YARDSTICK = "lenet5"  # whose latency is the unit of time
_NARROWEST, _WIDEST = 0.02, 1.3
_BATCH, _RATE = 32, 2e-3
_SEARCH_S = 0.2  # how long one width is timed

_LIMITS: Mapping[str, float] = {"parameters": 100_000, "latency": 2.5}
_TITLES = {
    "parameters": "As near as may be to {limit:,} parameters",
    "latency": "As near as may be to {limit} times LeNet-5's latency",
}

_TEXT = """
The papers compare their networks at 224x224 pixels, each at sizes of its own. Here all of them answer the same question, what
is in an image of Fashion-MNIST, 28x28 pixels and one channel, and each is made as wide as the comparison allows: once so that
it has as nearly as may be 100 000 parameters, once so that one image takes as nearly as may be 2.5 times as long as LeNet-5
takes, in ONNX Runtime on one thread. `resnet20`, with plain 3x3 convolutions, is the control.

Widths are found by halving a range: by parameters in steps of 4 %, on the clock in steps of 20 %, every try exported and timed
in turns with LeNet-5, so that what else the machine does falls on both; the multiples are what to look at, not the microseconds
of a shared machine. Channels are rounded to multiples of 2, 4 or 8, as the papers have it, so no match is exact; and in
`mobilenet-v2`, `shufflenet-v2` and `ghostnet` one of the last layers keeps its 1024 or 1280 channels at every width, as in the
papers, which at this size is more than half of all parameters.

All are trained alike, and briefly, which favours what learns fast: 6000 images, three epochs in batches of 32, Adam from 2e-3
down to zero by a cosine after a tenth of the steps; a rate that `blocks` uses, not tuned for any of them. SqueezeNet, which has
no norms, starts from the weights of He et al. (2015); from PyTorch's own it does not begin to learn in so few steps. The test
set was looked at once per network. Files are `.fw` files of the weights as trained, in 32 bits.

What the full run says: on the clock the match is coarse, from 2.0 to 3.1 times LeNet-5's latency, for few widths are to be had
and a shared machine wavers. In both comparisons the plain residual network is the most accurate; at equal parameters it is also
the slowest, by a factor of 3.6 against SqueezeNet. Only Xception comes within the spread of it both times, and at equal
parameters needs less than half of its time. At equal time SqueezeNet and MobileNetV3 afford more than 400 000 parameters and do
not make much of them; MobileNetV2 and GhostNet are near the narrowest they can be, most of their weights in last layers meant
for a thousand classes. Two seeds differ by up to four points: of the networks between, no order can be read from this. Nor is
it a word about long trainings, or about the large images for which these networks were made.
"""


def make_net(name: str, width: float) -> nn.Module:
    """A network of the family for images of 28 x 28 pixels in ten classes.

    SqueezeNet, which has no norms, starts from the weights of He et al. (2015) for ReLU, without which so deep a network does
    not begin to learn in so few steps; the others start from PyTorch's own.

    Args:
        name: in `FAMILY`.
        width: factor on its channels, above 0.

    Returns:
        The network: (B, 1, 28, 28) -> (B, 10). Its first weights come from torch's global generator.

    Example:
        >>> make_net("squeezenet", 0.25)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    net = look_up({each: NETS[each] for each in FAMILY}, name, "a network")(input_shape=_SHAPE, classes=_CLASSES, width=width)
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
    return net


def nearest_width(name: str, cost: Callable[[nn.Module], float], limit: float, *, ratio: float = 1.04) -> float:
    """The width at which a network costs most nearly so much, of those from 0.02 to 1.3 with this ratio from one to the next.

    Found by halving the range, since a wider network costs more; of widths that rounding makes the same network, the least.

    Args:
        name: in `FAMILY`.
        cost: of a network with untrained weights.
        limit: what it should cost; a network that cannot is as near as it can be.
        ratio: above 1.

    Returns:
        The width.

    Example:
        >>> width = nearest_width("squeezenet", count_parameters, 100_000)
        >>> round(width, 2), count_parameters(make_net("squeezenet", width))
        (0.35, 98778)
    """
    steps = int(math.log(_WIDEST / _NARROWEST, ratio))
    candidates = [_NARROWEST * ratio**step for step in range(steps + 1)]
    with torch.device("meta"):
        by_size = {count_parameters(make_net(name, width)): width for width in reversed(candidates)}
    widths = sorted(by_size.values())
    costs: dict[float, float] = {}
    low, high = 0, len(widths) - 1
    while low < high:  # the nearest is one of those from low to high, or the one before low
        middle = (low + high) // 2
        costs[widths[middle]] = cost(make_net(name, widths[middle]))
        low, high = (middle + 1, high) if costs[widths[middle]] < limit else (low, middle)
    if widths[low] not in costs:
        costs[widths[low]] = cost(make_net(name, widths[low]))
    return min(costs, key=lambda width: abs(costs[width] - limit))


def _time(net: nn.Module, seconds: float) -> tuple[Latency, Latency]:
    """Of the yardstick and of a network, in turns."""
    yardstick = NETS[_YARDSTICK](input_shape=_SHAPE, classes=_CLASSES)
    found = compare_latency([yardstick.eval(), net.eval()], torch.zeros(2, *_SHAPE), seconds=seconds)
    return found[0], found[1]


def _multiple(net: nn.Module) -> float:
    """How many times the yardstick's latency a network has."""
    yardstick, own = _time(net, _SEARCH_S)
    return own.median_s / yardstick.median_s


def _width(name: str, what: str, limit: float) -> float:
    """Of the network that matches; coarser by the clock, since each try is exported, which takes seconds."""
    return (
        nearest_width(name, count_parameters, limit)
        if what == "parameters"
        else nearest_width(name, _multiple, limit, ratio=1.2)
    )


def _cells(quick: bool) -> list[Cell]:
    settings = {"samples": 6000, "epochs": 3, "seeds": [0, 1], "seconds": 1.0, "seed": 0}
    if quick:
        settings = {"samples": 1000, "epochs": 1, "seeds": [0], "seconds": 0.1, "seed": 0}
    names = ["squeezenet"] if quick else FAMILY
    return [{"net": name, "matched": what, "limit": limit, **settings} for what, limit in _LIMITS.items() for name in names]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Finds the width that matches, trains networks of that width from each seed, and measures one of them."""
    width = _width(cell["net"], cell["matched"], cell["limit"])
    data = lab.data("fashion-mnist", batch_size=_BATCH, samples=cell["samples"])
    tuning = Tuning(epochs=cell["epochs"], learning_rate=_RATE, warmup=0.1)
    accuracies = []
    for seed in cell["seeds"]:
        torch.manual_seed(seed)
        net = make_net(cell["net"], width)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # trains half as fast again
        fit(net, data.train, tuning, seed=seed, progress=lab.progress)
        accuracies.append(evaluate(net, data.test))
    yardstick, latency = _time(net, cell["seconds"])
    report = measure(net.eval(), torch.zeros(2, *_SHAPE), latency=latency).as_dict()
    return {"width": width, "accuracies": accuracies, "yardstick_s": yardstick.median_s, **report}


def _table(outcomes: Sequence[Outcome]) -> str:
    header = [
        "network",
        "width",
        "parameters",
        "million MACs",
        "file in kB",
        "latency in µs",
        "of LeNet-5's",
        "test accuracy in %",
    ]
    parts = []
    for what, title in _TITLES.items():
        rows = [
            [
                outcome.cell["net"],
                f"{found['width']:.3f}",
                f"{found['parameters']:,}",
                f"{found['macs'] / 1e6:.2f}",
                f"{found['size_bytes'] / 1e3:.0f}",
                f"{1e6 * found['latency_s']:.0f} (IQR {1e6 * found['latency_spread_s']:.0f})",
                f"{_multiple_of(outcome):.2f} x",
                spread(_accuracies(outcome)),
            ]
            for outcome in select(outcomes, matched=what)
            for found in [outcome.result]
        ]
        header[0] = title.format(limit=select(outcomes, matched=what)[0].cell["limit"])
        parts.append(markdown_table(header, rows))
    seeds = len(outcomes[0].cell["seeds"])
    parts.append(
        f"Accuracy: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}. Latency: median and interquartile range of "
        "runs with one image on one thread, and its multiple of LeNet-5's, measured in turns with it."
    )
    return "\n\n".join(parts)


def _multiple_of(outcome: Outcome) -> float:
    return float(outcome.result["latency_s"] / outcome.result["yardstick_s"])


def _accuracies(outcome: Outcome) -> list[float]:
    return [100 * accuracy for accuracy in outcome.result["accuracies"]]


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for what in _TITLES:
        bars = []
        for outcome in select(outcomes, matched=what):
            other = f"{_multiple_of(outcome):.1f} x" if what == "parameters" else f"{outcome.result['parameters'] / 1e3:.0f} k"
            accuracies = _accuracies(outcome)
            bars.append(Bar(f"{outcome.cell['net']}, {other}", mean(accuracies), deviation(accuracies)))
        lowest, highest = min(bar.value - bar.error for bar in bars), max(bar.value + bar.error for bar in bars)
        title = "At equal parameters (LeNet-5's latency times)" if what == "parameters" else "At equal latency (parameters)"
        panels.append(BarPanel(title, "test accuracy in %", bars, limits=(max(0.0, lowest - 1), highest + 1)))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Compact networks, at equal size and at equal speed",
    source=(
        'He et al., "Deep Residual Learning", CVPR 2016 (arXiv:1512.03385); Iandola et al., "SqueezeNet", 2016 '
        '(arXiv:1602.07360); Howard et al., "MobileNets", 2017 (arXiv:1704.04861); Sandler et al., "MobileNetV2", CVPR 2018 '
        '(arXiv:1801.04381); Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv:1905.02244); Zhang et al., '
        '"ShuffleNet", CVPR 2018 (arXiv:1707.01083); Ma et al., "ShuffleNet V2", ECCV 2018 (arXiv:1807.11164); Chollet, '
        '"Xception", CVPR 2017 (arXiv:1610.02357); Han et al., "GhostNet", CVPR 2020 (arXiv:1911.11907)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
