"""What every criterion of a weight promises. A new row of the table is tested by being there."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import DataError, RequestError
from featherweight.graph.constraint import fold
from featherweight.graph.selection import select_weights
from featherweight.pruning import Evidence, plan_weights, prune_weights
from featherweight.pruning.weight_criteria import WEIGHT_CRITERIA, score_weights
from featherweight.training import TensorLoader, Tuning, fit

NAMES = sorted(WEIGHT_CRITERIA)
NEED_NO_DATA = {"magnitude", "random"}


def net() -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), nn.Dropout(), nn.Linear(16, 3)
    )
    made[1].running_mean.uniform_(-0.1, 0.1)  # what a pass in train mode would change
    return made


@functools.cache
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(12, 1, 5, 5, generator=generator), torch.randint(3, (12,), generator=generator)


def scores(name: str, model: nn.Module, batch_size: int = 5, seed: int = 7) -> dict[str, torch.Tensor]:
    data = TensorLoader(*samples(), batch_size=batch_size)
    return score_weights(select_weights(model), Evidence(model, data, generator=torch.Generator().manual_seed(seed)), name)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_numbers_and_always_the_same(name: str) -> None:
    model = net()
    found = scores(name, model)
    assert {key: score.shape for key, score in found.items()} == {"0.weight": (4, 1, 3, 3), "5.weight": (3, 16)}
    for key, score in found.items():
        assert bool((score >= 0).all())
        assert bool(score.isfinite().all())
        assert len(score.unique()) > score.numel() // 2, "hardly two weights are equally important"
        assert torch.equal(score, scores(name, model)[key])
        assert not score.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_model_is_untouched(name: str) -> None:
    model = prune_weights(net(), sparsity=0.2)
    model.train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    scores(name, model)
    assert [module.training for module in model.children()] == [True, False, True, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random_state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_size_and_order_of_batches_do_not_matter(name: str) -> None:
    model, data = net(), TensorLoader(*samples(), batch_size=5, shuffle=True)
    shuffled = score_weights(select_weights(model), Evidence(model, data, generator=torch.Generator().manual_seed(7)), name)
    whole, single = scores(name, model, batch_size=12), scores(name, model, batch_size=1)
    for key, score in whole.items():
        torch.testing.assert_close(single[key], score, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shuffled[key], score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_exact_counts(name: str) -> None:
    model, data = net(), TensorLoader(*samples(), batch_size=5)
    for sparsity in (0.0, 0.13, 0.5, 0.99):
        uniform = plan_weights(model, sparsity=sparsity, criterion=name, allocation="uniform", data=data)
        assert {key: int((~mask).sum()) for key, mask in uniform.items()} == {
            "0.weight": round(sparsity * 36),
            "5.weight": round(sparsity * 48),
        }
        everywhere = plan_weights(model, sparsity=sparsity, criterion=name, data=data)
        assert sum(int((~mask).sum()) for mask in everywhere.values()) == round(sparsity * 84)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"random"}))
def test_scores_follow_the_channels(name: str) -> None:
    """Channels in another order have their scores in that order: nothing depends on where a channel lies."""
    model, moved, order = net(), net(), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for tensor in (moved[0].weight, *moved[1].parameters(), moved[1].running_mean):
            tensor.copy_(tensor[order])
        moved[5].weight.copy_(moved[5].weight.reshape(3, 4, 4)[:, order].reshape(3, 16))
    before, after = scores(name, model), scores(name, moved)
    torch.testing.assert_close(after["0.weight"], before["0.weight"][order])
    torch.testing.assert_close(after["5.weight"], before["5.weight"].reshape(3, 4, 4)[:, order].reshape(3, 16))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_mask_has_removed_stays_removed(name: str) -> None:
    data = TensorLoader(*samples(), batch_size=5)
    once = prune_weights(net(), sparsity=0.3, criterion=name, data=data)
    twice = prune_weights(once, sparsity=0.6, criterion=name, data=data)
    for key, weight in select_weights(once).items():
        assert bool((select_weights(twice)[key][weight == 0] == 0).all())
    assert sum(int((weight == 0).sum()) for weight in select_weights(twice).values()) == round(0.6 * 84)


@pytest.mark.parametrize("name", NAMES)
def test_data_that_are_missing_or_wrong(name: str) -> None:
    if name in NEED_NO_DATA:
        assert prune_weights(net(), sparsity=0.5, criterion=name) is not None
        return
    with pytest.raises(RequestError, match=f"'{name}' needs data.*data="):
        plan_weights(net(), sparsity=0.5, criterion=name)
    with pytest.raises(DataError, match=rf"'{name}' needs data.*no batch"):
        plan_weights(net(), sparsity=0.5, criterion=name, data=[])
    with pytest.raises(DataError, match=r"\(inputs, targets\)"):
        plan_weights(net(), sparsity=0.5, criterion=name, data=[samples()[0]])
    bad = [(torch.full((2, 1, 5, 5), torch.nan), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(RequestError, match=r"finite.*0\.weight"):
        plan_weights(net(), sparsity=0.5, criterion=name, data=bad)


@functools.cache
def trained() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network that has learnt which of the first three of twelve inputs is the largest."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 12)
    targets = inputs[:, :3].argmax(dim=1)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    fit(model, TensorLoader(inputs, targets, batch_size=64), Tuning(epochs=60, learning_rate=1e-2))
    return model, [(inputs, targets)]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"random", "ewc"}))
def test_better_than_chance(name: str) -> None:
    """Not "ewc": it says how much it costs to change a weight, whatever the weight is; "fisher" is what its removal costs."""
    model, data = trained()
    inputs, targets = data[0]

    def loss(criterion: str, seed: int) -> float:
        pruned = prune_weights(model, sparsity=0.5, criterion=criterion, allocation="uniform", data=data, seed=seed)
        with torch.no_grad():
            return float(cross_entropy(fold(pruned)(inputs), targets))

    assert loss(name, 0) < min(loss("random", seed) for seed in range(8))
