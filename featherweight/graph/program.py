"""The one picture of a network: a straight list of operations on tensors, as plain frozen data.

A `Program` is what `graph.capture` makes of a module, what surgery rewrites, what the op table reads, what a .fw file holds and
what `ProgramModule` runs. Values are numbered: first the inputs, then the tensors (parameters, buffers, constants), then one
value per node. A `Ref` is such a number, so an argument can only name a value that already exists.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from featherweight.errors import UnsupportedOpError

__all__ = [
    "Input",
    "Kind",
    "Node",
    "Program",
    "ProgramModule",
    "Ref",
    "TensorSpec",
    "Value",
    "last_uses",
    "map_refs",
    "owner_of",
    "refs_in",
    "resolve_op",
    "round_through",
    "run_node",
    "tensor_called",
    "unused",
]

Value = Any
"""An argument: Ref, None, bool, int, float, str, torch.dtype, torch.layout, torch.memory_format, torch.device,
or a tuple, a list, or a dict with str keys of these."""

Kind = Literal["parameter", "buffer", "constant"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value made earlier, by its number: inputs first, then tensors, then nodes."""

    index: int


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the network: its name, its shape (None for the batch axis, which may have any size) and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor the program owns, by its name in the module's state dict ("conv1.weight")."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `op` is the ATen name without its default overload ("conv2d", "add.Tensor") or "py.<operator function>".

    `origin` is the user's file:line, kept for error messages and never written to a file.
    """

    op: str
    args: tuple[Value, ...]
    kwargs: Mapping[str, Value] = field(default_factory=dict)
    origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A whole network without its numbers. See the module's docstring for how values are numbered.

    The exception are `constants`, tensors that the network's code makes from numbers, by name: no module has them. They stay
    with the program only until a `ProgramModule` holds them as it holds the other tensors.
    """

    inputs: tuple[Input, ...]
    tensors: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    output: Value
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def first_node(self) -> int:
        """The number of the first node's value."""
        return len(self.inputs) + len(self.tensors)

    def tensor_name(self, value: Value) -> str | None:
        """The name of the tensor that `value` refers to, or None if it refers to no tensor of the program."""
        if isinstance(value, Ref) and len(self.inputs) <= value.index < self.first_node:
            return self.tensors[value.index - len(self.inputs)].name
        return None

    def example(self, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes: normal numbers for floats, zeros for integers.

        Args:
            batch: the size of every batch axis, at least 1.
            seed: of the generator, so that two calls agree.

        Returns:
            One tensor for each input, in order.
        """
        generator = torch.Generator().manual_seed(seed)
        made = []
        for spec in self.inputs:
            shape = [batch if size is None else size for size in spec.shape]
            if spec.dtype.is_floating_point:
                made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(spec.dtype))
            else:
                made.append(torch.zeros(shape, dtype=spec.dtype))
        return tuple(made)


def map_refs(value: Value, change: Callable[[Ref], Any]) -> Any:
    """`value` with every Ref in it, at any depth, replaced by `change(ref)`."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_refs(v, change) for v in value)
    if isinstance(value, Mapping):
        return {k: map_refs(v, change) for k, v in value.items()}
    return value


def refs_in(value: Value) -> Iterator[Ref]:
    """Every Ref in `value`, at any depth, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from refs_in(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from refs_in(v)


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
    packet = getattr(torch.ops.aten, packet_name.removesuffix("_"), None) or getattr(torch.ops.aten, packet_name)
    return any(_SAFE_TAGS & set(getattr(packet, overload).tags) for overload in packet.overloads())


# Where an op's arguments say "training": a program is captured in eval mode, and follows the module's mode when it runs.
_TRAINING_ARGUMENT = {
    "batch_norm": 5,
    "dropout": 2,
    "dropout_": 2,
    "feature_dropout": 2,
    "alpha_dropout": 2,
    "lstm.input": 6,
    "gru.input": 6,
    "rnn_tanh.input": 6,
    "rnn_relu.input": 6,
}


class ProgramModule(nn.Module):
    """Runs a program: an ordinary `nn.Module` with the tensors' original names, which trains, exports and saves like any other.

    Dropout and batch normalisation follow `train()` and `eval()`, unless the captured network had them always on.

    Args:
        program: what to run.
        tensors: a tensor for each of `program.tensors`, by name; taken as they are, not copied.

    Raises:
        UnsupportedOpError: the program holds an operation that is not allowed (see `resolve_op`).
    """

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.program = program
        for spec in program.tensors:
            _register(self, spec, tensors[spec.name])
        self._last_use = last_uses(program)
        for op in {node.op for node in program.nodes}:
            resolve_op(op)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program on its inputs, in order or by name."""
        names = [spec.name for spec in self.program.inputs]
        inputs = [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]
        if len(inputs) != len(names) or len(args) + len(kwargs) != len(names):
            raise TypeError(f"this network takes {len(names)} inputs ({', '.join(names)}), got {len(args) + len(kwargs)}")
        values: list[Any] = [*inputs, *(tensor_called(self, spec.name) for spec in self.program.tensors)]
        for position, (node, dead) in enumerate(zip(self.program.nodes, self._last_use, strict=True)):
            values.append(self._run(position, node, values))
            for index in dead:
                values[index] = None
        return map_refs(self.program.output, lambda ref: values[ref.index])

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        return run_node(node, lambda ref: values[ref.index], self.training)


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


def run_node(node: Node, value_of: Callable[[Ref], Any], training: bool) -> Any:
    """Runs one operation on the values its arguments refer to. In training, `round` passes gradients straight through."""
    args = list(map_refs(node.args, value_of))
    if node.op == "round" and training:
        return round_through(args[0])
    flag = _TRAINING_ARGUMENT.get(node.op)
    if flag is not None and training:
        args[flag] = True
    return resolve_op(node.op)(*args, **map_refs(node.kwargs, value_of))


def last_uses(program: Program) -> tuple[tuple[int, ...], ...]:
    """For each node, the values that nothing after it reads, so that running the program frees them as it goes.

    Args:
        program: any.

    Returns:
        The numbers of values, by the position of the node that reads them last; of those that are outputs none.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> last_uses(capture(nn.Sequential(nn.ReLU(), nn.Tanh()), torch.zeros(1, 2)))
        ((0,), (1,))
    """
    last: dict[int, int] = {}
    for position, node in enumerate(program.nodes):
        for ref in (*refs_in(node.args), *refs_in(node.kwargs)):
            last[ref.index] = position
    kept = {ref.index for ref in refs_in(program.output)}
    dead: list[list[int]] = [[] for _ in program.nodes]
    for index, position in last.items():
        if index not in kept:
            dead[position].append(index)
    return tuple(tuple(d) for d in dead)


def _register(root: nn.Module, spec: TensorSpec, tensor: torch.Tensor) -> None:
    *path, leaf = spec.name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]
    if spec.kind == "parameter":
        trainable = tensor.requires_grad if isinstance(tensor, nn.Parameter) else tensor.is_floating_point()
        owner.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=trainable))
    else:
        owner.register_buffer(leaf, tensor.detach())


def owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor called `name` ("conv1.weight"), and what it calls it ("weight")."""
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def tensor_called(root: nn.Module, name: str) -> torch.Tensor:
    """The tensor called `name` ("conv1.weight"), constraints applied; AttributeError if there is none."""
    owner, leaf = owner_of(root, name)
    tensor: torch.Tensor = getattr(owner, leaf)
    return tensor


def unused(program: Program) -> Iterable[str]:
    """The names of tensors that no node and no output reads."""
    read = {ref.index for node in program.nodes for ref in (*refs_in(node.args), *refs_in(node.kwargs))}
    read |= {ref.index for ref in refs_in(program.output)}
    first = len(program.inputs)
    return [spec.name for i, spec in enumerate(program.tensors) if first + i not in read]
