"""Runs of zeros: the buckets are those of SPEC.md, and runs come back whatever their number of mantissa bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.runs import MOST_MANTISSA, best_mantissa, bucket, decode_runs, encode_runs

RUNS = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**47)), min_size=1, max_size=300)


@given(st.integers(0, 2**48), st.integers(0, MOST_MANTISSA))
def test_buckets_by_the_book(run: int, mantissa: int) -> None:
    plain = max(0, run.bit_length() - 1 - mantissa)
    symbols, widths = bucket(np.array([run]), mantissa)
    assert (symbols[0], widths[0]) == ((plain << mantissa) + (run >> plain), plain)


@pytest.mark.parametrize("mantissa", range(MOST_MANTISSA + 1))
def test_buckets_are_in_order_without_holes(mantissa: int) -> None:
    symbols, _ = bucket(np.arange(5000), mantissa)
    assert symbols[0] == 0
    assert set(np.diff(symbols).tolist()) == {0, 1}


@given(RUNS, st.integers(0, 2))
def test_runs_come_back(runs: list[int], mantissa: int) -> None:
    coded = encode_runs([np.array(runs[:7]), np.array(runs[7:])] if runs[7:] else [np.array(runs)], len(runs), mantissa)
    cursor = Cursor(coded, "test")
    assert decode_runs(cursor, len(runs), mantissa, max(runs)).tolist() == runs
    cursor.end()


@given(RUNS)
def test_promised_bytes_are_exact_and_the_fewest(runs: list[int]) -> None:
    finest = np.bincount(bucket(np.array(runs), MOST_MANTISSA)[0])
    size, mantissa = best_mantissa(finest)
    sizes = []
    for m in range(MOST_MANTISSA + 1):
        if bucket(np.array([max(runs)]), m)[0][0] < 256:
            sizes.append(len(encode_runs([np.array(runs)], len(runs), m)) - 1)  # but for the byte that tells the alphabet
    assert size == min(sizes)
    assert len(encode_runs([np.array(runs)], len(runs), mantissa)) - 1 == size


def test_a_run_longer_than_the_tensor_is_refused() -> None:
    coded = encode_runs([np.array([3, 1000])], 2, 1)
    with pytest.raises(FormatError, match="longer than the tensor"):
        decode_runs(Cursor(coded, "test"), 2, 1, 500)
