"""How a sparsity is spread over tensors or groups. To add an allocation, write a function and a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch

from featherweight.errors import RequestError, check, look_up
from featherweight.pruning.granularity import Units, keep_pattern, pattern_of, settle_units, share_scores, units_of
from featherweight.pruning.ranking import count, keep_highest, keep_highest_of_all, places

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "allocate_as_told",
    "allocate_by_density",
    "allocate_by_kernel_density",
    "allocate_by_lamp",
    "allocate_by_row",
    "allocate_globally",
    "allocate_uniformly",
    "choose",
]

Allocation = Callable[[Mapping[str, torch.Tensor], float], dict[str, torch.Tensor]]
"""(scores, sparsity) -> for each name a bool tensor of the scores' shape, True where the entry stays."""


def choose(
    scores: Mapping[str, torch.Tensor],
    sparsity: float | None,
    *,
    allocation: str | Mapping[str, float] | Allocation = "global",
    granularity: str = "element",
) -> dict[str, torch.Tensor]:
    """Chooses what stays: exactly round(sparsity · n) of the n entries go, lowest scores first, of equal ones the earlier.

    So it is for single entries, where "uniform" and "row" round for each tensor and each row. Larger units go whole, and the
    number of entries comes as near as they allow: to half a unit for "global", to half a unit of each tensor for the others. A
    pattern N:M removes its share of each tensor. Sparsity 0 removes nothing.

    Args:
        scores: for each name a tensor; -inf for entries that are gone already: they go first.
        sparsity: fraction removed, in [0, 1). None where the allocation or the granularity says it; a pattern it may not
            contradict, and what an allocation by name comes to it may not exceed: below, each tensor gives in proportion.
        allocation: a name in `ALLOCATIONS`; or sparsities by shell-style pattern of names ({"fc1.*": 0.9}), where the first
            pattern that fits counts and what fits none stays; or a function like those in `ALLOCATIONS`.
        granularity: a name in `granularity.GRANULARITIES`, a block like "16x16", or a pattern like "2:4".

    Returns:
        For each name a bool tensor of its shape, True where the entry stays.

    Raises:
        RequestError: an unknown name, a sparsity that is out of range, missing or contradictory, a score that is NaN, or a
            tensor that the granularity or the allocation does not fit.

    Example:
        >>> scores = {"a": torch.tensor([[4.0, 1.0], [2.0, 3.0]]), "b": torch.tensor([[9.0, 8.0]])}
        >>> choose(scores, 0.5)["a"].tolist()
        [[True, False], [False, False]]
        >>> choose(scores, 0.5, granularity="1:2")["a"].tolist()
        [[True, False], [False, True]]
    """
    if sparsity is not None:
        check("sparsity", sparsity, "in [0, 1)", 0 <= sparsity < 1)
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise RequestError(f"scores must be numbers, got NaN for {name}")
    pattern = pattern_of(granularity)
    if pattern is not None:
        return _choose_by_pattern(scores, sparsity, allocation, pattern)
    spread = _spread(allocation, sparsity)
    units_in = units_of(granularity)
    if granularity == "element":
        return _checked(spread(scores), scores)
    if allocation == "row":
        raise RequestError(f"the allocation 'row' compares the entries of a row, which {granularity!r} takes together")
    return _choose_units(scores, spread, units_in)


def allocate_uniformly(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """The same share of every tensor: round(sparsity · n) lowest scores of each, ties by index.

    Args:
        scores: for each name a tensor of scores, any shape.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Example:
        >>> allocate_uniformly({"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)["a"].tolist()
        [True, False, False, True]
    """
    return {name: keep_highest(s, round(sparsity * s.numel())) for name, s in scores.items()}


def allocate_globally(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """One ranking over all tensors: the round(sparsity · n) lowest scores of the n in total, ties by order.

    Args:
        scores: for each name a tensor of scores, any shape, comparable with each other.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Example:
        >>> kept = allocate_globally({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5)
        >>> kept["a"].tolist(), kept["b"].tolist()
        ([False, False], [True, True])
    """
    return keep_highest_of_all(scores, round(sparsity * count(scores)))


def allocate_by_row(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """The same share of each output's weights, round(sparsity · inputs): the comparison group of Wanda (Sun et al., ICLR 2024).

    Args:
        scores: for each name a tensor of two or more axes, outputs first.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Raises:
        RequestError: a tensor has fewer axes.

    Example:
        >>> allocate_by_row({"a": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}, 0.5)["a"].tolist()
        [[False, True], [True, False]]
    """
    kept = {}
    for name, score in _matrices(scores, "row").items():
        rows = score.flatten(1)
        removed = round(sparsity * rows.shape[1])
        keep = torch.ones_like(rows, dtype=torch.bool)
        kept[name] = keep.scatter_(1, rows.argsort(dim=1, stable=True)[:, :removed], False).reshape(score.shape)
    return kept


def allocate_by_density(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Erdős–Rényi: densities in proportion to (inputs + outputs) / (inputs · outputs) (Mocanu et al., 2018, eq. 3).

    A tensor that would be more than dense is dense, and the others share the rest in proportion (Evci et al., ICML 2020).
    Exactly round(sparsity · n) go in all: the entries kept are given out one by one, each to the tensor that is furthest from
    its due (Webster's method), so that no tensor gets back what it lost when the sparsity grows.

    Args:
        scores: for each name a tensor of two or more axes, (outputs, inputs, …).
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Raises:
        RequestError: a tensor has fewer axes.

    Example:
        >>> scores = {"a": torch.rand(30, 10), "b": torch.rand(10, 30), "c": torch.rand(10, 10)}
        >>> [int(keep.sum()) for keep in allocate_by_density(scores, 0.9).values()]  # 40 to 40 to 20
        [28, 28, 14]
    """
    due = {
        name: score.numel() * sum(score.shape[:2]) / math.prod(score.shape[:2])
        for name, score in _matrices(scores, "erdos_renyi").items()
    }
    return _share_out(scores, sparsity, due)


def allocate_by_kernel_density(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Erdős–Rényi–kernel: densities in proportion to the sum of a tensor's sides over their product (Evci et al., ICML 2020).

    For a convolution (inputs + outputs + height + width) / (inputs · outputs · height · width); for a matrix it is
    `allocate_by_density`, as is all the rest.

    Args:
        scores: for each name a tensor of two or more axes.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Raises:
        RequestError: a tensor has fewer axes.

    Example:
        >>> scores = {"conv": torch.rand(16, 8, 3, 3), "linear": torch.rand(10, 20)}
        >>> [int(keep.sum()) for keep in allocate_by_kernel_density(scores, 0.96).values()]  # 30 to 30
        [27, 27]
    """
    return _share_out(
        scores, sparsity, {name: float(sum(s.shape)) for name, s in _matrices(scores, "erdos_renyi_kernel").items()}
    )


def allocate_by_lamp(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Layer-adaptive magnitude-based pruning (Lee et al., ICLR 2021, eq. 4): `allocate_globally` on rescaled scores.

    An entry's score² is divided by the sum of its own and of all that rank above it in its tensor. The highest of each tensor
    comes to 1, so that no tensor vanishes. The paper has magnitudes; any scores that are not negative will do.

    Args:
        scores: for each name a tensor of scores, any shape, at least 0, or -inf for what is gone.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Raises:
        RequestError: a score is negative.

    Example:
        >>> kept = allocate_by_lamp({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([30.0, 40.0])}, 0.5)
        >>> kept["a"].tolist(), kept["b"].tolist()
        ([False, True], [False, True])
    """
    rescaled = {}
    for name, score in scores.items():
        flat = score.flatten().double()
        gone = flat == -torch.inf
        if bool((flat[~gone] < 0).any()):
            raise RequestError(f"the allocation 'lamp' needs scores of at least 0, got {float(flat[~gone].min()):g} for {name}")
        order = flat.argsort(stable=True)
        squares = flat[order].clamp(0, 1e100).square()  # an infinite score would be no number when divided by itself
        above = squares.flip(0).cumsum(0).flip(0)
        lamp = torch.empty_like(flat)
        lamp[order] = squares / above.clamp(min=torch.finfo(above.dtype).tiny)
        rescaled[name] = lamp.masked_fill(gone, -torch.inf).reshape(score.shape)
    return allocate_globally(rescaled, sparsity)


def allocate_as_told(
    scores: Mapping[str, torch.Tensor], sparsity: float | None, *, sparsities: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """A sparsity for each tensor by name: round(its sparsity · its n) lowest scores of each, ties by index.

    Args:
        scores: for each name a tensor of scores, any shape.
        sparsity: None; or the fraction removed in all, no more than `sparsities` come to, which are then reached in proportion.
        sparsities: by shell-style pattern of names, each in [0, 1); the first that fits counts, and what fits none stays.

    Returns:
        For each name a bool tensor, True where the entry stays.

    Raises:
        RequestError: a pattern fits no name, a sparsity is out of range, or more is to go than the tensors are told to give.

    Example:
        >>> scores = {"fc1.weight": torch.arange(4.0), "fc2.weight": torch.arange(4.0)}
        >>> [keep.tolist() for keep in allocate_as_told(scores, None, sparsities={"fc1.*": 0.5}).values()]
        [[False, False, True, True], [True, True, True, True]]
    """
    told = _sparsities_told(list(scores), sparsities)
    counts = {name: round(told[name] * score.numel()) for name, score in scores.items()}
    removed = sum(counts.values()) if sparsity is None else round(sparsity * count(scores))
    if removed > sum(counts.values()):
        most = sum(counts.values()) / count(scores)
        raise RequestError(
            f"sparsity must be at most {most:.4g}, as the allocation by name has it, got {sparsity:g}; None takes it as it is"
        )
    if removed == sum(counts.values()):
        return {name: keep_highest(score, counts[name]) for name, score in scores.items()}
    turns = {}
    for name, score in scores.items():
        place = places(score) + 0.5
        turns[name] = place / (told[name] * score.numel()) if told[name] else torch.full_like(place, torch.inf)
    return keep_highest_of_all(turns, removed)


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": allocate_uniformly,
    "global": allocate_globally,
    "row": allocate_by_row,
    "erdos_renyi": allocate_by_density,
    "erdos_renyi_kernel": allocate_by_kernel_density,
    "lamp": allocate_by_lamp,
}


def _choose_by_pattern(
    scores: Mapping[str, torch.Tensor],
    sparsity: float | None,
    allocation: str | Mapping[str, float] | Allocation,
    pattern: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """N of every M: the pattern's share of each tensor, or nothing of those that an allocation by name leaves out."""
    share = 1 - pattern[0] / pattern[1]
    rule = f"the pattern {pattern[0]}:{pattern[1]} removes {share:.4g} of each weight"
    if isinstance(allocation, Mapping):
        told = _sparsities_told(list(scores), allocation)
    elif allocation in ("global", "row", "uniform"):
        told = dict.fromkeys(scores, share)
        if sparsity and not math.isclose(sparsity, share):
            raise RequestError(f"{rule}, so that sparsity must be {share:.4g}, 0 or None, got {sparsity:g}")
    else:
        raise RequestError(f"{rule}, so that allocation must be 'uniform', 'global', 'row' or by name, got {allocation!r}")
    other = {name: value for name, value in told.items() if value and not math.isclose(value, share)}
    if other:
        raise RequestError(f"{rule}, so that its sparsity by name must be {share:.4g} or 0, got {other}")
    pruned = {name for name in scores if told[name] and sparsity != 0}
    return {
        name: _of(name, keep_pattern, score, *pattern) if name in pruned else torch.ones_like(score, dtype=torch.bool)
        for name, score in scores.items()
    }


def _choose_units(scores: Mapping[str, torch.Tensor], spread: _Spread, units_in: Units) -> dict[str, torch.Tensor]:
    """Lets the allocation choose among entries that have their unit's score and lie beside each other; then settles units."""
    units, orders, shared = {}, {}, {}
    for name, score in scores.items():
        units[name] = _of(name, units_in, score.shape)
        orders[name] = units[name].flatten().argsort(stable=True)
        shared[name] = share_scores(score.cpu(), units[name]).flatten()[orders[name]].reshape(score.shape)
    kept = {}
    for name, keep in _checked(spread(shared), shared).items():
        back = torch.empty_like(keep).flatten()
        back[orders[name]] = keep.flatten()
        alive = scores[name].cpu() > -torch.inf
        kept[name] = settle_units(back.reshape(keep.shape), units[name], alive).to(scores[name].device)
    return kept


_Spread = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def _spread(allocation: str | Mapping[str, float] | Allocation, sparsity: float | None) -> _Spread:
    """The function behind an allocation, with its sparsity, which may be None if that means something to it."""
    if isinstance(allocation, Mapping):
        return partial(allocate_as_told, sparsity=sparsity, sparsities=allocation)
    if sparsity is None:
        raise RequestError("sparsity must be given, unless the allocation is by name or the granularity a pattern")
    function = look_up(ALLOCATIONS, allocation, "allocation") if isinstance(allocation, str) else allocation
    return lambda scores: function(scores, sparsity)


def _sparsities_told(names: Sequence[str], sparsities: Mapping[str, float]) -> dict[str, float]:
    """Each name's sparsity: that of the first pattern that fits, else 0."""
    for pattern, sparsity in sparsities.items():
        check(f"the sparsity of {pattern!r}", sparsity, "in [0, 1)", 0 <= sparsity < 1)
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(names)}"
            raise RequestError(f"a pattern of an allocation by name must fit a weight, got {pattern!r}{hint}")
    fitting = {name: [s for pattern, s in sparsities.items() if fnmatchcase(name, pattern)] for name in names}
    return {name: found[0] if found else 0.0 for name, found in fitting.items()}


def _checked(kept: dict[str, torch.Tensor], scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an allocation returned, which may be the caller's own."""
    for name, score in scores.items():
        keep = kept.get(name)
        if keep is None or keep.dtype != torch.bool or keep.shape != score.shape:
            got = "nothing" if keep is None else f"{keep.dtype} {tuple(keep.shape)}"
            raise RequestError(f"an allocation must return a bool tensor {tuple(score.shape)} for {name}, got {got}")
    return kept


def _of(name: str, function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """A function of one tensor; its error says of which."""
    try:
        return function(*args)
    except RequestError as error:
        raise RequestError(f"{error}, of {name}") from error


def _matrices(scores: Mapping[str, torch.Tensor], allocation: str) -> Mapping[str, torch.Tensor]:
    """The scores, all of which must have an axis of outputs and one of inputs."""
    for name, score in scores.items():
        if score.dim() < 2:
            raise RequestError(f"the allocation {allocation!r} needs two or more axes, got {tuple(score.shape)} of {name}")
    return scores


def _share_out(scores: Mapping[str, torch.Tensor], sparsity: float, due: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Keeps in proportion to `due`: the entry of a tensor that has kept k of higher score has the claim due / (k + 1/2)."""
    claims = {}
    for name, score in scores.items():
        above = score.numel() - 1 - places(score)
        claims[name] = (due[name] / (above + 0.5)).masked_fill(score == -torch.inf, -torch.inf)
    return allocate_globally(claims, sparsity)
