"""Lottery tickets: sparse networks that train from their first weights as well as the dense one does.

To add a criterion of masks, write a function and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.constraint import constrained, constraints_of, duplicate
from featherweight.graph.selection import select_weights
from featherweight.pruning.allocation import choose
from featherweight.pruning.weights import Mask, apply_masks

__all__ = ["TICKET_CRITERIA", "Round", "TicketCriterion", "choose_masks", "find_ticket", "search_tickets"]

TicketCriterion = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(first weights, trained weights, generator) -> scores of the same shape; the lowest go first."""


def _smaller_of_both(initial: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """min(|w0|, α |w1|), with the α at which both have the same mean; the paper searches it."""
    first, last = initial.abs(), final.abs()
    return torch.minimum(first, last * (first.mean() / last.mean()))


TICKET_CRITERIA: Mapping[str, TicketCriterion] = {
    "large_final": lambda initial, final, generator: final.abs(),
    "small_final": lambda initial, final, generator: -final.abs(),
    "large_init": lambda initial, final, generator: initial.abs(),
    "small_init": lambda initial, final, generator: -initial.abs(),
    "large_init_large_final": lambda initial, final, generator: _smaller_of_both(initial, final),
    "magnitude_increase": lambda initial, final, generator: final.abs() - initial.abs(),
    "movement": lambda initial, final, generator: (final - initial).abs(),
    "large_final_same_sign": lambda initial, final, generator: final * initial.sign(),
    "random": lambda initial, final, generator: torch.rand(final.shape, generator=generator).to(final.device),
}
"""Which weights a ticket keeps, by their first and their trained values (Zhou et al., NeurIPS 2019, figure 2)."""


@dataclass(frozen=True)
class Round:
    """One round of a search.

    Attributes:
        number: how often weights have been removed so far; 0 is the dense network.
        ticket: the first weights under this round's masks.
        masks: for each weight's name a bool mask, True where it stays; empty in round 0.
        trained: the ticket after training.
    """

    number: int
    ticket: nn.Module
    masks: Mapping[str, torch.Tensor]
    trained: nn.Module


def find_ticket(
    model: nn.Module,
    tune: Callable[[nn.Module], object],
    *,
    rounds: int,
    rate: float = 0.2,
    criterion: str = "large_final",
    allocation: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A winning ticket: train, remove the share `rate` of the weights that are left, put the others back; and again.

    Iterative magnitude pruning with resetting (Frankle and Carbin, ICLR 2019, "strategy 1"). Weights go back to `model`'s, all
    parameters and buffers do. For rewinding to an early step (Frankle et al., ICML 2020), hand over a network that was trained
    so far. They remove a share of each layer, half of it in the last; here one ranking goes over all layers by default.

    Args:
        model: the untrained network; it is not changed.
        tune: trains a network in place.
        rounds: how often weights are removed, at least 1; the network is trained as often.
        rate: share of the weights left that each round removes, in (0, 1).
        criterion: a name in `TICKET_CRITERIA`.
        allocation: a name in `allocation.ALLOCATIONS`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        seed: for criteria that draw random numbers.

    Returns:
        A copy of `model` with masks that remove exactly round((1 - (1 - rate)^rounds) · n) of the n weights, not yet trained.

    Raises:
        RequestError: an unknown name, a number out of range, or a network that is pruned already.

    Example:
        >>> net = nn.Linear(10, 10)
        >>> ticket = find_ticket(net, lambda trained: nn.init.normal_(trained.bias), rounds=2)
        >>> int((ticket.weight != 0).sum())
        64
    """
    check("rounds", rounds, "a whole number >= 1", isinstance(rounds, int) and rounds >= 1)
    options = {"criterion": criterion, "allocation": allocation, "include": include, "exclude": exclude, "seed": seed}
    for step in search_tickets(model, tune, rounds=rounds - 1, rate=rate, **options):  # type: ignore[arg-type]
        trained = step.trained
    masks = choose_masks(model, trained, sparsity=1 - (1 - rate) ** rounds, **options)  # type: ignore[arg-type]
    return apply_masks(model, masks)


def search_tickets(
    model: nn.Module,
    tune: Callable[[nn.Module], object],
    *,
    rounds: int,
    rate: float = 0.2,
    criterion: str = "large_final",
    allocation: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[Round]:
    """The rounds of `find_ticket`, one by one, each with its trained network: what accuracy is left at which sparsity.

    Args:
        model, tune, rate, criterion, allocation, include, exclude, seed: as in `find_ticket`.
        rounds: how often weights are removed, at least 0; the network is trained once more than that.

    Yields:
        Round 0, the dense network, to round `rounds`.

    Raises:
        RequestError: an unknown name, a number out of range, or a network that is pruned already.

    Example:
        >>> [round.number for round in search_tickets(nn.Linear(4, 4), lambda trained: None, rounds=2)]
        [0, 1, 2]
    """
    check("rounds", rounds, "a whole number >= 0", isinstance(rounds, int) and rounds >= 0)
    check("rate", rate, "in (0, 1)", 0 < rate < 1)
    pruned = [name for name, chain in constrained(model).items() if any(isinstance(c, Mask) for c in chain)]
    if pruned:
        raise RequestError(f"a ticket is found in a network that is not pruned yet, but {pruned[0]} has a mask; fold it first")
    masks: dict[str, torch.Tensor] = {}
    for number in range(rounds + 1):
        ticket = apply_masks(model, masks)
        trained = duplicate(ticket)
        tune(trained)
        yield Round(number, ticket, masks, trained)
        if number < rounds:
            masks = choose_masks(
                model, trained, sparsity=1 - (1 - rate) ** (number + 1),
                criterion=criterion, allocation=allocation, include=include, exclude=exclude, seed=seed,
            )  # fmt: skip


def choose_masks(
    initial: nn.Module,
    final: nn.Module,
    *,
    sparsity: float,
    criterion: str = "large_final",
    allocation: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Chooses which weights a ticket keeps, from their values before and after training (Zhou et al., NeurIPS 2019, section 2).

    Weights that a mask of `final` has removed already count as removed and go first.

    Args:
        initial: the network before training.
        final: the same network after it; its masks hold.
        sparsity: fraction of the selected weights that goes, in [0, 1).
        criterion: a name in `TICKET_CRITERIA`.
        allocation: a name in `allocation.ALLOCATIONS`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        seed: for criteria that draw random numbers.

    Returns:
        For each weight's name a bool mask of its shape, True where it stays; exactly round(sparsity · n) of the n are False.

    Raises:
        RequestError: an unknown name, a sparsity outside [0, 1), or two networks that differ in their weights.

    Example:
        >>> before, after = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = before.weight.data.copy_(torch.tensor([[1.0, 2.0]])), after.weight.data.copy_(torch.tensor([[2.0, 1.0]]))
        >>> choose_masks(before, after, sparsity=0.5, criterion="magnitude_increase")["weight"].tolist()
        [[True, False]]
    """
    score = look_up(TICKET_CRITERIA, criterion, "criterion")
    first = select_weights(initial, include=include, exclude=exclude)
    last = select_weights(final, include=include, exclude=exclude)
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in (first, last)]
    if shapes[0] != shapes[1]:
        differing = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise RequestError(f"both networks must have the same weights, but differ in {differing}")
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, weight in last.items():
        scores[name] = score(first[name], weight, generator)
        for constraint in constraints_of(final, name):
            if isinstance(constraint, Mask):
                scores[name] = scores[name].masked_fill(~constraint.mask, -torch.inf)
    return choose(scores, sparsity, allocation=allocation)
