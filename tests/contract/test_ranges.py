"""What every range function promises, whatever it thinks best: see `RangeFunction`."""

from __future__ import annotations

import pytest
import torch

from featherweight.quantization.grid import Grid
from featherweight.quantization.histogram import Histogram
from featherweight.quantization.ranges import RANGES, Scheme
from tests.quantization.test_ranges import SCHEMES, tailed


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", RANGES)
def test_rows_are_independent_and_have_zero_between(name: str, scheme: Scheme) -> None:
    values = tailed() * torch.tensor([[1.0], [1e-3], [-50.0]])
    together = RANGES[name](values, None, scheme)
    for row in range(3):
        alone = RANGES[name](values[row : row + 1], None, scheme)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row : row + 1], b)
    low, high = together
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (low >= values.amin(1)).all()
    assert (high <= values.amax(1)).all()


@pytest.mark.parametrize("name", RANGES)
def test_a_histogram_gives_what_its_values_give(name: str) -> None:
    values, scheme = tailed(1, 20000), Scheme(6, symmetric=False)
    histogram = Histogram()
    for batch in values[0].split(3000):
        histogram.add(batch)
    found, expected = RANGES[name](*histogram.points(), scheme), RANGES[name](values, None, scheme)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.15 if name == "entropy" else 0.01, atol=0.05)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("values", [torch.zeros(2, 5), torch.full((2, 5), 3.0), torch.tensor([[-2.0], [0.0]])])
def test_rows_with_nothing_to_choose(name: str, values: torch.Tensor) -> None:
    scheme = Scheme(8)
    low, high = RANGES[name](values, None, scheme)
    step, least, greatest = (each[:, None] for each in scheme.grid(low, high))
    torch.testing.assert_close(Grid(step, least, greatest)(values).detach(), values, rtol=0.02, atol=0)
