"""The loss that counts bits: its gradient, and that training with it makes a network smaller."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrain, fold
from featherweight.pruning import Mask
from featherweight.quantization import Grid, RateLoss, quantize_entropy
from featherweight.training import Tuning, evaluate, fit
from featherweight.training.data import load_data


def zero_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum() * 0


def gridded(values: list[float], *, step: float = 0.5) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    constrain(layer, "weight", Grid(torch.tensor(step), -100, 100))
    return layer


def test_bits_are_the_entropy() -> None:
    # integers 0 0 0 0 1 1 -1 2: 4 zeros, 2 ones, 1 and 1
    layer = gridded([0.0, 0.1, -0.1, 0.2, 0.5, 0.6, -0.5, 1.0])
    assert RateLoss(layer, strength=1).bits() == pytest.approx((4 * 1 + 2 * 2 + 3 + 3) / 8)


def test_expected_bits_are_those_of_the_law() -> None:
    """On integers the price is that of a code with so many zeros, and a geometric law for the rest."""
    integers = [0.0] * 60 + [1.0, -1.0] * 10 + [2.0, -2.0] * 5 + [3.0, -5.0] * 2
    layer = gridded([0.5 * n for n in integers])
    outputs = layer(torch.zeros(1, len(integers)))
    found = float(RateLoss(layer, strength=1, loss=zero_loss)(outputs, outputs).detach()) * len(integers)
    others = [abs(n) for n in integers if n]
    share, stay = len(others) / len(integers), 1 - len(others) / sum(others)
    expected = -60 * math.log2(1 - share) - sum(math.log2(share / 2 * (1 - stay) * stay ** (n - 1)) for n in others)
    assert found == pytest.approx(expected, rel=0.01)  # the law is smoothed by half a weight


def test_gradient_is_the_difference_of_code_lengths() -> None:
    values = [0.0] * 50 + [0.2, 0.75, -0.75, 1.3] + [0.5, -0.5, 1.0] * 6
    layer = gridded(values)
    outputs = layer(torch.zeros(1, len(values)))
    rated = RateLoss(layer, strength=2.0, loss=zero_loss)
    rated(outputs, outputs).backward()
    gradient = layer.parametrizations.weight.original.grad[0]
    assert gradient[50] > gradient[51] > 0  # from 0 to 1 costs more than from 1 to 2
    assert gradient[52] == -gradient[51]
    assert gradient[53] == gradient[51]
    assert not gradient[:50].any()
    price = float(rated(outputs, outputs).detach())
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 51] += 0.01  # no other integer yet
    assert float(rated(outputs, outputs).detach()) - price == pytest.approx(0.01 * float(gradient[51]), rel=1e-2)


def test_mask_before_the_grid_takes_no_gradient() -> None:
    layer = nn.Linear(4, 1, bias=False)
    constrain(layer, "weight", Mask(torch.tensor([[True, False, True, True]])))
    constrain(layer, "weight", Grid(torch.tensor(0.1), -9, 9))
    outputs = layer(torch.zeros(1, 4))
    RateLoss(layer, strength=1, loss=zero_loss)(outputs, outputs).backward()
    gradient = layer.parametrizations.weight.original.grad[0]
    assert gradient[1] == 0
    assert gradient[0] != 0


def test_training_makes_digits_small() -> None:
    data = load_data("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    fit(net, data.train, Tuning(epochs=6, learning_rate=5e-3))
    spent, right = {}, {}
    for strength in (0.0, 0.5):
        coarse = quantize_entropy(net, bits=3, trellis=False)
        rated = RateLoss(coarse, strength=strength)
        fit(coarse, data.train, Tuning(epochs=8, learning_rate=5e-3), loss=rated)
        spent[strength], right[strength] = rated.bits(), evaluate(fold(coarse), data.test)
    assert spent[0.5] < 0.75 * spent[0.0]
    assert right[0.5] > right[0.0] - 0.02


def test_bad_requests() -> None:
    with pytest.raises(RequestError, match="on grids only"):
        RateLoss(nn.Linear(2, 2), strength=1)
    with pytest.raises(RequestError, match="strength must be"):
        RateLoss(gridded([1.0]), strength=-1)
