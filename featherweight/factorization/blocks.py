"""Compact blocks in the place of convolutions, each as near to the old weight as its form allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from featherweight.factorization.decompositions import METHODS, factor_separable
from featherweight.factorization.layers import Branches, Layer, Replacement, Thin

__all__ = ["BLOCKS", "Block", "make_fire", "make_ghost", "make_separable"]

_GHOST_KERNEL = 3


@dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
        fits: why it cannot stand for this layer, or "".
        make: (layer, size, at least 1) -> what is put in its place, without a bias.
        sized: whether it comes in several sizes.
    """

    fits: Callable[[Layer], str]
    make: Callable[[Layer, int], Replacement]
    sized: bool = True


def make_separable(layer: Layer, size: int) -> list[Thin]:
    """A depthwise separable convolution (Howard et al., "MobileNets", 2017): `factor_separable` of rank `size`.

    Args:
        layer: a convolution.
        size: kernels for each input channel; at most as many as a kernel has entries, or the layer outputs.

    Returns:
        Two layers.

    Example:
        >>> [tuple(thin.weight.shape) for thin in make_separable(Layer(torch.randn(16, 8, 3, 3)), 1)]
        [(8, 1, 3, 3), (16, 8, 1, 1)]
    """
    return factor_separable(layer, min(size, len(layer.weight), layer.weight[0, 0].numel()))


def make_fire(layer: Layer, size: int) -> Branches:
    """A fire module (Iandola et al., "SqueezeNet", 2016): 1x1 to few channels, then half the outputs by 1x1, half by k x k.

    The squeeze is onto the leading singular vectors of the weight's input channels, weighted by how strong these are in the
    data; the weights behind it are the best by least squares, and those outputs get a 1x1 kernel that lose least by it. Unlike
    theirs there is no ReLU after the squeeze, so that block and layer are both linear.

    Args:
        layer: a convolution with odd kernel sides that keeps the size, but for its stride.
        size: of the squeeze, in eighths of the outputs.

    Returns:
        The squeeze, and the two that expand.

    Example:
        >>> {name: tuple(thin.weight.shape) for name, thin in make_fire(Layer(torch.randn(16, 8, 3, 3)), 1).parts.items()}
        {'first': (2, 8, 1, 1), 'left': (8, 2, 1, 1), 'right': (8, 2, 3, 3)}
    """
    weight, moments = layer.weight.double(), _moments(layer)
    outputs, inputs, *kernel = weight.shape
    entries, centre = kernel[0] * kernel[1], kernel[0] * kernel[1] // 2
    squeezed = min(size * max(1, outputs // 8), inputs)
    by_entry = moments.reshape(inputs, entries, inputs, entries).diagonal(dim1=1, dim2=3).mean(-1)
    strengths = by_entry.diagonal().sqrt().clamp_min(1e-6 * float(by_entry.diagonal().max().sqrt()))
    unfolded = weight.transpose(0, 1).flatten(1).T * strengths
    squeeze = (torch.linalg.svd(unfolded, full_matrices=False).Vh[:squeezed] / strengths).contiguous()
    whole = torch.kron(squeeze, torch.eye(entries, dtype=weight.dtype, device=weight.device))
    wide, wide_gains = _least_squares(weight.flatten(1), whole, moments)
    narrow, narrow_gains = _least_squares(weight.flatten(1), whole[centre::entries], moments)
    order = (wide_gains - narrow_gains).argsort()  # what an output loses without its k x k kernel
    left, right = order[: outputs // 2], order[outputs // 2 :]
    dtype = layer.weight.dtype
    return Branches(
        Thin(squeeze.reshape(squeezed, inputs, 1, 1).to(dtype)),
        Thin(narrow[left].reshape(-1, squeezed, 1, 1).to(dtype), layer.stride),
        Thin(wide[right].reshape(-1, squeezed, *kernel).to(dtype), layer.stride, layer.padding, layer.dilation),
        order.argsort(),
    )


def make_ghost(layer: Layer, size: int = 1) -> Branches:
    """A ghost module (Han et al., "GhostNet", 2020): half of the outputs as before, and a depthwise 3x3 convolution of each.

    Outputs are paired, most alike first: of a pair the one stays from which the other is best made, times a number found by
    least squares on the data, which starts as the middle of the 3x3 kernel. Unlike theirs there is no norm nor ReLU between the
    two, so that block and layer are both linear.

    Args:
        layer: a convolution with an even number of outputs.
        size: there is but one.

    Returns:
        The convolution to half of the outputs, and the depthwise one; the left ones are the outputs as they are.

    Example:
        >>> {name: tuple(thin.weight.shape) for name, thin in make_ghost(Layer(torch.randn(16, 8, 3, 3))).parts.items()}
        {'first': (8, 8, 3, 3), 'right': (8, 1, 3, 3)}
    """
    weight = layer.weight.double().flatten(1)
    alike = weight @ _moments(layer) @ weight.T
    energy = alike.diagonal().clamp_min(0)
    factors = torch.where(energy > 0, alike / energy, 0.0).T  # of the row's output, to make the column's
    errors = energy[None] - factors * alike
    errors.fill_diagonal_(torch.inf)
    kept, made = [], []
    for _ in range(len(weight) // 2):
        best = int(errors.argmin())
        pair = best // len(weight), best % len(weight)
        kept.append(pair[0])
        made.append(pair[1])
        errors[list(pair)] = torch.inf
        errors[:, list(pair)] = torch.inf
    cheap = weight.new_zeros(len(made), 1, _GHOST_KERNEL, _GHOST_KERNEL)
    cheap[:, 0, _GHOST_KERNEL // 2, _GHOST_KERNEL // 2] = factors[kept, made]
    return Branches(
        Thin(layer.weight[kept].clone(), layer.stride, layer.padding, layer.dilation),
        None,
        Thin(cheap.to(layer.weight.dtype), padding=(_GHOST_KERNEL // 2,) * 2, groups=len(made)),
        torch.tensor(kept + made, device=weight.device).argsort(),
    )


def _moments(layer: Layer) -> torch.Tensor:
    """XᵀX of the inputs, with a little more on its diagonal; without data that of white noise."""
    columns = layer.weight[0].numel()
    white = torch.eye(columns, dtype=torch.float64, device=layer.weight.device)
    if layer.moments is None:
        return white
    wide = layer.moments.double()
    return wide + 1e-6 * wide.diagonal().mean().clamp_min(1e-12) * white


def _least_squares(weight: torch.Tensor, rows: torch.Tensor, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The coefficients with which `rows` come nearest to the weight's, and how much of each output's energy these explain."""
    products = weight @ moments @ rows.T
    found = products @ torch.linalg.pinv(rows @ moments @ rows.T, hermitian=True)
    return found, (found * products).sum(1)


def _fits_fire(layer: Layer) -> str:
    if why := METHODS["separable"].fits(layer):
        return why
    kernel = layer.weight.shape[2:]
    same = all(k % 2 and 2 * p == d * (k - 1) for k, p, d in zip(kernel, layer.padding, layer.dilation, strict=True))
    return "" if same else "it changes the size by its kernel, which the 1x1 half of a fire module does not"


def _fits_ghost(layer: Layer) -> str:
    if layer.weight.dim() != 4:
        return "it is no convolution"
    return f"it has {len(layer.weight)} outputs, which cannot be halved" if len(layer.weight) % 2 else ""


BLOCKS: dict[str, Block] = {
    "separable": Block(METHODS["separable"].fits, make_separable),
    "fire": Block(_fits_fire, make_fire),
    "ghost": Block(_fits_ghost, make_ghost, sized=False),
}
"""Compact blocks by name."""
