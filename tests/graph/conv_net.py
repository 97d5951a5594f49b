"""The plain network that most of the small networks are built on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["IMAGE", "ConvNet", "classifier"]

IMAGE = (3, 8, 8)


def classifier(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 4))


class ConvNet(nn.Module):
    """Two convolutions, something of a subclass's in between, and a classifier."""

    middle_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(self.middle_channels, 6, 3, padding=1)
        self.head = classifier(6)
        self.build()

    def build(self) -> None:
        """The layers of the middle."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.last(self.middle(F.relu(self.stem(x))))))
