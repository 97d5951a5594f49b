"""Matrices of symbols against SPEC.md §6.6 in plain Python, one element at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def level(x: int) -> int:
    e = x.bit_length() - 1
    return 8 * e + 8 * (x - 2**e) // 2**e


def by_the_book(
    matrix: np.ndarray, k: int, magnitudes: list[int] | None, sides: np.ndarray | None, kinds: int
) -> list[tuple[list[int], list[int]]]:
    rows, columns = matrix.shape
    counts: dict[int, list[int]] = {}
    seen: list[tuple[int, int]] = []
    batches = []
    for down in cuts(rows, max(1, 64 // columns), 1, max(1, 2**20 // columns)):
        first, d = (max(16 // len(down), columns // 8, 1), 1) if rows > 1 else (16, 4)
        for along in cuts(columns, first, d, max(1, 2**20 // len(down))):
            parts: dict[int, list[int]] = {}
            for i, j in itertools.product(down, along):
                t = 0
                if magnitudes is not None:
                    m = {at: magnitudes[matrix[at]] for at in seen}
                    mean = (sum(m.values()) << 12) // max(len(m), 1) + 1
                    t = -level(mean)
                    for axis, index in ((0, i), (1, j)):
                        line = [v for at, v in m.items() if at[axis] == index]
                        t += level(((sum(line) << 12) + 2 * mean) // (len(line) + 2) + 1)
                    t = min(max(t // 8, 0), 27)
                side = 0 if sides is None else int(sides[i, j])
                parts.setdefault(kinds * t + side, []).append(int(matrix[i, j]))
            for context in sorted(parts):
                own = counts.get(context, [0] * k)
                if magnitudes is None and sides is None:
                    table = quantize([n + 1 for n in own])
                else:
                    alike = [c for other, c in counts.items() if other % kinds == context % kinds]
                    overall = quantize([1 + sum(c[s] for c in alike) for s in range(k)])
                    table = quantize([2**16 * n + 32 * (f >> 8) for n, f in zip(own, overall, strict=True)])
                batches.append((parts[context], table))
            for context, symbols in parts.items():
                counts.setdefault(context, [0] * k)
                for symbol in symbols:
                    counts[context][symbol] += 1
            seen += itertools.product(down, along)
    return batches


CASES = st.tuples(st.integers(1, 7), st.integers(1, 24), st.integers(1, 7), st.booleans(), st.booleans(), st.integers(0, 99))


@settings(max_examples=20)
@given(CASES)
def test_batches_by_the_book(case: tuple[int, int, int, bool, bool, int]) -> None:
    rows, columns, k, scaled, sided, seed = case
    generator = np.random.default_rng(seed)
    matrix = np.minimum(generator.geometric(0.4, (rows, columns)) * generator.integers(1, 3, (rows, 1)) - 1, k - 1)
    sides = generator.integers(0, 4, (rows, columns)).astype(np.uint8) if sided else None
    magnitudes = [s * s * 100 for s in range(k)] if scaled else None
    alphabet = Alphabet(k, None if magnitudes is None else np.array(magnitudes), 4 if sided else 1)
    recorder = Recorder()
    encode_symbols(recorder, matrix, alphabet, sides)
    assert recorder.batches == by_the_book(matrix, k, magnitudes, sides, 4 if sided else 1)
    cursor = Cursor(recorder.finish(), "test")
    decoder = AnsDecoder(cursor)
    assert np.array_equal(decode_symbols(decoder, (rows, columns), alphabet, sides), matrix)
    decoder.end()
    cursor.end()


def size_of(matrix: np.ndarray, alphabet: Alphabet, sides: np.ndarray | None = None) -> int:
    encoder = AnsEncoder()
    encode_symbols(encoder, matrix, alphabet, sides)
    return len(encoder.finish())


@pytest.mark.parametrize("contexts", [False, True])
def test_within_one_percent_of_the_entropy(contexts: bool) -> None:
    matrix = np.minimum(np.random.default_rng(0).geometric(0.3, (300, 400)) - 1, 30)
    counts = np.bincount(matrix.reshape(-1)).tolist()
    entropy = sum(n * math.log2(matrix.size / n) for n in counts if n) / 8
    size = size_of(matrix, Alphabet(len(counts), np.arange(len(counts)) if contexts else None))
    assert entropy < size < 1.01 * entropy


def test_contexts_find_rows_and_columns_of_different_scale() -> None:
    generator = np.random.default_rng(0)
    scales = 2.0 ** generator.integers(-3, 4, (200, 1)) * 2.0 ** generator.integers(-3, 4, (1, 300))
    matrix = np.minimum(np.abs(generator.normal(size=(200, 300)) * scales), 63).astype(np.int64)
    plain, modelled = (size_of(matrix, Alphabet(64, magnitudes)) for magnitudes in (None, np.arange(64)))
    ideal = sum(
        n * math.log2(c.sum() / n) / 8 for s in np.unique(scales) for c in [np.bincount(matrix[scales == s])] for n in c if n
    )
    assert plain > 1.4 * ideal
    assert modelled < 1.2 * ideal


def test_sides_tell_what_they_tell() -> None:
    matrix = np.random.default_rng(0).integers(0, 4, (50, 50))
    assert size_of(matrix, Alphabet(4)) > 2500 / 4
    assert size_of(matrix, Alphabet(4, sides=4), matrix.astype(np.uint8)) < 100
