"""Shifted training images."""

from __future__ import annotations

import pytest
import torch

from featherweight.experiments.shifts import shift_images


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_every_image_moves_by_an_offset_of_its_own(pixels: int) -> None:
    torch.manual_seed(0)
    images = torch.full((400, 2, 7, 9), -1.0)
    images[:, 0, 3, 4], images[:, 1, 3, 5] = 1.0, 2.0
    moved = shift_images(images, pixels=pixels)
    offsets = set()
    for image in moved:
        (row, column), (second_row, second_column) = (torch.nonzero(channel > 0)[0].tolist() for channel in image)
        assert (second_row, second_column) == (row, column + 1)  # both channels by the same
        assert (image == -1).sum() == image.numel() - 2
        offsets.add((row - 3, column - 4))
    way = range(-pixels, pixels + 1)
    assert offsets == {(rows, columns) for rows in way for columns in way}


def test_what_moves_out_is_gone() -> None:
    torch.manual_seed(0)
    image = torch.zeros(50, 1, 3, 3)
    image[:, 0, 0, 0] = 1.0
    left = shift_images(image, pixels=1).flatten(1).sum(1)
    assert set(left.tolist()) == {0.0, 1.0}
