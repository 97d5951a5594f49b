"""Thresholds for a target: how sure an exit must be, so that the network costs, or knows, what is wanted on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from featherweight.dynamic.cost import Cost, Limit, mean_cost
from featherweight.dynamic.exits import ExitNetwork
from featherweight.errors import DataError, RequestError, check, look_up
from featherweight.training.loaders import Loader
from featherweight.training.mode import device_of, in_mode

__all__ = ["POLICIES", "Calibration", "Record", "calibrate", "equal", "geometric", "record_exits", "simulate"]

_STEPS = 400


@dataclass(frozen=True)
class Record:
    """What every exit says of every sample of some data.

    Attributes:
        confidences: (exits - 1, N), of each exit but the last.
        right: (exits, N), whether its answer is the target.
        costs: of a sample that leaves at each exit, asked at those before it; seconds are a sample's share of a batch's.
        straight: of one that is asked at none before, where that costs less.
    """

    confidences: torch.Tensor
    right: torch.Tensor
    costs: tuple[Cost, ...]
    straight: tuple[Cost, ...] = ()

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Of each exit, were all samples to leave there."""
        return tuple(self.right.double().mean(1).tolist())


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what comes of them on the data they were made for.

    Attributes:
        thresholds: one for each exit but the last.
        shares: of the samples that leave at each exit.
        accuracy: in [0, 1].
        cost: the mean of a sample's.
    """

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    accuracy: float
    cost: Cost


def record_exits(net: ExitNetwork, loader: Loader) -> Record:
    """Asks every exit about every sample, in eval mode.

    Args:
        net: with exits; not changed.
        loader: batches of (inputs, targets): validation data, not what the network learnt from, of which it is too sure.

    Returns:
        What they said.

    Raises:
        DataError: the loader is empty.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> chain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = add_exits(chain, torch.zeros(1, 4), at=["0"])
        >>> record_exits(net, [(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))]).confidences.shape
        torch.Size([1, 5])
    """
    device = device_of(net)
    confidences: list[torch.Tensor] = []
    right: list[torch.Tensor] = []
    with in_mode(net, training=False), torch.no_grad():
        for inputs, targets in loader:
            answers = list(net.step(inputs.to(device)))
            confidences.append(torch.stack([net.sure_of(k, answers[: k + 1]) for k in range(len(answers) - 1)]).cpu())
            right.append(torch.stack([answer.argmax(1).cpu() == targets.cpu() for answer in answers]))
    if not right:
        raise DataError("a loader must hold at least one batch, got none")
    batch = 1 if net.timing is None else net.timing.batch
    costs, straight = (
        tuple(_of_sample(cost(choice), batch) for choice in net.choices()) for cost in (net.cost_of_leaving, net.cost)
    )
    return Record(torch.cat(confidences, 1), torch.cat(right, 1), costs, straight)


def _of_sample(cost: Cost, batch: int) -> Cost:
    return cost if cost.seconds is None else replace(cost, seconds=cost.seconds / batch)


def simulate(record: Record, thresholds: tuple[float, ...]) -> Calibration:
    """What comes of thresholds, from what the exits said.

    Args:
        record: of some data.
        thresholds: one for each exit but the last.

    Returns:
        Shares, accuracy and mean cost on these data.

    Example:
        >>> right = torch.tensor([[True, False], [True, True]])
        >>> record = Record(torch.tensor([[0.9, 0.4]]), right, (Cost(10), Cost(30)))
        >>> simulate(record, (0.5,))
        Calibration(thresholds=(0.5,), shares=(0.5, 0.5), accuracy=1.0, cost=Cost(macs=20.0, seconds=None))
    """
    limits = torch.tensor(thresholds, dtype=record.confidences.dtype)[:, None]
    leaves = torch.cat([record.confidences >= limits, torch.ones_like(record.right[:1])])
    exits = leaves.int().argmax(0)  # the first that is true
    shares = torch.bincount(exits, minlength=len(record.costs)).double() / exits.numel()
    accuracy = record.right.gather(0, exits[None]).double().mean().item()
    mean = mean_cost(thresholds, shares.tolist(), record.costs, record.straight)
    return Calibration(thresholds, tuple(shares.tolist()), accuracy, mean)


def equal(record: Record) -> Iterator[tuple[float, ...]]:
    """The same threshold at all exits, from one that all samples reach to one that none does.

    Args:
        record: of validation data.

    Yields:
        Thresholds, rising: the quantiles of all confidences.

    Example:
        >>> record = Record(torch.tensor([[0.2, 0.8]]), torch.ones(2, 2, dtype=torch.bool), (Cost(1), Cost(2)))
        >>> thresholds = list(equal(record))
        >>> thresholds[0], thresholds[-1]
        ((0.0,), (inf,))
    """
    ordered = record.confidences.flatten().sort().values.unique()
    chosen = ordered[torch.linspace(0, len(ordered) - 1, min(len(ordered), _STEPS)).round().long()]
    for threshold in (0.0, *chosen.tolist(), math.inf):
        yield (threshold,) * len(record.confidences)


def geometric(record: Record) -> Iterator[tuple[float, ...]]:
    """So that shares of r⁰ : r¹ : r² : … of the samples leave at the exits: budgeted batch classification (Huang et al. 2018).

    They let a sample that reaches an exit leave it with the same probability 1 - r at each, but the last, and sets
    the thresholds so that so many validation samples do. Here r also exceeds 1, for budgets that most samples may use up.

    Args:
        record: of validation data.

    Yields:
        Thresholds, for rising r.

    Example:
        >>> record = Record(torch.tensor([[0.2, 0.8]]), torch.ones(2, 2, dtype=torch.bool), (Cost(1), Cost(2)))
        >>> max(geometric(record)), min(geometric(record))
        ((inf,), (0.20000000298023224,))
    """
    exits, samples = record.right.shape
    for step in range(_STEPS + 1):
        ratio = math.tan(step / _STEPS * math.pi / 2) if step < _STEPS else math.inf
        weights = [0.0] * (exits - 1) + [1.0] if ratio > 1e6 else [ratio**k for k in range(exits)]
        yield _thresholds_for(record.confidences, [round(samples * weight / sum(weights)) for weight in weights[:-1]])


def _thresholds_for(confidences: torch.Tensor, counts: list[int]) -> tuple[float, ...]:
    """Thresholds by which so many samples leave at each exit, of those that are left; more where several are equally sure."""
    left = torch.ones(confidences.shape[1], dtype=torch.bool)
    thresholds = []
    for sure, count in zip(confidences, counts, strict=True):
        own = sure[left].sort(descending=True).values
        count = min(count, len(own))
        thresholds.append(own[count - 1].item() if count else math.inf)
        left &= sure < thresholds[-1]
    return tuple(thresholds)


POLICIES: Mapping[str, Callable[[Record], Iterator[tuple[float, ...]]]] = {"equal": equal, "geometric": geometric}
"""Families of thresholds by name."""


def calibrate(
    record: Record, *, limit: Limit | None = None, accuracy: float | None = None, policy: str = "equal"
) -> Calibration:
    """The thresholds of a family that meet a target on validation data.

    Args:
        record: what `record_exits` gave.
        limit: the most that a sample may cost on average, of MACs or seconds; found are the thresholds of best accuracy.
        accuracy: the least there must be, in [0, 1]; found are the thresholds of least cost: in seconds, if they were measured,
            else in MACs. One of the two is given.
        policy: a name in `POLICIES`.

    Returns:
        The thresholds, with what comes of them on these data; set `net.thresholds` to them.

    Raises:
        RequestError: no or two targets are given, none of the thresholds meets it, or seconds were not measured.

    Example:
        >>> right = torch.tensor([[True, False], [True, True]])
        >>> record = Record(torch.tensor([[0.9, 0.4]]), right, (Cost(10), Cost(30)))
        >>> calibrate(record, accuracy=1.0).cost.macs, calibrate(record, limit=Limit(macs=15)).accuracy
        (20.0, 0.5)
    """
    family = look_up(POLICIES, policy, "policy")
    if (limit is None) == (accuracy is None):
        raise RequestError("thresholds are for one target: pass a limit or an accuracy, not both")
    found = [simulate(record, thresholds) for thresholds in dict.fromkeys(family(record))]
    if limit is not None:
        fitting = [one for one in found if limit.allows(one.cost)]
        if not fitting:
            least = min(found, key=lambda one: one.cost.spent)
            raise RequestError(f"no thresholds keep {limit}; the least is {least.cost}: allow more")
        return max(fitting, key=lambda one: (one.accuracy, -one.cost.spent))
    check("accuracy", accuracy, "in [0, 1]", 0 <= (accuracy or 0.0) <= 1)
    right = [one for one in found if one.accuracy >= (accuracy or 0.0)]
    if not right:
        best = max(one.accuracy for one in found)
        raise RequestError(f"no thresholds reach an accuracy of {accuracy}; the best is {best:.4f}: ask for less")
    return min(right, key=lambda one: (one.cost.spent, -one.accuracy))
