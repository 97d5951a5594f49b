"""The ways to code a matrix of symbols, with parities and what they tell (SPEC.md §6.7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.ans import AnsDecoder, AnsEncoder
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.levels import Levels, decode_parities, encode_parities, find_levels, read_levels, write_levels
from featherweight.packaging.symbols import Alphabet, decode_symbols, encode_symbols

__all__ = ["LEVELLED", "PLAIN", "Matrix", "Sides", "decode_matrix", "encode_matrix", "ideal_bits"]

Numbers = npt.NDArray[np.int64]
Small = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.unsignedinteger]
Sides = Callable[[Small], Small]

PLAIN, LEVELLED = 0, 2
"""The ways: elements differ by their sides at most, or by levels of their rows and columns too. (1 was a third one.)"""

_SMALL = 1 << 11  # so many symbols are coded both ways; of more, an estimate says which
_BLOCK, _SAMPLE = 1 << 16, 1 << 20
_WORTH = 0.01  # of the symbols' bits levels must save, for they take time


@dataclass(frozen=True, eq=False)
class Matrix:
    """Symbols, and what goes with them.

    Args:
        symbols: shape [rows, columns].
        magnitudes: of each symbol, below 2^16, shape [alphabet].
        parities: 0 or 1, what is coded before the symbols; [rows, columns].
        sides: what the parities tell about each element, below 4; [rows, columns].
    """

    symbols: Symbols
    magnitudes: Numbers
    parities: Small | None = None
    sides: Small | None = None

    @property
    def alphabet(self) -> Alphabet:
        """That of the symbols."""
        return Alphabet(len(self.magnitudes), sides=1 if self.sides is None else 4)


def encode_matrix(matrix: Matrix, *, levels: bool) -> tuple[int, bytes]:
    """Codes a matrix in the way that is smallest, or, where it has many symbols, seems to be.

    Args:
        matrix: of at least one element.
        levels: whether it may have levels.

    Returns:
        `PLAIN` or `LEVELLED`, and the bytes.
    """
    if not levels:
        return PLAIN, _encode_plain(matrix)
    found = find_levels(matrix.symbols, matrix.magnitudes, matrix.parities)
    if matrix.symbols.size > _SMALL:
        return (LEVELLED, _encode_levelled(matrix, found)) if _is_worth(matrix, found) else (PLAIN, _encode_plain(matrix))
    ways = {PLAIN: _encode_plain(matrix), LEVELLED: _encode_levelled(matrix, found)}
    return min(ways.items(), key=lambda way: len(way[1]))


def _encode_plain(matrix: Matrix) -> bytes:
    encoder = AnsEncoder()
    if matrix.parities is not None:
        encode_symbols(encoder, matrix.parities, Alphabet(2))
    encode_symbols(encoder, matrix.symbols, matrix.alphabet, matrix.sides)
    return encoder.finish()


def _encode_levelled(matrix: Matrix, levels: Levels) -> bytes:
    encoder = AnsEncoder()
    front = b"" if matrix.parities is None else encode_parities(encoder, matrix.parities)
    write_levels(encoder, levels)
    encode_symbols(encoder, matrix.symbols, levels.alphabet(matrix.alphabet), levels.contexts(matrix.sides))
    return front + encoder.finish()


def _is_worth(matrix: Matrix, levels: Levels) -> bool:
    """Whether levels save more than they take, as far as a sample of the rows tells."""
    contexts = levels.contexts()
    joint = np.zeros((int(contexts.max()) + 1, len(matrix.magnitudes)), np.int64)
    height = max(1, _BLOCK // matrix.symbols.shape[1])
    for at in range(0, len(contexts), height * max(1, matrix.symbols.size // _SAMPLE)):
        cells = contexts[at : at + height].astype(np.int32) * joint.shape[1] + matrix.symbols[at : at + height]
        joint += np.bincount(cells.reshape(-1), minlength=joint.size).reshape(joint.shape)
    plain, lines = ideal_bits(joint.sum(0)), sum(ideal_bits(np.bincount(line)) for line in (levels.rows, levels.columns))
    return ideal_bits(joint) + lines * int(joint.sum()) / matrix.symbols.size < (1 - _WORTH) * plain


def ideal_bits(counts: Numbers) -> float:
    """What symbols would take if their frequencies were known.

    Args:
        counts: how often each occurs, in each context if there are several, shape [..., alphabet].

    Returns:
        Bits.

    Example:
        >>> ideal_bits(np.array([[3, 3, 0], [0, 0, 5]]))
        6.0
    """
    totals = np.broadcast_to(counts.sum(-1, keepdims=True), counts.shape)[counts > 0]
    return float((counts[counts > 0] * np.log2(totals / counts[counts > 0])).sum())


def decode_matrix(
    cursor: Cursor, way: int, shape: tuple[int, int], size: int, sides: Sides | None
) -> tuple[npt.NDArray[np.uint16], Small | None]:
    """The inverse of `encode_matrix`.

    Args:
        cursor: where the bytes start.
        way: `PLAIN` or `LEVELLED`.
        shape: rows and columns.
        size: of the alphabet.
        sides: what the parities tell; None where there are no parities.

    Returns:
        The symbols, and the parities, both of shape [n].

    Raises:
        FormatError: the bytes are damaged.
    """
    if way not in (PLAIN, LEVELLED):
        raise FormatError(f"{cursor.what} is damaged: it does not tell how its symbols are modelled")
    decoder, parities, known = AnsDecoder(cursor), None, None
    if sides is not None and way == PLAIN:
        parities = decode_symbols(decoder, shape, Alphabet(2)).astype(np.uint8).reshape(-1)
    elif sides is not None:
        parities = decode_parities(cursor, decoder, shape[0] * shape[1])
    if sides is not None and parities is not None:
        known = sides(parities).reshape(shape)
    alphabet = Alphabet(size, sides=1 if known is None else 4)
    if way == LEVELLED:
        levels = read_levels(decoder, shape)
        alphabet, known = levels.alphabet(alphabet), levels.contexts(known)
    symbols = decode_symbols(decoder, shape, alphabet, known)
    decoder.end()
    return symbols.reshape(-1), parities
