"""The ShuffleNets: convolutions that see a part of the channels each, and shuffles that mix the parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from featherweight.errors import check
from featherweight.nets.layers import classifier, conv_norm, max_pool, round_channels
from featherweight.nets.shape import check_image, check_width, strides

__all__ = ["ShuffleUnit", "SplitUnit", "shuffle_channels", "shufflenet_v1", "shufflenet_v2"]


def shuffle_channels(features: torch.Tensor, groups: int) -> torch.Tensor:
    """Deals the channels of each group to all groups in turn: G groups of n become n groups of G. No weights, no MACs.

    Zhang, Zhou, Lin and Sun (2018), section 3.1.

    Args:
        features: shape (B, C, H, W).
        groups: G, which divides C.

    Returns:
        The same channels in their new order, shape (B, C, H, W).

    Example:
        >>> shuffle_channels(torch.arange(6).reshape(1, 6, 1, 1), 2).flatten().tolist()
        [0, 3, 1, 4, 2, 5]
    """
    return features.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)  # type: ignore[no-any-return]


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: 1x1 in groups to a quarter of the channels, a shuffle, a depthwise 3x3, and 1x1 in groups.

    Where the channels grow, the input (its 3x3 means, if there is a stride) stands beside R = O - I new channels; else it is
    added to R = O. Cost: with M = O / 4, I·M / F + 9·M + M·R / G weights. Each convolution has a norm, of 2 parameters a
    channel; each weight is one MAC for every pixel of its output. Shape: (B, I, H, W) -> (B, O, H / stride, W / stride),
    rounded up. Zhang, Zhou, Lin and Sun (2018).

    Args:
        in_channels: I.
        channels: O, a multiple of 4·G, at least I; above I where there is a stride.
        groups: G, of the last convolution and the shuffle; divides I.
        first_groups: F, of the first convolution; G by default.
        stride: of the depthwise convolution.

    Example:
        >>> sum(parameter.numel() for parameter in ShuffleUnit(24, 24, groups=3).parameters())  # 48 + 54 + 48 + 2·(12 + 24)
        222
    """

    def __init__(
        self, in_channels: int, channels: int, *, groups: int, first_groups: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        middle = channels // 4
        self.groups = groups
        self.grows = channels > in_channels
        self.narrow = conv_norm(in_channels, middle, groups=groups if first_groups is None else first_groups)
        self.depthwise = conv_norm(middle, middle, 3, stride=stride, groups=middle, activation=None)
        self.widen = conv_norm(middle, channels - in_channels * self.grows, groups=groups, activation=None)
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.relu = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        shuffled = shuffle_channels(self.narrow(features), self.groups)
        residual, kept = self.widen(self.depthwise(shuffled)), self.shortcut(features)
        return self.relu(torch.cat([kept, residual], dim=1) if self.grows else kept + residual)  # type: ignore[no-any-return]


_REPEATS = (4, 8, 4)  # units of the three stages, of both versions

_CHANNELS_BY_GROUPS: Mapping[int, int] = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


def shufflenet_v1(
    *, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0, groups: int = 3
) -> nn.Module:
    """ShuffleNet: Zhang, Zhou, Lin and Sun (2018), table 1.

    A convolution, max pooling, three stages of 4, 8 and 4 units, the mean over all pixels, and a linear layer. The very first
    1x1 convolution has one group, as its input has few channels.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 4·groups.
        groups: of the 1x1 convolutions: 1, 2, 3, 4 or 8; more groups have more channels.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 1,865,728 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in shufflenet_v1().parameters())
        1865728
    """
    in_channels, _, _ = check_image("shufflenet-v1", input_shape, classes, 8)
    check_width("shufflenet-v1", width)
    check("groups of shufflenet-v1", groups, f"one of {list(_CHANNELS_BY_GROUPS)}", groups in _CHANNELS_BY_GROUPS)
    steps = iter(strides(input_shape, 5))
    channels, outgoing = round_channels(24 * width, groups), round_channels(_CHANNELS_BY_GROUPS[groups] * width, 4 * groups)
    layers: dict[str, nn.Module] = {"stem": conv_norm(in_channels, channels, 3, stride=next(steps))}
    layers["pool"] = max_pool(next(steps))
    for number, repeats in enumerate(_REPEATS, start=2):
        first_groups = 1 if number == 2 else groups
        units = [ShuffleUnit(channels, outgoing, groups=groups, first_groups=first_groups, stride=next(steps))]
        units += [ShuffleUnit(outgoing, outgoing, groups=groups) for _ in range(repeats - 1)]
        layers[f"stage{number}"] = nn.Sequential(*units)
        channels, outgoing = outgoing, 2 * outgoing
    return nn.Sequential(OrderedDict(layers, classifier=classifier(channels, classes)))


class SplitUnit(nn.Module):
    """ShuffleNet V2's unit: half the channels pass, the others go through 1x1, depthwise 3x3, 1x1; then both are shuffled.

    Where the channels grow or there is a stride, both halves are made of all channels: one as above, one by depthwise 3x3, 1x1.
    Cost: with M = O / 2, M² + 9·M + M² weights; growing, I·M + 9·M + M² and 9·I + I·M. Each convolution has a norm, of 2
    parameters a channel; each weight is one MAC for every pixel of its output. Shape: (B, I, H, W) -> (B, O, H / stride,
    W / stride), rounded up. Ma, Zhang, Zheng and Sun (2018).

    Args:
        in_channels: I.
        channels: O, even.
        stride: of the depthwise convolutions.

    Example:
        >>> sum(parameter.numel() for parameter in SplitUnit(24, 24).parameters())  # 2·144 + 108 + 72
        468
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        half = channels // 2
        self.splits = stride == 1 and in_channels == channels
        incoming = half if self.splits else in_channels
        self.shortcut: nn.Module = nn.Identity()
        if not self.splits:
            depthwise = conv_norm(incoming, incoming, 3, stride=stride, groups=incoming, activation=None)
            self.shortcut = nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv_norm(incoming, half)))
        layers = {
            "first": conv_norm(incoming, half),
            "depthwise": conv_norm(half, half, 3, stride=stride, groups=half, activation=None),
            "last": conv_norm(half, half),
        }
        self.branch = nn.Sequential(OrderedDict(layers))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        passed, changed = features.chunk(2, dim=1) if self.splits else (features, features)
        return shuffle_channels(torch.cat([self.shortcut(passed), self.branch(changed)], dim=1), 2)


_CHANNELS_BY_WIDTH: Mapping[float, int] = {0.5: 48, 1.0: 116, 1.5: 176, 2.0: 244}


def shufflenet_v2(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2: Ma, Zhang, Zheng and Sun (2018), table 5.

    A convolution, max pooling, three stages of 4, 8 and 4 units, a 1x1 convolution, the mean over all pixels, and a linear
    layer.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: 0.5, 1.0, 1.5 or 2.0 for the stages' channels in the paper, or any factor above 0 on those of 1.0. The first
            convolution has 24 channels and the last 1024, from 2.0 on 2048, whatever the width.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 2,278,604 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in shufflenet_v2().parameters())
        2278604
    """
    in_channels, _, _ = check_image("shufflenet-v2", input_shape, classes, 8)
    check_width("shufflenet-v2", width)
    steps = iter(strides(input_shape, 5))
    channels, last = 24, 1024 if width < 2 else 2048
    outgoing = _CHANNELS_BY_WIDTH.get(width) or round_channels(_CHANNELS_BY_WIDTH[1.0] * width, 4)
    layers: dict[str, nn.Module] = {"stem": conv_norm(in_channels, channels, 3, stride=next(steps))}
    layers["pool"] = max_pool(next(steps))
    for number, repeats in enumerate(_REPEATS, start=2):
        units = [SplitUnit(channels, outgoing, stride=next(steps))]
        units += [SplitUnit(outgoing, outgoing) for _ in range(repeats - 1)]
        layers[f"stage{number}"] = nn.Sequential(*units)
        channels, outgoing = outgoing, 2 * outgoing
    layers["head"] = conv_norm(channels, last)
    return nn.Sequential(OrderedDict(layers, classifier=classifier(last, classes)))
