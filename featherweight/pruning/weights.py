"""Pruning single weights: masks chosen by a criterion, kept by a parametrization, raised while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Required, TypedDict, Unpack

import torch
from torch import nn

from featherweight.errors import RequestError, look_up
from featherweight.graph.constraint import Constraint, constrain, constrained, constraints_of, duplicate
from featherweight.graph.selection import select_weights
from featherweight.pruning.allocation import ALLOCATIONS
from featherweight.pruning.criteria import WEIGHT_CRITERIA
from featherweight.pruning.schedule import SCHEDULES

__all__ = ["GradualPruning", "Mask", "WeightOptions", "apply_masks", "plan_weights", "prune_weights"]


class WeightOptions(TypedDict, total=False):
    """The options of `plan_weights`, for functions that pass them on."""

    sparsity: Required[float]
    criterion: str
    allocation: str
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    seed: int


class Mask(Constraint):
    """Keeps removed weights at zero: weight = original · mask.

    Args:
        mask: bool, the weight's shape, True where the weight stays.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight with zeros where the mask is False."""
        return torch.where(self.mask, original, 0)  # a product would make -0 of a negative weight, and NaN of an infinite one

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight itself."""
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the mask's `axis`."""
        self.mask = self.mask.index_select(axis, indices.to(self.mask.device))


def plan_weights(
    model: nn.Module,
    *,
    sparsity: float,
    criterion: str = "magnitude",
    allocation: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Chooses which weights stay: exactly round(sparsity · n) of the n selected weights go, lowest scores first.

    Weights that a mask has removed already count as removed and go first.

    Args:
        model: any module; it is not changed.
        sparsity: fraction of the selected weights that is zero afterwards, in [0, 1).
        criterion: a name in `WEIGHT_CRITERIA`.
        allocation: a name in `ALLOCATIONS`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        seed: for criteria that draw random numbers.

    Returns:
        For each weight's name a bool mask of its shape, True where it stays.

    Raises:
        RequestError: an unknown name, or a sparsity outside [0, 1).

    Example:
        >>> layer = nn.Linear(10, 10)
        >>> int(plan_weights(layer, sparsity=0.25)["weight"].sum())
        75
    """
    if not 0 <= sparsity < 1:
        raise RequestError(f"sparsity must be in [0, 1), got {sparsity}")
    score = look_up(WEIGHT_CRITERIA, criterion, "criterion")
    spread = look_up(ALLOCATIONS, allocation, "allocation")
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, weight in select_weights(model, include=include, exclude=exclude).items():
        scores[name] = score(weight, generator)
        for constraint in constraints_of(model, name):
            if isinstance(constraint, Mask):
                scores[name] = scores[name].masked_fill(~constraint.mask, -torch.inf)
    return spread(scores, sparsity)


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with these masks as constraints: removed weights are zero and stay zero in training.

    Args:
        model: any module; it is not changed.
        masks: for each weight's name a bool mask of its shape; replaces a mask it may have.

    Returns:
        The copy.

    Example:
        >>> pruned = apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> pruned.weight[0, 1].item()
        0.0
    """
    pruned = duplicate(model)
    _set_masks(pruned, masks)
    return pruned


def _set_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    for name, mask in masks.items():
        old = [c for c in constraints_of(model, name) if isinstance(c, Mask)]
        if old:
            old[0].mask.copy_(mask)
        else:
            constrain(model, name, Mask(mask))


def prune_weights(model: nn.Module, **options: Unpack[WeightOptions]) -> nn.Module:
    """Removes weights at once: `plan_weights`, then `apply_masks`.

    Args:
        model: any module; it is not changed.
        **options: those of `plan_weights`; `sparsity` is required.

    Returns:
        A copy with masks; `graph.fold` bakes them in.

    Raises:
        RequestError: an unknown name, or a sparsity outside [0, 1).

    Example:
        >>> pruned = prune_weights(nn.Linear(10, 10), sparsity=0.9)
        >>> int((pruned.weight != 0).sum())
        10
    """
    return apply_masks(model, plan_weights(model, **options))


class GradualPruning:
    """Raises the sparsity while a network trains, as `fit`'s `after_step` (Zhu and Gupta 2017).

    Args:
        start: the sparsity at the beginning, in [0, 1).
        end: the sparsity at the end, in [start, 1).
        schedule: a name in `SCHEDULES`.
        until: the share of the training in which the sparsity grows, in (0, 1]; the rest only tunes.
        updates: how many times the masks are chosen anew, at least 1.

    Raises:
        RequestError: an unknown name, or a number out of range.
    """

    def __init__(self, *, start: float, end: float, schedule: str = "cubic", until: float = 0.7, updates: int = 100) -> None:
        if not 0 <= start <= end < 1:
            raise RequestError(f"sparsity must grow within [0, 1), got {start} to {end}")
        if not 0 < until <= 1 or updates < 1:
            raise RequestError(f"until must be in (0, 1] and updates at least 1, got {until} and {updates}")
        self._start, self._end, self._until, self._updates = start, end, until, updates
        self._grow = look_up(SCHEDULES, schedule, "schedule")

    def __call__(self, model: nn.Module, done: float) -> None:
        """Chooses the masks anew when the sparsity due is above the model's; depends on nothing but the two arguments."""
        phase = int(min(done / self._until, 1.0) * self._updates) / self._updates
        sparsity = self._start + (self._end - self._start) * self._grow(phase)
        masks = [c.mask for chain in constrained(model).values() for c in chain if isinstance(c, Mask)]
        removed = sum(int((~mask).sum()) for mask in masks)
        if removed < round(sparsity * sum(w.numel() for w in select_weights(model).values())):
            with torch.no_grad():
                _set_masks(model, plan_weights(model, sparsity=sparsity))
