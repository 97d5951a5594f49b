"""What goes as one piece: single weights, N of every M neighbours, blocks, kernels, rows.

A granularity is a word of `GRANULARITIES`, a block "RxC" ("16x16"), or a pattern "N:M" ("2:4": of every 4 neighbours 2 stay).
To add a word, write a function from a shape to the number of each entry's unit, and a row.

A unit's score is the mean of its entries', so that the smaller blocks at the edges, and the rows of different layers, compare.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch

from featherweight.errors import RequestError, look_up

__all__ = [
    "GRANULARITIES",
    "Units",
    "keep_pattern",
    "number_blocks",
    "number_entries",
    "number_kernels",
    "number_rows",
    "pattern_of",
    "settle_units",
    "share_scores",
    "units_of",
]

Units = Callable[[torch.Size], torch.Tensor]
"""A weight's shape -> the number of the unit that each entry belongs to: int64, of that shape."""


def number_entries(shape: torch.Size) -> torch.Tensor:
    """Each entry by itself.

    Args:
        shape: any.

    Returns:
        0, 1, 2, … in that shape.

    Example:
        >>> number_entries(torch.Size([2, 2])).tolist()
        [[0, 1], [2, 3]]
    """
    return torch.arange(math.prod(shape)).reshape(shape)


def number_rows(shape: torch.Size) -> torch.Tensor:
    """All weights of one output: the row of a matrix, the filter of a convolution.

    Args:
        shape: of two or more axes, outputs first.

    Returns:
        The index along axis 0, in that shape.

    Raises:
        RequestError: there are fewer axes.

    Example:
        >>> number_rows(torch.Size([2, 3])).tolist()
        [[0, 0, 0], [1, 1, 1]]
    """
    _check_axes(shape, 2, "rows")
    return torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def number_kernels(shape: torch.Size) -> torch.Tensor:
    """The weights between one input and one output channel of a convolution (Mao et al., 2017: kernel level, 2-D).

    Args:
        shape: of three or more axes, the first two channels.

    Returns:
        A number for each pair of channels, in that shape.

    Raises:
        RequestError: there are fewer axes.

    Example:
        >>> number_kernels(torch.Size([1, 2, 1, 2])).tolist()
        [[[[0, 0]], [[1, 1]]]]
    """
    _check_axes(shape, 3, "kernels")
    return number_entries(shape[:2]).reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)


def number_blocks(shape: torch.Size, *, height: int, width: int) -> torch.Tensor:
    """Tiles of a matrix; those at the right and lower edge are smaller where the sides do not divide (Gray et al., 2017).

    Args:
        shape: of two or more axes; all but the first are taken as one, as they lie in memory.
        height: rows of a tile, at least 1.
        width: columns of a tile, at least 1.

    Returns:
        A number for each tile, in that shape.

    Raises:
        RequestError: there are fewer axes.

    Example:
        >>> number_blocks(torch.Size([2, 5]), height=2, width=2).tolist()
        [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2]]
    """
    _check_axes(shape, 2, "blocks")
    rows, columns = shape[0], math.prod(shape[1:])
    tiles = torch.arange(rows)[:, None] // height * -(-columns // width) + torch.arange(columns) // width
    return tiles.reshape(shape)


GRANULARITIES: dict[str, Units] = {
    "element": number_entries,
    "kernel": number_kernels,
    "row": number_rows,
    "filter": number_rows,  # what a row is called in a convolution
}


def units_of(granularity: str) -> Units:
    """The units that a granularity's name stands for, patterns apart.

    Args:
        granularity: a name in `GRANULARITIES`, or a block: "4x1" is 4 outputs by 1 input.

    Returns:
        The function that numbers them.

    Raises:
        RequestError: there is no such granularity.

    Example:
        >>> units_of("1x2")(torch.Size([1, 4])).tolist()
        [[0, 0, 1, 1]]
    """
    block = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", granularity)
    if block is None:
        return look_up(GRANULARITIES, granularity, "granularity, if no block like 16x16 and no pattern like 2:4,")
    height, width = map(int, block.groups())
    return lambda shape: number_blocks(shape, height=height, width=width)


def pattern_of(granularity: str) -> tuple[int, int] | None:
    """N and M of a pattern "N:M".

    Args:
        granularity: any name.

    Returns:
        Of every M neighbours N stay; None for what is no pattern.

    Raises:
        RequestError: a pattern that does not keep at least 1 of M and remove at least 1.

    Example:
        >>> pattern_of("2:4"), pattern_of("element")
        ((2, 4), None)
    """
    pattern = re.fullmatch(r"(\d+):(\d+)", granularity)
    if pattern is None:
        return None
    kept, of = map(int, pattern.groups())
    if not 0 < kept < of:
        raise RequestError(f"a pattern N:M must keep at least 1 of M and remove at least 1, got {granularity!r}")
    return kept, of


def keep_pattern(scores: torch.Tensor, kept: int, of: int) -> torch.Tensor:
    """The highest `kept` of every `of` neighbours along the input axis; of equal scores the earlier goes first.

    Neighbours are consecutive inputs of one output (Zhou et al., ICLR 2021), in a convolution at one position of the kernel:
    what sparse tensor cores multiply with. An entry scored -inf is gone already and stays so, also where fewer than `kept` are
    left.

    Args:
        scores: (outputs, inputs, …), inputs a multiple of `of`.
        kept: how many stay.
        of: how many neighbours there are.

    Returns:
        A bool tensor of that shape, True where the entry stays.

    Raises:
        RequestError: there is no input axis, or it does not divide.

    Example:
        >>> keep_pattern(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2, 4).tolist()
        [[False, True, True, False]]
    """
    _check_axes(scores.shape, 2, "patterns")
    if scores.shape[1] % of:
        raise RequestError(f"inputs must be a multiple of {of} for the pattern {kept}:{of}, got {scores.shape[1]}")
    inputs_last = scores.movedim(1, -1)
    neighbours = inputs_last.reshape(-1, of)
    keep = torch.ones_like(neighbours, dtype=torch.bool)
    keep.scatter_(1, neighbours.argsort(dim=1, stable=True)[:, : of - kept], False)
    keep &= neighbours > -torch.inf
    return keep.reshape(inputs_last.shape).movedim(-1, 1).contiguous()


def share_scores(scores: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Gives each entry the mean score of its unit; -inf, for an entry that is gone already, stays and counts in no mean.

    Args:
        scores: any shape.
        units: each entry's unit, of that shape.

    Returns:
        float64 scores of that shape.

    Example:
        >>> share_scores(torch.tensor([1.0, 3.0, -torch.inf]), torch.tensor([0, 0, 0])).tolist()
        [2.0, 2.0, -inf]
    """
    alive = scores > -torch.inf
    members = units[alive]
    sums = torch.bincount(members, scores[alive].double())
    return scores.double().masked_scatter(alive, (sums / torch.bincount(members).clamp(min=1))[members])


def settle_units(kept: torch.Tensor, units: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Makes whole units of a choice among entries: one that was chosen in part stays if at least half of it was to stay.

    Args:
        kept: bool, any shape, True where the entry was to stay.
        units: each entry's unit, of that shape.
        alive: bool, of that shape; the others are left as they are.

    Returns:
        A bool tensor of that shape, True where the entry stays.

    Example:
        >>> settle_units(torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
        tensor([False, False, False])
    """
    members = units[alive]
    stays = 2 * torch.bincount(members, kept[alive].double()) >= torch.bincount(members)
    return kept.masked_scatter(alive, stays[members])


def _check_axes(shape: torch.Size, least: int, what: str) -> None:
    if len(shape) < least:
        raise RequestError(f"{what} need a weight of {least} or more axes, got the shape {tuple(shape)}; exclude it")
