"""Roundings, against least squares on the inputs themselves and against trying everything."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from featherweight.errors import RequestError
from featherweight.quantization import rounding as under_test
from featherweight.quantization.grid import Grid
from featherweight.quantization.rounding import (
    round_feeding_forward,
    round_learned,
    round_nearest,
    round_one_by_one,
    round_weight,
)

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def layer(rows: int = 4, columns: int = 7, *, low: int = -3, high: int = 2) -> tuple[torch.Tensor, Layer]:
    """Inputs that hang together, and what a rounding gets; a step for each weight, and a few weights that are 0."""
    inputs = torch.randn(30, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    weight = torch.randn(rows, columns, dtype=torch.float64)
    weight[0, 1] = weight[2, 5] = 0
    steps = torch.rand_like(weight) * 0.5 + 0.3
    bounds = torch.full_like(weight, low), torch.full_like(weight, high)
    return inputs, (weight, steps, *bounds, inputs.mT @ inputs)


def refit(row: torch.Tensor, inputs: torch.Tensor, fixed: dict[int, float]) -> torch.Tensor:
    """The row with some weights fixed and the others by least squares, so that the outputs are as they were."""
    fitted = row.clone()
    free = [c for c in range(len(row)) if c not in fixed]
    for column, value in fixed.items():
        fitted[column] = value
    if free:
        taken = inputs[:, list(fixed)] @ fitted[list(fixed)]
        fitted[free] = torch.linalg.lstsq(inputs[:, free], (inputs @ row - taken)[:, None]).solution[:, 0]
    return fitted


def to_grid(value: torch.Tensor, tensors: Layer, at: tuple[int, int]) -> float:
    weight, steps, low, high, _ = tensors
    if weight[at] == 0:
        return 0.0
    return float(torch.round(value / steps[at]).clamp(low[at], high[at]) * steps[at])


def test_nearest_by_value() -> None:
    ones = torch.ones(1, 5)
    values = torch.tensor([[0.4, 0.5, 1.5, -7.0, 7.0]])
    assert round_nearest(values, ones, -2 * ones, ones * 2, torch.eye(5)).tolist() == [[0.0, 0.0, 2.0, -2.0, 2.0]]


@pytest.mark.parametrize("block", [1, 3, 128])
def test_gptq_is_column_after_column_with_least_squares(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_BLOCK", block)
    inputs, tensors = layer()
    weight, steps = tensors[:2]
    order = inputs.square().sum(dim=0).argsort(descending=True).tolist()
    integers = round_feeding_forward(*tensors)
    for row in range(len(weight)):
        fixed: dict[int, float] = {}
        for column in order:
            current = refit(weight[row], inputs, fixed)
            fixed[column] = to_grid(current[column], tensors, (row, column))
        expected = torch.tensor([fixed[c] for c in range(len(order))], dtype=torch.float64)
        torch.testing.assert_close(integers[row] * steps[row], expected)


@pytest.mark.parametrize("at_once", [2**18, 1])
def test_obq_is_greedy_by_brute_force(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_ELEMENTS_AT_ONCE", at_once)
    inputs, tensors = layer(low=-9, high=9)  # so wide that nothing lies off the grid
    weight, steps = tensors[:2]
    integers = round_one_by_one(*tensors)
    for row in range(len(weight)):
        fixed: dict[int, float] = {}
        while len(fixed) < weight.shape[1]:
            current, tries = refit(weight[row], inputs, fixed), {}
            for column in set(range(weight.shape[1])) - set(fixed):
                more = fixed | {column: to_grid(current[column], tensors, (row, column))}
                tries[column] = float((inputs @ (refit(weight[row], inputs, more) - weight[row])).square().sum()), more
            fixed = min(tries.values(), key=lambda pair: pair[0])[1]
        expected = torch.tensor([fixed[c] for c in range(weight.shape[1])], dtype=torch.float64)
        torch.testing.assert_close(integers[row] * steps[row], expected)


def test_obq_rounds_outliers_at_once() -> None:
    """The second weight is far off its grid; the first, which would cost less, waits, and makes up for part of it."""
    ones = torch.ones(1, 2, dtype=torch.float64)
    hessian = torch.tensor([[1.0, 0.5], [0.5, 4.0]], dtype=torch.float64)
    weight = torch.tensor([[0.1, 4.0]], dtype=torch.float64)
    assert round_one_by_one(weight, ones, -2 * ones, 2 * ones, hessian).tolist() == [[1.0, 2.0]]


def test_learned_rounding_is_near_the_best_of_all() -> None:
    causes = torch.randn(30, 3, dtype=torch.float64)
    inputs = causes @ torch.randn(3, 9, dtype=torch.float64) + 0.1 * torch.randn(30, 9, dtype=torch.float64)
    weight, steps = torch.randn(8, 9, dtype=torch.float64), torch.rand(8, 1, dtype=torch.float64).expand(8, 9) + 0.3
    bounds = torch.full_like(weight, -99), torch.full_like(weight, 99)
    integers = round_learned(weight, steps, *bounds, inputs.mT @ inputs).double()
    floor = torch.floor(weight / steps)
    assert ((integers == floor) | (integers == floor + 1)).all()

    def cost(candidates: torch.Tensor) -> torch.Tensor:
        return ((candidates * steps - weight) @ inputs.mT).square().sum(dim=-1)

    ways = torch.tensor([*product((0.0, 1.0), repeat=9)], dtype=torch.float64)
    best = cost(floor + ways[:, None]).min(dim=0).values.sum()
    found, nearest = cost(integers).sum(), cost(torch.round(weight / steps)).sum()
    assert best <= found < best + 0.4 * (nearest - best)


def test_learned_rounding_keeps_to_bounds() -> None:
    _, tensors = layer(low=-1, high=1)
    integers = round_learned(*tensors)
    assert ((integers >= -1) & (integers <= 1)).all()


def test_hessians_are_needed_and_must_fit() -> None:
    weight, grid = torch.randn(4, 3), Grid(torch.tensor(0.5), -4, 3)
    with pytest.raises(RequestError, match="needs data"):
        round_weight(weight, grid, rounding="gptq")
    with pytest.raises(RequestError, match=r"\(groups, 3, 3\).*got \(1, 2, 2\)"):
        round_weight(weight, grid, rounding="gptq", hessians=torch.eye(2)[None])
    with pytest.raises(RequestError, match=r"\(groups, 3, 3\)"):
        round_weight(weight, grid, rounding="gptq", hessians=torch.eye(3).expand(3, 3, 3))
    with pytest.raises(RequestError, match="finite"):
        round_weight(weight, grid, rounding="gptq", hessians=torch.full((1, 3, 3), torch.nan))
    with pytest.raises(RequestError, match="did you mean 'gptq'"):
        round_weight(weight, grid, rounding="gptqq")
    with pytest.raises(RequestError, match="damping"):
        round_weight(weight, grid, damping=0)


def test_inputs_that_never_were_round_to_nearest() -> None:
    weight, grid = torch.randn(4, 3), Grid(torch.tensor(0.5), -4, 3)
    assert torch.equal(round_weight(weight, grid, rounding="gptq", hessians=torch.zeros(1, 3, 3)), grid(weight))
