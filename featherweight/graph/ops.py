"""The one table: for each operation, how it couples channels, how its sizes follow from the channels kept, what it costs.

To support an operation, add a row. An operation without a row locks the channels that touch it, and is named in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from featherweight.graph import contractions, moves, rules, sizes
from featherweight.graph.functions import functional
from featherweight.graph.program import Node
from featherweight.graph.rules import Call
from featherweight.graph.sizes import Resize

__all__ = ["OPS", "Op", "row_of"]


@dataclass(frozen=True)
class Op:
    """A row.

    Args:
        couple: gives the lines of the result, and ties what must go together.
        resize: rewrites a node for the channels kept.
        across: whether the operation mixes channels by itself (a norm, a softmax, a mean), so that a masked network has to take
            those that are kept only. Layers do not: a weight is as good as none.
        macs: counts multiply-accumulates from the shapes of the arguments and the result.
    """

    couple: Callable[[Call], Any]
    resize: Callable[[Resize], Node] | None = None
    across: Callable[[Resize], bool] | None = None
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


def _macs_einsum(args: Sequence[Any], out: Any) -> int:
    letters = contractions.parse(args[0], [v.dim() for v in args[1]])
    if letters is None or len(args[1]) < 2:
        return 0
    sizes_of = {c: v.shape[i - len(e)] for v, e in zip(args[1], letters[0], strict=True) for i, c in enumerate(e)}
    return int(out.numel() * prod(size for c, size in sizes_of.items() if c not in letters[1]))


def _macs_recurrent(args: Sequence[Any], out: Any) -> int:
    matrices = sum(w.numel() for w in args[2] if w.dim() == 2)
    return int(out[0].shape[0] * out[0].shape[1] * matrices)


def _macs_cell(args: Sequence[Any], out: Any) -> int:
    return int(args[0].shape[0] * (args[2].numel() + args[3].numel()))


_MOVES = (
    "permute transpose.int t flatten.using_ints unsqueeze flip movedim.int movedim.intlist swapaxes repeat tile "
    "repeat_interleave.self_int"
).split()
_POINTWISE = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor div.Tensor_mode add.Scalar sub.Scalar mul.Scalar div.Scalar rsub.Scalar "
    "rsub.Tensor maximum minimum pow.Tensor_Tensor pow.Scalar where.self where.ScalarOther where.ScalarSelf where.Scalar "
    "masked_fill.Scalar masked_fill.Tensor addcmul addcdiv lerp.Scalar lerp.Tensor eq.Tensor ne.Tensor lt.Tensor le.Tensor "
    "gt.Tensor ge.Tensor logical_and logical_or bitwise_and.Tensor bitwise_or.Tensor clamp.Tensor remainder.Tensor "
    "fmod.Tensor copy atan2 logaddexp xlogy.Tensor"
).split()
_SAME = (
    "relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu mish softplus exp log neg abs "
    "sqrt rsqrt square sin cos clamp clamp_min clamp_max pow.Tensor_Scalar dropout feature_dropout alpha_dropout contiguous "
    "clone detach alias to.dtype to.device to.dtype_layout to.other _to_copy type_as lift_fresh_copy softmax.int "
    "log_softmax.int zeros_like ones_like full_like empty_like rand_like randn_like eq.Scalar ne.Scalar lt.Scalar le.Scalar "
    "gt.Scalar ge.Scalar logical_not bitwise_not floor ceil round sign isnan isinf isfinite reciprocal erf expm1 log1p log2 "
    "exp2 log_sigmoid logit celu hardshrink softshrink threshold fill.Scalar fill.Tensor fmod.Scalar remainder.Scalar "
    "nan_to_num zero tan"
).split()
_ACROSS_AXES = ("softmax.int", "log_softmax.int")
_POSITIONS = (
    "upsample_linear1d upsample_linear1d.vec upsample_trilinear3d upsample_trilinear3d.vec adaptive_max_pool3d max_pool1d "
    "max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d "
    "upsample_nearest2d.vec upsample_bilinear2d upsample_bilinear2d.vec upsample_bicubic2d upsample_bicubic2d.vec "
    "max_pool2d_with_indices max_pool3d_with_indices reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
).split()
_REDUCE = (
    "mean mean.dim sum sum.dim_IntList amax amin prod.dim_int var.correction var.dim std.correction std.dim "
    "var_mean.correction linalg_vector_norm norm.ScalarOpt_dim logsumexp any any.dim any.dims all.dim max.dim min.dim argmax "
    "argmin max min"
).split()
_CONVS = "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding".split()
_TRANSPOSED = "conv_transpose1d conv_transpose2d.input conv_transpose3d.input".split()
_FILLED = "zeros ones full empty.memory_format rand randn".split()
_CONSTANTS = (
    "arange arange.start arange.start_step linspace scalar_tensor meshgrid meshgrid.indexing eye eye.m hann_window sym_size.int"
).split()
_COUNTING = "cumsum cumprod sort".split()

OPS: dict[str, Op] = {
    **{name: Op(moves.move) for name in _MOVES},
    **{name: Op(rules.pointwise) for name in _POINTWISE},
    **{name: Op(rules.same) for name in _SAME},
    **{name: Op(rules.same, across=sizes.anywhere) for name in _ACROSS_AXES},
    **{name: Op(rules.positions) for name in _POSITIONS},
    **{name: Op(rules.reduce, across=sizes.anywhere) for name in _REDUCE},
    **{name: Op(rules.constant) for name in _CONSTANTS},
    **{name: Op(rules.filled, sizes.filled) for name in _FILLED},
    **{name: Op(rules.filled, sizes.new_filled) for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    **{name: Op(rules.count_along) for name in _COUNTING},
    **{name: Op(contractions.conv, sizes.conv, macs=_macs_conv) for name in _CONVS},
    **{name: Op(contractions.conv_transpose, sizes.conv, macs=_macs_conv_transpose) for name in _TRANSPOSED},
    "linear": Op(contractions.linear, macs=_macs_linear),
    **{name: Op(contractions.matmul, across=sizes.anywhere, macs=_macs_matmul) for name in ("matmul", "mm", "bmm")},
    **{name: Op(contractions.addmm, across=sizes.anywhere, macs=_macs_addmm) for name in ("addmm", "baddbmm")},
    "einsum": Op(contractions.einsum, across=sizes.anywhere, macs=_macs_einsum),
    "scaled_dot_product_attention": Op(contractions.attention, sizes.attention, sizes.anywhere, _macs_attention),
    "lstm.input": Op(contractions.lstm, macs=_macs_recurrent),
    "gru.input": Op(contractions.gru, macs=_macs_recurrent),
    "rnn_tanh.input": Op(contractions.rnn, macs=_macs_recurrent),
    "rnn_relu.input": Op(contractions.rnn, macs=_macs_recurrent),
    "lstm_cell": Op(contractions.lstm_cell, macs=_macs_cell),
    **{name: Op(contractions.gru_cell, macs=_macs_cell) for name in ("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")},
    "batch_norm": Op(rules.batch_norm, across=sizes.beyond_channels),
    "instance_norm": Op(rules.batch_norm),
    "layer_norm": Op(rules.layer_norm, sizes.layer_norm, sizes.anywhere),
    "rms_norm": Op(rules.layer_norm, sizes.layer_norm, sizes.anywhere),
    "group_norm": Op(rules.group_norm, sizes.group_norm, sizes.anywhere),
    "prelu": Op(rules.prelu),
    "pad": Op(moves.pad),
    "constant_pad_nd": Op(moves.pad),
    "view": Op(moves.reshape, sizes.reshape),
    "reshape": Op(moves.reshape, sizes.reshape),
    "reshape_as": Op(moves.reshape_as),
    "view_as": Op(moves.reshape_as),
    "expand": Op(moves.expand, sizes.reshape),
    "expand_as": Op(moves.expand_as),
    "unflatten.int": Op(moves.move, sizes.unflatten),
    "squeeze": Op(moves.move, sizes.squeeze),
    "squeeze.dim": Op(moves.move, sizes.squeeze),
    "squeeze.dims": Op(moves.move, sizes.squeeze),
    "slice.Tensor": Op(moves.slice_, sizes.slice_),
    "narrow": Op(moves.narrow, sizes.narrow),
    "select.int": Op(moves.select, sizes.select),
    "chunk": Op(moves.move, sizes.split),
    "split.Tensor": Op(moves.move, sizes.split),
    "split.sizes": Op(moves.move, sizes.split),
    "split_with_sizes": Op(moves.move, sizes.split),
    "tensor_split.sections": Op(moves.move, sizes.split),
    "tensor_split.indices": Op(moves.move, sizes.split),
    "unbind.int": Op(moves.unbind),
    "py.getitem": Op(moves.item),
    "cat": Op(moves.cat),
    "stack": Op(moves.stack),
    "roll": Op(moves.roll),
    "index.Tensor": Op(moves.index),
    "index_select": Op(moves.index_axis),
    "embedding": Op(moves.embedding),
    "tril": Op(rules.last_two),
    "triu": Op(rules.last_two),
    "im2col": Op(moves.unfold_patches),
    "channel_shuffle": Op(moves.shuffle),
    "pixel_shuffle": Op(moves.pixel_shuffle),
}

_UNKNOWN = Op(rules.lock)
_IN_PLACE = {*_POINTWISE, *_SAME}


def row_of(op: str) -> Op:
    """The row of an operation; the in-place form of an elementwise one ("relu_") has the same. Without a row it locks."""
    name = functional(op)
    return OPS[name] if name in _IN_PLACE else OPS.get(op, _UNKNOWN)
