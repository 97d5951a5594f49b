"""Weights that share values, as a constraint: what is trained is the shared values.

Han, Mao and Dally (ICLR 2016), section 3.3: the gradient of a shared value is the sum over the weights that share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from featherweight.graph.constraint import Constraint

__all__ = ["Codebook", "index_dtype", "pieces"]

_PIECE = 2**20  # elements that are looked at together: a large tensor needs little more memory than its result


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of as many elements, flat, some elements at a time; what is written into a contiguous one stays there."""
    yield from zip(*(tensor.reshape(-1).split(_PIECE) for tensor in tensors), strict=True)


def index_dtype(count: int) -> torch.dtype:
    """The smallest type that holds whole numbers from 0 to `count`."""
    return torch.uint8 if count < 2**8 else torch.int16 if count < 2**15 else torch.int32


class _Lookup(torch.autograd.Function):
    """values[index], whose gradient for a value is the sum over the weights that share it."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(values)
        found = torch.empty(index.shape, dtype=values.dtype, device=values.device)
        for piece, at in pieces(found, index):
            torch.index_select(values, 0, at.int(), out=piece)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = torch.zeros(ctx.count, dtype=gradients[0].dtype, device=index.device)
        for at, gradient in pieces(index, gradients[0]):
            sums.index_add_(0, at.int(), gradient)
        return sums, None


class Codebook(Constraint):
    """A weight made of shared values: what is trained is the vector of centroids, shape (clusters,).

    Index 0 stands for exact zero and is not trained, so that pruned weights stay zero; index k for centroid k - 1. Which
    weights may share a value is a matter of the index alone: codebooks for each channel, or codewords of several weights, are
    one long vector of centroids of which each channel, or each place in a codeword, uses a part.

    Args:
        index: integers, the weight's shape, in [0, clusters].
        clusters: how many centroids there are.
    """

    index: torch.Tensor

    def __init__(self, index: torch.Tensor, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.register_buffer("index", index.to(index_dtype(clusters)))

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight: each entry its centroid, or zero."""
        values = torch.cat([original.new_zeros(1), original])
        weight: torch.Tensor = _Lookup.apply(values, self.index)  # type: ignore[no-untyped-call]
        return weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The centroids: for each the mean of the weights that share it, 0 if none does."""
        return self.means(weight.detach())

    def means(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """For each centroid the mean of the weights that share it, by their importance; 0 if none does."""
        sums = torch.zeros(self.clusters + 1, dtype=torch.float64, device=weight.device)
        masses = torch.zeros_like(sums)
        for at, values, counts in pieces(self.index, weight, self.index if importance is None else importance):
            counts = torch.ones_like(values, dtype=torch.float64) if importance is None else counts.double()
            sums.index_add_(0, at.int(), values.double() * counts)
            masses.index_add_(0, at.int(), counts)
        return (sums / torch.where(masses > 0, masses, 1))[1:].to(weight.dtype)

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`."""
        self.index = self.index.index_select(axis, indices.to(self.index.device))
