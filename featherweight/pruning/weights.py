"""Pruning single weights: masks chosen by a criterion, kept by a parametrization, raised while the network trains."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Required, TypedDict, Unpack

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.constraint import Constraint, constrain, constrained, constraints_of, duplicate
from featherweight.graph.selection import select_weights
from featherweight.pruning.allocation import Allocation, choose
from featherweight.pruning.schedule import SCHEDULES
from featherweight.pruning.trajectory import Trajectory
from featherweight.pruning.weight_criteria import WeightCriterion, score_weights
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss
from featherweight.training.statistics import Evidence

__all__ = [
    "ChoiceOptions",
    "GradualPruning",
    "Mask",
    "WeightOptions",
    "apply_masks",
    "check_patterns",
    "plan_weights",
    "prune_weights",
    "removed_by_masks",
    "set_masks",
]

Criterion = str | WeightCriterion | Mapping[str, torch.Tensor] | Trajectory
"""A name, a function, scores by name, or what a training accumulated."""


class ChoiceOptions(TypedDict, total=False):
    """The options of `plan_weights` besides the sparsity, for functions that pass them on."""

    criterion: Criterion
    allocation: str | Mapping[str, float] | Allocation
    granularity: str
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    data: Iterable[Batch] | None
    loss: Loss
    seed: int


class WeightOptions(ChoiceOptions, total=False):
    """The options of `plan_weights`, for functions that pass them on."""

    sparsity: Required[float | None]


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
    sparsity: float | None,
    criterion: Criterion = "magnitude",
    allocation: str | Mapping[str, float] | Allocation = "global",
    granularity: str = "element",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    data: Iterable[Batch] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Chooses which weights stay: exactly round(sparsity · n) of the n selected weights go, lowest scores first.

    Weights that a mask has removed already count as removed, go first, and never come back.

    Args:
        model: any module; it is not changed.
        sparsity: fraction of the selected weights that is zero afterwards, in [0, 1); None where the allocation or the
            granularity says it.
        criterion: a name in `WEIGHT_CRITERIA`; or a function (weights by name, evidence) -> scores by name; or such scores; or
            a `Movement` or `PathIntegral` that went through a training.
        allocation: a name in `ALLOCATIONS`, sparsities by pattern of names, or a function, see `allocation.choose`.
        granularity: "element", "row", a block "16x16", a pattern "2:4", …, see `allocation.choose`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        data: batches of (inputs, targets) for the criteria that need them, as often as one asks: a `DataLoader`, a list.
        loss: (outputs, targets) -> scalar, the mean over the batch.
        seed: for what is drawn at random, in [0, 2**32).

    Returns:
        For each weight's name a bool mask of its shape, True where it stays.

    Raises:
        RequestError: an unknown name, a pattern that fits no parameter, a sparsity outside [0, 1), scores that do not fit, or
            no data where the criterion needs them.
        DataError: the data are empty, or no pairs of tensors.

    Example:
        >>> layer = nn.Linear(10, 10)
        >>> int(plan_weights(layer, sparsity=0.25)["weight"].sum())
        75
    """
    if sparsity is not None:
        check("sparsity", sparsity, "in [0, 1)", 0 <= sparsity < 1)
    check("seed", seed, "a whole number in [0, 2**32)", isinstance(seed, int) and 0 <= seed < 2**32)
    check_patterns(model, include, exclude)
    weights = select_weights(model, include=include, exclude=exclude)
    evidence = Evidence(model, data, loss, torch.Generator().manual_seed(seed))
    scores = score_weights(weights, evidence, criterion.scores() if isinstance(criterion, Trajectory) else criterion)
    gone = {name: mask for name, mask in removed_by_masks(model).items() if name in scores}
    for name, removed in gone.items():
        scores[name] = scores[name].masked_fill(removed, -torch.inf)
    stays = choose(scores, sparsity, allocation=allocation, granularity=granularity)
    return {name: keep & ~gone[name] if name in gone else keep for name, keep in stays.items()}


def removed_by_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """What masks have removed.

    Args:
        model: any module.

    Returns:
        For each masked tensor's name a bool tensor of its shape, True where the entry is gone.

    Example:
        >>> removed_by_masks(apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])}))
        {'weight': tensor([[False,  True]])}
    """
    return {name: ~c.mask for name, chain in constrained(model).items() for c in chain if isinstance(c, Mask)}


def check_patterns(model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str] | None) -> None:
    """Raises for a pattern that fits no parameter: it is most likely misspelt, and would silently do nothing.

    Args:
        model: any module.
        include, exclude: shell-style patterns of parameter names, or None.

    Raises:
        RequestError: a pattern fits none; the message has names that are near.

    Example:
        >>> check_patterns(nn.Linear(2, 1), ["w*"], ["bias"])
    """
    names = list(select_weights(model, min_dim=0))
    for what, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                close = get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
                rule = f"each pattern of {what} must fit a parameter, got {pattern!r}, which fits none of {len(names)}"
                raise RequestError(f"{rule}; near are {', '.join(close)}")


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with these masks as constraints: removed weights are zero and stay zero in training.

    Args:
        model: any module; it is not changed.
        masks: for each weight's name a bool mask of its shape; replaces a mask it may have.

    Returns:
        The copy.

    Raises:
        RequestError: there is no weight of this name, or the shapes differ.

    Example:
        >>> pruned = apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> pruned.weight[0, 1].item()
        0.0
    """
    pruned = duplicate(model)
    set_masks(pruned, masks)
    return pruned


def set_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Puts masks on weights IN PLACE; the optimizer of a running training notices nothing.

    Args:
        model: the module, which is changed.
        masks: for each weight's name a bool mask of its shape; replaces a mask it may have.

    Raises:
        RequestError: there is no weight of this name, or the shapes differ; nothing is changed then.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> set_masks(layer, {"weight": torch.tensor([[True, False]])})
        >>> layer.weight[0, 1].item()
        0.0
    """
    weights = select_weights(model, min_dim=0)
    for name, mask in masks.items():
        if name not in weights:
            look_up(weights, name, "the name of a mask")
        if mask.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, got {tuple(mask.shape)}"
            raise RequestError(f"a mask must have its weight's shape {shapes} for {name}")
    for name, mask in masks.items():
        old = [c for c in constraints_of(model, name) if isinstance(c, Mask)]
        if old:
            old[0].mask.copy_(mask)
        else:
            constrain(model, name, Mask(mask.to(weights[name].device)))


def prune_weights(model: nn.Module, **options: Unpack[WeightOptions]) -> nn.Module:
    """Removes weights at once: `plan_weights`, then `apply_masks`.

    Args:
        model: any module; it is not changed.
        **options: those of `plan_weights`; `sparsity` is required.

    Returns:
        A copy with masks; `graph.fold` bakes them in.

    Raises:
        RequestError, DataError: as `plan_weights` says.

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
        **options: those of `plan_weights`; a `Movement` or `PathIntegral` as criterion is fed with the steps on the way.

    Raises:
        RequestError: an unknown name, or a number out of range.

    Example:
        >>> grow = GradualPruning(start=0.0, end=0.75, criterion="random")
        >>> layer = nn.Linear(4, 4)
        >>> grow(layer, 0.9)
        >>> int((layer.weight == 0).sum())
        12
    """

    def __init__(
        self,
        *,
        start: float,
        end: float,
        schedule: str = "cubic",
        until: float = 0.7,
        updates: int = 100,
        **options: Unpack[ChoiceOptions],
    ) -> None:
        if not 0 <= start <= end < 1:
            raise RequestError(f"sparsity must grow within [0, 1), got {start} to {end}")
        if not 0 < until <= 1 or updates < 1:
            raise RequestError(f"until must be in (0, 1] and updates at least 1, got {until} and {updates}")
        self._start, self._end, self._until, self._updates = start, end, until, updates
        self._grow = look_up(SCHEDULES, schedule, "schedule")
        self._options = options
        self._planned: tuple[weakref.ref[nn.Module], float] | None = None

    def __call__(self, model: nn.Module, done: float) -> None:
        """Chooses the masks anew when a higher sparsity is due.

        Depends on nothing but the two arguments, and on the steps before where the criterion is a trajectory.
        """
        criterion = self._options.get("criterion")
        if isinstance(criterion, Trajectory):
            criterion(model, done)
        phase = int(min(done / self._until, 1.0) * self._updates) / self._updates
        sparsity = self._grow(self._start, self._end, phase)
        planned = (weakref.ref(model), sparsity)
        if planned == self._planned:  # only saves time: the same plan would come out
            return
        self._planned = planned
        weights = select_weights(model, include=self._options.get("include"), exclude=self._options.get("exclude"))
        gone = removed_by_masks(model)
        removed = sum(int(gone[name].sum()) for name in weights if name in gone)
        if removed < round(sparsity * sum(weight.numel() for weight in weights.values())):
            with torch.no_grad():
                set_masks(model, plan_weights(model, sparsity=sparsity, **self._options))
