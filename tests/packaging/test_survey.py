"""What is counted of a tensor, against numpy's and Python's own counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featherweight.packaging.runs import MOST_MANTISSA, bucket
from featherweight.packaging.survey import CHUNK, MOST_VALUES, Palette, Survey, exponents_of

UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]
BITS = st.sampled_from(UNSIGNED).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 300)))


@given(BITS)
def test_palette_counts_every_value(bits: np.ndarray) -> None:
    found = Survey(bits).palette
    expected = Counter(bits.tolist())
    if len(expected) > MOST_VALUES:
        assert found is None
    else:
        assert found is not None
        assert dict(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
        assert found[0].tolist() == sorted(expected)


def test_palette_that_grows_late() -> None:
    bits = np.zeros(3 * CHUNK, np.uint32)
    bits[CHUNK + 5 :: 7] = 9
    bits[-1] = 5
    found = Survey(bits).palette
    assert found is not None
    assert [part.tolist() for part in found] == [[0, 5, 9], [int((bits == v).sum()) for v in (0, 5, 9)]]


def test_palette_gives_up_late() -> None:
    bits = np.zeros(2 * CHUNK, np.uint32)
    bits[-256:] = np.arange(1, 257)
    assert Survey(bits).palette is None
    bits[-1] = 0
    found = Survey(bits).palette
    assert found is not None
    assert len(found[0]) == 256


@given(st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=256))
def test_perfect_hash_finds_each_value(values: set[int]) -> None:
    known = np.array(sorted(values), np.uint32)
    assert np.array_equal(Palette(known).indices(known[::-1]), np.arange(len(known))[::-1])


@given(hnp.arrays(np.float32, st.integers(1, 100), elements=st.floats(width=32)))
def test_exponents_are_those_of_ieee(values: np.ndarray) -> None:
    exponents = exponents_of(values.view(np.uint32))
    for value, exponent in zip(values.tolist(), exponents.tolist(), strict=True):
        if value != value or value in (float("inf"), float("-inf")):
            assert exponent == 255
        elif abs(value) >= 2.0**-126:
            assert exponent - 127 == np.frexp(value)[1] - 1
        else:
            assert exponent == 0


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_gaps_and_nonzeros_rebuild_the_scan(rows: int, columns: int, data: st.DataObject) -> None:
    matrix = data.draw(hnp.arrays(np.uint16, (rows, columns), elements=st.sampled_from([0, 0, 0, 1, 2])))
    for down in (False, True):
        survey = Survey(matrix.reshape(-1), rows)
        gaps = [int(gap) for piece in survey.gaps(down) for gap in piece]
        rebuilt = [v for gap, value in zip(gaps, survey.nonzeros(down).bits.tolist(), strict=True) for v in [0] * gap + [value]]
        scan = (matrix.T if down else matrix).reshape(-1).tolist()
        assert rebuilt == scan[: len(rebuilt)]
        assert not any(scan[len(rebuilt) :])


@pytest.mark.parametrize("rows", [1, 8, 4096])
def test_gaps_cross_chunks(rows: int) -> None:
    bits = np.zeros(2 * CHUNK, np.uint8)
    bits[[3, 2 * CHUNK - 1]] = 1
    survey = Survey(bits, rows)
    assert np.concatenate(list(survey.gaps(False))).tolist() == [3, 2 * CHUNK - 5]
    places = np.flatnonzero(bits.reshape(rows, -1).T.reshape(-1))
    assert np.concatenate(list(survey.gaps(True))).tolist() == [places[0], places[1] - places[0] - 1]


def test_the_cheaper_scan_order_is_chosen() -> None:
    matrix = np.zeros((64, 64), np.uint32)
    matrix[:, [3, 4, 17, 40, 41, 60]] = 7  # whole columns are left: down the columns, nearly all runs are empty
    plan = Survey(matrix.reshape(-1), 64).runs
    assert plan is not None
    assert plan.down_columns
    rows = Survey(np.ascontiguousarray(matrix.T).reshape(-1), 64).runs
    assert rows is not None
    assert not rows.down_columns
    assert rows.size == plan.size


def test_runs_are_looked_at_where_zeros_are_not_few() -> None:
    bits = np.ones(3200, np.uint32)
    bits[:399] = 0
    assert Survey(bits).runs is None
    bits[:400] = 0
    assert Survey(bits).runs is not None
    assert Survey(np.zeros(10, np.uint32)).runs is None


def test_bucket_counts_of_a_survey() -> None:
    bits = np.array([0, 0, 5, 5, 0, 0, 0, 0, 1], np.uint8)
    gaps = np.concatenate(list(Survey(bits).gaps(False)))
    assert gaps.tolist() == [2, 0, 4]
    assert bucket(gaps, MOST_MANTISSA)[0].tolist() == [2, 0, 4]
