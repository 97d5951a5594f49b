"""Which entries are the highest: exact counts, and of equal scores the earlier goes first."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["count", "keep_highest", "keep_highest_of_all", "places"]


def keep_highest(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """All but the lowest scores.

    Args:
        scores: any shape.
        removed: how many go, at most all.

    Returns:
        A bool tensor of that shape, True where the entry stays.

    Example:
        >>> keep_highest(torch.tensor([2.0, 1.0, 1.0, 3.0]), 1).tolist()
        [True, False, True, True]
    """
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    if removed:
        flat = scores.reshape(-1)
        threshold = flat.kthvalue(removed).values
        keep[flat < threshold] = False
        ties = (flat == threshold).nonzero().flatten()
        keep[ties[: removed - int((~keep).sum())]] = False
    return keep.reshape(scores.shape)


def keep_highest_of_all(scores: Mapping[str, torch.Tensor], removed: int) -> dict[str, torch.Tensor]:
    """All but the lowest scores of several tensors together; an entry of an earlier tensor is earlier.

    Args:
        scores: for each name a tensor, any shape.
        removed: how many go in all.

    Returns:
        For each name a bool tensor of its shape, True where the entry stays.

    Example:
        >>> {name: keep.tolist() for name, keep in keep_highest_of_all({"a": torch.ones(2), "b": torch.ones(1)}, 1).items()}
        {'a': [False, True], 'b': [True]}
    """
    if not scores:
        return {}
    keep = keep_highest(torch.cat([s.reshape(-1) for s in scores.values()]), removed)
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def places(scores: torch.Tensor) -> torch.Tensor:
    """How many entries go before each: 0 for the lowest.

    Args:
        scores: any shape.

    Returns:
        float64 of that shape, a permutation of 0 … n - 1.

    Example:
        >>> places(torch.tensor([2.0, 1.0, 1.0])).tolist()
        [2.0, 0.0, 1.0]
    """
    order = scores.flatten().argsort(stable=True)
    numbers = torch.arange(scores.numel(), dtype=torch.float64, device=scores.device)
    return torch.empty_like(numbers).scatter_(0, order, numbers).reshape(scores.shape)


def count(scores: Mapping[str, torch.Tensor]) -> int:
    """The number of entries of all tensors together.

    Args:
        scores: for each name a tensor.

    Returns:
        Their number.

    Example:
        >>> count({"a": torch.zeros(2, 3), "b": torch.zeros(1)})
        7
    """
    return sum(score.numel() for score in scores.values())
