"""Huffman codes against references computed another way: a heap, the entropy, and a decoder that reads one bit at a time."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.huffman import ABSENT, code_lengths, decode_symbols, encode_symbols, symbols_size
from featherweight.packaging.streams import LONGEST, stream_count

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=256).filter(any)


def cost(counts: list[int], lengths: list[int]) -> int:
    return sum(count * length for count, length in zip(counts, lengths, strict=True) if count)


def heap_cost(counts: list[int]) -> tuple[int, int]:
    """The bits of an unlimited Huffman code and its longest code, by Huffman's own construction."""
    heap = [(count, 0) for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        (a, deep), (b, deeper) = heapq.heappop(heap), heapq.heappop(heap)
        bits += a + b
        heapq.heappush(heap, (a + b, 1 + max(deep, deeper)))
    return bits, heap[0][1]


def best_limited_cost(counts: list[int], longest: int) -> int:
    """The fewest bits of any complete code no longer than `longest`, by trying all of them."""
    present = sorted((count for count in counts if count), reverse=True)
    return min(
        cost(present, list(lengths))
        for lengths in itertools.combinations_with_replacement(range(1, longest + 1), len(present))
        if sum(2.0**-length for length in lengths) == 1
    )


@given(COUNTS)
def test_optimal_and_close_to_the_entropy(counts: list[int]) -> None:
    lengths = code_lengths(counts)
    bits, longest = heap_cost(counts)
    total = sum(counts)
    entropy = sum(count * math.log2(total / count) for count in counts if count)
    if longest <= LONGEST:
        assert cost(counts, lengths) == bits
        assert entropy - 1e-6 <= cost(counts, lengths) <= entropy + total
    assert [length == ABSENT for length in lengths] == [count == 0 for count in counts]
    assert sum(2.0**-length for length in lengths if length != ABSENT) == 1
    assert all(length <= LONGEST for length in lengths if length != ABSENT)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=7), st.integers(3, 5))
def test_optimal_under_a_limit(counts: list[int], longest: int) -> None:
    lengths = code_lengths(counts, longest)
    assert max(lengths) <= longest
    assert cost(counts, lengths) == best_limited_cost(counts, longest)


def test_fibonacci_counts_reach_the_limit() -> None:
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    assert heap_cost(counts)[1] == 29
    lengths = code_lengths(counts)
    assert max(lengths) == LONGEST
    symbols = np.arange(30, dtype=np.uint8).repeat(3)
    assert np.array_equal(decode_symbols(Cursor(encode_symbols(symbols, lengths), "test"), 90, 30), symbols)


def test_lengths_spelled_out() -> None:
    assert code_lengths([8, 4, 2, 1, 1]) == [1, 2, 3, 4, 4]
    assert code_lengths([5, 5, 5, 5]) == [2, 2, 2, 2]
    assert code_lengths([0, 9, 0]) == [ABSENT, 0, ABSENT]


def test_bytes_spelled_out() -> None:
    # Lengths 1, 2, 2: from 4, steps -3, 1, 0 → 5, 2, 0 ones and a zero each: 111110 110 0, lowest bit first: 11011111 00000000.
    # Codes 0, 10, 11; symbols 0 1 2 2 → 0 10 11 11, first bit lowest: 1111010 = 7a, one byte.
    assert encode_symbols(np.array([0, 1, 2, 2], np.uint8), [1, 2, 2]).hex() == "df00" + "01" + "7a"


def decode_by_the_book(coded: bytes, count: int, alphabet: int) -> list[int]:
    """SPEC.md §6.3 for one stream, bit by bit."""
    bits = "".join(f"{byte:08b}"[::-1] for byte in coded)
    lengths, length = [], 4
    for ones in bits.split("0")[:alphabet]:
        length += -((len(ones) + 1) // 2) if len(ones) % 2 else len(ones) // 2
        lengths.append(length)
    head = -(-sum(len(ones) + 1 for ones in bits.split("0")[:alphabet]) // 8)
    if 0 in lengths:
        assert len(coded) == head
        return [lengths.index(0)] * count
    codes: dict[str, int] = {}
    code = previous = 0
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths) if n != ABSENT):
        code <<= length - previous
        codes[f"{code:0{length}b}"] = symbol
        code, previous = code + 1, length
    stream = Cursor(coded[head:], "test")
    size = stream.varint()
    rest = "".join(f"{byte:08b}"[::-1] for byte in stream.take(size))
    stream.end()
    symbols: list[int] = []
    prefix = ""
    for bit in rest:
        prefix += bit
        if prefix in codes and len(symbols) < count:
            symbols.append(codes[prefix])
            prefix = ""
    assert set(prefix) <= {"0"}
    assert len(prefix) < 8
    return symbols


@given(st.lists(st.integers(0, 20), min_size=1, max_size=400))
def test_one_stream_by_the_book(values: list[int]) -> None:
    symbols = np.array(values, np.uint8)
    counts = np.bincount(symbols, minlength=21)
    lengths = code_lengths(counts.tolist())
    coded = encode_symbols(symbols, lengths)
    assert len(coded) == symbols_size(counts, lengths)
    assert decode_by_the_book(coded, len(values), 21) == values
    assert decode_symbols(Cursor(coded, "test"), len(values), 21).tolist() == values


@pytest.mark.parametrize("count", [2047, 2048, 2049, 4095, 4096, 10_000, 70_000])
def test_many_streams(count: int) -> None:
    generator = np.random.default_rng(count)
    symbols = np.minimum(generator.geometric(0.3, count), 200).astype(np.uint8)
    symbols[:: stream_count(count)] = 0  # one stream is much shorter than the others
    counts = np.bincount(symbols)
    lengths = code_lengths(counts.tolist())
    coded = encode_symbols(symbols, lengths)
    assert np.array_equal(decode_symbols(Cursor(coded, "test"), count, len(counts)), symbols)
    assert abs(len(coded) - symbols_size(counts, lengths)) <= 16 + 2 * stream_count(count)


def test_stream_counts_spelled_out() -> None:
    assert [stream_count(n) for n in (1, 2047, 2048, 4095, 4096, 1 << 24, 1 << 30)] == [1, 1, 2, 2, 4, 16384, 16384]


def decode_all(coded: str) -> list[int]:
    """Four symbols of three, and nothing after them."""
    cursor = Cursor(bytes.fromhex(coded), "test")
    symbols = decode_symbols(cursor, 4, 3).tolist()
    cursor.end()
    return symbols


@pytest.mark.parametrize(
    "coded",
    ["ff" * 40, "df0001fa", "df00027a00", "df00017a00", "df0000", "1f000100", "df", "dfff"],
    ids=[
        "length out of range",
        "padding",
        "stream too long",
        "a byte left",
        "stream too short",
        "incomplete code",
        "cut",
        "table padding",
    ],
)
def test_damage_is_refused(coded: str) -> None:
    assert decode_all("df00017a") == [0, 1, 2, 2]
    with pytest.raises(FormatError):
        decode_all(coded)


@given(st.binary(max_size=60), st.integers(1, 5000), st.integers(1, 256))
def test_any_bytes_decode_or_are_refused(coded: bytes, count: int, alphabet: int) -> None:
    try:
        symbols = decode_symbols(Cursor(coded, "test"), count, alphabet)
    except FormatError:
        return
    assert len(symbols) == count
    assert int(symbols.max()) < alphabet
