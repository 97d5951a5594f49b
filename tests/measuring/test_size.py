"""Counts are of the weights the network computes with; bytes are a file's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from featherweight.graph.capture import to_module
from featherweight.graph.constraint import Constraint, constrain
from featherweight.measuring.size import count_nonzero, count_parameters, packed_bytes
from featherweight.packaging import save


class Mask(Constraint):
    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original * self.kept

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5, bias=False))


def test_counts_spelled_out() -> None:
    net = small_net()
    # conv 3·2·3·3 + 3, norm 3 + 3 (its running mean and variance are no parameters), linear 12·5
    assert count_parameters(net) == 57 + 6 + 60
    assert count_nonzero(net) == 57 + 3 + 60  # a fresh norm's biases are zero


def test_masked_weights_count_as_zero() -> None:
    net = small_net()
    kept = torch.zeros(5, 12)
    kept[0, :7] = 1
    constrain(net, "3.weight", Mask(kept))
    assert count_parameters(net) == 123
    assert count_nonzero(net) == 57 + 3 + 7
    assert count_nonzero(to_module(net, torch.randn(1, 2, 4, 4))) == 57 + 3 + 7


def test_shared_parameters_count_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert count_parameters(net) == 16 + 4 + 4
    assert count_nonzero(net) == 24


def test_packed_bytes_are_the_files(tmp_path: Path) -> None:
    net, x = small_net(), torch.randn(1, 2, 4, 4)
    written = save(net, tmp_path / "net.fw", example=x)
    assert packed_bytes(net, x) == written == (tmp_path / "net.fw").stat().st_size
    assert packed_bytes(to_module(net, x)) == written


def test_a_larger_network_packs_larger() -> None:
    x = torch.randn(1, 8)
    assert (
        packed_bytes(nn.Linear(8, 400), x) > packed_bytes(nn.Linear(8, 100), x) + 300 * 8
    )  # random floats do not pack to a quarter
