"""Importances that only the path of training shows, accumulated step by step as `fit`'s `after_step`.

What they hold is not part of a checkpoint: a training that was broken off and goes on has lost the steps before.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from featherweight.errors import RequestError, check

__all__ = ["TRAJECTORIES", "Movement", "PathIntegral", "Trajectory"]


class Trajectory:
    """Adds up something for each trained tensor over the steps of a training.

    Args:
        model: the network that will be trained, as it is before.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start = _values(model)
        self._last = self._start
        self._sums = {name: torch.zeros_like(value) for name, value in self._start.items()}

    def __call__(self, model: nn.Module, done: float) -> None:
        """Takes in one step: the gradients are still there, the tensors are those after it."""
        values = _values(model)
        if values.keys() != self._sums.keys():
            raise RequestError("a trajectory must follow the network it was made for, but this one has other parameters")
        for name, parameter in _trained(model).items():
            if parameter.grad is not None:
                self._sums[name] += self.gain(parameter.grad.detach(), self._last[name], values[name])
        self._last = values

    def gain(self, gradient: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """What one step adds, from a tensor's gradient and its values before and after."""
        raise NotImplementedError

    def scores(self) -> dict[str, torch.Tensor]:
        """What was added up, by the tensors' plain names."""
        return {name: total.clone() for name, total in self._sums.items()}


class Movement(Trajectory):
    """Σ −g·w over the steps: high for weights that training moves away from zero, low for those it shrinks.

    Movement pruning (Sanh et al., NeurIPS 2020, section 4), with masks that only grow: a removed weight has no gradient and its
    score stays as it was, where theirs goes on through a straight-through estimator.

    Args:
        model: the network that will be fine-tuned, as it is before.

    Example:
        >>> from featherweight.training import Tuning, fit
        >>> layer = nn.Linear(2, 2)
        >>> movement = Movement(layer)
        >>> fit(layer, [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))], Tuning(), after_step=movement)
        >>> movement.scores()["weight"].shape
        torch.Size([2, 2])
    """

    def gain(self, gradient: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """−g·w."""
        return -gradient * before


class PathIntegral(Trajectory):
    """How much of the fall of the loss each weight brought about, over the square of how far it went: synaptic intelligence.

    Zenke et al. (ICML 2017, eq. 3 and 5): ω = Σ −g·Δw over the steps, Ω = ω / ((w_end − w_start)² + ξ). As g comes from
    batches, ω is a little too high, as they say; negative values, which that noise also makes, become 0.

    Args:
        model: the network that will be trained, as it is before.
        damping: ξ, above 0, in units of a squared weight.

    Raises:
        RequestError: the damping is not above 0.

    Example:
        >>> from featherweight.training import Tuning, fit
        >>> layer = nn.Linear(2, 2)
        >>> path = PathIntegral(layer)
        >>> fit(layer, [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))], Tuning(), after_step=path)
        >>> bool((path.scores()["weight"] >= 0).all())
        True
    """

    def __init__(self, model: nn.Module, *, damping: float = 1e-3) -> None:
        check("damping", damping, "above 0", damping > 0)
        super().__init__(model)
        self._damping = damping

    def gain(self, gradient: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """−g·Δw."""
        return -gradient * (after - before)

    def scores(self) -> dict[str, torch.Tensor]:
        """Ω, by the tensors' plain names, at least 0."""
        return {
            name: total.clamp(min=0) / ((self._last[name] - self._start[name]).square() + self._damping)
            for name, total in self._sums.items()
        }


_HIDDEN = re.compile(r"parametrizations\.(\w+)\.original\d*$")


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimizer trains, by plain name: "conv.weight", also where a constraint hides it as an `original`."""
    return {_HIDDEN.sub(r"\1", name): p for name, p in model.named_parameters() if p.requires_grad}


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in _trained(model).items()}


TRAJECTORIES: dict[str, type[Trajectory]] = {"movement": Movement, "si": PathIntegral}
