"""Varints and strings: the shortest form comes back, everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import FormatError, RequestError
from featherweight.packaging.cursor import Cursor, signed, string, varint


@given(st.integers(0, 2**64 - 1))
def test_varint_comes_back_and_is_short(number: int) -> None:
    coded = varint(number)
    cursor = Cursor(coded, "test")
    assert cursor.varint() == number
    cursor.end()
    assert len(coded) == max(1, -(-number.bit_length() // 7))


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_comes_back(number: int) -> None:
    assert Cursor(signed(number), "test").signed() == number


def test_signed_small_magnitudes_take_one_byte() -> None:
    assert [signed(n).hex() for n in (0, -1, 1, -64, 63, 64)] == ["00", "01", "02", "7f", "7e", "8001"]


@given(st.text())
def test_string_comes_back(text: str) -> None:
    try:
        coded = string(text)
    except RequestError:
        assert any("\ud800" <= letter <= "\udfff" for letter in text)
    else:
        assert Cursor(coded, "test").string() == text


@pytest.mark.parametrize(
    "coded",
    ["", "80", "8000", "ff80808000", "ffffffffffffffffff02", "80808080808080808080", "80808080808080808080" + "01"],
    ids=["empty", "cut short", "not the shortest", "not the shortest, long", "2^64 and more", "no end", "eleven bytes"],
)
def test_malformed_varint_is_refused(coded: str) -> None:
    with pytest.raises(FormatError):
        Cursor(bytes.fromhex(coded), "test").varint()


def test_lengths_are_checked_before_anything_is_taken() -> None:
    with pytest.raises(FormatError, match="2 bytes cannot hold 3 items"):
        Cursor(b"\x03ab", "test").count()
    with pytest.raises(FormatError, match="cut short"):
        Cursor(b"\x03ab", "test").string()
    with pytest.raises(FormatError, match="not UTF-8"):
        Cursor(b"\x01\xff", "test").string()
    with pytest.raises(FormatError, match="1 bytes too many"):
        Cursor(b"\x00", "test").end()
    with pytest.raises(FormatError, match="entry 2 of a table of 2"):
        Cursor(b"", "test").entry("ab", 2)
