"""Histograms of values that stream by, of which neither the number nor the range is known beforehand."""

from __future__ import annotations

import math

import torch

from featherweight.errors import RequestError

__all__ = ["BINS", "Histogram"]

BINS = 8192
"""Bins of a histogram, half of them for values below zero."""


class Histogram:
    """Counts of values in bins of equal width around zero; grows as values come.

    The width is a power of two and doubles, neighbours merged, when a value does not fit: every bin of a finer histogram lies
    within one of a coarser, so that the order of values, and how they are spread over histograms, does not change the result.
    Zeros are counted apart: they are on every grid. Least and greatest value are exact.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(torch.tensor([0.0, 1.0, -3.0]))
        >>> histogram.add(torch.tensor([100.0]))
        >>> histogram.least, histogram.greatest, histogram.total
        (-3.0, 100.0, 4)
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._exponent: int | None = None  # of the bins' width, once there is a value besides zero
        self.zeros = 0
        self.least, self.greatest = math.inf, -math.inf

    @property
    def total(self) -> int:
        """How many values were added."""
        return self.zeros + int(self._counts.sum())

    def add(self, values: torch.Tensor) -> None:
        """Counts more values.

        Args:
            values: finite numbers, of any shape and device.

        Raises:
            RequestError: some are NaN or infinite; then nothing is counted.
        """
        if not values.numel():
            return
        values = values.detach().flatten()
        values = values if values.dtype is torch.float64 else values.float()
        least, greatest = (float(bound) for bound in values.aminmax())
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise RequestError("values to be counted must be finite, got NaN or infinity")
        self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
        nonzero = values[values != 0]
        self.zeros += len(values) - len(nonzero)
        if not len(nonzero):
            return
        self._widen(_exponent_for(max(-least, greatest)))
        index = (nonzero * 2.0 ** -self._exponent_now()).floor_().long() + BINS // 2
        self._counts += torch.bincount(index.clamp_(0, BINS - 1), minlength=BINS).cpu()

    def merge(self, other: Histogram) -> None:
        """Adds all that another histogram counted, which is not changed."""
        self.zeros += other.zeros
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        if other._exponent is not None:
            self._widen(other._exponent)
            self._counts += _coarsened(other._counts, self._exponent_now() - other._exponent)

    def points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The values as few points: the middles of occupied bins, and zero; the outermost two are the exact extremes.

        Returns:
            Values, float64, increasing, and how many each stands for, float64: both (1, points).

        Raises:
            RequestError: nothing was counted.
        """
        if not self.total:
            raise RequestError("a histogram must have values, got none; calibrate on at least one sample")
        occupied = self._counts.nonzero().flatten()
        middles = (occupied - BINS // 2 + 0.5).double() * (2.0 ** self._exponent_now() if len(occupied) else 1.0)
        values, counts = middles, self._counts[occupied].double()
        if self.zeros:
            values = torch.cat([values, values.new_zeros(1)])
            counts = torch.cat([counts, counts.new_tensor([self.zeros])])
            order = values.argsort()
            values, counts = values[order], counts[order]
        values[0], values[-1] = self.least, self.greatest
        return values[None], counts[None]

    def _exponent_now(self) -> int:
        return self._exponent if self._exponent is not None else _exponent_for(0.0)

    def _widen(self, exponent: int) -> None:
        """Makes the bins at least 2^exponent wide."""
        if self._exponent is None:
            self._exponent = exponent
        elif exponent > self._exponent:
            self._counts = _coarsened(self._counts, exponent - self._exponent)
            self._exponent = exponent


def _exponent_for(magnitude: float) -> int:
    """The least e for which a value of this magnitude fits into the bins of width 2^e; not so small that 2^-e overflows."""
    return max(math.frexp(magnitude)[1], -100) - int(math.log2(BINS // 2))


def _coarsened(counts: torch.Tensor, doublings: int) -> torch.Tensor:
    """The counts for bins of 2^doublings times the width."""
    merged = torch.zeros_like(counts)
    index = torch.arange(BINS) - BINS // 2
    doublings = min(doublings, 62)
    return merged.index_add_(0, torch.bitwise_right_shift(index, doublings) + BINS // 2, counts)
