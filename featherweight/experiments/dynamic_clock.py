"""Accuracy against the clock: all ways to answer on the same test images, in turns, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from featherweight.dynamic import (
    ExitNetwork,
    Limit,
    SkipNetwork,
    SlimmableExitNetwork,
    SlimmableNetwork,
    calibrate,
    calibrate_effort,
    export_exits,
    record_exits,
)
from featherweight.dynamic.policy import POLICIES, Calibration, Record, simulate
from featherweight.experiments.dynamic_networks import data_of, network, own_class
from featherweight.experiments.experiment import Cell, Lab
from featherweight.exporting import StagedSession
from featherweight.exporting.onnx import open_session, translate
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.cost import count_macs
from featherweight.training import Data, Loader, evaluate

__all__ = ["BATCHES", "FULL", "LOSSES", "calibrated", "mean_seconds", "measure", "one_thread"]

LOSSES = {
    "at its best": -1.0,
    "as right as plain": 0.0,
    "0.2 points less": 0.002,
    "0.5 points less": 0.005,
}
"""What accuracy may be lost on validation data against the plain network, by the names of operating points.

Where a point is out of reach it is the best there is."""

FULL = "nothing left out"
"""The operating point at which a dynamic network is the static one."""

BATCHES = (1, 64)

_POINTS = 100  # among which exits x widths choose

Run = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Way:
    """A way to answer: a network at an operating point.

    Attributes:
        torch: images (B, 1, 28, 28) -> logits (B, 10), as PyTorch runs it.
        onnx: the same in ONNX Runtime; None where it cannot go there.
        macs: of a sample, the mean over the test images.
        test: accuracy on them, in [0, 1].
    """

    torch: nn.Module
    onnx: Run | None
    macs: float
    test: float


def measure(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Test accuracy, MACs and mean processor time of a sample, for each way to answer.

    Args:
        cell: its "timed" are the networks; "images" how many are timed one by one (in batches of 64 four times as many); "onnx"
            whether ONNX Runtime is timed, too.
        lab: where they are.

    Returns:
        For each way, "kind" or "kind@point", its "test" accuracy in %, "macs", and milliseconds by runtime and batch.
    """
    data = data_of(cell, lab)
    plain = network("plain", cell, lab)
    wanted = evaluate(plain, data.validation)
    with TemporaryDirectory() as folder, one_thread():
        ways = {"own class": replace(_way(plain, data, None), torch=own_class(plain, cell))}
        for kind in cell["timed"]:
            net = network(kind, cell, lab)
            found = _ways_of(net, data, wanted, Path(folder, kind) if cell["onnx"] else None)
            ways |= {f"{kind}@{point}" if point else kind: way for point, way in found.items()}
            lab.progress("prepare", cell["timed"].index(kind) + 1, len(cell["timed"]))
        results: dict[str, Any] = {name: {"test": 100 * way.test, "macs": way.macs} for name, way in ways.items()}
        for batch in BATCHES:
            runs: dict[tuple[str, str], Run] = {(name, "torch"): way.torch for name, way in ways.items()}
            runs |= {(name, "onnx"): way.onnx for name, way in ways.items() if way.onnx is not None}
            images = _images(data.test, cell["images"] * (1 if batch == 1 else 4))
            for (name, runtime), seconds in mean_seconds(runs, images, batch).items():
                results[name][f"{runtime}, {batch}"] = 1e3 * seconds
            lab.progress("time", BATCHES.index(batch) + 1, len(BATCHES))
    return results


def mean_seconds(runs: Mapping[Any, Run], images: torch.Tensor, batch: int) -> dict[Any, float]:
    """Processor time of a sample, the mean over images; the runs take turns batch by batch, so that load falls on all alike.

    Each runs twice on a batch, and the second time counts.

    Args:
        runs: functions of a batch of images.
        images: (N, …).
        batch: samples in a run.

    Returns:
        Seconds by the name of the run.

    Example:
        >>> found = mean_seconds({"sum": torch.sum, "nothing": lambda batch: None}, torch.ones(100, 64), batch=10)
        >>> found["sum"] > found["nothing"] >= 0
        True
    """
    spent = dict.fromkeys(runs, 0.0)
    with torch.no_grad():
        for part in images.split(batch):
            for name, run in runs.items():
                run(part)  # so that none pays for the caches that another one left cold
                start = time.process_time()
                run(part)
                spent[name] += time.process_time() - start
    return {name: seconds / len(images) for name, seconds in spent.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread for a while.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def calibrated(record: Record, accuracy: float) -> Calibration:
    """The cheapest thresholds of all families that reach an accuracy, or the best there is.

    Args:
        record: of validation data.
        accuracy: in [0, 1].

    Returns:
        The thresholds, with what comes of them on these data.

    Example:
        >>> right = torch.tensor([[True, False], [True, True]])
        >>> from featherweight.dynamic import Cost
        >>> costs = (Cost(10), Cost(30))
        >>> calibrated(Record(torch.tensor([[0.9, 0.4]]), right, costs), accuracy=0.9).cost.macs
        20.0
    """
    found = []
    for policy in POLICIES:
        best = calibrate(record, limit=Limit(), policy=policy).accuracy
        found.append(calibrate(record, accuracy=min(accuracy, best), policy=policy))
    reached = [one for one in found if one.accuracy >= accuracy]
    if reached:
        return min(reached, key=lambda one: one.cost.macs)
    return max(found, key=lambda one: (one.accuracy, -one.cost.macs))


class _At(nn.Module):
    """A dynamic network that always answers by one choice."""

    def __init__(self, net: Any, choice: Any) -> None:
        super().__init__()
        self.net, self.choice = net, choice

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net.answer_at(self.choice, images)  # type: ignore[no-any-return]


def _ways_of(net: nn.Module, data: Data, wanted: float, folder: Path | None) -> dict[str, Way]:
    """By the names of its points, "" where there is but one; without a folder for its files, not in ONNX Runtime."""
    if isinstance(net, ExitNetwork):
        return _ways_of_exits(net, data, wanted, folder)
    if isinstance(net, SlimmableExitNetwork):
        return _ways_of_both(net, data, wanted, folder)
    if isinstance(net, SkipNetwork):
        return _ways_of_skips(net, data, wanted)
    if isinstance(net, SlimmableNetwork):
        widths = {f"width {width}": (net.at_width(width), net.extract(width)) for width in net.choices()}
        return {name: replace(_way(static, data, folder), torch=view) for name, (view, static) in widths.items()}
    return {"": _way(net, data, folder)}


def _way(net: nn.Module, data: Data, folder: Path | None) -> Way:
    program = capture(net, ())
    macs = count_macs(program, tensors_of(net, program))
    return Way(net, None if folder is None else _session(net, data), macs, evaluate(net, data.test))


def _session(net: nn.Module, data: Data) -> Run:
    session = open_session(translate(net, data.example))
    (name,) = (spec.name for spec in session.get_inputs())
    return lambda images: session.run(None, {name: images.numpy()})


def _ways_of_exits(net: ExitNetwork, data: Data, wanted: float, folder: Path | None) -> dict[str, Way]:
    validation, test = record_exits(net, data.validation), record_exits(net, data.test)
    if folder is not None:
        export_exits(net, folder, data.example)
    points = {FULL: (math.inf,) * len(net.thresholds)}
    points |= {name: calibrated(validation, wanted - lost).thresholds for name, lost in LOSSES.items()}
    ways = {}
    for name, thresholds in points.items():
        view = ExitNetwork(net.network, confidence=net.confidence)
        view.thresholds = thresholds
        found = simulate(test, thresholds)
        macs = net.cost(net.choices()[-1]).macs if name == FULL else found.cost.macs
        ways[name] = Way(view, None if folder is None else _staged(folder, thresholds), macs, found.accuracy)
    return ways


def _ways_of_both(net: SlimmableExitNetwork, data: Data, wanted: float, folder: Path | None) -> dict[str, Way]:
    found = net.calibrate(data.validation, points=_POINTS)
    if folder is not None:
        for width in net.slimmable.choices():
            export_exits(net.at_width(width), folder / str(width), data.example)
    ways = {}
    for name, (width, thresholds) in _cheapest({one: (found[one], net.cost(one).macs) for one in found}, wanted).items():
        test = simulate(record_exits(net.at_width(width), data.test), thresholds)
        session = None if folder is None else _staged(folder / str(width), thresholds)
        ways[name] = Way(_At(net, (width, thresholds)), session, test.cost.macs, test.accuracy)
    return ways


def _ways_of_skips(net: SkipNetwork, data: Data, wanted: float) -> dict[str, Way]:
    found = {effort.price: (effort.accuracy, effort.cost.macs) for effort in calibrate_effort(net, data.validation)}
    points = {FULL: -math.inf, **_cheapest(found, wanted)}
    ways = {}
    for name, price in points.items():
        with torch.no_grad():
            spent = [(net.spend(price, inputs), targets) for inputs, targets in data.test]
        macs = torch.cat([one.macs for one, _ in spent]).double().mean().item()
        right = torch.cat([one.answer.argmax(1) == targets for one, targets in spent])
        ways[name] = Way(_At(net, price), None, macs, right.double().mean().item())
    return ways


def _cheapest(found: Mapping[Any, tuple[float, float]], wanted: float) -> dict[str, Any]:
    """For each loss, of choices with (accuracy, MACs), that of fewest MACs that loses no more; the best where none does."""
    best, points = max(accuracy for accuracy, _ in found.values()), {}
    for name, lost in LOSSES.items():
        enough = [choice for choice, (accuracy, _) in found.items() if accuracy >= min(wanted - lost, best)]
        points[name] = min(enough, key=lambda choice: found[choice][1])
    return points


def _staged(folder: Path, thresholds: Sequence[float]) -> Run:
    session = StagedSession(folder)
    session.thresholds = list(thresholds)
    return lambda images: session.run(images.numpy())


def _images(loader: Loader, count: int) -> torch.Tensor:
    """The first images of a part of the data, as many as asked for or there are."""
    return torch.cat([inputs for inputs, _ in loader])[:count]
