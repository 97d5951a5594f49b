"""How a sparsity grows, over the steps of a training or from round to round. To add one, write a function and a row."""

from __future__ import annotations

from collections.abc import Callable

from featherweight.errors import check, look_up

__all__ = ["SCHEDULES", "Schedule", "grow_cubically", "grow_exponentially", "grow_linearly", "grow_once", "sparsities"]

Schedule = Callable[[float, float, float], float]
"""(start, end, done) -> the sparsity when a fraction `done` of the pruning phase, in [0, 1], is over."""


def grow_cubically(start: float, end: float, done: float) -> float:
    """end + (start - end) · (1 - done)³: fast at first, while there is much to remove (Zhu and Gupta 2017, eq. 1).

    Args:
        start: sparsity at the beginning, in [0, 1).
        end: sparsity at the end, in [start, 1).
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The sparsity.

    Example:
        >>> [grow_cubically(0.0, 0.8, done) for done in (0.0, 0.5, 1.0)]
        [0.0, 0.7000000000000001, 0.8]
    """
    return float(end + (start - end) * (1 - done) ** 3)


def grow_linearly(start: float, end: float, done: float) -> float:
    """end + (start - end) · (1 - done): the same amount at every step.

    Args:
        start: sparsity at the beginning, in [0, 1).
        end: sparsity at the end, in [start, 1).
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The sparsity.

    Example:
        >>> grow_linearly(0.25, 0.75, 0.5)
        0.5
    """
    return end + (start - end) * (1 - done)


def grow_exponentially(start: float, end: float, done: float) -> float:
    """1 - (1 - start)^(1 - done) · (1 - end)^done: every step removes the same share of what is left.

    The iterative pruning of lottery tickets (Frankle and Carbin, ICLR 2019), whose rounds remove 20 % of the remaining weights.

    Args:
        start: sparsity at the beginning, in [0, 1).
        end: sparsity at the end, in [start, 1).
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The sparsity.

    Example:
        >>> [round(grow_exponentially(0.0, 0.75, done), 6) for done in (0.0, 0.5, 1.0)]
        [0.0, 0.5, 0.75]
    """
    ratio = (1 - start) / (1 - end)
    return float(end + (1 - end) * (1 - ratio ** (1 - done)))  # so written, it ends at `end` to the last bit


def grow_once(start: float, end: float, done: float) -> float:
    """The end at once, and then only tuning.

    Args:
        start: not used.
        end: sparsity at the end, in [0, 1).
        done: not used.

    Returns:
        `end`.

    Example:
        >>> grow_once(0.0, 0.5, 0.0)
        0.5
    """
    return end


SCHEDULES: dict[str, Schedule] = {
    "cubic": grow_cubically,
    "exponential": grow_exponentially,
    "linear": grow_linearly,
    "once": grow_once,
}


def sparsities(start: float, end: float, rounds: int, schedule: str = "exponential") -> list[float]:
    """The sparsity after each round of "remove a little, recover, repeat".

    Args:
        start: sparsity before the first round, in [0, 1).
        end: sparsity after the last round, in [start, 1).
        rounds: how many, at least 1.
        schedule: a name in `SCHEDULES`.

    Returns:
        One sparsity for each round; the last is `end`.

    Raises:
        RequestError: an unknown name, or a number out of range.

    Example:
        >>> [round(s, 3) for s in sparsities(0.0, 0.488, 3)]  # each round removes a fifth of what is left
        [0.2, 0.36, 0.488]
    """
    check("start and end", (start, end), "sparsities with 0 <= start <= end < 1", 0 <= start <= end < 1)
    check("rounds", rounds, "a whole number >= 1", isinstance(rounds, int) and rounds >= 1)
    grow = look_up(SCHEDULES, schedule, "schedule")
    return [grow(start, end, done / rounds) for done in range(1, rounds + 1)]
