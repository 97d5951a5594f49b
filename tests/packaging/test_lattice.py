"""Grids are found where they are, exactly, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.packaging.cursor import Cursor
from featherweight.packaging.gridded import GRID
from featherweight.packaging.lattice import INTEGER, find_lattice, values_on
from featherweight.packaging.modelled import decode_view, encode_view
from featherweight.packaging.survey import Survey
from featherweight.packaging.tensors import bits_of
from featherweight.quantization.trellis import follows, quantizers

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def made(integers: np.ndarray, steps: torch.Tensor) -> torch.Tensor:
    return (torch.from_numpy(integers).to(steps.dtype) + 0) * steps


@settings(max_examples=30)
@given(st.sampled_from(DTYPES), st.integers(1, 12), st.integers(2, 70), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_was_rounded_is_found(dtype: torch.dtype, rows: int, columns: int, per_row: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    most = generator.choice([1, 7, 127] if dtype in (torch.float16, torch.bfloat16) else [1, 7, 127, 32767])
    integers = generator.integers(-most, most + 1, (rows, columns)).astype(np.int32)
    steps = torch.from_numpy(generator.uniform(0.001, 0.01, (rows if per_row else 1, 1))).to(dtype)
    tensor = made(integers, steps)
    matrix = bits_of(tensor).reshape(rows, columns)
    found = find_lattice(matrix)
    assert found is not None
    assert np.array_equal(values_on(found.kind, found.steps, found.integers), matrix)
    assert np.abs(found.integers).max() <= most, "the steps are the largest"
    assert len(found.steps) in (1, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_weights_are_on_no_grid(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 3), (1, 300), (50, 9), (40, 1000)):
        assert find_lattice(bits_of(torch.randn(shape, generator=generator, dtype=dtype)).reshape(shape)) is None


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.0, 0.05])
def test_one_value_off_the_grid_is_enough(odd: float) -> None:
    tensor = made(np.arange(-5000, 5000).reshape(100, 100) % 200 - 100, torch.tensor([[0.1]]))
    assert find_lattice(bits_of(tensor).reshape(100, 100)) is not None
    tensor[57, 43] = odd
    found = find_lattice(bits_of(tensor).reshape(100, 100))
    assert found is None or len(found.steps) == 100


def test_integers_are_a_grid() -> None:
    found = find_lattice(bits_of(torch.tensor([[3, -32767, 5]])).reshape(1, 3))
    assert found is not None
    assert found.kind == INTEGER
    assert found.integers.tolist() == [[3, -32767, 5]]
    assert find_lattice(bits_of(torch.tensor([[3, -32768, 5]])).reshape(1, 3)) is None


def walk(count: int, scale: float) -> np.ndarray:
    """Integers along a trellis, with random indices."""
    index = np.rint(np.random.default_rng(0).normal(size=count) * scale).astype(np.int64)
    return 2 * index - np.sign(index) * quantizers((index & 1).astype(np.uint8))


@pytest.mark.parametrize("scale", [0.4, 3.0, 300.0])
def test_a_walk_along_the_trellis_is_found_and_takes_a_bit_less_for_each_weight(scale: float) -> None:
    integers = walk(40_000, scale)
    assert follows(integers.astype(np.int16))
    tensor = made(integers.reshape(200, 200), torch.tensor([[0.1]]))
    survey = Survey(bits_of(tensor), 200)
    assert survey.follows_trellis
    payload = b"".join(encode_view(survey, GRID) or [])
    assert payload[1] & 8
    entropy = [
        np.unique(part, return_counts=True)[1] for part in (integers, (integers + np.sign(integers) * (integers & 1)) // 2)
    ]
    ideal = [float((n * np.log2(n.sum() / n)).sum() / 8) for n in entropy]
    assert len(payload) < 1.02 * ideal[1] + 100 < ideal[0]
    cursor = Cursor(payload, "test")
    assert np.array_equal(decode_view(cursor, survey.layout, GRID), survey.bits)
    cursor.end()


def test_one_step_off_the_trellis_is_enough() -> None:
    integers = walk(40_000, 3.0)
    seen = []
    for last in (1, 2):  # one of the quantizers has odd numbers, the other even ones
        integers[-1] = last
        seen.append(Survey(bits_of(made(integers.reshape(200, 200), torch.tensor([[0.1]]))), 200).follows_trellis)
    assert sorted(seen) == [False, True]


def test_one_step_is_found_where_a_column_would_do_with_a_larger_one() -> None:
    """As on a trellis, whose first quantizer has even integers only: a sample of one column would tell the wrong step."""
    integers = np.random.default_rng(0).integers(-9, 10, (4096, 8))
    integers[:, 0] *= 2
    found = find_lattice(bits_of(made(integers, torch.tensor([[0.3]]))).reshape(integers.shape))
    assert found is not None
    assert len(found.steps) == 1
    assert np.array_equal(found.integers, integers)
