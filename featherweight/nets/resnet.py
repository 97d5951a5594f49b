"""A residual network for small images."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.nets.shape import check_image

__all__ = ["resnet20"]


def resnet20(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """ResNet-20 for small images: He, Zhang, Ren and Sun (2016), section 4.2, with n = 3.

    A 3x3 convolution to 16 channels, three stages of three basic blocks with 16, 32 and 64 channels, the mean over all pixels,
    and a linear layer. Where a stage starts with half the pixels and twice the channels, the shortcut is a 1x1 convolution with
    batch norm (their option B), not zero-padded subsampling (option A, which they used on CIFAR-10): 2,752 parameters more than
    their 269,722, and a shortcut whose channels can be pruned.

    Args:
        input_shape: (channels, rows, columns), at least 8 rows and columns.
        classes: number of outputs, at least 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 272,474 parameters on 3 channels, 272,186 on 1.

    Raises:
        RequestError: the input is no image, or too small.

    Example:
        >>> sum(parameter.numel() for parameter in resnet20(input_shape=(3, 32, 32)).parameters())
        272474
    """
    channels, _, _ = check_image("resnet20", input_shape, classes, 8)
    return _ResNet(channels, classes)


class _ResNet(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, stride=1)
        self.stage2 = _stage(16, 32, stride=2)
        self.stage3 = _stage(32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.relu(self.norm(self.conv(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        return self.fc(self.pool(features).flatten(1))  # type: ignore[no-any-return]


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(in_channels, channels, stride), _Block(channels, channels, stride=1), _Block(channels, channels, stride=1)
    )


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
