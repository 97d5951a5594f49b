"""Finding the grid of a tensor: steps of which its values are integer multiples, bit for bit (SPEC.md §6.9).

Nobody says that a tensor was quantized; its bits do. A sample tells quickly that ordinary weights were not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["INTEGER", "KINDS", "MOST", "Bits", "Lattice", "find_lattice", "values_on"]

Bits = npt.NDArray[np.unsignedinteger]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int16]

MOST = 2**15 - 1
"""The largest magnitude of an integer."""

INTEGER = 4
"""The kind of elements that are integers themselves, in two's complement: their step is 1."""

_SAMPLE = 64
_RANGES = ((1, 8), (9, 256), (257, MOST))  # which multiple of its step a row's least magnitude may be; tried in turn
_MOST_HARD = 64  # rows that may need the last range
_MOST_TRIES = 64  # candidates for one row, largest step first


@dataclass(frozen=True, slots=True)
class Kind:
    """A floating-point type: bytes, bits of its significand, and the largest integers that convert to it exactly."""

    itemsize: int
    precision: int
    most: int


KINDS = {0: Kind(4, 24, MOST), 1: Kind(8, 53, MOST), 2: Kind(2, 11, 2048), 3: Kind(2, 8, 256)}
"""By number: float32, float64, float16, bfloat16."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A tensor as integers times steps.

    Args:
        kind: a key of `KINDS`, or `INTEGER`.
        steps: as bits of the kind, shape [1], or one for each row.
        integers: shape [rows, columns].
    """

    kind: int
    steps: Bits
    integers: Integers


def find_lattice(matrix: Bits) -> Lattice | None:
    """The grid that all elements are on, one for the tensor if there is, else one for each row.

    Args:
        matrix: elements as unsigned integers, shape [rows, columns].

    Returns:
        The grid, its steps as large as they can be; None if there is none.
    """
    kinds = [(number, kind) for number, kind in KINDS.items() if kind.itemsize == matrix.itemsize]
    found = [lattice for number, kind in kinds if (lattice := _find(matrix, number, kind))]
    if found:  # of two kinds of two bytes, the other one may fit by accident
        return min(found, key=lambda lattice: int(np.abs(lattice.integers).max()))
    signed = matrix.view(f"<i{matrix.itemsize}")
    if int(signed.min()) < -MOST or int(signed.max()) > MOST:
        return None
    return Lattice(INTEGER, np.ones(1, matrix.dtype), signed.astype(np.int16))


def values_on(kind: int, steps: Bits, integers: npt.NDArray[np.integer]) -> Bits:
    """The bits of integers times steps, rounded once to the kind.

    Args:
        kind: a key of `KINDS`, or `INTEGER`.
        steps: as bits, shape [1] or [rows].
        integers: shape [rows, columns].

    Returns:
        The elements, shape [rows, columns].
    """
    unsigned = steps.dtype
    if kind == INTEGER:
        return integers.astype(f"<i{unsigned.itemsize}").view(unsigned)
    with np.errstate(all="ignore"):  # a damaged file may have any steps
        wide = _floats(steps, kind)[:, None]
        if kind == 1:
            return (integers.astype(np.float64) * wide).view(unsigned)
        single = integers.astype(np.float32) * wide.astype(np.float32)
        if kind == 2:
            return single.astype("<f2").view(unsigned)
        if kind == 3:
            bits = single.view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(unsigned)
        return single.view(unsigned)


def _floats(bits: Bits, kind: int) -> Floats:
    if kind == 3:
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(f"<f{bits.itemsize}").astype(np.float64)


def _find(matrix: Bits, number: int, kind: Kind) -> Lattice | None:
    choices = [matrix]
    with np.errstate(all="ignore"):
        if len(matrix) > 1:
            first = int(np.argmax(matrix.any(1)))
            if not len(_row_steps(matrix[first : first + 1], number, kind)):
                return None  # plain weights
            choices.insert(0, matrix.reshape(1, -1)[:, :: matrix.size // 4096 | 1])  # odd: of all columns
        for rows in choices:
            steps = _row_steps(rows, number, kind)
            integers = _integers(matrix, steps, number, kind) if len(steps) else None
            if integers is not None:
                return Lattice(number, steps, integers)
    return None


def _integers(matrix: Bits, steps: Bits, number: int, kind: Kind) -> Integers | None:
    """The integers, if the steps fit; part by part, so that most misfits end soon."""
    integers = np.empty(matrix.shape, np.int16)
    height = max(1, (1 << 16) // matrix.shape[1])
    for at in range(0, len(matrix), height):
        part = matrix[at : at + height]
        some = steps if len(steps) == 1 else steps[at : at + height]
        found = np.rint(_floats(part, number) / _floats(some, number)[:, None])
        if not bool((np.abs(found) <= kind.most).all()):
            return None
        integers[at : at + height] = found
        if not np.array_equal(values_on(number, some, integers[at : at + height]), part):
            return None
    return integers


def _row_steps(rows: Bits, number: int, kind: Kind) -> Bits:
    """The largest step of each row as far as a sample tells, as bits; empty if some row has none."""
    magnitudes = np.abs(_floats(rows, number))
    least = np.where(magnitudes > 0, magnitudes, np.inf).min(1)
    greatest = magnitudes.max(1)
    steps = np.where(np.isinf(least), 1.0, np.nan)
    sample = np.concatenate([magnitudes[:, :: max(1, rows.shape[1] // _SAMPLE)][:, :_SAMPLE], greatest[:, None]], 1)
    for start, stop in _RANGES:
        pending = np.flatnonzero(np.isnan(steps))
        if stop == MOST and len(pending) > _MOST_HARD:
            return rows[:0, 0]
        for at in range(0, len(pending), max(1, (1 << 21) // (stop * sample.shape[1]))):
            some = pending[at : at + max(1, (1 << 21) // (stop * sample.shape[1]))]
            steps[some] = _multiples(sample[some], least[some], greatest[some], range(start, stop + 1), number, kind)
    return rows[:0, 0] if bool(np.isnan(steps).any()) else _bits_of(steps, number, kind)


def _multiples(sample: Floats, least: Floats, greatest: Floats, counts: range, number: int, kind: Kind) -> Floats:
    """Of each row the largest step of which the least magnitude is one of so many multiples; NaN where there is none."""
    row, place = np.nonzero(greatest[:, None] * np.arange(counts.start, counts.stop) <= kind.most * least[:, None] * 1.001)
    count = place + float(counts.start)
    for columns in (slice(-1, None), slice(0, 4), slice(4, -1)):  # the greatest first
        ratio = sample[row, columns] * (count / least[row])[:, None]
        fits = (np.abs(ratio - np.rint(ratio)) <= np.maximum(ratio, 1) * 2.0 ** (2 - kind.precision)).all(1)
        row, count = row[fits], count[fits]
    steps = np.full(len(least), np.nan)
    for _ in range(_MOST_TRIES):
        if not len(row):
            break
        rows, first = np.unique(row, return_index=True)  # nearly all rows are done with their first candidate
        nearest = _bits_of(least[rows] / count[first], number, kind)
        wanted = _bits_of(sample[rows], number, kind)
        for off in (-1, 0, 1):
            step = nearest + np.array(off).astype(nearest.dtype)
            integers = np.rint(sample[rows] / _floats(step, number)[:, None])
            right = (values_on(number, step, integers) == wanted).all(1)
            steps[rows[right]] = _floats(step, number)[right]
        left = np.isnan(steps[row])
        left[first] = False
        row, count = row[left], count[left]
    return steps


def _bits_of(values: Floats, number: int, kind: Kind) -> Bits:
    """Values as bits of a kind, rounded to nearest."""
    if number == 3:
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return values.astype(f"<f{kind.itemsize}").view(f"<u{kind.itemsize}")
