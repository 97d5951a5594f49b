"""What a gate that must learn makes of its logit: numbers for a branch to be multiplied by, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from featherweight.graph.functions import round_through

__all__ = ["GATINGS", "gumbel", "soft", "straight_through"]


def soft(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The branch's share, anything between: σ(logit / T). Trained so, and then cut to 0 and 1, a network loses accuracy
    (Wang et al., ECCV 2018, section 3.3).

    Args:
        logits: (B,) of a gate.
        temperature: T, above 0.

    Returns:
        (B,) in (0, 1).

    Example:
        >>> soft(torch.tensor([0.0]), 1.0)
        tensor([0.5000])
    """
    return (logits / temperature).sigmoid()


def straight_through(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """0 or 1, as at inference, with the gradient of σ(logit / T) (Wang et al., ECCV 2018, equation 5).

    Args:
        logits: (B,) of a gate.
        temperature: T, above 0.

    Returns:
        (B,), 1 where the logit is above 0.

    Example:
        >>> straight_through(torch.tensor([-0.3, 0.3]), 1.0)
        tensor([0., 1.])
    """
    return round_through((logits / temperature).sigmoid())


def gumbel(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """0 or 1, drawn: 1 with probability σ(logit), with the gradient of the relaxed draw σ((logit + noise) / T).

    The straight-through Gumbel-softmax of two classes (Jang, Gu and Poole, ICLR 2017, section 2.2), whose noise is logistic.

    Args:
        logits: (B,) of a gate.
        temperature: T, above 0; towards 0 the gradient's bias vanishes, and its variance rises.

    Returns:
        (B,) of 0 and 1.

    Example:
        >>> gumbel(torch.tensor([-50.0, 50.0]), 1.0)
        tensor([0., 1.])
    """
    uniform = torch.rand_like(logits, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
    return round_through(((logits + uniform.logit()) / temperature).sigmoid())


GATINGS: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "soft": soft,
    "straight-through": straight_through,
    "gumbel": gumbel,
}
"""What gates do in train mode, by name: (logits (B,), temperature) -> what branches are multiplied by."""
