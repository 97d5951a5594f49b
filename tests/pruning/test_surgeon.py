"""The optimal brain surgeon on one layer, against brute force and least squares on the inputs themselves."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from featherweight.pruning import surgeon
from featherweight.pruning.surgeon import METHODS, Pattern, refit_rows, remove_in_blocks, remove_one_by_one


def layer(
    groups: int = 2, rows: int = 3, columns: int = 8, mixing: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, inputs (groups, samples, columns) that hang together, and their XᵀX."""
    mixed = torch.eye(columns, dtype=torch.float64) + mixing * torch.randn(groups, columns, columns, dtype=torch.float64)
    inputs = torch.randn(groups, 40, columns, dtype=torch.float64) @ mixed
    return torch.randn(groups, rows, columns, dtype=torch.float64), inputs, inputs.mT @ inputs


def none_gone(weights: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(weights, dtype=torch.bool)


def error(weights: torch.Tensor, new: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((new - weights) @ inputs.mT).square().sum())


def refit_by_least_squares(row: torch.Tensor, inputs: torch.Tensor, keep: list[int]) -> torch.Tensor:
    fitted = torch.zeros_like(row)
    fitted[keep] = torch.linalg.lstsq(inputs[:, keep], (inputs @ row)[:, None]).solution[:, 0]
    return fitted


def test_refit_is_constrained_least_squares() -> None:
    weights, inputs, hessians = layer()
    keep = torch.rand(weights.shape) < 0.6
    keep[0, 0], keep[0, 1] = True, False
    fitted = refit_rows(weights, hessians, keep)
    for group in range(2):
        for row in range(3):
            stays = keep[group, row].nonzero().flatten().tolist()
            expected = refit_by_least_squares(weights[group, row], inputs[group], stays)
            torch.testing.assert_close(fitted[group, row], expected)
    assert torch.equal(fitted[0, 0], weights[0, 0]), "a row that keeps all is not touched"
    assert not fitted[0, 1].any()


def greedy_by_brute_force(row: torch.Tensor, inputs: torch.Tensor, removed: int) -> torch.Tensor:
    """Tries each single removal, refits by least squares, takes the best, and so on."""
    keep = list(range(len(row)))
    best = row
    for _ in range(removed):
        tries = [[c for c in keep if c != gone] for gone in keep]
        fitted = [refit_by_least_squares(row, inputs, stays) for stays in tries]
        errors = [float((inputs @ (new - row)).square().sum()) for new in fitted]
        at = errors.index(min(errors))
        keep, best = tries[at], fitted[at]
    return best


@pytest.mark.parametrize("removed", range(6))
def test_one_row_is_brute_force_greedy(removed: int) -> None:
    weights, inputs, hessians = layer(1, 1, 6)
    new, keep = remove_one_by_one(weights, hessians, none_gone(weights), removed)
    torch.testing.assert_close(new[0, 0], greedy_by_brute_force(weights[0, 0], inputs[0], removed))
    assert torch.equal(new != 0, keep)


def test_first_removal_is_the_best_of_all() -> None:
    weights, inputs, hessians = layer()
    new, keep = remove_one_by_one(weights, hessians, none_gone(weights), 1)
    errors = {}
    for index in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        one = torch.ones_like(keep)
        one[tuple(index)] = False
        errors[tuple(index)] = error(weights, refit_rows(weights, hessians, one), inputs)
    assert tuple((~keep).nonzero()[0].tolist()) == min(errors, key=errors.__getitem__)
    assert error(weights, new, inputs) == pytest.approx(min(errors.values()))


def test_rows_wait_for_the_cheapest_step() -> None:
    """Over rows: a heap of each row's next step, as in the paper."""
    weights, inputs, hessians = layer(2, 3, 6)
    rows = [(weights[g, r], inputs[g]) for g in range(2) for r in range(3)]
    paths = [[greedy_by_brute_force(row, x, k) for k in range(7)] for row, x in rows]
    costs = [[float((x @ (new - row)).square().sum()) for new in path] for (row, x), path in zip(rows, paths, strict=True)]
    taken = [0] * 6
    for total in range(36):
        new, keep = remove_one_by_one(weights, hessians, none_gone(weights), total)
        assert (~keep).sum(dim=2).flatten().tolist() == taken
        torch.testing.assert_close(new.flatten(0, 1), torch.stack([path[k] for path, k in zip(paths, taken, strict=True)]))
        nexts = {r: costs[r][k + 1] - costs[r][k] for r, k in enumerate(taken) if k < 6}
        taken[min(nexts, key=nexts.__getitem__)] += 1


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_patterns_of_one_row(kept: int) -> None:
    weights, inputs, hessians = layer(1, 1, 4)
    new, keep = remove_one_by_one(weights, hessians, none_gone(weights), 0, (kept, 4))
    torch.testing.assert_close(new[0, 0], greedy_by_brute_force(weights[0, 0], inputs[0], 4 - kept))
    assert int(keep.sum()) == kept


def columns_from_the_left(weights: torch.Tensor, inputs: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Each removed column, from left to right, is made up for by all columns to its right, by least squares."""
    new = weights.clone()
    for column in range(weights.shape[2]):
        for group, row in (~keep[:, :, column]).nonzero().tolist():
            right = inputs[group][:, column + 1 :]
            lost = inputs[group][:, column] * new[group, row, column]
            new[group, row, column] = 0
            if right.shape[1]:
                new[group, row, column + 1 :] += torch.linalg.lstsq(right, lost[:, None]).solution[:, 0]
    return new


@pytest.mark.parametrize("block", [128, 4, 3, 1])
@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_blocks_make_up_to_the_right(block: int, pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon, "_BLOCK", block)
    weights, inputs, hessians = layer()
    new, keep = remove_in_blocks(weights, hessians, none_gone(weights), 20, pattern)
    torch.testing.assert_close(new, columns_from_the_left(weights, inputs, keep))


def test_blocks_choose_the_cheapest_of_a_block() -> None:
    """Of the last block's columns the cost of each is that of making up for it with those to its right."""
    weights, inputs, hessians = layer(1, 5, 2)
    _, keep = remove_in_blocks(weights, hessians, none_gone(weights), 3)
    costs = []
    for row in range(5):
        for column in range(2):
            fixed = refit_by_least_squares(weights[0, row, column:], inputs[0][:, column:], list(range(1, 2 - column)))
            costs.append(float((inputs[0][:, column:] @ (fixed - weights[0, row, column:])).square().sum()))
    assert sorted(torch.tensor(costs).argsort()[:3].tolist()) == (~keep).flatten().nonzero().flatten().tolist()


def test_same_pattern_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _, hessians = layer(2, 3, 24)
    results = []
    for block in (1, 8, 128):
        monkeypatch.setattr(surgeon, "_BLOCK", block)
        results.append(remove_in_blocks(weights, hessians, none_gone(weights), 0, (2, 4)))
    for new, keep in results[1:]:
        torch.testing.assert_close(new, results[0][0])
        assert torch.equal(keep, results[0][1])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon, "_BLOCK", 3)
    weights, _, hessians = layer(3, 5, 8)
    gone = torch.rand(weights.shape) < 0.2
    weights = torch.where(gone, 0, weights)
    for more in (0, 1, 7, 50, int((~gone).sum())):
        total = int(gone.sum()) + more
        new, keep = METHODS[name](weights, hessians, gone, total, None)
        assert int((~keep).sum()) == total
        assert not (keep & gone).any()
        assert not new[~keep].any()
        if more == 0:
            assert torch.equal(new, weights)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_patterns(name: str) -> None:
    weights, _, hessians = layer(2, 5, 12)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    gone[:, :, 1] = True
    new, keep = METHODS[name](torch.where(gone, 0, weights), hessians, gone, 0, (2, 4))
    assert (keep.reshape(2, 5, 3, 4).sum(dim=3) == 2).all()
    assert not (keep & gone).any()
    assert not new[~keep].any()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_without_correlation_it_is_wanda(name: str) -> None:
    """With inputs that do not hang together nothing can be made up for, and the cost of a weight is (w ‖x‖)²."""
    weights, scales = torch.randn(1, 4, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.1
    new, keep = METHODS[name](weights, scales.square().diag()[None], none_gone(weights), 10, None)
    assert sorted((weights.abs() * scales).flatten().argsort()[:10].tolist()) == (~keep).flatten().nonzero().flatten().tolist()
    torch.testing.assert_close(new, torch.where(keep, weights, 0))


def test_the_more_exact_the_better() -> None:
    """Over all rows together: the best mask of a row is no worse than the greedy one, and so on down to magnitude."""
    weights, inputs, hessians = layer(1, 20, 8, mixing=0.15)
    half = torch.ones_like(weights, dtype=torch.bool).scatter_(2, weights.abs().argsort(dim=2)[:, :, :4], False)
    errors = {
        "best": sum(
            min(
                float((inputs[0] @ (refit_by_least_squares(row, inputs[0], list(stays)) - row)).square().sum())
                for stays in combinations(range(8), 4)
            )
            for row in weights[0]
        ),
        "greedy": error(weights, remove_one_by_one(weights, hessians, none_gone(weights), 0, (4, 8))[0], inputs),
        "blocks": error(weights, remove_in_blocks(weights, hessians, none_gone(weights), 0, (4, 8))[0], inputs),
        "refitted": error(weights, refit_rows(weights, hessians, half), inputs),
        "magnitude": error(weights, torch.where(half, weights, 0), inputs),
    }
    assert errors["best"] <= errors["greedy"] < errors["blocks"] < errors["magnitude"]
    assert errors["greedy"] < errors["refitted"] < errors["magnitude"]
