"""Pruning neurons: channels, filters and units that really go, with everything coupled to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Required, TypedDict, Unpack, get_args

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, UnsupportedOpError, check, look_up
from featherweight.graph.capture import Example
from featherweight.graph.cutting import Anatomy, cut, study
from featherweight.graph.groups import Coupling, Group, Unit
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.surgery import Plan, PlannedGroup
from featherweight.pruning.allocation import Allocation, choose
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA, NeuronCriterion, neuron_weight_scores
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss
from featherweight.training.statistics import Evidence

__all__ = ["NeuronOptions", "make_plan", "plan_neurons", "prune_neurons", "select_groups"]

_log = logging.getLogger(__name__)


class NeuronOptions(TypedDict, total=False):
    """The options of `plan_neurons`, for functions that pass them on."""

    sparsity: Required[float | None]
    criterion: str | Mapping[str, torch.Tensor] | NeuronCriterion
    allocation: str | Mapping[str, float] | Allocation
    granularity: Unit
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    round_to: int
    data: Iterable[Batch] | None
    loss: Loss
    seed: int


def plan_neurons(
    model: nn.Module,
    example: Example,
    *,
    sparsity: float | None,
    criterion: str | Mapping[str, torch.Tensor] | NeuronCriterion = "magnitude",
    allocation: str | Mapping[str, float] | Allocation = "global",
    granularity: Unit = "neuron",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    round_to: int = 1,
    data: Iterable[Batch] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Plan:
    """Decides which neurons go: round(sparsity · n) of the n that may, lowest scores first, of equal ones the earlier.

    Scores are divided by their group's mean before they are compared across groups, so that layers of different scale compare.
    No group vanishes: where an allocation would take all of one, the best stays; "global" takes another group's neuron instead,
    until one of each is left, and with the others fewer go.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        sparsity: fraction of the neurons removed, in [0, 1); may be None where `allocation` says it for each group.
        criterion: a name in `NEURON_CRITERIA`; or scores of single weights by tensor name, which are summed over each neuron's;
            or a function like those in `NEURON_CRITERIA`.
        allocation: a name in `ALLOCATIONS`; or sparsities by shell-style pattern of group names, as the plan prints them
            ({"conv1.*": 0.5}); or a function like those in `ALLOCATIONS`.
        granularity: "neuron", or "head": attention loses whole heads, where a head is one neuron; all else loses neurons.
        include: shell-style patterns of tensor names; only groups that hold one, if given.
        exclude: patterns of tensor names; no group that holds one.
        round_to: the number of neurons kept in each group is rounded up to a multiple of this, at least 1; a smaller group
            stays whole, and the log says so.
        data: batches of (inputs, targets), for criteria that look at data.
        loss: (outputs, targets) -> scalar, for criteria that look at gradients.
        seed: for criteria that draw random numbers, and the order of data that are shuffled.

    Returns:
        The plan; `plan.apply(model)` makes the smaller network.

    Raises:
        RequestError: an unknown name, a number out of range, a pattern that fits nothing, patterns that leave nothing, or data
            that are needed and not given.
        UnsupportedOpError: nothing may shrink; the operations that stand in the way are named.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(plan_neurons(net, torch.zeros(1, 4), sparsity=0.5).groups[0].kept)
        4
    """
    choice = _Choice(sparsity, criterion, allocation, granularity, include, exclude, round_to, data, loss, seed)
    return _decide(study(model, example, unit=choice.granularity), choice)


def prune_neurons(model: nn.Module, example: Example, **options: Unpack[NeuronOptions]) -> nn.Module:
    """Removes neurons at once: `plan_neurons`, then `Plan.apply`, with one capture for both.

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
    choice = _Choice(**options)
    network = study(model, example, unit=choice.granularity)
    return cut(network, _decide(network, choice).removed, model)


@dataclass(frozen=True)
class _Choice:
    """The options of `plan_neurons`, with its defaults; in order."""

    sparsity: float | None
    criterion: str | Mapping[str, torch.Tensor] | NeuronCriterion = "magnitude"
    allocation: str | Mapping[str, float] | Allocation = "global"
    granularity: Unit = "neuron"
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    round_to: int = 1
    data: Iterable[Batch] | None = None
    loss: Loss = cross_entropy
    seed: int = 0

    def __post_init__(self) -> None:
        check("sparsity", self.sparsity, "in [0, 1)", self.sparsity is None or 0 <= self.sparsity < 1)
        check("round_to", self.round_to, "a whole number >= 1", isinstance(self.round_to, int) and self.round_to >= 1)
        units = get_args(Unit)
        check("granularity", self.granularity, f"one of {', '.join(units)}", self.granularity in units)
        _criterion(self.criterion)


def _decide(network: Anatomy, choice: _Choice) -> Plan:
    """What `plan_neurons` does, once the network is captured and traced."""
    name, score = _criterion(choice.criterion)
    groups = _by_name(select_groups(network, include=choice.include, exclude=choice.exclude))
    twin = ProgramModule(network.program, network.tensors).eval()  # has the tensors by the names that groups have them
    evidence = Evidence(twin, choice.data, choice.loss, torch.Generator().manual_seed(choice.seed), f"the criterion {name}")
    scores = _compare(_checked(score([*groups.values()], network, evidence), groups, name))
    stays = _choose(scores, choice.sparsity, choice.allocation)
    removed = {key: _indices_removed(scores[key], stays[key], choice.round_to) for key in scores}
    small = [key for key in scores if groups[key].size < choice.round_to]
    if small:
        _log.warning("round_to=%d leaves smaller groups as they are: %s", choice.round_to, ", ".join(small))
    none = torch.empty(0, dtype=torch.int64)
    pairs = [(group, removed.get(key, none)) for key, group in groups.items()]
    return make_plan(network.program, network.coupling, pairs, unit=network.unit)


def make_plan(
    program: Program, coupling: Coupling, removed: Sequence[tuple[Group, torch.Tensor]], *, unit: Unit = "neuron"
) -> Plan:
    """A plan that removes given channels of given groups.

    Args:
        program: the network.
        coupling: its trace.
        removed: groups of the coupling, each with the channels that go, int64.
        unit: what the coupling was traced for.

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
    locked: dict[str, str] = {}
    for (name, _), reason in coupling.locked.items():
        locked.setdefault(name, reason)
    shrinking = {name for group in coupling.groups for name, _ in group.members}
    owned = coupling.values[len(program.inputs) : program.first_node]
    return Plan(
        {axis: tuple(sorted(indices)) for axis, indices in gone.items() if indices},
        tuple(lines),
        {name: reason for name, reason in locked.items() if name not in shrinking},
        program.inputs,
        unit,
        {spec.name: value.shape for spec, value in zip(program.tensors, owned, strict=True) if spec.name in shrinking},
        (program, coupling),
    )


def select_groups(
    network: Anatomy, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Group]:
    """The groups that a method may change, chosen by the tensors they hold.

    Args:
        network: any.
        include: shell-style patterns of tensor names; only groups that hold one, if given.
        exclude: patterns of tensor names; no group that holds one.

    Returns:
        At least one group, in order.

    Raises:
        RequestError: a pattern fits no tensor of the network, or no group is left.
        UnsupportedOpError: the network has no groups; the operations that stand in the way are named.

    Example:
        >>> network = study(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> [group.name for group in select_groups(network, exclude=["2.*"])]
        ['0.weight']
    """
    groups = network.coupling.groups
    for pattern in [*(include or ()), *(exclude or ())]:
        if not any(fnmatchcase(name, pattern) for name in network.tensors):
            close = get_close_matches(pattern, network.tensors, n=3, cutoff=0.5) or list(network.tensors)[:8]
            raise RequestError(f"a pattern must fit a tensor of the network, got {pattern!r}; there are {', '.join(close)}, …")
    if not groups:
        reasons = "; ".join(sorted({*network.coupling.locked.values()})[:5])
        raise UnsupportedOpError(f"no neuron of this network may be removed: {reasons or 'it has no inner channels'}")

    def holds(group: Group, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name, _ in group.members for pattern in patterns)

    wanted = [g for g in groups if (include is None or holds(g, include)) and not holds(g, exclude or ())]
    if not wanted:
        names = ", ".join(group.name for group in groups)
        raise RequestError(f"include and exclude must leave a group of neurons, got {include} and {exclude} for {names}")
    return wanted


def _criterion(criterion: str | Mapping[str, torch.Tensor] | NeuronCriterion) -> tuple[str, NeuronCriterion]:
    """A criterion's name for messages, and the function."""
    if isinstance(criterion, str):
        return repr(criterion), look_up(NEURON_CRITERIA, criterion, "criterion")
    if isinstance(criterion, Mapping):
        return "by weight", partial(neuron_weight_scores, scores=criterion)
    return getattr(criterion, "__name__", "given"), criterion


def _by_name(groups: Sequence[Group]) -> dict[str, Group]:
    """Groups by name; of those that share one (the parts of a split) the second is called "name#2"."""
    named: dict[str, Group] = {}
    for group in groups:
        count = sum(other.name == group.name for other in named.values())
        named[f"{group.name}#{count + 1}" if count else group.name] = group
    return named


def _checked(found: Sequence[torch.Tensor | None], groups: Mapping[str, Group], criterion: str) -> dict[str, torch.Tensor]:
    """The scores by group, of those groups that the criterion has scores for."""
    scores = {key: score.cpu() for key, score in zip(groups, found, strict=True) if score is not None}
    if not scores:
        raise RequestError(f"the criterion {criterion} must have scores for a group, but it has none for {', '.join(groups)}")
    for key, score in scores.items():
        if score.shape != (groups[key].size,):
            size, got = groups[key].size, tuple(score.shape)
            raise RequestError(f"a criterion must give one score for each of the {size} neurons of {key!r}, got shape {got}")
    return scores


def _compare(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes the scores of different groups comparable: each is divided by its group's mean absolute score.

    Layers differ in the scale of their weights and gradients; DepGraph and Molchanov et al. (2017) normalise by layer, too.
    Which neurons of one group go does not depend on it.
    """
    wide = {key: score.double() for key, score in scores.items()}
    return {key: score / score.abs().mean().clamp(min=torch.finfo(score.dtype).tiny) for key, score in wide.items()}


def _choose(
    scores: Mapping[str, torch.Tensor], sparsity: float | None, allocation: str | Mapping[str, float] | Allocation
) -> dict[str, torch.Tensor]:
    """`choose`, but where a group would vanish its best neuron stays, and the allocation may take another one's instead."""
    stays = choose(scores, sparsity, allocation=allocation)
    if all(bool(keep.any()) for keep in stays.values()):
        return stays
    best = {key: len(score) - 1 - score.flip(0).argmax() for key, score in scores.items()}  # of equal ones the last stays
    return choose({k: s.index_fill(0, best[k], torch.inf) for k, s in scores.items()}, sparsity, allocation=allocation)


def _indices_removed(scores: torch.Tensor, stays: torch.Tensor, round_to: int) -> torch.Tensor:
    """Which channels go, at least one and a multiple of `round_to` staying: of those chosen to go the highest come back."""
    size = len(scores)
    kept = min(-(-max(int(stays.sum()), 1) // round_to) * round_to, size)
    gone = (~stays).nonzero().flatten()
    order = gone[scores[gone].argsort(stable=True)]
    return order[: size - kept].sort().values
