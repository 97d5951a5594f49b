"""Supermasks: networks whose weights stay as they were drawn; what is learned is which of them to use.

To add a kind of mask, write a constraint with trainable `scores` and a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from featherweight.errors import check, look_up
from featherweight.graph.constraint import Constraint, constrain, duplicate, fold
from featherweight.graph.program import owner_of, tensor_called
from featherweight.graph.selection import select_weights
from featherweight.pruning.allocation import allocate_uniformly
from featherweight.training import Loader, Progress, Tuning, fit, silent

__all__ = ["SUPERMASKS", "EdgePopup", "LearnedMask", "set_signed_constants", "train_supermask"]


class LearnedMask(Constraint):
    """weight = original · m, with m drawn from Bernoulli(sigmoid(scores)); only the scores are trained.

    Zhou, Lan, Liu and Yosinski (NeurIPS 2019, section 5). The mask is drawn anew in each training step, and its gradient goes
    to the probability as if that had been the mask. Without gradients, or in eval mode, the mask is always the same draw: so
    the network is a function, and can be folded.

    Args:
        scores: logits of staying, the weight's shape.
        generator: of the draw that stays.
        rescale: multiply what stays by n / (number that stay), their "dynamic weight rescaling".
    """

    lots: torch.Tensor

    def __init__(self, scores: torch.Tensor, *, generator: torch.Generator, rescale: bool = False) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.register_buffer("lots", torch.rand(scores.shape, generator=generator).to(scores.device))
        self.rescale = rescale
        self._size = float(scores.numel())

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight with zeros where the mask is."""
        chance = self.scores.sigmoid()
        drawing = self.training and torch.is_grad_enabled()
        mask = torch.bernoulli(chance.detach()).bool() if drawing else self._mask()
        return _masked(original, mask, chance) * self._scale(mask)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, without the scale."""
        return weight / self._scale(self._mask())

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`; the scale stays what it was."""
        scale, indices = self._scale(self._mask()), indices.to(self.scores.device)
        self.scores = nn.Parameter(self.scores.detach().index_select(axis, indices))
        self.lots = self.lots.index_select(axis, indices)
        self._size = scale * float(self._mask().sum())

    def _mask(self) -> torch.Tensor:
        return self.lots < self.scores.detach().sigmoid()

    def _scale(self, mask: torch.Tensor) -> float:
        kept = int(mask.sum()) if self.rescale else 0
        return self._size / kept if kept else 1.0


class EdgePopup(Constraint):
    """weight = original · m, where m keeps the highest |scores|; only the scores are trained.

    Ramanujan et al. (CVPR 2020, section 3): the gradient passes the ranking as if it were the identity, so that a weight that
    is out can come back.

    Args:
        scores: the weight's shape.
        keep: share of the weights that stay, in (0, 1]: exactly round(keep · n), of equal ones the later.
    """

    def __init__(self, scores: torch.Tensor, *, keep: float) -> None:
        super().__init__()
        check("keep", keep, "in (0, 1]", 0 < keep <= 1)
        self.scores = nn.Parameter(scores)
        self._kept = round(keep * scores.numel())

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight with zeros where the mask is."""
        return _masked(original, self._mask(), self.scores.abs())

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight itself."""
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`; what is left keeps the mask it had."""
        mask = self._mask().index_select(axis, indices.to(self.scores.device))
        self.scores = nn.Parameter(self.scores.detach().index_select(axis, indices.to(self.scores.device)))
        self._kept = int(mask.sum())

    def _mask(self) -> torch.Tensor:
        size = max(self.scores.numel(), 1)
        return allocate_uniformly({"": self.scores.detach().abs()}, 1 - self._kept / size)[""]


def _masked(original: torch.Tensor, mask: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """original · mask, with the gradient of original · soft with respect to `soft`, and none to `original`."""
    weight = original.detach()
    return torch.where(mask, weight, 0) + weight * (soft - soft.detach())


def _uniform(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores as torch draws weights: uniform within ± 1 / √(inputs)."""
    drawn = torch.rand(weight.shape, generator=generator, dtype=weight.dtype)
    return ((2 * drawn - 1) / math.sqrt(weight[0].numel())).to(weight.device)


def _logits(weight: torch.Tensor, keep: float) -> torch.Tensor:
    """Scores with which each weight stays with probability `keep`."""
    check("keep", keep, "in (0, 1)", 0 < keep < 1)
    return torch.full_like(weight, math.log(keep / (1 - keep)))


SUPERMASKS: Mapping[str, Callable[[torch.Tensor, float, torch.Generator], Constraint]] = {
    "learned": lambda weight, keep, generator: LearnedMask(_logits(weight, keep), generator=generator),
    "learned-rescaled": lambda weight, keep, generator: LearnedMask(_logits(weight, keep), generator=generator, rescale=True),
    "edge-popup": lambda weight, keep, generator: EdgePopup(_uniform(weight, generator), keep=keep),
}
"""Kinds of supermasks: (weight, share that stays, generator) -> the constraint with its first scores."""


def train_supermask(
    model: nn.Module,
    loader: Loader,
    tuning: Tuning,
    *,
    kind: str = "edge-popup",
    keep: float = 0.5,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Learns which weights of an untrained network to use; weights, biases and all other parameters stay as they are.

    Args:
        model: any module, as it was initialised; it is not changed.
        loader: batches of (inputs, targets).
        tuning: how the scores are trained, as `fit` takes it.
        kind: a name in `SUPERMASKS`.
        keep: share of each weight tensor that stays, in (0, 1); for the learned kinds only at the start.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        seed: of the first scores and of the training.
        progress: called after every batch.

    Returns:
        A copy with masks as constraints; `graph.fold` bakes them in.

    Raises:
        RequestError: an unknown name, or a share out of range.
        TrainingError: as `fit` says.

    Example:
        >>> net = train_supermask(nn.Linear(4, 2), [(torch.ones(3, 4), torch.zeros(3, dtype=torch.int64))], Tuning(epochs=1))
        >>> int((net.weight != 0).sum())
        4
    """
    make = look_up(SUPERMASKS, kind, "kind")
    net = duplicate(model)
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    for name, weight in select_weights(net, include=include, exclude=exclude).items():
        constrain(net, name, make(weight, keep, generator))
        owner, leaf = owner_of(net, name)
        with torch.no_grad():  # a mask that rescales has changed the weight, so that it computes the same at first
            owner.parametrizations[leaf].original.copy_(weight)  # type: ignore[index, union-attr]
    for parameter in trainable:
        parameter.requires_grad_(False)
    fit(net, loader, tuning, seed=seed, progress=progress)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return net


def set_signed_constants(
    model: nn.Module, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> nn.Module:
    """A folded copy in which each weight is its sign times the standard deviation of its tensor: one bit of it is left.

    Zhou et al. (NeurIPS 2019, section 4) and Ramanujan et al. (CVPR 2020, "signed constant").

    Args:
        model: any module; it is not changed.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.

    Returns:
        The copy.

    Example:
        >>> net = set_signed_constants(nn.Linear(20, 10))
        >>> len(net.weight.abs().unique())
        1
    """
    net = fold(model)
    for name, weight in select_weights(net, include=include, exclude=exclude).items():
        with torch.no_grad():
            tensor_called(net, name).copy_(weight.sign() * weight.std(correction=0))
    return net
