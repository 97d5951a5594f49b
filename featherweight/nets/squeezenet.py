"""SqueezeNet: few channels enter the 3x3 convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from featherweight.errors import look_up
from featherweight.nets.layers import round_channels
from featherweight.nets.shape import check_image, check_width, strides

__all__ = ["Fire", "squeezenet"]


class Fire(nn.Module):
    """A fire module: a 1x1 convolution squeezes the channels, 1x1 and 3x3 convolutions side by side expand them again.

    Cost: I·S + S·E/2 + 9·S·E/2 = S·(I + 5·E) weights and S + E biases, each weight one MAC a pixel. Shape: (B, I, H, W) ->
    (B, E, H, W). Iandola et al. (2016), with as many 1x1 as 3x3 filters, as in all of their nets.

    Args:
        in_channels: I.
        squeezed: S.
        channels: E, even.

    Example:
        >>> sum(parameter.numel() for parameter in Fire(96, 16, 128).parameters())  # fire2 of their table 1 has 11,920
        11920
    """

    def __init__(self, in_channels: int, squeezed: int, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, channels // 2, 1)
        self.expand3 = nn.Conv2d(squeezed, channels // 2, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        squeezed = self.relu(self.squeeze(features))
        return self.relu(torch.cat([self.expand1(squeezed), self.expand3(squeezed)], dim=1))  # type: ignore[no-any-return]


_SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)  # of fire2 to fire9; each expands to 8 times as many

# The first convolution's channels and kernel, and the modules before which poolings stand.
_VERSIONS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {"1.0": (96, 7, (2, 5, 9)), "1.1": (64, 3, (2, 4, 6))}


def squeezenet(
    *, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0, version: str = "1.1"
) -> nn.Module:
    """SqueezeNet: Iandola, Han, Moskewicz, Ashraf, Dally and Keutzer (2016), without bypass.

    A convolution, eight fire modules, and a 1x1 convolution whose means over all pixels are the outputs. Version 1.1 is the
    authors' later one: 2.4 times fewer multiply-accumulates, as a smaller first kernel and earlier poolings have it.

    Args:
        input_shape: (channels, rows, columns), at least 16 rows and columns; of its four halvings, the first fall away on
            images below 56 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels but the outputs, above 0; rounded to multiples of 8.
        version: "1.0" or "1.1".

    Returns:
        The network: (B, *input_shape) -> (B, classes). 1,248,424 parameters in version 1.0, 1,235,496 in 1.1.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in squeezenet().parameters())
        1235496
    """
    in_channels, _, _ = check_image("squeezenet", input_shape, classes, 16)
    check_width("squeezenet", width)
    first, kernel, pooled = look_up(_VERSIONS, version, "a version of squeezenet")
    steps = iter(strides(input_shape, 4))
    channels = round_channels(first * width)
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(in_channels, channels, kernel, next(steps)), "relu1": nn.ReLU()}
    for number, squeezed in enumerate(_SQUEEZED, start=2):
        if number in pooled and next(steps) == 2:
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        expanded = round_channels(8 * squeezed * width)
        layers[f"fire{number}"] = Fire(channels, round_channels(squeezed * width), expanded)
        channels = expanded
    layers |= {"dropout": nn.Dropout(0.5), "conv10": nn.Conv2d(channels, classes, 1), "relu10": nn.ReLU()}
    layers |= {"pool10": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1)}
    return nn.Sequential(OrderedDict(layers))
