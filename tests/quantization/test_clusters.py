"""Clustering: few shared values, trained as the sum of their members, k-means that is a k-means."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrained, fold
from featherweight.pruning import prune_weights
from featherweight.quantization.clusters import (
    INITIALISATIONS,
    Codebook,
    cluster_weights,
    init_density,
    init_linear,
    init_random,
    kmeans,
)

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)


def error(values: torch.Tensor, centroids: torch.Tensor) -> float:
    """The sum of squared distances to the nearest centroid."""
    return float((values.double()[:, None] - centroids.double()[None, :]).square().min(1).values.sum())


def nonzeros(weight: torch.Tensor) -> int:
    return len(weight[weight != 0].unique())


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))


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
    start = INITIALISATIONS[init](line, clusters, torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize("init", sorted(INITIALISATIONS))
@pytest.mark.parametrize("clusters", [1, 2, 7, 300])
def test_few_shared_values(init: str, clusters: int) -> None:
    model = net()
    clustered = cluster_weights(model, clusters=clusters, init=init)
    assert set(constrained(clustered)) == {name for name, _ in model.named_parameters()}
    originals = dict(model.named_parameters())
    for name, weight in fold(clustered).named_parameters():
        original = originals[name]
        assert weight.shape == original.shape
        assert nonzeros(weight) <= clusters
        if len(original.unique()) <= clusters:
            assert torch.equal(weight, original)
        else:
            assert nonzeros(weight) > clusters // 2
            distances = (original.detach().reshape(-1, 1) - weight.unique().detach()).abs()
            chosen = (original - weight).abs().reshape(-1)
            torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-4, atol=1e-7)


def test_original_is_untouched() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cluster_weights(model, clusters=2)
    assert not constrained(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("init", sorted(INITIALISATIONS))
def test_masked_model_keeps_its_zeros(init: str) -> None:
    pruned = prune_weights(net(), sparsity=0.7)
    clustered = cluster_weights(pruned, clusters=4, init=init)
    optimizer = torch.optim.SGD(clustered.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        for name in ("0", "3"):
            weight, mask = clustered.get_submodule(name).weight, pruned.get_submodule(name).weight != 0
            assert torch.equal(weight != 0, mask)
            assert not weight[~mask].signbit().any()
            assert 1 < nonzeros(weight) <= 4
        optimizer.zero_grad()
        clustered(torch.randn(6, 9)).square().sum().backward()
        optimizer.step()


def test_gradient_of_a_centroid_is_the_sum_over_its_members() -> None:
    clustered = cluster_weights(prune_weights(net().double(), sparsity=0.3), clusters=5)
    dense, x = fold(clustered), torch.randn(7, 9, dtype=torch.float64)
    for model in (clustered, dense):
        model(x).square().sum().backward()
    for name, (codebook,) in constrained(clustered).items():
        owner, _, leaf = name.rpartition(".")
        centroids = clustered.get_submodule(owner).parametrizations[leaf].original
        gradient = dense.get_parameter(name).grad
        sums = [gradient[codebook.index == k + 1].sum() for k in range(len(centroids))]
        torch.testing.assert_close(centroids.grad, torch.stack(sums))


def test_what_is_trained_is_the_centroids() -> None:
    clustered = cluster_weights(nn.Linear(30, 30), clusters=8)
    assert [p.numel() for p in clustered.parameters()] == [8, 8]


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 5),
        torch.full((4, 5), 0.3),
        torch.tensor([[0.0, 0.5, -0.5, 0.0, 0.25]] * 4),
        torch.tensor([[1.0, 1.0 + 2**-23, 1.0 + 2**-22, -1.0, 0.0]] * 4),
        torch.tensor([[1e-38, 1e-45, -1e-45, 3e38, -3e38]] * 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_distinct_values_are_kept_exactly(weight: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype is torch.float64:
        weight = weight.double() + (weight == 1).double() * torch.tensor([0, 2**-52, 2**-51, 0, 0.0]).double()
    layer = nn.Linear(5, 4, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    clustered = cluster_weights(layer, clusters=5)
    assert torch.equal(clustered.weight, layer.weight)
    assert torch.equal(fold(clustered).weight, layer.weight)


def test_adjacent_numbers_are_told_apart() -> None:
    base = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    steps = [base]
    for _ in range(4):
        steps.append(torch.nextafter(steps[-1], torch.full_like(base, torch.inf)))
    layer = nn.Linear(3, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack(steps))
    assert torch.equal(cluster_weights(layer, clusters=15).weight, layer.weight)


def test_which_parameters() -> None:
    assert set(constrained(cluster_weights(net(), min_dim=2))) == {"0.weight", "3.weight"}
    assert set(constrained(cluster_weights(net(), include=["3.*"]))) == {"3.weight", "3.bias"}
    assert set(constrained(cluster_weights(net(), exclude=["1.*", "*.bias"]))) == {"0.weight", "3.weight"}


def test_random_start_depends_on_the_seed_alone() -> None:
    layer = nn.Linear(20, 20)
    weights = [cluster_weights(layer, clusters=30, init="random", seed=seed).weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("options", [{"clusters": 0}, {"clusters": 65536}, {"init": "forgy"}, {"include": ["nothing"]}])
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        cluster_weights(net(), **options)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4))
def test_codebook_inverts_itself(index: list[int], centroids: list[float]) -> None:
    codebook = Codebook(torch.tensor(index), 4)
    weight = codebook(torch.tensor(centroids))
    assert weight.tolist() == [0.0 if k == 0 else centroids[k - 1] for k in index]
    again = codebook.right_inverse(weight)
    assert again.shape == (4,)
    torch.testing.assert_close(codebook(again), weight, rtol=0, atol=0)


@pytest.mark.parametrize("clusters", [255, 256, 1000])
def test_many_clusters_fit_their_index(clusters: int) -> None:
    layer = nn.Linear(clusters, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1, clusters + 1).float().repeat(2, 1))
    clustered = cluster_weights(layer, clusters=clusters)
    assert torch.equal(clustered.weight, layer.weight)


def test_codebook_is_sliced() -> None:
    codebook = Codebook(torch.tensor([[0, 1, 2], [2, 1, 0]]), 2)
    codebook.take(1, torch.tensor([0, 2]))
    codebook.take(0, torch.tensor([1]))
    assert codebook(torch.tensor([5.0, 7.0])).tolist() == [[7.0, 0.0]]
