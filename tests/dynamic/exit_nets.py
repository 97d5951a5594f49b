"""Small networks of every kind, for tests of exits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from featherweight.nets.layers import conv_norm
from featherweight.nets.transformer import TransformerBlock

SHAPE = (1, 12, 12)
CLASSES = 5


def chain() -> nn.Module:
    return nn.Sequential(
        *conv_norm(1, 6, 3),
        nn.MaxPool2d(2),
        *conv_norm(6, 8, 3),
        nn.MaxPool2d(2),
        nn.Flatten(1),
        nn.Linear(72, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(1, 6, 3)
        self.first = nn.ModuleList([conv_norm(6, 6, 3), conv_norm(6, 6, 3, activation=None)])
        self.second = nn.ModuleList([conv_norm(6, 6, 3), conv_norm(6, 6, 3, activation=None)])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for one, two in (self.first, self.second):
            x = self.relu(two(one(x)) + x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Reads the batch size in its middle, has a token of its own, and a mask made of the input that all blocks read."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(12, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(TransformerBlock(8, 2, 16) for _ in range(3))
        self.late = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, 0]
        mask = ((rows.sum(2) > 0).to(x.dtype) - 1)[:, None, None, :]
        x = self.patches(rows)
        x = x + self.token.expand(x.shape[0], 12, -1)
        for number, block in enumerate(self.blocks):
            x = block(x, mask)
            if number == 1:
                x = x + self.late.expand(x.shape[0], -1, -1)
        return self.head(x.reshape(x.shape[0] * 12, 8).view(x.shape[0], 12, 8).mean(1))  # type: ignore[no-any-return]


NETS: Mapping[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "chain": (chain, ("0", "4")),
    "residual": (Residual, ("stem", "first")),
    "transformer": (Transformer, ("blocks.0", "blocks.1")),
}
"""Networks by name, with places for two exits."""


def samples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
