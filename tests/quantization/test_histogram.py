"""Histograms: the same however the values are spread over batches and histograms, and true to the values they counted."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.quantization.histogram import BINS, Histogram

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


def counted(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.points(), b.points(), strict=True)) and (a.least, a.greatest) == (
        b.least,
        b.greatest,
    )


@given(batches=st.lists(VALUES, min_size=1, max_size=4))
def test_order_batches_and_merging_do_not_matter(batches: list[list[float]]) -> None:
    tensors = [torch.tensor(batch) for batch in batches]
    once = counted(torch.cat(tensors))
    assert same(counted(*tensors), once)
    assert same(counted(*tensors[::-1]), once)
    merged = Histogram()
    for tensor in tensors:
        merged.merge(counted(tensor))
    assert same(merged, once)
    assert once.total == sum(map(len, batches))


@given(values=VALUES)
def test_points_stand_for_the_values(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    points, counts = counted(tensor).points()
    assert points.shape == counts.shape == (1, points.shape[1])
    assert (points.diff() > 0).all() or points.shape[1] == 1
    assert counts.sum() == len(values)
    assert points[0, 0] == tensor.min()
    assert points[0, -1] == tensor.max()
    repeated = points[0].repeat_interleave(counts[0].long())
    nearest = tensor.sort().values
    width = 4 * tensor.abs().max() / BINS
    assert ((repeated - nearest).abs() <= width).all()
    zeros = int((tensor == 0).sum())
    if zeros and tensor.min() < 0 < tensor.max():
        assert counts[points == 0].tolist() == [zeros]


def test_bins_are_fine_and_widen_by_doubling() -> None:
    """1000 evenly spread values fall into 1000 bins; after a value 2^9 times as large, into a few."""
    histogram = counted(torch.linspace(0.001, 1, 1000))
    assert histogram.points()[0].shape == (1, 1000)
    histogram.add(torch.tensor([512.0]))
    points, counts = histogram.points()
    assert counts[0].tolist() == pytest.approx([249, 250, 250, 250, 1, 1], abs=1)
    assert points[0].tolist() == pytest.approx([0.001, 0.375, 0.625, 0.875, 1.125, 512.0])


def test_only_zeros() -> None:
    points, counts = counted(torch.zeros(3, 4)).points()
    assert (points.tolist(), counts.tolist()) == ([[0.0]], [[12.0]])


@pytest.mark.parametrize("scale", [1e-300, 1e-38, 1.0, 1e38, 1e300])
def test_any_magnitude(scale: float) -> None:
    histogram = counted(torch.tensor([-1.0, 0.5, 1.0], dtype=torch.float64) * scale, torch.tensor([3.0]))
    assert histogram.total == 4
    assert histogram.least == -scale
    assert histogram.greatest == max(3.0, scale)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_and_nothing_counted(bad: float) -> None:
    histogram = counted(torch.ones(2))
    with pytest.raises(RequestError, match="finite"):
        histogram.add(torch.tensor([1.0, bad]))
    assert histogram.total == 2
    assert histogram.greatest == 1


def test_nothing_counted() -> None:
    with pytest.raises(RequestError, match="at least one sample"):
        counted(torch.zeros(0)).points()


def test_half_precision_counts_as_float() -> None:
    values = torch.tensor([0.1, -3.0, 1000.0])
    for a, b in itertools.pairwise([values.half(), values.half().float()]):
        assert same(counted(a), counted(b))
