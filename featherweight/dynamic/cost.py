"""What a choice of a dynamic network costs, and which choice keeps a limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featherweight.errors import RequestError, check

__all__ = ["Cost", "Limit", "choose_within", "mean_cost"]

_log = logging.getLogger(__name__)

_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class Cost:
    """What it costs to answer by one choice.

    Attributes:
        macs: multiply-accumulates of one sample.
        seconds: the median time of a batch, of the size that was timed, on the device it was timed on; None if it was not.
    """

    macs: float
    seconds: float | None = None

    @property
    def spent(self) -> float:
        """What costs are compared by: the seconds if they were measured, else the MACs."""
        return self.macs if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Limit:
    """The most that an answer may cost.

    Args:
        macs: multiply-accumulates of one sample, above 0.
        seconds: time of a batch, above 0.

    Raises:
        RequestError: a limit is not above 0.

    Example:
        >>> Limit(macs=1e6).allows(Cost(macs=2e6)), Limit(seconds=2e-3).allows(Cost(macs=2e6, seconds=1e-3))
        (False, True)
    """

    macs: float = math.inf
    seconds: float = math.inf

    def __post_init__(self) -> None:
        check("macs of a limit", self.macs, "above 0", self.macs > 0)
        check("seconds of a limit", self.seconds, "above 0", self.seconds > 0)

    def allows(self, cost: Cost) -> bool:
        """Whether a cost keeps the limit; RequestError where the limit is in seconds, and they were not measured."""
        if self.seconds == math.inf:
            return cost.macs <= self.macs
        if cost.seconds is None:
            raise RequestError("a limit in seconds needs a network whose choices were timed on this device: time it first")
        return cost.macs <= self.macs and cost.seconds <= self.seconds


def choose_within(costs: Mapping[_Choice, Cost], limit: Limit, *, strict: bool = False) -> _Choice:
    """The last choice that keeps a limit.

    Args:
        costs: of each choice, from the lightest to the full one; at least one.
        limit: the most it may cost.
        strict: whether it is an error if none keeps it. Otherwise it is the first, and the log says so.

    Returns:
        The choice.

    Raises:
        RequestError: none keeps the limit and `strict` is set, or the limit is in seconds and they were not measured.

    Example:
        >>> choose_within({"half": Cost(10), "full": Cost(20)}, Limit(macs=15))
        'half'
    """
    fitting = [choice for choice, cost in costs.items() if limit.allows(cost)]
    if fitting:
        return fitting[-1]
    cheapest, cost = next(iter(costs.items()))
    message = f"no choice keeps {limit}; the cheapest, {cheapest!r}, costs {cost}"
    if strict:
        raise RequestError(f"{message}: allow more, or leave out strict to take it all the same")
    _log.warning("%s, and is taken", message)
    return cheapest


def mean_cost(
    thresholds: Sequence[float], shares: Sequence[float], asked: Sequence[Cost], straight: Sequence[Cost] = ()
) -> Cost:
    """What a sample costs on average that leaves at one of several exits.

    Args:
        thresholds: of each exit but the last; at one that is infinite no sample is asked.
        shares: of the samples that leave at each exit.
        asked: what it costs to leave at each, asked at those before it.
        straight: what it costs asked at none before it; the same, if not given.

    Returns:
        The mean; where some exits are asked and others not it is a little more than the true one.

    Example:
        >>> costs = [Cost(10), Cost(30)]
        >>> mean_cost([0.5], [0.25, 0.75], costs).macs, mean_cost([math.inf], [0, 1], costs, [Cost(10), Cost(25)]).macs
        (25.0, 25)
    """
    none_before = [all(threshold == math.inf for threshold in thresholds[:exit]) for exit in range(len(shares))]
    costs = [straight[k] if none_before[k] and straight else asked[k] for k in range(len(shares))]
    macs = sum(share * cost.macs for share, cost in zip(shares, costs, strict=True))
    seconds = [share * cost.seconds for share, cost in zip(shares, costs, strict=True) if cost.seconds is not None]
    return Cost(macs, sum(seconds) if len(seconds) == len(costs) else None)
