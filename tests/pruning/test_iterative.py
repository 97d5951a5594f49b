"""Pruning in rounds reaches the sparsity asked for, and trains in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.pruning.iterative import prune_neurons_iteratively, prune_weights_iteratively


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))


def weights_left(model: nn.Module) -> int:
    return sum(int((model.get_submodule(name).weight != 0).sum()) for name in ("0", "2", "4"))


def neurons(model: nn.Module) -> int:
    return sum(len(model.get_submodule(name).weight) for name in ("0", "2"))


def test_weights_in_rounds() -> None:
    total, left = 7 * 20 + 20 * 30 + 30 * 3, []

    def tune(model: nn.Module) -> nn.Module:
        left.append(weights_left(model))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
        return model

    model = net()
    before = model[0].weight.clone()
    pruned = prune_weights_iteratively(model, sparsity=0.784, rounds=3, tune=tune, allocation="uniform")
    assert left == [sum(n - round(s * n) for n in (140, 600, 90)) for s in (0.4, 0.64, 0.784)]
    assert weights_left(pruned) == left[-1] < total
    assert torch.equal(model[0].weight, before)
    assert bool((pruned.get_submodule("0").bias == model[0].bias + 0.01 + 0.01 + 0.01).all())


def test_weights_removed_stay_removed() -> None:
    gone: list[torch.Tensor] = []

    def tune(model: nn.Module) -> nn.Module:
        now = model.get_submodule("2").weight == 0
        assert all(bool(now[earlier].all()) for earlier in gone)
        gone.append(now.clone())
        with torch.no_grad():
            for p in model.parameters():
                p.uniform_(-1, 1)
        return model

    prune_weights_iteratively(net(), sparsity=0.9, rounds=4, tune=tune, schedule="linear")
    assert len(gone) == 4


def test_neurons_in_rounds() -> None:
    left = []

    def tune(model: nn.Module) -> nn.Module:
        left.append(neurons(model))
        return model

    small = prune_neurons_iteratively(net(), torch.zeros(2, 7), sparsity=0.875, rounds=3, tune=tune)
    assert left == [50 - round(s * 50) for s in (0.5, 0.75, 0.875)]
    assert neurons(small) == left[-1]


def test_neurons_make_up_for_what_a_round_could_not_remove() -> None:
    """With multiples of 8 the first rounds leave more than asked for, the last is as near as the groups allow."""
    small = prune_neurons_iteratively(net(), torch.zeros(2, 7), sparsity=0.6, rounds=4, tune=lambda m: m, round_to=4)
    assert [len(small.get_submodule(name).weight) % 4 for name in ("0", "2")] == [0, 0]
    assert 20 <= neurons(small) <= 26


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "rounds": 0}, "rounds"),
        ({"sparsity": 1.0, "rounds": 2}, "start <= end < 1"),
        ({"sparsity": None, "rounds": 2}, "needs the sparsity to reach"),
        ({"sparsity": 0.5, "rounds": 2, "schedule": "cubik"}, "did you mean 'cubic'"),
        ({"sparsity": 0.5, "rounds": 2, "tune": lambda model: None}, "must return the network it trained, got NoneType"),
    ],
)
def test_wrong_requests(options: dict[str, object], message: str) -> None:
    options = {"tune": lambda model: model, **options}
    with pytest.raises(RequestError, match=message):
        prune_weights_iteratively(net(), **options)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        prune_neurons_iteratively(net(), torch.zeros(2, 7), **options)  # type: ignore[arg-type]
