"""A layer as factoring sees it, and the thin layers in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Layer", "Pair", "Thin", "as_thin", "macs_of", "weights_of"]

Pair = tuple[int, int]
"""Of height and width."""


@dataclass(frozen=True)
class Layer:
    """A linear layer (outputs, inputs), or a two-dimensional convolution without groups (outputs, inputs, height, width).

    Attributes:
        weight: float.
        stride: of a convolution, as the others.
        padding: zeros on either side.
        dilation: distance of a kernel's entries.
        size: height and width of the inputs; (1, 1) for linear layers, whose positions all cost the same.
        moments: XᵀX of the inputs (columns, columns), columns as in `weight.flatten(1)`; None where no data were looked at.
    """

    weight: torch.Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    size: Pair = (1, 1)
    moments: torch.Tensor | None = None


@dataclass(frozen=True)
class Thin:
    """One of the layers in place of another; the last of them has the bias."""

    weight: torch.Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


def as_thin(layer: Layer) -> Thin:
    """The layer itself, in the form of its factors.

    Args:
        layer: any.

    Returns:
        One layer, with the same weight.

    Example:
        >>> weights_of([as_thin(Layer(torch.ones(6, 4)))])
        24
    """
    return Thin(layer.weight, layer.stride, layer.padding, layer.dilation)


def weights_of(chain: Sequence[Thin]) -> int:
    """How many weights thin layers have, biases left out.

    Args:
        chain: of thin layers.

    Returns:
        Their number.

    Example:
        >>> weights_of([Thin(torch.ones(1, 4)), Thin(torch.ones(6, 1))])
        10
    """
    return sum(thin.weight.numel() for thin in chain)


def macs_of(chain: Sequence[Thin], size: Pair) -> int:
    """The multiply-accumulates of layers one after the other, for one sample.

    Args:
        chain: of thin layers, of linear ones with `size` (1, 1).
        size: height and width of the first one's inputs.

    Returns:
        Their number.

    Example:
        >>> macs_of([Thin(torch.ones(8, 3, 3, 3), stride=(2, 2), padding=(1, 1))], (32, 32)) == 16 * 16 * 8 * 27
        True
    """
    total = 0
    for thin in chain:
        if thin.weight.dim() == 4:
            axes = zip(size, thin.weight.shape[2:], thin.stride, thin.padding, thin.dilation, strict=True)
            size = tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in axes)  # type: ignore[assignment]
        total += size[0] * size[1] * thin.weight.numel()
    return total
