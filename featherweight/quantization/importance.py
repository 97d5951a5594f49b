"""How much the error of each weight counts, where shared values are chosen: numbers that were given, or computed from data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import nn

from featherweight.errors import RequestError, WeightsError
from featherweight.training.loaders import Batch
from featherweight.training.statistics import Evidence

__all__ = ["Importance", "check_finite", "importance_of"]

Importance = Mapping[str, torch.Tensor] | Iterable[Batch] | None
"""Numbers for each weight by name, or data to compute them from, or nothing: all count the same."""

_FLOOR = 1e-6  # of the mean: where no weight of a cluster matters, its centroid is still their mean


def importance_of(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    importance: Importance,
    statistic: Callable[[Evidence, Collection[str]], Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The importance of each weight, relative to its tensor's mean, and everywhere above 0.

    Args:
        model: whose weights they are.
        weights: by name.
        importance: see `Importance`.
        statistic: what to compute from data.

    Returns:
        For each name a tensor of the weight's shape, about 1 on average; nothing if `importance` is None.

    Raises:
        RequestError: a weight has none, or it is negative, not finite, or has another shape.
        DataError: the data are empty, or no pairs of tensors.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> found = importance_of(layer, {"weight": layer.weight}, {"weight": torch.tensor([[0.0, 6.0]])}, None)
        >>> found["weight"].round(decimals=3).tolist()
        [[0.0, 2.0]]
    """
    if importance is None:
        return {}
    if not isinstance(importance, Mapping):
        importance = statistic(Evidence(model, importance, purpose="importance"), list(weights))
    found = {}
    for name, weight in weights.items():
        if name not in importance:
            raise RequestError(
                f"importance must be given for each weight, got none for {name!r}; give it, or exclude the weight"
            )
        given = importance[name].detach().float()
        if given.shape != weight.shape:
            raise RequestError(
                f"importance must have the weight's shape, got {tuple(given.shape)} for {name!r} of {tuple(weight.shape)}"
            )
        low, high = (bound.item() for bound in given.aminmax()) if given.numel() else (0.0, 0.0)
        if not 0 <= low <= high < float("inf"):
            raise RequestError(f"importance must be finite and at least 0, got {low} to {high} for {name!r}")
        mean = float(given.mean(dtype=torch.float64))
        found[name] = (given / mean + _FLOOR if mean > 0 else torch.ones_like(given)).to(weight.device)
    return found


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises unless all weights are finite."""
    for name, weight in weights.items():
        if weight.numel() and not bool(torch.stack(weight.aminmax()).isfinite().all()):
            raise WeightsError(f"weights must be finite, but {name!r} holds NaN or infinity; train or load them again")
