"""Regrowth: exact counts, the smallest dropped, the right ones grown from zero, and nothing but that."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.pruning import prune_weights
from featherweight.pruning.regrowth import GROWTHS, Regrowth
from featherweight.training import TensorLoader, Tuning, fit


def sparse_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 4))
    return prune_weights(net, sparsity=0.8, criterion="random", allocation="erdos_renyi")


def mask_of(model: nn.Module, name: str = "0") -> torch.Tensor:
    mask: torch.Tensor = model.get_submodule(name).parametrizations.weight[0].mask  # type: ignore[union-attr, index, assignment]
    return mask


def loader() -> TensorLoader:
    inputs = torch.randn(64, 12)
    return TensorLoader(inputs, (inputs[:, 0] > 0).long(), batch_size=16, shuffle=True)


def start(model: nn.Module, move: Regrowth) -> Regrowth:
    move(model, 1e-6)
    return move


@pytest.mark.parametrize("growth", sorted(GROWTHS))
def test_the_number_of_weights_never_changes_in_training(growth: str) -> None:
    model, data = sparse_net(), loader()
    counts = {name: int(mask_of(model, name).sum()) for name in ("0", "2")}
    first = mask_of(model).clone()
    move, history = Regrowth(growth=growth, updates=8, data=data), []

    def after_step(model: nn.Module, done: float) -> None:
        move(model, done)
        history.append(mask_of(model).clone())
        assert {name: int(mask_of(model, name).sum()) for name in counts} == counts
        assert not fold(model).get_submodule("0").weight[~mask_of(model)].any()  # type: ignore[index, operator]

    fit(model, data, Tuning(epochs=8, learning_rate=0.01), after_step=after_step)
    changes = [not torch.equal(a, b) for a, b in zip([first, *history], history, strict=False)]
    assert 5 <= sum(changes) <= 8, "32 steps; 8 updates within the first 24, the last of which move next to nothing"
    assert not any(changes[24:])


def test_the_smallest_are_dropped_and_the_steepest_grow_from_zero() -> None:
    model, data = sparse_net(), [(torch.randn(20, 12), torch.randint(4, (20,)))]
    dense = fold(model)
    nn.functional.cross_entropy(dense(data[0][0]), data[0][1]).backward()
    before, weight = mask_of(model).clone(), dense.get_submodule("0").weight.detach()
    slopes = dense.get_submodule("0").weight.grad.abs().flatten()  # type: ignore[union-attr, operator]
    move = start(model, Regrowth(drop=0.9, updates=1000, until=1.0, data=data))
    move(model, 0.5)
    moving = round(0.9 / 2 * (1 + math.cos(math.pi / 2)) * int(before.sum()))
    alive = before.flatten().nonzero().flatten().tolist()
    dropped = sorted(alive, key=lambda i: abs(float(weight.flatten()[i])))[:moving]  # type: ignore[union-attr, operator]
    stays = set(alive) - set(dropped)
    grown = sorted(set(range(360)) - stays, key=lambda i: -float(slopes[i]))[:moving]
    assert set(grown) & set(dropped), "what was just dropped may grow, too"
    now = mask_of(model).flatten()
    assert set(now.nonzero().flatten().tolist()) == stays | set(grown)
    after = fold(model).get_submodule("0").weight.flatten()  # type: ignore[union-attr, operator]
    assert not after[grown].any()
    assert torch.equal(after[sorted(stays)], weight.flatten()[sorted(stays)])  # type: ignore[union-attr, operator]


def test_random_growth_depends_on_the_seed_and_the_update_alone() -> None:
    def moved(seed: int, done: float) -> torch.Tensor:
        torch.manual_seed(1)
        model = sparse_net()
        torch.manual_seed(int(1000 * done))
        start(model, Regrowth(growth="random", seed=seed))(model, done)
        return mask_of(model)

    assert torch.equal(moved(0, 0.3), moved(0, 0.3))
    assert not torch.equal(moved(0, 0.3), moved(1, 0.3))
    assert not torch.equal(moved(0, 0.3), moved(0, 0.35))


def test_it_leaves_the_training_s_random_numbers_alone() -> None:
    model = sparse_net()
    move = start(model, Regrowth(data=loader()))
    before = torch.get_rng_state()
    move(model, 0.4)
    assert torch.equal(before, torch.get_rng_state())


def test_regrowth_finds_the_input_that_matters() -> None:
    """The target depends on one input, which no weight of the first layer reads at first."""
    torch.manual_seed(0)
    model, data = sparse_net(), loader()
    with torch.no_grad():
        mask_of(model)[:, 0] = False
    fit(model, data, Tuning(epochs=10, learning_rate=0.01), after_step=Regrowth(updates=20, data=data))
    readers = mask_of(model).sum(dim=0)
    assert int(readers[0]) > 2 * float(readers[1:].float().mean())


@pytest.mark.parametrize(
    "options",
    [
        {"growth": "gradients"},
        {"growth": "gradient"},
        {"growth": "random", "drop": 0.0},
        {"growth": "random", "drop": 1.0},
        {"growth": "random", "updates": 0},
        {"growth": "random", "until": 0.0},
    ],
)
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Regrowth(**options)  # type: ignore[arg-type]


def test_networks_it_does_not_fit() -> None:
    dense = nn.Linear(4, 4)
    with pytest.raises(RequestError, match="needs a network with masks"):
        start(dense, Regrowth(growth="random"))(dense, 0.5)
    more = prune_weights(dense, sparsity=0.5)
    parametrize.register_parametrization(more, "weight", nn.ReLU())
    with pytest.raises(RequestError, match="a mask and nothing else, got Mask, ReLU on weight"):
        start(more, Regrowth(growth="random"))(more, 0.5)
