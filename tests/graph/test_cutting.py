"""A network is captured once: a plan knows it again, and sees when it has changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.graph import cutting
from featherweight.graph.own_class import difference
from featherweight.graph.surgery import Plan
from featherweight.pruning.neurons import plan_neurons


class Switched(nn.Module):
    """Computes what a setting says, and gives some numbers of its own beside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.own = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(3))
        self.bent = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu() if self.bent else self.first(x)
        return torch.cat([self.last(hidden), self.own.expand(x.shape[0], -1)], 1)


@torch.no_grad()
def test_a_plan_knows_its_network_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Switched().double(), torch.randn(5, 4, dtype=torch.float64)
    plan = plan_neurons(net, x, sparsity=0.5)
    want = plan.apply(net)(x)
    monkeypatch.delattr(cutting, "capture")
    assert torch.equal(plan.apply(net)(x), want)
    assert difference(plan.mask(net)(x), want) < 1e-12
    with pytest.raises(NameError, match="capture"):  # what was saved and loaded has forgotten it
        Plan.from_json(plan.to_json()).apply(net)


@torch.no_grad()
def test_a_plan_sees_that_its_network_has_changed() -> None:
    net, x = Switched().double(), torch.randn(5, 4, dtype=torch.float64)
    plan = plan_neurons(net, x, sparsity=0.5)
    assert plan.seen is not None
    bent, (program, coupling) = plan.apply(net)(x), plan.seen
    assert cutting.recognise(net, program, coupling) is not None
    net.bent = False
    assert cutting.recognise(net, program, coupling) is None
    straight = plan.apply(net)(x)
    assert difference(straight, bent) > 0.01
    assert difference(straight, plan.mask(net)(x)) < 1e-12
    net.bent, net.own = True, nn.Parameter(torch.ones(4, dtype=torch.float64))
    assert cutting.recognise(net, program, coupling) is None
    assert cutting.recognise(nn.Linear(4, 5).double(), program, coupling) is None
