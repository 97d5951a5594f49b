"""Layers that the compact networks share. Cost is in weights; of a convolution, each makes one MAC for every output pixel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

__all__ = ["SeparableConv", "SqueezeExcite", "classifier", "conv_norm", "max_pool", "round_channels"]


def round_channels(channels: float, multiple: int = 8) -> int:
    """The nearest multiple, but no less than nine tenths of `channels`: how the MobileNets round their widths.

    Args:
        channels: how many there would be, above 0.
        multiple: of which the result is one, at least 1.

    Returns:
        How many there are, at least `multiple`.

    Example:
        >>> round_channels(32 * 0.75), round_channels(20), round_channels(27, 8), round_channels(1, 4)
        (24, 24, 32, 4)
    """
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * channels else rounded + multiple


def conv_norm(
    in_channels: int,
    channels: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride), a norm, and an activation if there is one.

    Args:
        in_channels: I.
        channels: O.
        kernel: k, odd.
        stride: 1 or 2.
        groups: G, of the convolution; divides I and O.
        activation: makes the last layer.
        norm: makes the norm of so many channels.

    Returns:
        (B, I, H, W) -> (B, O, H / stride, W / stride), sizes rounded up. k·k·I·O / G weights, and 2·O of the norm.

    Example:
        >>> conv_norm(8, 16, 3, stride=2)(torch.zeros(1, 8, 7, 7)).shape
        torch.Size([1, 16, 4, 4])
    """
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        "norm": norm(channels),
    }
    if activation is not None:
        layers["activation"] = activation()
    return nn.Sequential(OrderedDict(layers))


class SeparableConv(nn.Sequential):
    """A depthwise separable convolution: k x k in each channel by itself, then 1 x 1 across the channels.

    Cost: k·k·I + I·O weights against the k·k·I·O of a convolution, a share of 1/O + 1/k²; 9 times fewer at most for k = 3.
    Shape: (B, I, H, W) -> (B, O, H / stride, W / stride), sizes rounded up. Sifre (2014), chapter 6; Chollet (2017), who has
    nothing between the two.

    Args:
        in_channels: I.
        channels: O.
        kernel: k, odd.
        stride: of the depthwise convolution.

    Example:
        >>> def count(module): return sum(parameter.numel() for parameter in module.parameters())
        >>> count(nn.Conv2d(2, 4, 3, bias=False)), count(SeparableConv(2, 4))
        (72, 26)
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, *, stride: int = 1) -> None:
        depthwise = nn.Conv2d(in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False)
        pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor in [0, 1] that two small layers find from the means of all channels.

    Cost: 2·C·S weights and S + C biases, at one pixel: C·2·S MACs. Hu, Shen and Sun (2018); ReLU and the hard sigmoid as in
    MobileNetV3 (Howard et al., 2019).

    Args:
        channels: C.
        squeezed: S, the width between the two layers.

    Example:
        >>> SqueezeExcite(16, 4)(torch.zeros(2, 16, 5, 5)).shape
        torch.Size([2, 16, 5, 5])
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        means = self.pool(features)
        return features * self.gate(self.excite(self.relu(self.squeeze(means))))  # type: ignore[no-any-return]


def max_pool(stride: int) -> nn.Module:
    """3 x 3 max pooling that halves the size; nothing where its stride has fallen away.

    Args:
        stride: 1 or 2.

    Returns:
        (B, C, H, W) -> (B, C, H / stride, W / stride), sizes rounded up.

    Example:
        >>> max_pool(2)(torch.zeros(1, 4, 7, 7)).shape, max_pool(1)
        (torch.Size([1, 4, 4, 4]), Identity())
    """
    return nn.Identity() if stride == 1 else nn.MaxPool2d(3, stride, padding=1)


def classifier(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """The mean over all pixels, and linear layers with an activation between them.

    Args:
        *widths: channels, the widths between the layers, classes.
        activation: makes what is between two layers.
        dropout: the probability, in [0, 1), before the last layer.

    Returns:
        (B, channels, H, W) -> (B, classes).

    Example:
        >>> classifier(8, 10)(torch.zeros(3, 8, 2, 2)).shape
        torch.Size([3, 10])
    """
    layers: dict[str, nn.Module] = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1)}
    for number, (incoming, width) in enumerate(pairwise(widths), start=1):
        last = number == len(widths) - 1
        if last and dropout:
            layers["dropout"] = nn.Dropout(dropout)
        layers[f"fc{number}"] = nn.Linear(incoming, width)
        if not last:
            layers[f"activation{number}"] = activation()
    return nn.Sequential(OrderedDict(layers))
