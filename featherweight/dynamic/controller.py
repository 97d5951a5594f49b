"""Following a budget that changes: which choice of a dynamic network to run next."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.errors import check

__all__ = ["Controller", "Dynamic", "Situation", "limit_at"]

_Choice = TypeVar("_Choice", bound=Hashable)


class Dynamic(Protocol[_Choice]):
    """What a controller steers: anything that has choices, and says what they cost."""

    def choices(self) -> tuple[_Choice, ...]:
        """The ways to answer, from the lightest to the full one."""

    def cost(self, choice: _Choice, /) -> Cost:
        """What a choice costs."""


@dataclass(frozen=True)
class Situation(Generic[_Choice]):
    """What a controller knows after a step: the whole of its state.

    Attributes:
        choice: what to run now.
        slowness: how many times longer an answer takes than the table says, as measured lately.
        waited: for how many steps in a row a heavier choice would have kept the limit.
    """

    choice: _Choice
    slowness: float = 1.0
    waited: int = 0


@dataclass(frozen=True)
class Controller(Generic[_Choice]):
    """Follows a changing limit with hysteresis: down at once, up when there has been room for a while.

    A function of its inputs and its state, without a clock: `follow(situation, limit, seconds)` gives the next situation. It
    goes to a lighter choice as soon as the present one breaks the limit, before it runs; and to a heavier one only after that
    would have kept the limit, with room to spare, for some steps in a row. Measured times correct the table: what else the
    machine does makes every choice slower by a factor, a moving average of what was measured, so that a rise of load costs a
    few missed deadlines, and a single outlier little.

    Args:
        costs: of each choice, from the lightest to the full one, at least one; `Controller.of` takes them from a network.
        room: the share of the limit that must stay free to go up, in [0, 1).
        patience: for how many steps in a row there must be room, at least 1.
        memory: the weight of the past in the slowness, in [0, 1); 0 believes the last measurement alone.

    Raises:
        RequestError: a setting is out of range, or there is no choice.

    Example:
        >>> controller = Controller({"half": Cost(10, 1e-3), "full": Cost(20, 2e-3)}, patience=2)
        >>> situation, ran = controller.start(Limit(seconds=5e-3)), []
        >>> for limit in (5e-3, 1.5e-3, 5e-3, 5e-3, 5e-3):
        ...     situation = controller.follow(situation, Limit(seconds=limit))
        ...     ran.append(situation.choice)
        >>> ran
        ['full', 'half', 'half', 'full', 'full']
    """

    costs: Mapping[_Choice, Cost]
    room: float = 0.1
    patience: int = 5
    memory: float = 0.8

    def __post_init__(self) -> None:
        check("costs", self.costs, "those of at least one choice", len(self.costs) > 0)
        check("room", self.room, "in [0, 1)", 0 <= self.room < 1)
        check("patience", self.patience, "a whole number >= 1", isinstance(self.patience, int) and self.patience >= 1)
        check("memory", self.memory, "in [0, 1)", 0 <= self.memory < 1)

    @staticmethod
    def of(network: Dynamic[_Choice]) -> Controller[_Choice]:
        """A controller of a network's choices, as they cost now, with the default settings."""
        return Controller({choice: network.cost(choice) for choice in network.choices()})

    def start(self, limit: Limit) -> Situation[_Choice]:
        """The situation before anything has run: the heaviest choice that keeps the limit."""
        return Situation(choose_within(self.costs, limit))

    def follow(self, situation: Situation[_Choice], limit: Limit, seconds: float | None = None) -> Situation[_Choice]:
        """The situation after a step.

        Args:
            situation: the one before.
            limit: what the next answer may cost.
            seconds: how long the last answer took, if it was measured, above 0.

        Returns:
            The next situation; its choice is the cheapest where none keeps the limit.
        """
        slowness = self._slowness(situation, seconds)
        costs = {choice: _slowed(cost, slowness) for choice, cost in self.costs.items()}
        order = list(costs)
        now, most = order.index(situation.choice), order.index(choose_within(costs, limit))
        if most <= now:
            return Situation(order[most], slowness)
        roomy = Limit(limit.macs * (1 - self.room), limit.seconds * (1 - self.room))
        most = max((i for i in range(now + 1, most + 1) if roomy.allows(costs[order[i]])), default=now)
        if most == now:
            return Situation(order[now], slowness)
        if situation.waited + 1 >= self.patience:
            return Situation(order[most], slowness)
        return replace(situation, slowness=slowness, waited=situation.waited + 1)

    def _slowness(self, situation: Situation[_Choice], seconds: float | None) -> float:
        if seconds is None:
            return situation.slowness
        check("seconds", seconds, "above 0 and finite", 0 < seconds < math.inf)
        expected = self.costs[situation.choice].seconds
        if expected is None:
            return situation.slowness
        return self.memory * situation.slowness + (1 - self.memory) * seconds / expected


def limit_at(costs: Mapping[_Choice, Cost], level: float) -> Limit:
    """The limit in MACs that a level of supply allows: the lightest choice's at 0, the full one's at 1, between them in line.

    For what is no limit by itself, such as a battery's charge.

    Args:
        costs: of each choice, from the lightest to the full one.
        level: in [0, 1].

    Returns:
        The limit.

    Raises:
        RequestError: the level is out of range.

    Example:
        >>> limit_at({"half": Cost(10), "full": Cost(20)}, level=0.5).macs
        15.0
    """
    check("level", level, "in [0, 1]", 0 <= level <= 1)
    macs = [cost.macs for cost in costs.values()]
    return Limit(macs=macs[0] + level * (macs[-1] - macs[0]))


def _slowed(cost: Cost, slowness: float) -> Cost:
    return cost if cost.seconds is None else replace(cost, seconds=cost.seconds * slowness)
