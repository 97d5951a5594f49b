"""A matrix of symbols, coded with statistics of what was coded before: no table is stored (SPEC.md §6.6).

The symbols are cut into tiles that grow, so that a few vector operations code each of them: what was counted in earlier tiles
gives the frequencies. What a decoder knows of an element beforehand is its context: each has counts of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featherweight.packaging.ans import TOTAL, AnsDecoder, AnsEncoder

__all__ = ["Alphabet", "decode_symbols", "encode_symbols", "quantize_frequencies"]

Numbers = npt.NDArray[np.int64]
Small = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.integer]
Tile = tuple[slice, slice]

_PRIOR = 32  # how many symbols of overall frequencies are imagined in each table
_MOST_COUNTED = 1 << 20
_FEWEST_IN_TILE = 16
_MOST_IN_TILE = 1 << 20
_FEWEST_IN_RUN, _MOST_IN_RUN = 1 << 6, 1 << 16  # the latter few enough for the caches


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The symbols 0 … size - 1, and their contexts, level · sides + side.

    Args:
        size: at least 1.
        sides: how many sides there are; a table begins as the mean of those of the same side.
        levels: how many levels there are; `sides` times `levels` is at most 256.
    """

    size: int
    sides: int = 1
    levels: int = 1


def encode_symbols(encoder: AnsEncoder, symbols: Symbols, alphabet: Alphabet, contexts: Small | None = None) -> None:
    """Codes a matrix of symbols.

    Args:
        encoder: where to.
        symbols: shape [rows, columns].
        alphabet: theirs.
        contexts: of each element, shaped as `symbols`; None if all have the same.
    """
    statistics = _Statistics(alphabet)
    symbols, contexts = _in_line(symbols, alphabet), None if contexts is None else _in_line(contexts, alphabet)
    for tile in _tiles(symbols.shape, alphabet):
        part = symbols[tile].reshape(-1)
        known = None if contexts is None else contexts[tile].reshape(-1)
        sorted_part = part[_order(known)].astype(np.int32)
        for batch, frequencies in statistics.batches(known, len(part)):
            encoder.put(sorted_part[batch], frequencies)
        statistics.count(known, part)


def decode_symbols(
    decoder: AnsDecoder, shape: tuple[int, int], alphabet: Alphabet, contexts: Small | None = None
) -> npt.NDArray[np.uint16]:
    """The inverse of `encode_symbols`.

    Args:
        decoder: where the symbols come from.
        shape: rows and columns.
        alphabet: as it was for encoding.
        contexts: likewise.

    Returns:
        The symbols, of the given shape.

    Raises:
        FormatError: the coded bytes are damaged.
    """
    found = np.empty(shape, np.uint16)
    statistics = _Statistics(alphabet)
    symbols, contexts = _in_line(found, alphabet), None if contexts is None else _in_line(contexts, alphabet)
    for tile in _tiles(symbols.shape, alphabet):
        target = symbols[tile]
        known = None if contexts is None else contexts[tile].reshape(-1)
        taken = [decoder.take(batch.stop - batch.start, each) for batch, each in statistics.batches(known, target.size)]
        part = np.empty(target.size, np.uint16)
        part[_order(known)] = taken[0] if len(taken) == 1 else np.concatenate(taken)
        statistics.count(known, part)
        target[:] = part.reshape(target.shape)
    return found


def quantize_frequencies(weights: Numbers) -> Numbers:
    """Frequencies in proportion to weights, at least 1 each; what rounding leaves goes to the first largest.

    Args:
        weights: at least 0, and one of each row above, below 2^39; shape [tables, alphabet].

    Returns:
        Integers, each row of which adds up to `TOTAL`.

    Example:
        >>> quantize_frequencies(np.array([[1, 2, 0]])).tolist()
        [[5592405, 11184810, 1]]
    """
    size = weights.shape[1]
    frequencies: Numbers = 1 + weights * (TOTAL - size) // weights.sum(1, keepdims=True)
    largest = (np.arange(len(frequencies)), frequencies.argmax(1))
    frequencies[largest] += TOTAL - frequencies.sum(1)
    return frequencies


def _in_line(matrix: Any, alphabet: Alphabet) -> Any:
    """With levels there is nothing more to learn of rows and columns: all elements are one row."""
    return matrix.reshape(1, -1) if alphabet.levels > 1 else matrix


def _order(contexts: Small | None) -> Any:
    """An index that sorts a tile by context."""
    return slice(None) if contexts is None else np.argsort(contexts, kind="stable")


class _Statistics:
    """What is known from earlier tiles: counts of symbols in each context."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._counts = np.zeros((alphabet.levels * alphabet.sides, alphabet.size), np.int64)
        self._seen = 0

    def batches(self, contexts: Small | None, count: int) -> Iterator[tuple[slice, Numbers]]:
        """Where the elements of each context are, once sorted, and their frequencies."""
        if contexts is None:
            yield slice(0, count), quantize_frequencies(self._counts + 1)[0]
            return
        sides = self._alphabet.sides
        sizes = np.bincount(contexts, minlength=len(self._counts))
        present = sizes.nonzero()[0]
        overall = quantize_frequencies(self._counts.reshape(-1, sides, self._alphabet.size).sum(0) + 1) >> 8
        tables = quantize_frequencies((self._counts[present] << 16) + _PRIOR * overall[present % sides])
        start = 0
        for size, frequencies in zip(sizes[present].tolist(), tables, strict=True):
            yield slice(start, start + size), frequencies
            start += size

    def count(self, contexts: Small | None, symbols: Symbols) -> None:
        """Ends a tile: its symbols are counted, old counts fade."""
        joint = symbols if contexts is None else contexts.astype(np.int32) * self._alphabet.size + symbols
        self._counts += np.bincount(joint, minlength=self._counts.size).reshape(self._counts.shape)
        self._seen += len(symbols)
        if self._seen >= _MOST_COUNTED:  # before that, no context can have so many
            self._counts[self._counts.sum(1) >= _MOST_COUNTED] >>= 1


def _tiles(shape: tuple[int, ...], alphabet: Alphabet) -> Iterator[Tile]:
    """Tiles from left to right and from top to bottom, larger and larger."""
    rows, columns = shape
    if alphabet.levels > 1:
        for left, right in _cuts(columns, _FEWEST_IN_RUN, 3, 1, _MOST_IN_RUN):
            yield slice(0, 1), slice(left, right)
        return
    least = max(1, _FEWEST_IN_TILE * 4 // max(columns, 1))
    for above, below in _cuts(rows, least, 1, 1, max(1, _MOST_IN_TILE // max(columns, 1))):
        height = below - above
        first = max(_FEWEST_IN_TILE // height, columns // 8 if rows > 1 else 0, 1)
        for left, right in _cuts(columns, first, 1, 1 if rows > 1 else 4, max(1, _MOST_IN_TILE // height)):
            yield slice(above, below), slice(left, right)


def _cuts(length: int, least: int, times: int, share: int, most: int) -> Iterator[tuple[int, int]]:
    """Parts of a line, each `times` / `share` times as long as all before it, at least `least` and at most `most`."""
    at = 0
    while at < length:
        end = min(length, at + min(max(least, times * at // share), most))
        yield at, end
        at = end
