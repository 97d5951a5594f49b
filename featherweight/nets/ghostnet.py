"""GhostNet: half of the channels are made from the other half, channel by channel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from featherweight.nets.layers import SqueezeExcite, classifier, conv_norm, round_channels
from featherweight.nets.shape import check_image, check_width, strides

__all__ = ["GhostBottleneck", "GhostModule", "ghostnet"]


class GhostModule(nn.Module):
    """A convolution to half the channels, and for each of these a ghost: a depthwise 3x3 convolution of it.

    Cost: (k·k·I + 9)·O / 2 weights, each one MAC a pixel, against the k·k·I·O of a convolution: about half. Norms 2·O. Shape:
    (B, I, H, W) -> (B, O, H, W). Han, Wang, Tian, Guo, Xu and Xu (2020), with s = 2 and d = 3, as in their networks.

    Args:
        in_channels: I.
        channels: O, even.
        kernel: k, of the convolution, odd.
        activation: makes what follows both norms; None for nothing.

    Example:
        >>> sum(parameter.numel() for parameter in GhostModule(16, 32).parameters())  # (16 + 9) · 16 + 64
        464
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, *, activation: Callable[[], nn.Module] | None = nn.ReLU
    ) -> None:
        super().__init__()
        half = channels // 2
        self.primary = conv_norm(in_channels, half, kernel, activation=activation)
        self.ghost = conv_norm(half, half, 3, groups=half, activation=activation)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        primary = self.primary(features)
        return torch.cat([primary, self.ghost(primary)], dim=1)


class GhostBottleneck(nn.Module):
    """GhostNet's unit: a ghost module to more channels, a depthwise convolution for a stride, a linear ghost module to fewer.

    Cost: (I + 9)·H / 2 + (H + 9)·O / 2 weights, k·k·H more for a stride, and 2·H·S + S + H for squeeze and excite. Where the
    shape changes, the shortcut is a separable convolution: k·k·I + I·O. Each convolution has a norm, of 2 parameters a channel;
    each weight is one MAC for every pixel of its output. Shape: (B, I, rows, columns) -> (B, O, rows / stride,
    columns / stride), rounded up. Han, Wang, Tian, Guo, Xu and Xu (2020).

    Args:
        in_channels: I.
        hidden: H, even.
        channels: O, even.
        kernel: k, of the depthwise convolutions, odd.
        stride: 1 or 2.
        squeezed: S, of squeeze and excite; 0 for none.

    Example:
        >>> sum(parameter.numel() for parameter in GhostBottleneck(8, 16, 8).parameters())  # 136 + 100 + 2·(16 + 8)
        284
    """

    def __init__(
        self, in_channels: int, hidden: int, channels: int, kernel: int = 3, *, stride: int = 1, squeezed: int = 0
    ) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"widen": GhostModule(in_channels, hidden)}
        if stride != 1:
            layers["depthwise"] = conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden, activation=None)
        if squeezed:
            layers["excite"] = SqueezeExcite(hidden, squeezed)
        layers["narrow"] = GhostModule(hidden, channels, activation=None)
        self.residual = nn.Sequential(OrderedDict(layers))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            depthwise = conv_norm(in_channels, in_channels, kernel, stride=stride, groups=in_channels, activation=None)
            pointwise = conv_norm(in_channels, channels, activation=None)
            self.shortcut = nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.residual(features) + self.shortcut(features)  # type: ignore[no-any-return]


# Kernel, hidden channels, channels, squeeze and excite, stride.
_BLOCKS = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)


def ghostnet(*, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Module:
    """GhostNet: Han, Wang, Tian, Guo, Xu and Xu (2020), table 7.

    A convolution, 16 bottlenecks of ghost modules, a 1x1 convolution, the mean over all pixels, and two linear layers with
    dropout of 0.2 between them.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns; of its five halvings, the first fall away on images
            below 112 pixels, see `nets.shape.strides`.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to multiples of 4; the 1280 before the last layer always stay.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 5,182,508 parameters.

    Raises:
        RequestError: the input is no image or too small, or an option is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in ghostnet().parameters())
        5182508
    """
    in_channels, _, _ = check_image("ghostnet", input_shape, classes, 8)
    check_width("ghostnet", width)
    steps = iter(strides(input_shape, 5))
    channels = round_channels(16 * width, 4)
    layers: dict[str, nn.Module] = {"stem": conv_norm(in_channels, channels, 3, stride=next(steps))}
    for number, (kernel, wide, outgoing, excited, stride) in enumerate(_BLOCKS, start=1):
        step, hidden = next(steps) if stride == 2 else 1, round_channels(wide * width, 4)
        narrow = round_channels(outgoing * width, 4)
        squeezed = round_channels(hidden / 4, 4) if excited else 0
        layers[f"block{number}"] = GhostBottleneck(channels, hidden, narrow, kernel, stride=step, squeezed=squeezed)
        channels = narrow
    last = round_channels(960 * width, 4)
    layers["head"] = conv_norm(channels, last)
    return nn.Sequential(OrderedDict(layers, classifier=classifier(last, 1280, classes, dropout=0.2)))
