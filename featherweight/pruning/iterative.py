"""Remove a little, recover, repeat: pruning in rounds, with the caller's own training after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import Example
from featherweight.pruning.neurons import NeuronOptions, plan_neurons
from featherweight.pruning.schedule import sparsities
from featherweight.pruning.weights import WeightOptions, prune_weights

__all__ = ["Tune", "prune_neurons_iteratively", "prune_weights_iteratively"]

Tune = Callable[[nn.Module], nn.Module]
"""Trains a network and returns it; in place, if it likes."""


def prune_weights_iteratively(
    model: nn.Module, *, rounds: int, tune: Tune, schedule: str = "exponential", **options: Unpack[WeightOptions]
) -> nn.Module:
    """Prunes and tunes weights in turns (Han et al., NIPS 2015), by default the same share of the rest in each round.

    The criterion judges the weights as the last round's training left them.

    Args:
        model: any module; it is not changed.
        rounds: how many, at least 1.
        tune: called after each pruning with the masked network.
        schedule: a name in `SCHEDULES`: how the sparsity grows from 0 over the rounds.
        **options: those of `plan_weights`; `sparsity`, that after the last round, is required.

    Returns:
        The network as `tune` returned it last, with masks.

    Raises:
        RequestError: as `plan_weights` says; a schedule or number of rounds that does not exist; `tune` returned no module.

    Example:
        >>> pruned = prune_weights_iteratively(nn.Linear(10, 10), sparsity=0.9, rounds=3, tune=lambda net: net)
        >>> int((pruned.weight != 0).sum())
        10
    """
    for sparsity in _steps(options["sparsity"], rounds, schedule):
        model = _tuned(tune, prune_weights(model, **(options | {"sparsity": sparsity})))
    return model


def prune_neurons_iteratively(
    model: nn.Module,
    example: Example,
    *,
    rounds: int,
    tune: Tune,
    schedule: str = "exponential",
    **options: Unpack[NeuronOptions],
) -> nn.Module:
    """Prunes and tunes neurons in turns (Molchanov et al., ICLR 2017), by default the same share of the rest in each round.

    What one round could not remove, because a group would have lost its last neuron, the next ones make up for elsewhere.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        rounds: how many, at least 1.
        tune: called after each pruning with the smaller network.
        schedule: a name in `SCHEDULES`: how the sparsity grows from 0 over the rounds.
        **options: those of `plan_neurons`; `sparsity`, that after the last round, is required.

    Returns:
        The network as `tune` returned it last.

    Raises:
        RequestError, UnsupportedOpError: as `plan_neurons` says; a schedule or number of rounds that does not exist; `tune`
            returned no module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> prune_neurons_iteratively(net, torch.zeros(1, 4), sparsity=0.75, rounds=2, tune=lambda net: net)[0].weight.shape
        torch.Size([4, 4])
    """
    steps = _steps(options["sparsity"], rounds, schedule)
    plan = plan_neurons(model, example, **(options | {"sparsity": steps[0]}))
    total = sum(group.total for group in plan.groups)
    for sparsity in steps[1:]:
        model = _tuned(tune, plan.apply(model))
        left = sum(group.kept for group in plan.groups)
        due = max(left - (total - round(sparsity * total)), 0)
        plan = plan_neurons(model, example, **(options | {"sparsity": due / left}))
    return _tuned(tune, plan.apply(model))


def _steps(sparsity: float | None, rounds: int, schedule: str) -> list[float]:
    if sparsity is None:
        raise RequestError("pruning in rounds needs the sparsity to reach, got None")
    return sparsities(0.0, sparsity, rounds, schedule)


def _tuned(tune: Tune, model: nn.Module) -> nn.Module:
    tuned = tune(model)
    if not isinstance(tuned, nn.Module):
        raise RequestError(f"tune must return the network it trained, got {type(tuned).__name__}")
    return tuned
