"""Small networks that count, pick, shuffle or fold channels: where removing one easily moves another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.conv_net import ConvNet

__all__ = [
    "Folded",
    "PaddedChannels",
    "Picked",
    "PixelShuffled",
    "Repeated",
    "ShiftedChannels",
    "ShuffledByTorch",
    "Squeezed",
    "Steps",
    "TiedAcross",
]


class Steps(ConvNet):
    """Channels picked in a way that counts: every second one, rolled, unbound."""

    middle_channels = 4 + 8 + 2

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        one, two, *_ = x.unbind(1)
        return torch.cat([x[:, ::2], x.roll(1, 1), torch.stack([one, two], 1)], 1)


class Picked(ConvNet):
    """Channels picked by number; two of them look alike to a grouping."""

    middle_channels = 3

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], x[:, 1], x[:, -1]], 1)


class PaddedChannels(ConvNet):
    """A shortcut padded with channels of zeros (option A of He et al.): the shortcut must stay."""

    middle_channels = 12

    def build(self) -> None:
        self.wide = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class ShiftedChannels(ConvNet):
    """A padding that moves the channels by one and keeps their number."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, 0, 1, -1))


class Folded(ConvNet):
    """Channels folded into the batch and back."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, rows, columns = x.shape
        x = F.avg_pool2d(x.reshape(batch * channels, 1, rows, columns), 2)
        return x.reshape(batch, channels, rows // 2, columns // 2)


class Repeated(ConvNet):
    """Channels repeated, one after the other and as a whole."""

    middle_channels = 32

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.repeat_interleave(2, 1), x.repeat(1, 2, 1, 1).flip(1)], 1)


class Squeezed(ConvNet):
    """`squeeze` must not take away a channel axis of which one channel stayed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.last(F.relu(self.stem(x))))
        return self.head[2](F.adaptive_avg_pool2d(x, 1).squeeze().squeeze(1))


class ShuffledByTorch(ConvNet):
    """The same by `channel_shuffle`, without a grouped convolution that would tie the groups."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.channel_shuffle(x, 2)


class PixelShuffled(ConvNet):
    """Sub-pixel upsampling: four channels make one."""

    middle_channels = 2

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(x, 2)


class TiedAcross(nn.Module):
    """A weight used by a linear layer, and element by element in a product: it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.encode, self.out = nn.Linear(192, 8), nn.Linear(8, 6), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = F.relu(self.encode(F.relu(self.hidden(x.flatten(1)))))
        return self.out(torch.matmul(code, self.encode.weight))
