"""Bit streams of prefix codes, many side by side, so that numpy decodes one symbol of each at a time (SPEC.md §6.3).

Symbol i belongs to stream i mod s. A row of s consecutive symbols is therefore one vector operation on all streams, both ways.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.bits import pack_fields, unpack_fields
from featherweight.packaging.cursor import Cursor, varint

__all__ = ["LONGEST", "decode_streams", "encode_streams", "stream_count", "streams_size"]

Symbols = npt.NDArray[np.uint8]
Table = npt.NDArray[np.uint16]

LONGEST = 12
"""The most bits a code may have. Four codes then fit in one 64-bit window at any bit offset."""

_MOST_STREAMS = 1 << 14
_ROWS_PER_WINDOW = 4


def stream_count(count: int) -> int:
    """The number of streams for `count` symbols: 1 below 2048, then one for every 1024 to 2048 symbols, up to 16 384.

    Args:
        count: at least 1.

    Returns:
        A power of two.
    """
    return 1 if count < 2048 else min(1 << ((count >> 10).bit_length() - 1), _MOST_STREAMS)


def streams_size(count: int, bits: int) -> int:
    """The bytes that streams of `bits` bits in all take: exact for one stream, else without padding and uneven lengths.

    Args:
        count: the number of symbols.
        bits: of all their codes together.

    Returns:
        A number of bytes, the streams' lengths included.
    """
    streams = stream_count(count)
    size = (bits + 7) // 8
    return size + len(varint(size)) if streams == 1 else size + len(varint(size // streams)) + 1 + streams


def encode_streams(symbols: Symbols, codes: Table) -> bytes:
    """The code of each symbol, in streams, with the streams' lengths in front.

    Args:
        symbols: shape [n], n ≥ 1.
        codes: for each symbol `code · 16 + length`, shape [alphabet], the code's first bit lowest; lengths 1 … 12.

    Returns:
        The bytes.
    """
    streams = stream_count(len(symbols))
    rows = -(-len(symbols) // streams)
    capacity = rows * int((codes & 15).max()) // 32 + 2
    words = np.zeros(streams * capacity, np.uint32)
    first = np.arange(streams) * capacity
    at = first.copy()
    pending = np.zeros(streams, np.uint64)
    filled = np.zeros(streams, np.uint64)
    wide = codes.astype(np.uint64)
    for start in range(0, len(symbols), streams):
        row = symbols[start : start + streams]
        code = wide[row]
        pending[: len(row)] |= code >> 4 << filled[: len(row)]
        filled[: len(row)] += code & 15
        if start // streams % 2:  # two codes fit on top of 31 pending bits
            full = filled >> 5
            words[at] = pending.astype(np.uint32)
            at += full.view(np.int64)
            full <<= 5
            pending >>= full
            filled -= full
    words[at] = pending.astype(np.uint32)
    words[at + 1] = (pending >> 32).astype(np.uint32)
    sizes = (at - first) * 4 + (filled.view(np.int64) + 7) // 8
    raw = words.astype("<u4", copy=False).view(np.uint8).reshape(streams, -1)
    return _encode_sizes(sizes) + raw[np.arange(raw.shape[1]) < sizes[:, None]].tobytes()


def decode_streams(cursor: Cursor, count: int, table: Table, longest: int) -> Symbols:
    """The symbols that `encode_streams` wrote.

    Args:
        cursor: where the streams' lengths start.
        count: the number of symbols, at least 1.
        table: for every `longest` bits `symbol · 16 + length` of the code they start with, shape [2^longest].
        longest: the longest code's bits, 1 … 12.

    Returns:
        The symbols, shape [count].

    Raises:
        FormatError: a stream's symbols do not take exactly its bytes.
    """
    streams = stream_count(count)
    sizes = _decode_sizes(cursor, streams)
    total = int(sizes.sum())
    if 8 * total < count:
        raise FormatError(f"{cursor.what} is damaged: {total} bytes cannot hold {count} symbols")
    raw = np.zeros(total + 8, np.uint8)
    raw[:total] = np.frombuffer(cursor.take(total), np.uint8)
    windows = np.ndarray((total + 1,), "<i8", raw, strides=(1,))  # the 8 bytes from every byte on
    ends = np.cumsum(sizes) * 8
    at = ends - sizes * 8
    mask = (1 << longest) - 1
    symbols = np.empty(count, np.uint8)
    for start in range(0, count, _ROWS_PER_WINDOW * streams):
        group = symbols[start : start + _ROWS_PER_WINDOW * streams]
        window = windows[np.minimum(at >> 3, total)] >> (at & 7)
        for row in (group[i : i + streams] for i in range(0, len(group), streams)):
            entry = table[window[: len(row)] & mask]
            row[:] = entry >> 4
            length = entry & 15
            window[: len(row)] >>= length
            at[: len(row)] += length
    padding = raw[np.minimum(at >> 3, total)] >> (at & 7)
    if (at + 7 & ~7 != ends).any() or (padding[at & 7 != 0] != 0).any():
        raise FormatError(f"{cursor.what} is damaged: its code streams do not end where they should")
    return symbols


def _encode_sizes(sizes: npt.NDArray[np.int64]) -> bytes:
    if len(sizes) == 1:
        return varint(int(sizes[0]))
    least = int(sizes.min())
    width = int(sizes.max() - least).bit_length()
    return varint(least) + bytes([width]) + pack_fields((sizes - least).astype(np.uint32), width)


def _decode_sizes(cursor: Cursor, streams: int) -> npt.NDArray[np.int64]:
    least = cursor.count(smallest=streams)
    extra = np.zeros(streams, np.uint32)
    if streams > 1:
        width = cursor.byte()
        if width > 32:
            raise FormatError(f"{cursor.what} is damaged: {width} bits for the length of a stream, at most 32 are allowed")
        unpack_fields(cursor, width, extra)
    return extra.astype(np.int64) + least
