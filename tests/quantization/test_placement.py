"""Quantizers stand where int8 kernels need them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from featherweight.graph.capture import capture
from featherweight.quantization.placement import Place, find_places


def places_of(net: nn.Module, *shape: int) -> list[tuple[str, str | None, bool]]:
    """For each place the operation that gives its value, the one whose step it shares if any, and whether it is a clip."""
    program = capture(net, torch.zeros(2, *shape))

    def op(value: int) -> str:
        return "input" if value < program.first_node else program.nodes[value - program.first_node].op.partition(".")[0]

    def row(place: Place) -> tuple[str, str | None, bool]:
        return op(place.value), None if place.like == place.value else op(place.like), place.clip

    return [row(place) for place in find_places(program)]


class Net(nn.Module):
    """Any function of two layers."""

    def __init__(self, function: Callable[..., torch.Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.function, self.first, self.second = function, layer, nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.first, self.second)


def test_what_only_moves_passes_its_step_on() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3))
    assert places_of(net, 1, 6, 6) == [
        ("input", None, False),
        ("relu", None, True),
        ("max_pool2d", "relu", False),
        ("flatten", "relu", False),
    ]


def test_the_end_of_a_network_stays_float_but_for_convolutions() -> None:
    assert places_of(nn.Linear(4, 2), 4) == [("input", None, False)]
    assert places_of(nn.Conv1d(4, 2, 1), 4, 4) == [("input", None, False), ("conv1d", None, False)]


def test_a_sum_between_convolutions_is_computed_in_integers() -> None:
    net = Net(lambda x, conv, _: conv(torch.relu(x_ := conv(x)) + x_), nn.Conv2d(1, 1, 1))
    names = [name for name, *_ in places_of(net, 1, 4, 4)]
    assert names == ["input", "conv2d", "relu", "add", "conv2d"]


def test_a_sum_before_a_norm_stays_float() -> None:
    net = Net(lambda x, linear, norm: linear(norm(x + linear(x))), nn.Linear(4, 4))
    assert [name for name, *_ in places_of(net, 4)] == ["input", "layer_norm"]


def test_a_concatenation_and_a_mean_at_the_end() -> None:
    net = Net(lambda x, conv, _: torch.cat([conv(x), conv(x * 2)], 1).mean((2, 3)), nn.Conv2d(1, 1, 1))
    assert [name for name, *_ in places_of(net, 1, 4, 4)] == ["input", "conv2d", "mul", "conv2d", "cat"]


def test_a_smooth_activation_reads_the_grid_and_is_quantized_again() -> None:
    net = nn.Sequential(nn.Conv2d(4, 2, 3), nn.SiLU(), nn.Conv2d(2, 4, 3))
    assert [name for name, *_ in places_of(net, 4, 6, 6)] == ["input", "conv2d", "silu", "conv2d"]


def test_the_first_convolution_of_an_image_stays_float_before_what_is_computed_in_floats() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU(), nn.Conv2d(2, 4, 3))
    assert [name for name, *_ in places_of(net, 3, 6, 6)] == ["silu", "conv2d"]
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3))
    assert [name for name, *_ in places_of(net, 3, 6, 6)] == ["input", "relu", "conv2d"]


def test_who_reads_a_float_value_in_floats_does_so_still() -> None:
    program = capture(Net(lambda x, linear, norm: linear(n := norm(x)) + n, nn.Linear(4, 4)), torch.zeros(2, 4))
    (place,) = find_places(program)
    assert [program.nodes[reader].op for reader in place.readers or ()] == ["linear"]


def test_a_value_that_is_changed_in_place_is_quantized_for_all() -> None:
    net = Net(lambda x, conv, _: conv(y := x.sigmoid()) + y.relu_(), nn.Conv2d(1, 1, 1))
    first, *_ = find_places(capture(net, torch.zeros(2, 1, 4, 4)))
    assert first.readers is None


def test_a_weight_that_is_computed_is_no_weight_on_a_grid() -> None:
    net = Net(lambda x, linear, _: nn.functional.linear(x, linear.weight.tanh()), nn.Linear(4, 4))
    assert places_of(net, 4) == []
