"""How long the deployed network takes: ONNX Runtime on the CPU, timed run by run on a monotonic clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from featherweight.errors import RequestError
from featherweight.exporting.onnx import open_session, resize_batch, translate
from featherweight.graph.capture import Example, to_module

__all__ = ["Latency", "compare_latency", "measure_latency", "speed_up", "time_in_turns"]

_WARM_UP_S = 0.05
_BLOCK_S = 0.02
_FEWEST_RUNS = 7

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Latency:
    """What the clock said about one network.

    Attributes:
        median_s: the median time of a run of the whole batch, in seconds.
        spread_s: the interquartile range of those times, in seconds.
        runs: how many runs were timed.
        threads: how many threads each operation used.
        batch: how many samples a run had.
        runtime: what ran it, with its version ("onnxruntime 1.20.0").
    """

    median_s: float
    spread_s: float
    runs: int
    threads: int
    batch: int
    runtime: str


def measure_latency(model: nn.Module, example: Example, *, threads: int = 1, batch: int = 1, seconds: float = 0.5) -> Latency:
    """The latency of the network's deployed form: exported to ONNX and run by ONNX Runtime on the CPU.

    Runs before the first timed one warm up caches and memory. Latencies taken at different times on a machine that does other
    things as well do not compare: use `compare_latency` for ratios.

    Args:
        model: any module that can be captured.
        example: a batch of inputs; its samples are repeated or cut to `batch`.
        threads: at least 1.
        batch: samples in a run, at least 1.
        seconds: how long to go on timing; a network slower than a seventh of it still gets 7 runs.

    Returns:
        Median and spread over the runs.

    Raises:
        RequestError: an option is out of range.
        CaptureError, FeatherweightError: the network cannot be captured or exported.

    Example:
        >>> import torch
        >>> latency = measure_latency(nn.Linear(4, 2), torch.zeros(1, 4), seconds=0.01)
        >>> latency.median_s > 0, latency.runs >= 7
        (True, True)
    """
    return compare_latency([model], example, threads=threads, batch=batch, seconds=seconds)[0]


def compare_latency(
    models: Sequence[nn.Module], example: Example, *, threads: int = 1, batch: int = 1, seconds: float = 0.5
) -> list[Latency]:
    """The latencies of several networks, measured in turns, so that what else the machine does falls on all of them alike.

    The networks take turns of 20 ms, over and over; the first run of each turn, which finds the other network's weights in the
    caches, is not counted.

    Args:
        models: at least one; all take the same inputs.
        example: a batch of inputs; its samples are repeated or cut to `batch`.
        threads: at least 1.
        batch: samples in a run, at least 1.
        seconds: how long to go on timing, for each network.

    Returns:
        One `Latency` for each network, in order.

    Raises:
        RequestError: an option is out of range, or there is no network.
        CaptureError, FeatherweightError: a network cannot be captured or exported.

    Example:
        >>> import torch
        >>> narrow, wide = nn.Linear(64, 8), nn.Linear(64, 4096)
        >>> fast, slow = compare_latency([narrow, wide], torch.zeros(1, 64), seconds=0.05)
        >>> fast.median_s < slow.median_s
        True
    """
    for name, value in (("threads", threads), ("batch", batch)):
        if value < 1:
            raise RequestError(f"{name} must be at least 1, got {value}")
    if not seconds > 0:
        raise RequestError(f"seconds must be positive, got {seconds}")
    if not models:
        raise RequestError("there must be at least one network to measure, got none")
    import onnxruntime

    runs = [_prepare(model, example, threads, batch) for model in models]
    runtime = f"onnxruntime {onnxruntime.__version__}"
    return [_summary(times, threads, batch, runtime) for times in time_in_turns(runs, seconds)]


def speed_up(before_s: float, after_s: float, spread_s: float) -> float | None:
    """How many times faster one network is than another, if the clock confirms that they differ.

    Args:
        before_s: the median time of a run of the one, in seconds.
        after_s: of the other, measured in turns with it.
        spread_s: the mean of their interquartile ranges, in seconds: medians nearer than that do not count as different.

    Returns:
        The ratio, below 1 where the other is slower; None where the clock cannot tell.

    Example:
        >>> speed_up(3.0, 1.0, 0.5), speed_up(1.0, 2.0, 0.1), speed_up(1.0, 0.9, 0.2)
        (3.0, 0.5, None)
    """
    return before_s / after_s if abs(before_s - after_s) > spread_s else None


def _prepare(model: nn.Module, example: Example, threads: int, batch: int) -> Run:
    """A function that runs the deployed network once."""
    net = to_module(model, example)
    session = open_session(translate(net, example), threads=threads)
    inputs = resize_batch(net.program, example, batch)
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(net.program.inputs, inputs, strict=True)}
    return lambda: session.run(None, feeds)


def time_in_turns(runs: Sequence[Run], seconds: float) -> list[list[float]]:
    """The times in seconds of many calls of each function, in turns of 20 ms, so that other load falls on all alike.

    Args:
        runs: what to time, called without arguments.
        seconds: how long to go on, for each.

    Returns:
        For each function its times in seconds, at least 7.

    Example:
        >>> [len(times) >= 7 for times in time_in_turns([lambda: None, lambda: sum(range(100))], 1e-3)]
        [True, True]
    """
    for run in runs:
        _turn(run, _WARM_UP_S)
    times: list[list[float]] = [[] for _ in runs]
    deadline = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < deadline or min(map(len, times)) < _FEWEST_RUNS:
        for run, collected in zip(runs, times, strict=True):
            collected += _turn(run, min(_BLOCK_S, seconds))
    return times


def _turn(run: Run, seconds: float) -> list[float]:
    """The times of as many calls as fit into `seconds`, at least one, after one that is not timed."""
    run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) * 1e-9)
    return times


def _summary(times: Sequence[float], threads: int, batch: int, runtime: str) -> Latency:
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, upper - lower, len(times), threads, batch, runtime)
