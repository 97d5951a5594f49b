"""The one table: for each operation, how it couples channels, how its literal sizes follow from the channels kept, what it costs.

Operations that only move data need no rule of their own: run on labels they show where every channel goes. Elementwise operations
tie the labels that meet. Only contractions, normalisations and reductions have a rule each. To support an operation, add a row.
An operation without a row locks the channels that touch it, and is named in the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from featherweight.graph.labels import FREE, Labels, collapse, varying_axes
from featherweight.graph.program import Node, resolve_op

__all__ = ["OPS", "Call", "Op", "Owned", "Resize", "row_of"]


@dataclass(frozen=True)
class Owned:
    """A tensor of the program, as an operation's argument while channels are traced."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operation being traced.

    `args` and `kwargs` hold label tensors where the program has values, `Owned` where it has tensors, and plain numbers elsewhere;
    `out` is the result on the meta device. `axis(owned, k)` gives the labels of a tensor's axis k, `elements(x)` a label for every element.
    """

    node: Node
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    labels: Labels
    axis: Callable[[Owned, int], torch.Tensor]
    elements: Callable[[Any], torch.Tensor]

    @property
    def where(self) -> str:
        """The operation and the user's line, for messages."""
        return f"{self.node.op} at {self.node.origin}" if self.node.origin else self.node.op

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(frozen=True)
class Resize:
    """One operation whose channels were chosen: `kept[i]` holds, for argument i, which indices of each axis stay (None if it is no
    tensor); `out` likewise for the result (a list for several results). Both as bool tensors per axis."""

    node: Node
    args: Sequence[Any]
    kept: Sequence[Any]
    out: Any


Couple = Callable[[Call], Any]


@dataclass(frozen=True)
class Op:
    """A row: `couple` gives the labels of the result and ties what must go together; `resize` rewrites a node for the channels
    kept; `macs` counts multiply-accumulates from the shapes of the arguments and the result."""

    couple: Couple
    resize: Callable[[Resize], Node] | None = None
    macs: Callable[[Sequence[Any], Any], int] | None = None


# ---- coupling -----------------------------------------------------------------------------------------------------------------


def _move(call: Call) -> Any:
    """Data moves: run the operation itself on labels."""
    args = [_labels_of(a, call) for a in call.args]
    moved = resolve_op(call.node.op.replace("view", "reshape") if call.node.op == "view" else call.node.op)(
        *args, **call.kwargs
    )
    for part in moved if isinstance(moved, list | tuple) else [moved]:
        _make_product(part, call.labels)
    return moved


def _labels_of(value: Any, call: Call) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(v, Owned | torch.Tensor) for v in value):
        return [call.elements(v) for v in value]
    return call.elements(value) if isinstance(value, Owned) else value


def _make_product(labels: torch.Tensor, channels: Labels) -> None:
    """Where a channel axis was split in two (groups, heads), ties across the earlier one: any choice is then a smaller box."""
    varying = varying_axes(labels)
    for axis in varying[:-1]:
        channels.tie(labels, labels.narrow(axis, 0, 1))


def _pointwise(call: Call) -> Any:
    """Elementwise: labels that meet are tied. An operand that broadcasts along the other's channel axis has no channels there."""
    result = torch.full((), FREE).expand(call.out.shape)
    result_stretched: set[int] = set(range(result.dim()))
    for argument in call.args:
        if isinstance(argument, Owned | torch.Tensor):
            labels = call.elements(argument)
            labels = labels.reshape((1,) * (result.dim() - labels.dim()) + tuple(labels.shape))
            stretched = {axis for axis, size in enumerate(call.out.shape) if labels.shape[axis] == 1 and size > 1}
            result = _meet(call, result, result_stretched, labels.expand(call.out.shape), stretched)
            result_stretched &= stretched
    return result


def _meet(call: Call, a: torch.Tensor, a_stretched: set[int], b: torch.Tensor, b_stretched: set[int]) -> torch.Tensor:
    if bool((collapse(a)[0] == FREE).all()):
        return b
    if bool((collapse(b)[0] == FREE).all()):
        return a
    a_wins, b_wins = b_stretched & set(varying_axes(a)), a_stretched & set(varying_axes(b))
    if not a_wins and not b_wins:
        call.labels.tie(a, b)
        return b if a_stretched else a
    reason = f"{call.where} broadcasts it along another channel axis"
    if a_wins:
        call.labels.lock(b, reason)
    if b_wins:
        call.labels.lock(a, reason)
    return a if a_wins else b


def _same(call: Call) -> Any:
    """One tensor in, the same channels out."""
    return call.elements(call.args[0]).expand(call.out.shape)


def _pool(call: Call) -> Any:
    """Pooling and resizing over positions: a channel stays a channel."""
    labels = call.elements(call.args[0])
    positions = int(re.search(r"(\d)d", call.node.op).group(1))  # type: ignore[union-attr]
    return _cut(call, labels, range(labels.dim() - positions, labels.dim())).expand(call.out.shape)


def _pad(call: Call) -> Any:
    labels = call.elements(call.args[0])
    return _cut(call, labels, [axis for axis in range(labels.dim()) if labels.shape[axis] != call.out.shape[axis]]).expand(call.out.shape)


def _reduce(call: Call) -> Any:
    """Sums, means, maxima over axes: free over positions, locked over channels."""
    labels = call.elements(call.args[0])
    axes = call.argument(1, "dim")
    every = axes is None or (isinstance(axes, list | tuple) and not axes)
    chosen = range(labels.dim()) if every else [axes] if isinstance(axes, int) else axes
    over = sorted(axis % labels.dim() for axis in chosen)
    labels = _cut(call, labels, over)
    out = call.out[0] if isinstance(call.out, list | tuple) else call.out
    result = (
        labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in over])
        if out.dim() != labels.dim()
        else labels
    )
    result = result.expand(out.shape)
    return [result, result] if isinstance(call.out, list | tuple) else result


def _cut(call: Call, labels: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Cuts axes to one index; where channels differ along them they are locked, for the operation mixes them."""
    if set(axes) & set(varying_axes(labels)):
        call.labels.lock(labels, f"{call.where} runs over it")
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def _softmax(call: Call) -> Any:
    labels = call.elements(call.args[0])
    if int(call.args[1]) % labels.dim() in varying_axes(labels):
        call.labels.lock(labels, f"{call.where} normalises over it")
    return labels


def _linear(call: Call) -> Any:
    x, weight, bias = call.elements(call.args[0]), call.args[1], call.argument(2, "bias")
    if not isinstance(weight, Owned):
        return _lock(call)
    call.labels.tie(call.labels.tie_along(x, -1), call.axis(weight, 1))
    return _with_bias(call, call.axis(weight, 0), bias).expand(call.out.shape)


def _with_bias(call: Call, out: torch.Tensor, bias: Any) -> torch.Tensor:
    if isinstance(bias, Owned):
        call.labels.tie(out, call.axis(bias, 0))
    elif bias is not None:
        call.labels.tie(out, bias)
    return out


def _conv(call: Call) -> Any:
    """Convolution. Depthwise: an output goes with its input. Other groups: every group loses the same positions."""
    weight = call.args[1]
    if not isinstance(weight, Owned) or call.args[0].dim() != len(weight.shape):
        return _lock(call)
    groups = int(call.argument(6, "groups", 1))
    ins = call.labels.tie_along(call.elements(call.args[0]), 1)
    outs = _with_bias(call, call.axis(weight, 0), call.argument(2, "bias"))
    if groups == 1:
        call.labels.tie(ins, call.axis(weight, 1))
    elif weight.shape[1] == 1:
        call.labels.tie(ins.repeat_interleave(weight.shape[0] // groups), outs)
    else:
        call.labels.tie(ins.reshape(groups, -1), call.axis(weight, 1))
        by_group = outs.reshape(groups, -1)
        call.labels.tie(by_group, by_group[:1])
    return outs.reshape(-1, *[1] * (call.out.dim() - 2)).expand(call.out.shape)


def _batch_norm(call: Call) -> Any:
    x = call.elements(call.args[0])
    channels = call.labels.tie_along(x, 1)
    for owned in call.args[1:5]:
        if isinstance(owned, Owned):
            call.labels.tie(channels, call.axis(owned, 0))
    return x


def _prelu(call: Call) -> Any:
    x, slope = call.elements(call.args[0]), call.args[1]
    if isinstance(slope, Owned) and slope.shape[0] > 1:
        call.labels.tie(call.labels.tie_along(x, 1), call.axis(slope, 0))
    return x


def _lock(call: Call) -> Any:
    """Nothing is known: whatever touches this operation stays as it is."""
    for value in _tensors_in([*call.args, *call.kwargs.values()]):
        call.labels.lock(call.elements(value), f"{call.where} has no rule that says how its channels are coupled")
    if isinstance(call.out, list | tuple):
        return [torch.zeros((), dtype=torch.int64).expand(o.shape) if isinstance(o, torch.Tensor) else o for o in call.out]
    return torch.zeros((), dtype=torch.int64).expand(call.out.shape) if isinstance(call.out, torch.Tensor) else call.out


def _tensors_in(values: Sequence[Any]) -> list[Any]:
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _tensors_in(value)
        elif isinstance(value, Owned | torch.Tensor):
            found.append(value)
    return found


def _constant(call: Call) -> Any:
    """Made from nothing: a fixed size, so what meets it along an axis longer than 1 must keep that size."""
    return torch.full((), FREE if call.out.numel() == 1 else 0).expand(call.out.shape)


# ---- sizes --------------------------------------------------------------------------------------------------------------------


def _count(kept: torch.Tensor) -> int:
    return int(kept.sum())


def _resize_shape(resize: Resize) -> Node:
    """view, reshape, expand: each literal size becomes the number of indices kept."""
    node = resize.node
    sizes = [
        _count(kept) if isinstance(size, int) and size != -1 else size
        for size, kept in zip(node.args[1], resize.out, strict=True)
    ]
    return Node(node.op, (node.args[0], sizes, *node.args[2:]), node.kwargs, node.origin)


def _resize_unflatten(resize: Resize) -> Node:
    node, axis = resize.node, int(resize.node.args[1]) % len(resize.kept[0])
    sizes = [_count(resize.out[axis + i]) if size != -1 else size for i, size in enumerate(node.args[2])]
    return Node(node.op, (node.args[0], axis, sizes), node.kwargs, node.origin)


def _resize_conv(resize: Resize) -> Node:
    """Depthwise convolution: one group for each input channel kept."""
    args = list(resize.node.args)
    if len(args) > 6 and args[6] > 1 and len(resize.kept[1][1]) == 1:
        args[6] = _count(resize.kept[0][1])
    return Node(resize.node.op, tuple(args), resize.node.kwargs, resize.node.origin)


def _resize_slice(resize: Resize) -> Node:
    """slice(x, axis, start, end, step): the bounds count the indices kept before them."""
    node = resize.node
    axis, start, end, step = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    kept = resize.kept[0][axis]
    if bool(kept.all()) or not all(isinstance(v, int | None) for v in (start, end, step)):
        return node
    chosen = range(len(kept))[slice(start, end, step)]
    if step != 1:
        return node
    bounds = (_count(kept[: chosen.start]), _count(kept[: chosen.stop]))
    return Node("slice.Tensor", (node.args[0], axis, *bounds, 1), {}, node.origin)


def _resize_select(resize: Resize) -> Node:
    node = resize.node
    _, axis, index = node.args[:3]
    kept = resize.kept[0][axis]
    return Node(node.op, (node.args[0], axis, _count(kept[: index % len(kept)])), node.kwargs, node.origin)


def _resize_split(resize: Resize) -> Node:
    """chunk, split, split_with_sizes: the parts as they are left."""
    node = resize.node
    axis = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0))
    if bool(resize.kept[0][axis].all()):
        return node
    return Node("split_with_sizes", (node.args[0], [_count(part[axis]) for part in resize.out], axis), {}, node.origin)


# ---- cost ---------------------------------------------------------------------------------------------------------------------


def _macs_linear(args: Sequence[Any], out: Any) -> int:
    return int(out.numel() * args[1].shape[-1])


def _macs_conv(args: Sequence[Any], out: Any) -> int:
    return int(out.numel() * prod(args[1].shape[1:]))


def _macs_conv_transpose(args: Sequence[Any], out: Any) -> int:
    return int(args[0].numel() * prod(args[1].shape[1:]))


def _macs_matmul(args: Sequence[Any], out: Any) -> int:
    return int(out.numel() * args[0].shape[-1])


def _macs_addmm(args: Sequence[Any], out: Any) -> int:
    return int(out.numel() * args[1].shape[-1])


def _macs_attention(args: Sequence[Any], out: Any) -> int:
    query, key, value = args[:3]
    return int(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])


# ---- the table ----------------------------------------------------------------------------------------------------------------

_MOVES = (
    "permute transpose.int t flatten.using_ints squeeze squeeze.dim squeeze.dims unsqueeze cat stack unbind.int roll flip "
    "movedim.int movedim.intlist swapaxes pixel_shuffle channel_shuffle repeat_interleave.self_int py.getitem"
).split()
_POINTWISE = "add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar sub.Scalar mul.Scalar div.Scalar maximum minimum".split()
_SAME = (
    "relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu mish softplus exp log neg abs sqrt rsqrt square "
    "sin cos clamp clamp_min clamp_max pow.Tensor_Scalar dropout feature_dropout contiguous clone detach alias to.dtype to.device "
    "type_as lift_fresh_copy"
).split()
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool2d upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec"
).split()
_REDUCE = "mean mean.dim sum sum.dim_IntList amax amin".split()

OPS: dict[str, Op] = {
    "linear": Op(_linear, macs=_macs_linear),
    "conv1d": Op(_conv, _resize_conv, _macs_conv),
    "conv2d": Op(_conv, _resize_conv, _macs_conv),
    "conv2d.padding": Op(_conv, _resize_conv, _macs_conv),
    "conv3d": Op(_conv, _resize_conv, _macs_conv),
    "conv_transpose2d.input": Op(_lock, macs=_macs_conv_transpose),
    "matmul": Op(_lock, macs=_macs_matmul),
    "mm": Op(_lock, macs=_macs_matmul),
    "bmm": Op(_lock, macs=_macs_matmul),
    "addmm": Op(_lock, macs=_macs_addmm),
    "scaled_dot_product_attention": Op(_lock, macs=_macs_attention),
    "batch_norm": Op(_batch_norm),
    "prelu": Op(_prelu),
    "pad": Op(_pad),
    "constant_pad_nd": Op(_pad),
    "softmax.int": Op(_softmax),
    "log_softmax.int": Op(_softmax),
    "view": Op(_move, _resize_shape),
    "reshape": Op(_move, _resize_shape),
    "expand": Op(_move, _resize_shape),
    "unflatten.int": Op(_move, _resize_unflatten),
    "slice.Tensor": Op(_move, _resize_slice),
    "select.int": Op(_move, _resize_select),
    "chunk": Op(_move, _resize_split),
    "split.Tensor": Op(_move, _resize_split),
    "split_with_sizes": Op(_move, _resize_split),
    "zeros": Op(_constant),
    "ones": Op(_constant),
    "full": Op(_constant),
    "arange": Op(_constant),
    **{name: Op(_move) for name in _MOVES},
    **{name: Op(_pointwise) for name in _POINTWISE},
    **{name: Op(_same) for name in _SAME},
    **{name: Op(_pool) for name in _POOLS},
    **{name: Op(_reduce) for name in _REDUCE},
}

_UNKNOWN = Op(_lock)


def row_of(op: str) -> Op:
    """The row of an operation; its in-place form ("relu_") has the same. One without a row locks what touches it."""
    name, _, overload = op.partition(".")
    functional = name.removesuffix("_") + (f".{overload}" if overload else "")
    return OPS.get(op) or OPS.get(functional) or _UNKNOWN
