"""A layer as factoring sees it, and the thin layers in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Branches", "Layer", "Pair", "Replacement", "Thin", "as_thin", "macs_of", "weights_of"]

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


@dataclass(frozen=True)
class Branches:
    """A thin convolution, and two on what it gives: their outputs side by side, in the order of the layer's own.

    Attributes:
        first: gets the layer's inputs.
        left: gives the first outputs; None where they are those of `first` as they are.
        right: gives the others.
        order: for each output of the layer its place among the left ones, then the right ones, shape (outputs,).
    """

    first: Thin
    left: Thin | None
    right: Thin
    order: torch.Tensor

    @property
    def parts(self) -> dict[str, Thin]:
        """Its convolutions, by the names they have in a network."""
        named = {"first": self.first, "left": self.left, "right": self.right}
        return {name: thin for name, thin in named.items() if thin is not None}


Replacement = Sequence[Thin] | Branches
"""What is put in the place of a layer: thin ones one after the other, or branches."""


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


def weights_of(chain: Replacement) -> int:
    """How many weights thin layers have, biases left out.

    Args:
        chain: of thin layers, or branches.

    Returns:
        Their number.

    Example:
        >>> weights_of([Thin(torch.ones(1, 4)), Thin(torch.ones(6, 1))])
        10
    """
    parts = chain.parts.values() if isinstance(chain, Branches) else chain
    return sum(thin.weight.numel() for thin in parts)


def macs_of(chain: Replacement, size: Pair) -> int:
    """The multiply-accumulates of thin layers, for one sample.

    Args:
        chain: of thin layers, of linear ones with `size` (1, 1); or branches.
        size: height and width of the first one's inputs.

    Returns:
        Their number.

    Example:
        >>> macs_of([Thin(torch.ones(8, 3, 3, 3), stride=(2, 2), padding=(1, 1))], (32, 32)) == 16 * 16 * 8 * 27
        True
    """
    if isinstance(chain, Branches):
        inner = _output_size(chain.first, size)
        sides = [thin for name, thin in chain.parts.items() if name != "first"]
        return macs_of([chain.first], size) + sum(macs_of([thin], inner) for thin in sides)
    total = 0
    for thin in chain:
        size = _output_size(thin, size)
        total += size[0] * size[1] * thin.weight.numel()
    return total


def _output_size(thin: Thin, size: Pair) -> Pair:
    if thin.weight.dim() != 4:
        return size
    axes = zip(size, thin.weight.shape[2:], thin.stride, thin.padding, thin.dilation, strict=True)
    height, width = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in axes)
    return height, width
