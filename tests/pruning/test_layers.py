"""Layers that go whole: which, and what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.pruning import apply_masks
from featherweight.pruning.layers import LAYER_CRITERIA, LayerPlan, plan_layers, prune_layers


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        with torch.no_grad():
            self.down.weight.mul_(scale)
            self.down.bias.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), *(Block(scale) for scale in (3.0, 0.01, 1.0, 0.1)), nn.Linear(6, 3)).double()


def data(seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (40,), generator=generator)
    return [(inputs[:25], targets[:25]), (inputs[25:], targets[25:])]


def test_nothing_goes_at_sparsity_0() -> None:
    model = network()
    plan = plan_layers(model, torch.zeros(1, 4).double(), sparsity=0.0)
    assert plan.removed == ()
    assert list(plan.scores) == ["1.down", "2.down", "3.down", "4.down"]
    assert type(plan.apply(model)) is nn.Sequential


@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
def test_as_many_go_as_were_asked_for(criterion: str) -> None:
    model, x = network(), torch.randn(5, 4).double()
    plan = plan_layers(model, x, sparsity=0.5, criterion=criterion, data=data())
    assert len(plan.removed) == 2
    assert plan == plan_layers(model, x, sparsity=0.5, criterion=criterion, data=data())
    smaller = plan.apply(model)
    kept = nn.Sequential(*(layer for name, layer in model.named_children() if f"{name}.down" not in plan.removed))
    torch.testing.assert_close(smaller(x), kept(x))
    torch.testing.assert_close(plan.mask(model)(x), kept(x))
    assert sum(p.numel() for p in smaller.parameters()) == sum(p.numel() for p in kept.parameters())


def test_influence_is_one_minus_the_cosine() -> None:
    model = network()
    plan = plan_layers(model, torch.zeros(1, 4).double(), sparsity=0.5, criterion="influence", data=data())
    inputs = torch.cat([x for x, _ in data()])
    assert plan.removed == tuple(sorted(sorted(plan.scores, key=plan.scores.__getitem__)[:2]))
    for number in range(1, 5):
        before = model[:number](inputs)
        after = model[number](before)
        cosines = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert plan.scores[f"{number}.down"] == pytest.approx(1 - cosines.mean().item(), rel=1e-9)


def test_loss_is_what_the_network_loses() -> None:
    model = network()
    plan = plan_layers(model, torch.zeros(1, 4).double(), sparsity=0.25, criterion="loss", data=data())
    inputs, targets = (torch.cat(parts) for parts in zip(*data(), strict=True))
    whole = cross_entropy(model(inputs), targets)
    for number in range(1, 5):
        rest = nn.Sequential(*(layer for i, layer in enumerate(model) if i != number))
        assert plan.scores[f"{number}.down"] == pytest.approx((cross_entropy(rest(inputs), targets) - whole).item(), rel=1e-9)
    assert plan.removed == (min(plan.scores, key=plan.scores.__getitem__),)


def test_masks_stay_on_what_is_left() -> None:
    model = network()
    masked = apply_masks(model, {"3.up.weight": model[3].up.weight > 0})
    smaller = prune_layers(masked, torch.zeros(1, 4).double(), sparsity=0.5, exclude=["3.*"])
    smaller.get_parameter("3.up.parametrizations.weight.original").data.fill_(1.0)
    assert torch.equal(smaller.get_submodule("3.up").weight, (model[3].up.weight > 0).double())


def test_bad_input() -> None:
    model, x = network(), torch.zeros(1, 4).double()
    with pytest.raises(RequestError, match=r"sparsity must be in \[0, 1\), got 1.0"):
        plan_layers(model, x, sparsity=1.0)
    with pytest.raises(RequestError, match=r"influence.*needs data"):
        plan_layers(model, x, sparsity=0.5, criterion="influence")
    with pytest.raises(RequestError, match="criterion"):
        plan_layers(model, x, sparsity=0.5, criterion="magnitud")
    with pytest.raises(RequestError, match=r"must leave a residual branch, got \['head'\]"):
        plan_layers(model, x, sparsity=0.5, include=["head"])
    with pytest.raises(UnsupportedOpError, match="Linear has no residual branches"):
        plan_layers(nn.Linear(4, 3), x.float(), sparsity=0.5)
    plan = plan_layers(model, x, sparsity=0.5)
    with pytest.raises(RequestError, match=r"has no residual branch '2\.down'; it has 1\.down"):
        LayerPlan(plan.removed, plan.scores, plan.inputs).apply(model[:2])


def test_the_plan_prints_what_goes() -> None:
    text = str(plan_layers(network(), torch.zeros(1, 4).double(), sparsity=0.5))
    assert [line.split()[0] for line in text.splitlines() if line.endswith("goes")] == ["2.down", "4.down"]


def test_what_is_frozen_stays_so() -> None:
    model = network()
    model[3].requires_grad_(False)
    plan = plan_layers(model, torch.zeros(1, 4).double(), sparsity=0.5, exclude=["3.*"])
    for smaller in (plan.mask(model), plan.apply(model)):
        assert {name.partition(".")[0] for name, p in smaller.named_parameters() if not p.requires_grad} == {"3"}
