"""Tickets: exact counts, first weights where they are kept, nested masks, and the criteria spelled out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.nets import mlp
from featherweight.pruning import prune_weights
from featherweight.pruning.lottery import TICKET_CRITERIA, choose_masks, find_ticket, search_tickets
from featherweight.training import Tuning, evaluate, fit, load_data


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))


def tune(model: nn.Module) -> None:
    """Moves everything, by a fixed amount that differs from weight to weight."""
    model.train()
    model(torch.randn(8, 7, generator=torch.Generator().manual_seed(5)))  # moves the running statistics
    for parameter in model.parameters():
        generator = torch.Generator().manual_seed(parameter.numel())
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([layer.weight.detach().flatten() for layer in (model[0], model[3])])  # type: ignore[index]


@pytest.mark.parametrize("rounds", [1, 4])
def test_ticket_has_the_first_weights_and_the_exact_sparsity(rounds: int) -> None:
    model = net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ticket = find_ticket(model, tune, rounds=rounds, rate=0.3)
    first, kept = weights(model), weights(ticket)
    n = 7 * 9 + 9 * 3
    assert int((kept == 0).sum()) == round((1 - 0.7**rounds) * n)
    assert torch.equal(kept[kept != 0], first[kept != 0])
    folded = fold(ticket).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])  # the caller's network is as it was
        if name not in ("0.weight", "3.weight"):
            assert torch.equal(folded[name], tensor)  # biases, norms and running statistics are put back, too


def test_one_round_is_magnitude_pruning_of_the_trained_network() -> None:
    model = net()
    trained = find_trained(model)
    cut = weights(trained).abs().sort().values[round(0.2 * 90) - 1]
    expected = torch.where(weights(trained).abs() > cut, weights(model), 0)
    assert torch.equal(weights(find_ticket(model, tune, rounds=1)), expected)


def find_trained(model: nn.Module) -> nn.Module:
    *_, last = search_tickets(model, tune, rounds=0)
    return last.trained


def test_rounds_are_nested_and_trained_from_the_first_weights() -> None:
    model = net()
    rounds = list(search_tickets(model, tune, rounds=3, rate=0.4))
    assert [round.number for round in rounds] == [0, 1, 2, 3]
    assert rounds[0].masks == {}
    assert torch.equal(weights(rounds[0].ticket), weights(model))
    for before, after in pairwise(rounds[1:]):
        assert all(bool((before.masks[name] | ~after.masks[name]).all()) for name in after.masks)
    for round in rounds[1:]:
        mask = torch.cat([kept.flatten() for kept in round.masks.values()])
        assert torch.equal(weights(round.ticket), weights(model) * mask)
        by_hand = find_trained(model)  # tune moves each weight by the same amount each time
        assert torch.allclose(weights(round.trained), weights(by_hand) * mask)


CASES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "large_final": lambda w0, w1: w1.abs(),
    "small_final": lambda w0, w1: 1 / w1.abs(),
    "large_init": lambda w0, w1: w0.abs(),
    "small_init": lambda w0, w1: 1 / w0.abs(),
    "magnitude_increase": lambda w0, w1: w1.abs() - w0.abs(),
    "movement": lambda w0, w1: (w0 - w1).square(),
    "large_final_same_sign": lambda w0, w1: torch.where(w0 * w1 > 0, w1.abs(), -w1.abs()),
}


@pytest.mark.parametrize("criterion", CASES)
def test_criteria_rank_as_the_paper_says(criterion: str) -> None:
    before, after = nn.Linear(8, 5), nn.Linear(8, 5)
    mask = choose_masks(before, after, sparsity=0.6, criterion=criterion)["weight"]
    expected = CASES[criterion](before.weight, after.weight).flatten().argsort()[round(0.6 * 40) :]
    assert mask.flatten().nonzero().flatten().tolist() == sorted(expected.tolist())


def test_large_init_large_final_keeps_what_is_large_in_both() -> None:
    before, after = nn.Linear(4, 1), nn.Linear(4, 1)
    before.weight.data = torch.tensor([[4.0, -4.0, 0.1, 3.0]])
    after.weight.data = torch.tensor([[-40.0, 1.0, 40.0, 30.0]])
    assert choose_masks(before, after, sparsity=0.5, criterion="large_init_large_final")["weight"].tolist() == [
        [True, False, False, True]
    ]


def test_random_masks_depend_on_the_seed_alone() -> None:
    first, second = (
        [
            choose_masks(nn.Linear(9, 9), nn.Linear(9, 9), sparsity=0.5, criterion="random", seed=seed)["weight"]
            for seed in (1, 2)
        ]
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], first[1])
    assert int(first[0].sum()) == 81 - round(0.5 * 81)


@pytest.mark.parametrize("criterion", TICKET_CRITERIA)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_removed_weights_stay_removed(criterion: str, allocation: str) -> None:
    model = net()
    rounds = list(search_tickets(model, tune, rounds=2, rate=0.25, criterion=criterion, allocation=allocation))
    for name, mask in rounds[2].masks.items():
        assert not (mask & ~rounds[1].masks[name]).any()


def test_include_and_exclude() -> None:
    ticket = find_ticket(net(), tune, rounds=1, rate=0.5, exclude=["3.*"])
    assert int((ticket[0].weight == 0).sum()) == round(0.5 * 63)  # type: ignore[index, union-attr]
    assert int((ticket[3].weight == 0).sum()) == 0  # type: ignore[index, union-attr]


def test_a_ticket_wins() -> None:
    """At a tenth of its weights, the ticket trains to what the dense network reached; a random mask does not."""
    data = load_data("digits", batch_size=64)
    model = mlp(input_shape=data.input_shape)

    def train(net: nn.Module) -> None:
        fit(net, data.train, Tuning(epochs=8, learning_rate=1e-2))

    accuracy = {}
    for criterion in ("large_final", "random"):
        ticket = find_ticket(model, train, rounds=2, rate=0.7, criterion=criterion)
        train(ticket)
        accuracy[criterion] = evaluate(ticket, data.validation)
    assert accuracy["large_final"] > 0.9 > accuracy["random"], accuracy


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": 1, "rate": 1.0}, r"rate must be in \(0, 1\), got 1.0"),
        ({"rounds": 1, "criterion": "large_finale"}, "did you mean 'large_final'"),
        ({"rounds": 1, "allocation": "globally"}, "did you mean 'global'"),
        ({"rounds": 1, "include": ["none"]}, "must leave a weight"),
    ],
)
def test_wrong_requests(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        find_ticket(net(), tune, **options)  # type: ignore[arg-type]


def test_a_pruned_network_and_another_network_are_refused() -> None:
    with pytest.raises(RequestError, match=r"not pruned yet, but 0\.weight has a mask"):
        find_ticket(prune_weights(net(), sparsity=0.5), tune, rounds=1)
    with pytest.raises(RequestError, match=r"differ in weight"):
        choose_masks(nn.Linear(2, 3), nn.Linear(3, 3), sparsity=0.5)
