"""The law of rates is a code: what it charges sums to one probability, and to the bits that it says."""

from __future__ import annotations

import numpy as np
import pytest

from featherweight.quantization.rates import PLAIN, TRELLIS, Costs, Lattice, fit_costs, free, round_plain

STEPS = 128


def draw(lattice: Lattice, scale: float, segments: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    quantizers = generator.integers(0, len(lattice.first), (segments, STEPS))
    magnitudes = np.abs(np.rint(generator.laplace(0, scale, quantizers.shape))).astype(np.int64)
    if lattice is TRELLIS:
        magnitudes = np.where(magnitudes == 0, 0, 2 * magnitudes - quantizers)
    return magnitudes, quantizers


def total_costs(lattice: Lattice, costs: Costs, tensor: int, quantizer: int, most: int = 4000) -> dict[int, float]:
    """For each magnitude its cost, as the docstring of `Costs` has it."""
    step = lattice.spacing
    magnitudes = sorted({n for q, n in lattice.near if q == quantizer} | set(range(lattice.first[quantizer], most, step)))
    near = {n: float(costs.near[i, tensor]) for i, (q, n) in enumerate(lattice.near) if q == quantizer}
    slope, far = 2 * float(costs.shift[tensor]), quantizer * float(costs.far[tensor])
    return {n: slope * n + far + near.get(n, 0.0) for n in magnitudes}


@pytest.mark.parametrize("lattice", [PLAIN, TRELLIS], ids=["plain", "trellis"])
@pytest.mark.parametrize("scale", [0.3, 2.0, 20.0])
def test_all_quantizers_have_codes_of_the_same_total(lattice: Lattice, scale: float) -> None:
    magnitudes, quantizers = draw(lattice, scale)
    costs, bits = fit_costs(lattice, magnitudes, quantizers, np.zeros(len(magnitudes), int), penalty=1.0)
    totals = []
    for quantizer in range(len(lattice.first)):
        prices = total_costs(lattice, costs, 0, quantizer)
        totals.append(sum((2 if n else 1) * 2.0**-price for n, price in prices.items()))  # both signs
    assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-3)
    spent = sum(
        total_costs(lattice, costs, 0, int(q))[int(n)] + np.log2(totals[0])
        for n, q in zip(magnitudes.ravel(), quantizers.ravel(), strict=True)
    )
    assert bits[0] == pytest.approx(spent, rel=1e-4)


def test_bits_are_near_the_entropy() -> None:
    magnitudes, quantizers = draw(TRELLIS, 3.0, segments=400)
    _, bits = fit_costs(TRELLIS, magnitudes, quantizers, np.zeros(len(magnitudes), int), penalty=1.0)
    entropy = float((magnitudes > 0).sum())
    for quantizer in (0, 1):
        counts = np.bincount(magnitudes[quantizers == quantizer])
        counts = counts[counts > 0]
        entropy += float((counts * np.log2(counts.sum() / counts)).sum())
    assert 1 <= bits[0] / entropy < 1.01


def test_each_tensor_has_its_own() -> None:
    small, sides = draw(TRELLIS, 0.5)
    large, _ = draw(TRELLIS, 8.0)
    owners = np.repeat([0, 1], 40)
    together, bits = fit_costs(TRELLIS, np.concatenate([small, large]), np.concatenate([sides, sides]), owners, penalty=0.3)
    for tensor, magnitudes in enumerate((small, large)):
        alone, own_bits = fit_costs(TRELLIS, magnitudes, sides, np.zeros(40, int), penalty=0.3)
        assert together.shift[tensor] == alone.shift[0]
        np.testing.assert_array_equal(together.near[:, tensor], alone.near[:, 0])
        assert bits[tensor] == own_bits[0]


def test_penalty_scales_costs() -> None:
    magnitudes, quantizers = draw(TRELLIS, 2.0)
    owners = np.zeros(len(magnitudes), int)
    once, _ = fit_costs(TRELLIS, magnitudes, quantizers, owners, penalty=0.2)
    twice, _ = fit_costs(TRELLIS, magnitudes, quantizers, owners, penalty=0.4)
    np.testing.assert_allclose(twice.near, 2 * once.near, rtol=1e-5)
    np.testing.assert_allclose(twice.shift, 2 * once.shift, rtol=1e-5)


@pytest.mark.parametrize("importance", [None, 2.0])
def test_plain_rounding_is_optimal(importance: float | None) -> None:
    costs = Costs(np.array([0.12], np.float32), np.array([[-0.25]], np.float32), np.zeros(1, np.float32))
    weights = np.linspace(-6, 6, 4001, dtype=np.float32).reshape(1, -1)
    weighs = None if importance is None else np.full_like(weights, importance)
    found = round_plain(weights, costs, weighs)
    tried = np.arange(0, 8)
    price = 2 * 0.12 * tried + np.where(tried == 0, -0.25, 0)
    totals = (importance or 1.0) * (np.abs(weights[0])[:, None] - tried) ** 2 + price
    chosen = totals[np.arange(weights.size), np.abs(found[0])]
    np.testing.assert_allclose(chosen, totals.min(1), atol=1e-5)
    assert (np.sign(found) * np.sign(weights) >= 0).all()


def test_free_plain_rounding_is_rounding() -> None:
    weights = np.array([[0.4, 0.6, -1.4, 2.6, 0.0]], np.float32)
    assert round_plain(weights, free(PLAIN)).tolist() == [[0, 1, -1, 3, 0]]
