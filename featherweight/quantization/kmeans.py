"""k-means on a line: where shared values start, Lloyd's algorithm, and the best clusters there are.

The numbers are sorted and may be weighted; a weight says how much a number's squared distance to its centroid counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from featherweight.errors import check

__all__ = [
    "INITIALISATIONS",
    "Initialisation",
    "init_density",
    "init_linear",
    "init_optimal",
    "init_plusplus",
    "init_random",
    "kmeans",
    "middles",
]

Initialisation = Callable[[torch.Tensor, int, torch.Generator, torch.Tensor | None], torch.Tensor]
"""(sorted values, clusters, generator, weights or None) -> increasing centroids."""

_Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]

_MOST_POINTS = 2**14  # the best clusters of so many numbers are found exactly
_MOST_OPTIMAL = 1024  # clusters: time and memory grow with clusters times points


def kmeans(
    values: torch.Tensor, centroids: torch.Tensor, *, weights: torch.Tensor | None = None, iterations: int = 50
) -> torch.Tensor:
    """Lloyd's algorithm on a line: minimises the sum of squared distances to the nearest centroid, from a given start.

    In one dimension a cluster is an interval of the sorted values, so an iteration costs two binary searches per centroid.
    A centroid without values stays where it is.

    Args:
        values: sorted, shape (n,).
        centroids: the start, shape (clusters,), increasing.
        weights: how much each value counts, above 0, shape (n,); by default all count the same.
        iterations: at most so many; it stops when nothing moves.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> kmeans(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0.0, 1.0])).tolist()
        [0.5, 10.5]
        >>> kmeans(torch.tensor([0.0, 1.0]), torch.tensor([0.0]), weights=torch.tensor([1.0, 3.0])).tolist()
        [0.75]
    """
    doubles = values.double()
    sums = _cumulated(doubles if weights is None else doubles * weights)
    masses = _masses(values, weights)
    current = centroids.double()
    for _ in range(iterations):
        bounds = _bounds(values, current)
        mass = masses[bounds].diff()
        means = sums[bounds].diff() / torch.where(mass > 0, mass, 1)
        moved = torch.where(mass > 0, means, current)
        if torch.equal(moved, current):
            break
        current = moved.sort().values
    return current.to(values.dtype)


def middles(centroids: torch.Tensor) -> torch.Tensor:
    """Where one cluster ends and the next begins; a value right there belongs to the lower one. Shape (clusters - 1,)."""
    return (centroids[1:].double() + centroids[:-1].double()) / 2


def _bounds(values: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Where each centroid's interval of the sorted values begins, and the end: shape (clusters + 1,)."""
    inner = torch.searchsorted(values, middles(centroids).to(values.dtype), right=True)
    return torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(values)])])


def _cumulated(amounts: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0, 1, …, n amounts, in double precision."""
    return torch.nn.functional.pad(amounts.double().cumsum(0), (1, 0))


def _masses(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """How much the first 0, 1, …, n values count."""
    if weights is None:
        return torch.arange(len(values) + 1, dtype=torch.float64, device=values.device)
    return _cumulated(weights)


def init_linear(
    values: torch.Tensor, clusters: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Evenly spaced between the least and the greatest value: large weights are few but matter most, and get centroids too.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: not used.
        weights: how much each value counts, shape (n,); used only for a single centroid, their mean.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_linear(torch.tensor([0.0, 0.1, 3.0]), 4, torch.Generator()).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if clusters == 1:
        mean = values.mean() if weights is None else (values * weights).sum() / weights.sum()
        return mean.to(values.dtype).reshape(1)
    return torch.linspace(float(values[0]), float(values[-1]), clusters, dtype=values.dtype, device=values.device)


def init_density(
    values: torch.Tensor, clusters: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Evenly spaced in the distribution function: each centroid starts with as many weights.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: not used.
        weights: how much each value counts, shape (n,).

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_density(torch.arange(8.0), 2, torch.Generator()).tolist()
        [2.0, 6.0]
    """
    masses = _masses(values, weights)[1:]
    halves = (torch.arange(clusters, dtype=torch.float64, device=values.device) + 0.5) / clusters
    return values[torch.searchsorted(masses, halves * masses[-1], right=True).clamp(max=len(values) - 1)]


def init_random(
    values: torch.Tensor, clusters: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weights drawn at random without repetition (Forgy), as probable as they count (Efraimidis and Spirakis, 2006).

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: where the draw comes from.
        weights: how much each value counts, shape (n,).

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_random(torch.arange(8.0), 8, torch.Generator()).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    if weights is None:
        drawn = torch.randperm(len(values), generator=generator)[:clusters]
    else:
        keys = torch.rand(len(values), generator=generator, dtype=torch.float64).log() / weights.cpu()
        drawn = keys.topk(clusters).indices
    return values[drawn.to(values.device)].sort().values


def init_plusplus(
    values: torch.Tensor, clusters: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """k-means++: each centroid is drawn with a probability that grows with the squared distance to those drawn before.

    Arthur and Vassilvitskii (SODA 2007). Each centroid costs a pass over the values.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: where the draws come from.
        weights: how much each value counts, shape (n,).

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_plusplus(torch.tensor([0.0, 0.0, 0.0, 9.0]), 2, torch.Generator()).tolist()
        [0.0, 9.0]
    """
    doubles = values.double()
    counts = torch.ones_like(doubles) if weights is None else weights.double()
    chances, nearest, drawn = counts, torch.full_like(doubles, torch.inf), []
    for draw in torch.rand(clusters, generator=generator, dtype=torch.float64).tolist():
        cumulated = chances.cumsum(0)
        at = torch.searchsorted(cumulated, cumulated[-1] * draw, right=True).clamp(max=len(values) - 1)
        drawn.append(values[at])
        nearest = torch.minimum(nearest, (doubles - doubles[at]).square())
        chances = counts * nearest
    return torch.stack(drawn).sort().values


def init_optimal(
    values: torch.Tensor, clusters: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The best centroids there are: no others have a smaller weighted sum of squared distances.

    Clusters on a line are intervals, so dynamic programming finds the best (Fisher, 1958; Wang and Song, 2011); as the last
    interval of the best clusters of the first j numbers begins no earlier when j grows, divide and conquer does it in
    O(clusters · n log n) (Grønlund et al., 2017). Exact for up to 16384 distinct values. Of more, neighbours are
    first merged into about as many points, none of which holds more than 1/8192 of the weight unless it is a single number, or
    spans more than 1/8192 of the range; the distances within a point are then not seen.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids, at most 1024; where there are fewer distinct values, the last is repeated.
        generator: not used.
        weights: how much each value counts, shape (n,).

    Returns:
        Centroids, shape (clusters,), increasing.

    Raises:
        RequestError: more than 1024 clusters.

    Example:
        >>> init_optimal(torch.tensor([0.0, 1.0, 7.0, 8.0, 9.0, 100.0]), 3, torch.Generator()).tolist()
        [0.5, 8.0, 100.0]
    """
    rule = f"at most {_MOST_OPTIMAL} where init is 'optimal' ('density' takes more)"
    check("clusters", clusters, rule, clusters <= _MOST_OPTIMAL)
    counts = np.ones(len(values)) if weights is None else weights.double().cpu().numpy()
    points, masses = _merge(values.detach().double().cpu().numpy(), counts)
    bounds = _best_bounds(points, masses, min(clusters, len(points)))
    means = np.add.reduceat(points * masses, bounds) / np.add.reduceat(masses, bounds)
    means = np.pad(means, (0, clusters - len(means)), mode="edge")
    return torch.from_numpy(np.sort(means)).to(values)


def _merge(values: _Floats, weights: _Floats) -> tuple[_Floats, _Floats]:
    """Equal values made one point; if these are too many, neighbours too: points and their weights."""
    starts = np.flatnonzero(np.diff(values, prepend=-np.inf))
    if len(starts) > _MOST_POINTS:
        masses = np.cumsum(weights)
        span = (values - values[0]) / (values[-1] - values[0])
        cells = np.floor((masses / masses[-1] + span) * (_MOST_POINTS / 2))
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
    masses = np.add.reduceat(weights, starts)
    return np.add.reduceat(values * weights, starts) / masses, masses


def _best_bounds(points: _Floats, masses: _Floats, clusters: int) -> _Integers:
    """Where each of the best intervals begins, (clusters,): they maximise Σ (Σ wx)² / Σ w, the rest of Σ wx² being fixed."""
    centred = points - np.average(points, weights=masses)  # so that little cancels
    mass = np.concatenate([[0], np.cumsum(masses)])
    moment = np.concatenate([[0], np.cumsum(masses * centred)])
    gains = np.zeros_like(mass)
    gains[1:] = moment[1:] ** 2 / mass[1:]
    begins: list[npt.NDArray[np.int32]] = []
    begin: _Integers = np.zeros(len(mass), np.int64)
    for count in range(2, clusters + 1):
        gains, begin = _with_one_more(gains, begin, mass, moment, count)
        begins.append(begin.astype(np.int32))
    bounds = [len(points)]
    for each in reversed(begins):
        bounds.append(int(each[bounds[-1]]))
    return np.array([0, *bounds[:0:-1]])


def _with_one_more(gains: _Floats, before: _Integers, mass: _Floats, moment: _Floats, count: int) -> tuple[_Floats, _Integers]:
    """From the gain of the best count - 1 intervals of the first j points to that of `count`, and where the last one begins.

    It begins no earlier for more points, nor for more intervals (`before`). All positions that are as deep in the recursion go
    in one sweep, each over the candidates between the answers of its neighbours: as many as there are points, all together.
    """
    last = len(mass) - 1
    best: _Floats = np.full(last + 1, -np.inf)
    begin = np.full(last + 2, last, np.int64)  # the extra one stands for the answer beyond the end
    begin[count - 1] = count - 1
    stride = 1 << (last - count + 1).bit_length()
    while stride := stride // 2:
        ends = np.arange(count - 1 + stride, last + 1, 2 * stride)
        low = np.maximum(begin[ends - stride], before[ends])
        high = np.minimum(begin[np.minimum(ends + stride, last + 1)], ends - 1)
        lengths = np.maximum(high - low, 0) + 1
        starts = np.cumsum(lengths) - lengths
        candidates = np.arange(lengths.sum()) - np.repeat(starts - low, lengths)
        reach = np.repeat(ends, lengths)
        totals = gains[candidates] + (moment[reach] - moment[candidates]) ** 2 / (mass[reach] - mass[candidates])
        best[ends] = np.maximum.reduceat(totals, starts)
        hits = np.flatnonzero(totals == np.repeat(best[ends], lengths))[::-1]
        begin[reach[hits]] = candidates[hits]  # of equals the first, for it is written last
    return best, begin[:-1]


INITIALISATIONS: dict[str, Initialisation] = {
    "linear": init_linear,
    "density": init_density,
    "random": init_random,
    "kmeans++": init_plusplus,
    "optimal": init_optimal,
}
