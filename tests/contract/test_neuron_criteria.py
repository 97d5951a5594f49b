"""What every criterion of a neuron promises. A new row of the table is tested by being there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.graph.cutting import Anatomy, study
from featherweight.graph.groups import Group
from featherweight.pruning import plan_neurons
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.training.statistics import Evidence
from tests.pruning.neuron_nets import DATA, EXAMPLE, captured_chain, permuted

EVERY = pytest.mark.parametrize("name", sorted(NEURON_CRITERIA))


def score(name: str, model: nn.Module, groups: list[Group] | None = None) -> list[torch.Tensor]:
    network: Anatomy = study(model, EXAMPLE)
    evidence = Evidence(model, DATA, generator=torch.Generator().manual_seed(7))
    return list(NEURON_CRITERIA[name](groups or network.coupling.groups, network, evidence))


@EVERY
def test_one_number_for_each_neuron(name: str) -> None:
    scores = score(name, captured_chain())
    assert [None if s is None else s.shape for s in scores] == [(5,), None if name == "bn_scale" else (4,)]
    for each in [s for s in scores if s is not None]:
        assert bool((each >= 0).all())
        assert bool(each.isfinite().all())
        assert len(each.unique()) > 1


@EVERY
def test_the_same_each_time_and_nothing_changes(name: str) -> None:
    model = captured_chain().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    first, second = score(name, model), score(name, model)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted({*NEURON_CRITERIA} - {"random"}))
def test_scores_follow_the_channels(name: str) -> None:
    """A layer whose channels lie in another order has their scores in that order: nothing depends on where a channel lies."""
    order = torch.tensor([3, 0, 4, 1, 2])
    for before, after in zip(score(name, captured_chain()), score(name, permuted(captured_chain(), order)), strict=True):
        if before is not None:
            torch.testing.assert_close(after, before[order] if len(before) == 5 else before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*NEURON_CRITERIA} - {"random"}))
def test_some_groups_have_the_scores_of_all(name: str) -> None:
    model = captured_chain()
    groups = study(model, EXAMPLE).coupling.groups
    for together, group in zip(score(name, model), groups, strict=True):
        (alone,) = score(name, model, [group])
        assert (together is None) == (alone is None)
        if together is not None:
            torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("name", sorted({*NEURON_CRITERIA} - {"bn_scale"}))
def test_a_group_of_vectors_alone_has_scores(name: str) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
            self.out = nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x.flatten(1).mean(1, keepdim=True) * (self.shift * self.shift).sum())

    (scores,) = score(name, Shifted())
    assert scores.shape == (3,)
    if name in ("magnitude", "group_l1", "l1", "l2"):
        torch.testing.assert_close(scores, torch.tensor([1.0, 2.0, 3.0]))


@EVERY
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_plans_remove_exactly_what_is_asked(name: str, sparsity: float) -> None:
    plan = plan_neurons(captured_chain(), EXAMPLE, sparsity=sparsity, criterion=name, allocation="uniform", data=DATA)
    first, second = [group.total - group.kept for group in plan.groups]
    assert first == round(sparsity * 5)
    assert second == (0 if name == "bn_scale" else round(sparsity * 4))
