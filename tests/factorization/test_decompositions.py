"""Chains of thin layers: exact at full rank, best below it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from featherweight.factorization.decompositions import METHODS
from featherweight.factorization.layers import Layer, Thin, as_thin, macs_of, weights_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(chain: list[Thin], x: torch.Tensor) -> torch.Tensor:
    for thin in chain:
        if thin.weight.dim() == 2:
            x = F.linear(x, thin.weight)
        else:
            x = F.conv2d(x, thin.weight, None, thin.stride, thin.padding, thin.dilation, thin.groups)
    return x


def convolution(seed: int = 0, **settings: tuple[int, int]) -> Layer:
    return Layer(normal(6, 4, 3, 5, seed=seed), size=(11, 13), **settings)  # type: ignore[arg-type]


SETTINGS = [{}, {"stride": (2, 3), "padding": (1, 2)}, {"dilation": (2, 1), "padding": (2, 2)}]
FULL = {"svd": 6, "spatial": 12, "tucker": 4, "cp": 40, "separable": 6}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_full_rank_is_the_layer_itself(method: str, settings: dict[str, tuple[int, int]]) -> None:
    layer, x = convolution(**settings), normal(2, 4, 11, 13, seed=1)
    assert METHODS[method].fits(layer) == ""
    chain = METHODS[method].factor(layer, FULL[method])
    expected = run([as_thin(layer)], x)
    found = run(chain, x)
    assert found.shape == expected.shape
    # Alternating least squares comes near; the others are exact.
    assert float((found - expected).norm() / expected.norm()) < (2e-2 if method == "cp" else 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_those_of_the_tensors(method: str) -> None:
    layer = convolution(stride=(2, 1), padding=(1, 2))
    for rank in (1, 2, 4):
        chain = METHODS[method].factor(layer, rank)
        assert METHODS[method].weights(layer, rank) == weights_of(chain) == sum(thin.weight.numel() for thin in chain)
        x, total = torch.zeros(1, 4, 11, 13, dtype=torch.float64), 0
        for thin in chain:
            x = run([thin], x)
            total += x[0, 0].numel() * thin.weight.numel()
        assert macs_of(chain, layer.size) == total


@pytest.mark.parametrize("method", ["svd", "spatial", "separable"])
def test_the_error_is_the_energy_left_out(method: str) -> None:
    layer, way = convolution(), METHODS[method]
    energies = way.energies(layer)
    assert bool((energies.diff() <= 1e-9).all())
    assert energies.sum().item() == pytest.approx(layer.weight.square().sum().item())
    for rank in (1, 2, 5):
        delta = torch.zeros(1, 4, 5, 9, dtype=torch.float64)
        kernel = torch.zeros(6, 4, 3, 5, dtype=torch.float64)
        for channel in range(4):  # the kernel that a chain amounts to is its answer to an impulse, flipped
            impulse = delta.clone()
            impulse[0, channel, 2, 4] = 1
            kernel[:, channel] = run(way.factor(layer, rank), impulse)[0].flip(1, 2)
        assert (kernel - layer.weight).square().sum().item() == pytest.approx(energies[rank:].sum().item())


@pytest.mark.parametrize("method", ["svd", "separable"])
def test_with_data_outputs_are_fitted_rather_than_weights(method: str) -> None:
    mix = normal(4, 4, seed=5) * torch.tensor([4.0, 1.0, 0.3, 0.05])
    x = torch.einsum("bchw,dc->bdhw", normal(64, 4, 7, 9, seed=2), mix)
    x = x + 0.8 * x.roll(1, -1)
    weight = normal(6, 4, 3, 3, seed=3)
    patches = F.unfold(x, 3).movedim(1, -1).reshape(-1, 36)
    plain, informed = Layer(weight), Layer(weight, moments=patches.T @ patches)
    way = METHODS[method]
    wanted = run([as_thin(plain)], x)
    errors = [float((run(way.factor(layer, 2), x) - wanted).norm() / wanted.norm()) for layer in (plain, informed)]
    assert errors[1] < errors[0]
    if method == "svd":  # no rank-2 matrix does better than what is kept of the whitened one
        energies = way.energies(informed)
        assert errors[1] ** 2 == pytest.approx(float(energies[2:].sum() / energies.sum()), rel=0.05)


def test_a_linear_layer() -> None:
    layer, x = Layer(normal(7, 5)), normal(3, 5, seed=1)
    left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    torch.testing.assert_close(run(METHODS["svd"].factor(layer, 2), x), x @ best.T)


@pytest.mark.parametrize(
    ("method", "shape", "why"),
    [
        ("spatial", (6, 4), "it is no convolution"),
        ("tucker", (6, 4, 1, 1), "its kernel has one entry"),
        ("cp", (6, 4, 1, 5), "its kernel is a single row or column"),
        ("separable", (6, 4), "it is no convolution"),
        ("separable", (6, 3, 3, 3), "it has 3 input channels, too few to keep apart"),
    ],
)
def test_what_cannot_be_factored(method: str, shape: tuple[int, ...], why: str) -> None:
    assert METHODS[method].fits(Layer(torch.zeros(shape))) == why
