"""The one table: for each operation, how it couples channels, how its sizes follow from the channels kept, what it costs.

To support an operation, add a row. An operation without a row locks the channels that touch it, and is named in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from featherweight.graph import rules, sizes
from featherweight.graph.program import Node
from featherweight.graph.rules import Call
from featherweight.graph.sizes import Resize

__all__ = ["OPS", "Op", "row_of"]


@dataclass(frozen=True)
class Op:
    """A row: `couple` gives the labels of the result and ties what must go together; `resize` rewrites a node for the channels
    kept; `macs` counts multiply-accumulates from the shapes of the arguments and the result."""

    couple: Callable[[Call], Any]
    resize: Callable[[Resize], Node] | None = None
    macs: Callable[[Sequence[Any], Any], int] | None = None


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


_MOVES = (
    "permute transpose.int t flatten.using_ints unsqueeze cat stack flip movedim.int movedim.intlist swapaxes repeat "
    "repeat_interleave.self_int py.getitem"
).split()
_POINTWISE = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar sub.Scalar mul.Scalar div.Scalar rsub.Scalar maximum minimum"
).split()
_SAME = (
    "relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu mish softplus exp log neg abs sqrt "
    "rsqrt square sin cos clamp clamp_min clamp_max pow.Tensor_Scalar dropout feature_dropout contiguous clone detach alias "
    "to.dtype to.device type_as lift_fresh_copy"
).split()
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest2d.vec upsample_bilinear2d.vec "
    "upsample_bicubic2d.vec"
).split()
_REDUCE = "mean mean.dim sum sum.dim_IntList amax amin".split()
_CONVS = "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding".split()

OPS: dict[str, Op] = {
    **{name: Op(rules.conv, sizes.conv, _macs_conv) for name in _CONVS},
    "conv_transpose2d.input": Op(rules.lock, macs=_macs_conv_transpose),
    "linear": Op(rules.linear, macs=_macs_linear),
    "matmul": Op(rules.lock, macs=_macs_matmul),
    "mm": Op(rules.lock, macs=_macs_matmul),
    "bmm": Op(rules.lock, macs=_macs_matmul),
    "addmm": Op(rules.lock, macs=_macs_addmm),
    "scaled_dot_product_attention": Op(rules.lock, macs=_macs_attention),
    "batch_norm": Op(rules.batch_norm),
    "prelu": Op(rules.prelu),
    "pad": Op(rules.pad),
    "constant_pad_nd": Op(rules.pad),
    "softmax.int": Op(rules.softmax),
    "log_softmax.int": Op(rules.softmax),
    "view": Op(rules.reshape, sizes.reshape),
    "reshape": Op(rules.reshape, sizes.reshape),
    "expand": Op(rules.reshape, sizes.reshape),
    "unflatten.int": Op(rules.move, sizes.unflatten),
    "squeeze": Op(rules.move, sizes.squeeze),
    "squeeze.dim": Op(rules.move, sizes.squeeze),
    "squeeze.dims": Op(rules.move, sizes.squeeze),
    "slice.Tensor": Op(rules.slice_, sizes.slice_),
    "select.int": Op(rules.select, sizes.select),
    "chunk": Op(rules.move, sizes.split),
    "split.Tensor": Op(rules.move, sizes.split),
    "split_with_sizes": Op(rules.move, sizes.split),
    "unbind.int": Op(rules.unbind),
    "roll": Op(rules.roll),
    "channel_shuffle": Op(rules.shuffle),
    "pixel_shuffle": Op(rules.pixel_shuffle),
    "zeros": Op(rules.constant),
    "ones": Op(rules.constant),
    "full": Op(rules.constant),
    "arange": Op(rules.constant),
    **{name: Op(rules.move) for name in _MOVES},
    **{name: Op(rules.pointwise) for name in _POINTWISE},
    **{name: Op(rules.same) for name in _SAME},
    **{name: Op(rules.pool) for name in _POOLS},
    **{name: Op(rules.reduce) for name in _REDUCE},
}

_UNKNOWN = Op(rules.lock)
_IN_PLACE = {*_POINTWISE, *_SAME}


def row_of(op: str) -> Op:
    """The row of an operation; the in-place form of an elementwise one ("relu_") has the same. Without a row it locks."""
    name, _, overload = op.partition(".")
    functional = name.removesuffix("_") + (f".{overload}" if overload else "")
    return OPS[functional] if functional in _IN_PLACE else OPS.get(op, _UNKNOWN)
