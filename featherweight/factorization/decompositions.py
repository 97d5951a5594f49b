"""Weights as products of thin factors: each method makes a chain of thin layers from one weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.errors import RequestError
from featherweight.factorization.layers import Layer, Thin

__all__ = [
    "METHODS",
    "Method",
    "factor_cp",
    "factor_separable",
    "factor_spatial",
    "factor_svd",
    "factor_tucker",
]


@dataclass(frozen=True)
class Method:
    """A way to factor.

    Attributes:
        fits: why it cannot factor this layer, or "".
        energies: squared singular values of the matrix that it approximates, decreasing; their number is the full rank.
        weights: (layer, rank) -> how many weights its thin layers have.
        factor: (layer, rank) -> thin layers.
        uses_data: whether it looks at `Layer.moments`.
    """

    fits: Callable[[Layer], str]
    energies: Callable[[Layer], torch.Tensor]
    weights: Callable[[Layer, int], int]
    factor: Callable[[Layer, int], list[Thin]]
    uses_data: bool = False


def factor_svd(layer: Layer, rank: int) -> list[Thin]:
    """Inputs to `rank` channels by a kernel of the old size, then these to the outputs, position by position.

    The truncated singular value decomposition of (outputs, inputs · height · width): the best approximation of the weight
    (Denton et al., NIPS 2014; Zhang et al., PAMI 2016), or with `moments` of the layer's outputs: W L = U S Vᵀ with L Lᵀ = XᵀX,
    so that the factors are U S and Vᵀ L⁻¹.

    Args:
        layer: any.
        rank: at least 1, at most the full rank.

    Returns:
        Two layers.

    Example:
        >>> first, second = factor_svd(Layer(torch.ones(6, 4)), 1)
        >>> first.weight.shape, second.weight.shape, (second.weight @ first.weight)[0, 0].item() == 1
        (torch.Size([1, 4]), torch.Size([6, 1]), True)
    """
    root = _root(layer.moments)
    left, values, right = _svd(_times(_matrix(layer), root))
    inner = right[:rank]
    if root is not None:
        inner = torch.linalg.solve_triangular(root, inner, upper=False, left=False)
    scale = values[:rank].sqrt()
    first = (scale[:, None] * inner).reshape(rank, *layer.weight.shape[1:])
    second = (left[:, :rank] * scale).reshape(len(left), rank, *(1 for _ in layer.weight.shape[2:]))
    kernel = Thin(first.to(layer.weight.dtype).contiguous(), layer.stride, layer.padding, layer.dilation)
    return [kernel, Thin(second.to(layer.weight.dtype).contiguous())]


def factor_spatial(layer: Layer, rank: int) -> list[Thin]:
    """A column of the kernel, then a row: inputs to `rank` channels by (height, 1), these to the outputs by (1, width).

    Scheme 2 of Jaderberg, Vedaldi and Zisserman (BMVC 2014): the truncated singular value decomposition of
    (outputs · width, inputs · height).

    Args:
        layer: a convolution.
        rank: at least 1, at most the full rank.

    Returns:
        Two layers.

    Example:
        >>> [thin.weight.shape for thin in factor_spatial(Layer(torch.ones(6, 4, 3, 5)), 2)]
        [torch.Size([2, 4, 3, 1]), torch.Size([6, 2, 1, 5])]
    """
    outputs, inputs, height, width = layer.weight.shape
    left, values, right = _svd(_spatial_matrix(layer))
    scale = values[:rank].sqrt()
    column = (scale[:, None] * right[:rank]).reshape(rank, inputs, height, 1)
    row = (left[:, :rank] * scale).reshape(outputs, width, rank).transpose(1, 2).reshape(outputs, rank, 1, width)
    (down, across), (top, side), (vertical, horizontal) = layer.stride, layer.padding, layer.dilation
    return [
        Thin(column.to(layer.weight.dtype).contiguous(), (down, 1), (top, 0), (vertical, 1)),
        Thin(row.to(layer.weight.dtype).contiguous(), (1, across), (0, side), (1, horizontal)),
    ]


def factor_tucker(layer: Layer, rank: int) -> list[Thin]:
    """Inputs to fewer channels, a small core of the old kernel size, and back: Tucker-2 (Kim et al., ICLR 2016).

    The core's inputs are `rank` channels; its outputs are as many in proportion, round(rank · outputs / inputs), at least 1.

    Args:
        layer: a convolution.
        rank: of the inputs, at least 1, at most their number.

    Returns:
        Three layers.

    Raises:
        RequestError: tensorly is not installed.

    Example:
        >>> [thin.weight.shape for thin in factor_tucker(Layer(torch.randn(6, 4, 3, 3)), 2)]
        [torch.Size([2, 4, 1, 1]), torch.Size([3, 2, 3, 3]), torch.Size([6, 3, 1, 1])]
    """
    outputs, inputs = layer.weight.shape[:2]
    ranks = [_output_rank(layer, rank), rank]
    core, (back, down) = _decompose("partial_tucker", layer.weight, rank=ranks, modes=[0, 1])
    weights = [down.T.reshape(rank, inputs, 1, 1), core, back.reshape(outputs, ranks[0], 1, 1)]
    first, middle, last = (weight.to(layer.weight.dtype).contiguous() for weight in weights)
    return [Thin(first), Thin(middle, layer.stride, layer.padding, layer.dilation), Thin(last)]


def factor_cp(layer: Layer, rank: int) -> list[Thin]:
    """Four thin layers: channels in, a column and a row for each channel, channels out (Lebedev et al., ICLR 2015).

    The canonical polyadic decomposition by alternating least squares, from the singular vectors.

    Args:
        layer: a convolution.
        rank: at least 1.

    Returns:
        Four layers, the two in the middle with a kernel for each channel.

    Raises:
        RequestError: tensorly is not installed.

    Example:
        >>> [tuple(thin.weight.shape) for thin in factor_cp(Layer(torch.randn(6, 4, 3, 3)), 5)]
        [(5, 4, 1, 1), (5, 1, 3, 1), (5, 1, 1, 3), (6, 5, 1, 1)]
    """
    weights, (outputs, inputs, rows, columns) = _decompose(
        "parafac", layer.weight, rank=rank, init="svd", random_state=0, n_iter_max=200, tol=1e-9, normalize_factors=True
    )
    scale = weights.abs() ** 0.25
    outputs = outputs * weights.sign()
    shapes = [(rank, -1, 1, 1), (rank, 1, -1, 1), (rank, 1, 1, -1)]
    thin = [(part * scale).T.reshape(shape) for part, shape in zip((inputs, rows, columns), shapes, strict=True)]
    last = (outputs * scale).reshape(-1, rank, 1, 1)
    first, column, row, last = (weight.to(layer.weight.dtype).contiguous() for weight in (*thin, last))
    (down, across), (top, side), (vertical, horizontal) = layer.stride, layer.padding, layer.dilation
    return [
        Thin(first),
        Thin(column, (down, 1), (top, 0), (vertical, 1), rank),
        Thin(row, (1, across), (0, side), (1, horizontal), rank),
        Thin(last),
    ]


def factor_separable(layer: Layer, rank: int) -> list[Thin]:
    """A depthwise separable convolution: `rank` kernels for each input channel, then all to the outputs, position by position.

    For each input channel the truncated singular value decomposition of (outputs, height · width): the best fit of the form of
    Howard et al. ("MobileNets", 2017), in which `rank` is the depth multiplier. With `moments` it is the best for the outputs
    that each input channel alone makes.

    Args:
        layer: a convolution.
        rank: at least 1, at most height · width.

    Returns:
        Two layers, the first with groups.

    Example:
        >>> [thin.weight.shape for thin in factor_separable(Layer(torch.randn(6, 4, 3, 3)), 1)]
        [torch.Size([4, 1, 3, 3]), torch.Size([6, 4, 1, 1])]
    """
    outputs, inputs, height, width = layer.weight.shape
    roots = _channel_roots(layer)
    left, values, right = _svd(_times(_channel_matrices(layer), roots))
    kernels = right[:, :rank]
    if roots is not None:
        kernels = torch.linalg.solve_triangular(roots, kernels, upper=False, left=False)
    scale = values[:, :rank].sqrt()
    depthwise = (scale[..., None] * kernels).reshape(inputs * rank, 1, height, width)
    pointwise = (left[..., :rank] * scale[:, None]).permute(1, 0, 2).reshape(outputs, inputs * rank, 1, 1)
    first = Thin(depthwise.to(layer.weight.dtype).contiguous(), layer.stride, layer.padding, layer.dilation, inputs)
    return [first, Thin(pointwise.to(layer.weight.dtype).contiguous())]


# what the methods approximate


def _matrix(layer: Layer) -> torch.Tensor:
    return layer.weight.double().flatten(1)


def _spatial_matrix(layer: Layer) -> torch.Tensor:
    outputs, inputs, height, width = layer.weight.shape
    return layer.weight.double().permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)


def _channel_matrices(layer: Layer) -> torch.Tensor:
    """(inputs, outputs, height · width)."""
    return layer.weight.double().flatten(2).transpose(0, 1)


def _channel_roots(layer: Layer) -> torch.Tensor | None:
    if layer.moments is None:
        return None
    inputs, entries = layer.weight.shape[1], layer.weight.shape[2] * layer.weight.shape[3]
    blocks = layer.moments.reshape(inputs, entries, inputs, entries).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return torch.stack([_root(block) for block in blocks])  # type: ignore[misc]


def _root(moments: torch.Tensor | None) -> torch.Tensor | None:
    """L, lower triangular, with L Lᵀ the moments, of which directions without data get a thousandth of the mean."""
    if moments is None:
        return None
    wide = moments.double()
    least = 1e-3 * wide.diagonal().mean().clamp_min(1e-12)
    root: torch.Tensor = torch.linalg.cholesky(wide + torch.diag(least.expand(len(wide))))
    return root


def _times(matrix: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
    return matrix if root is None else matrix @ root


def _svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _energies(matrix: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = torch.linalg.svdvals(matrix)
    return values.square()


def _svd_energies(layer: Layer) -> torch.Tensor:
    return _energies(_times(_matrix(layer), _root(layer.moments)))


def _spatial_energies(layer: Layer) -> torch.Tensor:
    return _energies(_spatial_matrix(layer))


def _input_energies(layer: Layer) -> torch.Tensor:
    """Of the inputs' unfolding, on which Tucker-2's input rank acts."""
    values = _energies(layer.weight.double().transpose(0, 1).flatten(1))
    return torch.cat([values, values.new_zeros(layer.weight.shape[1] - len(values))])


def _cp_energies(layer: Layer) -> torch.Tensor:
    """Of the matrix (outputs, the rest): a canonical polyadic decomposition needs at least that rank, and may need more."""
    return _energies(_matrix(layer))


def _separable_energies(layer: Layer) -> torch.Tensor:
    """Of all input channels together: rank r keeps the r largest of each."""
    return _energies(_times(_channel_matrices(layer), _channel_roots(layer))).sum(0)


def _output_rank(layer: Layer, rank: int) -> int:
    outputs, inputs = layer.weight.shape[:2]
    return max(1, min(outputs, round(rank * outputs / inputs)))


def _tucker_weights(layer: Layer, rank: int) -> int:
    outputs, inputs, height, width = layer.weight.shape
    back = _output_rank(layer, rank)
    return rank * inputs + back * rank * height * width + outputs * back


def _anything(layer: Layer) -> str:
    return ""


def _has_kernel(layer: Layer) -> str:
    if layer.weight.dim() != 4:
        return "it is no convolution"
    return "its kernel has one entry" if layer.weight.shape[2:].numel() == 1 else ""


def _has_channels(layer: Layer) -> str:
    """A separable layer's outputs mix as many planes as it has inputs: of an image's three, that is too few."""
    few = layer.weight.dim() == 4 and layer.weight.shape[1] < 4
    return _has_kernel(layer) or (f"it has {layer.weight.shape[1]} input channels, too few to keep apart" if few else "")


def _has_two_sides(layer: Layer) -> str:
    if layer.weight.dim() == 4 and 1 not in layer.weight.shape[2:]:
        return ""
    return _has_kernel(layer) or "its kernel is a single row or column"


METHODS: dict[str, Method] = {
    "svd": Method(_anything, _svd_energies, lambda layer, rank: rank * sum(_matrix(layer).shape), factor_svd, uses_data=True),
    "spatial": Method(
        _has_two_sides, _spatial_energies, lambda layer, rank: rank * sum(_spatial_matrix(layer).shape), factor_spatial
    ),
    "tucker": Method(_has_kernel, _input_energies, _tucker_weights, factor_tucker),
    "cp": Method(_has_two_sides, _cp_energies, lambda layer, rank: rank * sum(layer.weight.shape), factor_cp),
    "separable": Method(
        _has_channels,
        _separable_energies,
        lambda layer, rank: rank * layer.weight.shape[1] * (layer.weight[0, 0].numel() + len(layer.weight)),
        factor_separable,
        uses_data=True,
    ),
}
"""Ways to factor, by name."""


def _decompose(name: str, weight: torch.Tensor, **options: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What tensorly makes of a weight, in double precision: the core or the weights, and a factor for each mode."""
    try:
        import tensorly
        from tensorly import decomposition
    except ImportError as error:
        raise RequestError(
            "the methods 'tucker' and 'cp' need tensorly, which is not installed: pip install 'featherweight[factorization]'"
        ) from error
    with tensorly.backend_context("numpy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more components than a mode has entries, which is fine
        found = getattr(decomposition, name)(weight.detach().double().cpu().numpy(), **options)
    first, factors = found[0] if name == "partial_tucker" else found
    return torch.as_tensor(first).to(weight.device), [torch.as_tensor(factor).to(weight.device) for factor in factors]
