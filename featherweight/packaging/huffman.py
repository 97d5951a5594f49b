"""Canonical Huffman codes of at most 12 bits over an alphabet of at most 256 symbols (SPEC.md §6.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.bits import pack_fields
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.streams import LONGEST, Symbols, decode_streams, encode_streams, streams_size

__all__ = ["ABSENT", "code_lengths", "decode_symbols", "encode_symbols", "symbols_size"]

Counts = npt.NDArray[np.int64]

ABSENT = LONGEST + 1
"""Stands for the length of a symbol that does not occur."""

_FIRST_GUESS = 4


def code_lengths(counts: Sequence[int], longest: int = LONGEST) -> list[int]:
    """The code lengths that code the most compactly, none above `longest`.

    The package-merge algorithm of Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes" (J. ACM,
    1990); on a tie, single symbols go before packages and lower symbols before higher ones.

    Args:
        counts: how often each symbol occurs, at least one of them nonzero, at most 2^longest.
        longest: in bits.

    Returns:
        A length for each symbol; `ABSENT` where the count is 0, and 0 for an only symbol.

    Example:
        >>> code_lengths([4, 1, 0, 2])
        [1, 2, 13, 2]
    """
    lengths = [ABSENT if count == 0 else 0 for count in counts]
    leaves = sorted(((count, [symbol]) for symbol, count in enumerate(counts) if count), key=lambda item: item[0])
    if len(leaves) == 1:
        return lengths
    packages: list[tuple[int, list[int]]] = []
    for _ in range(longest):
        merged = sorted(leaves + packages, key=lambda item: item[0])
        packages = [(a + b, x + y) for (a, x), (b, y) in zip(merged[::2], merged[1::2], strict=False)]
    for _, symbols in packages[: len(leaves) - 1]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def symbols_size(counts: Counts, lengths: Sequence[int]) -> int:
    """The bytes `encode_symbols` takes for symbols that occur `counts` times (see `streams_size` for how exact).

    Args:
        counts: how often each symbol occurs, shape [alphabet].
        lengths: of each symbol's code, as `code_lengths` gives them.

    Returns:
        A number of bytes.
    """
    bits = sum(length * count for length, count in zip(lengths, counts.tolist(), strict=True) if count)
    return len(_encode_lengths(lengths)) + (streams_size(int(counts.sum()), bits) if bits else 0)


def encode_symbols(symbols: Symbols, lengths: Sequence[int]) -> bytes:
    """Code lengths and coded symbols.

    Args:
        symbols: shape [n], n ≥ 1.
        lengths: of each symbol's code, as `code_lengths` gives them.

    Returns:
        The bytes.
    """
    head = _encode_lengths(lengths)
    if 0 in lengths:
        return head
    codes = np.zeros(len(lengths), np.uint16)
    for symbol, code in _canonical_codes(lengths):
        codes[symbol] = code << 4 | lengths[symbol]
    return head + encode_streams(symbols, codes)


def decode_symbols(cursor: Cursor, count: int, alphabet: int) -> Symbols:
    """The inverse of `encode_symbols`: `count` ≥ 1 symbols below `alphabet`.

    Args:
        cursor: where the code lengths start.
        count: the number of symbols, at least 1.
        alphabet: its size, at most 256.

    Returns:
        The symbols, shape [count].

    Raises:
        FormatError: the code is not complete, or the symbols do not take exactly the bytes they should.
    """
    lengths = _decode_lengths(cursor, alphabet)
    if 0 in lengths:
        return np.full(count, lengths.index(0), np.uint8)
    longest = max(length for length in lengths if length != ABSENT)
    table = np.zeros(1 << longest, np.uint16)
    for symbol, code in _canonical_codes(lengths):
        table[code :: 1 << lengths[symbol]] = symbol << 4 | lengths[symbol]
    return decode_streams(cursor, count, table, longest)


def _canonical_codes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Each symbol that occurs and its code, the code's first bit lowest."""
    codes = []
    code = previous = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length != ABSENT):
        code <<= length - previous
        codes.append((symbol, int(f"{code:0{length}b}"[::-1], 2)))
        code += 1
        previous = length
    return codes


def _encode_lengths(lengths: Sequence[int]) -> bytes:
    bits: list[int] = []
    previous = _FIRST_GUESS
    for length in lengths:
        step = length - previous
        bits += [1] * (2 * step if step >= 0 else -2 * step - 1)
        bits.append(0)
        previous = length
    return pack_fields(np.array(bits, np.uint8), 1)


def _decode_lengths(cursor: Cursor, alphabet: int) -> list[int]:
    lengths: list[int] = []
    length, ones = _FIRST_GUESS, 0
    byte = 0
    while len(lengths) < alphabet:
        byte = cursor.byte() | 1 << 8  # the 1 marks the byte's end
        while byte > 1 and len(lengths) < alphabet:
            if byte & 1:
                ones += 1
                if ones > 2 * ABSENT:
                    raise FormatError(f"{cursor.what} is damaged: a code length is out of range")
            else:
                length += -(ones + 1 >> 1) if ones & 1 else ones >> 1
                lengths.append(length)
                ones = 0
            byte >>= 1
    in_range = byte.bit_count() == 1 and all(0 <= length <= ABSENT for length in lengths)
    if not in_range or sum(1 << LONGEST - length for length in lengths if length != ABSENT) != 1 << LONGEST:
        raise FormatError(f"{cursor.what} is damaged: its code lengths do not form a complete code")
    return lengths
