"""Rate-distortion quantization: the fewest coded bits for an error, or the least error for the bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featherweight.errors import RequestError, WeightsError, check
from featherweight.graph.constraint import constrain, constrain_like, fold
from featherweight.graph.program import tensor_called
from featherweight.graph.selection import select_weights
from featherweight.quantization.grid import MOST, Grid
from featherweight.quantization.rates import Costs
from featherweight.quantization.steps import Sample, energy_of, round_segments, segments_in, weighing_of
from featherweight.quantization.trellis import SEGMENT

__all__ = ["EntropyPlan", "plan_entropy", "quantize_entropy", "round_significant"]

_MARGIN = 0.998  # of the error asked for is aimed at, for the sample knows it to 0.1 %
_FINER = 8  # how much finer than the weights the tensors of fewer than two axes are
_BATCH = 4096  # segments of small tensors that go through the search together

Tensors = Mapping[str, torch.Tensor]
Integers = npt.NDArray[np.int16]


@dataclass(frozen=True)
class EntropyPlan:
    """With which step and costs each tensor is quantized; tensors too many for the memory go through it a few at a time.

    Args:
        steps: for each tensor of two or more axes the step of its integers.
        costs: of its integers.
        trellis: whether they go along the trellis.
        significant: bits that the numbers of other tensors keep.
        relative_error: expected, ‖ŵ - w‖ / ‖w‖ over all weights, weighted by importance if there was one.
        bits: expected for each weight, without contexts: what a code of its own for each tensor would take.
    """

    steps: Mapping[str, float]
    costs: Mapping[str, Costs]
    trellis: bool
    significant: int
    relative_error: float
    bits: float

    def quantize(self, tensors: Tensors, *, importance: Tensors | None = None) -> dict[str, torch.Tensor]:
        """Tensors of the plan, weights as integers times their step, exactly, others of as few significant bits.

        Args:
            tensors: by name, all those of the plan or some; integers come back as they are.
            importance: of entries, as for the plan.

        Returns:
            New tensors of the same shapes and dtypes.

        Example:
            >>> weight = torch.randn(64, 64)
            >>> coarse = plan_entropy({"w": weight}, relative_error=0.1).quantize({"w": weight})["w"]
            >>> bool((coarse - weight).norm() / weight.norm() < 0.11), len(coarse.unique()) < 64
            (True, True)
        """
        found = {name: self._round_other(tensor) for name, tensor in tensors.items() if name not in self.steps}
        for batch in _batches({name: tensor for name, tensor in tensors.items() if name in self.steps}):
            steps = [torch.tensor(self.steps[name], dtype=tensor.dtype) for name, tensor in batch.items()]
            parts = [segments_in(tensor) for tensor in batch.values()]
            owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            ends = np.cumsum([len(part) for part in parts]).tolist()
            scaled = np.empty((len(owners), SEGMENT), np.float32)
            for part, step, end in zip(parts, steps, ends, strict=True):
                np.divide(part, np.float32(float(step)), out=scaled[end - len(part) : end])
            weighing = None if importance is None else [weighing_of(importance[name]) for name in batch]
            integers = round_segments(
                scaled,
                _joined([self.costs[name] for name in batch]).of(owners),
                self.trellis,
                None if weighing is None else np.concatenate(weighing),
            )
            for (name, tensor), step, part, end in zip(batch.items(), steps, parts, ends, strict=True):
                flat = torch.from_numpy(integers[end - len(part) : end].reshape(-1)[: tensor.numel()])
                found[name] = flat.to(tensor.dtype).mul_(step).reshape(tensor.shape).to(tensor.device)
        return {name: found[name] for name in tensors}

    def _round_other(self, tensor: torch.Tensor) -> torch.Tensor:
        return round_significant(tensor, bits=self.significant) if tensor.is_floating_point() else tensor.clone()


@overload
def quantize_entropy(
    source: nn.Module,
    *,
    relative_error: float | None = None,
    bits: float | None = None,
    importance: Tensors | None = None,
    trellis: bool = True,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> nn.Module: ...
@overload
def quantize_entropy(
    source: Tensors,
    *,
    relative_error: float | None = None,
    bits: float | None = None,
    importance: Tensors | None = None,
    trellis: bool = True,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> dict[str, torch.Tensor]: ...
def quantize_entropy(
    source: nn.Module | Tensors,
    *,
    relative_error: float | None = None,
    bits: float | None = None,
    importance: Tensors | None = None,
    trellis: bool = True,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> nn.Module | dict[str, torch.Tensor]:
    """Puts weights on grids so that they take the fewest coded bits for an error.

    Entropy-constrained trellis-coded quantization: minimises D + λR (Chou, Lookabaugh and Gray, IEEE TASSP 1989; with a
    trellis: Fischer and Wang, IEEE Trans. Inf. Theory 1992), with the trellis of `quantization.trellis` and the rates of
    `quantization.rates`, fitted to each tensor. Without importance all weights get one step, for that is where the slopes of
    all tensors' rate-distortion curves are equal; with it a tensor's step goes as 1 / √(its mean importance). Tensors of fewer
    than two axes (biases, norms) are few, and their values span decades: they keep so many significant bits that each is at
    least eight times as precise as the weights are. Zeros stay zeros.

    Nothing is recorded of all this: packaging finds steps and trellis again.

    Args:
        source: a module, or its state dict; it is not changed.
        relative_error: ‖ŵ - w‖ / ‖w‖ over all weights of two or more axes, in [0.001, 1), weighted by importance if there is
            one; what comes out is not above it.
        bits: or instead, mean bits for each weight, in (0, 12]; the file takes a little less, for its coder knows contexts.
        importance: for each weight's name what a squared error of each entry costs, such as a diagonal of Fisher's matrix or of
            the Hessian, at least 0.
        trellis: False for plain integers: 3 to 6 % more bytes, but training may go on, where it would leave the trellis.
        include: shell-style patterns of names; only these, if given.
        exclude: shell-style patterns of names; never these.

    Returns:
        A copy of the module with a `Grid` on each weight, after its masks; or of the state dict, with plain tensors.

    Raises:
        RequestError: not exactly one of `relative_error` and `bits`, or out of range; no weights; importance that does not fit.
        WeightsError: weights that are not finite.

    Example:
        >>> layer = nn.Linear(100, 100)
        >>> coarse = quantize_entropy(layer, relative_error=0.1)
        >>> bool((coarse.weight - layer.weight).norm() <= 0.1 * layer.weight.norm())
        True
    """
    goal = (relative_error, bits)
    if not isinstance(source, nn.Module):
        wanted = {name: tensor for name, tensor in source.items() if _matches(name, include, exclude)}
        return {**source, **_quantize(wanted, goal, importance, trellis)[0]}
    folded = fold(source)
    small = [*folded.named_parameters(), *folded.named_buffers()]
    wanted = {name: t.detach() for name, t in small if t.dim() < 2 and _matches(name, include, exclude)}
    wanted.update(select_weights(folded, include=include, exclude=exclude, min_dim=2))
    coarse, plan = _quantize(wanted, goal, importance, trellis)
    for name, tensor in coarse.items():
        tensor_called(folded, name).data = tensor
    constrain_like(folded, source, but=Grid)
    for name, step in plan.steps.items():
        grid = Grid(torch.tensor(step, dtype=coarse[name].dtype, device=coarse[name].device), -MOST, MOST)
        grid.step.requires_grad_(False)  # it is where it should be
        constrain(folded, name, grid)
    return folded


def plan_entropy(
    tensors: Tensors,
    *,
    relative_error: float | None = None,
    bits: float | None = None,
    importance: Tensors | None = None,
    trellis: bool = True,
) -> EntropyPlan:
    """Settles steps and costs on a sample of each tensor; `EntropyPlan.quantize` does the rest.

    The arguments are those of `quantize_entropy`, which sees to it that the error is kept; here it is met as well as the sample
    tells, within about 0.2 %.

    Args:
        tensors: by name; each is read once, one after the other.
        relative_error: over all weights.
        bits: or instead, for each weight.
        importance: of entries.
        trellis: False for plain integers.

    Returns:
        The plan.

    Raises:
        RequestError: as `quantize_entropy`.
        WeightsError: weights that are not finite.

    Example:
        >>> plan = plan_entropy({"a": torch.randn(256, 256), "b": torch.randn(9)}, bits=3)
        >>> list(plan.steps), abs(plan.bits - 3) < 0.01
        (['a'], True)
    """
    if relative_error is not None and bits is None:
        check("relative_error", relative_error, "in [0.001, 1)", 0.001 <= relative_error < 1)
        goal = -math.log2(relative_error * _MARGIN)
    elif bits is not None and relative_error is None:
        check("bits", bits, "in (0, 12]", 0 < bits <= 12)
        goal = bits
    else:
        raise RequestError(f"quantization needs either relative_error or bits, got {relative_error} and {bits}")
    sample = Sample(trellis)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.detach().float().abs().sum())):
            raise WeightsError(f"weights must be finite to be quantized, but {name!r} holds NaN or infinity")
        if tensor.is_floating_point() and tensor.dim() >= 2 and tensor.numel():
            sample.add(name, tensor.detach(), None if importance is None else _importance_of(name, tensor, importance))
    if not sample.names:
        raise RequestError("quantization needs weights, floating tensors of two or more axes, but there is none")
    log_step, costs = sample.settle(goal, by_error=bits is None)
    error, rate, _ = sample.measure(log_step, costs)
    significant = math.ceil(math.log2(_FINER / max(error, 2**-20)))
    steps = dict(zip(sample.names, sample.steps(log_step).tolist(), strict=True))
    each = {name: costs.of(np.array([index])) for index, name in enumerate(sample.names)}
    return EntropyPlan(steps, each, trellis, significant, error, rate)


def round_significant(tensor: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Each number to its nearest of so many significant binary digits: the relative error of each is at most 2^-bits.

    Args:
        tensor: floating.
        bits: the leading one included, at least 1; with as many as the dtype has, nothing changes.

    Returns:
        A new tensor.

    Example:
        >>> round_significant(torch.tensor([1.1, -0.07, 100.0]), bits=3).tolist()
        [1.0, -0.0625, 96.0]
    """
    mantissa, exponent = torch.frexp(tensor.detach())
    return torch.ldexp(torch.round(mantissa * 2**bits), exponent - bits).to(tensor.dtype)


def _matches(name: str, include: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
    wanted = include is None or any(fnmatchcase(name, pattern) for pattern in include)
    return wanted and not any(fnmatchcase(name, pattern) for pattern in exclude or ())


def _quantize(
    tensors: Tensors, goal: tuple[float | None, float | None], importance: Tensors | None, trellis: bool
) -> tuple[dict[str, torch.Tensor], EntropyPlan]:
    """All tensors; once more with smaller steps if the error is above what was asked for."""
    relative_error, bits = goal
    plan = plan_entropy(tensors, relative_error=relative_error, bits=bits, importance=importance, trellis=trellis)
    while True:
        coarse = plan.quantize(tensors, importance=importance)
        own = {name: None if importance is None else importance[name] for name in plan.steps}
        error = sum(energy_of(coarse[name] - tensors[name], own[name]) for name in plan.steps)
        energy = sum(energy_of(tensors[name], own[name]) for name in plan.steps)
        found = math.sqrt(error / energy) if energy else 0.0
        if relative_error is None or found <= relative_error:
            return coarse, plan
        plan = replace(plan, steps={name: step * _MARGIN * relative_error / found for name, step in plan.steps.items()})


def _batches(tensors: Tensors) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors, small ones together."""
    batch: dict[str, torch.Tensor] = {}
    entries = 0
    for name, tensor in tensors.items():
        batch[name] = tensor
        entries += tensor.numel()
        if entries >= _BATCH * SEGMENT:
            yield batch
            batch, entries = {}, 0
    if batch:
        yield batch


def _joined(costs: Sequence[Costs]) -> Costs:
    return Costs(*(np.concatenate(field, -1) for field in zip(*((c.shift, c.near, c.far) for c in costs), strict=True)))


def _importance_of(name: str, tensor: torch.Tensor, importance: Tensors) -> torch.Tensor:
    if name not in importance or importance[name].shape != tensor.shape:
        got = tuple(importance[name].shape) if name in importance else "nothing"
        raise RequestError(f"importance must have a value for each entry of {name!r}, {tuple(tensor.shape)}, got {got}")
    found = importance[name].detach()
    if not bool((torch.isfinite(found) & (found >= 0)).all()) or not bool(found.any()):
        raise RequestError(f"importance must be finite, at least 0 and not 0 everywhere; that of {name!r} is not")
    return found
