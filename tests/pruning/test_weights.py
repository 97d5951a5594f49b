"""Single weights: exact counts, masks that hold in training, and growth that never gives back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrained, fold
from featherweight.pruning import GradualPruning, Mask, apply_masks, plan_weights, prune_weights
from featherweight.pruning.weights import set_masks
from featherweight.training.statistics import Evidence

COUNTS = {"0.weight": 7 * 11, "2.weight": 11 * 5}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 5))


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((w == 0).sum()) for name, w in fold(model).named_parameters() if w.dim() > 1}


@given(sparsity=st.floats(0, 1, exclude_max=True), criterion=st.sampled_from(["magnitude", "random"]))
def test_exactly_the_sparsity_asked_for(sparsity: float, criterion: str) -> None:
    model = net()
    uniform = prune_weights(model, sparsity=sparsity, criterion=criterion, allocation="uniform")
    assert zeros(uniform) == {name: round(sparsity * n) for name, n in COUNTS.items()}
    everywhere = prune_weights(model, sparsity=sparsity, criterion=criterion, allocation="global")
    assert sum(zeros(everywhere).values()) == round(sparsity * sum(COUNTS.values()))


def test_the_smallest_go_and_the_rest_stay() -> None:
    model = net()
    pruned = prune_weights(model, sparsity=0.4)
    weight, left = model[0].weight, pruned[0].weight
    assert weight[left == 0].abs().max() < weight[left != 0].abs().min()
    assert torch.equal(weight[left != 0], left[left != 0])
    assert torch.equal(model[0].bias, pruned[0].bias)


def test_global_ranks_over_all_tensors() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    counts = zeros(prune_weights(model, sparsity=0.5, allocation="global"))
    assert counts == {"0.weight": round(0.5 * (77 + 55)), "2.weight": 0}


def test_ties_go_by_index() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 2.0, 1.0], [1.0, 0.5, 1.0, 1.0]]))
    assert plan_weights(layer, sparsity=0.5)["weight"].tolist() == [[False, False, True, False], [True, False, True, True]]


def test_zero_sparsity_is_the_identity() -> None:
    model = net()
    pruned, x = prune_weights(model, sparsity=0), torch.randn(3, 7)
    assert all(bool(mask.all()) for mask in plan_weights(model, sparsity=0).values())
    assert torch.equal(pruned(x), model(x))


def test_original_is_untouched() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_weights(model, sparsity=0.9)
    assert not constrained(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    ],
)
def test_masked_weights_stay_zero_in_training(optimizer: object) -> None:
    model = prune_weights(net(), sparsity=0.6)
    before = fold(model)
    step = optimizer(model.parameters())  # type: ignore[operator]
    for _ in range(5):
        step.zero_grad()
        model(torch.randn(8, 7)).square().sum().backward()
        step.step()
    for name in ("0", "2"):
        was, now = before.get_submodule(name).weight, model.get_submodule(name).weight
        assert torch.equal(was == 0, now == 0)
        assert not torch.equal(was, now)


def test_masked_zeros_are_positive_and_never_nan() -> None:
    """A product with the mask would leave -0.0, which a coder of bytes takes for another value, and NaN of an infinity."""
    mask = Mask(torch.tensor([False, True, False, False]))
    weight = mask(torch.tensor([-1.0, -2.0, torch.inf, torch.nan]))
    assert weight.tolist() == [0.0, -2.0, 0.0, 0.0]
    assert not weight[[0, 2, 3]].signbit().any()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert mask(torch.ones(4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_pruning_again_only_grows(criterion: str, allocation: str) -> None:
    model = prune_weights(net(), sparsity=0.3, criterion=criterion, allocation=allocation, seed=1)
    gone = fold(model)[0].weight == 0
    with torch.no_grad():
        for chain in (model[0].parametrizations, model[2].parametrizations):
            chain.weight.original.uniform_(-1, 1)
            chain.weight.original[0] = 0  # alive, and as small as what is gone
    more = prune_weights(model, sparsity=0.7, criterion=criterion, allocation=allocation, seed=2)
    masks = {name: chain[0].mask for name, chain in constrained(more).items()}
    assert [len(chain) for chain in constrained(more).values()] == [1, 1]
    assert not masks["0.weight"][gone].any()
    assert sum(int((~mask).sum()) for mask in masks.values()) in {round(0.7 * 132), round(0.7 * 77) + round(0.7 * 55)}
    assert int((fold(model)[0].weight[gone] == 0).sum()) == int(gone.sum()), "the model pruned first is not changed"


def test_include_and_exclude() -> None:
    assert list(plan_weights(net(), sparsity=0.5, include=["0.*"])) == ["0.weight"]
    assert list(plan_weights(net(), sparsity=0.5, exclude=["0.*"])) == ["2.weight"]
    assert list(plan_weights(net(), sparsity=0.5, exclude=["*.bias"])) == ["0.weight", "2.weight"]
    with pytest.raises(RequestError, match=r"include.*'0\.wieght'.*near are 0\.weight"):
        plan_weights(net(), sparsity=0.5, include=["2.*", "0.wieght"])
    with pytest.raises(RequestError, match=r"exclude.*'conv\*'.*near are 0\.weight"):
        plan_weights(net(), sparsity=0.5, exclude=["conv*"])
    with pytest.raises(RequestError, match="include and exclude must leave"):
        plan_weights(net(), sparsity=0.5, exclude=["*"])


def test_what_is_removed_never_comes_back() -> None:
    """A smaller sparsity changes nothing; 0 is the identity, also on a network that is pruned already."""
    once = prune_weights(net(), sparsity=0.5)
    for sparsity in (0.0, 0.2, 0.5):
        for allocation in ("uniform", "global"):
            again = prune_weights(once, sparsity=sparsity, criterion="random", allocation=allocation)
            assert sum(zeros(again).values()) >= round(0.5 * 132)
            assert all(bool((now[was == 0] == 0).all()) for now, was in zip(*map(weights, (again, once)), strict=True))
    assert zeros(prune_weights(once, sparsity=0.0)) == zeros(once)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [weight for weight in fold(model).parameters() if weight.dim() > 1]


def test_own_criteria() -> None:
    model = net()
    expected = plan_weights(model, sparsity=0.4)
    scores = {name: weight.detach().square() for name, weight in model.named_parameters()}  # biases are not asked for
    assert_same(plan_weights(model, sparsity=0.4, criterion=scores), expected)

    def squares(weights: Mapping[str, torch.Tensor], evidence: Evidence) -> dict[str, torch.Tensor]:
        assert evidence.model is model
        assert evidence.data == [1]
        assert evidence.generator.initial_seed() == 5
        return {name: weight.square() for name, weight in weights.items()}

    assert_same(plan_weights(model, sparsity=0.4, criterion=squares, data=[1], seed=5), expected)  # type: ignore[list-item]


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"0.weight": torch.ones(11, 7)}, r"nothing for 2\.weight"),
        ({"0.weight": torch.ones(11, 7), "2.weight": torch.ones(55)}, r"shape \(5, 11\), got \(55,\) for 2\.weight"),
        ({"0.weight": torch.full((11, 7), torch.nan), "2.weight": torch.ones(5, 11)}, r"finite.*0\.weight"),
    ],
)
def test_own_criteria_that_do_not_fit(scores: dict[str, torch.Tensor], message: str) -> None:
    for criterion in (scores, lambda weights, evidence: scores):
        with pytest.raises(RequestError, match=message):
            plan_weights(net(), sparsity=0.5, criterion=criterion)


def test_granularity_is_passed_on() -> None:
    rows = plan_weights(net(), sparsity=0.4, granularity="row", allocation="uniform")
    assert all(len(set(row.tolist())) == 1 for mask in rows.values() for row in mask)
    assert not rows["0.weight"].all()


def test_masks_that_do_not_fit_change_nothing() -> None:
    model = net()
    good = {"0.weight": torch.zeros(11, 7, dtype=torch.bool)}
    with pytest.raises(RequestError, match=r"did you mean '2\.weight'"):
        set_masks(model, {**good, "2.weigth": torch.ones(5, 11, dtype=torch.bool)})
    with pytest.raises(RequestError, match=r"shape \(5, 11\), got \(11, 5\) for 2\.weight"):
        set_masks(model, {**good, "2.weight": torch.ones(11, 5, dtype=torch.bool)})
    assert not constrained(model)


def test_random_depends_on_the_seed_alone() -> None:
    plans = [plan_weights(net(), sparsity=0.5, criterion="random", seed=seed)["0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


def test_apply_masks_replaces() -> None:
    first = apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    second = apply_masks(first, {"weight": torch.tensor([[False, True]])})
    assert [bool(v) for v in first.weight[0]] == [True, False]
    assert [bool(v) for v in second.weight[0]] == [False, True]
    assert len(constrained(second)["weight"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": float("nan")},
        {"sparsity": 0.5, "criterion": "magnitud"},
        {"sparsity": 0.5, "allocation": "local"},
        {"sparsity": 0.5, "granularity": "elements"},
        {"sparsity": 0.5, "seed": -1},
        {"sparsity": 0.5, "criterion": "taylor"},
    ],
)
def test_wrong_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        prune_weights(net(), **options)  # type: ignore[arg-type]


def test_gradual_pruning_reaches_the_end_and_never_gives_back() -> None:
    model, grow = net(), GradualPruning(start=0.1, end=0.8, until=0.5, updates=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    counts = []
    gone = torch.zeros(11, 7, dtype=torch.bool)
    for step in range(21):
        grow(model, step / 20)
        now = model[0].weight == 0
        assert bool(now[gone].all())
        gone = now
        counts.append(sum(zeros(model).values()))
        optimizer.zero_grad()
        model(torch.randn(4, 7)).square().sum().backward()
        optimizer.step()
    shares = [0.1 + 0.7 * (1 - (1 - phase / 5) ** 3) for phase in range(6)]
    expected = [round(share * sum(COUNTS.values())) for share in shares]
    assert sorted(set(counts)) == expected
    assert counts[10:] == [expected[-1]] * 11
    assert counts == sorted(counts)


def test_gradual_pruning_depends_on_nothing_but_its_arguments() -> None:
    """A training that was interrupted goes on with a new object."""
    a, b = net(), net()
    b.load_state_dict(a.state_dict())
    grow = GradualPruning(start=0.0, end=0.9)
    for done in (0.0, 0.2, 0.4):
        grow(a, done)
        GradualPruning(start=0.0, end=0.9)(b, done)
    assert torch.equal(a[0].weight, b[0].weight)
    assert sum(zeros(a).values()) > 0


def test_gradual_pruning_trains_the_same_parameters() -> None:
    """The optimizer was made before the masks were: it must still hold what is trained."""
    model = net()
    parameters = {id(p) for p in model.parameters()}
    GradualPruning(start=0.5, end=0.5)(model, 0.0)
    assert {id(p) for p in model.parameters()} == parameters


@pytest.mark.parametrize(
    "options",
    [
        {"start": 0.5, "end": 0.4},
        {"start": -0.1, "end": 0.4},
        {"start": 0.0, "end": 1.0},
        {"start": 0.0, "end": 0.5, "schedule": "sudden"},
        {"start": 0.0, "end": 0.5, "until": 0.0},
        {"start": 0.0, "end": 0.5, "until": 1.1},
        {"start": 0.0, "end": 0.5, "updates": 0},
    ],
)
def test_wrong_gradual_requests(options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        GradualPruning(**options)  # type: ignore[arg-type]


def test_gradual_pruning_with_options() -> None:
    """Any criterion, with its data; only what is included; the same whether one object serves or two."""
    data = [(torch.randn(16, 7), torch.randint(5, (16,)))]
    models = [net(), net()]
    models[1].load_state_dict(models[0].state_dict())
    options = {"start": 0.0, "end": 0.6, "criterion": "fisher", "data": data, "include": ["2.*"], "allocation": "uniform"}
    one = GradualPruning(**options)  # type: ignore[arg-type]
    for done in (0.1, 0.1, 0.3, 1.0):
        one(models[0], done)
        GradualPruning(**options)(models[1], done)  # type: ignore[arg-type]
    assert zeros(models[0]) == {"0.weight": 0, "2.weight": round(0.6 * 55)}
    assert torch.equal(models[0][2].weight, models[1][2].weight)
    assert torch.equal(
        models[0][2].weight != 0,
        plan_weights(models[0], sparsity=0.6, criterion="fisher", data=data, include=["2.*"])["2.weight"],
    )


def test_gradual_pruning_does_not_plan_again_what_is_planned() -> None:
    calls = []

    def count(weights: Mapping[str, torch.Tensor], evidence: Evidence) -> dict[str, torch.Tensor]:
        calls.append(1)
        return {name: weight.abs() for name, weight in weights.items()}

    model, grow = net(), GradualPruning(start=0.0, end=0.5, until=1.0, updates=4, criterion=count, allocation="uniform")
    for step in range(1, 101):
        grow(model, step / 100)
    assert len(calls) == 4
    another = net()
    grow(another, 1.0)
    assert zeros(another) == zeros(model)
