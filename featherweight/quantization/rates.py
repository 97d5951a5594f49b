"""What an integer costs in bits, as a law simple enough to decide with: linear in its magnitude, but for the smallest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PLAIN", "TRELLIS", "Costs", "Lattice", "fit_costs", "free", "round_plain"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int16]

_UNSEEN = 0.5  # added to all counts: what does not occur in a sample is not impossible


@dataclass(frozen=True, slots=True)
class Lattice:
    """Which integers there are, and which of them have a rate of their own.

    Args:
        near: (quantizer, magnitude) of those that do.
        first: for each quantizer the least magnitude of the others, whose rate is linear.
        spacing: of the magnitudes within a quantizer.
    """

    near: tuple[tuple[int, int], ...]
    first: tuple[int, ...]
    spacing: int


PLAIN = Lattice(((0, 0),), (1,), 1)
TRELLIS = Lattice(((0, 0), (0, 2), (1, 0), (1, 1), (1, 3)), (4, 5), 2)


@dataclass(frozen=True, slots=True)
class Costs:
    """What the rate of a magnitude |n| costs, in squared steps: 2 · shift · |n|, plus `near` for a near one, plus `far`.

    All arrays have a last axis of one entry for each segment, or of size 1.

    Args:
        shift: half the slope, at least 0: by so much a weight moves towards zero before it is rounded. Shape [segments].
        near: of the lattice's near magnitudes, beyond the line. Shape [near, segments].
        far: of quantizer 1 beyond quantizer 0. Shape [segments].
    """

    shift: Floats
    near: Floats
    far: Floats

    def of(self, index: npt.NDArray[np.intp]) -> Costs:
        """The costs of the segments at `index`."""
        return Costs(self.shift[index], self.near[:, index], self.far[index])


def free(lattice: Lattice, segments: int = 1) -> Costs:
    """Costs of nothing: the error alone counts.

    Args:
        lattice: `PLAIN` or `TRELLIS`.
        segments: the size of the last axis.

    Returns:
        Zeros.

    Example:
        >>> free(TRELLIS).near.shape
        (5, 1)
    """
    zeros = np.zeros((len(lattice.near) + 2, segments), np.float32)
    return Costs(zeros[0], zeros[2:], zeros[1])


def fit_costs(
    lattice: Lattice,
    magnitudes: npt.NDArray[np.integer],
    quantizers: npt.NDArray[np.integer],
    owners: npt.NDArray[np.intp],
    *,
    penalty: float,
) -> tuple[Costs, npt.NDArray[np.float64]]:
    """The rates that integers have in a code made for them: of the near ones by how often they occur, of the rest geometric.

    This is what makes decisions and code fit each other: quantize, fit, quantize again (as entropy-constrained quantization
    does: Chou, Lookabaugh and Gray, IEEE TASSP 1989).

    Args:
        lattice: which integers there are.
        magnitudes: |n|, shape [segments, steps].
        quantizers: 0 or 1, the same shape.
        owners: of each segment the tensor, 0, 1, …; each has a code of its own. Shape [segments].
        penalty: squared steps for a bit, the λ of D + λR.

    Returns:
        The costs, an entry for each tensor, and the bits of each tensor's segments, shape [tensors].

    Example:
        >>> costs, bits = fit_costs(PLAIN, np.array([[0, 1, 0, 0, 2, 0]]), np.zeros((1, 6), int), np.array([0]), penalty=0.1)
        >>> bool(costs.near[0, 0] < 0), round(float(bits[0]))  # zero is cheaper than the line through one and two
        (True, 10)
    """
    tensors, categories = int(owners.max()) + 1, len(lattice.near) + len(lattice.first)
    table = np.full((len(lattice.first), max(lattice.first) + 1), categories)
    for quantizer, first in enumerate(lattice.first):
        table[quantizer, first:] = len(lattice.near) + quantizer
    for index, (quantizer, magnitude) in enumerate(lattice.near):
        table[quantizer, magnitude] = index
    category = table[quantizers, np.minimum(magnitudes, max(lattice.first))]
    cells = (owners[:, None] * categories + category).ravel()
    counts = np.bincount(cells, minlength=tensors * categories).reshape(tensors, categories).astype(np.float64) + _UNSEEN
    weights = magnitudes.ravel().astype(np.float64)
    sums = np.asarray(np.bincount(cells, weights, tensors * categories), np.float64).reshape(tensors, categories)
    return _costs_of(lattice, counts, sums[:, len(lattice.near) :], penalty)


def _costs_of(
    lattice: Lattice, counts: npt.NDArray[np.float64], sums: npt.NDArray[np.float64], penalty: float
) -> tuple[Costs, npt.NDArray[np.float64]]:
    """From the counts of near integers and of each quantizer's others [tensors, …], and the sums of the latter's magnitudes."""
    near = len(lattice.near)
    others, first = counts[:, near:], np.array(lattice.first)
    excess = (sums - (others - _UNSEEN) * first).clip(0) / lattice.spacing
    mean = (excess.sum(1) + _UNSEEN) / others.sum(1)
    slope = np.log2(1 + 1 / mean) / lattice.spacing  # bits for each unit of |n|
    owner = np.array([quantizer for quantizer, _ in lattice.near] + list(range(len(first))))
    totals = np.stack([counts[:, owner == quantizer].sum(1) for quantizer in range(len(first))], 1)
    bits = -np.log2(counts / totals[:, owner])
    bits += [magnitude > 0 for _, magnitude in lattice.near] + [True] * len(first)  # the sign
    bits[:, near:] += np.log2(1 + mean)[:, None]  # of the first of the others: 1 - ρ is 1 / (1 + mean)
    base = bits[:, near:] - slope[:, None] * first
    lines = np.stack([base[:, quantizer] + slope * magnitude for quantizer, magnitude in lattice.near], 1)
    spent = ((counts - _UNSEEN) * bits).sum(1) + slope * lattice.spacing * excess.sum(1)
    costs = Costs(
        (penalty * slope / 2).astype(np.float32),
        (penalty * (bits[:, :near] - lines)).T.astype(np.float32),
        (penalty * (base[:, -1] - base[:, 0])).astype(np.float32),
    )
    return costs, spent


def round_plain(weights: Floats, costs: Costs, importance: Floats | None = None) -> Integers:
    """The integers that minimise Σ importance · (|weight| - n)² + cost of n: rounding after a shift, and a dead zone.

    Args:
        weights: in steps, shape [segments, steps]. Zeros stay zero.
        costs: of the integers, on the lattice `PLAIN`.
        importance: the same shape, above 0; all 1 if none is given.

    Returns:
        Integers, the same shape.

    Example:
        >>> costs = Costs(np.array([0.1], np.float32), np.array([[-0.3]], np.float32), np.zeros(1, np.float32))
        >>> round_plain(np.array([[0.5, -0.8, 2.7, 2.55]], np.float32), costs).tolist()
        [[0, -1, 3, 2]]
    """
    shift, near = costs.shift[:, None], costs.near[0][:, None]
    shifted = np.abs(weights) - (shift if importance is None else shift / importance)
    threshold = 0.5 - near / 2 if importance is None else 0.5 - near / importance / 2
    rounded = np.maximum(np.rint(shifted), 1)
    integers: Integers = (np.copysign(rounded, weights) * ((shifted >= threshold) & (weights != 0))).astype(np.int16)
    return integers
