"""A program in a few hundred bytes (SPEC.md §5): each distinct call is written once, then nodes only say which and on what."""

from __future__ import annotations

import os.path
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch

from featherweight.errors import FormatError, RequestError, UnsupportedOpError
from featherweight.graph.program import Input, Kind, Node, Program, Ref, TensorSpec, Value, refs_in, resolve_op
from featherweight.packaging.cursor import Cursor, signed, string, utf8, varint
from featherweight.packaging.tensors import DTYPES

__all__ = ["DTYPE_OF", "MOST_AXES", "decode_program", "encode_program", "read_program"]

MOST_AXES = 32
MOST_VALUES = 1 << 18
DEEPEST = 16

_HOLE, _NONE, _FALSE, _TRUE, _INT, _FLOAT, _STR, _DTYPE, _LAYOUT, _MEMORY, _DEVICE, _TUPLE, _LIST, _DICT = range(14)
_FIRST_SMALL = 16  # tags from here on are the integers -16 … 223
_SMALL_OFFSET = 32

DTYPE_OF = {number: dtype for dtype, number in DTYPES.items()}
_KINDS: tuple[Kind, ...] = ("parameter", "buffer", "constant")
_LAYOUTS = (torch.strided, torch.sparse_coo)
_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format)
_CONSTANTS = {_NONE: None, _FALSE: False, _TRUE: True}


def encode_program(program: Program) -> bytes:
    """The program's bytes; the nodes' origins are left out.

    Raises:
        RequestError: an argument is of a kind that a file cannot hold, or the program breaks a limit of SPEC.md §5.

    Example:
        >>> tiny = Program((Input("x", (None,), torch.float32),), (), (Node("relu", (Ref(0),)),), Ref(1))
        >>> encode_program(tiny).hex(), decode_program(encode_program(tiny)) == tiny
        ('000101780001000104000000000000', True)
    """
    ops: dict[str, int] = {}
    calls: dict[bytes, int] = {}
    nodes = bytearray()
    next_tensor = len(program.inputs)
    for i, node in enumerate(program.nodes):
        op = ops.setdefault(node.op, len(ops))
        call = varint(op) + _encode_value(tuple(node.args)) + _encode_value(dict(node.kwargs))
        refs, next_tensor = _encode_refs([*node.args, *node.kwargs.values()], program, i, next_tensor)
        nodes += varint(calls.setdefault(call, len(calls))) + refs
    output = _encode_value(program.output) + _encode_refs(program.output, program, len(program.nodes), next_tensor)[0]
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

    Raises:
        FormatError: the bytes are not a program, or break a limit of SPEC.md §5.
    """
    cursor = Cursor(data, "the program")
    program = read_program(cursor)
    cursor.end()
    return program


def read_program(cursor: Cursor) -> Program:
    """Like `decode_program`, from a cursor that may hold more after it."""
    tensors = _read_tensors(cursor)
    inputs = tuple(_read_input(cursor) for _ in range(cursor.count(3)))
    ops = [_read_op(cursor) for _ in range(cursor.count())]
    calls = [_read_call(cursor, ops) for _ in range(cursor.count(5))]
    nodes: list[Node] = []
    refs = _RefReader(cursor, len(inputs), len(tensors))
    values = 0
    for i in range(cursor.count()):
        op, args, kwargs, size = _at(calls, cursor.varint(), cursor)
        values += size
        if values > MOST_VALUES:
            raise FormatError(f"{cursor.what} is too long: a file may hold {MOST_VALUES} values in all its nodes")
        fill = refs.filler(i)
        nodes.append(Node(op, tuple(fill(value) for value in args), fill(kwargs)))
    output, _ = _read_value(cursor)
    return Program(inputs, tensors, tuple(nodes), refs.filler(len(nodes))(output))


# tensors and inputs


def _encode_tensors(specs: tuple[TensorSpec, ...]) -> bytes:
    parts = [varint(len(specs))]
    previous = b""
    for spec in specs:
        raw = utf8(spec.name)
        shared = len(os.path.commonprefix([previous, raw]))
        parts += [varint(4 * shared + _KINDS.index(spec.kind)), varint(len(raw) - shared), raw[shared:]]
        previous = raw
    return b"".join(parts)


def _read_tensors(cursor: Cursor) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    previous = b""
    for _ in range(cursor.count(2)):
        shared, kind = divmod(cursor.varint(), 4)
        if shared > len(previous):
            raise FormatError(f"{cursor.what} is damaged: a name shares {shared} bytes with one of {len(previous)}")
        previous = previous[:shared] + bytes(cursor.take(cursor.varint()))
        name = cursor.text(previous)
        if name in specs:
            raise FormatError(f"{cursor.what} is damaged: it names two tensors {name!r}")
        specs[name] = TensorSpec(name, _at(_KINDS, kind, cursor))
    return tuple(specs.values())


def _encode_input(spec: Input) -> bytes:
    if spec.dtype not in DTYPES:
        raise RequestError(f"a .fw file knows {len(DTYPES)} dtypes, got {spec.dtype} for the input {spec.name!r}")
    sizes = (varint(0 if size is None else size + 1) for size in spec.shape)
    return string(spec.name) + bytes([DTYPES[spec.dtype]]) + varint(len(spec.shape)) + b"".join(sizes)


def _read_input(cursor: Cursor) -> Input:
    name = cursor.string()
    dtype = _dtype(cursor.byte(), cursor)
    axes = cursor.count()
    if axes > MOST_AXES:
        raise FormatError(f"{cursor.what} is damaged: an input may have {MOST_AXES} axes, {name!r} has {axes}")
    sizes = [cursor.varint() for _ in range(axes)]
    return Input(name, tuple(size - 1 if size else None for size in sizes), dtype)


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
            if value is _Hole:
                return self._read(made)
            if isinstance(value, tuple | list):
                return type(value)(fill(v) for v in value)
            return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

        return fill


class _Hole:
    """Stands for a reference in a call that is not filled in yet."""


# values


def _encode_value(value: Value, depth: int = 0) -> bytes:
    if depth > DEEPEST:
        raise RequestError(f"a .fw file holds arguments nested up to {DEEPEST} deep, got more")
    for tag, constant in _CONSTANTS.items():
        if value is constant:
            return bytes([tag])
    if isinstance(value, tuple | list):
        tag = _TUPLE if isinstance(value, tuple) else _LIST
        return bytes([tag]) + varint(len(value)) + b"".join(_encode_value(v, depth + 1) for v in value)
    if isinstance(value, Mapping):
        items = (string(key) + _encode_value(v, depth + 1) for key, v in value.items())
        return bytes([_DICT]) + varint(len(value)) + b"".join(items)
    if isinstance(value, int):
        return _encode_int(value)
    return _encode_leaf(value)


def _encode_leaf(value: Value) -> bytes:
    match value:
        case Ref():
            return bytes([_HOLE])
        case float():
            return bytes([_FLOAT]) + struct.pack("<d", value)
        case str():
            return bytes([_STR]) + string(value)
        case torch.device():
            return bytes([_DEVICE]) + string(str(value))
        case torch.dtype() if value in DTYPES:
            return bytes([_DTYPE, DTYPES[value]])
        case torch.layout() if value in _LAYOUTS:
            return bytes([_LAYOUT, _LAYOUTS.index(value)])
        case torch.memory_format() if value in _MEMORY_FORMATS:
            return bytes([_MEMORY, _MEMORY_FORMATS.index(value)])
    raise RequestError(f"a .fw file holds numbers, text, dtypes and the like as arguments, got {value!r} of type {type(value).__name__}")


def _encode_int(value: int) -> bytes:
    if _FIRST_SMALL <= value + _SMALL_OFFSET < 256:
        return bytes([value + _SMALL_OFFSET])
    if not -(1 << 63) <= value < 1 << 63:
        raise RequestError(f"a .fw file holds integers of 64 bits as arguments, got {value}")
    return bytes([_INT]) + signed(value)


def _read_value(cursor: Cursor, depth: int = 0) -> tuple[Value, int]:
    """A value with holes, and the number of values in it."""
    if depth > DEEPEST:
        raise FormatError(f"{cursor.what} is damaged: values may nest {DEEPEST} deep")
    tag = cursor.byte()
    if tag not in (_TUPLE, _LIST, _DICT):
        return _read_leaf(cursor, tag), 1
    if tag == _DICT:
        found: dict[str, Value] = {}
        count = cursor.count(2)
        size = 1
        for _ in range(count):
            key = cursor.string()
            found[key], inner = _read_value(cursor, depth + 1)
            size += inner
        if len(found) < count:
            raise FormatError(f"{cursor.what} is damaged: a dict has the same key twice")
        return found, size
    pairs = [_read_value(cursor, depth + 1) for _ in range(cursor.count())]
    items = [value for value, _ in pairs]
    return tuple(items) if tag == _TUPLE else items, 1 + sum(inner for _, inner in pairs)


def _read_leaf(cursor: Cursor, tag: int) -> Value:
    if tag >= _FIRST_SMALL:
        return tag - _SMALL_OFFSET
    if tag in _CONSTANTS:
        return _CONSTANTS[tag]
    match tag:
        case 0:
            return _Hole
        case 4:
            return cursor.signed()
        case 5:
            return struct.unpack("<d", cursor.take(8))[0]
        case 6:
            return cursor.string()
        case 7:
            return _dtype(cursor.byte(), cursor)
        case 8:
            return _at(_LAYOUTS, cursor.byte(), cursor)
        case 9:
            return _at(_MEMORY_FORMATS, cursor.byte(), cursor)
        case 10:
            return _read_device(cursor)
    raise FormatError(f"{cursor.what} is damaged: no value has the tag {tag}")


def _read_device(cursor: Cursor) -> torch.device:
    text = cursor.string()
    try:
        return torch.device(text)
    except (RuntimeError, ValueError):
        raise FormatError(f"{cursor.what} is damaged: there is no device {text!r}") from None


def _dtype(number: int, cursor: Cursor) -> torch.dtype:
    if number not in DTYPE_OF:
        raise FormatError(f"{cursor.what} is damaged: no dtype has the number {number}")
    return DTYPE_OF[number]


# operations


def _read_op(cursor: Cursor) -> str:
    op = cursor.string()
    try:
        resolve_op(op)
    except (UnsupportedOpError, AttributeError, RuntimeError) as error:
        raise FormatError(f"{cursor.what} holds an operation that is not allowed: {error}") from None
    return op


def _read_call(cursor: Cursor, ops: list[str]) -> tuple[str, tuple[Value, ...], dict[str, Value], int]:
    """A call with holes, and the number of values in it."""
    op = _at(ops, cursor.varint(), cursor)
    args, args_size = _read_value(cursor)
    kwargs, kwargs_size = _read_value(cursor)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise FormatError(f"{cursor.what} is damaged: the arguments of {op!r} are not a tuple and a dict")
    return op, args, kwargs, args_size + kwargs_size


def _at(table: Any, index: int, cursor: Cursor) -> Any:
    if index >= len(table):
        raise FormatError(f"{cursor.what} is damaged: entry {index} of a table of {len(table)}")
    return table[index]
