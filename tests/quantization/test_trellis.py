"""The trellis against the published table of states, walked one element at a time."""

from __future__ import annotations

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest

from featherweight.quantization.rates import TRELLIS, Costs, free
from featherweight.quantization.trellis import SEGMENT, follows, parities, quantizers, search, segments_of

TABLE = ((0, 2), (2, 0), (1, 3), (3, 1))  # the next state for each state and parity; quantizer 1 in states 2 and 3


def index_of(integer: int, quantizer: int) -> int:
    """k, of which the parity moves the state."""
    return integer // 2 if quantizer == 0 else (integer + (integer > 0) - (integer < 0)) // 2


def walk(integers: list[int]) -> list[int] | None:
    """The quantizer of each element, or None if one is not in its quantizer."""
    state, found = 0, []
    for position, integer in enumerate(integers):
        state = 0 if position % SEGMENT == 0 else state
        quantizer = state // 2
        if integer % 2 != quantizer and integer != 0:
            return None
        found.append(quantizer)
        state = TABLE[state][index_of(integer, quantizer) % 2]
    return found


def cost_of(magnitude: int, quantizer: int, costs: Costs, segment: int = 0) -> float:
    """The cost as the docstring of `Costs` has it."""
    near = {pair: float(costs.near[i, segment]) for i, pair in enumerate(TRELLIS.near)}
    line = 2 * float(costs.shift[segment]) * magnitude + quantizer * float(costs.far[segment])
    return line + near.get((quantizer, magnitude), 0.0)


def least_cost(weights: np.ndarray, costs: Costs, importance: np.ndarray) -> float:
    """The optimum of one segment by dynamic programming over the table, all integers near enough tried."""
    best = {0: 0.0}
    for weight, weighs in zip(np.abs(weights), importance, strict=True):
        following: dict[int, float] = {}
        for state, spent in best.items():
            quantizer = state // 2
            for integer in range(-3, int(weight) + 8):
                if integer % 2 != quantizer and integer != 0:
                    continue
                if weight == 0 and integer != 0:
                    continue
                total = spent + weighs * (weight - integer) ** 2 + cost_of(abs(integer), quantizer, costs)
                after = TABLE[state][index_of(integer, quantizer) % 2]
                following[after] = min(following.get(after, np.inf), total)
        best = following
    return min(best.values())


def spent_on(weights: np.ndarray, integers: np.ndarray, costs: Costs, importance: np.ndarray) -> float:
    sides = walk(integers.tolist())
    assert sides is not None
    errors = importance * (weights.astype(np.float64) - integers) ** 2
    return float(errors.sum()) + sum(cost_of(abs(int(n)), q, costs) for n, q in zip(integers, sides, strict=True))


COSTS = Costs(
    np.array([0.15], np.float32),
    np.array([[-0.3], [0.05], [0.2], [-0.1], [0.02]], np.float32),
    np.array([0.1], np.float32),
)


@pytest.mark.parametrize("costs", [free(TRELLIS), COSTS], ids=["error alone", "with rates"])
@pytest.mark.parametrize("scale", [0.4, 3.0, 40.0])
def test_search_is_optimal(costs: Costs, scale: float) -> None:
    weights = np.random.default_rng(0).laplace(0, scale, (3, SEGMENT)).astype(np.float32)
    weights[:, ::7] = 0
    plain = np.ones(SEGMENT)
    for segment, integers in zip(weights, search(weights, costs), strict=True):
        assert spent_on(segment, integers, costs, plain) == pytest.approx(least_cost(segment, costs, plain), rel=1e-4)


def test_search_weighs_errors() -> None:
    generator = np.random.default_rng(1)
    weights = generator.laplace(0, 3, (2, SEGMENT)).astype(np.float32)
    importance = generator.choice([0.25, 1, 4], (2, SEGMENT)).astype(np.float32)
    for segment, weighs, integers in zip(weights, importance, search(weights, COSTS, importance), strict=True):
        assert spent_on(segment, integers, COSTS, weighs) == pytest.approx(least_cost(segment, COSTS, weighs), rel=2e-3)


def test_each_segment_has_its_costs() -> None:
    weights = np.random.default_rng(2).laplace(0, 2, (6, SEGMENT)).astype(np.float32)
    both = [COSTS, free(TRELLIS)]
    mixed = Costs(*(np.concatenate([getattr(c, f) for c in both] * 3, -1) for f in ("shift", "near", "far")))
    expected = [search(weights[i : i + 1], both[i % 2])[0] for i in range(6)]
    np.testing.assert_array_equal(search(weights, mixed), expected)


def test_many_segments_are_searched_in_parts() -> None:
    weights = np.random.default_rng(3).laplace(0, 2, (5000, SEGMENT)).astype(np.float32)
    np.testing.assert_array_equal(search(weights, COSTS)[4090:4100], search(weights[4090:4100], COSTS))


def test_signs_and_zeros_are_kept() -> None:
    weights = np.random.default_rng(4).normal(0, 2, (20, SEGMENT)).astype(np.float32)
    weights[weights < -1] = 0
    integers = search(weights, free(TRELLIS))
    assert ((integers == 0) | (np.sign(integers) == np.sign(weights))).all()
    assert not integers[weights == 0].any()


def test_gain_at_high_rates() -> None:
    """0.97 dB below a plain grid of twice the step, whose error is 2² / 12; the bound of all quantizers is 1.53 dB."""
    weights = np.random.default_rng(5).uniform(-100, 100, (2000, SEGMENT)).astype(np.float32)
    error = float(((search(weights, free(TRELLIS)) - weights) ** 2).mean())
    assert 0.95 < 10 * np.log10(4 / 12 / error) < 1.0


@hypothesis.given(hypothesis.extra.numpy.arrays(np.uint8, st.integers(0, 500), elements=st.integers(0, 1)))
def test_quantizers_are_those_of_the_table(parities: np.ndarray) -> None:
    state, expected = 0, []
    for position, parity in enumerate(parities.tolist()):
        state = 0 if position % SEGMENT == 0 else state
        expected.append(state // 2)
        state = TABLE[state][parity]
    assert quantizers(parities).tolist() == expected


@hypothesis.given(st.integers(-(2**15) + 1, 2**15 - 1))
def test_parity_follows_from_the_integer(integer: int) -> None:
    found = int(parities(np.array([integer], np.int16))[0])
    sides = (0, 1) if integer == 0 else (integer % 2,)
    assert all(index_of(integer, side) % 2 == found for side in sides)


@hypothesis.given(hypothesis.extra.numpy.arrays(np.int16, st.integers(0, 200), elements=st.integers(-3, 3)))
def test_follows_walks_the_table(integers: np.ndarray) -> None:
    assert follows(integers) == (walk(integers.tolist()) is not None)


def test_what_is_found_follows() -> None:
    weights = np.random.default_rng(6).laplace(0, 5, 3 * SEGMENT + 17).astype(np.float32)
    integers = search(segments_of(weights), COSTS).reshape(-1)[: len(weights)]
    assert follows(integers)
    odd = np.flatnonzero(integers % 2)
    integers[odd[0]] += 1
    assert not follows(integers)
