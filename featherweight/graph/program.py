"""The one picture of a network: a straight list of operations on tensors, as plain frozen data.

A `Program` is what `graph.capture` makes of a module, what surgery rewrites, what the op table reads, what a .fw file holds and
what `ProgramModule` runs. Values are numbered: first the inputs, then the tensors (parameters, buffers, constants), then one
value per node. A `Ref` is such a number, so an argument can only name a value that already exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from featherweight.graph.functions import binding_of, round_through

__all__ = [
    "Call",
    "Input",
    "Kind",
    "Lookup",
    "Node",
    "Program",
    "ProgramModule",
    "Ref",
    "TensorSpec",
    "Value",
    "last_uses",
    "make_example",
    "map_refs",
    "owner_of",
    "refs_in",
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

    @property
    def refs(self) -> list[Ref]:
        """Every value it reads, at any depth of its arguments, in order; one that it reads twice is there twice."""
        return [*refs_in(self.args), *refs_in(self.kwargs)]

    def renumbered(self, change: Callable[[Ref], Ref]) -> Node:
        """The same operation on other values."""
        return replace(self, args=map_refs(self.args, change), kwargs=map_refs(self.kwargs, change))


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
        return make_example(self.inputs, batch, seed)


def make_example(inputs: Iterable[Input], batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """What `Program.example` gives, of inputs alone.

    Args:
        inputs: of a network.
        batch: the size of every batch axis, at least 1.
        seed: of the generator, so that two calls agree.

    Returns:
        One tensor for each input, in order.

    Example:
        >>> make_example([Input("x", (None, 3), torch.float32)], batch=5)[0].shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for spec in inputs:
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


class Call:
    """One operation, ready to be run again and again: which function, and which of its arguments are values to fill in.

    In training, batch norms and dropout are told so, and `round` passes gradients straight through.

    Args:
        node: the operation.

    Raises:
        UnsupportedOpError: a program may not hold it (see `resolve_op`).
    """

    __slots__ = ("_args", "_deep", "_flag", "_function", "_holes", "_kwargs", "_trained", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self._function = binding_of(node.op)
        self._trained = round_through if node.op == "round" else self._function
        self._flag = _TRAINING_ARGUMENT.get(node.op)
        self._args, self._kwargs = list(node.args), dict(node.kwargs)
        self._holes = [(place, value.index) for place, value in enumerate(node.args) if isinstance(value, Ref)]
        self._deep = len(node.refs) > len(self._holes)

    def __call__(self, values: Sequence[Any] | Mapping[int, Any], training: bool) -> Any:
        """The operation's result.

        Args:
            values: those that it reads, by number.
            training: whether the network is in train mode.
        """
        args, kwargs = self._args.copy(), self._kwargs
        if self._deep:
            args, kwargs = map_refs((args, kwargs), lambda ref: values[ref.index])
        else:
            for place, index in self._holes:
                args[place] = values[index]
        if not training:
            return self._function(*args, **kwargs)
        if self._flag is not None:
            args[self._flag] = True
        return self._trained(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Call:
        return self  # nothing of it changes

    def __reduce__(self) -> tuple[type[Call], tuple[Node]]:
        return Call, (self.node,)  # torch's functions cannot be pickled, what they are made of can


def run_node(node: Node, value_of: Callable[[Ref], Any], training: bool) -> Any:
    """Runs one operation, once, on the values its arguments refer to; see `Call`."""
    return Call(node)({ref.index: value_of(ref) for ref in node.refs}, training)


class Lookup:
    """Where a module keeps certain tensors, to read them again and again.

    It remembers names, no modules: so it holds when submodules are replaced, constrained or moved, and for copies.

    Args:
        names: of the tensors ("conv1.weight").

    Example:
        >>> Lookup(["0.bias", "0.weight"])(nn.Sequential(nn.Linear(2, 1)))[1].shape
        torch.Size([1, 2])
    """

    def __init__(self, names: Iterable[str]) -> None:
        numbers = {"": 0}
        self._steps: list[tuple[int, str]] = []
        self._leaves: list[tuple[int, str]] = []
        for name in names:
            *path, leaf = name.split(".")
            for depth in range(len(path)):
                parent, here = ".".join(path[:depth]), ".".join(path[: depth + 1])
                if here not in numbers:
                    self._steps.append((numbers[parent], path[depth]))
                    numbers[here] = len(numbers)
            self._leaves.append((numbers[".".join(path)], leaf))

    def __call__(self, root: nn.Module) -> list[torch.Tensor]:
        """The tensors of a module, constraints applied, in the order of their names."""
        modules: list[Any] = [root]
        for parent, name in self._steps:
            modules.append(modules[parent]._modules[name])
        found = []
        for number, leaf in self._leaves:
            owner = modules[number]
            tensor = owner._parameters.get(leaf)
            if tensor is None:
                tensor = owner._buffers.get(leaf)
            found.append(getattr(owner, leaf) if tensor is None else tensor)
        return found


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
        self._tensors = Lookup(spec.name for spec in program.tensors)
        self._calls = [Call(node) for node in program.nodes]
        self._last_use = last_uses(program)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program on its inputs, in order or by name."""
        inputs = self._in_order(args, kwargs) if kwargs else args
        if len(inputs) != len(self.program.inputs) or len(args) + len(kwargs) != len(inputs):
            names = ", ".join(spec.name for spec in self.program.inputs)
            raise TypeError(f"this network takes {len(self.program.inputs)} inputs ({names}), got {len(args) + len(kwargs)}")
        values: list[Any] = [*inputs, *self._tensors(self)]
        for position, (node, dead) in enumerate(zip(self.program.nodes, self._last_use, strict=True)):
            values.append(self._run(position, node, values))
            for index in dead:
                values[index] = None
        return map_refs(self.program.output, lambda ref: values[ref.index])

    def reader(self, names: Sequence[str]) -> Lookup:
        """A function that reads some of its tensors, again and again, of this module or a copy of it."""
        return Lookup(names)

    def _in_order(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        named = [spec.name for spec in self.program.inputs[len(args) :]]
        return [*args, *(kwargs[name] for name in named if name in kwargs)]

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        return self._calls[position](values, self.training)


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
        for ref in node.refs:
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
    read = {ref.index for node in program.nodes for ref in node.refs}
    read |= {ref.index for ref in refs_in(program.output)}
    first = len(program.inputs)
    return [spec.name for i, spec in enumerate(program.tensors) if first + i not in read]
