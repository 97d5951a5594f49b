"""Grids: exact integer multiples after folding, LSQ's gradients, slices, and steps that are found again bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrain, constraints_of, fold
from featherweight.graph.program import tensor_called
from featherweight.pruning import plan_neurons, prune_weights
from featherweight.quantization.grid import MOST, Grid, find_grid
from tests.graph.conv_net import ConvNet

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
STEPS = {"tensor": (1, 1), "scalar": (), "channel": (6, 1), "column": (1, 8), "each": (6, 8)}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def steps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (random(*shape, seed=1, dtype=torch.float64).abs() / 4 + 0.05).to(dtype)


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_forward_is_the_nearest_value_within_the_bounds(shape: tuple[int, ...]) -> None:
    weight, step = random(6, 8, dtype=torch.float64), steps(*shape, dtype=torch.float64)
    values = torch.arange(-3, 5).double() * step.expand(6, 8)[..., None]
    nearest = values.gather(-1, (values - weight[..., None]).abs().argmin(-1, keepdim=True))[..., 0]
    assert torch.equal(Grid(step, -3, 4)(weight), nearest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_on_the_grid_stays_bit_for_bit(dtype: torch.dtype) -> None:
    grid = Grid(steps(6, 1, dtype=dtype), -128, 127)
    once = grid(random(6, 8, dtype=dtype))
    assert torch.equal(grid(grid.right_inverse(once)), once)
    assert not (once.signbit() & (once == 0)).any()
    assert (once == 0).any()


def test_gradients_are_those_of_lsq() -> None:
    """Equation 3 of Esser et al. 2020: the step's gradient is round(w/s) - w/s within the bounds, and the bound outside."""
    grid = Grid(torch.tensor(0.5), -2, 1)
    weight = torch.tensor([0.1, 0.4, -0.7, 3.0, -3.0], requires_grad=True)
    grid(weight).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    torch.testing.assert_close(weight.grad, torch.tensor([1.0, 10.0, 100.0, 0.0, 0.0]))
    each = torch.tensor([0 - 0.2, 1 - 0.8, -1 + 1.4, 1.0, -2.0])
    torch.testing.assert_close(grid.step.grad, (each * torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])).sum())


def test_bounds_may_differ_by_channel() -> None:
    grid = Grid(torch.tensor([[1.0], [1.0]]), torch.tensor([[0], [-3]]), torch.tensor([[3], [0]]))
    assert grid(torch.tensor([[-2.0, 2.0, 9.0], [-2.0, 2.0, -9.0]])).tolist() == [[0, 2, 3], [-2, 0, -3]]


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_slices_of_the_grid_are_the_grid_of_the_slices(shape: tuple[int, ...]) -> None:
    weight, grid = random(6, 8), Grid(steps(*shape), -3, 4)
    rows, columns = torch.tensor([4, 0, 5]), torch.tensor([1, 2, 7])
    expected = grid(weight)[rows][:, columns]
    grid.take(1, columns)
    grid.take(0, rows)
    assert torch.equal(grid(weight[rows][:, columns]), expected)


def test_groups_of_inputs_stay_with_their_inputs() -> None:
    weight, step = random(6, 8, 3), steps(6, 2, 1)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    grid = Grid(step, -3, 4, group)
    halves = [Grid(step[:, i : i + 1], -3, 4)(weight[:, 4 * i : 4 * i + 4]) for i in (0, 1)]
    expected = torch.cat(halves, dim=1)
    assert torch.equal(grid(weight), expected)
    columns = torch.tensor([0, 5, 6, 7])
    grid.take(1, columns)
    grid.take(0, torch.tensor([3, 1]))
    assert grid.group.tolist() == [0, 1, 1, 1]
    assert torch.equal(grid(weight[[3, 1]][:, columns]), expected[[3, 1]][:, columns])


def test_a_slice_keeps_whether_its_steps_train() -> None:
    grid = Grid(steps(6, 1), -3, 4)
    grid.step.requires_grad_(False)
    grid.take(0, torch.tensor([1]))
    assert not grid.step.requires_grad


@pytest.mark.parametrize(
    ("step", "low", "high", "message"),
    [
        (0.0, -1, 1, "positive"),
        (-1.0, -1, 1, "positive"),
        (float("nan"), -1, 1, "positive"),
        (float("inf"), -1, 1, "positive"),
        (1.0, 1, 2, "zero between"),
        (1.0, -2, -1, "zero between"),
        (1.0, -1, MOST + 1, "at most"),
    ],
)
def test_bad_grids(step: float, low: int, high: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Grid(torch.tensor(step), low, high)


def test_masked_weights_stay_zero_and_gridded_ones_on_the_grid() -> None:
    model = prune_weights(nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 5)), sparsity=0.6)
    zeros = {name: tensor_called(model, name) == 0 for name in ("0.weight", "2.weight")}
    for name in zeros:
        constrain(model, name, Grid(torch.full((1, 1), 0.02), -8, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        (model(random(6, 9)) - 1).square().mean().backward()
        optimizer.step()
    for name, zero in zeros.items():
        weight = tensor_called(fold(model), name)
        step = constraints_of(model, name)[1].step
        assert step.item() != pytest.approx(0.02, rel=1e-4), "the step trains"
        assert (weight[zero] == 0).all()
        assert (weight[~zero] != 0).any()
        found = find_grid(weight)
        assert found is not None
        integers = weight / step
        torch.testing.assert_close(integers, integers.round(), atol=1e-5, rtol=0)
        assert int(integers.min().round()) >= -8
        assert int(integers.max().round()) <= 7


def test_surgery_takes_grids_along() -> None:
    model = ConvNet().double().eval()
    for name in ("stem.weight", "last.weight"):
        weight = model.get_parameter(name)
        shape = [len(weight), 2] + [1] * (weight.dim() - 2)
        group = torch.arange(weight.shape[1]) % 2
        constrain(model, name, Grid(steps(*shape, dtype=torch.float64), -3, 4, group))
    example = random(3, 3, 8, 8, dtype=torch.float64)
    plan = plan_neurons(model, example, sparsity=0.4)
    smaller = plan.apply(model)
    torch.testing.assert_close(smaller(example), plan.mask(model)(example), rtol=1e-9, atol=1e-12)
    for name in ("stem.weight", "last.weight"):
        kept = torch.ones_like(tensor_called(model, name), dtype=torch.bool)
        for (tensor, axis), indices in plan.removed.items():
            if tensor == name:
                kept.index_fill_(axis, torch.tensor(indices), False)
        assert torch.equal(tensor_called(smaller, name).flatten(), tensor_called(model, name)[kept])
        assert [type(c) for c in constraints_of(smaller, name)] == [Grid]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_steps_are_found_again(dtype: torch.dtype, bits: int, axis: int | None) -> None:
    shape = [1, 1, 1]
    weight = random(12, 8, 9, dtype=dtype)
    if axis is not None:
        shape[axis] = weight.shape[axis]
    step = steps(*shape, dtype=dtype)
    on_grid = Grid(step, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)(weight).detach()
    on_grid.movedim(axis or 0, 0)[2] = 0
    found = find_grid(on_grid, axis)
    assert found is not None
    assert found.steps.shape == step.shape
    assert found.steps.dtype == dtype
    assert found.integers.dtype == torch.int16
    assert torch.equal(found.integers.to(dtype) * found.steps, on_grid)
    assert (found.steps >= step).all() or axis is not None
    assert int(found.integers.min()) >= -(2 ** (bits - 1))
    assert int(found.integers.max()) <= 2 ** (bits - 1) - 1


@given(
    integers=st.lists(st.integers(-MOST, MOST), min_size=1, max_size=30),
    step=st.floats(2**-30, 2**30, width=32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40)
def test_any_integers_on_any_step_are_found(integers: list[int], step: float, dtype: torch.dtype) -> None:
    values = torch.tensor(integers, dtype=dtype) * torch.tensor(step, dtype=dtype)
    found = find_grid(values)
    assert found is not None
    assert torch.equal(found.integers.to(dtype) * found.steps, values)
    assert found.steps.item() >= step or not any(integers), "the largest step"


def test_the_largest_step_takes_out_common_factors() -> None:
    found = find_grid(torch.tensor([[2.0, -6.0, 4.0], [9.0, 0.0, -6.0], [0.0, 0.0, 0.0]]), 0)
    assert found is not None
    assert found.steps.flatten().tolist() == [2.0, 3.0, 1.0]
    assert found.integers.tolist() == [[1, -3, 2], [3, 0, -2], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_value_off_by_one_bit_is_no_grid(dtype: torch.dtype) -> None:
    weight = (torch.arange(-40, 41, dtype=dtype) * torch.tensor(0.0123, dtype=dtype)).reshape(3, 27) + 0.0
    weight[weight == 0] = 0.0
    assert find_grid(weight) is not None
    weight[1, 3] = torch.nextafter(weight[1, 3], torch.tensor(9.0, dtype=dtype))
    assert find_grid(weight) is None
    assert find_grid(weight, 0) is None


@pytest.mark.parametrize(
    "weight",
    [
        random(40),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([1.0, -0.0]),
        torch.tensor([1.0, 2.0**15]),
        torch.arange(3),
        torch.zeros(0),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
)
def test_what_is_no_grid(weight: torch.Tensor) -> None:
    assert find_grid(weight) is None
