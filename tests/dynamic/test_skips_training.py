"""How gates learn: losses and gradients spelled out, and that what they learn depends on the sample."""

from __future__ import annotations

import itertools
import math
from math import log

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.dynamic import (
    GATINGS,
    Reinforcement,
    SkipNetwork,
    add_gates,
    add_policy,
    calibrate_effort,
    cool,
    reinforce,
    skip_loss,
)
from featherweight.dynamic.skip_training import Draw, _Rollout, policy_loss
from featherweight.dynamic.skips import Trial
from featherweight.errors import RequestError
from featherweight.training import Tuning, fit
from tests.dynamic.exit_nets import Residual, samples


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_gradients_of_gatings() -> None:
    logits = torch.tensor([-1.0, 2.0], requires_grad=True)
    slopes = [sigmoid(z / 2) * (1 - sigmoid(z / 2)) / 2 for z in (-1.0, 2.0)]
    for name, values in (("soft", [sigmoid(-0.5), sigmoid(1.0)]), ("straight-through", [0.0, 1.0])):
        logits.grad = None
        gate = GATINGS[name](logits, 2.0)
        gate.sum().backward()
        assert gate.tolist() == pytest.approx(values)
        assert logits.grad is not None
        assert logits.grad.tolist() == pytest.approx(slopes)


def test_gumbel_draws_with_the_gates_probability() -> None:
    torch.manual_seed(0)
    logits = torch.full((20000,), 0.8, requires_grad=True)
    gate = GATINGS["gumbel"](logits, 0.7)
    assert set(gate.unique().tolist()) == {0.0, 1.0}
    assert gate.mean().item() == pytest.approx(sigmoid(0.8), abs=0.01)
    gate.sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_loss_adds_what_was_spent() -> None:
    trial = Trial(torch.zeros(2, 4), torch.tensor([1.0, 0.2]))
    assert skip_loss(cost=0.5)(trial, torch.tensor([0, 1])).item() == pytest.approx(log(4) + 0.5 * 0.6)  # type: ignore[arg-type]


def test_train_mode_runs_all_branches_for_all_samples() -> None:
    """The share multiplies the branch, batch norms see every sample, and gates get gradients."""
    model = Residual()
    net = add_gates(model, samples(2)).train()
    net.gating = "soft"
    net.network.get_parameter("gates.1.2.bias").data.fill_(-4.0)
    before = model.train()
    x = samples(6)
    path = net.follow([x], lambda number, logits: (logits / 1.0).sigmoid(), training=True)
    features = before.stem(x)
    for number, (one, two) in enumerate((before.first, before.second)):
        share = sigmoid(2.0 if number == 0 else -4.0)
        features = torch.relu(features + share * two(one(features)))
    torch.testing.assert_close(path.answer, before.fc(features.mean((2, 3))))
    statistics = net.network.get_buffer("second.0.norm.running_mean")
    torch.testing.assert_close(statistics, before.second[0].norm.running_mean)
    trial = net(x)
    assert trial.spent.tolist() == pytest.approx([net.share_of(torch.tensor([[sigmoid(2.0), sigmoid(-4.0)]])).item()] * 6)
    skip_loss()(trial, torch.zeros(6, dtype=torch.int64)).backward()
    assert all(net.network.get_parameter(name).grad is not None for name in net.gate_tensors)


def test_temperature_falls_geometrically() -> None:
    net = add_gates(Residual(), samples(2))
    seen = []
    step = cool(4.0, 1.0)
    for done in (0.5, 1.0):
        step(net, done)
        seen.append(net.temperature)
    assert seen == [2.0, 1.0]
    with pytest.raises(RequestError, match="above 0"):
        cool(0.0)


class Three(nn.Module):
    """Three branches, each of which adds a number of its own to one class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        for layer, gain in zip(self.layers, (1.0, -0.5, 0.25), strict=True):
            nn.init.zeros_(layer.weight)
            layer.bias.data = torch.tensor([gain, 0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Constant(nn.Module):
    """A policy whose logits are its bias."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * 0 + self.bias


@pytest.mark.parametrize("how", [Reinforcement(cost=0.3, bound=1.0), Reinforcement("right", penalty=0.5, bound=0.8)])
@pytest.mark.parametrize("joint", [False, True])
def test_reinforce_s_gradient_is_that_of_the_expected_reward(how: Reinforcement, joint: bool) -> None:
    """Eight outcomes can be counted up: the mean gradient of many draws is that of the sum of p(outcome) · reward."""
    how = Reinforcement(how.reward, how.cost, how.penalty, 0.0, joint, how.bound)
    logits, gains = torch.tensor([0.4, -0.8, 1.2], requires_grad=True), torch.tensor([1.0, -0.5, 0.25])
    x, targets = torch.zeros(1, 2) - torch.tensor([0.1, 0.0]), torch.tensor([0])
    net = add_policy(Three(), x, policy=Constant(logits.tolist())).eval()
    yes = how.bound * logits.sigmoid() + (1 - how.bound) * (1 - logits.sigmoid())
    expected = torch.zeros(())
    for outcome in itertools.product([0.0, 1.0], repeat=3):
        u = torch.tensor(outcome)
        answer = x + torch.stack([(u * gains).sum(), torch.zeros(())])
        spent = net.share_of(u[None])
        loss = cross_entropy(answer, targets)
        right = answer.argmax(1) == targets
        reward = -loss - how.cost * spent if how.reward == "loss" else torch.where(right, 1 - spent**2, -how.penalty)
        expected = expected + torch.where(u > 0, yes, 1 - yes).prod() * reward.squeeze()
    expected.backward()
    torch.manual_seed(0)
    many = 40000
    for name, parameter in net.network.named_parameters():
        parameter.requires_grad_(name in net.gate_tensors)
    draw = _Rollout(net, how)(x.expand(many, 2))
    policy_loss(how)(draw, targets.expand(many)).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    found = net.network.get_parameter("gates.bias").grad
    assert found is not None
    torch.testing.assert_close(found, -logits.grad, rtol=0.05, atol=3e-3)
    assert draw.log_probability.exp().mean() < 1


def test_the_usual_way_is_the_baseline() -> None:
    even = torch.zeros(1, 2)
    draw = Draw(even, torch.tensor([0.4]), torch.tensor([-1.0], requires_grad=True), even, torch.tensor([0.4]))
    assert policy_loss(Reinforcement())(draw, torch.tensor([0])).item() == 0  # type: ignore[arg-type]
    cheaper = draw._replace(spent=torch.tensor([0.2]))
    loss = policy_loss(Reinforcement(cost=2.0))(cheaper, torch.tensor([0]))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.4)  # advantage 2 · 0.2, times -log p


def test_branches_come_under_control_from_the_last_one_on() -> None:
    net = add_policy(Three(), torch.zeros(2, 2), policy=Constant([-50.0] * 3)).eval()
    rollout = _Rollout(net, Reinforcement(curriculum=0.5, bound=1.0))
    full = net.share_of(torch.ones(1, 3)).item()
    each = 4 / 12
    seen = []
    for done in (0.0, 0.17, 0.34, 0.9):
        rollout.release(rollout, done)
        seen.append(round((full - rollout(torch.zeros(1, 2)).spent.item()) / each))
    assert seen == [1, 2, 3, 3]
    assert _Rollout(net, Reinforcement()).free == 3


def test_gates_alone_learn_unless_told_otherwise() -> None:
    data = [(samples(8), torch.arange(8) % 5)]
    for joint in (False, True):
        net = add_gates(Residual(), samples(2))
        before = {name: tensor.clone() for name, tensor in net.network.state_dict().items()}
        net.network.get_parameter("fc.bias").requires_grad_(False)
        reinforce(net, data, Tuning(epochs=8, learning_rate=0.05), Reinforcement(cost=5.0, joint=joint))
        changed = {name for name, tensor in net.network.state_dict().items() if not torch.equal(tensor, before[name])}
        if joint:
            assert changed >= {"stem.conv.weight", "stem.norm.running_mean"}
        else:
            assert changed <= net.gate_tensors
        assert changed & net.gate_tensors
        assert "fc.bias" not in changed
        assert [p.requires_grad for p in net.network.parameters()].count(False) == 1


class Deep(nn.Module):
    """Answers well without its branches where the class lies open; where it is a product of two signs, it needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 16)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))
        self.end = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.end(x)  # type: ignore[no-any-return]


def easy_and_hard() -> tuple[torch.Tensor, torch.Tensor]:
    """(hardness, a, b): the class is the sign of a where the hardness is -1, and of a · b where it is 1."""
    torch.manual_seed(0)
    x = torch.randn(1024, 3).sign() * (0.5 + torch.rand(1024, 3))
    x[:, 0] = x[:, 0].sign()
    return x, (torch.where(x[:, 0] > 0, x[:, 1] * x[:, 2], x[:, 1]) > 0).long()


@pytest.fixture(scope="module")
def trained() -> tuple[Deep, list[tuple[torch.Tensor, torch.Tensor]]]:
    x, targets = easy_and_hard()
    data = [(a, b) for a, b in zip(x.split(128), targets.split(128), strict=True)]
    model = Deep()
    fit(model, data, Tuning(epochs=30, learning_rate=0.01))
    return model, data


def shares(net: SkipNetwork, x: torch.Tensor) -> tuple[float, float]:
    """The share of the branches that easy and hard samples take."""
    taken = net.spend(0.0, x).taken.double()
    return taken[x[:, 0] < 0].mean().item(), taken[x[:, 0] > 0].mean().item()


@pytest.mark.parametrize("gating", ["straight-through", "gumbel"])
def test_hard_samples_take_more_branches(gating: str, trained: tuple[Deep, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    model, data = trained
    x, targets = easy_and_hard()
    net = add_gates(model, x[:2])
    net.gating = gating
    fit(net, data, Tuning(epochs=40, learning_rate=0.01), loss=skip_loss(cost=0.6), after_step=cool())
    net.eval()
    easy, hard = shares(net, x)
    assert easy < 0.4
    assert hard > easy + 0.15
    assert (net(x).argmax(1) == targets).double().mean() > 0.97


@pytest.mark.parametrize("make", [add_gates, "policy"])
def test_rewards_teach_the_same(make: object, trained: tuple[Deep, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    model, data = trained
    x, targets = easy_and_hard()
    if make == "policy":
        net = add_policy(model, x[:2], policy=nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)))
        reinforce(net, data, Tuning(epochs=25, learning_rate=0.02), Reinforcement("right", curriculum=0.5))
        reinforce(net, data, Tuning(epochs=10, learning_rate=0.005), Reinforcement("right", joint=True))
    else:
        net = add_gates(model, x[:2])
        reinforce(net, data, Tuning(epochs=30, learning_rate=0.01), Reinforcement(cost=0.5, joint=True))
    net.eval()
    easy, hard = shares(net, x)
    assert easy < 0.3
    assert hard > easy + 0.2
    assert (net(x).argmax(1) == targets).double().mean() > 0.95
    found = calibrate_effort(net, data, prices=[0.0])
    assert found[0].cost.macs < 0.8 * found[-1].cost.macs


@pytest.mark.parametrize(
    "wrong",
    [{"reward": "money"}, {"cost": -1}, {"penalty": -1}, {"curriculum": 1.1}, {"bound": 0.5}, {"cost": math.nan}],
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Reinforcement(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="cost"):
        skip_loss(cost=-0.1)
