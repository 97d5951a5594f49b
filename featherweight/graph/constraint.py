"""Constraints on weights, as `torch.nn.utils.parametrize` parametrizations that chain, fold, and can be sliced.

A constraint maps what the optimizer trains to the weight the network computes with: a mask keeps zeros zero, a codebook keeps
values shared. The optimizer, `state_dict` and autograd need to know nothing of it.
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.graph.program import owner_of, tensor_called

__all__ = ["Constraint", "constrain", "constrain_like", "constrained", "constraints_of", "duplicate", "fold"]

_log = logging.getLogger(__name__)


class Constraint(nn.Module):
    """A parametrization that surgery can slice.

    `forward` maps the trained tensor to the constrained weight, and `forward(right_inverse(weight))` equals `weight` for every
    weight that meets the constraint.
    """

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The constrained weight."""
        raise NotImplementedError

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What to train, so that `forward` gives the constrained `weight`."""
        raise NotImplementedError

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`."""
        raise NotImplementedError


def constrain(model: nn.Module, name: str, constraint: Constraint) -> None:
    """Puts a constraint on a tensor, in place, after those it may already have.

    Args:
        model: the module, which is changed.
        name: of a parameter or buffer ("conv1.weight").
        constraint: its `right_inverse` gives what is trained from then on.

    Example:
        >>> from featherweight.pruning import Mask
        >>> layer = nn.Linear(2, 1)
        >>> constrain(layer, "weight", Mask(torch.tensor([[True, False]])))
        >>> layer.weight[0, 1].item()
        0.0
    """
    owner, leaf = owner_of(model, name)
    parametrize.register_parametrization(owner, leaf, constraint)


def constraints_of(model: nn.Module, name: str) -> list[Constraint]:
    """The constraints on the tensor called `name`, first applied first; empty when it is free."""
    owner, leaf = owner_of(model, name)
    if not parametrize.is_parametrized(owner, leaf):
        return []
    return list(owner.parametrizations[leaf])  # type: ignore[index]


def constrained(model: nn.Module) -> dict[str, list[Constraint]]:
    """Every constrained tensor of a model.

    Args:
        model: any module.

    Returns:
        For each tensor's plain name ("conv1.weight") its constraints, first applied first.

    Example:
        >>> constrained(nn.Linear(2, 1))
        {}
    """
    found = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for leaf in module.parametrizations:
                name = f"{path}.{leaf}" if path else leaf
                found[name] = constraints_of(model, name)
    return found


def constrain_like(network: nn.Module, model: nn.Module, *, but: type[Constraint] | None = None) -> None:
    """Puts a model's constraints on those of a network's tensors, of the same names, that meet them, in place.

    Args:
        network: with plain weights, which are changed only in that they are constrained.
        model: where the constraints come from. Those that a tensor does not meet any more are left out; the log says so.
        but: a kind of constraint to leave out.

    Example:
        >>> from featherweight.pruning import Mask
        >>> layer = nn.Linear(2, 1)
        >>> constrain(layer, "weight", Mask(torch.tensor([[True, False]])))
        >>> halved = fold(layer)
        >>> _ = halved.weight.data.mul_(0.5)
        >>> constrain_like(halved, layer)
        >>> constraints_of(halved, "weight")
        [Mask()]
    """
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for name, chain in constrained(model).items():
        for constraint in chain:
            if name not in names or (but is not None and isinstance(constraint, but)):
                continue
            if isinstance(constraint, Constraint) and _meets(tensor_called(network, name), constraint):
                constrain(network, name, copy.deepcopy(constraint))
            else:
                _log.warning("%s does not meet its %s any more, which goes", name, type(constraint).__name__)


@torch.no_grad()
def _meets(weight: torch.Tensor, constraint: Constraint) -> bool:
    return torch.equal(constraint(constraint.right_inverse(weight)), weight)


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy that may be constrained and folded without the original noticing.

    torch gives a constrained module a class of its own and keeps the constrained names in it; `copy.deepcopy` shares that
    class.

    Args:
        model: any module; it is not changed.

    Returns:
        The copy, constraints included.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> duplicate(layer) is layer
        False
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if parametrize.is_parametrized(module):
            shared = type(module)
            own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(shared.__name__, shared.__bases__, own)
    return twin


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model with every constraint baked into plain weights: same outputs, same names, nothing attached.

    Args:
        model: any module; it is not changed.

    Returns:
        The copy. Without constraints it is an ordinary deep copy.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = parametrize.register_parametrization(layer, "weight", nn.ReLU())
        >>> bool((fold(layer).weight >= 0).all()), parametrize.is_parametrized(fold(layer))
        (True, False)
    """
    folded = duplicate(model)
    for name in constrained(folded):
        parametrize.remove_parametrizations(*owner_of(folded, name), leave_parametrized=True)
    return folded
