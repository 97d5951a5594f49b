"""What a coder must know about a tensor to tell its size without coding it: distinct values, exponents, runs of zeros.

All of it is counted chunk by chunk, so that a tensor of any size needs little more memory than it takes itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from featherweight.packaging.lattice import INTEGER, Bits, Lattice, find_lattice
from featherweight.packaging.runs import MOST_MANTISSA, best_mantissa, bucket
from featherweight.quantization.trellis import follows

__all__ = ["MOST_VALUES", "Bits", "Layout", "Palette", "Survey", "exponents_of", "rotated"]

Counts = npt.NDArray[np.int64]

CHUNK = 1 << 18
MOST_VALUES = 256
_SAMPLE = 4096
_FEWEST_ON_TRELLIS = 64  # nonzero integers that follow a trellis by chance once in 2^64
_FEWEST_ZEROS = 8  # one element in so many must be zero before runs of zeros are worth a look
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Layout:
    """What a decoder must know of the tensor: its element type (an unsigned integer), its size, and its rows as a matrix."""

    dtype: np.dtype[np.unsignedinteger]
    count: int
    rows: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.count // self.rows


class Palette:
    """At most 256 distinct values, with a perfect hash that finds the index of each.

    Args:
        values: the values, shape [k], distinct, 1 ≤ k ≤ 256; an index is a position in them.
    """

    def __init__(self, values: Bits) -> None:
        self.values = values
        self._item_bits = values.dtype.itemsize * 8
        self._slot_bits = min(16, self._item_bits)
        for attempt in range(256):
            self._factor = values.dtype.type((_GOLDEN >> 64 - self._item_bits) * (2 * attempt + 1) % (1 << self._item_bits) | 1)
            slots = self._slots(values)
            if len(np.unique(slots)) == len(values):
                break
        else:
            raise ValueError("no perfect hash for these values")
        self._index = np.zeros(1 << self._slot_bits, np.uint8)
        self._index[slots] = np.arange(len(values))

    def _slots(self, bits: Bits) -> Bits:
        return (bits * self._factor) >> bits.dtype.type(self._item_bits - self._slot_bits)

    def indices(self, bits: Bits) -> npt.NDArray[np.uint8]:
        """The index of each element, shape [n]; meaningless where the element is not among the values."""
        return self._index[self._slots(bits)]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How to code a tensor's runs of zeros: the bytes it takes, the buckets' mantissa bits, and the scan order."""

    size: int
    mantissa: int
    down_columns: bool


@dataclass(frozen=True, eq=False)
class Survey:
    """A tensor's bits and what is known about them.

    Args:
        bits: the elements as unsigned integers, row by row, shape [n].
        rows: of the matrix they form; divides n.
    """

    bits: Bits
    rows: int = 1

    @property
    def layout(self) -> Layout:
        """What a decoder will be told."""
        return Layout(self.bits.dtype, len(self.bits), self.rows)

    @cached_property
    def lattice(self) -> Lattice | None:
        """The grid that all elements are on."""
        return find_lattice(self.bits.reshape(self.layout.shape)) if len(self.bits) else None

    @cached_property
    def follows_trellis(self) -> bool:
        """Whether the integers of the grid follow the trellis, and not by chance."""
        if self.lattice is None or self.lattice.kind == INTEGER:
            return False
        integers = self.lattice.integers.reshape(-1)
        return bool(np.count_nonzero(integers) >= _FEWEST_ON_TRELLIS and follows(integers))

    @cached_property
    def payloads(self) -> dict[str, list[bytes | memoryview] | None]:
        """By coder: what was coded only to know its size, so that it need not be coded again; None where one cannot."""
        return {}

    def chunks(self, down_columns: bool = False) -> Iterator[Bits]:
        """The elements in one of the two scan orders, in pieces of bounded size."""
        if not down_columns:
            for start in range(0, len(self.bits), CHUNK):
                yield self.bits[start : start + CHUNK]
            return
        matrix = self.bits.reshape(self.rows, -1)
        step = max(1, CHUNK // self.rows)
        for start in range(0, matrix.shape[1], step):
            yield np.ascontiguousarray(matrix[:, start : start + step].T).reshape(-1)

    @cached_property
    def nonzero(self) -> int:
        """How many elements are not zero."""
        return int(np.count_nonzero(self.bits))

    @cached_property
    def palette(self) -> tuple[Bits, Counts] | None:
        """The distinct values, ascending, and how often each occurs; None if there are more than 256."""
        values, counts = self.bits[:0], np.zeros(0, np.int64)
        palette: Palette | None = None
        for chunk in self.chunks():
            while palette is None or not np.array_equal(values[indices := palette.indices(chunk)], chunk):
                strange = chunk if palette is None else chunk[values[indices] != chunk]
                grown = np.union1d(values, strange[:_SAMPLE])
                if len(grown) > MOST_VALUES:
                    return None
                places = np.searchsorted(grown, values)
                values, known, counts = grown, counts, np.zeros(len(grown), np.int64)
                counts[places] = known
                palette = Palette(values)
            counts += np.bincount(indices, minlength=len(values))
        return values, counts

    @cached_property
    def exponents(self) -> Counts:
        """How often each most significant byte occurs, after a rotation to the left by one bit; shape [256]."""
        counts = np.zeros(256, np.int64)
        for chunk in self.chunks():
            counts += np.bincount(exponents_of(chunk), minlength=256)
        return counts

    @cached_property
    def runs(self) -> RunPlan | None:
        """The best way to code the runs of zeros; None if zeros are few, or nothing else is there."""
        if self.nonzero == 0 or (len(self.bits) - self.nonzero) * _FEWEST_ZEROS < len(self.bits):
            return None
        orders = (False, True) if 1 < self.rows < len(self.bits) else (False,)
        return min((RunPlan(*best_mantissa(self._run_counts(order)), order) for order in orders), key=lambda plan: plan.size)

    def _run_counts(self, down_columns: bool) -> Counts:
        counts = np.zeros((64 - MOST_MANTISSA + 1) << MOST_MANTISSA, np.int64)
        for gaps in self.gaps(down_columns):
            counts += np.bincount(bucket(gaps, MOST_MANTISSA)[0], minlength=len(counts))
        return counts

    def gaps(self, down_columns: bool) -> Iterator[npt.NDArray[np.int64]]:
        """The number of zeros before each nonzero element, in pieces."""
        zeros = 0
        for chunk in self.chunks(down_columns):
            places = np.flatnonzero(chunk != 0)
            if len(places):
                gaps = np.diff(places, prepend=-1) - 1
                gaps[0] += zeros
                yield gaps
                zeros = len(chunk) - 1 - int(places[-1])
            else:
                zeros += len(chunk)

    def nonzeros(self, down_columns: bool) -> Survey:
        """The nonzero elements alone, in scan order."""
        kept = np.empty(self.nonzero, self.bits.dtype)
        at = 0
        for chunk in self.chunks(down_columns):
            part = chunk[chunk != 0]
            kept[at : at + len(part)] = part
            at += len(part)
        return Survey(kept)


def rotated(bits: Bits) -> Bits:
    """Each element rotated to the left by one bit: the sign of a floating-point number comes last, its exponent first.

    Args:
        bits: elements of any size, shape [n].

    Returns:
        The rotated elements, shape [n].
    """
    return bits << bits.dtype.type(1) | bits >> bits.dtype.type(8 * bits.dtype.itemsize - 1)


def exponents_of(bits: Bits) -> npt.NDArray[np.uint8]:
    """The most significant byte of each element, after a rotation to the left by one bit: a float32's exponent.

    Args:
        bits: elements of 2 bytes or more, shape [n].

    Returns:
        The bytes, shape [n].
    """
    return (bits >> bits.dtype.type(bits.dtype.itemsize * 8 - 9)).astype(np.uint8)
