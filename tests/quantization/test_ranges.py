"""Ranges: each checked against its definition, computed another way; vectorised rows; grids that cover what they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.quantization.grid import Grid
from featherweight.quantization.ranges import Scheme, entropy, minmax, mse, percentile

SCHEMES = [Scheme(bits, symmetric=symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]


def tailed(rows: int = 3, points: int = 4000, seed: int = 0) -> torch.Tensor:
    """Mostly small values and few large ones, more of them above zero."""
    values = torch.randn(rows, points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values**3 + 0.5


def squared_error(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    step, least, greatest = (each[:, None] for each in scheme.grid(low, high))
    return (Grid(step, least, greatest)(values) - values).square().sum(1).detach()


@pytest.mark.parametrize("bits", [1, 17, 0, -3, 2.5, "8"])
def test_bits_out_of_range(bits: object) -> None:
    with pytest.raises(RequestError, match=r"bits must be an integer in \[2, 16\]"):
        Scheme(bits)  # type: ignore[arg-type]


@given(
    low=st.floats(-1e3, 0), high=st.floats(0, 1e3), bits=st.integers(2, 16), symmetric=st.booleans(),
)  # fmt: skip
def test_grids_cover_their_range(low: float, high: float, bits: int, symmetric: bool) -> None:
    scheme = Scheme(bits, symmetric=symmetric)
    step, least, greatest = scheme.grid(torch.tensor([low]).double(), torch.tensor([high]).double())
    Grid(step, least, greatest)
    assert int(greatest - least) <= 2**bits - 1
    assert float(least * step) <= low + 0.51 * float(step)
    assert float(greatest * step) >= high - 0.51 * float(step)
    if high - low > 1e-9:
        wasted = float(greatest - least) * float(step) / (high - low)
        assert wasted <= (4.1 if symmetric else 1.01) or bits == 16


def test_a_range_above_zero_has_a_grid_above_zero() -> None:
    step, least, greatest = Scheme(8, symmetric=False).grid(torch.tensor(0.0), torch.tensor(2.55))
    assert (least.item(), greatest.item()) == (0, 255)
    assert step.item() == pytest.approx(0.01)


def test_minmax_is_the_extremes() -> None:
    low, high = minmax(torch.tensor([[-3.0, 2.0], [1.0, 2.0], [-2.0, -1.0]]), None, Scheme(8))
    assert (low.tolist(), high.tolist()) == ([-3.0, 0.0, -2.0], [2.0, 2.0, 0.0])


def test_percentile_clips_at_most_the_share() -> None:
    values = tailed(4, 1000)
    low, high = percentile(values, None, Scheme(8), share=0.013)
    assert (values > high[:, None]).sum(1).tolist() == [13] * 4
    assert (values < low[:, None]).sum(1).tolist() == [13] * 4
    counts = torch.randint(1, 5, values.shape).double()
    repeated = [row.repeat_interleave(count.long())[None] for row, count in zip(values, counts, strict=True)]
    expected = [percentile(row, None, Scheme(8), share=0.013) for row in repeated]
    found = percentile(values, counts, Scheme(8), share=0.013)
    assert torch.equal(found[0], torch.cat([low for low, _ in expected]))
    assert torch.equal(found[1], torch.cat([high for _, high in expected]))
    with pytest.raises(RequestError, match="share"):
        percentile(values, None, Scheme(8), share=0.5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_mse_is_near_the_best_of_all_ranges(scheme: Scheme) -> None:
    values = tailed(2, 500)
    found = squared_error(values, *mse(values, None, scheme), scheme)
    low, high = minmax(values, None, scheme)
    shares = torch.linspace(0.02, 1, 120).double()
    pairs = [(a, a) for a in shares] if scheme.symmetric else [(a, b) for a in shares[::3] for b in shares[::3]]
    best = torch.stack([squared_error(values, low * a, high * b, scheme) for a, b in pairs]).amin(0)
    assert (found <= best * (1.03 if scheme.symmetric else 1.25)).all()
    assert (found <= squared_error(values, low, high, scheme)).all()


def test_mse_of_normal_weights_clips_where_theory_says() -> None:
    """The optimal uniform quantizer of a normal distribution with 16 levels has a step of 0.3352 sigma (Max 1960)."""
    values = torch.randn(1, 200000, generator=torch.Generator().manual_seed(3))
    scheme = Scheme(4)
    step, _, _ = scheme.grid(*mse(values, None, scheme))
    assert step.item() == pytest.approx(0.3352, rel=0.05)


def test_entropy_clips_an_outlier_and_keeps_what_is_even() -> None:
    even = torch.linspace(-1, 1, 5001)[None]
    low, high = entropy(even, None, Scheme(6))
    assert high.item() > 0.85
    assert low.item() < -0.85
    normal = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    outlier = torch.cat([normal, torch.full((1, 1), 100.0)], 1)
    assert 2 < entropy(outlier, None, Scheme(4))[1].item() < 50


def test_entropy_is_the_divergence_of_the_clipped_distribution() -> None:
    """By hand: four occupied bins; 2 bits without a sign have levels 0 to 3 and at the whole range lose nothing."""
    points, counts = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 2.0, 1.0]])
    low, high = entropy(points, counts, Scheme(2, symmetric=False))
    assert (low.item(), high.item()) == (0.0, 3.0)
