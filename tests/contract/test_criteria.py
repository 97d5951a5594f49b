"""What every criterion promises. A new row of a table is tested by being there."""

from __future__ import annotations

import pytest
import torch

from featherweight.graph.groups import Group
from featherweight.pruning.criteria import NEURON_CRITERIA, WEIGHT_CRITERIA, neuron_magnitude

MEMBERS = {
    ("a.weight", 0): torch.arange(6)[:, None],
    ("a.bias", 0): torch.arange(6)[:, None],
    ("norm.mean", 0): torch.arange(6)[:, None],
    ("b.weight", 1): torch.arange(12).reshape(6, 2),
}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 3, 3, 3), "a.bias": (6,), "norm.mean": (6,), "b.weight": (5, 12)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("name", sorted(WEIGHT_CRITERIA))
@pytest.mark.parametrize("shape", [(4, 3, 2), (1,), (0,), ()])
def test_weight_criterion(name: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    before = weight.clone()
    scores = WEIGHT_CRITERIA[name](weight, generator())
    assert scores.shape == weight.shape
    assert bool((scores >= 0).all())
    assert bool(scores.isfinite().all())
    assert torch.equal(weight, before)
    assert torch.equal(scores, WEIGHT_CRITERIA[name](weight, generator()))


@pytest.mark.parametrize("name", sorted(NEURON_CRITERIA))
def test_neuron_criterion(name: str) -> None:
    group, values = Group("a.weight", MEMBERS), tensors()
    scores = NEURON_CRITERIA[name](group, values, generator())
    assert scores.shape == (6,)
    assert bool((scores >= 0).all())
    assert bool(scores.isfinite().all())
    assert len(scores.unique()) == 6
    assert torch.equal(scores, NEURON_CRITERIA[name](group, values, generator()))
    assert all(torch.equal(value, tensors()[key]) for key, value in values.items())


@pytest.mark.parametrize("name", sorted(NEURON_CRITERIA))
def test_group_of_vectors_alone_has_scores(name: str) -> None:
    group = Group("bias", {("bias", 0): torch.arange(3)[:, None]})
    assert NEURON_CRITERIA[name](group, {"bias": torch.randn(3)}, generator()).shape == (3,)


@pytest.mark.parametrize("name", sorted({*NEURON_CRITERIA, *WEIGHT_CRITERIA} - {"random"}))
def test_scores_follow_the_channels(name: str) -> None:
    """Channels in another order have their scores in that order: nothing depends on where a channel lies."""
    if name in WEIGHT_CRITERIA:
        weight, order = torch.randn(5, 4), torch.randperm(5)
        scores = WEIGHT_CRITERIA[name](weight, generator())
        assert torch.equal(WEIGHT_CRITERIA[name](weight[order], generator()), scores[order])
    if name in NEURON_CRITERIA:
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = Group("a.weight", {axis: indices[order] for axis, indices in MEMBERS.items()})
        scores = NEURON_CRITERIA[name](Group("a.weight", MEMBERS), tensors(), generator())
        torch.testing.assert_close(NEURON_CRITERIA[name](shuffled, tensors(), generator()), scores[order])


def test_neuron_magnitude_by_hand() -> None:
    values = tensors()
    scores = neuron_magnitude(Group("a.weight", MEMBERS), values, generator())
    for c in range(6):
        producer = sum(float(w) ** 2 for w in values["a.weight"][c].flatten()) / 27
        consumer = sum(float(w) ** 2 for w in values["b.weight"][:, 2 * c : 2 * c + 2].flatten()) / 10
        assert float(scores[c]) == pytest.approx(((producer + consumer) / 2) ** 0.5, rel=1e-5)
