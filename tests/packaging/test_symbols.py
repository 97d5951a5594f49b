"""Matrices of symbols against SPEC.md §6.6 in plain Python, one element at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.packaging import symbols
from featherweight.packaging.ans import AnsDecoder, AnsEncoder
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.symbols import Alphabet, decode_symbols, encode_symbols


class Recorder(AnsEncoder):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[list[int], list[int]]] = []

    def put(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        self.batches.append((symbols.tolist(), frequencies.tolist()))
        super().put(symbols, frequencies)


def cuts(n: int, least: int, d: int, most: int) -> Iterator[range]:
    a = 0
    while a < n:
        b = min(n, a + min(max(least, a // d), most))
        yield range(a, b)
        a = b


def quantize(weights: list[int]) -> list[int]:
    found = [1 + w * (2**24 - len(weights)) // sum(weights) for w in weights]
    found[found.index(max(found))] += 2**24 - sum(found)
    return found


def tiles(rows: int, columns: int, levels: int) -> Iterator[list[tuple[int, int]]]:
    places = [(i, j) for i in range(rows) for j in range(columns)]
    if levels > 1:
        a = 0
        while a < len(places):
            b = min(len(places), a + min(max(64, 3 * a), 2**16))
            yield places[a:b]
            a = b
        return
    for down in cuts(rows, max(1, 64 // columns), 1, max(1, 2**20 // columns)):
        first, d = (max(16 // len(down), columns // 8, 1), 1) if rows > 1 else (16, 4)
        for along in cuts(columns, first, d, max(1, 2**20 // len(down))):
            yield list(itertools.product(down, along))


def by_the_book(
    matrix: np.ndarray, alphabet: Alphabet, contexts: np.ndarray | None, most: int
) -> list[tuple[list[int], list[int]]]:
    k, counts, batches = alphabet.size, dict[int, list[int]](), []
    for tile in tiles(*matrix.shape, alphabet.levels):
        parts: dict[int, list[int]] = {}
        for at in tile:
            parts.setdefault(0 if contexts is None else int(contexts[at]), []).append(int(matrix[at]))
        for context in sorted(parts):
            own = counts.get(context, [0] * k)
            if contexts is None:
                table = quantize([n + 1 for n in own])
            else:
                alike = [c for other, c in counts.items() if other % alphabet.sides == context % alphabet.sides]
                overall = quantize([1 + sum(c[s] for c in alike) for s in range(k)])
                table = quantize([2**16 * n + 32 * (f >> 8) for n, f in zip(own, overall, strict=True)])
            batches.append((parts[context], table))
        for context, part in parts.items():
            counts.setdefault(context, [0] * k)
            for symbol in part:
                counts[context][symbol] += 1
        counts = {context: [n // 2 for n in own] if sum(own) >= most else own for context, own in counts.items()}
    return batches


CASES = st.tuples(st.integers(1, 9), st.integers(1, 60), st.integers(1, 7), st.sampled_from([1, 4]), st.sampled_from([1, 5]))


@settings(max_examples=30)
@given(CASES, st.sampled_from([2**20, 50]), st.integers(0, 99))
def test_batches_by_the_book(case: tuple[int, int, int, int, int], most: int, seed: int) -> None:
    rows, columns, k, sides, levels = case
    generator = np.random.default_rng(seed)
    matrix = np.minimum(generator.geometric(0.4, (rows, columns)) * generator.integers(1, 3, (rows, 1)) - 1, k - 1)
    alphabet = Alphabet(k, sides, levels)
    contexts = generator.integers(0, sides * levels, (rows, columns)).astype(np.uint8) if sides * levels > 1 else None
    recorder = Recorder()
    with mock.patch.object(symbols, "_MOST_COUNTED", most):
        encode_symbols(recorder, matrix, alphabet, contexts)
        cursor = Cursor(recorder.finish(), "test")
        decoder = AnsDecoder(cursor)
        assert np.array_equal(decode_symbols(decoder, (rows, columns), alphabet, contexts), matrix)
    assert recorder.batches == by_the_book(matrix, alphabet, contexts, most)
    decoder.end()
    cursor.end()


def size_of(matrix: np.ndarray, alphabet: Alphabet, contexts: np.ndarray | None = None) -> int:
    encoder = AnsEncoder()
    encode_symbols(encoder, matrix, alphabet, contexts)
    return len(encoder.finish())


@pytest.mark.parametrize("levels", [1, 3])
def test_within_one_percent_of_the_entropy(levels: int) -> None:
    generator = np.random.default_rng(0)
    matrix = np.minimum(generator.geometric(0.3, (300, 400)) - 1, 30)
    counts = np.bincount(matrix.reshape(-1)).tolist()
    entropy = sum(n * math.log2(matrix.size / n) for n in counts if n) / 8
    contexts = generator.integers(0, levels, matrix.shape).astype(np.uint8) if levels > 1 else None
    assert entropy < size_of(matrix, Alphabet(len(counts), levels=levels), contexts) < 1.01 * entropy


@pytest.mark.parametrize("levels", [1, 4])
def test_contexts_tell_what_they_tell(levels: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 4, (50, 50))
    assert size_of(matrix, Alphabet(4)) > 2500 / 4
    alphabet = Alphabet(4, sides=4 // levels, levels=levels)
    assert size_of(matrix, alphabet, matrix.astype(np.uint8)) < 120
