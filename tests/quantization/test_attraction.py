"""Pulling weights to the centres of their clusters: the pull by hand, and what it is good for on real data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.pruning import prune_weights
from featherweight.quantization import Attraction, cluster_weights
from featherweight.training import Tuning, evaluate, fit
from featherweight.training.data import load_data

LOADER = [(torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64))] * 5
TUNING = Tuning(epochs=4, learning_rate=0.1, schedule="linear")  # step s of 20 has the rate 0.1 · (1 - (s - 1) / 20)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


@pytest.mark.parametrize(("step", "first", "every"), [(10, 1, 10), (20, 11, 10), (12, None, 10), (14, 8, 7), (20, 15, 7)])
def test_a_pull_by_hand(step: int, first: int | None, every: int) -> None:
    """It sums the rates since the last pull; the last step pulls, though it may be out of turn."""
    model = net()
    clustered = fold(cluster_weights(model, clusters=3, min_dim=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Attraction(model, LOADER, TUNING, clusters=3, strength=4.0, every=every)(model, step / 20)
    amount = sum(0.1 * (1 - (s - 1) / 20) for s in range(first, step + 1)) * 4.0 * step / 20 if first else 0.0
    for name, value in model.state_dict().items():
        centre = clustered.get_parameter(name) if name.endswith("weight") else before[name]
        torch.testing.assert_close(value, centre + (before[name] - centre) / (1 + amount), rtol=1e-5, atol=1e-7)


def test_distance_is_what_clustering_changes() -> None:
    model = net()
    clustered = cluster_weights(model, clusters=4, init="optimal", include=["2.weight"])
    attraction = Attraction(model, LOADER, TUNING, clusters=4, strength=1.0, init="optimal", include=["2.weight"])
    weight = model[2].weight.detach()
    assert attraction.distance(model) == pytest.approx(float((clustered[2].weight.detach() - weight).norm() / weight.norm()))
    assert attraction.distance(clustered) == pytest.approx(0, abs=1e-7)


def test_masks_stay_and_zeros_pull_nothing() -> None:
    model = prune_weights(net(), sparsity=0.5)
    zeros = [model[k].weight == 0 for k in (0, 2)]
    attraction = Attraction(model, LOADER, TUNING, clusters=2, strength=10.0)
    dense = fold(model)
    attraction(model, 1.0)
    attraction(dense, 1.0)
    for k, zero in zip((0, 2), zeros, strict=True):
        assert torch.equal(model[k].weight == 0, zero)
        torch.testing.assert_close(model[k].weight, dense[k].weight)


def test_training_with_attraction_makes_clustering_cheap() -> None:
    """Two networks trained further for as long, with and without: clustered to three values each."""
    data = load_data("digits")
    tuning = Tuning(epochs=12, learning_rate=3e-3, schedule="constant")
    trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    fit(trained, data.train, Tuning(epochs=12, learning_rate=1e-2))
    attraction = Attraction(trained, data.train, tuning, clusters=3, strength=30)
    found = {}
    for name, after_step in (("plain", None), ("attracted", attraction)):
        model = copy.deepcopy(trained)
        fit(model, data.train, tuning, after_step=after_step)
        clustered = cluster_weights(model, clusters=3, min_dim=2)
        with torch.no_grad():
            loss = sum(float(cross_entropy(clustered(x), y, reduction="sum")) for x, y in data.train)
        found[name] = (attraction.distance(model), loss, evaluate(model, data.validation))
    assert found["attracted"][0] < found["plain"][0] / 6
    assert found["attracted"][1] < 0.8 * found["plain"][1]
    assert found["attracted"][2] > found["plain"][2] - 0.03


@pytest.mark.parametrize(
    "options", [{"strength": 0}, {"strength": float("nan")}, {"clusters": 0}, {"every": 0}, {"init": "x"}, {"include": ["x"]}]
)
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Attraction(net(), LOADER, TUNING, **{"clusters": 2, "strength": 1.0, **options})  # type: ignore[arg-type]


def test_other_constraints_are_refused() -> None:
    with pytest.raises(RequestError, match=r"'0\.weight' has another constraint"):
        Attraction(cluster_weights(net(), clusters=3), LOADER, TUNING, clusters=2, strength=1.0)
