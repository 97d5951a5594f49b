"""Everything that is measured about a network, in one record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import RequestError
from featherweight.exporting.qdq import in_floats
from featherweight.graph.capture import Example, tensors_of, to_module
from featherweight.graph.cost import count_macs
from featherweight.graph.program import ProgramModule
from featherweight.measuring.latency import Latency, compare_latency, speed_up
from featherweight.measuring.size import count_nonzero, count_parameters, packed_bytes
from featherweight.packaging import load
from featherweight.training.data import Loader
from featherweight.training.loop import evaluate
from featherweight.training.progress import Progress, silent

__all__ = ["Report", "measure"]


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured about one network.

    Attributes:
        accuracy: fraction of the test samples it gets right, in [0, 1]; None where no data was given.
        size_bytes: size of its `.fw` file, in bytes.
        parameters: number of parameters, shared ones counted once.
        nonzero_parameters: how many of them are not zero.
        macs: multiply-accumulates for one sample.
        latency_s: median time of one run in the deployed form, in seconds.
        latency_spread_s: interquartile range of those times, in seconds.
        threads: how many threads the runs had.
        batch: how many samples a run had.
        runtime: what ran it, with its version.
        float_latency_s: of a network with quantized activations, median time of the same network in floats, its runs in turns
            with those above; None where activations are floats.
        float_latency_spread_s: interquartile range of those times, in seconds.
    """

    accuracy: float | None
    size_bytes: int
    parameters: int
    nonzero_parameters: int
    macs: int
    latency_s: float
    latency_spread_s: float
    threads: int
    batch: int
    runtime: str
    float_latency_s: float | None = None
    float_latency_spread_s: float | None = None

    @property
    def speed_up(self) -> float | None:
        """How many times faster quantized activations make the network; below 1 if slower; None if the clock cannot tell."""
        if self.float_latency_s is None or self.float_latency_spread_s is None:
            return None
        return speed_up(self.float_latency_s, self.latency_s, (self.float_latency_spread_s + self.latency_spread_s) / 2)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in the order above."""
        return asdict(self)

    def to_json(self) -> str:
        """The fields as a JSON object; `Report(**json.loads(text))` gives the report back."""
        return json.dumps(self.as_dict(), indent=2)


def measure(
    model: nn.Module | str | Path,
    example: Example | None = None,
    *,
    data: Loader | None = None,
    threads: int = 1,
    latency: Latency | None = None,
    progress: Progress = silent,
) -> Report:
    """Measures a network: accuracy, bytes on disk, parameters, multiply-accumulates, and latency at batch size 1.

    A network with quantized activations is timed in turns with itself in floats: integers may well be slower.

    Args:
        model: any module that can be captured, or the path of a `.fw` file.
        example: a batch of inputs; may be left out for a `.fw` file or a `ProgramModule`, which know their inputs.
        data: batches of test samples; without them the accuracy stays None.
        threads: of the latency runs, at least 1.
        latency: measured already, in turns with other networks; by default it is measured here.
        progress: told about each part as it is done.

    Returns:
        The report.

    Raises:
        RequestError: an argument is missing or contradicts another.
        FormatError: the `.fw` file is damaged.
        CaptureError, FeatherweightError: the network cannot be captured or exported.

    Example:
        >>> import torch
        >>> report = measure(nn.Linear(4, 2), torch.zeros(1, 4), data=[(torch.zeros(3, 4), torch.tensor([0, 1, 1]))])
        >>> report.parameters, report.macs
        (10, 8)
    """
    file = Path(model) if isinstance(model, str | Path) else None
    source = model if isinstance(model, nn.Module) else load(model)
    example = _example(source, example)
    net = to_module(source, example)
    size_bytes = packed_bytes(net, example) if file is None else file.stat().st_size
    accuracy = None if data is None else evaluate(source, data, progress=progress)
    floats = None
    if latency is None:
        progress("latency", 0, 1)
        twin = in_floats(net)
        latency, *others = compare_latency([net, *([] if twin is None else [twin])], example, threads=threads)
        floats = next(iter(others), None)
        progress("latency", 1, 1)
    return Report(
        accuracy=accuracy,
        size_bytes=size_bytes,
        parameters=count_parameters(source),
        nonzero_parameters=count_nonzero(source),
        macs=count_macs(net.program, tensors_of(net, net.program)),
        latency_s=latency.median_s,
        latency_spread_s=latency.spread_s,
        threads=latency.threads,
        batch=latency.batch,
        runtime=latency.runtime,
        float_latency_s=None if floats is None else floats.median_s,
        float_latency_spread_s=None if floats is None else floats.spread_s,
    )


def _example(model: nn.Module, example: Example | None) -> Example:
    if example is not None:
        return example
    if type(model) is ProgramModule:
        return model.program.example(batch=1)
    raise RequestError(
        f"measuring a {type(model).__name__} needs an example input: pass example=, a batch of at least 1 sample"
    )
