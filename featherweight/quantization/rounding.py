"""Which way each weight is rounded to its grid: to the nearest value, or so that the layer's outputs change least.

A layer's rows are (rows, columns); the outputs of a row change by (v - w)ᵀ H (v - w) in square when its weights w become v,
with H = XᵀX of its inputs (`training.inputs.input_hessians`). Weights that are 0 stay 0. To add a rounding, write a function
and a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from featherweight.errors import RequestError, check, look_up
from featherweight.quantization.grid import Grid

__all__ = [
    "ROUNDINGS",
    "Rounding",
    "round_feeding_forward",
    "round_learned",
    "round_nearest",
    "round_one_by_one",
    "round_weight",
]

Rounding = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(weight, steps, low, high, hessian) -> integers in [low, high], in the weight's dtype.

Weight, steps and bounds are (…, rows, columns), with 0 within the bounds; the Hessian is (…, columns, columns) and positive
definite, one for each group of a layer. A weight of 0 becomes 0.
"""

_BLOCK = 128  # columns whose errors are passed on together
_ELEMENTS_AT_ONCE = 2**18  # of inverse Hessians worked on together: what fits in a cache
_ITERATIONS = 1000  # of the descent that learns a rounding
_RATE = 0.1
_SHARPEST, _BLUNTEST = 2.0, 20.0  # exponents of the regulariser, at the end and at first
_WARM_UP = 0.2  # of the iterations, without regulariser
_REGULARISATION = 0.3
_STRETCH = 1.2  # of the sigmoid, about 1/2, so that it reaches 0 and 1


def round_nearest(
    weight: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """Each weight to the nearest value of its grid; halves to the even one.

    Args:
        weight: (…, rows, columns).
        steps: as `weight`, above 0.
        low: as `weight`, whole numbers, at most 0.
        high: as `weight`, whole numbers, at least 0.
        hessian: not looked at.

    Returns:
        Whole numbers in [low, high], as `weight`.

    Example:
        >>> ones = torch.ones(1, 3)
        >>> round_nearest(torch.tensor([[0.4, -2.6, 9.0]]), ones, -2 * ones, 3 * ones, torch.eye(3)).tolist()
        [[0.0, -2.0, 3.0]]
    """
    return torch.round(weight / steps).clamp(low, high)


def round_feeding_forward(
    weight: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """GPTQ: column after column to the nearest value; the columns that are still to come make up for the error.

    Frantar, Ashkboos, Hoefler and Alistarh (ICLR 2023, algorithm 1): what is still to come is changed by least squares, which
    the Cholesky factor of the inverse of H gives for all columns at once, and in blocks. The columns with the largest inputs
    go first, while there are many left to make up for them (the order their code has as an option).

    Args:
        weight: (…, rows, columns).
        steps: as `weight`, above 0.
        low: as `weight`, whole numbers, at most 0.
        high: as `weight`, whole numbers, at least 0.
        hessian: (…, columns, columns), positive definite.

    Returns:
        Whole numbers in [low, high], as `weight`.

    Example:
        >>> ones, hessian = torch.ones(1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> round_feeding_forward(torch.tensor([[0.4, 0.4]]), ones, -ones, ones, hessian).tolist()  # 0.8 in all is near 1
        [[0.0, 1.0]]
    """
    order = hessian.diagonal(dim1=-2, dim2=-1).argsort(descending=True, stable=True)
    along, down = order.unsqueeze(-2), order.unsqueeze(-1)
    factor = torch.linalg.cholesky(_inverse(hessian.take_along_dim(down, -2).take_along_dim(along, -1)), upper=True)
    weight, steps, low, high = (tensor.take_along_dim(along, -1) for tensor in (weight, steps, low, high))
    masked, columns = weight == 0, weight.shape[-1]
    integers, errors = torch.empty_like(weight), torch.empty_like(weight)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        for c in range(start, end):
            nearest = torch.round(weight[..., c] / steps[..., c]).clamp(low[..., c], high[..., c])
            integers[..., c] = nearest.masked_fill(masked[..., c], 0)
            errors[..., c] = (weight[..., c] - integers[..., c] * steps[..., c]) / factor[..., c, c, None]
            weight[..., c + 1 : end] -= errors[..., c, None] * factor[..., c, None, c + 1 : end]
        weight[..., end:] -= errors[..., start:end] @ factor[..., start:end, end:]
    return integers.take_along_dim(order.argsort().unsqueeze(-2), -1)


def round_one_by_one(
    weight: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """OBQ: in each row the weight whose rounding costs least is rounded, the others make up for it, and so on.

    Frantar, Singh and Alistarh (NeurIPS 2022, section 5), with their rule for outliers: a weight that lies more than half a
    step off its grid goes at once, the farthest first. Takes of the order of rows · columns³ operations.

    Args:
        weight: (…, rows, columns).
        steps: as `weight`, above 0.
        low: as `weight`, whole numbers, at most 0.
        high: as `weight`, whole numbers, at least 0.
        hessian: (…, columns, columns), positive definite.

    Returns:
        Whole numbers in [low, high], as `weight`.

    Example:
        >>> ones, hessian = torch.ones(1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> round_one_by_one(torch.tensor([[0.4, 0.4]]), ones, -ones, ones, hessian).tolist()
        [[0.0, 1.0]]
    """
    shape, columns = weight.shape, weight.shape[-1]
    inverses = _inverse(hessian).unsqueeze(-3).expand(*shape, columns).reshape(-1, columns, columns)
    tensors = (*(tensor.reshape(-1, columns) for tensor in (weight, steps, low, high)), inverses)
    parts = zip(*(tensor.split(max(1, _ELEMENTS_AT_ONCE // columns**2)) for tensor in tensors), strict=True)
    return torch.cat([_round_some_rows(*part) for part in parts]).reshape(shape)


def _round_some_rows(
    weight: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor, inverses: torch.Tensor
) -> torch.Tensor:
    """`round_one_by_one` for as many rows as have room for an inverse Hessian each, (rows, columns, columns)."""
    rows, columns = weight.shape
    weight, masked, every = weight.clone(), weight == 0, torch.arange(rows, device=weight.device)
    inverses = inverses.clone()
    done, integers = torch.zeros_like(masked), torch.zeros_like(weight)
    for _ in range(columns):
        rounded = torch.round(weight / steps).clamp(low, high).masked_fill(masked, 0)
        errors = weight - rounded * steps
        costs = errors.square() / inverses.diagonal(dim1=1, dim2=2)
        off = errors.abs() / steps
        costs = torch.where((off > 0.5) & ~masked, -off, costs).masked_fill(done, torch.inf)
        column = costs.argmin(dim=1)
        integers[every, column] = rounded[every, column]
        done[every, column] = True
        line = inverses[every, column]
        pivot = line[every, column, None]
        weight -= line * (errors[every, column, None] / pivot)
        inverses -= line[:, :, None] * (line / pivot)[:, None, :]
    return integers


def round_learned(
    weight: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """AdaRound: up or down, learned by gradient descent on how much the outputs change.

    Nagel, Amjad, van Baalen, Louizos and Blankevoort (ICML 2020, section 3.3): each weight is ⌊w/s⌋ + h, with h a rectified
    sigmoid that starts at w/s - ⌊w/s⌋ and is driven to 0 or 1 by 1 - |2h - 1|^β as β falls. Deviations: the descent is on
    (v - w)ᵀ H (v - w) itself, over all samples at once; they draw batches, feed each layer with what the quantized ones before
    it give, and look behind its ReLU. A thousand iterations at rate 0.1 take the place of ten thousand.

    Args:
        weight: (…, rows, columns).
        steps: as `weight`, above 0.
        low: as `weight`, whole numbers, at most 0.
        high: as `weight`, whole numbers, at least 0.
        hessian: (…, columns, columns), positive definite.

    Returns:
        Whole numbers in [low, high], as `weight`: each weight's ⌊w/s⌋ or one more, as far as the bounds allow.

    Example:
        >>> ones, hessian = torch.ones(1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> round_learned(torch.tensor([[0.4, 0.45]]), ones, -ones, ones, hessian).tolist()
        [[0.0, 1.0]]
    """
    weight, steps, low, high, hessian = (tensor.float() for tensor in (weight, steps, low, high, hessian))
    floor, masked = torch.floor(weight / steps), weight == 0
    squares = hessian.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    scale = (squares * steps.square()).mean(dim=-1, keepdim=True)  # so that all layers need the same regularisation
    share = (weight / steps - floor).clamp(0.01, 0.99)
    slope = torch.logit((share - 0.5) / _STRETCH + 0.5).requires_grad_()
    descent = torch.optim.Adam([slope], lr=_RATE)
    for iteration in range(_ITERATIONS):
        descent.zero_grad()
        with torch.enable_grad():
            up = _rectified_sigmoid(slope)
            change = (floor + up).clamp(low, high).masked_fill(masked, 0) * steps - weight
            pull = change.detach() @ hessian / scale  # half the gradient of the quadratic form
            loss = 2 * (pull * change).sum() + _REGULARISATION * _undecided(up, iteration)
            loss.backward()
        descent.step()
    return (floor + (_rectified_sigmoid(slope.detach()) >= 0.5)).clamp(low, high).masked_fill(masked, 0)


def _rectified_sigmoid(slope: torch.Tensor) -> torch.Tensor:
    return ((torch.sigmoid(slope) - 0.5) * _STRETCH + 0.5).clamp(0, 1)


def _undecided(up: torch.Tensor, iteration: int) -> torch.Tensor:
    """The regulariser: 0 where all are up or down."""
    progress = (iteration / _ITERATIONS - _WARM_UP) / (1 - _WARM_UP)
    if progress < 0:
        return up.new_zeros(())
    beta = _SHARPEST + (_BLUNTEST - _SHARPEST) * (1 + math.cos(math.pi * progress)) / 2
    return (1 - (2 * up - 1).abs().pow(beta)).sum()


def _inverse(hessian: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


ROUNDINGS: dict[str, Rounding] = {
    "nearest": round_nearest,
    "gptq": round_feeding_forward,
    "obq": round_one_by_one,
    "adaround": round_learned,
}


@torch.no_grad()
def round_weight(
    weight: torch.Tensor,
    grid: Grid,
    *,
    rounding: str = "nearest",
    hessians: torch.Tensor | None = None,
    damping: float = 0.01,
) -> torch.Tensor:
    """A weight on a grid, so that the grid leaves it as it is: what `grid(weight)` is for another rounding.

    A row whose outputs change less when it is rounded to nearest is rounded to nearest. Zeros stay zeros.

    Args:
        weight: of a linear or convolution layer, its outputs first; finite.
        grid: for a weight of this shape.
        rounding: a name in `ROUNDINGS`.
        hessians: (groups, columns, columns), as `input_hessians` gives them; only "nearest" does without.
        damping: above 0; so many times the mean of its diagonal is added to the diagonal of each Hessian.

    Returns:
        The new weight, of the same shape and dtype.

    Raises:
        RequestError: an unknown name, no Hessians, or some that do not fit or are not finite.

    Example:
        >>> grid, hessians = Grid(torch.tensor(1.0), -1, 1), torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
        >>> round_weight(torch.tensor([[0.4, 0.45]]), grid).tolist()
        [[0.0, 0.0]]
        >>> round_weight(torch.tensor([[0.4, 0.45]]), grid, rounding="gptq", hessians=hessians).tolist()
        [[0.0, 1.0]]
    """
    method = look_up(ROUNDINGS, rounding, "rounding")
    check("damping", damping, "above 0", damping > 0)
    nearest: torch.Tensor = grid(weight)
    if rounding == "nearest":
        return nearest
    damped = _damped(weight, hessians, damping, rounding)
    step, low, high = (grid.spread(each).expand(weight.shape) for each in (grid.step, grid.low, grid.high))
    rows, steps, lows, highs = (_rows(each, damped) for each in (weight, step, low, high))
    integers = method(rows, steps, lows, highs, damped)
    rounded = (
        integers.reshape(weight.shape).to(weight.dtype) + 0.0
    ) * step  # as the grid computes it; 0.0 takes the sign of -0
    better = _cost(rounded - weight, damped) < _cost(nearest - weight, damped)
    return torch.where(better.reshape(-1, *[1] * (weight.dim() - 1)), rounded, nearest)


def _damped(weight: torch.Tensor, hessians: torch.Tensor | None, damping: float, rounding: str) -> torch.Tensor:
    """The Hessians in float64, positive definite."""
    if hessians is None:
        raise RequestError(f"the rounding {rounding!r} needs data to see what a layer's inputs are, got none; pass calibrate=")
    columns = weight[0].numel()
    fits = hessians.dim() == 3 and hessians.shape[1:] == (columns, columns) and len(weight) % max(1, len(hessians)) == 0
    shape = tuple(hessians.shape)
    check("hessians", shape, f"(groups, {columns}, {columns}) for a weight {tuple(weight.shape)}", fits)
    if not bool(torch.isfinite(hessians).all()):
        raise RequestError("the inputs of a layer must be finite, got NaN or infinity; check the data and the weights")
    exact = hessians.double()
    mean = exact.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    return exact + torch.diag_embed((damping * torch.where(mean > 0, mean, 1.0)).expand(len(exact), columns))


def _rows(tensor: torch.Tensor, hessians: torch.Tensor) -> torch.Tensor:
    """A tensor of a weight's shape as (groups, rows, columns)."""
    return tensor.double().reshape(len(hessians), -1, hessians.shape[1])


def _cost(change: torch.Tensor, hessians: torch.Tensor) -> torch.Tensor:
    """By how much the outputs of each row change, in square."""
    rows = _rows(change, hessians)
    return ((rows @ hessians) * rows).sum(dim=2).flatten()
