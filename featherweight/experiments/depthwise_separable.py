"""Full convolutions against depthwise separable ones at equal depth and width, trained or made from the full network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.distillation import distill
from featherweight.experiments.blocks import block_net
from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.factorization import BLOCKS, separate_convolutions
from featherweight.graph.constraint import duplicate
from featherweight.measuring import compare_latency, measure
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT"]

_RATE = 2e-3
_BATCH = 64
_EXAMPLE = (2, 1, 28, 28)

_TITLES: Mapping[str, str] = {
    "full": "full convolutions",
    "separable": "separable, from labels",
    "taught": "separable, new weights, taught by the full one",
    "made separable": "full made separable, taught",
    "made fire": "full made of fire modules, taught",
    "made ghost": "full made of ghost modules, taught",
}
_DATA: Mapping[str, str] = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}

_FEW = ["full", "separable", "made separable"]

_PAPER = {"accuracy": (71.7, 70.6), "million MACs": (4866, 569), "million parameters": (29.3, 4.2)}
"""Table 4: MobileNet of full convolutions, and MobileNet, on ImageNet."""

_TEXT = """
The paper trains MobileNet once with full 3x3 convolutions and once with depthwise separable ones in their place, at equal depth
and width: a point of accuracy for seven times fewer parameters and 8.6 times fewer multiply-accumulates, on ImageNet. Here it
is done small: a 3x3 convolution with stride 2, then six blocks in three stages at 14x14, 7x7 and 4x4 pixels with 16, 32 and 64
channels, the mean over all pixels, and a linear layer; a block is a full convolution with batch norm and ReLU, or a depthwise
one and a 1x1 one with both after each.

Beside them stand networks that were not designed but made, from the trained full network by `separate_convolutions`: each
convolution becomes a separable one, a fire module or a ghost module that is fitted to the old weight, then learns what the old
layer gave, and in the end all learn the old network's answers. As much as these learn from a teacher and from a start, so the
row of new weights learns from the same teacher for as many epochs, but not from the start.

All are trained briefly: 4000 images, four epochs in batches of 64, Adam from 2e-3 down to zero by a cosine; what is made of the
full network has two epochs with hints and two without. (The full network's own four come before, and are its price.) The test
set was looked at once per network. Latency is that of the exported network in ONNX Runtime on one thread, in turns: the
multiples of the full network's are what to look at, not the microseconds of a shared machine.

What the full run says: the costs are the paper's, nearly seven times fewer parameters and six times fewer multiply-accumulates
(not eight, as with few channels the depthwise kernels weigh more), and less than half of the time. The accuracy is not: trained
this briefly, a separable network is far behind the full one, for it learns more slowly; the single point that the paper pays is
the price after a long training. A separable network made of the full one is ahead of the same sort trained from labels, most
where the task is easy, and still behind the full one. The teacher alone does not do it: new weights that learn its answers for
as long end below those that learn from labels. What helps is the start and the hints layer by layer. Fire modules are smaller
still and no less accurate, but hardly faster than what they replace; ghost modules keep almost all of the accuracy at half of
the parameters, and are no faster either: in a network of this size, copies and small operations eat up what arithmetic saves.
"""


def _cells(quick: bool) -> Sequence[Cell]:
    size = {"width": 8, "samples": 1000, "epochs": 2} if quick else {"width": 16, "samples": 4000, "epochs": 4}
    cells: list[dict[str, Any]] = [
        {"data": data, "nets": list(_TITLES) if data == "fashion-mnist" and not quick else _FEW, **size, "seed": seed}
        for seed in range(1 if quick else 3)
        for data in _DATA
    ]
    cells[0]["seconds"] = 0.1 if quick else 2.0
    return cells


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Trains the full network, and smaller ones beside it or from it; measures all of them where the cell has time for it."""
    data = lab.data(cell["data"], batch_size=_BATCH, samples=cell["samples"])
    nets = _train(cell, data, lab)
    result: dict[str, Any] = {"accuracy": {name: evaluate(net, data.test) for name, net in nets.items()}}
    if "seconds" in cell:
        measured = {name: net.eval() for name, net in nets.items() if name != "taught"}  # which is "separable"
        latencies = compare_latency(list(measured.values()), torch.zeros(_EXAMPLE), seconds=cell["seconds"])
        result["reports"] = {
            name: measure(net, torch.zeros(_EXAMPLE), latency=latency).as_dict()
            for (name, net), latency in zip(measured.items(), latencies, strict=True)
        }
    return result


def _train(cell: Cell, data: Data, lab: Lab) -> dict[str, nn.Module]:
    """The networks that the cell names. Those made of the full one have half their epochs with hints, half without."""
    epochs, common = cell["epochs"], {"seed": cell["seed"], "progress": lab.progress}
    whole, half = (Tuning(epochs=count, learning_rate=_RATE) for count in (epochs, epochs // 2))
    full, separable = (block_net(block, cell["width"]) for block in ("plain", "separable"))
    for net in (full, separable):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # trains half as fast again
    nets: dict[str, nn.Module] = {"full": full, "separable": duplicate(separable)}
    for scratch in nets.values():
        fit(scratch, data.train, whole, **common)
    if "taught" in cell["nets"]:
        nets["taught"] = distill(separable, full, data.train, tuning=whole, **common)
    for block in BLOCKS:
        if f"made {block}" in cell["nets"]:
            nets[f"made {block}"] = separate_convolutions(
                full, torch.zeros(_EXAMPLE), data.train, block=block, tuning=half, **common
            )
    return nets


def _table(outcomes: Sequence[Outcome]) -> str:
    reports = next(outcome.result["reports"] for outcome in outcomes if "seconds" in outcome.cell)
    full, rows = reports["full"], []
    for name, title in _TITLES.items():
        if not any(name in outcome.cell["nets"] for outcome in outcomes):
            continue
        found = reports.get(name, reports["separable"])
        ratios = [f"{full[key] / found[key]:.1f} x" for key in ("parameters", "macs", "size_bytes")]
        rows.append(
            [
                title,
                f"{found['parameters']:,} ({ratios[0]})",
                f"{found['macs'] / 1e6:.2f} ({ratios[1]})",
                f"{found['size_bytes'] / 1e3:.0f} ({ratios[2]})",
                f"{1e6 * found['latency_s']:.0f} (IQR {1e6 * found['latency_spread_s']:.0f})",
                f"{found['latency_s'] / full['latency_s']:.2f} x",
                *(spread(values) if values else "–" for data in _DATA for values in [_accuracies(outcomes, data, name)]),
            ]
        )
    header = ["network", "parameters", "million MACs", "file in kB", "latency in µs", "of full's"]
    table = markdown_table([*header, *(f"{title}, % right" for title in _DATA.values())], rows)
    seeds = len(select(outcomes, data="mnist"))
    note = (
        f"Accuracy: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}. In brackets how many times less than "
        "the full network. Latency: median and interquartile range of runs with one image on one thread, networks in turns."
    )
    theirs = [[key, f"{large:g}", f"{small:g}", _paper_change(key, large, small)] for key, (large, small) in _PAPER.items()]
    paper = markdown_table(["the paper, on ImageNet", "full", "separable", "change"], theirs)
    return f"{table}\n\n{note}\n\n{paper}"


def _paper_change(key: str, large: float, small: float) -> str:
    return f"{small - large:+.1f} points" if key == "accuracy" else f"{large / small:.1f} x less"


def _accuracies(outcomes: Sequence[Outcome], data: str, name: str) -> list[float]:
    """Of the networks that were trained on these data, over seeds."""
    found = [outcome.result["accuracy"] for outcome in select(outcomes, data=data)]
    return [100 * accuracy[name] for accuracy in found if name in accuracy]


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for data, title in _DATA.items():
        found = {name: values for name in _TITLES if (values := _accuracies(outcomes, data, name))}
        lowest = min(mean(values) - deviation(values) for values in found.values())
        bars = [Bar(_TITLES[name], mean(values), deviation(values)) for name, values in found.items()]
        panels.append(BarPanel(title, "test accuracy in %", bars, limits=(max(1.0, lowest - 1), 100.0)))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Depthwise separable convolutions",
    source='Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017 '
    "(arXiv:1704.04861), table 4",
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
