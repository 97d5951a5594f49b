"""Asymmetric numeral systems against SPEC.md §6.5 in Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging import ans
from featherweight.packaging.ans import TOTAL, AnsDecoder, AnsEncoder
from featherweight.packaging.cursor import Cursor, varint

Batch = tuple[list[int], list[int]]


def frequencies(weights: list[int]) -> list[int]:
    found = [1 + weight * (TOTAL - len(weights)) // sum(weights) for weight in weights]
    found[0] += TOTAL - sum(found)
    return found


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    weights = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any))
    return draw(st.lists(st.integers(0, len(weights) - 1), min_size=1, max_size=40)), frequencies(weights)


def encode_by_the_book(coded: list[Batch]) -> bytes:
    """One segment."""
    x, words = 0, b""
    for symbols, table in reversed(coded):
        for symbol in reversed(symbols if len(table) > 1 else []):
            if x >> 40 >= table[symbol]:
                words, x = words + (x % 2**32).to_bytes(4, "little"), x >> 32
            x = (x // table[symbol] << 24) + x % table[symbol] + sum(table[:symbol])
    while x:
        words, x = words + (x % 2**32).to_bytes(4, "little"), x >> 32
    words = words.rstrip(b"\0")
    return varint(len(words)) + words


def decode_by_the_book(words: bytes, coded: list[Batch]) -> list[list[int]]:
    left = [int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4)]
    x = (left.pop() << 32) + left.pop() if len(left) > 1 else left.pop() if left else 0
    found = []
    for symbols, table in coded:
        found.append([])
        for _ in symbols:
            rest, symbol = x % 2**24, 0
            while rest >= table[symbol]:
                rest, symbol = rest - table[symbol], symbol + 1
            found[-1].append(symbol)
            x = (x >> 24) * table[symbol] + rest if len(table) > 1 else x
            if x < 2**32 and left:
                x = (x << 32) + left.pop()
    assert x == 0
    return found


def encode(coded: list[Batch]) -> bytes:
    encoder = AnsEncoder()
    for symbols, table in coded:
        encoder.put(np.array(symbols, np.int32), np.array(table))
    return encoder.finish()


def decode(data: bytes, coded: list[Batch]) -> list[list[int]]:
    cursor = Cursor(data, "test")
    decoder = AnsDecoder(cursor)
    found = [decoder.take(len(symbols), np.array(table)).tolist() for symbols, table in coded]
    decoder.end()
    cursor.end()
    return found


@settings(max_examples=30)
@given(st.lists(batches(), min_size=1, max_size=4))
def test_segments_by_the_book(coded: list[Batch]) -> None:
    data = encode(coded)
    if any(len(table) > 1 for _, table in coded):
        assert data == encode_by_the_book(coded)
        assert decode_by_the_book(data[1 if len(data) < 129 else 2 :], coded) == [symbols for symbols, _ in coded]
    else:
        assert data == b""
    assert decode(data, coded) == [symbols for symbols, _ in coded]


def test_within_a_few_bytes_of_the_ideal() -> None:
    table = np.array(frequencies([700, 200, 90, 10]))
    symbols = np.random.default_rng(0).choice(4, 20_000, p=table / TOTAL).astype(np.int32)
    ideal = -np.log2(table / TOTAL)[symbols].sum() / 8
    assert ideal - 1 <= len(encode([(symbols.tolist(), table.tolist())])) <= ideal + 6


def test_long_streams_are_cut_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ans, "SEGMENT", 10)
    coded = [([0, 1, 1] * 2, frequencies([3, 5])) for _ in range(5)]
    data = encode(coded)
    assert data == b"".join(encode_by_the_book(coded[at : at + 2]) for at in (0, 2, 4))
    assert decode(data, coded) == [symbols for symbols, _ in coded]


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: b"\1" + d[1:2], lambda d: bytes([d[0] + 4]) + d[1:] + b"wxyz"])
def test_damage_is_refused(change: object) -> None:
    coded = [([0, 1, 2, 2, 1, 1, 0] * 9, frequencies([1, 1, 1]))]
    with pytest.raises(FormatError):
        decode(change(encode(coded)), coded)  # type: ignore[operator]
