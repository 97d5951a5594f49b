"""Numbers over seeds, and tables of them in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from featherweight.experiments.experiment import Outcome

__all__ = ["deviation", "markdown_table", "mean", "select", "spread"]


def select(outcomes: Sequence[Outcome], **settings: object) -> list[Outcome]:
    """The outcomes whose cells have these settings: all seeds of one setting.

    Example:
        >>> outcomes = [Outcome({"rate": 1, "seed": seed}, {}, 0.0) for seed in (0, 1)]
        >>> len(select(outcomes, rate=1)), len(select(outcomes, rate=1, seed=1)), len(select(outcomes, rate=2))
        (2, 1, 0)
    """
    return [outcome for outcome in outcomes if all(outcome.cell.get(key) == value for key, value in settings.items())]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean.

    Example:
        >>> mean([1.0, 2.0])
        1.5
    """
    return statistics.fmean(values)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1); 0 of a single value.

    Example:
        >>> deviation([1.0, 3.0]) == 2**0.5, deviation([1.0])
        (True, 0.0)
    """
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Mean ± standard deviation; of a single value that value.

    Example:
        >>> spread([1.0, 3.0]), spread([1.0], digits=1)
        ('2.00 ± 1.41', '1.0')
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {deviation(values):.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right.

    Example:
        >>> print(markdown_table(["net", "accuracy"], [["a", "0.9"]]))
        | net | accuracy |
        | :-- | --: |
        | a | 0.9 |
    """
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
