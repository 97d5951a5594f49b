"""What a training adds up: by hand for one step, against the loss for many."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrained
from featherweight.graph.selection import select_weights
from featherweight.pruning import GradualPruning, Movement, PathIntegral, plan_weights, prune_weights
from featherweight.pruning.trajectory import TRAJECTORIES, Trajectory
from featherweight.training import TensorLoader, Tuning, fit

INPUTS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :3].argmax(dim=1)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = cross_entropy(model(INPUTS), TARGETS)
    loss.backward()
    optimizer.step()
    return loss.item()


def test_one_step_by_hand() -> None:
    model = net()
    movement, path = Movement(model), PathIntegral(model, damping=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for trajectory in (movement, path):
        trajectory(model, 1.0)
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        torch.testing.assert_close(movement.scores()[name], -gradient * before[name])
        importance = 0.1 * gradient.square() / ((0.1 * gradient).square() + 0.5)  # SGD: Δw = -0.1 g
        torch.testing.assert_close(path.scores()[name], importance)


def test_path_integral_is_the_fall_of_the_loss() -> None:
    """Small steps on all data: what the weights brought about adds up to what the loss lost (Zenke et al., eq. 2)."""
    model = net()
    path = PathIntegral(model, damping=1.0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    losses = []
    for _ in range(200):
        losses.append(step(model, optimizer))
        path(model, 0.0)
    gone = {name: (p.detach() - start[name]).square() + 1.0 for name, p in model.named_parameters()}
    total = sum(float((path.scores()[name] * gone[name]).sum()) for name in gone)
    assert losses[0] - losses[-1] > 0.2
    assert total == pytest.approx(losses[0] - losses[-1], rel=0.05)


def test_movement_knows_what_shrinks() -> None:
    """Fine-tuning drives one weight away from zero and another towards it, whatever their size."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 3.0]]))
    movement, optimizer = Movement(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (model.weight - torch.tensor([[1.0, 1.0]])).square().sum().backward()
        optimizer.step()
        movement(model, 0.0)
    scores = movement.scores()["weight"][0]
    assert scores[0] > 0 > scores[1]
    assert plan_weights(model, sparsity=0.5, criterion=movement)["weight"].tolist() == [[True, False]]
    assert plan_weights(model, sparsity=0.5)["weight"].tolist() == [[False, True]], "magnitude says the opposite"


@pytest.mark.parametrize("name", sorted(TRAJECTORIES))
def test_contract(name: str) -> None:
    """Follows `fit`, is finite and always the same, does not change the training, scores what `plan_weights` asks for."""
    found: list[dict[str, torch.Tensor]] = []
    models = []
    for follow in (True, True, False):
        model = prune_weights(net(), sparsity=0.25)
        trajectory: Trajectory = TRAJECTORIES[name](model)
        fit(model, TensorLoader(INPUTS, TARGETS, batch_size=8), Tuning(epochs=3), after_step=trajectory if follow else None)
        found.append(trajectory.scores())
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[2].parameters(), strict=True))
    for key, weight in select_weights(models[0], min_dim=0).items():
        score = found[0][key]
        assert score.shape == weight.shape
        assert bool(score.isfinite().all())
        assert torch.equal(score, found[1][key])
        assert bool(score.any())
        assert not found[2][key].any()
    found[0]["0.weight"].zero_()
    masks = plan_weights(models[0], sparsity=0.5, criterion=found[1])
    assert sum(int((~mask).sum()) for mask in masks.values()) == 36


@pytest.mark.parametrize("name", sorted(TRAJECTORIES))
def test_a_name_alone_says_what_to_do(name: str) -> None:
    with pytest.raises(RequestError, match=f"{TRAJECTORIES[name].__name__}.*after_step"):
        plan_weights(net(), sparsity=0.5, criterion=name)


def test_gradual_pruning_feeds_its_trajectory() -> None:
    """The masks put on in between change neither the names nor the optimizer's tensors."""
    alone, model = net(), net()
    movement = Movement(model)
    grow = GradualPruning(start=0.0, end=0.5, until=0.5, updates=4, criterion=movement)
    fit(model, TensorLoader(INPUTS, TARGETS, batch_size=8), Tuning(epochs=10, learning_rate=1e-2), after_step=grow)
    assert sum(int((w == 0).sum()) for w in select_weights(model).values()) == 36
    assert set(constrained(model)) == {"0.weight", "2.weight"}
    assert all(bool(score.any()) for score in movement.scores().values())
    with pytest.raises(RequestError, match="other parameters"):
        movement(nn.Linear(2, 2), 0.0)
    assert not Movement(alone).scores()["0.weight"].any()


def test_damping_is_checked() -> None:
    with pytest.raises(RequestError, match="damping"):
        PathIntegral(net(), damping=0.0)
