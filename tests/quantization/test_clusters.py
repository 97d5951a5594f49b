"""Clustering: few shared values, trained as the sum of their members, for a tensor, a channel or a group of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import DataError, RequestError, WeightsError
from featherweight.graph.capture import capture
from featherweight.graph.constraint import constrained, fold
from featherweight.graph.surgery import Plan
from featherweight.pruning import prune_weights
from featherweight.quantization import clusters as module
from featherweight.quantization import product_quantize
from featherweight.quantization.clusters import cluster_weights
from featherweight.quantization.codebook import Codebook, pieces
from featherweight.quantization.kmeans import INITIALISATIONS
from featherweight.search.journal import Journal, Network
from featherweight.training.statistics import Evidence, squared_gradients


def nonzeros(weight: torch.Tensor) -> int:
    return len(weight[weight != 0].unique())


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))


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


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": 0},
        {"clusters": 65536},
        {"clusters": 2.5},
        {"init": "forgy"},
        {"include": ["nothing"]},
        {"per": "row"},
        {"per": 0},
        {"per": True},
    ],
)
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


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@pytest.mark.parametrize(("per", "channels"), [("channel", 1), (2, 2), (5, 5), ("group", 16), (100, 100)])
@pytest.mark.parametrize("init", ["linear", "optimal"])
def test_codebooks_for_channels_are_those_of_the_channels_alone(per: str | int, channels: int, init: str) -> None:
    layer = prune_weights(with_weight(torch.randn(36, 30)), sparsity=0.3)
    clustered = cluster_weights(layer, clusters=3, per=per, init=init)
    parts = layer.weight.detach().split(channels)
    alone = torch.cat([cluster_weights(with_weight(part), clusters=3, init=init).weight for part in parts])
    assert torch.equal(clustered.weight, alone)
    assert torch.equal(clustered.weight == 0, layer.weight == 0)
    assert sum(p.numel() for p in clustered.parameters()) == 3 * len(parts)


def test_channels_of_a_convolution_and_one_book_for_a_bias() -> None:
    clustered = cluster_weights(nn.Conv2d(4, 8, 3), clusters=2, per="channel")
    assert [nonzeros(channel) for channel in clustered.weight] == [2] * 8
    assert nonzeros(clustered.bias) == 2


def test_codebooks_for_channels_train_as_the_sum_of_their_members_and_are_sliced() -> None:
    model = nn.Sequential(nn.Linear(6, 8, dtype=torch.float64), nn.Linear(8, 5, dtype=torch.float64))
    clustered = cluster_weights(model, clusters=2, per="channel")
    held = clustered[0].parametrizations.weight
    dense = fold(clustered)
    x = torch.randn(7, 6, dtype=torch.float64)
    for each in (clustered, dense):
        each.zero_grad()
        each(x).square().sum().backward()
    sums = [dense[0].weight.grad[held[0].index == k + 1].sum() for k in range(16)]
    torch.testing.assert_close(held.original.grad, torch.stack(sums))

    removed = {("0.weight", 0): (1, 4), ("0.bias", 0): (1, 4), ("1.weight", 1): (1, 4)}
    smaller = Plan(removed, inputs=capture(clustered, x).inputs).apply(clustered)
    kept = torch.tensor([0, 2, 3, 5, 6, 7])
    torch.testing.assert_close(smaller[0].weight, dense[0].weight[kept])
    torch.testing.assert_close(smaller[1].weight, dense[1].weight[:, kept])
    assert all(isinstance(chain[0], Codebook) for chain in constrained(smaller).values())
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.mul_(3)
    torch.testing.assert_close(smaller[0].weight, 3 * dense[0].weight[kept])


@pytest.mark.parametrize("count", [254, 255, 256, 32767, 32768])
def test_index_holds_its_greatest_number(count: int) -> None:
    codebook = Codebook(torch.tensor([0, count]), count)
    assert codebook.index.tolist() == [0, count]
    assert codebook(torch.arange(1.0, count + 1)).tolist() == [0.0, float(count)]


def test_importance_weighs_the_squared_error() -> None:
    """One centroid is the weighted mean; two are best by brute force over the place of the cut."""
    weight, counts = torch.randn(6, 7, dtype=torch.float64), torch.rand(6, 7, dtype=torch.float64) + 0.1
    mean = cluster_weights(with_weight(weight), clusters=1, importance={"weight": counts}).weight
    torch.testing.assert_close(mean[0, 0], (weight * counts).sum() / counts.sum(), rtol=1e-5, atol=0)
    known = {"weight": counts, "other": counts}
    both = cluster_weights(with_weight(weight), clusters=2, init="optimal", importance=known).weight.detach()
    errors = []
    for cut in weight.flatten():
        parts = [part for part in (weight <= cut, weight > cut) if part.any()]
        means = [(weight[part] * counts[part]).sum() / counts[part].sum() for part in parts]
        errors.append(sum(float((counts[p] * (weight[p] - m).square()).sum()) for p, m in zip(parts, means, strict=True)))
    assert float((counts * (weight - both).square()).sum()) == pytest.approx(min(errors), rel=1e-4)


def test_data_give_the_fisher_information() -> None:
    model, data = net(), [(torch.randn(16, 9), torch.randint(5, (16,))) for _ in range(2)]
    names = [name for name, _ in model.named_parameters()]
    fisher = squared_gradients(Evidence(model, data), names)
    from_data = cluster_weights(model, clusters=3, importance=data)
    given_ = cluster_weights(model, clusters=3, importance=fisher)
    plain = cluster_weights(model, clusters=3)
    for name, weight in fold(from_data).named_parameters():
        assert torch.equal(weight, fold(given_).get_parameter(name))
    assert not torch.equal(from_data[0].weight, plain[0].weight)


def test_importance_of_nothing_counts_all_the_same() -> None:
    layer = with_weight(torch.randn(8, 9))
    zeros = {"weight": torch.zeros(8, 9)}
    torch.testing.assert_close(
        cluster_weights(layer, clusters=3, importance=zeros).weight, cluster_weights(layer, clusters=3).weight
    )
    apart = layer.weight.detach() + 9 * layer.weight.detach().sign()
    zeros["weight"][apart > 0] = 1
    below = cluster_weights(with_weight(apart), clusters=2, importance=zeros).weight.detach().min()
    torch.testing.assert_close(below, apart[apart < 0].mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        ({}, RequestError, "got none for '0.weight'"),
        ({"0.weight": torch.ones(9, 12)}, RequestError, r"got \(9, 12\) for '0.weight' of \(12, 9\)"),
        ({"0.weight": -torch.ones(12, 9)}, RequestError, "at least 0, got -1"),
        ({"0.weight": torch.full((12, 9), torch.nan)}, RequestError, "finite"),
        ([], DataError, "no batch"),
    ],
)
def test_importance_that_does_not_fit(importance: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cluster_weights(net(), importance=importance, include=["0.weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[2, 3] = bad
    with pytest.raises(WeightsError, match=r"'3\.weight' holds NaN or infinity"):
        cluster_weights(model)
    assert not constrained(cluster_weights(model, exclude=["3.*"])).keys() & {"3.weight"}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_histogram_is_as_good_as_sorting(monkeypatch: pytest.MonkeyPatch, weighted: bool, dtype: torch.dtype) -> None:
    weight = (torch.randn(300, 400) * torch.rand(300, 1) * (torch.rand(300, 400) < 0.7)).to(dtype)
    importance = {"weight": torch.rand(300, 400)} if weighted else None
    exact = cluster_weights(with_weight(weight), clusters=12, init="density", importance=importance).weight.detach().double()
    monkeypatch.setattr(module, "_MOST_SORTED", 2**10)
    values, masses = module._line(weight, importance and importance["weight"], 12)
    assert len(values) < len(weight[weight != 0]) / 2
    assert torch.equal(values, values.sort().values)
    total = importance["weight"][weight != 0].double().sum() if importance else (weight != 0).sum().double()
    torch.testing.assert_close(masses.sum(), total)
    binned = cluster_weights(with_weight(weight), clusters=12, init="density", importance=importance).weight.detach().double()
    assert torch.equal(binned == 0, weight == 0)
    counts = importance["weight"].double() if importance else torch.ones_like(exact)
    errors = [float((counts * (weight.double() - each).square()).sum()) for each in (binned, exact)]
    assert errors[0] <= errors[1] * (1 + (1e-2 if dtype is torch.bfloat16 else 1e-4))


def test_values_too_close_for_a_histogram_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = with_weight(1 + 1e-5 * torch.randn(100, 200))
    sorted_ = cluster_weights(layer, clusters=8, init="density").weight
    monkeypatch.setattr(module, "_MOST_SORTED", 2**10)
    assert torch.equal(cluster_weights(layer, clusters=8, init="density").weight, sorted_)


@pytest.mark.parametrize("make", [lambda m: cluster_weights(m, clusters=3, per="channel"), product_quantize])
def test_codebooks_come_back_from_a_journal(tmp_path: Path, make: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 8))
    made = make(model)
    Journal.open(tmp_path / "run", {}, resume=False).record({}, {"current": Network(made)})
    back = Journal.open(tmp_path / "run", {}, resume=True).network("current", model)
    assert back is not None
    assert torch.equal(back.model[0].weight, made[0].weight)
    assert [p.shape for p in back.model.parameters()] == [p.shape for p in made.parameters()]


def test_pieces_are_views_of_all_elements() -> None:
    whole = torch.zeros(3, 2**19)
    sizes = []
    for piece, same in pieces(whole, whole):
        piece.add_(1)
        sizes.append(len(same))
    assert sizes == [2**20, 2**19]
    assert bool((whole == 1).all())
