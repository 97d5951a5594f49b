"""Folders of images, one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from featherweight.errors import DataError
from featherweight.training.datasets import Split, Splits, cut_test

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_image_folder"]

_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_GREY_MODES = {"1", "L"}
_COLOUR_MODES = {"CMYK", "LA", "P", "RGB", "RGBA", "YCbCr"}


def read_image_folder(folder: Path) -> Splits:
    """Images sorted into one folder per class, which name the classes in alphabetical order.

    Either FOLDER/class/*.png, where a fifth of each class becomes test data, always the same; or FOLDER/train/class/*.png and
    FOLDER/test/class/*.png, perhaps with FOLDER/validation/class/*.png. All images must have the same size. If every image is
    grey there is one channel, else there are three (RGB; transparency is dropped). Other files are not looked at.

    Args:
        folder: holds the class folders, or the parts.

    Returns:
        Inputs (N, channels, rows, columns) uint8.

    Raises:
        DataError: Pillow is not installed; a class has no images; an image is unreadable or of another size; the parts have
            different classes.
    """
    if not (folder / "train").is_dir():
        files = _image_files(folder)
        return cut_test(_read_images([files])[0])
    if not (folder / "test").is_dir():
        raise DataError(f"{folder} has a folder train/, so it must have test/, too; or put the class folders into it")
    parts = [part for part in ("train", "validation", "test") if (folder / part).is_dir()]
    listings = [_image_files(folder / part) for part in parts]
    for part, listing in zip(parts, listings, strict=True):
        if listing.keys() != listings[0].keys():
            odd = sorted(listing.keys() ^ listings[0].keys())
            raise DataError(
                f"all parts of {folder} must have the same classes, but train/ and {part}/ differ in {', '.join(odd)}"
            )
    splits = dict(zip(parts, _read_images(listings), strict=True))
    return Splits(splits["train"], splits.get("validation"), splits["test"])


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class, both in alphabetical order."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {path.name: sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES) for path in classes}
    empty = [name for name, images in files.items() if not images]
    if not files or empty:
        what = f"the folder of class {empty[0]!r} has none" if empty else "it has no folders"
        raise DataError(f"{folder} must hold one folder of images ({', '.join(_IMAGE_SUFFIXES)}) per class, but {what}")
    return files


def _read_images(listings: Sequence[Mapping[str, Sequence[Path]]]) -> list[Split]:
    """Each listing's images, all of one size and one number of channels."""
    every = [path for listing in listings for images in listing.values() for path in images]
    looks = [_look(path) for path in every]
    for path, (_, size) in zip(every, looks, strict=True):
        if size != looks[0][1]:
            raise DataError(
                f"all images must have the same size, but {path} has {size} and {every[0]} {looks[0][1]} pixels; resize it"
            )
    mode = "L" if all(look[0] in _GREY_MODES for look in looks) else "RGB"
    splits = []
    for listing in listings:
        pixels = torch.stack([_pixels(path, mode) for images in listing.values() for path in images])
        labels = [label for label, images in enumerate(listing.values()) for _ in images]
        splits.append(Split(pixels, torch.tensor(labels, dtype=torch.int64)))
    return splits


def _look(path: Path) -> tuple[str, tuple[int, int]]:
    with _open_image(path) as image:
        if image.mode not in _GREY_MODES | _COLOUR_MODES:
            raise DataError(f"images must have 8 bits per channel, but {path} has Pillow's mode {image.mode!r}; convert it")
        return image.mode, image.size


def _pixels(path: Path, mode: str) -> torch.Tensor:
    """(channels, rows, columns) uint8."""
    with _open_image(path) as image:
        try:
            pixels = torch.from_numpy(np.array(image.convert(mode)))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path} is a damaged image: {error}") from error
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


def _open_image(path: Path) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images are read with Pillow, which is not installed: pip install 'featherweight[data]'") from error
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
