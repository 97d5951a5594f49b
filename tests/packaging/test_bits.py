"""Bit fields: unpacking inverts packing, and the bytes are those that SPEC.md describes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging.bits import BLOCK, pack_fields, unpack_fields
from featherweight.packaging.cursor import Cursor


def packed_by_the_book(fields: list[int], widths: list[int]) -> bytes:
    """SPEC.md §6.2 word by word, one bit at a time."""
    bits = []
    for start in range(0, len(fields), BLOCK):
        block = list(zip(fields[start : start + BLOCK], widths[start : start + BLOCK], strict=True))
        for plane in range(max(widths, default=0)):
            bits += [field >> plane & 1 for field, width in block if width > plane]
    return bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))


@given(st.lists(st.tuples(st.integers(0, 2**40 - 1), st.integers(0, 40))))
def test_fields_of_many_widths(pairs: list[tuple[int, int]]) -> None:
    widths = [width for _, width in pairs]
    fields = [field % (1 << width) for field, width in pairs]
    coded = pack_fields(np.array(fields, np.uint64), np.array(widths, np.uint8))
    assert coded == packed_by_the_book(fields, widths)
    found = np.zeros(len(fields), np.uint64)
    cursor = Cursor(coded, "test")
    unpack_fields(cursor, np.array(widths, np.uint8), found)
    cursor.end()
    assert found.tolist() == fields


@pytest.mark.parametrize("width", range(9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000, BLOCK + 3])
def test_fields_of_one_width(width: int, count: int) -> None:
    fields = np.random.default_rng(0).integers(0, 1 << width, count).astype(np.uint8)
    coded = pack_fields(fields, width)
    assert len(coded) == (count * width + 7) // 8
    if count <= 1000:
        assert coded == packed_by_the_book(fields.tolist(), [width] * count)
    found = np.zeros(count, np.uint8)
    unpack_fields(Cursor(coded, "test"), width, found)
    assert np.array_equal(found, fields)


def test_blocks_of_uneven_widths_share_bytes() -> None:
    generator = np.random.default_rng(1)
    widths = generator.integers(0, 7, 2 * BLOCK + 5).astype(np.uint8)
    fields = generator.integers(0, 1 << 30, len(widths)).astype(np.uint32) & ((1 << widths.astype(np.uint32)) - 1).astype(
        np.uint32
    )
    coded = pack_fields(fields, widths)
    assert len(coded) == (int(widths.sum()) + 7) // 8
    found = np.zeros(len(fields), np.uint32)
    unpack_fields(Cursor(coded, "test"), widths, found)
    assert np.array_equal(found, fields)


def test_padding_and_shortness_are_refused() -> None:
    with pytest.raises(FormatError, match="padding"):
        unpack_fields(Cursor(b"\x08", "test"), 1, np.zeros(3, np.uint8))
    with pytest.raises(FormatError, match="cut short"):
        unpack_fields(Cursor(b"\x00", "test"), 3, np.zeros(3, np.uint8))
