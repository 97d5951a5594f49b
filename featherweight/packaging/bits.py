"""Fields of a few bits, packed plane by plane so that numpy does the work (SPEC.md §6.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.cursor import Cursor

__all__ = ["pack_fields", "unpack_fields"]

Unsigned = npt.NDArray[np.unsignedinteger]
Widths = int | npt.NDArray[np.uint8]

BLOCK = 1 << 16


def pack_fields(fields: Unsigned, widths: Widths) -> bytes:
    """Packs unsigned numbers of given widths into a bit string.

    Args:
        fields: shape [n]; field i is below 2^widths[i].
        widths: bits of each field, shape [n], or one number for all.

    Returns:
        The bits, padded with zeros to whole bytes.

    Example:
        >>> pack_fields(np.array([1, 0, 3], np.uint8), 2).hex()
        '25'
    """
    packed = []
    rest = np.zeros(0, bool)
    for part, planes in _blocks(len(fields), widths):
        block = fields[part]
        bits = [rest, *((block if wide is None else block[wide]) >> block.dtype.type(plane) & 1 for plane, wide in planes)]
        joined = np.concatenate(bits, dtype=np.uint8, casting="unsafe")
        whole = len(joined) & ~7
        packed.append(np.packbits(joined[:whole], bitorder="little").tobytes())
        rest = joined[whole:]
    packed.append(np.packbits(rest, bitorder="little").tobytes())
    return b"".join(packed)


def unpack_fields(cursor: Cursor, widths: Widths, fields: Unsigned) -> None:
    """Adds the fields read from `cursor` to `fields`, in place; the inverse of `pack_fields` where `fields` is zero.

    Args:
        cursor: where the bit string starts.
        widths: bits of each field, shape [n], or one number for all.
        fields: shape [n]; the low widths[i] bits of field i are zero.

    Raises:
        FormatError: the bits end too early, or are not padded with zeros.
    """
    total = widths * len(fields) if isinstance(widths, int) else int(widths.sum(dtype=np.int64))
    raw = np.frombuffer(cursor.take((total + 7) // 8), np.uint8)
    if total % 8 and raw[-1] >> (total % 8):
        raise FormatError(f"{cursor.what} has padding that is not zero")
    at = 0
    for part, planes in _blocks(len(fields), widths):
        block = fields[part]
        for plane, wide in planes:
            count = len(block) if wide is None else int(np.count_nonzero(wide))
            first = at // 8
            bits = np.unpackbits(raw[first : (at + count + 7) // 8], bitorder="little")[at - 8 * first :][:count]
            at += count
            values = bits.astype(block.dtype) << block.dtype.type(plane)
            if wide is None:
                block |= values
            else:
                block[wide] |= values


def _blocks(count: int, widths: Widths) -> Iterator[tuple[slice, list[tuple[int, npt.NDArray[np.bool_] | None]]]]:
    """Each block, with its bit planes and the fields that reach into each (None: all of them)."""
    for start in range(0, count, BLOCK):
        part = slice(start, start + BLOCK)
        if isinstance(widths, int):
            yield part, [(plane, None) for plane in range(widths)]
        else:
            yield part, [(plane, widths[part] > plane) for plane in range(int(widths[part].max()))]
