"""Xception: separable convolutions with residuals, for large images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from featherweight.nets.layers import SeparableConv, classifier, conv_norm, max_pool, round_channels
from featherweight.nets.shape import check_image, check_width, strides

__all__ = ["XceptionBlock", "xception"]


class XceptionBlock(nn.Module):
    """Xception's module: separable 3x3 convolutions, each after a ReLU and before a norm; max pooling for a stride; a shortcut.

    Cost: 9·I + I·O weights for each convolution from I to O channels, and where the shape changes, a 1x1 convolution for the
    shortcut, I·O. Each has a norm, of 2 parameters a channel; each weight is one MAC for every pixel of its output (the pooling
    comes last). Shape: (B, channels[0], H, W) -> (B, channels[-1], H / stride, W / stride), rounded up. Chollet (2017), fig. 5.

    Args:
        channels: of the input and of each convolution.
        stride: 1 or 2.
        relu_first: whether the first convolution comes after a ReLU; without, the input has had one.

    Example:
        >>> sum(parameter.numel() for parameter in XceptionBlock([8, 16, 16], stride=2).parameters())  # 200 + 400 + 128 + 96
        824
    """

    def __init__(self, channels: Sequence[int], *, stride: int = 1, relu_first: bool = True) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        for number, (incoming, outgoing) in enumerate(pairwise(channels), start=1):
            if number > 1 or relu_first:
                layers[f"relu{number}"] = nn.ReLU()
            layers[f"conv{number}"] = SeparableConv(incoming, outgoing)
            layers[f"norm{number}"] = nn.BatchNorm2d(outgoing)
        layers["pool"] = max_pool(stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels[0] != channels[-1]:
            self.shortcut = conv_norm(channels[0], channels[-1], stride=stride, activation=None)
        self.residual = nn.Sequential(OrderedDict(layers))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.residual(features) + self.shortcut(features)  # type: ignore[no-any-return]


# Channels of each convolution, and the stride.
_ENTRY = (((128, 128), 2), ((256, 256), 2), ((728, 728), 2))
_BLOCKS: tuple[tuple[tuple[int, ...], int], ...] = (*_ENTRY, *(((728, 728, 728), 1),) * 8, ((728, 1024), 2))


def xception(*, input_shape: tuple[int, ...] = (3, 299, 299), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Xception: Chollet (2017), figure 5.

    Two convolutions without padding, 12 blocks, two more separable convolutions, the mean over all pixels, dropout of 0.5, and
    a linear layer.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 8.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 22,855,952 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in xception(classes=10, width=0.125).parameters())
        341010
    """
    in_channels, _, _ = check_image("xception", input_shape, classes, 8)
    check_width("xception", width)
    steps = iter(strides(input_shape, 5))
    first, second, *last = (round_channels(channels * width) for channels in (32, 64, 1536, 2048))
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(in_channels, first, 3, next(steps), bias=False),
        "norm1": nn.BatchNorm2d(first),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(first, second, 3, bias=False),
        "norm2": nn.BatchNorm2d(second),
        "relu2": nn.ReLU(),
    }
    channels = second
    for number, (wide, stride) in enumerate(_BLOCKS, start=1):
        widths = [channels, *(round_channels(each * width) for each in wide)]
        step = next(steps) if stride == 2 else 1
        layers[f"block{number}"] = XceptionBlock(widths, stride=step, relu_first=number > 1)
        channels = widths[-1]
    for number, outgoing in enumerate(last, start=3):
        layers[f"conv{number}"] = SeparableConv(channels, outgoing)
        layers[f"norm{number}"] = nn.BatchNorm2d(outgoing)
        layers[f"relu{number}"] = nn.ReLU()
        channels = outgoing
    return nn.Sequential(OrderedDict(layers, classifier=classifier(channels, classes, dropout=0.5)))
