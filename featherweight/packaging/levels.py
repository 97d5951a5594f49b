"""Symbols whose contexts are known beforehand: stored levels of rows and columns tell how large an element is likely to be.

Weights differ in scale from row to row and from column to column. What was coded before would tell the scales too, but only if
a matrix were coded in many small parts, which takes twice the time, and saves 0.2 % on an ImageNet network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.ans import AnsDecoder, AnsEncoder
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.symbols import Alphabet, decode_symbols, encode_symbols, quantize_frequencies

__all__ = ["Levels", "decode_parities", "encode_parities", "find_levels", "read_levels", "write_levels"]

Numbers = npt.NDArray[np.int64]
Small = npt.NDArray[np.uint8]

_LEVELS = 16  # of a row, and of a column
_BLOCK = 1 << 16
_CHANCE = 8.0  # added to the sum of a line's magnitudes
_EVEN = 8  # sixteenths of the parities that are odd, where they are not worth coding


@dataclass(frozen=True, eq=False)
class Levels:
    """How large the elements of each row and of each column are, in half octaves.

    Args:
        rows: below 16, shape [rows].
        columns: likewise, shape [columns].
    """

    rows: Small
    columns: Small

    def alphabet(self, plain: Alphabet) -> Alphabet:
        """That of symbols with these levels, given that without."""
        return replace(plain, levels=2 * _LEVELS - 1)

    def contexts(self, sides: Small | None = None) -> Small:
        """Of each element the sum of both levels; or 4 times that, plus a side below 4, if there are sides; [rows, columns]."""
        if sides is None:
            return np.add.outer(self.rows, self.columns)
        return np.add.outer(4 * self.rows, 4 * self.columns) + sides


def find_levels(symbols: npt.NDArray[np.integer], magnitudes: Numbers, parities: Small | None = None) -> Levels:
    """The levels of a matrix, the sixteen highest of its rows and of its columns told apart.

    Args:
        symbols: shape [rows, columns].
        magnitudes: of each symbol, shape [alphabet].
        parities: what else belongs to an element's magnitude: it is twice the symbol's, and its parity; [rows, columns].

    Returns:
        Levels.

    Example:
        >>> levels = find_levels(np.array([[10, 20], [40, 80]]), np.arange(81))
        >>> levels.rows.tolist(), levels.columns.tolist()
        ([11, 15], [13, 15])
    """
    table = magnitudes.astype(np.int32)
    rows, columns = (np.zeros(size, np.int64) for size in symbols.shape)
    height = max(1, _BLOCK // max(1, len(columns)))
    for at in range(0, len(rows), height):
        sizes = table[symbols[at : at + height]]
        if parities is not None:
            sizes = 2 * sizes + parities[at : at + height]
        rows[at : at + height] = sizes.sum(1)
        columns += sizes.sum(0)
    return Levels(_half_octaves(rows), _half_octaves(columns))


def _half_octaves(sums: Numbers) -> Small:
    """Levels of lines, given their sums of magnitudes; those of small sums hardly differ, for chance made them."""
    halves = np.rint(2 * np.log2(sums + _CHANCE))
    levels: Small = np.maximum(halves - halves.max(initial=0) + _LEVELS - 1, 0).astype(np.uint8)
    return levels


def write_levels(encoder: AnsEncoder, levels: Levels) -> None:
    """Codes levels.

    Args:
        encoder: where to.
        levels: of rows and columns.
    """
    for line in (levels.rows, levels.columns):
        encode_symbols(encoder, line[None], Alphabet(_LEVELS))


def read_levels(decoder: AnsDecoder, shape: tuple[int, int]) -> Levels:
    """The inverse of `write_levels`.

    Args:
        decoder: where they come from.
        shape: rows and columns.

    Returns:
        Levels.

    Raises:
        FormatError: the coded bytes are damaged.
    """
    rows, columns = (decode_symbols(decoder, (1, size), Alphabet(_LEVELS))[0].astype(np.uint8) for size in shape)
    return Levels(rows, columns)


def encode_parities(encoder: AnsEncoder, parities: Small) -> bytes:
    """Codes bits, eight to a symbol; where about half of them are ones, as they are.

    Args:
        encoder: where to, unless they are stored.
        parities: 0 or 1, any shape.

    Returns:
        What goes before the coded symbols: u8 sixteenths of ones, and the bits if they are stored.
    """
    packed = np.packbits(parities.reshape(-1), bitorder="little")
    ones = min(max(round(16 * int(np.count_nonzero(parities)) / max(parities.size, 1)), 1), 15)
    if ones == _EVEN:
        return bytes([ones]) + packed.tobytes()
    encoder.put(packed.astype(np.int32), _frequencies_of_bytes(ones))
    return bytes([ones])


def decode_parities(cursor: Cursor, decoder: AnsDecoder, count: int) -> Small:
    """The inverse of `encode_parities`.

    Args:
        cursor: where what goes before is.
        decoder: of the symbols.
        count: how many bits.

    Returns:
        0 or 1, shape [count].

    Raises:
        FormatError: the bytes are damaged.
    """
    ones, size = cursor.byte(), (count + 7) // 8
    if not 1 <= ones <= 15:
        raise FormatError(f"{cursor.what} is damaged: {ones} sixteenths of its parities are odd")
    if ones == _EVEN:
        packed = np.frombuffer(cursor.take(size), np.uint8)
    else:
        packed = decoder.take(size, _frequencies_of_bytes(ones)).astype(np.uint8)
    if count % 8 and packed[-1] >> (count % 8):
        raise FormatError(f"{cursor.what} has padding that is not zero")
    return np.unpackbits(packed, count=count, bitorder="little")


def _frequencies_of_bytes(ones: int) -> Numbers:
    """Of all bytes, if each of their bits is one in `ones` of 16 cases."""
    counts = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int64)
    weights: Numbers = ones**counts * (16 - ones) ** (8 - counts)
    frequencies: Numbers = quantize_frequencies(weights[None])[0]
    return frequencies
