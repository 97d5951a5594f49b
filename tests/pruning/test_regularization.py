"""Training towards neurons that are zero: the proximal steps by hand, and what they come to on real data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError
from featherweight.pruning import plan_neurons, prune_weights
from featherweight.pruning.regularization import BatchNormL1, GroupLasso
from featherweight.training import Tuning, evaluate, fit
from featherweight.training.data import load_data
from tests.pruning.neuron_nets import EXAMPLE, captured_chain


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


LOADER = [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))] * 2
SMALL = [(EXAMPLE, torch.zeros(1, dtype=torch.int64))] * 2
TUNING = Tuning(epochs=5, learning_rate=0.1, schedule="linear")  # step 5 of 10 has the rate 0.06


def test_a_step_by_hand() -> None:
    """Each neuron's vector becomes w - strength · √n · w / ‖w‖, or zero where that would turn it round; biases stay."""
    model, strength = net(), 0.07 / 0.06
    before = {name: value.clone() for name, value in model.state_dict().items()}
    GroupLasso(model, LOADER, TUNING, strength=strength)(model, 0.5)
    zeros = 0
    for neuron in range(48):
        parts = [before["1.weight"][neuron], before["3.weight"][:, neuron]]
        w = torch.cat(parts).double()
        step = 0.07 * len(w) ** 0.5 * w / w.norm()
        expected = w - step if step.norm() < w.norm() else torch.zeros_like(w)
        got = torch.cat([model[1].weight[neuron], model[3].weight[:, neuron]])
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-7)
        zeros += not got.any()
    assert 0 < zeros < 48
    assert GroupLasso(model, LOADER, TUNING, strength=1.0).sparsity(model) == zeros / 48
    assert torch.equal(model[1].bias, before["1.bias"])
    assert not any(bool((parameter.signbit() & (parameter == 0)).any()) for parameter in model.parameters()), "no -0"


def test_it_is_the_minimum_of_penalty_and_distance() -> None:
    """The operator's definition: nothing near has a smaller strength · √n · ‖v‖ + ‖v - w‖² / 2."""
    model, strength = net(), 0.03
    w = torch.cat([model[1].weight[3], model[3].weight[:, 3]]).detach().double()
    GroupLasso(model, LOADER, TUNING, strength=strength / 0.06)(model, 0.5)
    found = torch.cat([model[1].weight[3], model[3].weight[:, 3]]).detach().double()

    def cost(v: torch.Tensor) -> float:
        return float(strength * len(v) ** 0.5 * v.norm() + (v - w).square().sum() / 2)

    for _ in range(50):
        assert cost(found) <= cost(found + 1e-3 * torch.randn_like(found)) + 1e-12


def test_include_and_exclude_choose_groups() -> None:
    model = captured_chain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    GroupLasso(model, SMALL, TUNING, strength=0.01, include=["0.*"])(model, 0.5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "4.weight"}
    with pytest.raises(RequestError, match="must fit a tensor"):
        GroupLasso(model, SMALL, TUNING, strength=0.01, include=["conv1.*"])


def test_training_with_group_lasso_makes_neurons_that_can_go_for_nothing() -> None:
    data, model = load_data("digits"), net()
    tuning = Tuning(epochs=25, learning_rate=1e-2)
    lasso = GroupLasso(model, data.train, tuning, strength=0.4)
    fit(model, data.train, tuning, after_step=lasso)
    sparsity = lasso.sparsity(model)
    norms = model[1].weight.square().sum(1) + model[3].weight.square().sum(0)
    assert 0.3 < sparsity < 0.7
    between = (norms > 0) & (norms < 0.01 * norms.max())
    assert int(between.sum()) <= 3, "zero, or far from it"
    smaller = plan_neurons(model, data.example, sparsity=sparsity).apply(model)
    assert smaller[1].weight.shape[0] == round(48 * (1 - sparsity))
    images = next(iter(data.test))[0]
    torch.testing.assert_close(smaller(images), model(images), rtol=1e-4, atol=1e-4)
    assert evaluate(smaller, data.validation) > 0.9


def test_training_with_slimming_makes_scales_that_are_zero() -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    tuning = Tuning(epochs=25, learning_rate=0.1, optimizer="sgd")
    fit(model, data.train, tuning, after_step=BatchNormL1(model, data.train, tuning, strength=0.2))
    scales = model[2].weight.detach().abs()
    zeros = int((scales == 0).sum())
    assert 5 < zeros < 45
    plan = plan_neurons(model, data.example, sparsity=zeros / 48, criterion="bn_scale")
    assert plan.removed["1.weight", 0] == tuple((scales == 0).nonzero().flatten().tolist())
    assert evaluate(model, data.validation) > 0.9


def test_a_slimming_step_by_hand() -> None:
    model = captured_chain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    BatchNormL1(model, SMALL, TUNING, strength=0.25 / 0.06)(model, 0.5)
    for name, value in model.state_dict().items():
        old = before[name]
        assert (
            torch.allclose(value, old.sign() * (old.abs() - 0.25).clamp(min=0))
            if name == "1.weight"
            else torch.equal(value, old)
        )


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [GroupLasso, BatchNormL1])
def test_wrong_strengths(kind: type[GroupLasso] | type[BatchNormL1], strength: float) -> None:
    with pytest.raises(RequestError, match="strength must be finite and > 0"):
        kind(captured_chain(), SMALL, TUNING, strength=strength)


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(RequestError, match="needs batch norms"):
        BatchNormL1(net(), LOADER, TUNING, strength=0.1)
    with pytest.raises(DataError, match="no batch"):
        GroupLasso(net(), [], TUNING, strength=0.1)
    with pytest.raises(RequestError, match=r"'1.weight' does; fold"):
        GroupLasso(prune_weights(net(), sparsity=0.5), LOADER, TUNING, strength=0.1)
