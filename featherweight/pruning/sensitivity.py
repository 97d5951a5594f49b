"""How much accuracy each weight tensor costs at each sparsity, and the allocation that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, check
from featherweight.graph.constraint import fold
from featherweight.graph.program import tensor_called
from featherweight.graph.selection import select_weights
from featherweight.pruning.trajectory import Trajectory
from featherweight.pruning.weight_criteria import score_weights
from featherweight.pruning.weights import Criterion, plan_weights
from featherweight.training.loaders import Batch, Loader
from featherweight.training.loop import Loss, evaluate
from featherweight.training.statistics import Evidence

__all__ = ["Judge", "Sensitivity", "scan_sensitivity"]

Judge = Loader | Callable[[nn.Module], float]
"""Batches of (inputs, targets) to be classified, or a function from a network to its accuracy in [0, 1]."""


@dataclass(frozen=True)
class Sensitivity:
    """What a scan found: the accuracy with one tensor pruned at a time and all others whole.

    Attributes:
        accuracy: of the network as it is, in [0, 1].
        sparsities: that were tried, increasing, each in (0, 1).
        accuracies: for each tensor's name the accuracy at each of these sparsities.
        sizes: for each tensor's name its number of weights.
    """

    accuracy: float
    sparsities: tuple[float, ...]
    accuracies: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The scan as plain data, for JSON; `Sensitivity(**…)` makes it again."""
        return asdict(self)

    def allocate(self, sparsity: float) -> dict[str, float]:
        """A sparsity for each tensor, for `plan_weights(…, allocation=…)`: as high as they can be while all lose equally much.

        Each tensor's loss of accuracy is read between the scanned sparsities on straight lines, and taken never to fall as the
        sparsity grows. The one loss that all tensors are granted is the one at which they come to `sparsity` together; where
        a whole range of sparsities costs the same, all go the same share of their way.

        Args:
            sparsity: of all scanned tensors together, in [0, 1), at most the highest that was scanned.

        Returns:
            For each name a sparsity; of all weights together exactly round(sparsity · n) go.

        Raises:
            RequestError: the sparsity is out of range.
        """
        check(
            "sparsity", sparsity, f"in [0, {self.sparsities[-1]}], as far as was scanned", 0 <= sparsity <= self.sparsities[-1]
        )
        due = sparsity * sum(self.sizes.values())
        low, high = dict.fromkeys(self.sizes, 0.0), self._reached(0.0)
        if self._count(high) < due:
            low, high = self._bracket(due)
        between, whole = self._count(high) - self._count(low), due - self._count(low)
        share = whole / between if between else 0.0
        counts = {name: n * (low[name] + share * (high[name] - low[name])) for name, n in self.sizes.items()}
        return {name: count / self.sizes[name] for name, count in _round_together(counts, round(due)).items()}

    def _bracket(self, due: float) -> tuple[dict[str, float], dict[str, float]]:
        """The sparsities at two losses next to each other, which come to less than `due`, and to as much or more."""
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self._count(self._reached(middle)) < due else (low, middle)
        return self._reached(low), self._reached(high)

    def _count(self, sparsities: Mapping[str, float]) -> float:
        return sum(self.sizes[name] * sparsity for name, sparsity in sparsities.items())

    def _reached(self, loss: float) -> dict[str, float]:
        """The highest sparsity of each tensor that costs no more than `loss`."""
        return {name: self._highest(accuracies, loss) for name, accuracies in self.accuracies.items()}

    def _highest(self, accuracies: Sequence[float], loss: float) -> float:
        losses = accumulate((self.accuracy - accuracy for accuracy in accuracies), max, initial=0.0)
        for (left, before), (right, after) in pairwise(zip((0.0, *self.sparsities), losses, strict=True)):
            if after > loss:
                return left + (right - left) * (loss - before) / (after - before)
        return self.sparsities[-1]


def scan_sensitivity(
    model: nn.Module,
    judge: Judge,
    *,
    sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    criterion: Criterion = "magnitude",
    granularity: str = "element",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    data: Iterable[Batch] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Sensitivity:
    """Measures the accuracy with one tensor pruned at a time, without tuning (Han et al., NIPS 2015, figure 6).

    It takes one evaluation for each tensor and sparsity, and one more; the criterion is computed once.

    Args:
        model: any module; it is not changed.
        judge: batches of (inputs, targets), or a function from a network to its accuracy; not on the test data.
        sparsities: to try, increasing, each in (0, 1).
        criterion: as in `plan_weights`.
        granularity: as in `plan_weights`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        data: batches of (inputs, targets) for the criteria that need them.
        loss: (outputs, targets) -> scalar, for the criteria that need one.
        seed: for what is drawn at random, in [0, 2**32).

    Returns:
        The accuracies; `allocate` turns them into sparsities.

    Raises:
        RequestError: the sparsities do not increase within (0, 1), or as `plan_weights` says.
        DataError: there are no data to judge by, or as `plan_weights` says.

    Example:
        >>> net, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(9, 4), torch.zeros(9).long())
        >>> scan = scan_sensitivity(net, [batch], sparsities=(0.5, 0.75))
        >>> list(scan.accuracies), len(scan.accuracies["0.weight"])
        (['0.weight', '2.weight'], 2)
        >>> sum(scan.sizes[name] * sparsity for name, sparsity in scan.allocate(0.5).items())
        24.0
    """
    holds = len(sparsities) > 0 and all(low < high < 1 for low, high in pairwise((0.0, *sparsities)))
    check("sparsities", sparsities, "increasing numbers in (0, 1), at least one", holds)
    weights = select_weights(model, include=include, exclude=exclude)
    evidence = Evidence(model, data, loss, torch.Generator().manual_seed(seed))
    scores = score_weights(weights, evidence, criterion.scores() if isinstance(criterion, Trajectory) else criterion)
    masks = {
        name: [
            plan_weights(model, sparsity=s, criterion=scores, granularity=granularity, include=[name])[name] for s in sparsities
        ]
        for name in weights
    }
    twin = fold(model)
    accuracy = _judged(twin, judge)
    accuracies = {name: tuple(_accuracy_with(twin, judge, name, mask) for mask in own) for name, own in masks.items()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    return Sensitivity(accuracy, tuple(sparsities), accuracies, sizes)


def _accuracy_with(model: nn.Module, judge: Judge, name: str, mask: torch.Tensor) -> float:
    """The accuracy with one tensor masked; the tensor is put back afterwards."""
    tensor = tensor_called(model, name)
    whole = tensor.detach().clone()
    with torch.no_grad():
        tensor.masked_fill_(~mask, 0)
        try:
            return _judged(model, judge)
        finally:
            tensor.copy_(whole)


def _judged(model: nn.Module, judge: Judge) -> float:
    accuracy = judge(model) if callable(judge) else evaluate(model, judge)
    if not 0 <= accuracy <= 1:
        raise RequestError(f"what judges a network must return an accuracy in [0, 1], got {accuracy!r}")
    return accuracy


def _round_together(counts: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that add up to `total`: rounded down, and those with the largest remainders up; the earlier first."""
    whole = {name: int(count) for name, count in counts.items()}
    order = sorted(counts, key=lambda name: whole[name] - counts[name])
    for name in order[: total - sum(whole.values())]:
        whole[name] += 1
    return whole
