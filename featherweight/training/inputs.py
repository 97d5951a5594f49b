"""What flows into the linear and convolution layers of a network: the second moments of each weight's inputs.

The inputs are watched while the captured network runs, so it does not matter what the layers are called or who calls them: the
projections inside `nn.MultiheadAttention` count, and so do weights that `torch.nn.functional` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from featherweight.errors import RequestError
from featherweight.graph.capture import to_module
from featherweight.graph.constraint import fold
from featherweight.graph.program import tensor_called
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["input_hessians", "input_moments"]

_ELEMENTS_AT_ONCE = 2**24  # of a convolution's patches held in memory
_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def input_moments(evidence: Evidence, names: Collection[str]) -> dict[str, torch.Tensor]:
    """For each weight the sum of squares of the input it multiplies, over all positions of a sample; the mean over samples.

    Args:
        evidence: with data, of which only the inputs count; the network must be one that `graph.capture` takes.
        names: of weights of linear and convolution layers.

    Returns:
        For each name a tensor of the weight's shape, at least 0; the outputs of one group of a layer have the same.

    Raises:
        RequestError: there are no data, or a name is no such weight.
        CaptureError: the network cannot be captured.

    Example:
        >>> evidence = Evidence(torch.nn.Linear(2, 1), [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2))])
        >>> input_moments(evidence, ["weight"])["weight"].tolist()
        [[5.0, 2.0]]
    """
    sums = _sum_over_inputs(evidence, names, lambda patches: patches.square().sum(dim=0))
    moments = {}
    for name, (weight, moment) in sums.items():
        moments[name] = moment.repeat_interleave(len(weight) // len(moment), dim=0).reshape(weight.shape)
    return moments


def input_hessians(evidence: Evidence, names: Collection[str]) -> dict[str, torch.Tensor]:
    """XᵀX for each layer: the second derivative, halved, of the squared error of an output by the weights of one of its rows.

    Args:
        evidence: with data, of which only the inputs count; the network must be one that `graph.capture` takes.
        names: of weights of linear and convolution layers.

    Returns:
        For each name the mean over samples of XᵀX, (groups, columns, columns), one group but for grouped convolutions;
        columns as in `weight.flatten(1)`, a row of X for each position of a sample.

    Raises:
        RequestError: there are no data, or a name is no such weight.
        CaptureError: the network cannot be captured.

    Example:
        >>> evidence = Evidence(torch.nn.Linear(2, 1), [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2))])
        >>> input_hessians(evidence, ["weight"])["weight"].tolist()
        [[[5.0, 1.0], [1.0, 2.0]]]
    """
    sums = _sum_over_inputs(evidence, names, lambda patches: patches.movedim(0, -1) @ patches.movedim(0, 1))
    return {name: hessian for name, (_, hessian) in sums.items()}


def _sum_over_inputs(
    evidence: Evidence, names: Collection[str], summarize: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each name the weight, and the mean over samples of what `summarize` makes of inputs (positions, groups, columns)."""
    batches = batches_of(evidence)
    first = next(batches)
    model = to_module(fold(evidence.model), first[0]).eval()
    weights = {id(tensor_called(model, name)): name for name in names}
    sums: dict[str, torch.Tensor] = {}

    def watch(weight: torch.Tensor, patches: torch.Tensor) -> None:
        found = summarize(patches)
        name = weights[id(weight)]
        sums[name] = sums[name] + found if name in sums else found

    samples = 0
    for inputs, _ in chain([first], batches):
        with torch.no_grad(), _Watch(weights, watch):
            model(inputs)
        samples += len(inputs)
    unseen = [name for name in names if name not in sums]
    if unseen:
        rule = f"{evidence.purpose} needs weights that a linear or a convolution layer multiplies its inputs with"
        raise RequestError(f"{rule}, got {', '.join(unseen)}; exclude the rest")
    return {name: (tensor_called(model, name).detach(), total / samples) for name, total in sums.items()}


class _Watch(TorchFunctionMode):
    """Calls back with the weight and the inputs of each linear and convolution operation whose weight is asked for."""

    def __init__(self, weights: Collection[int], callback: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self._weights, self._callback = weights, callback

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = str(getattr(func, "__name__", "")).partition(".")[0]  # of ATen's overloads, and of torch's own functions
        if (op == "linear" or op in _CONVOLUTIONS) and id(args[1]) in self._weights:
            patches = (
                [args[0].reshape(-1, 1, args[0].shape[-1])] if op == "linear" else _patches(_CONVOLUTIONS[op], *args, **kwargs)
            )
            for some in patches:
                self._callback(args[1], some)
        return func(*args, **kwargs)


def _patches(
    axes: int,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Iterator[torch.Tensor]:
    """What a convolution multiplies its kernels with: chunks of (positions, groups, columns) with columns as in the kernels."""
    strides, dilations = _for_each(axes, stride), _for_each(axes, dilation)
    reaches = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
    if padding == "same":
        sides = [side for reach in reversed(reaches) for side in (reach // 2, reach - reach // 2)]
    else:
        sides = [width for width in reversed(_for_each(axes, 0 if padding == "valid" else padding)) for _ in (0, 1)]
    windows = functional.pad(inputs if inputs.dim() == axes + 2 else inputs[None], sides)
    for axis, (step, reach, dilation_) in enumerate(zip(strides, reaches, dilations, strict=True), start=2):
        windows = windows.unfold(axis, reach + 1, step)[..., ::dilation_]
    positions = windows.shape[2 : 2 + axes]  # windows: (B, channels, *positions, *kernel)
    one = windows[0].numel()
    for some in windows.split(max(1, _ELEMENTS_AT_ONCE // max(1, one))):
        yield some.movedim(1, 1 + axes).reshape(len(some) * math.prod(positions), groups, -1)


def _for_each(axes: int, value: Any) -> list[int]:
    """One number for each axis, from a number or a list that may have one number for all."""
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    return numbers * axes if len(numbers) == 1 else numbers
