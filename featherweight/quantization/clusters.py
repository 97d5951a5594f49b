"""Weight clustering: few shared values per tensor, trained together (Han, Mao and Dally, ICLR 2016, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from featherweight.errors import check, look_up
from featherweight.graph.constraint import constrain, fold
from featherweight.graph.selection import select_weights
from featherweight.quantization.codebook import Codebook, index_dtype, pieces
from featherweight.quantization.importance import Importance, check_finite, importance_of
from featherweight.quantization.kmeans import INITIALISATIONS, Initialisation, kmeans, middles
from featherweight.training.statistics import squared_gradients

__all__ = ["CHANNELS", "cluster_weights", "find_clusters"]

CHANNELS: dict[str, int | None] = {"tensor": None, "channel": 1, "group": 16}
"""How many output channels share a codebook, by name; None: all."""

_MOST_SORTED = 2**20  # so many values are clustered as they are; more, as a histogram
_BITS = 20  # of a float32 tell the bin of the histogram: sign, exponent, and 11 bits of the mantissa
_FEWEST_BINS = 16  # for each cluster; if the values fill fewer, the histogram is too coarse for them


def cluster_weights(
    model: nn.Module,
    *,
    clusters: int = 16,
    per: str | int = "tensor",
    init: str = "linear",
    importance: Importance = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    min_dim: int = 1,
    seed: int = 0,
) -> nn.Module:
    """Makes each parameter take few shared values, trained from then on as one vector of centroids.

    Deep Compression, section 3. Zeros are kept apart and stay zero. Tensors with no more distinct values than `clusters` keep
    their values exactly. Deviation from the paper: biases and norms are clustered too (`min_dim=1`), for in a small file they
    count. With `importance`, k-means is weighted: with data the weights are the Fisher information, as in SqueezeLLM (Kim et
    al., ICML 2024, section 4.1). More than a million values are clustered as a histogram of bins no wider than 0.05 % of a
    value, so that a large tensor needs little memory besides its copy and its index; centroids are exact means all the same.

    Args:
        model: any module; it is not changed. Its masks become the codebooks' zeros.
        clusters: shared values for each codebook, besides zero, in [1, 65535].
        per: what has a codebook of its own: a "tensor", an output "channel", a "group" of 16 of them, or of so many as a number
            says. Tensors of one axis have one codebook.
        init: where the centroids start, a name in `INITIALISATIONS`; the paper found "linear" best after training, "optimal"
            gives the least squared error before it.
        importance: how much each weight's squared error counts, at least 0, by name and in the weight's shape; or batches of
            (inputs, targets), for which it is the Fisher information of the cross entropy (`training.statistics` has it for
            other losses, and other statistics).
        include: shell-style patterns of parameter names; only these, if given.
        exclude: patterns of names to leave alone.
        min_dim: 2 leaves out biases and the parameters of norms.
        seed: for the random initialisations.

    Returns:
        A copy with a `Codebook` on every clustered parameter.

    Raises:
        RequestError: an unknown name, `clusters` or `per` out of range, or an importance that does not fit.
        WeightsError: a weight is not finite.
        DataError: the data are empty, or no pairs of tensors.

    Example:
        >>> clustered = cluster_weights(nn.Linear(20, 20), clusters=4)
        >>> len(clustered.weight.unique())
        4
    """
    check("clusters", clusters, "a whole number in [1, 65535]", isinstance(clusters, int) and 1 <= clusters <= 65535)
    check("per", per, "'tensor', 'channel', 'group', or a number of channels", per in CHANNELS or _is_count(per))
    channels = CHANNELS[per] if isinstance(per, str) else per
    start = look_up(INITIALISATIONS, init, "init")
    generator = torch.Generator().manual_seed(seed)
    clustered = fold(model)
    weights = select_weights(clustered, include=include, exclude=exclude, min_dim=min_dim)
    check_finite(weights)
    known = importance_of(model, weights, importance, squared_gradients)

    def find(weight: torch.Tensor, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return find_clusters(weight, clusters, start, generator, importance)

    for name in list(weights):  # popped, so that a large tensor goes when its codebook comes
        constrain(clustered, name, _codebook(weights.pop(name), known.pop(name, None), channels, find))
    return clustered


def _is_count(per: object) -> bool:
    return isinstance(per, int) and not isinstance(per, bool) and per >= 1


_Find = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def _codebook(weight: torch.Tensor, importance: torch.Tensor | None, channels: int | None, find: _Find) -> Codebook:
    """A codebook for so many channels each, all in one; with importance, `weight` is made of its centroids, IN PLACE."""
    if channels is None or weight.dim() < 2 or channels >= len(weight):
        index, centroids = find(weight, importance)
        codebook = Codebook(index, len(centroids))
    else:
        parts, count = [], 0
        amounts = [None] * len(weight) if importance is None else importance.split(channels)
        for part, amount in zip(weight.split(channels), amounts, strict=False):
            index, centroids = find(part, amount)
            parts.append(torch.where(index > 0, index.int() + count, 0))
            count += len(centroids)
        codebook = Codebook(torch.cat(parts), count)
    if importance is not None:  # else a constraint's own inverse, the plain mean, is what is wanted
        weight.copy_(codebook(codebook.means(weight, importance)))
    return codebook


def find_clusters(
    weight: torch.Tensor,
    clusters: int,
    start: Initialisation,
    generator: torch.Generator,
    importance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clusters of one tensor's values other than zero.

    Args:
        weight: finite, of any shape.
        clusters: how many at most; if there are no more distinct values, these are the centroids.
        start: gives the first centroids.
        generator: for `start`.
        importance: how much each weight counts, above 0, the weight's shape.

    Returns:
        For each weight 0 where it is zero, else 1 + the number of its centroid, in the weight's shape; and the centroids,
        increasing, at least one.
    """
    distinct = _distinct(weight, clusters)
    if distinct is None:
        values, weights = _line(weight, importance, clusters)
        centroids = kmeans(values, start(values, clusters, generator, weights), weights=weights).to(weight.dtype)
    else:
        centroids = distinct if len(distinct) else weight.new_zeros(1)
    bounds = middles(centroids) if distinct is None else distinct  # adjacent floats have no middle
    index = torch.empty(weight.shape, dtype=index_dtype(len(centroids)), device=weight.device)
    for into, piece in pieces(index, weight):
        nearest = torch.bucketize(piece.double(), bounds, out_int32=True)
        into.copy_((nearest + 1).masked_fill(piece == 0, 0))
    return index, centroids


def _distinct(weight: torch.Tensor, most: int) -> torch.Tensor | None:
    """The distinct values other than zero, increasing; None if there are more than `most`."""
    found = weight.new_empty(0)
    for (piece,) in pieces(weight):
        found = torch.cat([found, piece[piece != 0]]).unique()
        if len(found) > most:
            return None
    return found


def _line(weight: torch.Tensor, importance: torch.Tensor | None, clusters: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The values other than zero in increasing order, and what each counts (None: the same)."""
    if weight.numel() > max(_MOST_SORTED, 2**10 * clusters):
        values, masses = _histogram(weight, importance)
        if len(values) >= _FEWEST_BINS * clusters:
            return values, masses
    kept = weight != 0
    values, order = weight[kept].sort()
    return values, None if importance is None else importance[kept][order].double()


def _histogram(weight: torch.Tensor, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of bins that hold values other than zero, increasing, and what each bin counts; both float64."""
    masses = torch.zeros(2**_BITS, dtype=torch.float64, device=weight.device)
    sums = torch.zeros_like(masses)
    for piece, counts in pieces(weight, weight if importance is None else importance):
        kept = piece != 0
        piece = piece[kept]
        counts = torch.ones_like(piece, dtype=torch.float64) if importance is None else counts[kept].double()
        bits = piece.float().view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as a whole number it is in the order of the floats
        bins = (ordered >> 32 - _BITS) + 2 ** (_BITS - 1)
        masses.index_add_(0, bins, counts)
        sums.index_add_(0, bins, piece.double() * counts)
    filled = masses > 0
    return sums[filled] / masses[filled], masses[filled]
