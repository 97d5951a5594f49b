"""Which step gives an error, or a rate: settled on a sample of each tensor, for quantizing all of them takes long."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from featherweight.quantization.grid import MOST
from featherweight.quantization.rates import PLAIN, TRELLIS, Costs, fit_costs, free, round_plain
from featherweight.quantization.trellis import SEGMENT, parities, quantizers, search, segments_of

__all__ = ["Sample", "energy_of", "round_segments", "segments_in", "weighing_of"]

PENALTY = {True: 0.3, False: 0.1}
"""Squared steps for a bit, with and without the trellis: λ of D + λR, so that a smaller step would buy bits at that price too.
At high rates theory says 2 ln 2 · D, which is 0.37 and 0.12; a little less measures better."""

_FITS = 3  # times that the costs are fitted to what came out, which changes what comes out
_SEGMENTS, _MOST, _FEWEST = 2500, 512, 16  # looked at in all, taken up of a tensor, and looked at of each
_LEAST_WEIGHING = 2**-6  # what does not matter at all needs no infinite shift

Floats = npt.NDArray[np.float32]


class Sample:
    """Some segments of each tensor, and what becomes of them for a step.

    Args:
        trellis: whether integers go along the trellis.

    Example:
        >>> sample = Sample(trellis=True)
        >>> sample.add("weight", torch.randn(100, 100), None)
        >>> log_step, costs = sample.settle(-math.log2(0.1), by_error=True)
        >>> round(sample.measure(log_step, costs)[0], 2)
        0.1
    """

    def __init__(self, trellis: bool) -> None:
        self.names: list[str] = []
        self._trellis = trellis
        self._lattice = TRELLIS if trellis else PLAIN
        self._segments: list[Floats] = []
        self._weighing: list[Floats | None] = []
        self._rows: list[tuple[float, float, float, float]] = []  # entries, energy, greatest magnitude, mean importance

    def add(self, name: str, tensor: torch.Tensor, importance: torch.Tensor | None) -> None:
        """Takes up a tensor's sample; the tensor is finite and not empty."""
        segments, weighing = segments_in(tensor), None if importance is None else weighing_of(importance)
        full = max(tensor.numel() // SEGMENT, 1)
        chosen = np.linspace(0, full - 1, min(full, _MOST)).astype(int)
        self.names.append(name)
        self._segments.append(segments[chosen])
        self._weighing.append(None if weighing is None else weighing[chosen])
        mean = 1.0 if importance is None else float(importance.mean(dtype=torch.float64))
        self._rows.append((tensor.numel(), energy_of(tensor, importance), float(tensor.abs().max()), mean))

    def steps(self, log_step: float) -> npt.NDArray[np.float64]:
        """Each tensor's step, given the binary logarithm of that for importance 1."""
        _, _, greatest, mean = np.array(self._rows).T
        wanted: npt.NDArray[np.float64] = np.maximum(2.0**log_step / np.sqrt(mean), greatest / (MOST - 4))
        return wanted

    def measure(self, log_step: float, costs: Costs) -> tuple[float, float, Costs]:
        """The relative error and the bits for each weight that a step would give, and the costs that fit what it gives."""
        owners = np.repeat(np.arange(len(self.names)), [len(s) for s in self._segments])
        steps = self.steps(log_step).astype(np.float32)[owners, None]
        scaled = np.concatenate(self._segments) / steps
        weighing = None if self._weighing[0] is None else np.concatenate([w for w in self._weighing if w is not None])
        found = round_segments(scaled, costs.of(owners), self._trellis, weighing)
        entries, energy, _, mean = np.array(self._rows).T
        shares = entries / np.bincount(owners) / SEGMENT
        squares = ((found - scaled) * steps) ** 2 * (1 if weighing is None else weighing)
        errors = np.bincount(owners, weights=squares.sum(1, dtype=np.float64)) * mean
        side = quantizers(parities(found.reshape(-1))).reshape(found.shape) if self._trellis else np.zeros_like(found)
        fitted, spent = fit_costs(self._lattice, np.abs(found), side, owners, penalty=PENALTY[self._trellis])
        error = math.sqrt(float((errors * shares).sum()) / max(float(energy.sum()), 1e-300))
        return error, float((spent * shares).sum() / entries.sum()), fitted

    def _thin(self, shares: npt.NDArray[np.float64]) -> None:
        """Leaves of each tensor's segments as many as go with its share of all entries."""
        for index, share in enumerate(shares):
            held = len(self._segments[index])
            kept = np.linspace(0, held - 1, min(held, max(math.ceil(share * _SEGMENTS), _FEWEST))).astype(int)
            weighing = self._weighing[index]
            self._segments[index] = self._segments[index][kept]
            self._weighing[index] = None if weighing is None else weighing[kept]

    def settle(self, goal: float, *, by_error: bool) -> tuple[float, Costs]:
        """The binary logarithm of the step for which -log₂(error), or the bits, are `goal`: by secants."""
        entries, energy, _, _ = np.array(self._rows).T
        self._thin(entries / entries.sum())
        if not energy.any():
            return 0.0, free(self._lattice, len(entries))
        deviation = 0.5 * math.log2(float(energy.sum() / entries.sum()))
        log_step = deviation - (goal if by_error else goal - 2) + (0.9 if self._trellis else 1.8)  # as at high rates
        # Both fall by about 1 when the step doubles.
        costs, slope, last = free(self._lattice, len(entries)), 1.0, (0.0, 0.0)
        for turn in range(12):
            error, rate, fitted = self.measure(log_step, costs)
            value = -math.log2(max(error, 2**-40)) if by_error else rate
            if turn < _FITS:
                costs = fitted
            elif abs(value - goal) < 1e-3:
                break
            if turn and log_step != last[0]:
                slope = min(max((last[1] - value) / (log_step - last[0]), 0.2), 1.5)
            last = (log_step, value)
            log_step += (value - goal) / slope
        return log_step, costs


def round_segments(weights: Floats, costs: Costs, trellis: bool, importance: Floats | None = None) -> npt.NDArray[np.int16]:
    """Integers for weights in steps, along the trellis or each for itself.

    Args:
        weights: shape [segments, SEGMENT].
        costs: on the lattice that goes with it.
        trellis: which of the two.
        importance: the weights' shape.

    Returns:
        The same shape.
    """
    return (search if trellis else round_plain)(weights, costs, importance)


def segments_in(tensor: torch.Tensor) -> Floats:
    """A tensor's entries in segments.

    Args:
        tensor: floating, any shape.

    Returns:
        float32, shape [segments, SEGMENT].
    """
    return segments_of(tensor.detach().cpu().reshape(-1).to(torch.float32).numpy())


def weighing_of(importance: torch.Tensor) -> Floats:
    """Importance in segments, relative to its mean, with a floor.

    Args:
        importance: at least 0, not 0 everywhere.

    Returns:
        float32, shape [segments, SEGMENT].
    """
    relative = importance.detach().float() / importance.mean(dtype=torch.float64).float()
    padded = segments_in(relative)
    return np.maximum(padded, np.float32(_LEAST_WEIGHING))


def energy_of(tensor: torch.Tensor, importance: torch.Tensor | None = None) -> float:
    """The sum of squares of a tensor, weighted by importance.

    Args:
        tensor: floating.
        importance: of the same shape; 1 for all if none is given.

    Returns:
        The sum.
    """
    if importance is None:
        return float(torch.linalg.vector_norm(tensor.detach().float())) ** 2
    return float((tensor.detach().float().square() * importance).sum(dtype=torch.float64))
