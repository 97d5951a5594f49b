"""Training images moved by a pixel or two, the one augmentation that digits take well."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from featherweight.training import Data, TensorLoader

__all__ = ["shift_images", "with_shifts"]


def with_shifts(data: Data, *, pixels: int = 1) -> Data:
    """The same data, of which each training batch is moved by `shift_images`.

    Args:
        data: as a lab gives it, in memory.
        pixels: how far at most.

    Returns:
        The data with another training loader.
    """
    train = data.train
    if not isinstance(train, TensorLoader):  # the lab only gives such
        raise TypeError(type(train).__name__)

    def shift(images: torch.Tensor) -> torch.Tensor:
        return shift_images(images, pixels=pixels)

    return replace(data, train=TensorLoader(train.inputs, train.targets, train.batch_size, shuffle=True, augment=shift))


def shift_images(images: torch.Tensor, *, pixels: int) -> torch.Tensor:
    """Each image moved by its own random offset of up to `pixels` each way, the border filled with background.

    Args:
        images: (B, channels, rows, columns); the background is their smallest value.
        pixels: at least 0.

    Returns:
        Images of the same shape; offsets are drawn from torch's global generator.

    Example:
        >>> shift_images(torch.ones(2, 1, 4, 4), pixels=1).shape
        torch.Size([2, 1, 4, 4])
    """
    count, _, height, width = images.shape
    padded = pad(images, [pixels] * 4, value=float(images.min()))
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1))
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
