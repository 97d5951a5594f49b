"""Calibration: what values a network's activations take on data, as one histogram each, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from featherweight.errors import DataError, RequestError
from featherweight.graph.capture import tensors_of
from featherweight.graph.program import Node, Program, ProgramModule
from featherweight.quantization.histogram import Histogram
from featherweight.training.loaders import Loader
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["collect"]


def collect(module: ProgramModule, calibrate: Loader, values: Collection[int]) -> dict[int, Histogram]:
    """Runs a network over data in eval mode and counts what some of its values are.

    Args:
        module: a network with one input; it is not changed.
        calibrate: batches of (inputs, targets), of which the inputs count; a few hundred samples are enough.
        values: the numbers of floating-point values of the program, of its input or of nodes.

    Returns:
        A histogram for each value, by number.

    Raises:
        RequestError: there are no data, or an activation is not finite (named with the user's file:line).
        DataError: the data hold no batch, or one that does not fit the network, or numbers that are not finite.

    Example:
        >>> from featherweight.graph.capture import to_module
        >>> net = to_module(torch.nn.ReLU(), torch.zeros(1, 2))
        >>> data = [(torch.tensor([[-1.0, 3.0]]), torch.zeros(1))]
        >>> found = collect(net, data, [0, net.program.first_node])
        >>> [(histogram.least, histogram.greatest) for histogram in found.values()]
        [(-1.0, 3.0), (0.0, 3.0)]
    """
    if len(module.program.inputs) != 1:
        raise RequestError(f"calibration needs a network with one input, got {len(module.program.inputs)}")
    watched = _Watched(module, values)
    for inputs, _ in batches_of(Evidence(module, calibrate, purpose="calibration")):
        _check_fits(module.program, inputs)
        with torch.no_grad():
            watched(inputs)
    return watched.histograms


class _Watched(ProgramModule):
    """Runs a program and counts some of its values."""

    def __init__(self, module: ProgramModule, values: Collection[int]) -> None:
        super().__init__(module.program, tensors_of(module, module.program))
        self.histograms = {value: Histogram() for value in values}
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if 0 in self.histograms:
            try:
                self.histograms[0].add(args[0])
            except RequestError as error:
                raise DataError("data to calibrate on must be finite, got NaN or infinity") from error
        return super().forward(*args, **kwargs)

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        result = super()._run(position, node, values)
        histogram = self.histograms.get(self.program.first_node + position)
        if histogram is not None:
            try:
                histogram.add(result)
            except RequestError as error:
                where = f" at {node.origin}" if node.origin else ""
                raise RequestError(
                    f"activations to quantize must be finite, but {node.op}{where} gives NaN or infinity on these data; "
                    "look at the weights and at how the inputs are scaled"
                ) from error
        return result


def _check_fits(program: Program, inputs: torch.Tensor) -> None:
    spec = program.inputs[0]
    fits = inputs.dim() == len(spec.shape) and all(
        size in (None, got) for size, got in zip(spec.shape, inputs.shape, strict=False)
    )
    if not fits or inputs.dtype != spec.dtype:
        wanted = tuple("batch" if size is None else size for size in spec.shape)
        raise DataError(
            f"data to calibrate on must be batches like the network's input {spec.name!r}, {wanted} of {spec.dtype}, got "
            f"{tuple(inputs.shape)} of {inputs.dtype}"
        )
