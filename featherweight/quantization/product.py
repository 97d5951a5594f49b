"""Product quantization: a weight made of a few short vectors, the codewords, that are trained together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from featherweight.errors import RequestError, check
from featherweight.graph.constraint import constrain, fold
from featherweight.graph.selection import select_weights
from featherweight.quantization.codebook import Codebook
from featherweight.quantization.importance import Importance, check_finite, importance_of
from featherweight.training.inputs import input_moments

__all__ = ["product_quantize"]

_POINTWISE = 4  # entries of a sub-vector where kernels have one entry
_FEWEST_MEMBERS = 4  # sub-vectors for each codeword
_SAMPLED = 64  # sub-vectors for each codeword, from which the first codewords are drawn
_ELEMENTS_AT_ONCE = 2**22  # of the table of distances held in memory


def product_quantize(
    model: nn.Module,
    *,
    codewords: int = 256,
    block: int | None = None,
    importance: Importance = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    iterations: int = 50,
    seed: int = 0,
) -> nn.Module:
    """Makes the rows of each weight out of shared codewords, which are trained from then on.

    Each row of a weight (all that makes one output) is cut into sub-vectors of `block` entries, and k-means finds `codewords`
    vectors for all of them (Gong et al., 2014; Stock et al., "And the bit goes down", ICLR 2020). With data, the error that
    k-means makes small is that of the layer's outputs, ‖x(W - Ŵ)‖² (their equation 2). Deviations: of the inputs only their
    second moments enter, each input's own (theirs is the matrix of a sub-vector's inputs, the same for all sub-vectors of a
    row); an empty cluster takes the sub-vector that is farthest from its codeword, which is deterministic. As theirs, a layer
    with fewer than four sub-vectors for each codeword gets fewer codewords. Sub-vectors of zeros stay zero (prune blocks, not
    single weights).

    Args:
        model: any module; it is not changed.
        codewords: how many for each weight, besides zero, in [1, 65535].
        block: entries of a sub-vector, in the order of `weight.flatten(1)`; None: a whole kernel, or 4 where kernels have one
            entry, as in a linear layer.
        importance: how much each weight's squared error counts, at least 0, by name and in the weight's shape; or batches of
            (inputs, targets), of which the second moments of the inputs are taken.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        iterations: of k-means, at most; it stops when nothing moves.
        seed: for the first codewords, which are drawn as in k-means++.

    Returns:
        A copy with a `Codebook` on each weight, whose centroids are the entries of the codewords, one codeword after the other.

    Raises:
        RequestError: a setting out of range, a block that does not divide a row, a weight of fewer than four sub-vectors, or an
            importance that does not fit.
        WeightsError: a weight is not finite.
        DataError, CaptureError: the data are empty, or the network cannot be captured.

    Example:
        >>> quantized = product_quantize(nn.Linear(8, 20), codewords=3, block=4)
        >>> len(quantized.weight.reshape(-1, 4).unique(dim=0))
        3
    """
    check("codewords", codewords, "a whole number in [1, 65535]", isinstance(codewords, int) and 1 <= codewords <= 65535)
    check("iterations", iterations, "a whole number >= 1", isinstance(iterations, int) and iterations >= 1)
    check("block", block, "None or a whole number >= 1", block is None or (isinstance(block, int) and block >= 1))
    quantized = fold(model)
    weights = select_weights(quantized, include=include, exclude=exclude)
    check_finite(weights)
    sizes = {name: _block(name, weight, block) for name, weight in weights.items()}
    known = importance_of(model, weights, importance, input_moments)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        vectors = weight.reshape(-1, sizes[name])
        counts = known[name].reshape(vectors.shape).to(weight.dtype) if name in known else None
        kept = (vectors != 0).any(dim=1)
        words, nearest = _kmeans(vectors[kept], None if counts is None else counts[kept], codewords, iterations, generator)
        code = torch.full((len(vectors), 1), -1, device=weight.device)
        code[kept, 0] = nearest
        places = torch.arange(sizes[name], device=weight.device)
        index = torch.where(code >= 0, 1 + code * sizes[name] + places, 0).reshape(weight.shape)
        codebook = Codebook(index, max(words.numel(), 1))
        if words.numel():
            weight.copy_(codebook(words.flatten()))
        constrain(quantized, name, codebook)
    return quantized


def _block(name: str, weight: torch.Tensor, block: int | None) -> int:
    """How many entries a sub-vector of this weight has."""
    size = block or math.prod(weight.shape[2:])
    size = size if size > 1 or block else _POINTWISE
    columns = weight[0].numel()
    if columns % size:
        raise RequestError(
            f"block must divide the rows of a weight, got {size} for {name!r}, whose rows have {columns} entries"
        )
    if weight.numel() < size * _FEWEST_MEMBERS:
        raise RequestError(
            f"a weight must have at least {_FEWEST_MEMBERS} sub-vectors, but {name!r} of shape {tuple(weight.shape)} has "
            f"{weight.numel() // size} of {size} entries; exclude it, or choose a smaller block"
        )
    return size


def _kmeans(
    vectors: torch.Tensor, counts: torch.Tensor | None, most: int, iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codewords (k, block) for vectors (n, block), and which of them each vector gets (n,); `counts` weighs each entry."""
    words, nearest = vectors.unique(dim=0, return_inverse=True)
    size = max(1, min(most, len(vectors) // _FEWEST_MEMBERS))
    if len(words) <= size:
        return words, nearest
    words = _first(words, size, generator)
    for _ in range(iterations):
        nearest, distances = _nearest(vectors, counts, words)
        moved = _means(vectors, counts, nearest, words)
        empty = (torch.bincount(nearest, minlength=size) == 0).nonzero().flatten()
        moved[empty] = vectors[distances.topk(len(empty)).indices]
        if torch.equal(moved, words):
            break
        words = moved
    return words, _nearest(vectors, counts, words)[0]


def _first(vectors: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Where the codewords start: distinct vectors, drawn as in k-means++ from a random sample of them."""
    drawn = torch.randperm(len(vectors), generator=generator)[: size * _SAMPLED].to(vectors.device)
    pool, chosen = vectors[drawn].double(), []
    distances = torch.full((len(pool),), torch.inf, dtype=torch.float64, device=pool.device)
    chances = torch.ones_like(distances)
    for draw in torch.rand(size, generator=generator, dtype=torch.float64).tolist():
        cumulated = chances.cumsum(0)
        at = torch.searchsorted(cumulated, cumulated[-1] * draw, right=True).clamp(max=len(pool) - 1)
        chosen.append(drawn[at])
        distances = torch.minimum(distances, (pool - pool[at]).square().sum(dim=1))
        chances = distances
    return vectors[torch.stack(chosen)]


def _nearest(vectors: torch.Tensor, counts: torch.Tensor | None, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each vector the number of the nearest codeword, and its weighted squared distance."""
    numbers, distances = [], []
    at_once = max(1, _ELEMENTS_AT_ONCE // len(words))
    weights = torch.ones_like(words[:1]).expand_as(vectors) if counts is None else counts
    for piece, weight in zip(vectors.split(at_once), weights.split(at_once), strict=True):
        norms = words.square().sum(dim=1) if counts is None else weight @ words.square().T
        best = (norms - 2 * (piece * weight) @ words.T).min(dim=1)
        numbers.append(best.indices)
        distances.append(best.values + (weight * piece.square()).sum(dim=1))
    return torch.cat(numbers), torch.cat(distances)


def _means(vectors: torch.Tensor, counts: torch.Tensor | None, nearest: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The weighted mean of each codeword's vectors; the codeword itself where it has none."""
    weights = torch.ones_like(vectors, dtype=torch.float64) if counts is None else counts.double()
    masses = torch.zeros(words.shape, dtype=torch.float64, device=words.device).index_add_(0, nearest, weights)
    sums = torch.zeros_like(masses).index_add_(0, nearest, weights * vectors)
    return torch.where(masses > 0, sums / torch.where(masses > 0, masses, 1), words.double()).to(words.dtype)
