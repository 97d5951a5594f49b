"""k-means on a line: a k-means that is one, starts by value, and the best clusters against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.quantization.kmeans import (
    INITIALISATIONS,
    init_density,
    init_linear,
    init_optimal,
    init_plusplus,
    init_random,
    kmeans,
)

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
WEIGHTED = st.lists(st.tuples(st.integers(-20, 20), st.floats(0.01, 9)), min_size=1, max_size=9)


def error(values: torch.Tensor, centroids: torch.Tensor) -> float:
    """The sum of squared distances to the nearest centroid."""
    return float((values.double()[:, None] - centroids.double()[None, :]).square().min(1).values.sum())


def test_linear_starts_evenly_between_the_extremes() -> None:
    values = torch.tensor([-1.0, 0.0, 0.1, 0.1, 3.0])
    assert init_linear(values, 5, torch.Generator()).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert init_linear(values, 1, torch.Generator()).tolist() == pytest.approx([0.44])


def test_density_starts_with_as_many_values_each() -> None:
    values = torch.cat([torch.zeros(6), torch.tensor([10.0, 20.0])])
    assert init_density(values, 4, torch.Generator()).tolist() == [0.0, 0.0, 0.0, 20.0]
    assert init_density(torch.arange(9.0), 3, torch.Generator()).tolist() == [1.0, 4.0, 7.0]


def test_random_starts_at_values_drawn_without_repetition() -> None:
    values = torch.arange(20.0)
    drawn = [init_random(values, 6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique()) == 6
    assert torch.equal(drawn[0], drawn[0].sort().values)


@pytest.mark.parametrize("init", sorted(INITIALISATIONS))
@given(values=VALUES, clusters=st.integers(1, 8))
def test_kmeans_improves_on_its_start_and_stops_at_a_fixed_point(init: str, values: list[float], clusters: int) -> None:
    line = torch.tensor(values, dtype=torch.float64).sort().values
    clusters = min(clusters, len(values))
    start = INITIALISATIONS[init](line, clusters, torch.Generator().manual_seed(0), None)
    found = kmeans(line, start, iterations=200)
    assert error(line, found) <= error(line, start) * (1 + 1e-9) + 1e-9
    assert torch.equal(found, found.sort().values)
    torch.testing.assert_close(kmeans(line, found, iterations=1), found, rtol=1e-9, atol=1e-9)
    if clusters == 1:
        torch.testing.assert_close(found[0], line.mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_reaches_the_best_partition_from_its_neighbourhood(seed: int) -> None:
    """Brute force: the best clusters of numbers on a line are intervals; started at their means, nothing may move."""
    line = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    partitions = [
        torch.stack([line[a:b].mean() for a, b in itertools.pairwise((0, *cuts, 9))])
        for cuts in itertools.combinations(range(1, 9), 2)
    ]
    best = min(partitions, key=lambda centroids: error(line, centroids))
    torch.testing.assert_close(kmeans(line, best), best)
    errors = [error(line, kmeans(line, start.sort().values)) for start in partitions]
    assert min(errors) == pytest.approx(error(line, best))


def test_kmeans_agrees_with_the_textbook() -> None:
    line = torch.randn(500, dtype=torch.float64).sort().values
    start = init_density(line, 7, torch.Generator())
    centroids = start
    for _ in range(500):
        nearest = (line[:, None] - centroids).abs().argmin(1)
        centroids = torch.stack([line[nearest == k].mean() for k in range(7)])
    torch.testing.assert_close(kmeans(line, start, iterations=500), centroids, rtol=1e-9, atol=1e-9)


def test_centroid_without_values_stays() -> None:
    assert kmeans(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.6, 5.0])).tolist() == [0.0, 1.0, 5.0]


def weighted_error(values: torch.Tensor, weights: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(((values[:, None] - centroids).square().min(1).values * weights).sum())


def best_error(values: torch.Tensor, weights: torch.Tensor, clusters: int) -> float:
    """Brute force over all ways to cut sorted numbers into intervals."""
    count, found = len(values), []
    for cuts in itertools.combinations(range(1, count), min(clusters, count) - 1):
        pairs = list(itertools.pairwise((0, *cuts, count)))
        means = [(values[a:b] * weights[a:b]).sum() / weights[a:b].sum() for a, b in pairs]
        found.append(weighted_error(values, weights, torch.stack(means)))
    return min(found)


@given(numbers=WEIGHTED, clusters=st.integers(1, 6))
def test_optimal_is_what_brute_force_finds(numbers: list[tuple[int, float]], clusters: int) -> None:
    values, weights = torch.tensor(sorted(numbers), dtype=torch.float64).unbind(1)
    found = init_optimal(values, clusters, torch.Generator(), weights)
    assert found.shape == (clusters,)
    assert weighted_error(values, weights, found) == pytest.approx(best_error(values, weights, clusters), rel=1e-9, abs=1e-9)


def test_optimal_without_weights_counts_each_value_once() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 4.0, 6.0])
    assert init_optimal(values, 2, torch.Generator()).tolist() == [0.0, 5.0]
    assert init_optimal(values, 2, torch.Generator(), torch.tensor([1.0, 1, 1, 1, 3])).tolist() == [0.0, 5.5]


@pytest.mark.parametrize("clusters", [2, 3, 16, 61])
def test_optimal_is_better_than_every_other_start(clusters: int) -> None:
    line = torch.cat([torch.randn(3000, dtype=torch.float64), 10 + 0.1 * torch.randn(40, dtype=torch.float64)]).sort().values
    best = init_optimal(line, clusters, torch.Generator())
    torch.testing.assert_close(kmeans(line, best), best, rtol=1e-9, atol=1e-12)
    for name, start in INITIALISATIONS.items():
        for seed in range(3):
            other = kmeans(line, start(line, clusters, torch.Generator().manual_seed(seed), None), iterations=300)
            assert error(line, best) <= error(line, other) * (1 + 1e-12), name


def test_many_values_are_merged_with_little_loss() -> None:
    """Ten times as many as are clustered exactly, with a far outlier: within a millionth of the best after Lloyd's steps."""
    line = torch.cat([torch.randn(160_000, dtype=torch.float64), torch.tensor([-1000.0], dtype=torch.float64)]).sort().values
    start = init_optimal(line, 6, torch.Generator())
    assert float(start[0]) == -1000.0, "what is far from the rest is not merged with it"
    found = kmeans(line, start)
    rest = line[1:]
    five = min(
        error(rest, kmeans(rest, begin(rest, 5, torch.Generator().manual_seed(1), None), iterations=2000))
        for begin in (init_density, init_linear, init_plusplus)
    )
    assert error(line, found) <= five * (1 + 1e-6)


def test_optimal_refuses_more_clusters_than_it_has_memory_for() -> None:
    with pytest.raises(RequestError, match="at most 1024"):
        init_optimal(torch.arange(5000.0), 1025, torch.Generator())


@pytest.mark.parametrize("init", sorted(INITIALISATIONS))
def test_weights_are_repetitions(init: str) -> None:
    """A value that counts three times is as good as three equal values."""
    values, counts = torch.randn(50, dtype=torch.float64).sort().values, torch.randint(1, 4, (50,))
    start = INITIALISATIONS[init](values, 5, torch.Generator().manual_seed(0), counts.double())
    found = kmeans(values, start, weights=counts)
    repeated = values.repeat_interleave(counts)
    torch.testing.assert_close(found, kmeans(repeated, start), rtol=1e-9, atol=1e-12)
    if init in ("density", "linear", "optimal"):
        torch.testing.assert_close(start, INITIALISATIONS[init](repeated, 5, torch.Generator(), None), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [init_random, init_plusplus])
def test_what_counts_more_is_drawn_more_often(start: object) -> None:
    values, weights = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 9.0])
    draws = [float(start(values, 1, torch.Generator().manual_seed(seed), weights)) for seed in range(400)]  # type: ignore[operator]
    assert 340 <= sum(draws) <= 380


def test_plusplus_prefers_what_is_far() -> None:
    values = torch.tensor([0.0] * 98 + [1.0, 100.0])
    drawn = [init_plusplus(values, 2, torch.Generator().manual_seed(seed)).tolist() for seed in range(20)]
    assert all(pair == [0.0, 100.0] for pair in drawn)
