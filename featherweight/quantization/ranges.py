"""Ranges: which interval of values a grid of few levels should cover, for weights and for activations alike.

A range function looks at points: rows of values, each with how many it stands for. The rows of a weight are its channels, and
each value counts once; an activation's one row are the bins of its `Histogram` (`points()`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from featherweight.errors import check
from featherweight.quantization.grid import MOST

__all__ = ["RANGES", "RangeFunction", "Scheme", "entropy", "minmax", "mse", "percentile"]


@dataclass(frozen=True)
class Scheme:
    """Which integers a grid has.

    Args:
        bits: in [2, 16]; there are 2^bits integers.
        symmetric: from -2^(bits-1) to 2^(bits-1) - 1 (16 bits leave out -2¹⁵), whatever the values; otherwise shifted so that
            they cover the values' range ("affine"), zero always among them.

    Raises:
        RequestError: bits out of range.
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        check("bits", self.bits, "an integer in [2, 16]", isinstance(self.bits, int) and 2 <= self.bits <= 16)

    def grid(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The finest grid that covers ranges.

        Args:
            low: where each range begins, at most 0; any shape.
            high: where it ends, at least 0; the same shape.

        Returns:
            Steps, least integers and greatest integers (int32), all of that shape. An empty range has step 1.

        Example:
            >>> Scheme(8, symmetric=False).grid(torch.tensor(-0.5), torch.tensor(2.05))
            (tensor(0.0100), tensor(-50, dtype=torch.int32), tensor(205, dtype=torch.int32))
        """
        if self.symmetric:
            least, greatest = max(-(2 ** (self.bits - 1)), -MOST), 2 ** (self.bits - 1) - 1
            step = torch.maximum(low / least, high / greatest)
            step = torch.where(step > 0, step, 1.0)
            return step, torch.full_like(step, least, dtype=torch.int32), torch.full_like(step, greatest, dtype=torch.int32)
        levels = 2**self.bits - 1
        step = torch.maximum((high - low) / levels, torch.maximum(-low, high) / MOST)
        step = torch.where(step > 0, step, 1.0)
        bottom = torch.round(low / step).clamp(-min(levels, MOST), 0).to(torch.int32)
        return step, bottom, (bottom + levels).clamp(max=MOST)


RangeFunction = Callable[[torch.Tensor, "torch.Tensor | None", Scheme], tuple[torch.Tensor, torch.Tensor]]
"""(values (rows, points), counts (rows, points) or None for one each, scheme) → low (rows,) and high (rows,), zero between."""


def minmax(values: torch.Tensor, counts: torch.Tensor | None, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """From the least to the greatest value: nothing is clipped.

    Args:
        values: (rows, points).
        counts: how many each stands for, (rows, points), above 0; None is one each.
        scheme: not used.

    Returns:
        Where each row's range begins and ends: (rows,) and (rows,).

    Example:
        >>> minmax(torch.tensor([[1.0, 3.0], [-1.0, 0.5]]), None, Scheme(8))
        (tensor([ 0., -1.]), tensor([3.0000, 0.5000]))
    """
    return values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)


def percentile(
    values: torch.Tensor, counts: torch.Tensor | None, scheme: Scheme, *, share: float = 1e-4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips a share of the values at either end (McKinstry et al. 2018).

    Args:
        values: (rows, points).
        counts: how many each stands for, (rows, points); None is one each.
        scheme: not used.
        share: of the values, at most so many are clipped at each end, in [0, 0.5).

    Returns:
        Where each row's range begins and ends: (rows,) and (rows,).

    Raises:
        RequestError: `share` out of range.

    Example:
        >>> values = torch.arange(100.0)[None]
        >>> percentile(values, None, Scheme(8), share=0.1)[1].item()
        89.0
    """
    check("share", share, "in [0, 0.5)", 0 <= share < 0.5)
    ordered, order = values.sort(1)
    below = torch.arange(values.shape[1], device=values.device).expand_as(values).double()
    through = below + 1
    if counts is not None:
        through = counts.gather(1, order).cumsum(1)
        below = through - counts.gather(1, order)
    clipped = share * through[:, -1:]
    low = ordered.gather(1, (through <= clipped).sum(1, keepdim=True))[:, 0]
    high = ordered.gather(1, (through[:, -1:] - below > clipped).sum(1, keepdim=True) - 1)[:, 0]
    return low.clamp(max=0), high.clamp(min=0)


def mse(values: torch.Tensor, counts: torch.Tensor | None, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """The range whose grid has the least squared error (Sung, Shin and Hwang 2015), by search.

    Clipping few large values makes the steps finer for all others. The search is over shares of the whole range, first coarse,
    then fine around the best; an affine scheme's ends are searched one after the other, the upper first.

    Args:
        values: (rows, points).
        counts: how many each stands for, (rows, points); None is one each.
        scheme: of the grid.

    Returns:
        Where each row's range begins and ends: (rows,) and (rows,).

    Example:
        >>> values = torch.cat([torch.linspace(-1, 1, 99), torch.tensor([3.0])])[None]
        >>> bool(1 < mse(values, None, Scheme(4))[1] < 3)
        True
    """

    def loss(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        step, least, greatest = (each[:, None] for each in scheme.grid(low, high))
        errors = (torch.round(values / step).clamp_(least, greatest).mul_(step) - values).square_()
        return (errors if counts is None else errors * counts).sum(1)

    low, high = minmax(values, counts, scheme)
    if scheme.symmetric:
        share = _best_share(lambda share: loss(low * share, high * share), low)
        return low * share, high * share
    high = high * _best_share(lambda share: loss(low, high * share), low)
    return low * _best_share(lambda share: loss(low * share, high), low), high


def entropy(values: torch.Tensor, counts: torch.Tensor | None, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that loses least information: the least KL divergence of the quantized from the clipped distribution.

    Migacz (GPU Technology Conference 2017): the reference has what is clipped in its outermost bins, the quantized distribution
    spreads what lies within the range evenly over the occupied bins of each level. We leave out zeros, which every grid has,
    and search over shares of the whole range, both ends alike: what it says of one end alone is fickle. Plain values are first
    counted in 2048 bins a row; it is meant for activations, where there are many.

    Args:
        values: (rows, points).
        counts: how many each stands for, (rows, points); None is one each.
        scheme: of the grid.

    Returns:
        Where each row's range begins and ends: (rows,) and (rows,).

    Example:
        >>> values = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([50.0])])[None]
        >>> bool(entropy(values, None, Scheme(4))[1] < 25)
        True
    """
    points, masses = _binned(values) if counts is None else (values, counts)
    masses = masses.double() * (points != 0)
    masses = masses / masses.sum(1, keepdim=True).clamp(min=1e-300)

    def loss(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        step, least, greatest = (each[:, None] for each in scheme.grid(low, high))
        levels = torch.round(points / step)
        inside = (levels >= least) & (levels <= greatest)
        slot = (levels.clamp(least, greatest) - least).long()
        blank = masses.new_zeros(len(masses), 2**scheme.bits)
        within = blank.scatter_add(1, slot, masses * inside)
        occupied = blank.scatter_add(1, slot, ((masses > 0) & inside).double())
        quantized = (within / occupied.clamp(min=1)).gather(1, slot)
        # What is clipped is added to the last level, evenly over its occupied bins.
        clipped = (blank.scatter_add(1, slot, masses * ~inside) / occupied.clamp(min=1)).gather(1, slot)
        reference = (masses + clipped) * inside
        quantized = quantized / within.sum(1, keepdim=True).clamp(min=1e-300)
        terms = reference * (reference / quantized.clamp(min=1e-300)).log()
        lost = reference.sum(1) < 1 - 1e-9  # something is clipped to a level that holds nothing within the range
        return torch.where(reference > 0, terms, 0).sum(1).masked_fill(lost & (masses.sum(1) > 0), torch.inf)

    low, high = minmax(values, counts, scheme)
    share = _best_share(lambda share: loss(low * share, high * share), low)
    return low * share, high * share


RANGES: dict[str, RangeFunction] = {"minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}


def _best_share(loss: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """For each row the share in (0, 1] with the least loss; the larger of two that are equal."""
    best = torch.ones_like(like)
    least = loss(best)
    for reach, count in ((1.0, 20), (0.05, 5)):
        centre = best.clone()
        for offset in torch.linspace(-reach, reach, 2 * count + 1).flip(0).tolist():
            share = (centre + offset).clamp(0.02, 1)
            found = loss(share) if bool((share != best).any()) else least
            better = found < least
            best, least = torch.where(better, share, best), torch.where(better, found, least)
    return best


def _binned(values: torch.Tensor, bins: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    """The middles of bins around zero, and how many values of each row they hold: (rows, bins) and (rows, bins)."""
    width = 2 * values.abs().amax(1, keepdim=True).double() / bins
    width = torch.where(width > 0, width, 1)
    index = (values / width).floor().long().add_(bins // 2).clamp_(0, bins - 1)
    counts = torch.zeros(len(values), bins, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    middles = (torch.arange(bins, device=values.device) - bins // 2 + 0.5) * width
    return middles, counts
