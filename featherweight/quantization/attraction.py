"""Training that pulls weights to the centres of their clusters, so that clustering them afterwards costs little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.program import owner_of, tensor_called
from featherweight.graph.selection import select_weights
from featherweight.quantization.clusters import find_clusters
from featherweight.quantization.codebook import Codebook
from featherweight.quantization.kmeans import INITIALISATIONS
from featherweight.training.loaders import Loader
from featherweight.training.loop import Tuning, learning_rate_at

__all__ = ["Attraction"]


class Attraction:
    """The penalty strength/2 · Σ (w - c(w))², where c(w) is the centroid of the cluster that w is in; its strength grows.

    The quadratic penalty of learning-compression (Carreira-Perpiñán and Idelbayev, 2017, arXiv:1707.04319); soft
    weight-sharing (Nowlan and Hinton, 1992; Ullrich et al., ICLR 2017) has a mixture of Gaussians in place of the nearest
    centroid. Their strength grows by a factor now and then, with a few epochs between; here it grows evenly from zero, and a
    pull is the penalty's proximal operator, as in `pruning.GroupLasso`: the distance of each weight to its centroid falls by
    the factor 1 / (1 + t), t being learning rate · strength summed over the steps since the last pull.

    Used as `fit`'s `after_step`, with the loader and the tuning that `fit` gets. At each pull the weights are clustered anew,
    just as `cluster_weights` will cluster them after the training. Zeros stay zero, masks stay.

    Args:
        model: what will be trained; it is not changed before.
        loader: as for `fit`; tells the number of steps.
        tuning: as for `fit`; tells the learning rate of each step.
        clusters: as for `cluster_weights`, for each tensor.
        strength: the penalty's factor at the end, above 0. Adam moves a weight by about the learning rate at a step, so that a
            pull holds against it from a distance of 1 / strength on.
        init: as for `cluster_weights`.
        every: steps from one pull to the next; the last step has one.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.

    Raises:
        RequestError: a setting out of range, patterns that fit nothing, or a weight with another constraint than a mask.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.0, 2.0, 10.0, 14.0]])
        >>> data = [(torch.zeros(1, 4), torch.zeros(1))]
        >>> attraction = Attraction(layer, data, Tuning(learning_rate=0.5), clusters=2, strength=2.0)
        >>> attraction(layer, 1.0)  # what `fit` does after its one step
        >>> layer.weight.tolist(), round(attraction.distance(layer), 4)
        ([[0.0, 2.0, 11.0, 13.0]], 0.0825)
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        tuning: Tuning,
        *,
        clusters: int,
        strength: float,
        init: str = "linear",
        every: int = 10,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        check("strength", strength, "finite and > 0", 0 < strength < math.inf)
        check("clusters", clusters, "a whole number in [1, 65535]", isinstance(clusters, int) and 1 <= clusters <= 65535)
        check("every", every, "a whole number >= 1", isinstance(every, int) and every >= 1)
        self._clusters, self._strength, self._every = clusters, strength, every
        self._start = look_up(INITIALISATIONS, init, "init")
        steps = len(loader) * tuning.epochs_on(loader)
        self._rates = [learning_rate_at(tuning, step, steps) for step in range(steps)]
        weights = select_weights(model, include=include, exclude=exclude)
        self._names = list(weights)
        for name, weight in weights.items():
            trained = _trained(model, name)
            if trained.shape != weight.shape or not torch.equal(trained.masked_fill(weight == 0, 0), weight):
                raise RequestError(
                    f"weights that are pulled may have masks, but {name!r} has another constraint; fold the model first"
                )

    @torch.no_grad()
    def __call__(self, model: nn.Module, done: float) -> None:
        """Pulls every weight, IN PLACE, if this step is one that does."""
        step = round(done * len(self._rates))
        if step % self._every and step < len(self._rates):
            return
        since = (step - 1) // self._every * self._every
        amount = sum(self._rates[since:step]) * self._strength * done
        for name in self._names:
            _trained(model, name).sub_(self._offsets(tensor_called(model, name)), alpha=amount / (1 + amount))

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """What clustering the weights now would change: the norm of the change, relative to the norm of the weights."""
        weights = [tensor_called(model, name) for name in self._names]
        changed = sum(float(self._offsets(weight).double().square().sum()) for weight in weights)
        return math.sqrt(changed / max(sum(float(weight.double().square().sum()) for weight in weights), 1e-300))

    def _offsets(self, weight: torch.Tensor) -> torch.Tensor:
        """How far each weight is above its centroid; 0 for a zero."""
        index, centroids = find_clusters(weight, self._clusters, self._start, torch.Generator().manual_seed(0))
        codebook = Codebook(index, len(centroids))
        centres: torch.Tensor = codebook(codebook.means(weight))
        return weight - centres


def _trained(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter itself, beneath the masks that it may have."""
    owner, leaf = owner_of(model, name)
    held: Any = owner.parametrizations[leaf] if parametrize.is_parametrized(owner, leaf) else None  # type: ignore[index]
    tensor: torch.Tensor = getattr(owner, leaf) if held is None else held.original
    return tensor
