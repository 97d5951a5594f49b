"""MSDNet: a network made to answer early, with coarse features from its first layer on."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.errors import check
from featherweight.nets.layers import classifier, conv_norm
from featherweight.nets.shape import check_image

__all__ = ["msdnet"]

_SCALES = 3
_HEAD = 64  # channels of the convolutions before an answer; theirs have 128


def msdnet(
    *,
    input_shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    exits: int = 4,
    layers: int = 2,
    channels: int = 16,
    growth: int = 6,
) -> nn.Module:
    """A multi-scale dense network for small images: Huang, Chen, Li, Wu, van der Maaten and Weinberger (ICLR 2018).

    Features are kept at three scales, each of half the pixels and twice the channels of the one before. A layer adds features
    to each, made of all that are there at this scale and the one before, so that an exit finds coarse features however early
    it comes, and takes none away from what comes later. Left out are their 1x1 bottlenecks and the reduction of channels
    between blocks; no features are made at the end that no exit needs.

    Args:
        input_shape: (channels, rows, columns), at least 16 rows and columns.
        classes: number of outputs, at least 1.
        exits: number of answers, at least 2.
        layers: before each exit, the first layer aside, at least 1.
        channels: of the first layer at the finest scale, at least 1.
        growth: channels that a layer adds at the finest scale, even, at least 2.

    Returns:
        The network: (B, *input_shape) -> a tuple of `exits` logits (B, classes). `dynamic.ExitNetwork` runs it exit by exit.

    Raises:
        RequestError: the input is no image or too small, or a size is out of range.

    Example:
        >>> [tuple(answer.shape) for answer in msdnet()(torch.zeros(2, 1, 28, 28))]
        [(2, 10), (2, 10), (2, 10), (2, 10)]
    """
    colours, _, _ = check_image("msdnet", input_shape, classes, 16)
    for name, value, least in (("exits", exits, 2), ("layers", layers, 1), ("channels", channels, 1)):
        check(f"{name} of msdnet", value, f"a whole number of at least {least}", isinstance(value, int) and value >= least)
    check("growth of msdnet", growth, "even, at least 2", growth >= 2 and growth % 2 == 0)
    return _MSDNet(colours, classes, exits, layers, channels, growth)


class _MSDNet(nn.Module):
    def __init__(self, colours: int, classes: int, exits: int, layers: int, channels: int, growth: int) -> None:
        super().__init__()
        self.per_exit = layers
        widths = [channels * 2**scale for scale in range(_SCALES)]
        self.first = nn.ModuleList(
            conv_norm(before, width, 3, stride=2 if scale else 1)
            for scale, (before, width) in enumerate(zip([colours, *widths], widths, strict=False))
        )
        self.layers = nn.ModuleList()
        self.heads = nn.ModuleList()
        for number in range(exits * layers):
            finest = max(0, _SCALES - exits * layers + number)  # of the last layers only the coarse features are used
            self.layers.append(_Layer(widths, growth, finest))
            widths = [width + growth * 2**scale * (scale >= finest) for scale, width in enumerate(widths)]
            if (number + 1) % layers == 0:
                self.heads.append(_head(widths[-1], classes))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = []
        for layer in self.first:
            images = layer(images)
            features.append(images)
        answers = []
        for number, layer in enumerate(self.layers, start=1):
            features = layer(features)
            if number % self.per_exit == 0:
                answers.append(self.heads[number // self.per_exit - 1](features[-1]))
        return tuple(answers)


class _Layer(nn.Module):
    """Adds features to each scale from `finest` on: half from its own, half from the finer one, where there is one."""

    def __init__(self, widths: list[int], growth: int, finest: int) -> None:
        super().__init__()
        self.finest = finest
        self.same = nn.ModuleList()
        self.down = nn.ModuleList()
        for scale in range(finest, len(widths)):
            wide = growth * 2**scale
            self.same.append(conv_norm(widths[scale], wide // 2 if scale else wide, 3))
            if scale:
                self.down.append(conv_norm(widths[scale - 1], wide // 2, 3, stride=2))

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        found = list(features[: self.finest])
        down = iter(self.down)
        for scale, same in enumerate(self.same, start=self.finest):
            made = [features[scale], same(features[scale])]
            if scale:
                made.append(next(down)(features[scale - 1]))
            found.append(torch.cat(made, dim=1))
        return found


def _head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(channels, _HEAD, 3, stride=2), conv_norm(_HEAD, _HEAD, 3, stride=2), *classifier(_HEAD, classes)
    )
