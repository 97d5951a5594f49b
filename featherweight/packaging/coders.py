"""The ways a tensor can be coded, one row each in `CODERS` (SPEC.md §6). All are lossless and know nothing of methods.

A new coder is three functions and a row; it needs a number in SPEC.md, and readers that know it (a new version).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.bits import pack_fields, unpack_fields
from featherweight.packaging.codebook import decode_codewords, encode_codewords
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.gridded import GRID
from featherweight.packaging.huffman import code_lengths, decode_symbols, encode_symbols, symbols_size
from featherweight.packaging.modelled import (
    EXPONENT,
    PALETTE,
    Payload,
    View,
    decode_sparse,
    decode_view,
    encode_sparse,
    encode_view,
)
from featherweight.packaging.runs import decode_runs, encode_runs
from featherweight.packaging.survey import CHUNK, Bits, Counts, Layout, Palette, Survey, exponents_of, rotated

__all__ = ["CODERS", "Coder", "Layout", "choose"]

Found = TypeVar("Found")

_SMALL = 1 << 8
_RECUR = 4  # so often a value must occur on average; else finding its code takes long, and an `_ans` coder is as good
_CLASSIC = (
    "huffman",
    "exponent",
    "sparse",
    "sparse_huffman",
    "sparse_exponent",
)  # what takes a few bytes less for small tensors only


@dataclass(frozen=True, slots=True)
class Coder:
    """One way of coding.

    `size` gives the bytes a tensor would take, exact but for the padding of streams, or None if the coder does not apply;
    `encode` gives the payload where `size` is not None; `decode` gives back the bits, shape [count], or raises `FormatError`.
    """

    number: int
    size: Callable[[Survey], int | None]
    encode: Callable[[Survey], list[bytes | memoryview]]
    decode: Callable[[Cursor, Layout], Bits]


def choose(survey: Survey) -> str:
    """The name of the coder that takes the fewest bytes, the first in `CODERS` on a tie.

    Args:
        survey: of the tensor.

    Returns:
        The coder's name.

    Example:
        >>> choose(Survey(np.array([7, 7, 7, 7], np.uint32)))
        'palette'
    """
    if survey.follows_trellis:
        return "grid_ans"  # no other coder comes near
    names = CODERS if len(survey.bits) <= _SMALL else [name for name in CODERS if name not in _CLASSIC]
    sizes = ((CODERS[name].size(survey), CODERS[name].number, name) for name in names)
    return min((size, number, name) for size, number, name in sizes if size is not None)[2]


# raw: the elements as they are


def _raw_size(survey: Survey) -> int:
    return survey.bits.nbytes


def _raw_encode(survey: Survey) -> list[bytes | memoryview]:
    return [survey.bits.data.cast("B")] if len(survey.bits) else []


def _raw_decode(cursor: Cursor, layout: Layout) -> Bits:
    return np.frombuffer(cursor.take(layout.count * layout.dtype.itemsize), layout.dtype)


# palette: the distinct values, and for each element an index of as few bits as possible


def _palette_size(survey: Survey) -> int | None:
    if survey.palette is None or not len(survey.bits):
        return None
    values, _ = survey.palette
    return 1 + values.nbytes + (len(survey.bits) * _index_width(len(values)) + 7) // 8


def _palette_encode(survey: Survey) -> list[bytes | memoryview]:
    values, _ = _known(survey.palette)
    return [_palette_head(values), pack_fields(_indices(survey, values), _index_width(len(values)))]


def _palette_decode(cursor: Cursor, layout: Layout) -> Bits:
    values = _read_palette(cursor, layout.dtype)
    indices = np.zeros(layout.count, np.uint8)
    unpack_fields(cursor, _index_width(len(values)), indices)
    if len(indices) and int(indices.max()) >= len(values):
        raise FormatError(f"{cursor.what} is damaged: an index is outside its palette of {len(values)} values")
    return values[indices]


def _index_width(values: int) -> int:
    return (values - 1).bit_length()


# huffman: the distinct values, and for each element the Huffman code of its index


def _huffman_size(survey: Survey) -> int | None:
    if survey.palette is None or len(survey.bits) < _RECUR * len(survey.palette[0]) or not len(survey.bits):
        return None
    return _coded_size(*survey.palette)


def _huffman_encode(survey: Survey) -> list[bytes | memoryview]:
    return _encode_coded(survey, *_known(survey.palette))


def _huffman_decode(cursor: Cursor, layout: Layout) -> Bits:
    values = _read_palette(cursor, layout.dtype)
    return values[decode_symbols(cursor, layout.count, len(values))]


def _encode_coded(survey: Survey, values: Bits, counts: Counts) -> list[bytes | memoryview]:
    """Palette and Huffman codes, given how often each value occurs."""
    lengths, order = _sorted_lengths(counts)
    return [_palette_head(values[order]), encode_symbols(_indices(survey, values[order]), lengths)]


def _coded_size(values: Bits, counts: Counts) -> int:
    """The bytes of a palette and Huffman codes, given how often each value occurs."""
    lengths, order = _sorted_lengths(counts)
    return 1 + values.nbytes + symbols_size(counts[order], lengths)


def _sorted_lengths(counts: Counts) -> tuple[list[int], npt.NDArray[np.intp]]:
    """The code lengths, ascending, and the values they belong to: in this order they take the fewest bytes themselves."""
    lengths = np.array(code_lengths(counts.tolist()))
    order = np.argsort(lengths, kind="stable")
    return lengths[order].tolist(), order


# exponent: Huffman codes for the exponents of floating-point numbers, the other bits as they are


def _exponent_size(survey: Survey) -> int | None:
    if survey.bits.dtype.itemsize < 2 or not len(survey.bits):
        return None
    return _exponent_counts_size(survey.exponents, survey.bits.dtype.itemsize)


def _exponent_counts_size(counts: Counts, itemsize: int) -> int:
    present = np.flatnonzero(counts)
    return _coded_size(present.astype(np.uint8), counts[present]) + int(counts.sum()) * (itemsize - 1)


def _exponent_encode(survey: Survey) -> list[bytes | memoryview]:
    itemsize = survey.bits.dtype.itemsize
    top = np.empty(len(survey.bits), np.uint8)
    low = np.empty((len(survey.bits), itemsize - 1), np.uint8)
    for at, chunk in zip(range(0, len(top), CHUNK), survey.chunks(), strict=True):
        part = slice(at, at + len(chunk))
        top[part] = exponents_of(chunk)
        low[part] = rotated(chunk).view(np.uint8).reshape(-1, itemsize)[:, :-1]
    present = np.flatnonzero(survey.exponents)
    return [*_encode_coded(Survey(top), present.astype(np.uint8), survey.exponents[present]), low.reshape(-1).data]


def _exponent_decode(cursor: Cursor, layout: Layout) -> Bits:
    itemsize = layout.dtype.itemsize
    if itemsize < 2:
        raise FormatError(f"{cursor.what} is damaged: elements of one byte have no exponents")
    top = _huffman_decode(cursor, Layout(np.dtype(np.uint8), layout.count))
    low = np.frombuffer(cursor.take(layout.count * (itemsize - 1)), np.uint8).reshape(-1, itemsize - 1)
    bits = np.empty(layout.count, layout.dtype)
    one, rest = layout.dtype.type(1), layout.dtype.type(8 * itemsize - 1)
    for at in range(0, layout.count, CHUNK):
        part = bits[at : at + CHUNK]
        split = part.view(np.uint8).reshape(-1, itemsize)
        split[:, :-1] = low[at : at + CHUNK]
        split[:, -1] = top[at : at + CHUNK]
        part[:] = part >> one | part << rest
    return bits


# sparse: runs of zeros, and the nonzero elements by one of the coders above


def _sparse_size(survey: Survey, nonzeros: int | None) -> int | None:
    if survey.runs is None or nonzeros is None:
        return None
    return 2 + len(varint(survey.nonzero)) + survey.runs.size + nonzeros


def _sparse_encode(survey: Survey, encode: Callable[[Survey], list[bytes | memoryview]]) -> list[bytes | memoryview]:
    plan = _known(survey.runs)
    head = bytes([plan.mantissa | plan.down_columns << 7]) + varint(survey.nonzero)
    runs = encode_runs(survey.gaps(plan.down_columns), survey.nonzero, plan.mantissa)
    return [head, runs, *encode(survey.nonzeros(plan.down_columns))]


def _sparse_decode(cursor: Cursor, layout: Layout, decode: Callable[[Cursor, Layout], Bits]) -> Bits:
    head = cursor.byte()
    nonzero = cursor.varint()
    mantissa, down = head & 127, head >> 7
    if mantissa > 4 or not 1 <= nonzero <= layout.count:
        raise FormatError(f"{cursor.what} is damaged: {nonzero} nonzero of {layout.count} elements, {mantissa} mantissa bits")
    runs = decode_runs(cursor, nonzero, mantissa, layout.count)
    values = decode(cursor, Layout(layout.dtype, nonzero))
    columns = layout.count // layout.rows
    bits = np.zeros(layout.count, layout.dtype)
    last = -1
    for at in range(0, nonzero, CHUNK):
        places = np.cumsum(runs[at : at + CHUNK], dtype=np.int64)
        places += np.arange(last + 1, last + 1 + len(places))
        last = int(places[-1])
        if last >= layout.count:
            raise FormatError(f"{cursor.what} is damaged: its runs of zeros are longer than the tensor")
        bits[places % layout.rows * columns + places // layout.rows if down else places] = values[at : at + CHUNK]
    return bits


def _sparse_huffman_size(survey: Survey) -> int | None:
    if survey.palette is None:
        return None
    values, counts = survey.palette
    if survey.nonzero < _RECUR * len(values):
        return None
    kept = values != 0
    return _sparse_size(survey, _coded_size(values[kept], counts[kept]) if kept.any() else None)


def _sparse_exponent_size(survey: Survey) -> int | None:
    itemsize = survey.bits.dtype.itemsize
    if itemsize < 2 or survey.runs is None:
        return None
    counts = survey.exponents.copy()
    counts[0] -= len(survey.bits) - survey.nonzero
    return _sparse_size(survey, _exponent_counts_size(counts, itemsize))


# what several coders share


def _known(found: Found | None) -> Found:
    """What a coder that applies has found."""
    if found is None:
        raise ValueError("this coder does not apply to this tensor; ask its size first")
    return found


def _palette_head(values: Bits) -> bytes:
    return bytes([len(values) - 1]) + values.tobytes()


def _read_palette(cursor: Cursor, dtype: np.dtype[np.unsignedinteger]) -> Bits:
    return np.frombuffer(cursor.take((cursor.byte() + 1) * dtype.itemsize), dtype)


def _indices(survey: Survey, values: Bits) -> npt.NDArray[np.uint8]:
    palette = Palette(values)
    indices = np.empty(len(survey.bits), np.uint8)
    for at, chunk in zip(range(0, len(indices), CHUNK), survey.chunks(), strict=True):
        indices[at : at + len(chunk)] = palette.indices(chunk)
    return indices


def _tried(
    number: int, name: str, encode: Callable[[Survey], Payload | None], decode: Callable[[Cursor, Layout], Bits]
) -> Coder:
    """A coder that must code a tensor to know its size."""

    def payload(survey: Survey) -> Payload | None:
        if name not in survey.payloads:
            survey.payloads[name] = encode(survey)
        return survey.payloads[name]

    def size(survey: Survey) -> int | None:
        coded = payload(survey)
        return None if coded is None else sum(map(len, coded))

    return Coder(number, size, lambda survey: _known(payload(survey)), decode)


def _modelled(number: int, name: str, view: View) -> Coder:
    return _tried(
        number, name, lambda survey: encode_view(survey, view), lambda cursor, layout: decode_view(cursor, layout, view)
    )


CODERS: dict[str, Coder] = {
    "raw": Coder(0, _raw_size, _raw_encode, _raw_decode),
    "palette": Coder(1, _palette_size, _palette_encode, _palette_decode),
    "huffman": Coder(2, _huffman_size, _huffman_encode, _huffman_decode),
    "exponent": Coder(3, _exponent_size, _exponent_encode, _exponent_decode),
    "sparse": Coder(
        4,
        lambda survey: _sparse_size(survey, survey.nonzero * survey.bits.dtype.itemsize),
        lambda survey: _sparse_encode(survey, _raw_encode),
        lambda cursor, layout: _sparse_decode(cursor, layout, _raw_decode),
    ),
    "sparse_huffman": Coder(
        5,
        _sparse_huffman_size,
        lambda survey: _sparse_encode(survey, _huffman_encode),
        lambda cursor, layout: _sparse_decode(cursor, layout, _huffman_decode),
    ),
    "sparse_exponent": Coder(
        6,
        _sparse_exponent_size,
        lambda survey: _sparse_encode(survey, _exponent_encode),
        lambda cursor, layout: _sparse_decode(cursor, layout, _exponent_decode),
    ),
    "palette_ans": _modelled(7, "palette_ans", PALETTE),
    "exponent_ans": _modelled(8, "exponent_ans", EXPONENT),
    "sparse_ans": _tried(9, "sparse_ans", encode_sparse, decode_sparse),
    "grid_ans": _modelled(10, "grid_ans", GRID),
    "codebook_ans": _tried(11, "codebook_ans", encode_codewords, decode_codewords),
}
