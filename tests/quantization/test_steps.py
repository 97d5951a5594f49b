"""What a sample says of all weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featherweight.quantization.rates import TRELLIS, free
from featherweight.quantization.steps import Sample, energy_of, round_segments, segments_in, weighing_of
from featherweight.quantization.trellis import SEGMENT


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"large": torch.randn(1000, 700) * 0.1, "small": torch.randn(30, 7), "row": torch.randn(1, 128) * 3}


def test_sample_speaks_for_all(tensors: dict[str, torch.Tensor]) -> None:
    sample = Sample(trellis=True)
    for name, tensor in tensors.items():
        sample.add(name, tensor, None)
    log_step, costs = sample.settle(-math.log2(0.2), by_error=True)
    expected, _, _ = sample.measure(log_step, costs)
    wrong = 0.0
    for index, (step, tensor) in enumerate(zip(sample.steps(log_step), tensors.values(), strict=True)):
        scaled = segments_in(tensor) / np.float32(step)
        found = round_segments(scaled, costs.of(np.array([index])), True)
        wrong += float((((found - scaled) * step) ** 2).sum(dtype=np.float64))
    energy = sum(energy_of(tensor) for tensor in tensors.values())
    assert math.sqrt(wrong / energy) == pytest.approx(expected, rel=0.01)
    assert expected == pytest.approx(0.2, rel=2e-3)


def test_bits_are_settled(tensors: dict[str, torch.Tensor]) -> None:
    sample = Sample(trellis=False)
    for name, tensor in tensors.items():
        sample.add(name, tensor, None)
    _, bits, _ = sample.measure(*sample.settle(3.3, by_error=False))
    assert bits == pytest.approx(3.3, abs=2e-3)


def test_steps_follow_importance_and_keep_integers_small() -> None:
    sample = Sample(trellis=True)
    sample.add("once", torch.ones(8, 8), torch.ones(8, 8))
    sample.add("nine times", torch.ones(8, 8), torch.full((8, 8), 9.0))
    sample.add("huge", torch.full((8, 8), 1e6), torch.ones(8, 8))
    once, nine, huge = sample.steps(-3.0)
    assert once == 0.125
    assert nine == pytest.approx(0.125 / 3)
    assert 1e6 / huge < 2**15 - 1
    assert sample.measure(-3.0, free(TRELLIS, 3))[0] < 1e-3


def test_weighing_has_mean_one_and_a_floor() -> None:
    importance = torch.cat([torch.zeros(100), torch.full((100,), 6.0)])
    weighing = weighing_of(importance)
    assert weighing.shape == (2, SEGMENT)
    assert weighing.ravel()[:100].tolist() == [2**-6] * 100
    assert weighing.ravel()[100:200].tolist() == [2.0] * 100


def test_energy() -> None:
    assert energy_of(torch.tensor([1.0, -2.0])) == pytest.approx(5)
    assert energy_of(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])) == pytest.approx(5)
