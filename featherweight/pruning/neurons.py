"""Pruning neurons: channels, filters and units that really go, with everything coupled to them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Required, TypedDict, Unpack

import torch
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError, look_up
from featherweight.graph.capture import Example, capture, tensors_of
from featherweight.graph.constraint import fold
from featherweight.graph.groups import Coupling, Group, trace
from featherweight.graph.program import Program
from featherweight.graph.surgery import Plan, PlannedGroup
from featherweight.pruning.allocation import ALLOCATIONS
from featherweight.pruning.criteria import NEURON_CRITERIA

__all__ = ["NeuronOptions", "make_plan", "plan_neurons", "prune_neurons"]


class NeuronOptions(TypedDict, total=False):
    """The options of `plan_neurons`, for functions that pass them on."""

    sparsity: Required[float]
    criterion: str
    allocation: str
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    round_to: int
    seed: int


def plan_neurons(
    model: nn.Module,
    example: Example,
    *,
    sparsity: float,
    criterion: str = "magnitude",
    allocation: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    round_to: int = 1,
    seed: int = 0,
) -> Plan:
    """Decides which neurons go: round(sparsity · n) of the n that may, lowest scores first; fewer where a group keeps its last.

    With the global allocation, scores are divided by their group's mean first, so that layers of different scale compare.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        sparsity: fraction of the neurons removed, in [0, 1).
        criterion: a name in `NEURON_CRITERIA`.
        allocation: a name in `ALLOCATIONS`.
        include: shell-style patterns of tensor names; only groups that hold one, if given.
        exclude: patterns of tensor names; no group that holds one.
        round_to: the number of neurons kept in each group is rounded up to a multiple of this, at least 1.
        seed: for criteria that draw random numbers.

    Returns:
        The plan; `plan.apply(model)` makes the smaller network.

    Raises:
        RequestError: an unknown name, a sparsity outside [0, 1), `round_to` below 1, patterns that leave nothing.
        UnsupportedOpError: nothing may shrink; the operations that stand in the way are named.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(plan_neurons(net, torch.zeros(1, 4), sparsity=0.5).groups[0].kept)
        4
    """
    if not 0 <= sparsity < 1:
        raise RequestError(f"sparsity must be in [0, 1), got {sparsity}")
    if round_to < 1:
        raise RequestError(f"round_to must be at least 1, got {round_to}")
    score = look_up(NEURON_CRITERIA, criterion, "criterion")
    spread = look_up(ALLOCATIONS, allocation, "allocation")
    folded = fold(model)
    program = capture(folded, example)
    tensors = tensors_of(folded, program)
    coupling = trace(program, tensors)
    groups = {str(i): g for i, g in enumerate(coupling.groups) if _is_wanted(g, include, exclude)}
    if coupling.groups and not groups:
        names = ", ".join(group.name for group in coupling.groups)
        raise RequestError(f"include and exclude must leave a group of neurons, got {include} and {exclude} for {names}")
    if not groups:
        reasons = "; ".join(sorted({*coupling.locked.values()})[:5])
        raise UnsupportedOpError(f"no neuron of {type(model).__name__} may be removed: {reasons or 'it has no inner channels'}")
    generator = torch.Generator().manual_seed(seed)
    scores = {key: score(group, tensors, generator).cpu() for key, group in groups.items()}
    scores = {key: s / s.mean().clamp(min=1e-12) for key, s in scores.items()}
    stays = spread(scores, sparsity)
    removed = {key: _indices_removed(scores[key], stays[key], round_to) for key in groups}
    return make_plan(program, coupling, [(groups[key], removed[key]) for key in groups])


def prune_neurons(model: nn.Module, example: Example, **options: Unpack[NeuronOptions]) -> nn.Module:
    """Removes neurons at once: `plan_neurons`, then `Plan.apply`.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        **options: those of `plan_neurons`; `sparsity` is required.

    Returns:
        The smaller network, constraints kept.

    Raises:
        RequestError, UnsupportedOpError: as `plan_neurons` and `Plan.apply` say.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune_neurons(net, torch.zeros(1, 4), sparsity=0.5)[0].weight.shape
        torch.Size([4, 4])
    """
    return plan_neurons(model, example, **options).apply(model)


def make_plan(program: Program, coupling: Coupling, removed: Sequence[tuple[Group, torch.Tensor]]) -> Plan:
    """A plan that removes given channels of given groups.

    Args:
        program: the network.
        coupling: its trace.
        removed: groups of the coupling, each with the channels that go, int64.

    Returns:
        The plan.
    """
    gone: dict[tuple[str, int], set[int]] = {}
    lines = []
    for group, channels in removed:
        tensors = tuple(dict.fromkeys(name for name, _ in group.members))
        lines.append(PlannedGroup(group.name, tensors, group.size - len(channels), group.size))
        for axis, indices in group.members.items():
            gone.setdefault(axis, set()).update(indices[channels].flatten().tolist())
    locked = {name: reason for (name, _), reason in coupling.locked.items()}
    shrinking = {name for group in coupling.groups for name, _ in group.members}
    return Plan(
        {axis: tuple(sorted(indices)) for axis, indices in gone.items() if indices},
        tuple(lines),
        {name: reason for name, reason in locked.items() if name not in shrinking},
        program.inputs,
    )


def _is_wanted(group: Group, include: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
    names = {name for name, _ in group.members}

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return (include is None or matches(include)) and not matches(exclude or ())


def _indices_removed(scores: torch.Tensor, stays: torch.Tensor, round_to: int) -> torch.Tensor:
    """Which channels go, at least one and a multiple of `round_to` staying: of those chosen to go the highest come back."""
    size = len(scores)
    kept = min(-(-max(int(stays.sum()), 1) // round_to) * round_to, size)
    gone = (~stays).nonzero().flatten()
    order = gone[scores[gone].argsort(stable=True)]
    return order[: size - kept].sort().values
