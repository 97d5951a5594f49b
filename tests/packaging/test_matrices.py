"""The two ways to code a matrix, and when each is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging import matrices
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.matrices import LEVELLED, PLAIN, Matrix, decode_matrix, encode_matrix, ideal_bits


def sides_of(parities: np.ndarray) -> np.ndarray:
    return (3 * parities).astype(np.uint8)


def round_trip(matrix: Matrix, *, levels: bool = True) -> tuple[int, int]:
    """The way, and the bytes."""
    way, coded = encode_matrix(matrix, levels=levels)
    cursor = Cursor(coded, "test")
    sides = None if matrix.parities is None else sides_of
    symbols, parities = decode_matrix(cursor, way, matrix.symbols.shape, len(matrix.magnitudes), sides)
    cursor.end()
    assert np.array_equal(symbols, matrix.symbols.reshape(-1))
    assert (parities is None) == (matrix.parities is None)
    assert matrix.parities is None or np.array_equal(parities, matrix.parities.reshape(-1))
    return way, len(coded)


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 60))


@settings(max_examples=40)
@given(SHAPES, st.integers(1, 9), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_matrices_come_back(shape: tuple[int, int], k: int, odd: bool, levels: bool, large: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    symbols = generator.integers(0, k, shape).astype(np.uint16) // generator.integers(1, 6, (shape[0], 1)).astype(np.uint16)
    parities = generator.integers(0, 2, shape).astype(np.uint8) if odd else None
    matrix = Matrix(symbols, np.arange(k), parities, None if parities is None else sides_of(parities))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "_SMALL", 0 if large else 1 << 20)
        way, size = round_trip(matrix, levels=levels)
        plain = len(encode_matrix(matrix, levels=False)[1])
    assert way in ((PLAIN, LEVELLED) if levels else (PLAIN,))
    assert large or size <= plain, "of small matrices both ways are tried"


def scaled(spread: int) -> tuple[Matrix, float]:
    """Rows and columns of different scale, and what symbols would take if all scales were known."""
    generator = np.random.default_rng(0)
    scales = 2.0 ** generator.integers(-spread, spread + 1, (400, 1)) * 2.0 ** generator.integers(-spread, spread + 1, (1, 500))
    symbols = np.minimum(np.abs(generator.normal(size=scales.shape) * scales * 2), 63).astype(np.uint16)
    bits = sum(ideal_bits(np.bincount(symbols[scales == scale])) for scale in np.unique(scales))
    return Matrix(symbols, np.arange(64)), bits / 8


def test_levels_find_rows_and_columns_of_different_scale() -> None:
    matrix, ideal = scaled(3)
    way, size = round_trip(matrix)
    assert way == LEVELLED
    assert ideal < size < 1.06 * ideal
    assert round_trip(matrix, levels=False)[1] > 1.4 * ideal


def test_levels_that_save_nothing_are_not_stored() -> None:
    matrix, ideal = scaled(0)
    way, size = round_trip(matrix)
    assert way == PLAIN
    assert ideal < size < 1.005 * ideal


def test_a_sample_of_rows_tells_what_all_of_them_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_BLOCK", 5000)
    monkeypatch.setattr(matrices, "_SAMPLE", 20_000)
    assert round_trip(scaled(3)[0])[0] == LEVELLED
    assert round_trip(scaled(0)[0])[0] == PLAIN


def test_ideal_bits() -> None:
    assert ideal_bits(np.array([4, 4])) == 8
    assert ideal_bits(np.array([[1, 3], [0, 7]])) == pytest.approx(2 + 3 * math.log2(4 / 3))
    assert ideal_bits(np.zeros((3, 2), int)) == 0


@pytest.mark.parametrize("way", [1, 3, 255])
def test_other_ways_are_refused(way: int) -> None:
    with pytest.raises(FormatError, match="how its symbols are modelled"):
        decode_matrix(Cursor(b"", "test"), way, (2, 2), 3, None)
