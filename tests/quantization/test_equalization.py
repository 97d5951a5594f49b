"""Equalisation changes no output and leaves no channel to the rest's advantage; pairs are those that may be scaled."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.rewrite import fold_batch_norm
from featherweight.quantization.equalization import Pair, equalize_layers, find_pairs
from tests.graph.nets import SMALL
from tests.graph.test_rewrite import scrambled


def folded(model: nn.Module, *inputs: torch.Tensor) -> tuple[Program, dict[str, torch.Tensor]]:
    program = capture(model, inputs)
    return fold_batch_norm(program, tensors_of(model, program))


def ops(program: Program, pairs: list[Pair]) -> list[list[str]]:
    return [[node.op for node in program.nodes[pair.first : pair.second + 1]] for pair in pairs]


@pytest.mark.parametrize("name", ["residual", "flatten", "depthwise", "grouped", "gated", "slopes", "tied", "two-inputs"])
def test_small_networks_compute_the_same(name: str) -> None:
    make, shapes = SMALL[name]
    model = scrambled(make())
    inputs = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    program, tensors = folded(model, *inputs)
    equalized = ProgramModule(program, equalize_layers(program, tensors)[0]).eval()
    with torch.no_grad():
        torch.testing.assert_close(equalized(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv-linear": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 3)), (4, 9, 9)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.LeakyReLU(), nn.Conv2d(6, 5, 1)),
        (4, 9, 9),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2, bias=False)), (4, 9, 9)),
    "multiplier": (lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6)), (4, 9, 9)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2)),
        (4, 5, 5),
    ),
    "identity": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), (4,)),
    "pooled": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.MaxPool1d(2), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(6, 3)),
        (4, 9),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_ranges_of_both_sides_become_equal(name: str) -> None:
    make, shape = LAYERS[name]
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.exp(2 * torch.randn(len(parameter), *[1] * (parameter.dim() - 1)).double())
    x = torch.randn(3, *shape, dtype=torch.float64)
    program, tensors = folded(model, x)
    layers = [module for module in model if hasattr(module, "weight")]
    after, divided = equalize_layers(program, tensors)
    twin = ProgramModule(program, after)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-9, atol=1e-9)
    assert len(find_pairs(program, tensors)) == len(layers) - 1 == len(divided)
    # Scaled apart again by hand, any channel between two layers has products of ranges that no scale changes.
    before, now = (ranges(model, t) for t in (tensors, after))
    for (made, read), (made_now, read_now) in zip(before, now, strict=True):
        torch.testing.assert_close(made_now, read_now, rtol=2e-3, atol=0)
        if len(before) == 1:
            torch.testing.assert_close(made_now, (made * read).sqrt(), rtol=2e-3, atol=0)


def ranges(model: nn.Sequential, tensors: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each channel between two layers its largest weight before and after: by feeding each layer one channel at a time."""
    layers = [(module, tensors[f"{i}.weight"]) for i, module in enumerate(model) if hasattr(module, "weight")]
    found = []
    for (first, made), (second, read) in itertools.pairwise(layers):
        channels = first.out_features if isinstance(first, nn.Linear) else first.out_channels
        outputs, inputs = [], []
        for channel in range(channels):
            if isinstance(first, nn.ConvTranspose2d):
                group, own = divmod(channel, made.shape[1])
                rows = made.chunk(first.groups, 0)[group][:, own]
            else:
                rows = made[channel]
            outputs.append(rows.abs().max())
            if isinstance(second, nn.Linear):
                inputs.append(read.reshape(len(read), channels, -1)[:, channel].abs().max())
            elif isinstance(second, nn.ConvTranspose2d):
                inputs.append(read[channel].abs().max())
            else:
                group, own = divmod(channel, read.shape[1])
                inputs.append(read.chunk(second.groups, 0)[group][:, own].abs().max())
        found.append((torch.stack(outputs), torch.stack(inputs)))
    return found


class Skipped(nn.Module):
    """What the first layer gives is read by the second, and added to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        return x + self.b(x)


class Curved(Skipped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.silu(self.a(x)))


class Reused(Skipped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(F.relu(self.a(x)))


class Mixed(Skipped):
    """The second layer reads positions as channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)).flatten(1).unflatten(1, (16, -1))[:, :4, :, None])


@pytest.mark.parametrize("make", [Skipped, Curved, Reused, Mixed])
def test_what_is_no_pair(make: type[nn.Module]) -> None:
    program, tensors = folded(make(), torch.zeros(2, 4, 6, 6))
    assert find_pairs(program, tensors) == []


def test_dead_channels_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[2].weight[:, 4] = 0
    program, tensors = folded(model, torch.zeros(2, 4).double())
    after, divided = equalize_layers(program, tensors)
    assert divided["2.weight"][[2, 4]].tolist() == [1.0, 1.0]
    assert torch.equal(after["2.weight"][:, 2], model[2].weight[:, 2])
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_layers_with_a_limit_between_them_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU6())
    program, tensors = folded(model, torch.zeros(2, 3))
    assert find_pairs(program, tensors) == [Pair(2, 4)]
    x = 100 * torch.randn(50, 3)
    torch.testing.assert_close(ProgramModule(program, equalize_layers(program, tensors)[0])(x), model(x), rtol=1e-3, atol=1e-3)
