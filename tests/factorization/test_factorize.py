"""Networks with thin layers: what they compute, what they cost, and what stays."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError, WeightsError
from featherweight.factorization import factorize, plan_factors
from featherweight.factorization.clock import factorize_within
from featherweight.factorization.decompositions import METHODS
from featherweight.graph import ProgramModule, capture, count_macs, tensors_of, to_module
from featherweight.measuring import count_parameters
from featherweight.measuring.latency import compare_latency
from featherweight.pruning import apply_masks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding="same")
        self.body = nn.Sequential(nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.point = nn.Conv2d(48, 40, 1)
        self.head = nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(self.depthwise(self.body(self.stem(x).relu())))
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_says_what_the_network_costs(method: str) -> None:
    model = net()
    plan = plan_factors(model, X, rank=2, method=method)
    smaller = plan.apply(model)
    assert type(smaller) is Net
    assert plan.factorings
    saved = sum(line.weights[0] - line.weights[1] for line in plan.factorings)
    assert count_parameters(model) - count_parameters(smaller) == saved > 0
    macs = [count_macs(p := capture(m, X), tensors_of(m, p)) for m in (model, smaller)]
    assert macs[0] - macs[1] == sum(line.macs[0] - line.macs[1] for line in plan.factorings) > 0
    assert {"depthwise.weight"} <= set(plan.skipped)
    twin = plan.apply(to_module(model, X))
    assert type(twin) is ProgramModule
    torch.testing.assert_close(twin(X), smaller(X))
    smaller.train()(X).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_outputs_come_nearer_with_the_rank() -> None:
    model = net()
    wanted = model(X)
    outputs = [factorize(model, X, rank=share, include=["body.0.weight"])(X) for share in (0.02, 0.3, 0.8)]
    errors = [(output - wanted).norm().item() for output in outputs]
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_layer_stays_where_its_chain_would_cost_more() -> None:
    model = net()
    plan = plan_factors(model, X, rank=40)
    assert {line.name for line in plan.factorings} == {"body.0.weight"}
    assert plan.skipped["head.weight"] == "rank 10 would cost 500 of 400 weights, 500 of 400 MACs"
    assert plan.skipped["depthwise.weight"] == "it has 48 groups"
    assert count_parameters(plan.apply(model)) < count_parameters(model)


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_a_budget_is_kept_and_used(budget: float) -> None:
    model = net()
    names = {"stem.weight", "body.0.weight", "point.weight", "head.weight"}
    plan = plan_factors(model, X, budget=budget)
    lines = {line.name: line.weights[1] for line in plan.factorings}
    kept = sum(lines.get(name, model.get_parameter(name).numel()) for name in names)
    total = sum(model.get_parameter(name).numel() for name in names)
    assert budget - 0.03 < kept / total <= budget


def test_a_budget_is_spent_where_it_tells() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(64, 3) @ torch.randn(3, 64))
    plan = plan_factors(model, torch.zeros(1, 64).double(), budget=0.6)
    ranks = {line.name: line.rank for line in plan.factorings}
    assert ranks["0.weight"] == 3
    assert ranks.get("1.weight", 64) > 20


def test_energy_and_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 60), nn.ReLU(), nn.Linear(60, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(60, 4) @ torch.randn(4, 50) + 0.1 * torch.randn(60, 50))
    x = torch.zeros(1, 50).double()
    assert {line.name: line.rank for line in plan_factors(model, x, rank="vbmf").factorings} == {"0.weight": 4, "2.weight": 1}
    line = plan_factors(model, x, energy=0.9, include=["0.*"]).factorings[0]
    energies = torch.linalg.svdvals(model[0].weight).square()
    assert energies[: line.rank].sum() >= 0.9 * energies.sum() > energies[: line.rank - 1].sum()
    assert plan_factors(model, x, rank={"0.weight": 7}).factorings[0].rank == 7


def test_with_data_the_network_changes_less() -> None:
    model = net()
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.einsum("bchw,dc->bdhw", torch.randn(64, 3, 12, 12).double(), mix).cumsum(-1) / 4
    data = [(x[:32], torch.zeros(32)), (x[32:], torch.zeros(32))]
    wanted = model(x)
    errors = [
        (factorize(model, X, rank=3, include=["body.0.weight"], data=some)(x) - wanted).norm().item() for some in (None, data)
    ]
    assert errors[1] < errors[0]


def test_masks_on_other_weights_stay() -> None:
    model = net()
    mask = model.head.weight > 0
    smaller = factorize(apply_masks(model, {"head.weight": mask}), X, rank=2, include=["body.0.weight"])
    with torch.no_grad():
        smaller.head.parametrizations.weight.original.fill_(1.0)
    assert torch.equal(smaller.head.weight, mask.double())


def test_the_plain_and_the_captured_network_keep_what_is_frozen() -> None:
    model = net()
    model.body[0].weight.requires_grad_(False)
    for start in (model, to_module(model, X)):
        smaller = factorize(start, X, rank=2, include=["body.0.weight", "head.weight"])
        frozen = {name for name, p in smaller.named_parameters() if not p.requires_grad}
        assert frozen == {"body.0.0.weight", "body.0.1.weight"}


def test_no_random_number_is_drawn() -> None:
    model, before = net(), torch.get_rng_state()
    factorize(model, X, rank=2)
    assert torch.equal(torch.get_rng_state(), before)


class Reading(nn.Module):
    """Its code reads a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.layer.weight, self.layer.bias)


def test_code_that_reads_weights_comes_back_captured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "featherweight"):
        smaller = factorize(Reading(), torch.zeros(1, 32), rank=2)
    assert isinstance(smaller, ProgramModule)
    assert "Reading cannot have other layers" in caplog.text
    assert {name: tuple(p.shape) for name, p in smaller.named_parameters()} == {
        "layer.0.weight": (2, 32),
        "layer.1.weight": (32, 2),
        "layer.bias": (32,),
    }


def test_by_the_clock() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 10))
    x = torch.zeros(1, 768)
    before = compare_latency([model], x, seconds=0.1)[0].median_s
    smaller = factorize_within(model, x, latency_s=before * 0.8, budgets=(0.5, 0.1))
    assert count_parameters(smaller) < count_parameters(model)
    with pytest.raises(RequestError, match="the fastest candidate"):
        factorize_within(model[2], x, latency_s=1e-9, budgets=[0.5])


def test_bad_requests() -> None:
    model = net()
    for options, message in (
        ({}, "exactly one of rank, energy and budget"),
        ({"rank": 2, "energy": 0.5}, "exactly one of rank, energy and budget"),
        ({"rank": 0}, "rank must be a whole number >= 1, got 0"),
        ({"rank": 1.5}, r"share of the full rank in \(0, 1\)"),
        ({"rank": "auto"}, "'vbmf'"),
        ({"budget": 1.0}, r"budget must be in \(0, 1\)"),
        ({"rank": 2, "method": "tuker"}, "did you mean 'tucker'"),
        ({"rank": 2, "method": "cp", "data": [(X, X)]}, "does not look at data; svd, separable do"),
        ({"rank": 2, "include": ["nothing.*"]}, "nothing"),
    ):
        with pytest.raises(RequestError, match=message):
            plan_factors(model, X, **options)  # type: ignore[arg-type]
    for ranks, message in (
        ({"head.weight": 11}, "the rank of 'head.weight' must be at most its full rank, 10, got 11"),
        ({"head.weight": 2, "haed.weight": 3}, "got 'haed.weight'; did you mean head.weight"),
    ):
        with pytest.raises(RequestError, match=message):
            plan_factors(model, X, rank=ranks)
    with pytest.raises(DataError, match="NaN or infinity"):
        plan_factors(model, X, rank=2, data=[(X * torch.nan, X)])
    broken = net()
    broken.head.weight.data[0, 0] = torch.inf
    with pytest.raises(WeightsError, match=r"'head\.weight' holds NaN or infinity"):
        plan_factors(broken, X, rank=2)
    with pytest.raises(RequestError, match=r"has no layer 'body\.0\.weight'"):
        plan_factors(model, X, rank=2, include=["body.0.weight"]).apply(nn.Sequential(nn.Conv2d(3, 4, 1)).double())
