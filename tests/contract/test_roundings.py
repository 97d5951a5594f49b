"""What every rounding promises. A new row of the table is tested by being there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.quantization import rounding as under_test
from featherweight.quantization.grid import Grid
from featherweight.quantization.rounding import ROUNDINGS, round_weight

NAMES = sorted(ROUNDINGS)


@pytest.fixture(autouse=True)
def _fewer_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_ITERATIONS", 100)


def layer(shape: tuple[int, ...], groups: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with some zeros, and XᵀX of inputs that hang together, of which one is always zero."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw)
    weight[torch.rand(shape, generator=draw) < 0.2] = 0
    columns = weight[0].numel()
    causes = torch.randn(groups, 50, max(1, columns // 3), generator=draw)
    inputs = causes @ torch.randn(groups, causes.shape[2], columns, generator=draw)
    inputs += 0.1 * torch.randn(inputs.shape, generator=draw)
    inputs[:, :, 0] = 0
    return weight, inputs.mT @ inputs / 50


def costs(change: torch.Tensor, hessians: torch.Tensor) -> torch.Tensor:
    rows = change.double().reshape(len(hessians), -1, hessians.shape[1])
    return torch.einsum("grc,gcd,grd->gr", rows, hessians.double(), rows).flatten()


def damp(hessians: torch.Tensor) -> torch.Tensor:
    columns = hessians.shape[1]
    return hessians + torch.stack([0.01 * h.trace() / columns * torch.eye(columns) for h in hessians])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(seed=st.integers(0, 999), bits=st.integers(2, 4), affine=st.booleans())
def test_rounding_stays_on_its_grid_and_beats_nearest(name: str, seed: int, bits: int, affine: bool) -> None:
    weight, hessians = layer((4, 6), seed=seed)
    shift = torch.arange(4)[:, None] % 2**bits if affine else torch.full((4, 1), 2 ** (bits - 1))
    grid = Grid(torch.rand(4, 1) + 0.2, -shift, 2**bits - 1 - shift)
    rounded = round_weight(weight, grid, rounding=name, hessians=hessians)
    assert rounded.dtype == weight.dtype
    assert torch.equal(grid(rounded), rounded), "the grid leaves it as it is"
    assert not rounded[weight == 0].any(), "zeros stay zeros"
    assert not (rounded.signbit() & (rounded == 0)).any()
    damped = damp(hessians)
    assert (costs(rounded - weight, damped) <= costs(grid(weight) - weight, damped) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"nearest"}))
def test_rounding_gains_where_inputs_hang_together(name: str) -> None:
    weight, hessians = layer((30, 24))
    grid = Grid(torch.tensor(0.6), -4, 3)
    rounded = round_weight(weight, grid, rounding=name, hessians=hessians)
    assert costs(rounded - weight, hessians).sum() < 0.5 * costs(grid(weight).detach() - weight, hessians).sum()


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_to_nearest_where_inputs_do_not_hang_together(name: str) -> None:
    weight, _ = layer((5, 8))
    grid = Grid(torch.tensor(0.3), -8, 7)
    hessians = torch.diag(torch.rand(8) + 0.1)[None]
    assert torch.equal(round_weight(weight, grid, rounding=name, hessians=hessians), grid(weight))


@pytest.mark.parametrize("name", NAMES)
def test_rounding_leaves_what_lies_on_the_grid(name: str) -> None:
    weight, hessians = layer((4, 6))
    grid = Grid(torch.tensor(0.37), -8, 7)
    assert torch.equal(round_weight(grid(weight), grid, rounding=name, hessians=hessians), grid(weight))


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_outputs_are_layers_of_their_own(name: str) -> None:
    """A grouped convolution: each group has a Hessian; and the grid may have a step for each group of inputs."""
    weight, hessians = layer((6, 4, 1, 2), groups=3)
    step = torch.rand(6, 2, 1, 1) * 0.3 + 0.2
    together = Grid(step, -4, 3, torch.tensor([0, 0, 1, 1]))
    rounded = round_weight(weight, together, rounding=name, hessians=hessians)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        own = Grid(step[part], -4, 3, torch.tensor([0, 0, 1, 1]))
        alone = round_weight(weight[part], own, rounding=name, hessians=hessians[group : group + 1])
        assert torch.equal(rounded[part], alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_takes_every_float(name: str, dtype: torch.dtype) -> None:
    weight, hessians = layer((4, 6))
    grid = Grid(torch.tensor(0.25, dtype=dtype), -8, 7)
    rounded = round_weight(weight.to(dtype), grid, rounding=name, hessians=hessians)
    assert rounded.dtype == dtype
    assert torch.equal(grid(rounded), rounded)
