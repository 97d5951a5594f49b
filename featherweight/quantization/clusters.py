"""Weight clustering: few shared values per tensor, trained together (Han, Mao and Dally, ICLR 2016, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError, look_up
from featherweight.graph.constraint import Constraint, constrain, fold
from featherweight.graph.selection import select_weights

__all__ = ["INITIALISATIONS", "Codebook", "cluster_weights", "init_density", "init_linear", "init_random", "kmeans"]


class _Lookup(torch.autograd.Function):
    """values[index], whose gradient for a value is the sum over the weights that share it (section 3.3)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(values)
        return values[index.long()]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = torch.zeros(ctx.count, dtype=gradients[0].dtype, device=index.device)
        return sums.index_add_(0, index.reshape(-1).long(), gradients[0].reshape(-1)), None


class Codebook(Constraint):
    """A weight made of shared values: what is trained is the vector of centroids, shape (clusters,).

    Index 0 stands for exact zero and is not trained, so that pruned weights stay zero; index k for centroid k - 1.

    Args:
        index: integers, the weight's shape, in [0, clusters].
        clusters: how many centroids there are.
    """

    index: torch.Tensor

    def __init__(self, index: torch.Tensor, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.register_buffer("index", index.to(torch.uint8 if clusters < 256 else torch.int32))

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight: each entry its centroid, or zero."""
        values = torch.cat([original.new_zeros(1), original])
        weight: torch.Tensor = _Lookup.apply(values, self.index)  # type: ignore[no-untyped-call]
        return weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The centroids: for each the mean of the weights that share it, 0 if none does."""
        index = self.index.reshape(-1).long()
        sums = torch.zeros(self.clusters + 1, dtype=torch.float64, device=index.device)
        sums.index_add_(0, index, weight.detach().reshape(-1).double())
        counts = torch.bincount(index, minlength=self.clusters + 1).clamp(min=1)
        return (sums / counts)[1:].to(weight.dtype)

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`."""
        self.index = self.index.index_select(axis, indices.to(self.index.device))


def init_linear(values: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Evenly spaced between the least and the greatest value: large weights are few but matter most, and get centroids too.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: not used.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_linear(torch.tensor([0.0, 0.1, 3.0]), 4, torch.Generator()).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    low, high = float(values[0]), float(values[-1])
    return (
        torch.linspace(low, high, clusters, dtype=values.dtype, device=values.device)
        if clusters > 1
        else values.mean().reshape(1)
    )


def init_density(values: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Evenly spaced in the distribution function: each centroid starts with as many weights.

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: not used.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_density(torch.arange(8.0), 2, torch.Generator()).tolist()
        [2.0, 6.0]
    """
    positions = (torch.arange(clusters, dtype=torch.float64, device=values.device) + 0.5) / clusters * len(values)
    return values[positions.long().clamp(max=len(values) - 1)]


def init_random(values: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Weights drawn at random (Forgy).

    Args:
        values: sorted, shape (n,).
        clusters: how many centroids.
        generator: where the draw comes from.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> init_random(torch.arange(8.0), 8, torch.Generator()).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    drawn = torch.randperm(len(values), generator=generator)[:clusters].to(values.device)
    return values[drawn].sort().values


Initialisation = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]
INITIALISATIONS: dict[str, Initialisation] = {"linear": init_linear, "density": init_density, "random": init_random}


def kmeans(values: torch.Tensor, centroids: torch.Tensor, *, iterations: int = 50) -> torch.Tensor:
    """Lloyd's algorithm on a line: minimises the sum of squared distances to the nearest centroid, from a given start.

    In one dimension a cluster is an interval of the sorted values, so an iteration costs two binary searches per centroid.
    A centroid without values stays where it is.

    Args:
        values: sorted, shape (n,).
        centroids: the start, shape (clusters,), increasing.
        iterations: at most so many; it stops when nothing moves.

    Returns:
        Centroids, shape (clusters,), increasing.

    Example:
        >>> kmeans(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0.0, 1.0])).tolist()
        [0.5, 10.5]
    """
    sums = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
    current = centroids.double()
    for _ in range(iterations):
        bounds = _bounds(values, current)
        counts = bounds.diff()
        means = sums[bounds].diff() / counts.clamp(min=1)
        moved = torch.where(counts > 0, means, current)
        if torch.equal(moved, current):
            break
        current = moved.sort().values
    return current.to(values.dtype)


def _bounds(values: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Where each centroid's interval of the sorted values begins, and the end: shape (clusters + 1,)."""
    inner = torch.searchsorted(values, _middles(centroids).to(values.dtype), right=True)
    return torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(values)])])


def _middles(centroids: torch.Tensor) -> torch.Tensor:
    """Where one cluster ends and the next begins; a value right there belongs to the lower one. Shape (clusters - 1,)."""
    return (centroids[1:].double() + centroids[:-1].double()) / 2


def cluster_weights(
    model: nn.Module,
    *,
    clusters: int = 16,
    init: str = "linear",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    min_dim: int = 1,
    seed: int = 0,
) -> nn.Module:
    """Makes each parameter take few shared values, trained from then on as one vector of centroids.

    Deep Compression, section 3. Zeros are kept apart and stay zero. Tensors with no more distinct values than `clusters` keep
    their values exactly. Deviation from the paper: biases and norms are clustered too (`min_dim=1`), for in a small file they
    count.

    Args:
        model: any module; it is not changed. Its masks become the codebooks' zeros.
        clusters: shared values for each tensor, besides zero, in [1, 65535].
        init: where the centroids start, a name in `INITIALISATIONS`; the paper found "linear" best.
        include: shell-style patterns of parameter names; only these, if given.
        exclude: patterns of names to leave alone.
        min_dim: 2 leaves out biases and the parameters of norms.
        seed: for the random initialisation.

    Returns:
        A copy with a `Codebook` on every clustered parameter.

    Raises:
        RequestError: an unknown name, or `clusters` out of range.

    Example:
        >>> clustered = cluster_weights(nn.Linear(20, 20), clusters=4)
        >>> len(clustered.weight.unique())
        4
    """
    if not 1 <= clusters <= 65535:
        raise RequestError(f"clusters must be in [1, 65535], got {clusters}")
    start = look_up(INITIALISATIONS, init, "init")
    generator = torch.Generator().manual_seed(seed)
    clustered = fold(model)
    for name, weight in select_weights(clustered, include=include, exclude=exclude, min_dim=min_dim).items():
        values = weight[weight != 0].sort().values
        if not len(values):
            constrain(clustered, name, Codebook(torch.zeros_like(weight, dtype=torch.int64), 1))
            continue
        distinct = values.unique()
        if len(distinct) <= clusters:
            centroids, index = distinct, torch.searchsorted(distinct, weight)
        else:
            centroids = kmeans(values, start(values, clusters, generator))
            index = torch.bucketize(weight.double(), _middles(centroids))
        constrain(clustered, name, Codebook((index + 1).masked_fill(weight == 0, 0), len(centroids)))
    return clustered
