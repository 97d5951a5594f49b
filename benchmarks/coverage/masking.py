"""What a pruned network ought to compute: the dense one with every removed slice zero, made without asking either library.

A norm divides by how many channels there are. In the masked network the removed ones are still there, as zeros, so a norm over
them has to count only the others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from checks import difference, run
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["Kept", "difference_from_masked"]

Kept = Mapping[str, Mapping[int, Sequence[int]]]
"""For each tensor that was cut, by name, and each axis: the indices that stay."""

_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm"})
_SOFTMAX = frozenset({"softmax", "scaled_dot_product_attention"})
_MOMENTS = frozenset({"mean", "var", "var_mean", "std"})
STEPS = (frozenset(), _NORMS, _NORMS | _SOFTMAX, _NORMS | _SOFTMAX | _MOMENTS)
"""Which operations count only kept channels. Whether they should depends on the network: a mean over channels must, one over
positions must not. A smaller network is right if it agrees under one of these, each a fixed reading of the whole network."""


def difference_from_masked(dense: nn.Module, kept: Kept, found: Any, inputs: torch.Tensor, *, enough: float) -> float:
    """How far outputs are from the masked dense network's, relative to the largest: under the first of `STEPS` that brings it
    below `enough`, or else under the best.

    Raises:
        RuntimeError: the masked network runs under none of them, or gives NaN under all.
    """
    reference = _masked(dense, kept).to(inputs.dtype)
    least, problem = math.inf, "it gives NaN"
    for names in STEPS:
        try:
            with _KeptStatistics(names):
                outputs = run(reference, inputs)
        except (RuntimeError, TypeError) as error:
            problem = str(error)
            continue
        gap = difference(found, outputs)
        least = least if math.isnan(gap) else min(least, gap)
        if least <= enough:
            break
    if least == math.inf:
        raise RuntimeError(f"the masked network is no reference: {problem}")
    return least


def _masked(dense: nn.Module, kept: Kept) -> nn.Module:
    """A copy with zeros for every index that does not stay."""
    net = copy.deepcopy(dense)
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, tensor in tensors.items():
            for axis, indices in kept.get(name, {}).items():
                goes = torch.ones(tensor.shape[axis], dtype=torch.bool)
                goes[list(indices)] = False
                tensor.index_fill_(axis, goes.nonzero().flatten(), 0)
    return net


class _KeptStatistics(TorchFunctionMode):
    """Runs what is called inside, where the operations named take their statistics over the channels that are not all zero."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.names:
            return _RULES[name](func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_kept(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Which indices along `dim` hold anything but zeros, in the shape of an axis that broadcasts; all, if none does."""
    dim %= x.dim()
    others = [d for d in range(x.dim()) if d != dim]
    found = (x != 0).sum(others, keepdim=True) > 0 if others else x != 0
    return found if bool(found.any()) else torch.ones_like(found)


def _moments(x: torch.Tensor, kept: torch.Tensor, dims: list[int], eps: float) -> torch.Tensor:
    """x normalised over the kept elements of `dims`."""
    kept = kept.expand_as(x).to(x.dtype)
    number = kept.sum(dims, keepdim=True)
    mean = (x * kept).sum(dims, keepdim=True) / number
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / number
    return (x - mean) / (variance + eps).sqrt() * kept


def _layer_norm(func: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    kept = weight != 0 if weight is not None else _is_kept(x, -1)
    out = _moments(x, kept, list(range(-len(tuple(shape)), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(func: Any, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    kept = (weight != 0 if weight is not None else _is_kept(x, -1)).expand_as(x)
    dims = list(range(-len(tuple(shape)), 0))
    mean = (x.square() * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True)
    out = x * (mean + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt() * kept
    return out if weight is None else out * weight


def _group_norm(func: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    kept = weight != 0 if weight is not None else _is_kept(x, 1).flatten()
    rows = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    out = _moments(rows, kept.reshape(1, groups, -1, 1), [2, 3], eps).reshape(x.shape)
    affine = (1, -1, *[1] * (x.dim() - 2))
    out = out if weight is None else out * weight.reshape(affine)
    return out if bias is None else out + bias.reshape(affine)


def _batch_norm(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Weight standardisation calls it so, with [1, outputs, inputs]: removed inputs are no part of a filter's statistics."""
    if x.dim() != 3 or len(x) != 1 or not kwargs.get("training"):
        return func(x, *args, **kwargs)
    kept = _is_kept(x, 2).flatten()
    out = torch.zeros_like(x)
    out[:, :, kept] = func(x[:, :, kept], *args, **kwargs)
    return out


def _softmax(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over the last axis of a matrix per head; a column of zeros has been removed from that head."""
    if dim % x.dim() == x.dim() - 1 and x.dim() > 2:
        kept = (x != 0).any(-2, keepdim=True)
        x = x.masked_fill(~kept & kept.any(-1, keepdim=True), -torch.inf)
    return func(x, dim, *args, **kwargs)


def _attention(func: Any, q: Any, k: Any, v: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The same inside the fused operation: keys of zeros have been removed."""
    kept = (k != 0).any(-1).unsqueeze(-2)
    if bool(kept.all()) or attn_mask is not None or not bool(kept.any(-1).all()):
        return func(q, k, v, attn_mask, *args, **kwargs)
    return func(q, k, v, kept.expand(*kept.shape[:-2], q.shape[-2], -1), *args, **kwargs)


def _mean(func: Any, x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if dim is None:
        return func(x, **kwargs)
    dims = [dim] if isinstance(dim, int) else list(dim)
    number = 1
    for d in dims:
        number *= int(_is_kept(x, d).sum())
    return x.sum(dims, keepdim=keepdim) / number


def _var(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _spread(x, dim, **kwargs)[0] if isinstance(dim, int | tuple | list) else func(x, dim, *args, **kwargs)


def _var_mean(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _spread(x, dim, **kwargs) if isinstance(dim, int | tuple | list) else func(x, dim, *args, **kwargs)


def _std(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _spread(x, dim, **kwargs)[0].sqrt() if isinstance(dim, int | tuple | list) else func(x, dim, *args, **kwargs)


def _spread(x: Any, dim: Any, *, keepdim: bool = False, unbiased: bool = True, correction: int | None = None) -> Any:
    """Variance and mean over the kept indices of `dim`."""
    dims = [dim] if isinstance(dim, int) else list(dim)
    kept = torch.ones_like(x, dtype=torch.bool)
    for d in dims:
        kept = kept & _is_kept(x, d)
    number = kept.sum(dims, keepdim=True)
    mean = x.sum(dims, keepdim=True) / number
    less = int(unbiased) if correction is None else correction
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / (number - less)
    if keepdim:
        return variance, mean
    axes = tuple(d % x.dim() for d in dims)
    return variance.squeeze(axes), mean.squeeze(axes)


_RULES: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "mean": _mean,
    "var": _var,
    "var_mean": _var_mean,
    "std": _std,
}
