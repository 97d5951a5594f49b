"""Runs of zeros between the nonzero elements: Huffman-coded buckets with m mantissa bits, and a few plain bits (SPEC.md §6.4).

Pruned weights lie at nearly random places, so runs fall off geometrically over a range of hundreds. Buckets whose width grows
with the run, as a floating-point number's spacing does, need a tiny code table and lose next to nothing: within a bucket the
distribution is nearly flat.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.bits import pack_fields, unpack_fields
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.huffman import Counts, code_lengths, decode_symbols, encode_symbols, symbols_size

__all__ = ["MOST_MANTISSA", "best_mantissa", "bucket", "bucket_starts", "decode_runs", "encode_runs"]

Runs = npt.NDArray[np.int64]

MOST_MANTISSA = 4
_MOST_SYMBOLS = 256


def bucket(runs: Runs, mantissa: int) -> tuple[Runs, Runs]:
    """The bucket of each run and the number of plain bits that tell where in the bucket it is; shapes as `runs`.

    Args:
        runs: each from 0 to 2^48.
        mantissa: bits, 0 to 4.

    Returns:
        The buckets and the numbers of plain bits, both shaped as `runs`.

    Example:
        >>> [part.tolist() for part in bucket(np.array([0, 1, 2, 5, 21]), 1)]
        [[0, 1, 2, 4, 8], [0, 0, 0, 1, 3]]
    """
    width = np.maximum(np.frexp(runs.astype(np.float64))[1] - 1 - mantissa, 0).astype(np.int64)
    return (width << mantissa) + (runs >> width), width


def bucket_starts(alphabet: int, mantissa: int) -> tuple[Runs, npt.NDArray[np.uint8]]:
    """The smallest run of each bucket, and the number of plain bits that tell where in the bucket a run is.

    Args:
        alphabet: the number of buckets.
        mantissa: bits, 0 to 4.

    Returns:
        Two arrays of shape [alphabet].
    """
    symbols = np.arange(alphabet, dtype=np.int64)
    width = np.maximum((symbols >> mantissa) - 1, 0)
    return symbols - (width << mantissa) << width, width.astype(np.uint8)


def best_mantissa(finest: Counts) -> tuple[int, int]:
    """The bytes it takes to code runs the most compactly, and the number of mantissa bits that does.

    Args:
        finest: how often each bucket with `MOST_MANTISSA` mantissa bits occurs.

    Returns:
        A number of bytes, without the one that tells the alphabet, and a number of bits.
    """
    used = np.flatnonzero(finest)
    starts, _ = bucket_starts(len(finest), MOST_MANTISSA)
    choices = []
    for mantissa in range(MOST_MANTISSA + 1):
        symbols, widths = bucket(starts[used], mantissa)
        if symbols[-1] < _MOST_SYMBOLS:
            counts = np.bincount(symbols, finest[used]).astype(np.int64)
            plain_bits = int((widths * finest[used]).sum())
            choices.append((symbols_size(counts, code_lengths(counts.tolist())) + (plain_bits + 7) // 8, mantissa))
    return min(choices)


def encode_runs(runs: Iterable[Runs], count: int, mantissa: int) -> bytes:
    """Codes `count` ≥ 1 runs, given in pieces.

    Args:
        runs: the runs; read once.
        count: how many there are.
        mantissa: bits, as `best_mantissa` gives them.

    Returns:
        The bytes.
    """
    symbols = np.empty(count, np.uint8)
    widths = np.empty(count, np.uint8)
    fields: npt.NDArray[np.unsignedinteger] = np.empty(count, np.uint8)
    at = 0
    for piece in runs:
        part = slice(at, at + len(piece))
        symbols[part], widths[part] = bucket(piece, mantissa)
        fields = fields.astype(np.promote_types(fields.dtype, np.min_scalar_type(piece.max())), copy=False)
        fields[part] = piece
        at += len(piece)
    counts = np.bincount(symbols)
    return bytes([len(counts) - 1]) + encode_symbols(symbols, code_lengths(counts.tolist())) + pack_fields(fields, widths)


def decode_runs(cursor: Cursor, count: int, mantissa: int, longest: int) -> npt.NDArray[np.unsignedinteger]:
    """The `count` ≥ 1 runs that `encode_runs` wrote, as the smallest unsigned type that holds them.

    Args:
        cursor: where the runs start.
        count: how many there are.
        mantissa: bits, 0 to 4.
        longest: no run is longer.

    Returns:
        The runs, shape [count].

    Raises:
        FormatError: a run may exceed `longest` by far, or the codes are damaged.
    """
    alphabet = cursor.byte() + 1
    starts, widths = bucket_starts(alphabet, mantissa)
    symbols = decode_symbols(cursor, count, alphabet)
    last = int(symbols.max())
    if last >= 62 << mantissa or int(starts[last]) > longest:
        raise FormatError(f"{cursor.what} is damaged: a run of zeros is longer than the tensor")
    runs = starts[: last + 1].astype(np.min_scalar_type(int(starts[last]) + (1 << int(widths[last])) - 1))[symbols]
    unpack_fields(cursor, widths[symbols], runs)
    return runs
