"""The MobileNets: depthwise convolutions, and 1x1 convolutions between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from featherweight.nets.layers import SqueezeExcite, classifier, conv_norm, round_channels
from featherweight.nets.shape import check_image, check_width, strides

__all__ = ["InvertedResidual", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"]

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))  # channels, stride


def mobilenet_v1(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """MobileNet: Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam (2017), table 1.

    A convolution, 13 depthwise separable ones with a norm and ReLU6 (as in the authors' code; the paper says ReLU) after both
    their parts, the mean over all pixels, and a linear layer.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 8.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 4,231,976 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in mobilenet_v1(width=0.25).parameters())
        470072
    """
    in_channels, _, _ = check_image("mobilenet-v1", input_shape, classes, 8)
    check_width("mobilenet-v1", width)
    steps = iter(strides(input_shape, 5))
    channels = round_channels(32 * width)
    layers: dict[str, nn.Module] = {"stem": conv_norm(in_channels, channels, 3, stride=next(steps), activation=nn.ReLU6)}
    for number, (wide, stride) in enumerate(_V1, start=1):
        step, outgoing = next(steps) if stride == 2 else 1, round_channels(wide * width)
        depthwise = conv_norm(channels, channels, 3, stride=step, groups=channels, activation=nn.ReLU6)
        pointwise = conv_norm(channels, outgoing, activation=nn.ReLU6)
        layers[f"block{number}"] = nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))
        channels = outgoing
    return nn.Sequential(OrderedDict(layers, classifier=classifier(channels, classes)))


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two 1x1 ones, the last of them linear; added to the input where that has its shape.

    Cost: I·H + k·k·H + H·O weights (without I·H where H = I, as nothing is widened then), and 2·H·S + S + H for squeeze and
    excite. Each convolution has a norm, of 2 parameters a channel; each weight is one MAC for every pixel of its output. Shape:
    (B, I, rows, columns) -> (B, O, rows / stride, columns / stride), rounded up. Sandler, Howard, Zhu, Zhmoginov and Chen
    (2018); with squeeze and excite Howard et al. (2019).

    Args:
        in_channels: I.
        hidden: H, of the depthwise convolution.
        channels: O.
        kernel: k, odd.
        stride: of the depthwise convolution.
        squeezed: S, of squeeze and excite; 0 for none.
        activation: makes what follows the first two norms.
        norm: makes the norm of so many channels.

    Example:
        >>> sum(parameter.numel() for parameter in InvertedResidual(8, 48, 8).parameters())  # 384 + 432 + 384 + 2·(96 + 8)
        1408
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        squeezed: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        if hidden != in_channels:
            layers["widen"] = conv_norm(in_channels, hidden, activation=activation, norm=norm)
        layers["depthwise"] = conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation, norm=norm)
        if squeezed:
            layers["excite"] = SqueezeExcite(hidden, squeezed)
        layers["narrow"] = conv_norm(hidden, channels, activation=None, norm=norm)
        self.residual = nn.Sequential(OrderedDict(layers))
        self.added = stride == 1 and in_channels == channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = self.residual(features)
        return features + residual if self.added else residual


# Factor of widening, channels, blocks, stride of the first.
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """MobileNetV2: Sandler, Howard, Zhu, Zhmoginov and Chen (2018), table 2.

    A convolution, 17 inverted residuals, a 1x1 convolution to 1280 channels, the mean over all pixels, dropout of 0.2, and a
    linear layer.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 8; on the last 1280 only if it is above 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 3,504,872 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in mobilenet_v2().parameters())
        3504872
    """
    in_channels, _, _ = check_image("mobilenet-v2", input_shape, classes, 8)
    check_width("mobilenet-v2", width)
    steps = iter(strides(input_shape, 5))
    channels = round_channels(32 * width)
    layers: dict[str, nn.Module] = {"stem": conv_norm(in_channels, channels, 3, stride=next(steps), activation=nn.ReLU6)}
    for factor, wide, blocks, first in _V2:
        for stride in (first, *(1,) * (blocks - 1)):
            step, outgoing = next(steps) if stride == 2 else 1, round_channels(wide * width)
            layers[f"block{len(layers)}"] = InvertedResidual(channels, factor * channels, outgoing, stride=step)
            channels = outgoing
    last = round_channels(1280 * max(1.0, width))
    layers["head"] = conv_norm(channels, last, activation=nn.ReLU6)
    return nn.Sequential(OrderedDict(layers, classifier=classifier(last, classes, dropout=0.2)))


# Kernel, hidden channels, channels, squeeze and excite, activation, stride.
_V3_SMALL: tuple[tuple[int, int, int, bool, Callable[[], nn.Module], int], ...] = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)


def mobilenet_v3_small(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """MobileNetV3-Small: Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le and Adam (2019), table 2.

    A convolution, 11 inverted residuals, most with squeeze and excite and the hard swish, a 1x1 convolution, the mean over all
    pixels, and two linear layers with dropout of 0.2 between them. Squeeze and excite narrows to a quarter of the hidden
    channels.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 8.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 2,542,856 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in mobilenet_v3_small().parameters())
        2542856
    """
    in_channels, _, _ = check_image("mobilenet-v3-small", input_shape, classes, 8)
    check_width("mobilenet-v3-small", width)
    steps = iter(strides(input_shape, 5))
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    conv = partial(conv_norm, activation=nn.Hardswish, norm=norm)
    channels = round_channels(16 * width)
    layers: dict[str, nn.Module] = {"stem": conv(in_channels, channels, 3, stride=next(steps))}
    for number, (kernel, wide, outgoing, excited, activation, stride) in enumerate(_V3_SMALL, start=1):
        step, hidden = next(steps) if stride == 2 else 1, round_channels(wide * width)
        layers[f"block{number}"] = InvertedResidual(
            channels,
            hidden,
            round_channels(outgoing * width),
            kernel,
            stride=step,
            squeezed=round_channels(hidden / 4) if excited else 0,
            activation=activation,
            norm=norm,
        )
        channels = round_channels(outgoing * width)
    layers["head"] = conv(channels, 6 * channels)
    head = classifier(6 * channels, round_channels(1024 * width), classes, activation=nn.Hardswish, dropout=0.2)
    return nn.Sequential(OrderedDict(layers, classifier=head))
