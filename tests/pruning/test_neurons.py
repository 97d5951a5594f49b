"""Which neurons go: exact counts, the lowest first, at least one staying, multiples where asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.groups import trace
from featherweight.graph.surgery import Plan
from featherweight.pruning import plan_neurons, prune_neurons
from featherweight.pruning.criteria import NEURON_CRITERIA
from featherweight.pruning.neurons import make_plan
from tests.graph.conv_net import ConvNet
from tests.graph.nets import Residual

EXAMPLE = torch.zeros(1, 6)
SIZES = {"0.weight": 13, "2.weight": 9}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 9), nn.ReLU(), nn.Linear(9, 3))


def kept(plan: Plan) -> dict[str, int]:
    return {group.name: group.kept for group in plan.groups}


@settings(max_examples=8)
@given(sparsity=st.floats(0, 0.85), criterion=st.sampled_from(sorted(NEURON_CRITERIA)))
def test_exactly_the_sparsity_asked_for(sparsity: float, criterion: str) -> None:
    model = net()
    uniform = plan_neurons(model, EXAMPLE, sparsity=sparsity, criterion=criterion, allocation="uniform")
    assert kept(uniform) == {name: size - round(sparsity * size) for name, size in SIZES.items()}
    assert len(uniform.removed.get(("0.weight", 0), ())) == round(sparsity * 13)
    everywhere = plan_neurons(model, EXAMPLE, sparsity=sparsity, criterion="random", allocation="global")
    assert sum(kept(everywhere).values()) >= 22 - round(sparsity * 22)
    if min(kept(everywhere).values()) > 1:
        assert sum(kept(everywhere).values()) == 22 - round(sparsity * 22)


def test_lowest_scores_go_first() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[[2, 5, 7]] = 0
        model[2].weight[:, [2, 5, 7]] = 0
        model[2].weight[4], model[4].weight[:, 4] = 0, 0
    plan = plan_neurons(model, EXAMPLE, sparsity=4 / 22)
    assert plan.removed == {
        ("0.weight", 0): (2, 5, 7),
        ("0.bias", 0): (2, 5, 7),
        ("2.weight", 1): (2, 5, 7),
        ("2.weight", 0): (4,),
        ("2.bias", 0): (4,),
        ("4.weight", 1): (4,),
    }


def test_global_compares_layers_by_their_own_scale() -> None:
    """A layer a thousand times smaller than the others does not lose all its neurons for that."""
    model = net()
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter.mul_(1e-3)
    numbers = kept(plan_neurons(model, EXAMPLE, sparsity=0.5))
    assert min(numbers["0.weight"] / 13, numbers["2.weight"] / 9) > 0.25


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_at_least_one_stays(allocation: str) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0], model[2].weight[:] = 1, 0
    plan = plan_neurons(model, EXAMPLE, sparsity=0.99, allocation=allocation)
    assert min(kept(plan).values()) == 1
    assert plan.apply(model)(torch.zeros(2, 6)).shape == (2, 3)


@pytest.mark.parametrize("round_to", [1, 4, 5, 100])
def test_multiples(round_to: int) -> None:
    for sparsity in (0.0, 0.5, 0.99):
        plan = plan_neurons(net(), EXAMPLE, sparsity=sparsity, allocation="uniform", round_to=round_to)
        for name, size in SIZES.items():
            wanted = max(size - round(sparsity * size), 1)
            assert kept(plan)[name] == min(-(-wanted // round_to) * round_to, size)
            assert len(plan.removed.get((name, 0), ())) == size - kept(plan)[name]


def test_multiples_bring_the_best_back() -> None:
    model, names = net(), ("0.weight", 0)
    fewer = plan_neurons(model, EXAMPLE, sparsity=0.5, allocation="uniform").removed[names]
    rounded = plan_neurons(model, EXAMPLE, sparsity=0.5, allocation="uniform", round_to=8).removed[names]
    assert set(rounded) < set(fewer)
    weights = model[0].weight.detach().square().mean(1) + model[2].weight.detach().square().mean(0)
    back = sorted(set(fewer) - set(rounded))
    assert weights[list(rounded)].max() <= weights[back].min()


def test_zero_sparsity_removes_nothing() -> None:
    model = net()
    plan = plan_neurons(model, EXAMPLE, sparsity=0.0)
    assert plan.removed == {}
    assert kept(plan) == SIZES
    x = torch.randn(4, 6)
    assert torch.equal(plan.apply(model)(x), model(x))


def test_include_and_exclude_choose_groups() -> None:
    assert set(kept(plan_neurons(net(), EXAMPLE, sparsity=0.5, include=["0.*"]))) == {"0.weight"}
    assert set(kept(plan_neurons(net(), EXAMPLE, sparsity=0.5, exclude=["0.*"]))) == {"2.weight"}
    assert set(kept(plan_neurons(net(), EXAMPLE, sparsity=0.5, include=["4.*"]))) == {"2.weight"}
    for options in ({"include": ["fc*"]}, {"exclude": ["*"]}):
        with pytest.raises(RequestError, match="include and exclude"):
            plan_neurons(net(), EXAMPLE, sparsity=0.5, **options)


def test_prune_is_plan_and_apply() -> None:
    model, example = Residual(), torch.randn(2, 3, 8, 8)
    options = {"sparsity": 0.4, "criterion": "random", "allocation": "uniform", "round_to": 2, "seed": 3}
    direct = prune_neurons(model, example, **options)
    planned = plan_neurons(model, example, **options).apply(model)
    assert {n: p.shape for n, p in direct.named_parameters()} == {n: p.shape for n, p in planned.named_parameters()}
    assert torch.equal(direct.eval()(example), planned.eval()(example))


def test_model_is_untouched() -> None:
    model = ConvNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_neurons(model, torch.zeros(2, 3, 8, 8), sparsity=0.5)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_make_plan_removes_what_it_is_told() -> None:
    model = net()
    program = capture(model, EXAMPLE)
    coupling = trace(program, tensors_of(model, program))
    plan = make_plan(program, coupling, [(coupling.groups[0], torch.tensor([1, 12]))])
    assert plan.removed == {("0.weight", 0): (1, 12), ("0.bias", 0): (1, 12), ("2.weight", 1): (1, 12)}
    assert (plan.groups[0].kept, plan.groups[0].total, set(plan.groups[0].tensors)) == (
        11,
        13,
        {"0.weight", "0.bias", "2.weight"},
    )
    assert plan.locked == {"4.bias": "it is an output of the network"}
    assert plan.inputs == program.inputs


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.01},
        {"sparsity": float("nan")},
        {"sparsity": 0.5, "round_to": 0},
        {"sparsity": 0.5, "criterion": "size"},
        {"sparsity": 0.5, "allocation": "everywhere"},
    ],
)
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        plan_neurons(net(), EXAMPLE, **options)  # type: ignore[arg-type]
