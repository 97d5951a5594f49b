"""The functions behind a program's operations, and which operations it may hold at all."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from featherweight.errors import UnsupportedOpError

__all__ = ["binding_of", "functional", "resolve_op", "round_through"]

# The Python operators that torch.export leaves in a graph, on sizes and on lists of tensors.
_OPERATORS = ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "pow", "eq", "ne", "lt", "le", "gt", "ge")

# Pointwise or core by torch's own tags, so fit for a program; the rest of ATen (files, randomness by name, …) is not.
_SAFE_TAGS = frozenset({torch.Tag.core, torch.Tag.pointwise})

# Harmless operations that an un-decomposed program holds and that torch does not tag.
_SAFE_OPS = frozenset(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d "
    "avg_pool2d max_pool3d upsample_bicubic2d zeros ones baddbmm batch_norm detach_ chunk contiguous conv1d conv2d "
    "conv3d conv_transpose2d dropout dropout_ einsum expand_as feature_dropout flatten gelu group_norm instance_norm "
    "layer_norm linear log_softmax matmul max_pool1d max_pool2d movedim narrow pad pixel_shuffle relu6 reshape "
    "reshape_as rms_norm scaled_dot_product_attention selu sigmoid_ silu softmax split split_with_sizes squeeze stack "
    "swapaxes t tensor_split tile to transpose type_as unbind unflatten unsqueeze view view_as channel_shuffle "
    "hardswish hardswish_ hardsigmoid mish leaky_relu_ prelu sym_size detach lift_fresh_copy alias "
    "_assert_tensor_metadata roll square repeat_interleave zeros_like ones_like full_like new_zeros new_ones new_full "
    "new_empty empty_like rand_like randn_like rand randn linspace meshgrid eye hann_window std var var_mean "
    "linalg_vector_norm norm logsumexp all any cumprod unfold im2col col2im tril triu conv_transpose1d "
    "conv_transpose3d lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell alpha_dropout "
    "pixel_unshuffle log_sigmoid one_hot zero zero_ fill_ upsample_nearest1d replication_pad1d upsample_linear1d "
    "upsample_trilinear3d upsample_nearest3d upsample_nearest2d upsample_bilinear2d adaptive_max_pool3d glu".split()
)


def functional(op: str) -> str:
    """An operation's name, that of an in-place one without its underscore.

    Args:
        op: "relu_", "add_.Tensor", "conv2d", …

    Returns:
        "relu", "add.Tensor", "conv2d", …

    Example:
        >>> functional("add_.Tensor")
        'add.Tensor'
    """
    packet, dot, overload = op.partition(".")
    return packet.removesuffix("_") + dot + overload


@functools.cache
def resolve_op(op: str) -> Callable[..., Any]:
    """The function behind an op's name, if a program may hold it.

    Only Python's arithmetic, ATen operations that torch tags as core or pointwise, and a list of known neural-network
    operations pass, so a file cannot make a program call anything else.

    Args:
        op: "conv2d", "add.Tensor", "py.getitem", …

    Returns:
        The function to call.

    Raises:
        UnsupportedOpError: the name is unknown, or not allowed in a program.

    Example:
        >>> resolve_op("py.mul")(6, 7)
        42
    """
    if op.startswith("py.") and op[3:] in _OPERATORS:
        function: Callable[..., Any] = getattr(operator, op[3:])
        return function
    packet_name, _, overload = op.partition(".")
    packet = getattr(torch.ops.aten, packet_name, None) if packet_name.isidentifier() else None
    found = getattr(packet, overload or "default", None)
    if isinstance(found, torch._ops.OpOverload) and (packet_name in _SAFE_OPS or _is_tagged(packet_name)):
        return found
    raise UnsupportedOpError(f"a program may hold core, pointwise and known neural-network operations; {op!r} is none of them")


def _is_tagged(packet_name: str) -> bool:
    packet = getattr(torch.ops.aten, functional(packet_name), None) or getattr(torch.ops.aten, packet_name)
    return any(_SAFE_TAGS & set(getattr(packet, overload).tags) for overload in packet.overloads())


# torch's own bindings of operations that networks call most: the same kernels, found without a look at the schema, which
# takes longer than a small layer computes. Arguments are those of the schema.
_BINDINGS: Mapping[str, Callable[..., Any]] = {
    "add.Tensor": torch.add,
    "add_.Tensor": torch.Tensor.add_,
    "avg_pool2d": torch.nn.functional.avg_pool2d,
    "batch_norm": torch.batch_norm,
    "cat": torch.cat,
    "conv1d": torch.conv1d,
    "conv2d": torch.conv2d,
    "flatten.using_ints": torch.flatten,
    "gelu": torch.nn.functional.gelu,
    "hardtanh_": torch._C._nn.hardtanh_,
    "layer_norm": torch.layer_norm,
    "linear": torch.nn.functional.linear,
    "matmul": torch.matmul,
    "max_pool2d": torch.max_pool2d,
    "mean.dim": torch.mean,
    "mul.Tensor": torch.mul,
    "permute": torch.permute,
    "relu": torch.relu,
    "relu_": torch.relu_,
    "reshape": torch.reshape,
    "scaled_dot_product_attention": torch.nn.functional.scaled_dot_product_attention,
    "sigmoid": torch.sigmoid,
    "silu": torch._C._nn.silu,
    "softmax.int": torch.softmax,
    "transpose.int": torch.transpose,
    "view": torch.Tensor.view,
}


def binding_of(op: str) -> Callable[..., Any]:
    """The fastest way to call an operation: the function of `resolve_op`, or one that does the same with less ado.

    Args:
        op: "conv2d", "add.Tensor", "py.getitem", …

    Returns:
        The function to call.

    Raises:
        UnsupportedOpError: as `resolve_op` says.

    Example:
        >>> binding_of("add.Tensor")(torch.ones(1), 2)
        tensor([3.])
    """
    found = resolve_op(op)
    return _BINDINGS.get(op, found)


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def round_through(x: torch.Tensor) -> torch.Tensor:
    """x rounded to integers, halves to even, with the gradient of x: straight-through (Bengio, Léonard and Courville 2013).

    Args:
        x: floats of any shape.

    Returns:
        Integers as floats, of x's shape.

    Example:
        >>> x = torch.tensor([0.4, 1.5], requires_grad=True)
        >>> round_through(x).sum().backward()
        >>> round_through(x).tolist(), x.grad.tolist()
        ([0.0, 2.0], [1.0, 1.0])
    """
    rounded: torch.Tensor = _RoundThrough.apply(x)  # type: ignore[no-untyped-call]
    return rounded
