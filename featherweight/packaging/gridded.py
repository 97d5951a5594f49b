"""The view of a tensor on a grid: steps, and integers as symbols, along a trellis if they follow one (SPEC.md §6.9)."""

from __future__ import annotations

from collections.abc import Iterator

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
_PART = 1 << 16
_TRELLIS, _PER_ROW = 8, 16
_STEP_VIEWS = {32: PALETTE, 64: EXPONENT}


def _split(survey: Survey) -> Parts | None:
    found = survey.lattice
    if found is None:
        return None
    flags = found.kind | _TRELLIS * survey.follows_trellis | _PER_ROW * (len(found.steps) > 1)
    steps = [] if found.kind == INTEGER else [found.steps.tobytes()]
    for number, view in _STEP_VIEWS.items() if len(found.steps) > 1 else ():
        coded = encode_view(Survey(found.steps), view)
        if coded and sum(map(len, coded)) < len(b"".join(steps)):
            steps, flags = [b"".join(coded)], flags & 31 | number
    folded, odd, sides = _fold(found.integers.reshape(-1), survey.follows_trellis)
    table, widths = bucket(np.arange(int(folded.max()) + 1), _MANTISSA)
    alphabet = int(table[-1]) + 1
    return Parts(
        bytes([flags]) + b"".join(steps) + bytes([alphabet - 1]),
        _looked_up(table.astype(np.uint8), folded),
        _magnitudes(alphabet),
        [pack_fields(folded, _looked_up(widths.astype(np.uint8), folded))] if widths.any() else [],
        parities=odd,
        sides=sides,
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
        folded = _looked_up(starts.astype(np.uint16), symbols)
        if widths.any():
            unpack_fields(cursor, _looked_up(widths, symbols), folded)
        integers = _unfold(folded, odd).reshape(layout.shape)
        bits = np.empty(layout.shape, layout.dtype)
        height = max(1, _PART // layout.shape[1])
        for at in range(0, len(bits), height):
            rows = slice(at, at + height)
            bits[rows] = values_on(kind, steps if len(steps) == 1 else steps[rows], integers[rows])
        return bits.reshape(-1)

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


def _magnitudes(alphabet: int) -> Numbers:
    return bucket_starts(alphabet, _MANTISSA)[0] + 1 >> 1


# On a trellis an integer n stands for the index k of its quantizer: n = 2k, or 2k - sign(k). The parities of all k are coded
# first, for they tell all quantizers; then what remains of each k, ⌊k / 2⌋. All goes part by part, for what the caches hold is
# twice as fast.


def _parts(count: int) -> Iterator[slice]:
    """Parts that end where the trellis starts anew."""
    return (slice(at, at + _PART) for at in range(0, count, _PART))


def _looked_up(table: Symbols, indices: Symbols) -> Symbols:
    found = np.empty(len(indices), table.dtype)
    for part in _parts(len(indices)):
        np.take(table, indices[part], out=found[part], mode="clip")  # unlike other modes it does not buffer
    return found


def _fold(integers: Integers, follows_trellis: bool) -> tuple[Symbols, Bits | None, Bits | None]:
    """Integers folded to 0, -1, 1, -2, …; or what remains of those on a trellis, their parities, and what these tell."""
    folded = np.empty(len(integers), np.uint16)
    odd, sides = (np.empty(len(integers), np.uint8) if follows_trellis else None for _ in range(2))
    for part in _parts(len(integers)):
        left = integers[part].astype(np.int32)
        if odd is not None and sides is not None:
            odd[part] = parities(integers[part])
            sides[part] = _sides(odd[part])
            left = (left + np.sign(left) * (left & 1)) >> 2
        folded[part] = left << 1 ^ left >> 31
    return folded, odd, sides


def _unfold(folded: Symbols, odd: Bits | None) -> Integers:
    """The inverse of `_fold`."""
    integers = np.empty(len(folded), np.int16)
    for part in _parts(len(folded)):
        left = (folded[part] >> 1).astype(np.int32) ^ -(folded[part] & 1).astype(np.int32)
        if odd is not None:
            index = (left << 1) + odd[part]
            left = (index << 1) - np.sign(index) * quantizers(odd[part])
        integers[part] = left
    return integers


def _sides(odd: Bits) -> Bits:
    sides = quantizers(odd)
    sides <<= 1
    sides += odd
    return sides
