"""The view of a tensor on a grid: steps, and integers as symbols, along a trellis if they follow one (SPEC.md §6.8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.bits import pack_fields, unpack_fields
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.lattice import INTEGER, KINDS, MOST, values_on
from featherweight.packaging.modelled import EXPONENT, PALETTE, Numbers, Parts, Reading, Symbols, View, decode_view, encode_view
from featherweight.packaging.runs import bucket, bucket_starts
from featherweight.packaging.survey import Bits, Layout, Survey
from featherweight.quantization.trellis import parities, quantizers

__all__ = ["GRID"]

Integers = npt.NDArray[np.signedinteger]

_MANTISSA = 4
_TRELLIS, _PER_ROW = 8, 16
_STEP_VIEWS = {32: PALETTE, 64: EXPONENT}


def _split(survey: Survey) -> Parts | None:
    found = survey.lattice
    if found is None:
        return None
    integers = found.integers.reshape(-1)
    odd = parities(integers) if survey.follows_trellis else None
    flags = found.kind | _TRELLIS * (odd is not None) | _PER_ROW * (len(found.steps) > 1)
    steps = [] if found.kind == INTEGER else [found.steps.tobytes()]
    for number, view in _STEP_VIEWS.items() if len(found.steps) > 1 else ():
        coded = encode_view(Survey(found.steps), view)
        if coded and sum(map(len, coded)) < len(b"".join(steps)):
            steps, flags = [b"".join(coded)], flags & 31 | number
    symbols, widths, fields = _symbols(integers if odd is None else _halves(integers))
    alphabet = int(symbols.max()) + 1
    return Parts(
        bytes([flags]) + b"".join(steps) + bytes([alphabet - 1]),
        symbols,
        _magnitudes(alphabet),
        [pack_fields(fields, widths)],
        parities=odd,
        sides=None if odd is None else _sides(odd),
    )


def _read(cursor: Cursor, layout: Layout) -> Reading:
    flags = cursor.byte()
    kind, stored = flags & 7, flags & 96
    known = kind == INTEGER or (kind in KINDS and KINDS[kind].itemsize == layout.dtype.itemsize)
    if not known or flags > 127 or stored == 96 or (kind == INTEGER and flags & ~_TRELLIS != kind):
        raise FormatError(f"{cursor.what} is damaged: a grid of kind {flags} for elements of {layout.dtype.itemsize} bytes")
    steps = _read_steps(cursor, Layout(layout.dtype, layout.rows if flags & _PER_ROW else 1), flags)
    alphabet = cursor.byte() + 1
    starts, widths = bucket_starts(alphabet, _MANTISSA)

    def join(cursor: Cursor, symbols: Symbols, odd: Bits | None) -> Bits:
        folded = starts.astype(np.uint16)[symbols]
        unpack_fields(cursor, widths[symbols], folded)
        integers = (folded >> 1).astype(np.int16) ^ -(folded & 1).astype(np.int16)
        if odd is not None:
            integers = _wholes(integers, odd)
        return values_on(kind, steps, integers.reshape(layout.shape)).reshape(-1)

    if int(starts[-1] + (1 << int(widths[-1]))) > 1 << 16:
        raise FormatError(f"{cursor.what} is damaged: the integers of its grid are larger than {MOST}")
    return Reading(_magnitudes(alphabet), join, _sides if flags & _TRELLIS else None)


GRID = View(_split, _read)


def _read_steps(cursor: Cursor, layout: Layout, flags: int) -> Bits:
    if flags & 7 == INTEGER:
        return np.ones(1, layout.dtype)
    if view := _STEP_VIEWS.get(flags & 96):
        return decode_view(cursor, layout, view)
    return np.frombuffer(cursor.take(layout.count * layout.dtype.itemsize), layout.dtype)


def _symbols(integers: Integers) -> tuple[Symbols, Symbols, Symbols]:
    """Buckets of integers, folded to 0, -1, 1, -2, …; the number of plain bits of each, and the bits."""
    folded = (integers.astype(np.int32) << 1 ^ integers.astype(np.int32) >> 31).astype(np.uint16)
    table, widths = bucket(np.arange(int(folded.max()) + 1), _MANTISSA)
    return table.astype(np.uint8)[folded], widths.astype(np.uint8)[folded], folded


def _magnitudes(alphabet: int) -> Numbers:
    return bucket_starts(alphabet, _MANTISSA)[0] + 1 >> 1


# On a trellis an integer n stands for the index k of its quantizer: n = 2k, or 2k - sign(k). The parities of all k are coded
# first, for they tell all quantizers; then what remains of each k, ⌊k / 2⌋.


def _halves(integers: Integers) -> Integers:
    halves: Integers = (integers.astype(np.int32) + np.sign(integers) * (integers & 1)) >> 2
    return halves


def _wholes(halves: Integers, odd: Bits) -> Integers:
    """The inverse of `_halves`."""
    index = (halves.astype(np.int32) << 1) + odd
    wholes: Integers = ((index << 1) - np.sign(index) * quantizers(odd.astype(np.uint8))).astype(np.int16)
    return wholes


def _sides(odd: Bits) -> Bits:
    return odd + 2 * quantizers(odd.astype(np.uint8))
