"""What a choice of a dynamic network costs, and which choice keeps a limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from featherweight.errors import RequestError, check

__all__ = ["Cost", "Limit", "choose_within"]

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
