"""Residual networks for small images."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.errors import check
from featherweight.nets.layers import round_channels
from featherweight.nets.shape import check_image, check_width

__all__ = ["resnet", "resnet20"]


def resnet20(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, width: float = 1.0) -> nn.Module:
    """ResNet-20 for small images: He, Zhang, Ren and Sun (2016), section 4.2, with n = 3.

    A 3x3 convolution to 16 channels, three stages of three basic blocks with 16, 32 and 64 channels, the mean over all pixels,
    and a linear layer. Where a stage starts with half the pixels and twice the channels, the shortcut is a 1x1 convolution with
    batch norm (their option B), not zero-padded subsampling (option A, which they used on CIFAR-10): 2,752 parameters more than
    their 269,722, and a shortcut whose channels can be pruned.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns.
        classes: number of outputs, at least 1.
        width: factor on all channels, above 0; rounded to even numbers of channels in the first stage.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 272,474 parameters on 3 channels, 272,186 on 1.

    Raises:
        RequestError: the input is no image, or too small.

    Example:
        >>> sum(parameter.numel() for parameter in resnet20(input_shape=(3, 32, 32)).parameters())
        272474
    """
    channels, _, _ = check_image("resnet20", input_shape, classes, 8)
    check_width("resnet20", width)
    return _ResNet(channels, classes, round_channels(16 * width, 2), blocks=3, stride=1)


def resnet(depth: int, *, stride: int = 1, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """`resnet20` of another depth: He, Zhang, Ren and Sun (2016), section 4.2, with n = (depth - 2) / 6 blocks in a stage.

    Args:
        depth: 6n + 2, the layers on the longest way; theirs have 20, 32, 44, 56 and 110.
        stride: of the first convolution, 1 or 2; with 2, which theirs never have, a network costs a quarter.
        input_shape: (channels, rows, columns), at least 8 rows and columns.
        classes: number of outputs, at least 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes); block k of stage s is called "stage{s}.{k}".

    Raises:
        RequestError: the depth or the stride is none of these, or the input is no image, or too small.

    Example:
        >>> len([name for name, _ in resnet(32, stride=2).named_modules() if name.endswith("conv1")])
        15
    """
    check("the depth of resnet", depth, "6n + 2 with n >= 1", isinstance(depth, int) and depth >= 8 and depth % 6 == 2)
    check("the stride of resnet", stride, "1 or 2", stride in (1, 2))
    channels, _, _ = check_image("resnet", input_shape, classes, 8)
    return _ResNet(channels, classes, 16, blocks=(depth - 2) // 6, stride=stride)


class _ResNet(nn.Module):
    def __init__(self, channels: int, classes: int, width: int, *, blocks: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = _stage(width, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.relu(self.norm(self.conv(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        return self.fc(self.pool(features).flatten(1))  # type: ignore[no-any-return]


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _Block(in_channels, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, stride=1) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """Two 3x3 convolutions, added to the shortcut before the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        residual = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(features)))))
        return self.relu(residual + self.shortcut(features))  # type: ignore[no-any-return]
