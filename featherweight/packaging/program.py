"""A program in a few hundred bytes (SPEC.md §5): each distinct call is written once, then nodes only say which and on what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featherweight.errors import FormatError, RequestError, UnsupportedOpError
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Input, Kind, Node, Program, Ref, TensorSpec, Value, refs_in
from featherweight.packaging.cursor import Cursor, string, utf8, varint
from featherweight.packaging.tensors import DTYPES
from featherweight.packaging.value import MOST_VALUES, Hole, ValueReader, encode_value, read_dtype, size_of

__all__ = ["MOST_AXES", "decode_program", "encode_program", "read_program"]

MOST_AXES = 32
LONGEST_NAME = 1 << 10
LONGEST_NAMES = 1 << 24

_KINDS: tuple[Kind, ...] = ("parameter", "buffer", "constant")


def encode_program(program: Program) -> bytes:
    """The program's bytes; the nodes' origins are left out.

    Args:
        program: any that a capture gives.

    Returns:
        The bytes.

    Raises:
        RequestError: an argument is of a kind that a file cannot hold.

    Example:
        >>> import torch
        >>> tiny = Program((Input("x", (None,), torch.float32),), (), (Node("relu", (Ref(0),)),), Ref(1))
        >>> encode_program(tiny).hex(), decode_program(encode_program(tiny)) == tiny
        ('00010178000100010472656c7501000b01000d000100010001', True)
    """
    ops: dict[str, int] = {}
    calls: dict[bytes, int] = {}
    nodes = bytearray()
    next_tensor = len(program.inputs)
    for i, node in enumerate(program.nodes):
        op = ops.setdefault(node.op, len(ops))
        call = varint(op) + encode_value(tuple(node.args)) + encode_value(dict(node.kwargs))
        refs, next_tensor = _encode_refs([*node.args, *node.kwargs.values()], program, i, next_tensor)
        nodes += varint(calls.setdefault(call, len(calls))) + refs
    output = encode_value(program.output) + _encode_refs(program.output, program, len(program.nodes), next_tensor)[0]
    parts = [
        _encode_tensors(program.tensors),
        varint(len(program.inputs)),
        *(_encode_input(spec) for spec in program.inputs),
        varint(len(ops)),
        *(string(op) for op in ops),
        varint(len(calls)),
        *calls,
        varint(len(program.nodes)),
        bytes(nodes),
        output,
    ]
    return b"".join(parts)


def decode_program(data: bytes | memoryview) -> Program:
    """The inverse of `encode_program`.

    Args:
        data: all of its bytes.

    Returns:
        The program.

    Raises:
        FormatError: the bytes are not a program, or break a limit of SPEC.md §5.
    """
    cursor = Cursor(data, "the program")
    program = read_program(cursor)
    cursor.end()
    return program


def read_program(cursor: Cursor) -> Program:
    """Like `decode_program`, from a cursor that may hold more after it.

    Args:
        cursor: where the program starts.

    Returns:
        The program.
    """
    tensors = _read_tensors(cursor)
    inputs = _read_inputs(cursor)
    values = ValueReader(cursor)
    ops = [_read_op(cursor) for _ in range(cursor.count())]
    calls = [_read_call(cursor, ops, values) for _ in range(cursor.count(5))]
    nodes: list[Node] = []
    refs = _RefReader(cursor, len(inputs), len(tensors))
    written_out = 0
    for i in range(cursor.count()):
        op, args, kwargs, size = cursor.entry(calls, cursor.varint())
        written_out += size
        if written_out > MOST_VALUES:
            raise FormatError(f"{cursor.what} is too long: a file may hold {MOST_VALUES} values in all its nodes")
        fill = refs.filler(i)
        nodes.append(Node(op, tuple(fill(value) for value in args), fill(kwargs)))
    output = values.read()
    return Program(inputs, tensors, tuple(nodes), refs.filler(len(nodes))(output))


# tensors and inputs


def _encode_tensors(specs: tuple[TensorSpec, ...]) -> bytes:
    parts = [varint(len(specs))]
    previous = b""
    for spec in specs:
        raw = utf8(spec.name)
        shared = next((i for i, (a, b) in enumerate(zip(previous, raw, strict=False)) if a != b), min(len(previous), len(raw)))
        parts += [varint(4 * shared + _KINDS.index(spec.kind)), varint(len(raw) - shared), raw[shared:]]
        previous = raw
    return b"".join(parts)


def _read_tensors(cursor: Cursor) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    previous = b""
    left = LONGEST_NAMES
    for _ in range(cursor.count(2)):
        shared, kind = divmod(cursor.varint(), 4)
        if shared > len(previous):
            raise FormatError(f"{cursor.what} is damaged: a name shares {shared} bytes with one of {len(previous)}")
        previous = previous[:shared] + bytes(cursor.take(cursor.varint()))
        left -= len(previous)
        if len(previous) > LONGEST_NAME or left < 0:
            raise FormatError(f"a name may take {LONGEST_NAME} bytes, and all {LONGEST_NAMES}; {cursor.what} has longer ones")
        name = cursor.text(previous)
        if name in specs:
            raise FormatError(f"{cursor.what} is damaged: it names two tensors {name!r}")
        specs[name] = TensorSpec(name, cursor.entry(_KINDS, kind))
    return tuple(specs.values())


def _encode_input(spec: Input) -> bytes:
    if spec.dtype not in DTYPES:
        raise RequestError(f"a .fw file knows {len(DTYPES)} dtypes, got {spec.dtype} for the input {spec.name!r}")
    sizes = (varint(0 if size is None else size + 1) for size in spec.shape)
    return string(spec.name) + bytes([DTYPES[spec.dtype]]) + varint(len(spec.shape)) + b"".join(sizes)


def _read_inputs(cursor: Cursor) -> tuple[Input, ...]:
    inputs: dict[str, Input] = {}
    for _ in range(cursor.count(3)):
        name = cursor.string()
        dtype = read_dtype(cursor)
        axes = cursor.count()
        if name in inputs or axes > MOST_AXES:
            raise FormatError(
                f"inputs have distinct names and at most {MOST_AXES} axes, {cursor.what} has {name!r} with {axes}"
            )
        sizes = [cursor.varint() for _ in range(axes)]
        inputs[name] = Input(name, tuple(size - 1 if size else None for size in sizes), dtype)
    return tuple(inputs.values())


# references


def _encode_refs(value: Value, program: Program, made: int, next_tensor: int) -> tuple[bytes, int]:
    """The references of a value in order, as node `made` sees them, and the tensor that follows the last one."""
    coded = bytearray()
    for ref in refs_in(value):
        is_tensor = len(program.inputs) <= ref.index < program.first_node
        coded += varint(0 if is_tensor and ref.index == next_tensor else program.first_node + made - ref.index)
        next_tensor = ref.index + 1 if is_tensor else next_tensor
    return bytes(coded), next_tensor


class _RefReader:
    """Reads references and puts them into holes, remembering which tensor comes next."""

    def __init__(self, cursor: Cursor, inputs: int, tensors: int) -> None:
        self._cursor = cursor
        self._inputs = inputs
        self._first_node = inputs + tensors
        self._next_tensor = inputs

    def _read(self, made: int) -> Ref:
        back = self._cursor.varint()
        index = self._first_node + made - back if back else self._next_tensor
        if not 0 <= index < (self._first_node + made if back else self._first_node):
            raise FormatError(f"{self._cursor.what} is damaged: node {made} refers to value {index}, which does not exist yet")
        if self._inputs <= index < self._first_node:
            self._next_tensor = index + 1
        return Ref(index)

    def filler(self, made: int) -> Callable[[Value], Any]:
        """A function that fills the holes of a value of node `made`."""

        def fill(value: Value) -> Any:
            if value is Hole:
                return self._read(made)
            if isinstance(value, tuple | list):
                return type(value)(fill(v) for v in value)
            return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

        return fill


# operations


def _read_op(cursor: Cursor) -> str:
    op = cursor.string()
    try:
        resolve_op(op)
    except (UnsupportedOpError, AttributeError, RuntimeError) as error:
        raise FormatError(f"{cursor.what} holds an operation that is not allowed: {error}") from None
    return op


def _read_call(cursor: Cursor, ops: list[str], values: ValueReader) -> tuple[str, tuple[Value, ...], dict[str, Value], int]:
    """A call with holes, and the number of values in it."""
    op = cursor.entry(ops, cursor.varint())
    args, kwargs = values.read(), values.read()
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise FormatError(f"{cursor.what} is damaged: the arguments of {op!r} are not a tuple and a dict")
    return op, args, kwargs, size_of(args) + size_of(kwargs)
