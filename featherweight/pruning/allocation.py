"""How a sparsity is spread over tensors or groups. To add an allocation, write a function and a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

__all__ = ["ALLOCATIONS", "Allocation", "allocate_globally", "allocate_uniformly"]

Allocation = Callable[[Mapping[str, torch.Tensor], float], dict[str, torch.Tensor]]


def allocate_uniformly(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """The same share of every tensor: round(sparsity · n) lowest scores of each, ties by index.

    Args:
        scores: for each name a tensor of scores, any shape.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Example:
        >>> allocate_uniformly({"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)["a"].tolist()
        [True, False, False, True]
    """
    return {name: _keep_highest(s, round(sparsity * s.numel())) for name, s in scores.items()}


def allocate_globally(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """One ranking over all tensors: the round(sparsity · n) lowest scores of the n in total, ties by order.

    Args:
        scores: for each name a tensor of scores, any shape, comparable with each other.
        sparsity: fraction removed, in [0, 1).

    Returns:
        For each name a bool tensor, True where the entry stays.

    Example:
        >>> kept = allocate_globally({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5)
        >>> kept["a"].tolist(), kept["b"].tolist()
        ([False, False], [True, True])
    """
    if not scores:
        return {}
    flat = torch.cat([s.reshape(-1) for s in scores.values()])
    keep = _keep_highest(flat, round(sparsity * flat.numel()))
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def _keep_highest(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """True for all but the `removed` lowest scores; of equal scores the earlier goes first."""
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    if removed:
        flat = scores.reshape(-1)
        threshold = flat.kthvalue(removed).values
        keep[flat < threshold] = False
        ties = (flat == threshold).nonzero().flatten()
        keep[ties[: removed - int((~keep).sum())]] = False
    return keep.reshape(scores.shape)


ALLOCATIONS: dict[str, Allocation] = {"uniform": allocate_uniformly, "global": allocate_globally}
