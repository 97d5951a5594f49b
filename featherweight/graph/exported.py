"""What `torch.export` returns, as a `Program`: the only place that reads it."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec
from torch.utils import _pytree as pytree

from featherweight.errors import CaptureError, UnsupportedOpError
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Input, Kind, Node, Program, Ref, TensorSpec, Value, refs_in
from featherweight.graph.rewrite import without_unused

__all__ = ["from_exported"]

_KINDS: dict[InputKind, Kind] = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}


def from_exported(exported: torch.export.ExportedProgram) -> Program:
    """A `Program` of an exported program, for example one loaded with `torch.export.load`.

    Raises:
        UnsupportedOpError: it holds an operation that a program may not hold (named with file:line).
        CaptureError: it changes its own buffers or inputs when it runs.
    """
    signature = exported.graph_signature
    changed = sorted({*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()})
    if changed:  # a program that was functionalised; in others the operations show it
        raise CaptureError(f"a network must not change its inputs or buffers in eval mode, but this one changes {changed}")
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    inputs, tensors, names = _inputs_and_tensors(exported, placeholders)
    numbers: dict[str, Value] = {name: Ref(i) for i, name in enumerate(names)}
    numbers |= _shared_and_constant(exported, numbers)
    nodes: list[Node] = []
    flat = _read_graph(exported.graph_module, numbers, nodes, len(names))
    output = pytree.tree_unflatten(flat, exported.call_spec.out_spec)
    constants = {str(s.target): _stored(exported, s) for s in signature.input_specs if s.kind is InputKind.CONSTANT_TENSOR}
    program = without_unused(Program(tuple(inputs), tuple(tensors), tuple(nodes), _plain(output), constants))
    _refuse_changes(program)
    # What is contiguous here need not be so in another export, or on another device; where it is, `reshape` is `view`.
    return replace(program, nodes=tuple(replace(n, op="reshape") if n.op == "view" else n for n in program.nodes))


# What torch.export wraps around a part of a network: where in its arguments that part is.
_WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}


def _read_graph(graph: fx.GraphModule, numbers: dict[str, Value], nodes: list[Node], first: int) -> list[Value]:
    """Appends a graph's operations to `nodes`, and returns its outputs. Its placeholders are in `numbers` already.

    A part that is wrapped (in an autocast that is off, or in no_grad) is read in place; what no_grad gives is detached.
    """
    for fx_node in graph.graph.nodes:
        name = getattr(fx_node.target, "__name__", "")
        if fx_node.op == "call_function" and name in _WRAPPERS:
            part = _WRAPPERS[name]
            if name == "wrap_with_autocast" and fx_node.args[2]:
                raise UnsupportedOpError("autocast inside a network is not supported; put it around the call of the network")
            inner = getattr(graph, str(fx_node.args[part].target))
            placeholders = [node.name for node in inner.graph.nodes if node.op == "placeholder"]
            given = [_value(v, numbers) for v in fx_node.args[part + 1 :]]
            results = _read_graph(inner, dict(zip(placeholders, given, strict=True)), nodes, first)
            if name == "wrap_with_set_grad_enabled" and not fx_node.args[0]:
                results = [_detached(result, nodes, first, _origin(fx_node)) for result in results]
            numbers[fx_node.name] = tuple(results)
        elif fx_node.op == "call_function" and fx_node.target is operator.getitem and _is_read(fx_node.args[0], numbers):
            numbers[fx_node.name] = numbers[fx_node.args[0].name][fx_node.args[1]]
        elif fx_node.op == "call_function" and not _is_guard(fx_node):
            numbers[fx_node.name] = Ref(first + len(nodes))
            nodes.append(_node(fx_node, numbers))
        elif fx_node.op == "output":
            return [_value(v, numbers) for v in fx_node.args[0]]
        elif fx_node.op == "call_module":
            raise UnsupportedOpError(f"control flow on submodules ({fx_node.target}) is not supported, at {_origin(fx_node)}")
    return []


def _detached(result: Value, nodes: list[Node], first: int, origin: str) -> Value:
    """Appends what keeps gradients from a result computed under no_grad."""
    if not isinstance(result, Ref):
        return result
    nodes.append(Node("detach", (result,), {}, origin))
    return Ref(first + len(nodes) - 1)


def _is_read(value: Any, numbers: Mapping[str, Value]) -> bool:
    """Whether these are the results of a wrapped part."""
    return isinstance(value, fx.Node) and isinstance(numbers[value.name], tuple)


# Their schemas say view, and they may copy: an in-place operation after them may be harmless.
_PERHAPS_COPIES = frozenset("contiguous flatten reshape reshape_as to type_as".split())


def _refuse_changes(program: Program) -> None:
    """Raises if an in-place operation writes to an input or a tensor of the program, directly or through a view of it."""
    names = [*(spec.name for spec in program.inputs), *(spec.name for spec in program.tensors)]
    behind = dict(enumerate(names))
    for number, node in enumerate(program.nodes, start=program.first_node):
        schema = getattr(resolve_op(node.op), "_schema", None)  # a Python operator has none, and changes nothing
        for argument, value in zip(schema.arguments if schema else (), node.args, strict=False):
            for name in [behind[ref.index] for ref in refs_in(value) if argument.alias_info and ref.index in behind]:
                if argument.alias_info.is_write:
                    raise CaptureError(
                        f"a network must not change its inputs or buffers in eval mode, but {node.op} at {node.origin} changes "
                        f"{name!r}; compute a new tensor instead"
                    )
                if node.op.partition(".")[0] not in _PERHAPS_COPIES:
                    behind[number] = name
        if node.op == "py.getitem" and node.args[0].index in behind:  # one of the parts of a split
            behind[number] = behind[node.args[0].index]


def _inputs_and_tensors(
    exported: torch.export.ExportedProgram, placeholders: Mapping[str, fx.Node]
) -> tuple[list[Input], list[TensorSpec], list[str]]:
    """The program's inputs and tensors, and the fx names of both, in the program's order; tied tensors appear once."""
    inputs: list[Input] = []
    tensors: list[TensorSpec] = []
    input_names: list[str] = []
    tensor_names: list[str] = []
    seen: set[int] = set()
    for spec in exported.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            continue
        if spec.kind is InputKind.USER_INPUT:
            value = placeholders[spec.arg.name].meta["val"]
            shape = tuple(size if isinstance(size, int) else size.node.maybe_as_int() for size in value.shape)
            inputs.append(Input(spec.arg.name, shape, value.dtype))
            input_names.append(spec.arg.name)
        elif id(_stored(exported, spec)) not in seen:
            seen.add(id(_stored(exported, spec)))
            tensors.append(TensorSpec(str(spec.target), _KINDS.get(spec.kind, "constant")))
            tensor_names.append(spec.arg.name)
    return inputs, tensors, input_names + tensor_names


def _shared_and_constant(exported: torch.export.ExportedProgram, numbers: Mapping[str, Value]) -> dict[str, Value]:
    """What the remaining placeholders stand for: a plain constant, or a tensor tied to one that has a number already."""
    by_tensor = {
        id(_stored(exported, spec)): numbers[spec.arg.name]
        for spec in exported.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT and spec.arg.name in numbers
    }
    more: dict[str, Value] = {}
    for spec in exported.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            more[spec.arg.name] = spec.arg.value
        elif spec.arg.name not in numbers:
            more[spec.arg.name] = by_tensor[id(_stored(exported, spec))]
    return more


def _stored(exported: torch.export.ExportedProgram, spec: InputSpec) -> torch.Tensor:
    target = str(spec.target)
    source = exported.state_dict if target in exported.state_dict else exported.constants
    tensor: torch.Tensor = source[target]
    return tensor


def _node(fx_node: fx.Node, numbers: Mapping[str, Value]) -> Node:
    target = fx_node.target
    if isinstance(target, torch._ops.OpOverload):
        op = target._schema.name.removeprefix("aten::")
        op += "" if target._overloadname == "default" else f".{target._overloadname}"
    else:
        op = f"py.{getattr(target, '__name__', target)}"
    origin = _origin(fx_node)
    try:
        resolve_op(op)
    except UnsupportedOpError as error:
        raise UnsupportedOpError(f"{error}, at {origin}") from None
    args = tuple(_value(a, numbers) for a in fx_node.args)
    return Node(op, args, {k: _value(v, numbers) for k, v in fx_node.kwargs.items()}, origin)


def _is_guard(fx_node: fx.Node) -> bool:
    """Whether this node only checks the sizes torch.export assumed."""
    name = str(fx_node.target)
    return not fx_node.users and ("_assert" in name or "sym_constrain" in name)


def _value(value: Any, numbers: Mapping[str, Value]) -> Value:
    if isinstance(value, fx.Node):
        return numbers[value.name]
    if isinstance(value, tuple | list):
        values = [_value(v, numbers) for v in value]
        return tuple(values) if type(value) is tuple else values  # fx has lists and tuples of its own
    return value


def _plain(value: Value) -> Value:
    """An output structure in plain tuples, lists and dicts; a class of the user's would not survive in a file."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value] if isinstance(value, list) else tuple(_plain(v) for v in value)
    return value


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH_FOLDER = str(Path(torch.__file__).parent)


def _origin(fx_node: fx.Node) -> str:
    """The innermost `forward` of the user's own that led to a node, as file:line; torch.export keeps no other functions."""
    frames = _FRAME.findall(fx_node.meta.get("stack_trace") or "")
    users = [f for f in frames if not f[0].startswith((_TORCH_FOLDER, "torch/"))]
    return ":".join((users or frames or [("<unknown>", "0")])[-1])
