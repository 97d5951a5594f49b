"""Coders that take a tensor apart into symbols with statistics, and bits without (SPEC.md §6.7, §6.8).

Each *view* of a tensor says what its symbols are. All views share one way to code symbols (symbols.py); bits that look random
are stored as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.ans import AnsDecoder, AnsEncoder
from featherweight.packaging.bits import pack_fields, unpack_fields
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.matrices import PLAIN, Matrix, decode_matrix, encode_matrix, ideal_bits
from featherweight.packaging.runs import MOST_MANTISSA, bucket, bucket_starts
from featherweight.packaging.survey import CHUNK, Bits, Layout, Palette, Survey, exponents_of, rotated
from featherweight.packaging.symbols import Alphabet, decode_symbols, encode_symbols

__all__ = [
    "EXPONENT",
    "PALETTE",
    "Numbers",
    "Parts",
    "Payload",
    "Reading",
    "Symbols",
    "View",
    "decode_sparse",
    "decode_view",
    "encode_sparse",
    "encode_view",
]

Payload = list[bytes | memoryview]
Numbers = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.unsignedinteger]

_SMALL = 1 << 14
_SURELY, _HEADROOM = 1.2, 256  # levels may save so much of a palette's ranks; and bits that no estimate tells
_MOST_LINES = 1 << 20  # so that statistics of rows and columns take little memory


@dataclass(frozen=True, eq=False)
class Parts:
    """A tensor taken apart.

    Args:
        head: what a decoder must know first.
        symbols: of each element, shape [n].
        magnitudes: of each symbol, below 2^16, shape [alphabet].
        tail: the bits that follow the symbols.
        parities: of elements on a trellis, coded before the symbols, shape [n].
        sides: what the parities tell about each element, below 4, shape [n].
    """

    head: bytes
    symbols: Symbols
    magnitudes: Numbers
    tail: Payload
    parities: Symbols | None = None
    sides: Symbols | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a head says: the symbols' magnitudes, how to join tail, symbols and parities, and what parities tell, if any."""

    magnitudes: Numbers
    join: Callable[[Cursor, Symbols, Symbols | None], Bits]
    sides: Callable[[Symbols], Symbols] | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A way to take tensors apart (None: it does not apply), and to read the head of what was."""

    split: Callable[[Survey], Parts | None]
    read: Callable[[Cursor, Layout], Reading]


def encode_view(survey: Survey, view: View) -> Payload | None:
    """Codes a tensor: u8 way where there is a choice, head, symbols, tail.

    Args:
        survey: of at least one element.
        view: how to take it apart.

    Returns:
        The payload, or None if the view does not apply.
    """
    parts = view.split(survey) if len(survey.bits) else None
    if parts is None:
        return None
    shape = survey.layout.shape
    parities, sides = (None if part is None else part.reshape(shape) for part in (parts.parities, parts.sides))
    matrix = Matrix(parts.symbols.reshape(shape), parts.magnitudes, parities, sides)
    way, coded = encode_matrix(matrix, levels=_may_have_levels(shape))
    return [bytes([way]) if _may_have_levels(shape) else b"", parts.head, coded, *parts.tail]


def decode_view(cursor: Cursor, layout: Layout, view: View) -> Bits:
    """The inverse of `encode_view`.

    Args:
        cursor: where the payload starts.
        layout: of the tensor.
        view: the same.

    Returns:
        The elements.

    Raises:
        FormatError: the payload is damaged.
    """
    way = cursor.byte() if _may_have_levels(layout.shape) else PLAIN
    reading = view.read(cursor, layout)
    symbols, parities = decode_matrix(cursor, way, layout.shape, len(reading.magnitudes), reading.sides)
    return reading.join(cursor, symbols, parities)


def _may_have_levels(shape: tuple[int, int]) -> bool:
    return min(shape) > 1 and max(shape) <= _MOST_LINES


# palette: the symbol of an element is the rank of its value


def _split_palette(survey: Survey) -> Parts | None:
    if survey.follows_trellis or survey.palette is None or not _palette_may_pay(survey):
        return None
    values = survey.palette[0][np.argsort(rotated(survey.palette[0]))]
    stored = values[1:] if values[0] == 0 else values
    palette = Palette(values)
    symbols = np.empty(len(survey.bits), np.uint8)
    for at, chunk in zip(range(0, len(symbols), CHUNK), survey.chunks(), strict=True):
        symbols[at : at + len(chunk)] = palette.indices(chunk)
    return Parts(varint(2 * len(stored) + (len(stored) < len(values))) + stored.tobytes(), symbols, _ranks(values), [])


def _palette_may_pay(survey: Survey) -> bool:
    """Whether values and the ranks of elements may take less than exponents and other bits, by their entropies."""
    itemsize = survey.bits.dtype.itemsize
    if survey.palette is None or itemsize < 2:
        return survey.palette is not None
    values, counts = survey.palette
    plain = survey.nonzero * (8 * itemsize - 8 - _spare_bits(survey))
    return 8 * values.nbytes + ideal_bits(counts) < _SURELY * (plain + ideal_bits(survey.exponents)) + _HEADROOM


def _read_palette(cursor: Cursor, layout: Layout) -> Reading:
    head = cursor.varint()
    size = (head >> 1) + (head & 1)
    if not 1 <= size <= 256:
        raise FormatError(f"{cursor.what} is damaged: a palette has 1 to 256 values, not {size}")
    stored = np.frombuffer(cursor.take((head >> 1) * layout.dtype.itemsize), layout.dtype)
    values = np.concatenate([np.zeros(head & 1, layout.dtype), stored])
    return Reading(_ranks(values), lambda cursor, symbols, _: values[symbols])


def _ranks(values: Bits) -> Numbers:
    """The magnitudes of a palette: of float values how many smaller ones there are, but for the sign; 0 is for zero."""
    unsigned = rotated(values) >> values.dtype.type(1)
    return np.cumsum(np.diff(unsigned, prepend=unsigned.dtype.type(0)) != 0, dtype=np.int64)


# exponent: the symbol is the most significant byte after a rotation by one bit, or tells that all bits are zero


def _split_exponent(survey: Survey) -> Parts | None:
    itemsize = survey.bits.dtype.itemsize
    if itemsize < 2 or survey.follows_trellis or (len(survey.bits) > _SMALL and survey.palette is not None):
        return None
    has_zero = int(survey.nonzero < len(survey.bits))
    counts = survey.exponents.copy()
    counts[0] -= len(survey.bits) - survey.nonzero
    present = np.flatnonzero(counts)
    low, high = (int(present[0]), int(present[-1])) if len(present) else (0, 0)
    symbols = np.empty(len(survey.bits), np.uint16)
    rest = np.empty((survey.nonzero, itemsize - 1), np.uint8)
    spare = _spare_bits(survey)
    at = 0
    for start, chunk in zip(range(0, len(symbols), CHUNK), survey.chunks(), strict=True):
        kept = chunk != 0
        top = exponents_of(chunk).astype(np.uint16) + has_zero - low
        symbols[start : start + CHUNK] = np.where(kept, top, 0)
        low_bytes = rotated(chunk)[kept].view(np.uint8).reshape(-1, itemsize)[:, :-1]
        rest[at : at + len(low_bytes)] = low_bytes
        at += len(low_bytes)
    head = bytes([has_zero, low, high, spare])
    tail = rest.reshape(-1).data if not spare else _pack_rest(rest, spare, survey.bits.dtype)
    return Parts(head, symbols, _powers(has_zero, low, high), [tail] if len(tail) else [])


def _read_exponent(cursor: Cursor, layout: Layout) -> Reading:
    has_zero, low, high, spare = cursor.take(4)
    itemsize = layout.dtype.itemsize
    if has_zero > 1 or low > high or itemsize < 2 or spare > 8 * itemsize - 9:
        raise FormatError(f"{cursor.what} is damaged: {itemsize}-byte elements with exponents from {low} to {high}")

    def join(cursor: Cursor, symbols: Symbols, _: Symbols | None) -> Bits:
        kept = symbols != 0 if has_zero else None
        count = len(symbols) if kept is None else int(np.count_nonzero(kept))
        rest = _take_rest(cursor, count, spare, layout.dtype)
        bits = np.zeros(len(symbols), layout.dtype)
        at = 0
        for start in range(0, len(symbols), CHUNK):
            chosen = slice(None) if kept is None else kept[start : start + CHUNK]
            top = symbols[start : start + CHUNK][chosen] - has_zero + low
            part = np.empty(len(top), layout.dtype)
            split = part.view(np.uint8).reshape(-1, itemsize)
            split[:, :-1] = rest[at : at + len(top)]
            split[:, -1] = top
            at += len(top)
            bits[start : start + CHUNK][chosen] = part >> part.dtype.type(1) | part << part.dtype.type(8 * itemsize - 1)
        return bits

    return Reading(_powers(has_zero, low, high), join)


def _spare_bits(survey: Survey) -> int:
    """How many of the lowest bits are zero in all elements, but for those of the most significant byte and the sign."""
    used = 0
    for chunk in survey.chunks():
        used |= int(np.bitwise_or.reduce(chunk))
        if used & 1:
            break
    most = 8 * survey.bits.dtype.itemsize - 9
    return min((used & -used).bit_length() - 1, most) if used else most


def _pack_rest(rest: Bits, spare: int, dtype: np.dtype[np.unsignedinteger]) -> bytes:
    """The low bytes of elements whose `spare` lowest bits but for the sign are zero, as fields without them."""
    whole = np.zeros(len(rest), dtype)
    whole.view(np.uint8).reshape(-1, dtype.itemsize)[:, :-1] = rest
    fields = whole >> dtype.type(spare + 1) << dtype.type(1) | whole & dtype.type(1)
    return pack_fields(fields, 8 * dtype.itemsize - 8 - spare)


def _take_rest(cursor: Cursor, count: int, spare: int, dtype: np.dtype[np.unsignedinteger]) -> Bits:
    """The low bytes of elements, shape [count, itemsize - 1]."""
    itemsize = dtype.itemsize
    if not spare:
        return np.frombuffer(cursor.take(count * (itemsize - 1)), np.uint8).reshape(-1, itemsize - 1)
    fields = np.zeros(count, dtype)
    unpack_fields(cursor, 8 * itemsize - 8 - spare, fields)
    whole: Bits = fields >> dtype.type(1) << dtype.type(spare + 1) | fields & dtype.type(1)
    return whole.view(np.uint8).reshape(-1, itemsize)[:, :-1]


def _powers(has_zero: int, low: int, high: int) -> Numbers:
    """The magnitudes of exponents: powers of two up to 2^15."""
    powers = 1 << np.maximum(np.arange(low, high + 1) - high + 15, 0)
    return np.concatenate([np.zeros(has_zero, np.int64), powers])


PALETTE = View(_split_palette, _read_palette)
EXPONENT = View(_split_exponent, _read_exponent)
_VIEWS = (PALETTE, EXPONENT)


# sparse: runs of zeros, and the nonzero elements by one of the views above


def encode_sparse(survey: Survey) -> Payload | None:
    """Codes the runs of zeros in the better scan order, and the nonzero elements by the first view that applies.

    Args:
        survey: of a tensor.

    Returns:
        The payload, or None where zeros are few.
    """
    if survey.follows_trellis or survey.runs is None:
        return None
    if len(survey.bits) > _SMALL and 4 * survey.nonzero > len(survey.bits):
        return None
    number = 0 if survey.palette is not None else 1
    if number == 1 and survey.bits.dtype.itemsize < 2:
        return None
    small = survey.nonzero <= _SMALL
    orders = (False, True) if small and 1 < survey.rows < len(survey.bits) else (survey.runs.down_columns,)
    mantissas = range(MOST_MANTISSA + 1) if small else (survey.runs.mantissa,)
    choices = (_coded_runs(survey, mantissa, down, number) for down in orders for mantissa in mantissas)
    return min((choice for choice in choices if choice), key=lambda payload: sum(map(len, payload)), default=None)


def _coded_runs(survey: Survey, mantissa: int, down: bool, number: int) -> Payload | None:
    gaps = np.concatenate(list(survey.gaps(down)))
    runs, widths = bucket(gaps, mantissa)
    alphabet = int(runs.max()) + 1
    parts = _VIEWS[number].split(survey.nonzeros(down))
    if alphabet > 256 or parts is None:
        return None
    encoder = AnsEncoder()
    encode_symbols(encoder, runs[None], Alphabet(alphabet))
    encode_symbols(encoder, parts.symbols[None], Alphabet(len(parts.magnitudes)))
    fields = gaps.astype(np.min_scalar_type(int(gaps.max())))
    head = bytes([mantissa | down << 3 | number << 4]) + varint(survey.nonzero) + bytes([alphabet - 1])
    return [head, parts.head, encoder.finish(), pack_fields(fields, widths.astype(np.uint8)), *parts.tail]


def decode_sparse(cursor: Cursor, layout: Layout) -> Bits:
    """The inverse of `encode_sparse`.

    Args:
        cursor: where the payload starts.
        layout: of the tensor.

    Returns:
        The elements.

    Raises:
        FormatError: the payload is damaged.
    """
    head, nonzero, alphabet = cursor.byte(), cursor.varint(), cursor.byte() + 1
    mantissa, down, number = head & 7, head >> 3 & 1, head >> 4
    if mantissa > MOST_MANTISSA or number > 1 or not 1 <= nonzero <= layout.count:
        raise FormatError(f"{cursor.what} is damaged: {nonzero} nonzero of {layout.count} elements, {mantissa} mantissa bits")
    reading = _VIEWS[number].read(cursor, replace(layout, count=nonzero, rows=1))
    decoder = AnsDecoder(cursor)
    buckets = decode_symbols(decoder, (1, nonzero), Alphabet(alphabet))[0]
    symbols = decode_symbols(decoder, (1, nonzero), Alphabet(len(reading.magnitudes)))[0]
    decoder.end()
    starts, widths = bucket_starts(int(buckets.max()) + 1, mantissa)
    if len(starts) > 62 << mantissa or int(starts[-1]) > layout.count:
        raise FormatError(f"{cursor.what} is damaged: a run of zeros is longer than the tensor")
    runs = starts.astype(np.uint64)[buckets]
    unpack_fields(cursor, widths[buckets], runs)
    values = reading.join(cursor, symbols, None)
    return _scatter(cursor, layout, runs, values, down=bool(down))


def _scatter(cursor: Cursor, layout: Layout, runs: npt.NDArray[np.uint64], values: Bits, *, down: bool) -> Bits:
    """Zeros, but for the values after their runs."""
    bits = np.zeros(layout.count, layout.dtype)
    last = -1
    for at in range(0, len(values), CHUNK):
        places = np.cumsum(runs[at : at + CHUNK].astype(np.int64) + 1) + last
        last = int(places[-1])
        if last >= layout.count:
            raise FormatError(f"{cursor.what} is damaged: its runs of zeros are longer than the tensor")
        columns = layout.shape[1]
        bits[places % layout.rows * columns + places // layout.rows if down else places] = values[at : at + CHUNK]
    return bits
