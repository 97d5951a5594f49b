"""Training for few coded bits: a loss that also counts what the weights' integers cost (Oktay et al., ICLR 2020)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, check
from featherweight.graph.constraint import constrained
from featherweight.graph.program import owner_of
from featherweight.quantization.grid import Grid
from featherweight.training.loop import Loss

__all__ = ["RateLoss"]


class RateLoss:
    """The loss plus strength · (bits for each weight), for `training.fit`: entropy-penalised reparametrisation.

    The weights lie on grids, so that integers are what is trained (Oktay, Ballé, Singh and Shrivastava, ICLR 2020, equation 5:
    loss + λ · bits). The code of each tensor is the one that fits its integers now: so many zeros, and a two-sided geometric
    law for the rest. A weight between two integers is taken to cost what it does on average when it is rounded to one of them
    by chance: its cost is linear in between, and the slope is the gradient. It grows as zeros do: what is rare is expensive.
    Deviations from the paper, which adds noise and learns a density, and steps, beside the weights: the law follows from the
    weights, and there is nothing more to learn; steps stay as they are (`quantize_entropy` gives them frozen).

    Args:
        model: with a `Grid` on each weight that counts; what will be trained.
        strength: in units of the loss for one bit for each weight, at least 0.
        loss: (outputs, targets) -> a scalar.

    Raises:
        RequestError: no weight has a grid, or a strength below 0.

    Example:
        >>> from featherweight.quantization import quantize_entropy
        >>> from featherweight.training import Tuning, fit
        >>> net = quantize_entropy(nn.Linear(20, 2), bits=4, trellis=False)
        >>> rated = RateLoss(net, strength=0.5)
        >>> before = rated.bits()
        >>> fit(net, [(torch.ones(4, 20), torch.zeros(4).long())] * 50, Tuning(learning_rate=0.02), loss=rated)
        >>> rated.bits() < before - 0.5
        True
    """

    def __init__(self, model: nn.Module, *, strength: float, loss: Loss = cross_entropy) -> None:
        check("strength", strength, "finite and at least 0", 0 <= strength < math.inf)
        self._strength, self._loss = strength, loss
        self._grids: list[tuple[nn.Module, str, Grid]] = []
        for name, constraints in constrained(model).items():
            self._grids += [(*owner_of(model, name), grid) for grid in constraints if isinstance(grid, Grid)]
        if not self._grids:
            raise RequestError("bits can be counted of weights on grids only, and none is; see quantize_entropy")

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of a batch and the price of the weights."""
        integers = [_integers(owner, leaf, grid) for owner, leaf, grid in self._grids]
        spent = torch.stack([_expected_bits(each).to(outputs) for each in integers]).sum()
        return self._loss(outputs, targets) + self._strength * spent / sum(each.numel() for each in integers)

    @torch.no_grad()
    def bits(self) -> float:
        """The mean bits of a rounded weight, with a code for each tensor as it is now (its table not counted)."""
        spent = entries = 0.0
        for owner, leaf, grid in self._grids:
            counts = _integers(owner, leaf, grid).round().unique(return_counts=True)[1].double()
            entries += float(counts.sum())
            spent += float((counts * (counts.sum() / counts).log2()).sum())
        return spent / entries


def _integers(owner: nn.Module, leaf: str, grid: Grid) -> torch.Tensor:
    """What is trained, after the constraints before the grid, in steps: real numbers, which rounding makes the integers."""
    chain: Any = owner.parametrizations[leaf]  # type: ignore[index]
    value: torch.Tensor = chain.original
    for constraint in itertools.takewhile(lambda each: each is not grid, chain):
        value = constraint(value)
    low, high = grid.spread(grid.low), grid.spread(grid.high)
    return (value / grid.spread(grid.step).detach()).clamp(low, high)


def _expected_bits(integers: torch.Tensor) -> torch.Tensor:
    """The code length of all entries: linear from 0 to 1, and linear in the magnitude from there on."""
    magnitudes = integers.abs()
    with torch.no_grad():
        rounded = magnitudes.round()
        others = float((rounded > 0).sum()) + 0.5
        zeros = len(rounded.reshape(-1)) - others + 1
        excess = (float(rounded.sum(dtype=torch.float64)) + 0.5) / others  # at least 1
        slope = -math.log2(1 - 1 / (excess + 0.5 / others))
        one = -math.log2(others / (zeros + others)) + math.log2(excess) + 1  # the sign
        # At least the slope of one geometric law for all: where zeros are rare they would never become frequent.
        mean = excess * others / (zeros + others)
        zero = min(-math.log2(zeros / (zeros + others)), one - math.log2(1 + 1 / mean))
    return (zero + (one - zero) * magnitudes.clamp(max=1) + slope * (magnitudes - 1).clamp(min=0)).sum()
