"""Calibration counts every value once, in bounded memory, and says what is wrong with the data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError
from featherweight.graph.capture import to_module
from featherweight.graph.program import ProgramModule
from featherweight.quantization.calibration import collect


def relu() -> ProgramModule:
    return to_module(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), torch.zeros(1, 3))


def test_histograms_see_all_batches_in_eval_mode() -> None:
    net = relu().train()
    x = torch.randn(50, 3)
    found = collect(net, [(x[:20], torch.zeros(20)), (x[20:], torch.zeros(30))], [0, net.program.first_node])
    normed = x / (1 + 1e-5) ** 0.5
    for histogram, values in zip(found.values(), (x, normed), strict=True):
        assert histogram.total == 150
        assert (histogram.least, histogram.greatest) == pytest.approx((values.min().item(), values.max().item()))
    assert net.training
    assert net.get_buffer("0.running_mean").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, RequestError, "calibration needs data, got none"),
        ([], DataError, "hold no batch"),
        ([(torch.zeros(0, 3), torch.zeros(0))], DataError, "hold no batch"),
        ([torch.zeros(2, 3)], DataError, "batches of two tensors"),
        ([(torch.zeros(2, 4), torch.zeros(2))], DataError, r"'input', \('batch', 3\) of torch.float32, got \(2, 4\)"),
        ([(torch.zeros(2, 3).double(), torch.zeros(2))], DataError, "got .* of torch.float64"),
        ([(torch.full((2, 3), torch.nan), torch.zeros(2))], DataError, "must be finite"),
    ],
)
def test_bad_data(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        collect(relu(), data, [0])  # type: ignore[arg-type]


def test_an_activation_that_overflows_is_named() -> None:
    net = to_module(nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()), torch.zeros(1, 1))
    nn.init.constant_(net.get_parameter("0.weight"), 1e38)
    with pytest.raises(RequestError, match=r"relu at .*:\d+ gives NaN or infinity"):
        collect(net, [(torch.full((1, 1), 1e3), torch.zeros(1))], [net.program.first_node + 1])


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

    with pytest.raises(RequestError, match="one input, got 2"):
        collect(to_module(Two(), (torch.zeros(1, 2), torch.zeros(1, 2))), [], [])
