"""The optimal brain surgeon on one layer: what to remove so that its outputs change least, and how the rest makes up for it.

A layer's rows are (groups, rows, columns); the outputs of a row change by (v - w)ᵀ H (v - w) in square when its weights w
become v, with H = XᵀX of the inputs of its group (`training.inputs.input_hessians`), the same for all its rows. H must be
positive definite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["METHODS", "Pattern", "Remove", "refit_rows", "remove_in_blocks", "remove_one_by_one"]

Pattern = tuple[int, int] | None
"""N and M: of every M neighbouring columns N stay; None where any may go."""

Remove = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, Pattern], tuple[torch.Tensor, torch.Tensor]]
"""(weights, hessians, gone, removed, pattern) -> (new weights, bool tensor of what stays)."""

_ELEMENTS_AT_ONCE = 2**18  # of inverse Hessians worked on together: what fits in a cache
_BLOCK = 128  # columns whose errors are passed on together


def refit_rows(weights: torch.Tensor, hessians: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The weights that change the outputs least when only those that stay may be other than zero: least squares, row by row.

    The update of the optimal brain surgeon for a set of weights (Hassibi and Stork, NIPS 1992; Frantar and Alistarh, NeurIPS
    2022).

    Args:
        weights: (groups, rows, columns).
        hessians: (groups, columns, columns), positive definite.
        keep: bool, as `weights`, True where a weight stays.

    Returns:
        The new weights, 0 where they do not stay. A row that loses nothing but zeros is as it was.

    Example:
        >>> hessian = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
        >>> refit_rows(torch.ones(1, 1, 2), hessian, torch.tensor([[[True, False]]])).tolist()
        [[[1.5, 0.0]]]
    """
    fitted = weights.clone()
    targets = weights @ hessians
    for group, row in (~keep & (weights != 0)).any(dim=2).nonzero().tolist():
        stays = keep[group, row].nonzero().flatten()
        hessian = hessians[group][stays][:, stays]
        fitted[group, row] = 0
        fitted[group, row, stays] = torch.linalg.solve(hessian, targets[group, row, stays])
    return fitted


def remove_one_by_one(
    weights: torch.Tensor, hessians: torch.Tensor, gone: torch.Tensor, removed: int, pattern: Pattern = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """ExactOBS: in each row the weight whose removal costs least goes, the others make up for it, and so on.

    Frantar and Alistarh (NeurIPS 2022, algorithm 1); over the rows of a layer the cheapest next step comes first, as there.
    Takes of the order of rows · columns³ operations.

    Args:
        weights: (groups, rows, columns).
        hessians: (groups, columns, columns), positive definite.
        gone: bool, as `weights`, True where a weight is 0 already; these go first.
        removed: how many weights are gone at the end, at least those that are already; not looked at where there is a pattern.
        pattern: of every M neighbouring columns N stay.

    Returns:
        The new weights, and a bool tensor of their shape, True where a weight stays.

    Example:
        >>> weights, hessian = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.eye(3)[None]
        >>> remove_one_by_one(weights, hessian, torch.zeros(1, 1, 3, dtype=torch.bool), 1)[0].tolist()
        [[[0.0, 2.0, 3.0]]]
    """
    groups, rows, columns = weights.shape
    inverses = torch.cholesky_inverse(torch.linalg.cholesky(hessians))
    of_group = torch.arange(groups, device=weights.device).repeat_interleave(rows)
    flat, flat_gone = weights.flatten(0, 1), gone.flatten(0, 1)
    parts = torch.arange(groups * rows, device=weights.device).split(max(1, _ELEMENTS_AT_ONCE // columns**2))
    traces = [_trace_removals(flat[part], inverses[of_group[part]], flat_gone[part], pattern) for part in parts]
    order = torch.cat([order for order, _ in traces])
    steps = torch.ones_like(order, dtype=torch.bool)
    if pattern is None:
        costs = torch.cat([costs for _, costs in traces]).cummax(dim=1).values  # a cheap step waits for the dear ones before it
        steps = torch.zeros_like(steps).flatten()
        steps[costs.flatten().argsort(stable=True)[:removed]] = True
        steps = steps.reshape(order.shape)
    keep = torch.ones_like(flat, dtype=torch.bool).scatter_(1, order, ~steps).reshape(weights.shape)
    return refit_rows(weights, hessians, keep), keep


def _trace_removals(
    weights: torch.Tensor, inverses: torch.Tensor, gone: torch.Tensor, pattern: Pattern
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of some rows the columns in the order in which they go, and what each step costs: both (rows, steps).

    Changes `inverses`, (rows, columns, columns), in place.
    """
    weights = weights.clone()
    rows, columns = weights.shape
    kept, of = pattern or (0, columns)
    left = torch.full((rows, columns // of), of - kept, device=weights.device)  # how many may yet go in each neighbourhood
    alive = torch.ones_like(weights, dtype=torch.bool)
    every = torch.arange(rows, device=weights.device)
    order, costs = [], []
    for _ in range(columns // of * (of - kept)):
        cost = (weights.square() / inverses.diagonal(dim1=1, dim2=2)).masked_fill(gone, -1.0)
        may_go = alive & (left > 0).repeat_interleave(of, dim=1)
        least, column = torch.where(may_go, cost, torch.inf).min(dim=1)
        order.append(column)
        costs.append(least)
        line = inverses[every, column]
        pivot = line[every, column, None]
        weights -= line * (weights[every, column, None] / pivot)
        inverses -= line[:, :, None] * (line / pivot)[:, None, :]
        alive[every, column] = False
        left[every, column // of] -= 1
    return torch.stack(order, dim=1), torch.stack(costs, dim=1)


def remove_in_blocks(
    weights: torch.Tensor, hessians: torch.Tensor, gone: torch.Tensor, removed: int, pattern: Pattern = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """SparseGPT: the columns from left to right, 128 at a time; what goes is made up for by the columns to the right of it.

    Frantar and Alistarh (ICML 2023, algorithm 1): one inverse for all rows, so it takes of the order of columns³ operations,
    and a weight that was passed is not changed any more. In each block of columns the same share goes, whatever row it is in;
    the counts are rounded so that they add up.

    Args:
        weights: (groups, rows, columns).
        hessians: (groups, columns, columns), positive definite.
        gone: bool, as `weights`, True where a weight is 0 already; these go first.
        removed: how many weights are gone at the end, at least those that are already; not looked at where there is a pattern.
        pattern: of every M neighbouring columns N stay.

    Returns:
        The new weights, and a bool tensor of their shape, True where a weight stays.

    Example:
        >>> weights, hessian = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.eye(3)[None]
        >>> remove_in_blocks(weights, hessian, torch.zeros(1, 1, 3, dtype=torch.bool), 1)[0].tolist()
        [[[0.0, 2.0, 3.0]]]
    """
    factors = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessians)), upper=True)
    weights, keep = weights.clone(), torch.ones_like(gone)
    columns, width = weights.shape[2], _BLOCK if pattern is None else -(-_BLOCK // pattern[1]) * pattern[1]
    more, free = removed - int(gone.sum()), int((~gone).sum())
    passed = taken = 0
    for group, factor in enumerate(factors):
        for start in range(0, columns, width):
            block = slice(start, min(start + width, columns))
            passed += int((~gone[group, :, block]).sum())
            quota = (more * passed + free // 2) // max(free, 1) - taken
            taken += quota
            new, stays, errors = _sweep(weights[group, :, block], factor[block, block], gone[group, :, block], quota, pattern)
            weights[group, :, block], keep[group, :, block] = new, stays
            weights[group, :, block.stop :] -= errors @ factor[block, block.stop :]
    return weights, keep


def _sweep(
    weights: torch.Tensor, factor: torch.Tensor, gone: torch.Tensor, quota: int, pattern: Pattern
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One block of columns: its new weights, what stays, and the errors to pass on; `quota` weights go besides those gone."""
    weights, errors, keep = weights.clone(), torch.zeros_like(weights), ~gone
    pivots = factor.diagonal()
    if pattern is None:
        costs = (weights / pivots).square().masked_fill(gone, -1.0).flatten()
        keep = torch.ones_like(keep).flatten()
        keep[costs.argsort(stable=True)[: quota + int(gone.sum())]] = False
        keep = keep.reshape(gone.shape)
    for column in range(weights.shape[1]):
        if pattern is not None and column % pattern[1] == 0:
            kept, of = pattern
            near = slice(column, column + of)
            costs = (weights[:, near] / pivots[near]).square().masked_fill(gone[:, near], -1.0)
            keep[:, near] = keep[:, near].scatter(1, costs.argsort(dim=1, stable=True)[:, : of - kept], False)
        errors[:, column] = torch.where(keep[:, column], 0, weights[:, column] / pivots[column])
        weights[:, column:] -= errors[:, column, None] * factor[column, column:]
        weights[:, column] = torch.where(keep[:, column], weights[:, column], 0)  # exactly 0
    return weights, keep, errors


METHODS: dict[str, Remove] = {"obs": remove_one_by_one, "sparsegpt": remove_in_blocks}
