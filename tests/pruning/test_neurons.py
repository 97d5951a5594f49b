"""Which neurons go: exact counts, the lowest first, at least one staying, multiples where asked for; and clear refusals."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.cutting import Anatomy, study
from featherweight.graph.groups import Group, trace
from featherweight.graph.surgery import Plan
from featherweight.pruning import plan_neurons, prune_neurons
from featherweight.pruning.neurons import make_plan, select_groups
from featherweight.training.statistics import Evidence
from tests.graph.conv_net import ConvNet
from tests.graph.nets import Residual
from tests.pruning.neuron_nets import DATA, captured_chain

EXAMPLE = torch.zeros(1, 6)
SIZES = {"0.weight": 13, "2.weight": 9}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 9), nn.ReLU(), nn.Linear(9, 3))


TWIN = to_module(net(), EXAMPLE)  # captured once, for tests that plan many times


def kept(plan: Plan) -> dict[str, int]:
    return {group.name: group.kept for group in plan.groups}


@settings(max_examples=12)
@given(sparsity=st.floats(0, 0.85), criterion=st.sampled_from(["magnitude", "l1", "fpgm", "random"]))
def test_exactly_the_sparsity_asked_for(sparsity: float, criterion: str) -> None:
    model = TWIN
    uniform = plan_neurons(model, EXAMPLE, sparsity=sparsity, criterion=criterion, allocation="uniform")
    assert kept(uniform) == {name: size - round(sparsity * size) for name, size in SIZES.items()}
    assert len(uniform.removed.get(("0.weight", 0), ())) == round(sparsity * 13)
    everywhere = plan_neurons(model, EXAMPLE, sparsity=sparsity, criterion="random", allocation="global")
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


def test_another_goes_in_the_place_of_a_groups_last() -> None:
    """Scores that would take all of one group: its best stays, and the count is met all the same."""
    scores = {"0.weight": torch.arange(13.0, 0, -1)[:, None].expand(13, 6), "4.weight": torch.tensor([[0.0] * 8 + [1e-3]] * 3)}
    plan = plan_neurons(TWIN, EXAMPLE, sparsity=20 / 22, criterion=scores)
    assert kept(plan) == {"0.weight": 1, "2.weight": 1}
    plan = plan_neurons(
        TWIN, EXAMPLE, sparsity=12 / 22, criterion=lambda groups, *_: [torch.arange(13.0), torch.full((9,), -1.0)]
    )
    assert plan.removed["0.weight", 0] == (0, 1, 2, 3)
    assert plan.removed["2.weight", 0] == tuple(range(8)), "of equal ones the last stays"


@pytest.mark.parametrize("round_to", [1, 4, 5, 10, 100])
def test_multiples(round_to: int, caplog: pytest.LogCaptureFixture) -> None:
    for sparsity in (0.0, 0.5, 0.99):
        with caplog.at_level(logging.WARNING, logger="featherweight"):
            caplog.clear()
            plan = plan_neurons(TWIN, EXAMPLE, sparsity=sparsity, allocation="uniform", round_to=round_to)
        small = [name for name, size in SIZES.items() if size < round_to]
        assert [record.message for record in caplog.records] == (
            [f"round_to={round_to} leaves smaller groups as they are: {', '.join(small)}"] if small else []
        )
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
    assert set(kept(plan_neurons(TWIN, EXAMPLE, sparsity=0.5, include=["0.*"]))) == {"0.weight"}
    assert set(kept(plan_neurons(TWIN, EXAMPLE, sparsity=0.5, exclude=["0.*"]))) == {"2.weight"}
    assert set(kept(plan_neurons(TWIN, EXAMPLE, sparsity=0.5, include=["4.*"]))) == {"2.weight"}
    with pytest.raises(RequestError, match="include and exclude must leave a group"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, exclude=["*"])
    with pytest.raises(RequestError, match="include and exclude must leave a group"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, include=["4.bias"])  # it is the network's output


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_fits_nothing_is_named_with_what_is_near(option: str) -> None:
    with pytest.raises(RequestError, match=r"got '2.wieght'.*2.weight"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, **{option: ["0.*", "2.wieght"]})


def test_nothing_may_shrink() -> None:
    with pytest.raises(UnsupportedOpError, match="no neuron of this network may be removed: it is an"):
        select_groups(study(nn.Linear(4, 2), torch.zeros(1, 4)))


def test_scores_of_weights_are_summed_over_a_neuron() -> None:
    model = net()
    scores = {"0.weight": torch.rand(13, 6), "2.weight": torch.rand(9, 13), "0.bias": torch.rand(13)}
    plan = plan_neurons(model, EXAMPLE, sparsity=0.5, criterion=scores, allocation="uniform")
    for name, own in {
        "0.weight": [
            sum(map(float, [*scores["0.weight"][c], *scores["2.weight"][:, c], scores["0.bias"][c]])) for c in range(13)
        ],
        "2.weight": [sum(map(float, scores["2.weight"][c])) for c in range(9)],
    }.items():
        lowest = sorted(range(len(own)), key=own.__getitem__)[: round(len(own) / 2)]
        assert plan.removed[name, 0] == tuple(sorted(lowest))


def test_a_group_without_scores_stays_whole() -> None:
    plan = plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion={"4.weight": torch.rand(3, 9)})
    assert kept(plan) == {"0.weight": 13, "2.weight": 9 - round(4.5)}
    with pytest.raises(RequestError, match=r"bn_scale.*none for 0.weight, 2.weight"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion="bn_scale")


@pytest.mark.parametrize("scores", [{"0.wieght": torch.rand(13, 6)}, {"0.weight": torch.rand(6, 13)}])
def test_scores_of_other_weights(scores: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RequestError, match=r"names and shapes.*got .*0.w"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion=scores)


def test_a_criterion_of_ones_own() -> None:
    def position(groups: list[Group], network: Anatomy, evidence: Evidence) -> list[torch.Tensor]:
        return [torch.arange(group.size) for group in groups]

    plan = plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion=position, allocation="uniform")
    assert plan.removed["0.weight", 0] == tuple(range(6))
    with pytest.raises(RequestError, match=r"13 neurons of '0.weight'"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion=lambda groups, *_: [torch.ones(3) for _ in groups])
    with pytest.raises(RequestError, match="NaN"):
        plan_neurons(
            net(), EXAMPLE, sparsity=0.5, criterion=lambda groups, *_: [torch.full((g.size,), torch.nan) for g in groups]
        )


def test_sparsities_by_name() -> None:
    plan = plan_neurons(TWIN, EXAMPLE, sparsity=None, allocation={"0.*": 0.7})
    assert kept(plan) == {"0.weight": 13 - round(0.7 * 13), "2.weight": 9}


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "apoz", "mean_activation"])
def test_data_that_are_missing(criterion: str) -> None:
    with pytest.raises(RequestError, match=f"the criterion '{criterion}' needs data"):
        plan_neurons(TWIN, EXAMPLE, sparsity=0.5, criterion=criterion)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "apoz"])
def test_a_pruned_network_is_pruned_again(criterion: str) -> None:
    model = captured_chain()
    sizes = []
    for _ in range(3):
        plan = plan_neurons(model, DATA[0][0], sparsity=0.34, criterion=criterion, allocation="uniform", data=DATA)
        sizes.append([group.kept for group in plan.groups])
        model = plan.apply(model)
    assert sizes == [[3, 3], [2, 2], [1, 1]]


def test_the_loss_is_the_callers() -> None:
    """With a loss that sees output 0 alone, neurons that only the others read have no importance."""
    model = net()
    with torch.no_grad():
        model[4].weight.copy_(torch.ones(3, 9))
        model[4].weight[0, :4] = 0
        model[2].bias.fill_(5)  # all alive
    plan = plan_neurons(
        model,
        EXAMPLE,
        sparsity=4 / 9,
        include=["4.weight"],
        criterion="taylor",
        data=[(torch.rand(8, 6), torch.zeros(8))],
        loss=lambda outputs, _: outputs[:, 0].mean(),
    )
    assert plan.removed["2.weight", 0] == (0, 1, 2, 3)


def test_heads_go_whole() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (t.unflatten(-1, (4, 2)).transpose(1, 2) for t in (q, k, v))
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    model, example = Attention(), torch.randn(2, 5, 8)
    with torch.no_grad():
        model.out.weight[:, 2:4] = 0
        model.qkv.weight[[2, 3, 10, 11, 18, 19]] = 0
    plan = plan_neurons(model, example, sparsity=0.25, granularity="head")
    assert plan.removed["out.weight", 1] == (2, 3)
    assert plan.removed["qkv.weight", 0] == (2, 3, 10, 11, 18, 19)
    assert plan.unit == "head"
    data = [(torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0]))]
    for criterion in ("taylor", "mean_activation"):
        again = plan_neurons(model, example, sparsity=0.25, granularity="head", criterion=criterion, data=data)
        assert [group.kept for group in again.groups] == [3]


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
        {"sparsity": None},
        {"sparsity": 0.5, "round_to": 0},
        {"sparsity": 0.5, "round_to": 1.5},
        {"sparsity": 0.5, "granularity": "layer"},
        {"sparsity": 0.5, "criterion": "size"},
        {"sparsity": 0.5, "allocation": "everywhere"},
    ],
)
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        plan_neurons(TWIN, EXAMPLE, **options)  # type: ignore[arg-type]
