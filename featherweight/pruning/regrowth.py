"""Sparse training with regrowth: weights move, their number stays. To add a growth, write a function and a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.constraint import constrained
from featherweight.graph.program import owner_of
from featherweight.pruning.ranking import keep_highest
from featherweight.pruning.weights import Mask
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss
from featherweight.training.statistics import Evidence, batches_of, mean_gradients

__all__ = ["GROWTHS", "Growth", "Regrowth", "grow_at_random", "grow_by_gradient"]

Growth = Callable[[Evidence, Sequence[str]], dict[str, torch.Tensor]]
"""(evidence, names of weights) -> for each a score of its shape: where it is highest, weights grow."""


def grow_by_gradient(evidence: Evidence, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """|∂loss/∂w|, also where w is masked: RigL (Evci et al., ICML 2020, section 3).

    Theirs is the gradient of the step's own batch in train mode; this one of a batch of `data` in eval mode.

    Args:
        evidence: with data.
        names: of the weights.

    Returns:
        For each name scores of the weight's shape, at least 0.

    Raises:
        RequestError, DataError: there are no data.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[1.0, -3.0]]), torch.zeros(1))]
        >>> grow_by_gradient(Evidence(layer, data, loss=lambda outputs, _: outputs.sum()), ["weight"])["weight"].tolist()
        [[1.0, 3.0]]
    """
    return {name: gradient.abs() for name, gradient in mean_gradients(evidence, names).items()}


def grow_at_random(evidence: Evidence, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """A random number for each weight: sparse evolutionary training (Mocanu et al., Nature Communications 2018).

    Args:
        evidence: with its generator; no data are needed.
        names: of the weights.

    Returns:
        For each name scores in [0, 1) of the weight's shape.

    Example:
        >>> grow_at_random(Evidence(nn.Linear(3, 2)), ["weight"])["weight"].shape
        torch.Size([2, 3])
    """
    weights = {name: getattr(*owner_of(evidence.model, name)) for name in names}
    return {name: torch.rand(w.shape, generator=evidence.generator).to(w.device) for name, w in weights.items()}


GROWTHS: dict[str, Growth] = {"gradient": grow_by_gradient, "random": grow_at_random}


class Regrowth:
    """Drops the smallest weights of each mask now and then, and lets as many grow elsewhere, as `fit`'s `after_step`.

    Each time a fraction drop/2 · (1 + cos(π · done/until)) of each tensor's weights is dropped (Evci et al., ICML 2020, eq. 1),
    and as many grow from zero where `growth` says, among those that were masked or just dropped: the number of weights of each
    tensor never changes. The network must have masks; the authors' are `prune_weights`' with the criterion "random" and the
    allocation "erdos_renyi_kernel" ("erdos_renyi" for growth at random).

    When a training goes on after it was broken off, an update that was due at that very step is left out.

    Args:
        growth: a name in `GROWTHS`.
        drop: the fraction dropped at first, in (0, 1).
        updates: how many times in the whole phase, at least 1.
        until: the share of the training in which weights move, in (0, 1]; then only the weights train.
        data: batches of (inputs, targets); each update looks at one, of a shuffled loader always another.
        loss: (outputs, targets) -> scalar.
        seed: of what is drawn at random.

    Raises:
        RequestError: an unknown name, a number out of range, or no data for a growth by gradient.

    Example:
        >>> from featherweight.pruning import prune_weights
        >>> net, move = prune_weights(nn.Linear(10, 10), sparsity=0.9), Regrowth(growth="random", updates=10)
        >>> move(net, 0.0), move(net, 0.1)
        (None, None)
        >>> int(net.parametrizations.weight[0].mask.sum())
        10
    """

    def __init__(
        self,
        *,
        growth: str = "gradient",
        drop: float = 0.3,
        updates: int = 100,
        until: float = 0.75,
        data: Iterable[Batch] | None = None,
        loss: Loss = cross_entropy,
        seed: int = 0,
    ) -> None:
        check("drop", drop, "in (0, 1)", 0 < drop < 1)
        check("updates", updates, "a whole number >= 1", isinstance(updates, int) and updates >= 1)
        check("until", until, "in (0, 1]", 0 < until <= 1)
        self._grow = look_up(GROWTHS, growth, "growth")
        if data is None and growth != "random":
            raise RequestError(f"the growth {growth!r} needs data, got none; pass data=, such as the training's own loader")
        self._drop, self._updates, self._until = drop, updates, until
        self._data, self._loss, self._seed = data, loss, seed
        self._done: float | None = None

    def __call__(self, model: nn.Module, done: float) -> None:
        """Moves weights if an update became due since the last call."""
        before, self._done = self._done, done
        number = self._number(done)
        if before is None or number == self._number(before) or done >= self._until:
            return
        masks = _masks_of(model)
        evidence = Evidence(model, self._data, self._loss, torch.Generator().manual_seed(self._seed + number), "regrowth")
        if self._data is not None:
            evidence = replace(evidence, data=[*islice(batches_of(evidence), 1)])
        claims = self._grow(evidence, list(masks))
        share = self._drop / 2 * (1 + math.cos(math.pi * done / self._until))
        with torch.no_grad():
            for name, mask in masks.items():
                _move(model, name, mask, claims[name], share)

    def _number(self, done: float) -> int:
        """How many updates are due by then."""
        return int(done / self._until * self._updates)


def _move(model: nn.Module, name: str, mask: Mask, claims: torch.Tensor, share: float) -> None:
    """Drops a share of one tensor's weights and grows as many, in place."""
    owner, leaf = owner_of(model, name)
    original = owner.parametrizations[leaf].original  # type: ignore[index, union-attr]
    masked, alive = ~mask.mask, int(mask.mask.sum())
    moving = round(share * alive)
    stays = keep_highest(original.abs().masked_fill(masked, -torch.inf), mask.mask.numel() - alive + moving)
    grown = keep_highest(claims.masked_fill(stays, -torch.inf), mask.mask.numel() - moving)
    original.masked_fill_(grown, 0)
    mask.mask.copy_(stays | grown)


def _masks_of(model: nn.Module) -> dict[str, Mask]:
    """The masks of a network, by tensor, each alone on it."""
    masks = {}
    for name, chain in constrained(model).items():
        if any(isinstance(constraint, Mask) for constraint in chain):
            mask = chain[0]
            if len(chain) > 1 or not isinstance(mask, Mask):
                kinds = ", ".join(type(constraint).__name__ for constraint in chain)
                raise RequestError(f"weights that grow again may have a mask and nothing else, got {kinds} on {name}")
            masks[name] = mask
    if not masks:
        raise RequestError("regrowth needs a network with masks, got none; start with prune_weights(…, criterion='random')")
    return masks
