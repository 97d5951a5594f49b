"""Weight grids: weights that are integer multiples of a step, as a constraint that trains, and found again in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import Constraint
from featherweight.graph.functions import round_through

__all__ = ["MOST", "FoundGrid", "Grid", "find_grid"]

MOST = 2**15 - 1
"""The largest magnitude of an integer on a grid."""


class Grid(Constraint):
    """A weight on a grid: clamp(round(original / step), low, high) · step.

    The round passes gradients straight through, and the step is a parameter: together this is LSQ (Esser, McKinstry, Bablani,
    Appuswamy and Modha, ICLR 2020, equations 1 to 3), for which the gradient of the step need not be written down. Zero is
    always on the grid: a zero point z shifts the bounds, to qmin - z and qmax - z, and never the values, so that masks survive.

    Args:
        step: above 0; a scalar, or one axis for each of the weight's, of size 1 or the weight's; axis 1 may also have one entry
            for each group of inputs.
        low: the least integer, in [-32767, 0]; a number, or integers that broadcast to the step's shape.
        high: the greatest integer, in [0, 32767]; like `low`.
        group: with groups of inputs, the group of each, integers of shape (inputs,).

    Raises:
        RequestError: a step that is not positive and finite, or bounds without zero between them.

    Example:
        >>> grid = Grid(torch.tensor([[0.5], [0.25]]), -2, 1)
        >>> grid(torch.tensor([[0.6, -9.0], [0.6, -0.1]])).tolist()
        [[0.5, -1.0], [0.25, 0.0]]
    """

    step: nn.Parameter
    low: torch.Tensor
    high: torch.Tensor
    group: torch.Tensor | None

    def __init__(
        self, step: torch.Tensor, low: torch.Tensor | int, high: torch.Tensor | int, group: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        least, greatest = (torch.as_tensor(b, dtype=torch.int32, device=step.device).expand(step.shape) for b in (low, high))
        if not bool((torch.isfinite(step) & (step > 0)).all()):
            raise RequestError("a grid's step must be positive and finite, got one that is not; are the weights finite?")
        if not bool(((least >= -MOST) & (least <= 0) & (greatest >= 0) & (greatest <= MOST)).all()):
            raise RequestError(f"a grid's bounds must have zero between them and be at most {MOST}, got {low} and {high}")
        self.step = nn.Parameter(step.detach().clone())
        self.register_buffer("low", least.clone())
        self.register_buffer("high", greatest.clone())
        self.register_buffer("group", group)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The nearest value of the grid for each entry; never a negative zero."""
        step, low, high = (self.spread(each) for each in (self.step, self.low, self.high))
        return (round_through(original / step).clamp(low, high) + 0.0) * step

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight itself."""
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Keeps only `indices` of the weight's `axis`; groups of inputs may become uneven."""
        indices = indices.to(self.step.device)
        if axis == 1 and self.group is not None:
            self.group = self.group[indices]
        elif self.step.dim() and self.step.shape[axis] > 1:
            self.step = nn.Parameter(self.step.detach().index_select(axis, indices), requires_grad=self.step.requires_grad)
            self.low, self.high = (bound.index_select(axis, indices) for bound in (self.low, self.high))

    def spread(self, entries: torch.Tensor) -> torch.Tensor:
        """Entries of the step's shape so that they broadcast to the weight's: each input gets those of its group."""
        return entries if self.group is None else entries.index_select(1, self.group)


@dataclass(frozen=True)
class FoundGrid:
    """A weight as exact multiples of steps: `integers.to(steps.dtype) * steps` is the weight, bit for bit.

    Args:
        steps: of the weight's dtype, as many axes as the weight, of size 1 but for the axis asked for; a slice of zeros has 1.
        integers: int16, the weight's shape, above -2¹⁵.
    """

    steps: torch.Tensor
    integers: torch.Tensor


def find_grid(weight: torch.Tensor, axis: int | None = None) -> FoundGrid | None:
    """The largest steps of which all values of a tensor are exact multiples, if there are any.

    What a `Grid` leaves after folding is found again here; the steps may be larger than its own, where all integers of a slice
    have a common factor. A slice of very few distinct values may lie on a fine grid by accident, which is as exact.

    Args:
        weight: any tensor; only floats of 16 bits and more can have a grid.
        axis: one step for each slice along it; None is one step for all.

    Returns:
        The grid; None where some slice has none with integers below 2¹⁵, or holds a negative zero, infinity or NaN.

    Example:
        >>> find_grid(torch.tensor([[0.3, -0.6], [0.0, 0.125]]), 0).integers.tolist()
        [[1, -2], [0, 1]]
        >>> find_grid(torch.tensor([1.0, 1.00001, 3.14159])) is None
        True
    """
    if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel():
        return None
    weight = weight.detach()
    if not bool(torch.isfinite(weight).all()) or bool((weight.signbit() & (weight == 0)).any()):
        return None
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    steps = _largest_steps(rows.abs())
    if steps is None:
        return None
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    steps = steps.reshape(shape)
    return FoundGrid(steps, torch.round(weight.double() / steps.double()).to(torch.int16))


def _largest_steps(rows: torch.Tensor) -> torch.Tensor | None:
    """For each row of magnitudes (rows, columns) its largest step, 1 for a row of zeros; None if some row has none."""
    least = torch.where(rows > 0, rows, torch.inf).amin(1)
    steps = torch.where(least.isinf(), 1, least)
    solved = least.isinf()
    open_rows = (~solved).nonzero().flatten()
    if len(open_rows) and _largest_step(rows[open_rows[0]]) is None:
        return None  # plain weights are told by their first row
    for count in range(1, 9):  # nearly always the least magnitude is a small multiple
        for candidate in _near(least[open_rows].double() / count, rows.dtype):
            fits = _fits(rows[open_rows], candidate[:, None]).all(1) & ~solved[open_rows]
            steps[open_rows[fits]] = candidate[fits]
            solved[open_rows[fits]] = True
        open_rows = (~solved).nonzero().flatten()
    for row in open_rows.tolist():
        step = _largest_step(rows[row])
        if step is None:
            return None
        steps[row] = step
    return steps


def _largest_step(row: torch.Tensor) -> torch.Tensor | None:
    """The largest step of one row of magnitudes, not all zero."""
    values = row[row > 0]
    least, greatest = values.min().double(), values.max().double()
    counts = torch.arange(1, int(MOST * least / greatest) + 1, dtype=torch.float64, device=row.device)
    slack = 4 * torch.finfo(row.dtype).eps
    for value in torch.cat([greatest[None], values[:64].double()]):  # which multiples of its step can the least magnitude be?
        ratio = value / least * counts
        counts = counts[(ratio - ratio.round()).abs() <= slack * ratio]
        if not len(counts):
            return None
    for count in counts:
        for candidate in _near(least / count, row.dtype):
            if bool(_fits(values, candidate).all()):
                return candidate
    return None


def _near(step: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The numbers of a dtype that rounding may have led from, largest first: the nearest and its neighbours."""
    nearest = step.to(dtype)
    return [_next(nearest, torch.inf), nearest, _next(nearest, 0)]


def _next(value: torch.Tensor, towards: float) -> torch.Tensor:
    """The next positive number of the value's dtype; torch's own `nextafter` knows no float16."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return (value.view(bits) + (1 if towards else -1)).view(value.dtype)


def _fits(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Which values are a multiple of the step, computed in their own dtype as a `Grid` computes it."""
    multiples = torch.round(values.double() / step.double())
    return (multiples.to(values.dtype) * step == values) & (multiples <= MOST)
