"""From a module to a `Program`: the only place that reads what `torch.export` returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec
from torch.utils import _pytree as pytree

from featherweight.errors import CaptureError, UnsupportedOpError
from featherweight.graph.constraint import fold
from featherweight.graph.program import (
    Input,
    Kind,
    Node,
    Program,
    ProgramModule,
    Ref,
    TensorSpec,
    Value,
    map_refs,
    refs_in,
    resolve_op,
    tensor_called,
    unused,
)

__all__ = ["Example", "as_example", "capture", "from_exported", "on_device_of", "tensors_of", "to_module", "twin_of"]

Example = torch.Tensor | Sequence[Any]
"""One batch of inputs: a tensor, or a sequence of the arguments of `forward`. Axis 0 of each tensor is the batch."""

_KINDS: dict[InputKind, Kind] = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}


def capture(model: nn.Module, example: Example) -> Program:
    """Captures what a module computes, in eval mode, for any batch size.

    Constraints (parametrizations) are folded first, on a copy: the program sees plain weights under their plain names. Tensors
    that the network never reads (a batch norm's step counter, an unused layer) are left out. A network that is a
    `ProgramModule` already gives its own program.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs, at least 1 sample; only shapes and dtypes matter, axis 0 is the batch.

    Returns:
        The program. Its tensors' values stay with the module: see `tensors_of`.

    Raises:
        CaptureError: `torch.export` failed (its own message is attached), the network runs for one batch size only, or it makes
            a tensor of its own from numbers.
        UnsupportedOpError: the network holds an operation that a program may not hold (named with file:line).

    Example:
        >>> program = capture(torch.nn.Linear(4, 2), torch.zeros(3, 4))
        >>> [node.op for node in program.nodes], program.inputs[0].shape
        (['linear'], (None, 4))
    """
    if isinstance(model, ProgramModule):
        return model.program
    args = tuple(_two_samples(a) for a in on_device_of(model, as_example(example)))
    shapes = tuple(_batch_axis(a) for a in args)
    frozen = fold(model).eval()
    try:
        exported = torch.export.export(frozen, args, dynamic_shapes=_named(frozen, shapes), strict=False)
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {_first_lines(str(error))}\n"
            "forward() must be traceable for any batch size, without Python control flow on tensor values"
        ) from error
    program = from_exported(exported)
    for spec in program.inputs:
        if spec.shape and spec.shape[0] is not None:
            raise CaptureError(
                f"a network must run for any batch size, but {type(model).__name__} takes {spec.name!r} only in batches of "
                f"{spec.shape[0]}, those it was captured with; take the batch size from x.shape[0], not from len(x)"
            )
    tensors_of(frozen, program)
    return program


def as_example(example: Example) -> tuple[Any, ...]:
    """The arguments of `forward` as a tuple, from a tensor or a sequence."""
    return (example,) if isinstance(example, torch.Tensor) else tuple(example)


def on_device_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, with their tensors where the model's are."""
    device = next((tensor.device for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)), None)
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs)


def tensors_of(model: nn.Module, program: Program) -> dict[str, torch.Tensor]:
    """The program's tensors, read from the module it was captured from, constraints folded; detached, not copied.

    Args:
        model: the module; it is not changed.
        program: captured from it.

    Returns:
        A tensor for each of `program.tensors`, by name.

    Raises:
        CaptureError: the module lacks one of them, so it is not what the program was captured from.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> sorted(tensors_of(layer, capture(layer, torch.zeros(1, 4))))
        ['bias', 'weight']
    """
    found = {}
    for spec in program.tensors:
        try:
            value = tensor_called(model, spec.name)
        except AttributeError as error:
            raise CaptureError(
                f"this network has no tensor {spec.name!r}, which the program reads; if forward() makes it from numbers "
                "(torch.tensor(…)), register it as a buffer"
            ) from error
        found[spec.name] = value.detach()
    return found


def to_module(model: nn.Module, example: Example) -> ProgramModule:
    """The captured twin of a module: same weights (copied), same mode, same outputs, no code of the user's.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.

    Returns:
        The twin.

    Raises:
        CaptureError, UnsupportedOpError: as `capture` says.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> torch.equal(to_module(layer, torch.zeros(1, 4))(torch.ones(3, 4)), layer(torch.ones(3, 4)))
        True
    """
    program = capture(model, example)
    folded = fold(model)
    return twin_of(folded, program, {name: t.clone() for name, t in tensors_of(model, program).items()})


def twin_of(model: nn.Module, program: Program, tensors: Mapping[str, torch.Tensor]) -> ProgramModule:
    """A `ProgramModule` in the model's mode, trainable where the model is; the model's constraints must be folded."""
    twin = ProgramModule(program, tensors).train(model.training)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(trainable[name])
    return twin


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
    output: Value = None
    for fx_node in exported.graph.nodes:
        if fx_node.op == "call_function":
            if _is_guard(fx_node):
                continue
            numbers[fx_node.name] = Ref(len(names) + len(nodes))
            nodes.append(_node(fx_node, numbers))
        elif fx_node.op == "output":
            flat = [_value(v, numbers) for v in fx_node.args[0]]
            output = pytree.tree_unflatten(flat, exported.call_spec.out_spec)
        elif fx_node.op != "placeholder":
            raise UnsupportedOpError(f"control flow on submodules ({fx_node.target}) is not supported, at {_origin(fx_node)}")
    program = _without_unused(Program(tuple(inputs), tuple(tensors), tuple(nodes), _plain(output)))
    _refuse_changes(program)
    return program


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


def _without_unused(program: Program) -> Program:
    """Drops the tensors that nothing reads, and renumbers."""
    dropped = set(unused(program))
    first = len(program.inputs)
    order = [i for i in range(program.first_node) if i < first or program.tensors[i - first].name not in dropped]
    order += range(program.first_node, program.first_node + len(program.nodes))
    new = {old: Ref(i) for i, old in enumerate(order)}

    def renumber(value: Value) -> Value:
        return map_refs(value, lambda ref: new[ref.index])

    nodes = tuple(Node(n.op, renumber(n.args), renumber(n.kwargs), n.origin) for n in program.nodes)
    return Program(program.inputs, tuple(t for t in program.tensors if t.name not in dropped), nodes, renumber(program.output))


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH_FOLDER = str(Path(torch.__file__).parent)


def _origin(fx_node: fx.Node) -> str:
    """The innermost `forward` of the user's own that led to a node, as file:line; torch.export keeps no other functions."""
    frames = _FRAME.findall(fx_node.meta.get("stack_trace") or "")
    users = [f for f in frames if not f[0].startswith((_TORCH_FOLDER, "torch/"))]
    return ":".join((users or frames or [("<unknown>", "0")])[-1])


def _two_samples(value: Any) -> Any:
    """A batch of one becomes a batch of two: torch.export treats sizes 0 and 1 as special and would fix the batch size."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value[:1].expand(2, *value.shape[1:]).contiguous()
    return value


def _batch_axis(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, torch.Tensor) and value.dim() > 0 else None


def _named(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.export wants the shapes of *args nested one deeper than those of named parameters."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*shapes[:named], tuple(shapes[named:]))
    return shapes


def _first_lines(message: str) -> str:
    return "\n".join(message.strip().splitlines()[:3])
