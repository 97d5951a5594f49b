"""A matrix of symbols, coded with statistics of what was coded before: no table is stored (SPEC.md §6.6).

The matrix is cut into tiles that grow, so that a few vector operations code each of them: all that is known from earlier tiles
gives the frequencies. Weights differ in scale from row to row and from column to column, so where it pays, the magnitudes seen
so far in an element's row and column tell which of 28 frequency tables codes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featherweight.packaging.ans import TOTAL, AnsDecoder, AnsEncoder

__all__ = ["Alphabet", "decode_symbols", "encode_symbols"]

Numbers = npt.NDArray[np.int64]
Small = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.integer]
Tile = tuple[slice, slice]

_LEVELS = 28
_SHIFT = 3  # eighths of an octave that share a table: a whole octave
_FRACTION = 12  # bits after the point of a mean magnitude
_SHY = 2  # how many elements of average magnitude are imagined in each row and column
_PRIOR = 32  # how many symbols of overall frequencies are imagined in each table
_MOST_COUNTED = 1 << 20
_FEWEST_IN_TILE = 16
_MOST_IN_TILE = 1 << 20


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The symbols 0 … size - 1.

    Args:
        size: at least 1.
        magnitudes: of each symbol, below 2^16, shape [size]: contexts are made from them. None: all elements have one context.
        sides: how many values `sides` of the functions below may have.
    """

    size: int
    magnitudes: Numbers | None = None
    sides: int = 1


def encode_symbols(encoder: AnsEncoder, symbols: Symbols, alphabet: Alphabet, sides: Small | None = None) -> None:
    """Codes a matrix of symbols.

    Args:
        encoder: where to.
        symbols: shape [rows, columns].
        alphabet: theirs.
        sides: what else a decoder knows about each element beforehand, below `alphabet.sides`, shaped as `symbols`.
    """
    statistics = _Statistics(symbols.shape, alphabet)
    for tile in _tiles(*symbols.shape):
        part = symbols[tile].reshape(-1)
        contexts = statistics.contexts(tile, None if sides is None else sides[tile])
        order = _order(contexts)
        sorted_part = part[order].astype(np.int32)
        for batch, frequencies in statistics.batches(contexts, len(part)):
            encoder.put(sorted_part[batch], frequencies)
        statistics.count(tile, contexts, part)


def decode_symbols(
    decoder: AnsDecoder, shape: tuple[int, int], alphabet: Alphabet, sides: Small | None = None
) -> npt.NDArray[np.uint16]:
    """The inverse of `encode_symbols`.

    Args:
        decoder: where the symbols come from.
        shape: rows and columns.
        alphabet: as it was for encoding.
        sides: likewise.

    Returns:
        The symbols, of the given shape.

    Raises:
        FormatError: the coded bytes are damaged.
    """
    symbols = np.empty(shape, np.uint16)
    statistics = _Statistics(shape, alphabet)
    for tile in _tiles(*shape):
        known = symbols[tile]
        contexts = statistics.contexts(tile, None if sides is None else sides[tile])
        sorted_part = [decoder.take(batch.stop - batch.start, each) for batch, each in statistics.batches(contexts, known.size)]
        part = np.empty(known.size, np.uint16)
        part[_order(contexts)] = sorted_part[0] if len(sorted_part) == 1 else np.concatenate(sorted_part)
        statistics.count(tile, contexts, part)
        known[:] = part.reshape(known.shape)
    return symbols


def _order(contexts: Small | None) -> Any:
    """An index that sorts a tile by context."""
    return slice(None) if contexts is None else np.argsort(contexts, kind="stable")


class _Statistics:
    """What is known from earlier tiles: counts of symbols in each context, magnitudes of rows and columns."""

    def __init__(self, shape: tuple[int, ...], alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._sided = alphabet.sides > 1
        levels = 1 if alphabet.magnitudes is None else _LEVELS
        self._counts = np.zeros((levels * alphabet.sides, alphabet.size), np.int64)
        self._lines = [np.zeros((2, size), np.int64) for size in shape]  # of each row, of each column: magnitudes, elements
        self._magnitude = self._elements = 0

    def contexts(self, tile: Tile, sides: Small | None) -> Small | None:
        """The context of each element of a tile, shape [n]; None if all have the same."""
        found: Small | None = None
        if self._alphabet.magnitudes is not None:
            mean = (self._magnitude << _FRACTION) // max(self._elements, 1) + 1
            rows, columns = (
                _level(((lines[0, part] << _FRACTION) + _SHY * mean) // (lines[1, part] + _SHY) + 1)
                for lines, part in zip(self._lines, tile, strict=True)
            )
            sums = np.add.outer(rows, columns - _level(np.array([mean])))
            found = np.minimum(np.maximum(sums >> _SHIFT, 0), _LEVELS - 1).astype(np.uint8).reshape(-1)
        if sides is None:
            return found
        return sides.reshape(-1) if found is None else found * np.uint8(self._alphabet.sides) + sides.reshape(-1)

    def batches(self, contexts: Small | None, count: int) -> Iterator[tuple[slice, Numbers]]:
        """Where the elements of each context are, once sorted, and their frequencies."""
        if contexts is None:
            yield slice(0, count), _frequencies(self._counts + 1)[0]
            return
        sides = self._alphabet.sides
        sizes = np.bincount(contexts, minlength=len(self._counts))
        present = sizes.nonzero()[0]
        overall = _frequencies(self._counts.reshape(-1, sides, self._alphabet.size).sum(0) + 1) >> 8
        tables = _frequencies((self._counts[present] << 16) + _PRIOR * overall[present % sides])
        start = 0
        for size, frequencies in zip(sizes[present].tolist(), tables, strict=True):
            yield slice(start, start + size), frequencies
            start += size

    def count(self, tile: Tile, contexts: Small | None, symbols: Symbols) -> None:
        """Ends a tile: its symbols are counted, old counts fade, its magnitudes are added to those of its rows and columns."""
        size = self._alphabet.size
        joint = symbols if contexts is None else contexts.astype(np.int32) * size + symbols
        self._counts += np.bincount(joint, minlength=self._counts.size).reshape(self._counts.shape)
        self._counts[self._counts.sum(1) >= _MOST_COUNTED] >>= 1
        if self._alphabet.magnitudes is None:
            return
        sizes = [part.stop - part.start for part in tile]
        magnitudes = self._alphabet.magnitudes[symbols].reshape(sizes)
        for axis, part in enumerate(tile):
            self._lines[axis][0, part] += magnitudes.sum(1 - axis)
            self._lines[axis][1, part] += sizes[1 - axis]
        self._magnitude += int(magnitudes.sum())
        self._elements += magnitudes.size


def _tiles(rows: int, columns: int) -> Iterator[Tile]:
    """Tiles from left to right and from top to bottom, larger and larger."""
    if not columns:
        return
    least = max(1, _FEWEST_IN_TILE * 4 // columns)
    for above, below in _cuts(rows, least, 1, max(1, _MOST_IN_TILE // columns)):
        height = below - above
        first = max(_FEWEST_IN_TILE // height, columns // 8 if rows > 1 else 0, 1)
        for left, right in _cuts(columns, first, 1 if rows > 1 else 4, max(1, _MOST_IN_TILE // height)):
            yield slice(above, below), slice(left, right)


def _cuts(length: int, least: int, slowness: int, most: int) -> Iterator[tuple[int, int]]:
    """Parts of a line, each as long as all before it, divided by `slowness`, at least `least` and at most `most`."""
    at = 0
    while at < length:
        end = min(length, at + min(max(least, at // slowness), most))
        yield at, end
        at = end


def _frequencies(weights: Numbers) -> Numbers:
    """Frequencies in proportion to the weights of each row, at least 1 each; what rounding leaves goes to the first largest."""
    size = weights.shape[1]
    frequencies: Numbers = 1 + weights * (TOTAL - size) // weights.sum(1, keepdims=True)
    largest = (np.arange(len(frequencies)), frequencies.argmax(1))
    frequencies[largest] += TOTAL - frequencies.sum(1)
    return frequencies


def _level(numbers: Numbers) -> Numbers:
    """Eight times the binary logarithm, roughly: 8·e + ⌊8 · (x - 2^e) / 2^e⌋ with e = ⌊log2 x⌋, for x from 1 to 2^53."""
    return (numbers.astype(np.float64).view(np.int64) >> 49) - 8 * 1023
