"""How a sparsity grows while the network trains. To add a schedule, write a function and a row."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SCHEDULES", "Schedule", "grow_cubically", "grow_linearly", "grow_once"]

Schedule = Callable[[float], float]


def grow_cubically(done: float) -> float:
    """1 - (1 - t)³: fast at first, while there is much to remove (Zhu and Gupta 2017, eq. 1).

    Args:
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The share of the final sparsity's growth reached, in [0, 1].

    Example:
        >>> grow_cubically(0.0), grow_cubically(0.5), grow_cubically(1.0)
        (0.0, 0.875, 1.0)
    """
    return float(1 - (1 - done) ** 3)


def grow_linearly(done: float) -> float:
    """t: the same amount at every step.

    Args:
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The share of the final sparsity's growth reached, in [0, 1].

    Example:
        >>> grow_linearly(0.25)
        0.25
    """
    return done


def grow_once(done: float) -> float:
    """1: everything at the first step, then only tuning.

    Args:
        done: how far the pruning phase has come, in [0, 1].

    Returns:
        The share of the final sparsity's growth reached, always 1.

    Example:
        >>> grow_once(0.0)
        1.0
    """
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cubic": grow_cubically, "linear": grow_linearly, "once": grow_once}
