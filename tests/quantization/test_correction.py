"""Bias correction: means that are predicted and measured agree with what running the network says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from featherweight.errors import DataError
from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.quantization.correction import expected_inputs, measured_shifts, predicted_shifts

ACTIVATIONS: list[Callable[[], nn.Module]] = [nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_expected_inputs_are_the_means_of_normal_numbers(activation: Callable[[], nn.Module]) -> None:
    norm = nn.BatchNorm2d(3, eps=0).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -3.0, 0.2]))
        norm.bias.copy_(torch.tensor([0.5, 2.0, -1.0]))
    net = nn.Sequential(norm, activation(), nn.Dropout(), nn.Conv2d(3, 4, 1).double(), nn.Conv2d(4, 1, 1).double()).eval()
    x = torch.randn(400, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program = capture(net, x)
    found = expected_inputs(program, tensors_of(net, program))
    torch.testing.assert_close(found["3.weight"], net[:3](x).mean((0, 2, 3)), rtol=0.01, atol=0.01)
    assert list(found) == ["3.weight"], "the second convolution reads no norm"


def test_norms_without_statistics_tell_nothing() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).eval()
    program = capture(net, torch.zeros(4, 3))
    assert expected_inputs(program, tensors_of(net, program)) == {}


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 9, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 1, groups=2), (4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (4,)),
    "sequence": (lambda: nn.Linear(4, 6), (5, 4)),
}


def case(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer after an identity, a batch, a change of its weight, and the mean shift of its outputs, all channels alike."""
    make, shape = LAYERS[name]
    net = nn.Sequential(nn.ReLU(), make()).double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    change = torch.randn_like(net[1].weight)
    changed = nn.Sequential(nn.ReLU(), make()).double()
    changed.load_state_dict({**net.state_dict(), "1.weight": net[1].weight + change})
    shift = changed(x) - net(x)
    axes = [axis for axis in range(shift.dim()) if axis != (shift.dim() - 1 if isinstance(net[1], nn.Linear) else 1)]
    return net, x, change, shift.mean(axes)


@pytest.mark.parametrize("name", LAYERS)
def test_measured_shifts_are_those_of_the_outputs(name: str) -> None:
    net, x, change, shift = case(name)
    data = [(part, torch.zeros(len(part))) for part in x.split(3)]
    found = measured_shifts(to_module(net, x), {"1.weight": change}, data)
    torch.testing.assert_close(found["1.weight"], shift.detach())


@pytest.mark.parametrize("name", LAYERS)
def test_predicted_shifts_are_those_of_even_inputs(name: str) -> None:
    """Inputs that are the same everywhere make the mean exact, as long as there is no padding."""
    net, x, change, _ = case(name)
    if name == "conv2d":
        net[1].padding = (0, 0)
    axis = x.dim() - 1 if isinstance(net[1], nn.Linear) else 1
    means = torch.rand(x.shape[axis], dtype=torch.float64) + 0.1
    even = means.reshape([-1 if each == axis else 1 for each in range(x.dim())]).expand(x.shape).contiguous()
    program = capture(net, even)
    found = predicted_shifts(program, {"1.weight": change}, {"1.weight": means})["1.weight"]
    expected = measured_shifts(to_module(net, even), {"1.weight": change}, [(even, torch.zeros(7))])["1.weight"]
    torch.testing.assert_close(found, expected)


def test_flattened_positions_share_their_channels_mean() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    program = capture(net, torch.zeros(2, 3, 2, 2))
    change = torch.arange(24.0).reshape(2, 12)
    shifts = predicted_shifts(program, {"1.weight": change}, {"1.weight": torch.tensor([1.0, 10.0, 100.0])})
    assert shifts["1.weight"].tolist() == [6 + 220 + 3800, 54 + 700 + 8600]


def test_no_data() -> None:
    with pytest.raises(DataError, match="bias correction needs data"):
        measured_shifts(to_module(nn.Linear(2, 1), torch.zeros(1, 2)), {"weight": torch.ones(1, 2)}, [])
