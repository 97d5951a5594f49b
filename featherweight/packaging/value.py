"""The arguments of operations as bytes (SPEC.md §5): numbers, text, dtypes and nested tuples, lists and dicts of these."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import torch

from featherweight.errors import FormatError, RequestError
from featherweight.graph.program import Ref, Value
from featherweight.packaging.cursor import Cursor, signed, string, varint
from featherweight.packaging.tensors import DTYPES

__all__ = ["MOST_VALUES", "Hole", "ValueReader", "encode_value", "read_dtype", "size_of"]

MOST_VALUES = 1 << 18
DEEPEST = 16

_HOLE, _NONE, _FALSE, _TRUE, _INT, _FLOAT, _STR, _DTYPE, _LAYOUT, _MEMORY, _DEVICE, _TUPLE, _LIST, _DICT = range(14)
_FIRST_SMALL = 16  # tags from here on are the integers -16 … 223
_SMALL_OFFSET = 32

_DTYPE_OF = {number: dtype for dtype, number in DTYPES.items()}
_LAYOUTS = (torch.strided, torch.sparse_coo)
_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format)
_CONSTANTS = {_NONE: None, _FALSE: False, _TRUE: True}


class Hole:
    """Stands for a reference, in a value whose references are stored elsewhere. The class itself is the mark."""


def encode_value(value: Value) -> bytes:
    """A value, with a hole in place of each reference.

    Args:
        value: of any depth.

    Returns:
        The bytes.

    Raises:
        RequestError: it is, or holds, something of another kind than `Value` names.

    Example:
        >>> encode_value([Ref(3), 2, None]).hex()
        '0c03002201'
    """
    for tag, constant in _CONSTANTS.items():
        if value is constant:
            return bytes([tag])
    if isinstance(value, tuple | list):
        tag = _TUPLE if isinstance(value, tuple) else _LIST
        return bytes([tag]) + varint(len(value)) + b"".join(encode_value(v) for v in value)
    if isinstance(value, Mapping):
        return bytes([_DICT]) + varint(len(value)) + b"".join(string(key) + encode_value(v) for key, v in value.items())
    if isinstance(value, int):
        return _encode_int(value)
    return _encode_leaf(value)


def _encode_int(value: int) -> bytes:
    if _FIRST_SMALL <= value + _SMALL_OFFSET < 256:
        return bytes([value + _SMALL_OFFSET])
    if not -(1 << 63) <= value < 1 << 63:
        raise RequestError(f"a .fw file holds integers of 64 bits as arguments, got {value}")
    return bytes([_INT]) + signed(value)


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
    raise RequestError(
        f"a .fw file holds numbers, text, dtypes and the like as arguments, got a {type(value).__name__}: {value!r}"
    )


def size_of(value: Value) -> int:
    """The number of values in a value, itself included.

    Args:
        value: of any depth.

    Returns:
        At least 1.
    """
    if isinstance(value, tuple | list):
        return 1 + sum(map(size_of, value))
    return 1 + sum(map(size_of, value.values())) if isinstance(value, dict) else 1


class ValueReader:
    """Reads values with holes, `MOST_VALUES` of them at most in all.

    Raises:
        FormatError: (`read`) a value is malformed, nests too deep, or is one too many.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._left = MOST_VALUES

    def read(self, depth: int = 0) -> Value:
        """The next value."""
        cursor = self._cursor
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise FormatError(f"{cursor.what} holds too much: values may nest {DEEPEST} deep, and be {MOST_VALUES} in all")
        tag = cursor.byte()
        if tag == _TUPLE:
            return tuple([self.read(depth + 1) for _ in range(cursor.count())])
        if tag == _LIST:
            return [self.read(depth + 1) for _ in range(cursor.count())]
        if tag == _DICT:
            pairs = [(cursor.string(), self.read(depth + 1)) for _ in range(cursor.count(2))]
            found = dict(pairs)
            if len(found) < len(pairs):
                raise FormatError(f"{cursor.what} is damaged: a dict has the same key twice")
            return found
        return self._leaf(tag)

    def _leaf(self, tag: int) -> Value:
        cursor = self._cursor
        if tag >= _FIRST_SMALL:
            return tag - _SMALL_OFFSET
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag not in _READERS:
            raise FormatError(f"{cursor.what} is damaged: no value has the tag {tag}")
        return _READERS[tag](cursor)


def read_dtype(cursor: Cursor) -> torch.dtype:
    """A dtype by its number.

    Args:
        cursor: at the number's byte.

    Returns:
        The dtype.
    """
    number = cursor.byte()
    if number not in _DTYPE_OF:
        raise FormatError(f"{cursor.what} is damaged: no dtype has the number {number}")
    return _DTYPE_OF[number]


def _read_device(cursor: Cursor) -> torch.device:
    text = cursor.string()
    try:
        return torch.device(text)
    except (RuntimeError, ValueError):
        raise FormatError(f"{cursor.what} is damaged: there is no device {text!r}") from None


_READERS: dict[int, Callable[[Cursor], Value]] = {
    _HOLE: lambda cursor: Hole,
    _INT: Cursor.signed,
    _FLOAT: lambda cursor: struct.unpack("<d", cursor.take(8))[0],
    _STR: Cursor.string,
    _DTYPE: read_dtype,
    _LAYOUT: lambda cursor: cursor.entry(_LAYOUTS, cursor.byte()),
    _MEMORY: lambda cursor: cursor.entry(_MEMORY_FORMATS, cursor.byte()),
    _DEVICE: _read_device,
}
