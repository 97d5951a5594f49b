"""Small networks, one for each way in which channels can be coupled. `SMALL` names them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.conv_net import IMAGE, ConvNet, classifier
from tests.graph.counting_nets import (
    Folded,
    PaddedChannels,
    Picked,
    PixelShuffled,
    Repeated,
    ShiftedChannels,
    ShuffledByTorch,
    Squeezed,
    Steps,
    TiedAcross,
)
from tests.graph.sequence_nets import SEQUENCE, SEQUENCES

__all__ = ["HARD_WIRED", "SMALL"]


class Residual(ConvNet):
    """An identity shortcut, and one with a projection."""

    middle_channels = 10

    def build(self) -> None:
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 10, 3, padding=1))
        self.projection = nn.Conv2d(8, 10, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(x + self.a(x))
        return self.projection(x) + self.b(x)


class Dense(ConvNet):
    """Concatenation of what came before, also with the input of the network."""

    middle_channels = 8 + 4 + 5 + 3

    def build(self) -> None:
        self.a = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.stem(x))
        second = torch.cat([first, self.a(first)], 1)
        third = torch.cat([second, self.b(F.silu(self.norm(second))), x], dim=1)
        return self.head(F.relu(self.last(third)))


class Flattened(nn.Module):
    """Convolutions flattened into linear layers, in one of several ways."""

    def __init__(self, flatten: Callable[[torch.Tensor], torch.Tensor], pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.pool = pool or nn.MaxPool2d(2)
        self.flatten = flatten
        self.hidden = nn.Linear(6 * 9, 7)
        self.norm1d = nn.BatchNorm1d(7)
        self.out = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.flatten(self.pool(self.norm(self.conv(x))))
        return self.out(torch.tanh(self.norm1d(self.hidden(x))))


class PooledByMean(ConvNet):
    """Global pooling written as reductions, and a broadcast back."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3))[:, :, None, None]
        return F.max_pool2d(x, 2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.last(self.middle(self.stem(x))))
        return self.head[2](x.flatten(2).mean(-1) + x.sum((-2, -1)))


class Depthwise(ConvNet):
    """Depthwise, depthwise with a multiplier of 2, then pointwise."""

    middle_channels = 9

    def build(self) -> None:
        self.depth = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(16, 9, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(F.hardswish(self.twice(F.relu6(self.norm(self.depth(x))))))


class Grouped(ConvNet):
    """A convolution of two groups, and one of four."""

    middle_channels = 12

    def build(self) -> None:
        self.two = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.four = nn.Conv2d(12, 12, 3, padding=1, groups=4)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.four(F.leaky_relu(self.two(x), 0.2))


class Shuffled(ConvNet):
    """ShuffleNet: grouped convolution, then channels shuffled by view and transpose."""

    def build(self) -> None:
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(x)
        batch, channels, rows, columns = x.shape
        return x.view(batch, 2, channels // 2, rows, columns).transpose(1, 2).reshape(batch, channels, rows, columns)


class Chunked(ConvNet):
    """Halves by chunk, thirds by split, parts by slices, one channel by number, put together in another order."""

    middle_channels = 15

    def build(self) -> None:
        self.wide = nn.Conv2d(8, 12, 1)
        self.three = nn.Conv2d(6, 6, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.wide(x).chunk(2, 1)
        gated = self.three(left * torch.sigmoid(right))
        first, second = gated.split([2, 4], dim=1)
        parts = gated.split(2, 1)
        return torch.cat([second[:, 1:], first, parts[2], x[:, 2:], x[:, :1], x[:, 3].unsqueeze(1)], 1)


class Gated(ConvNet):
    """Squeeze and excite."""

    def build(self) -> None:
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.fc = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8), nn.Hardsigmoid())

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        gate = self.fc(x.mean((2, 3)))
        return x * gate.view(x.size(0), -1, 1, 1)


class Slopes(ConvNet):
    """PReLU with a slope per channel and with one for all, a scalar, a scale for each channel."""

    def build(self) -> None:
        self.slopes = nn.PReLU(8)
        self.slope = nn.PReLU()
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.single = nn.Parameter(torch.tensor([0.6]))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.rand(8))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.slopes(x - 0.5)) * self.scalar + self.single
        return x * self.scale + self.shift.view(1, -1, 1, 1)


class Tied(ConvNet):
    """One convolution used twice, and two linear layers that share a weight."""

    def build(self) -> None:
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(F.relu(self.shared(x)))
        return x + self.b(F.relu(self.a(x.mean((2, 3)))))[:, :, None, None]


class Padded(ConvNet):
    """Padding of positions by a number and by reflection, upsampling, strides in positions."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(F.pad(x, (1, 2, 0, 1), value=0.3), (1, 1, 1, 1), mode="reflect")
        return F.interpolate(x[:, :, ::2, 1::2], scale_factor=2)


class MaxPooled(ConvNet):
    """Adaptive max pooling, which gives positions too."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_max_pool2d(x, 4)


class Literal(ConvNet):
    """A tensor that is no buffer, and a buffer that is not saved."""

    def build(self) -> None:
        self.plain = torch.rand(8, 1, 1) + 0.5
        self.register_buffer("unsaved", torch.rand(8, 1, 1) + 0.5, persistent=False)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.plain) * self.unsaved


class Normalised(ConvNet):
    """Group, layer and instance norm, and a softmax over channels: all lock what they run over."""

    middle_channels = 5

    def build(self) -> None:
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8)
        self.free = nn.Conv2d(8, 6, 1)
        self.more = nn.Conv2d(6, 5, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(F.elu(self.free(F.softmax(self.instance(self.group(x)), 1)))).log_softmax(-1)


class HardWired(nn.Module):
    """`view` with its sizes as numbers, so that only a captured program can be smaller."""

    def __init__(self, *, unflatten: bool = False) -> None:
        super().__init__()
        self.unflatten = unflatten
        self.conv = nn.Conv2d(3, 16, 5)
        if unflatten:
            self.tail = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), classifier(8))
        else:
            self.tail = nn.Sequential(nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x)).view(-1, 256)
        return self.tail(x.view(x.shape[0], 16, 4, 4) if self.unflatten else x)


class ManyOutputs(ConvNet):
    """Outputs in a dict with a tuple."""

    def build(self) -> None:
        self.other = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        x = F.relu(self.last(F.relu(self.stem(x)))).mean((2, 3))
        return {"classes": self.head[2](x), "rest": (self.other(x), self.other(x) ** 2)}


class TwoInputs(ConvNet):
    """Two inputs, added after one layer each."""

    def build(self) -> None:
        self.second = nn.Conv2d(2, 8, 3, padding=1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.last(F.relu(self.stem(x) + self.second(y)))))


class Sequence(nn.Module):
    """Convolutions in one dimension, then linear layers at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3, groups=2, padding="same")
        self.c, self.d = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool1d(self.b(F.relu(self.norm(self.a(x)))), 2)
        return self.d(F.relu(self.c(x.transpose(1, 2)))).mean(1)


class ComputedVectors(ConvNet):
    """Biases, norms and slopes that are computed from parameters: channels are coupled through them too."""

    def build(self) -> None:
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.logits, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("deviation", torch.rand(8) + 0.5)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.weight, torch.sigmoid(self.shift))
        x = F.batch_norm(x, self.mean, self.deviation**2, self.logits.exp(), self.shift - 0.1)
        return F.prelu(x, torch.tanh(self.logits))


def _by(flatten: Callable[[torch.Tensor], torch.Tensor], pool: nn.Module | None = None) -> Callable[[], nn.Module]:
    return lambda: Flattened(flatten, pool)


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "plain": (ConvNet, (IMAGE,)),
    "residual": (Residual, (IMAGE,)),
    "dense": (Dense, (IMAGE,)),
    "flatten": (_by(lambda x: x.flatten(1)), (IMAGE,)),
    "view": (_by(lambda x: x.view(x.size(0), -1)), (IMAGE,)),
    "view-all": (_by(lambda x: x.view(-1, x[0].numel())), (IMAGE,)),
    "reshape": (_by(lambda x: x.reshape(x.shape[0], -1), nn.AvgPool2d(2)), (IMAGE,)),
    "permute": (_by(lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1), nn.AdaptiveAvgPool2d(3)), (IMAGE,)),
    "mean": (PooledByMean, (IMAGE,)),
    "depthwise": (Depthwise, (IMAGE,)),
    "grouped": (Grouped, (IMAGE,)),
    "shuffled": (Shuffled, (IMAGE,)),
    "shuffled-by-torch": (ShuffledByTorch, (IMAGE,)),
    "pixel-shuffled": (PixelShuffled, (IMAGE,)),
    "chunked": (Chunked, (IMAGE,)),
    "steps": (Steps, (IMAGE,)),
    "picked": (Picked, (IMAGE,)),
    "gated": (Gated, (IMAGE,)),
    "slopes": (Slopes, (IMAGE,)),
    "tied": (Tied, (IMAGE,)),
    "tied-across": (TiedAcross, (IMAGE,)),
    "padded": (Padded, (IMAGE,)),
    "padded-channels": (PaddedChannels, (IMAGE,)),
    "squeezed": (Squeezed, (IMAGE,)),
    "max-pooled": (MaxPooled, (IMAGE,)),
    "folded": (Folded, (IMAGE,)),
    "repeated": (Repeated, (IMAGE,)),
    "literal": (Literal, (IMAGE,)),
    "normalised": (Normalised, (IMAGE,)),
    "hard-wired": (HardWired, (IMAGE,)),
    "hard-wired-unflatten": (lambda: HardWired(unflatten=True), (IMAGE,)),
    "many-outputs": (ManyOutputs, (IMAGE,)),
    "two-inputs": (TwoInputs, (IMAGE, (2, 8, 8))),
    "computed-vectors": (ComputedVectors, (IMAGE,)),
    "shifted-channels": (ShiftedChannels, (IMAGE,)),
    "sequence": (Sequence, ((3, 11),)),
    **{name: (make, (SEQUENCE,)) for name, make in SEQUENCES.items()},
}
"""For each name what makes the network, and the shape of one sample of each input."""

HARD_WIRED = {
    *("hard-wired", "hard-wired-unflatten", "chunked", "squeezed", "normalised", "fused-attention"),
    *("grouped-query", "repeated-query", "torch-attention", "windows", "filled"),
}
"""Those whose own class cannot run smaller, or would compute something else: they come back as a program."""
