"""Numbers with the units a person reads: 1 KB is 1000 bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bytes_text", "count_text", "percent_text", "seconds_text"]

_BYTES = ("B", "KB", "MB", "GB", "TB")
_COUNTS = ("", "K", "M", "G", "T")
_SECONDS = ("s", "ms", "µs", "ns")


def bytes_text(size: int) -> str:
    """A size in bytes, rounded and exact.

    Args:
        size: in bytes, at least 0.

    Returns:
        "44.1 KB (44,103 B)", or only "812 B" below 1 KB.

    Example:
        >>> bytes_text(44_103), bytes_text(812)
        ('44.1 KB (44,103 B)', '812 B')
    """
    return f"{size:,} B" if size < 1000 else f"{_scaled(size, _BYTES)} ({size:,} B)"


def count_text(count: int) -> str:
    """A count of parameters or multiply-accumulates, rounded and exact.

    Args:
        count: at least 0.

    Returns:
        "40.8 M (40,813,184)", or only "812" below a thousand.

    Example:
        >>> count_text(40_813_184), count_text(812)
        ('40.8 M (40,813,184)', '812')
    """
    return f"{count:,}" if count < 1000 else f"{_scaled(count, _COUNTS)} ({count:,})"


def percent_text(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals, or a dash where it was not measured.

    Args:
        fraction: in [0, 1], or None.

    Returns:
        "99.12 %" or "–".

    Example:
        >>> percent_text(0.9912), percent_text(None)
        ('99.12 %', '–')
    """
    return "–" if fraction is None else f"{fraction * 100:.2f} %"


def seconds_text(seconds: float) -> str:
    """A time with three significant digits.

    Args:
        seconds: at least 0.

    Returns:
        "41.5 µs", "3.20 ms", "1.07 s".

    Example:
        >>> seconds_text(41.53e-6), seconds_text(0.0032), seconds_text(1.068)
        ('41.5 µs', '3.20 ms', '1.07 s')
    """
    if seconds == 0:
        return "0 s"
    rounded = [float(f"{seconds * 1000**step:.3g}") for step in range(len(_SECONDS))]
    step = next((step for step, scaled in enumerate(rounded) if scaled >= 1), len(_SECONDS) - 1)
    return f"{_three_digits(rounded[step])} {_SECONDS[step]}"


def _scaled(value: int, units: Sequence[str]) -> str:
    step, scaled = 0, float(f"{value:.3g}")  # rounded first: 999,950 is 1.00 M, not 1000 K
    while scaled >= 1000 and step < len(units) - 1:
        step, scaled = step + 1, scaled / 1000
    return f"{_three_digits(scaled)} {units[step]}"


def _three_digits(value: float) -> str:
    """A number of 0.1 or more, with three significant digits and no exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
