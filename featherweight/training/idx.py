"""MNIST's file format, and the folders where such files are looked for."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch

from featherweight.errors import DataError
from featherweight.training.datasets import Split, Splits

__all__ = ["data_folders", "read_idx", "read_idx_folder"]

_IDX_FILES = {
    "training images": ("train-images-idx3-ubyte", 3),
    "training labels": ("train-labels-idx1-ubyte", 1),
    "test images": ("t10k-images-idx3-ubyte", 3),
    "test labels": ("t10k-labels-idx1-ubyte", 1),
}
_IDX_BYTES = 0x08
_IDX_LIMIT = 2**31  # bytes of one file's numbers; MNIST has 47 million


def data_folders(name: str, data_dir: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> list[Path]:
    """Where the files of a data set are looked for, in order.

    Args:
        name: of the data set; each place is tried as PLACE/name, then as PLACE.
        data_dir: looked at first, if given.
        environment: FEATHERWEIGHT_DATA is looked at second; XDG_CACHE_HOME says where the user's cache is, else ~/.cache.

    Returns:
        The folders, whether or not they exist.

    Example:
        >>> [str(folder) for folder in data_folders("mnist", "data", {"XDG_CACHE_HOME": "/cache"})][:3]
        ['data/mnist', 'data', '/cache/featherweight/mnist']
    """
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherweight"
    places = [data_dir, environment.get("FEATHERWEIGHT_DATA"), cache, "/usr/share/datasets"]
    return [folder for place in places if place for folder in (Path(place) / name, Path(place))]


def read_idx_folder(name: str, folders: Sequence[Path], source: str) -> Splits:
    """MNIST, or a data set in its form: four IDX files, gzipped or not.

    Args:
        name: of the data set, for the error.
        folders: the first that has the four files is read.
        source: where the files can be had, for the error.

    Returns:
        Inputs (N, rows, columns) uint8.

    Raises:
        DataError: no folder has the four files, or one of them is damaged.
    """
    for folder in folders:
        paths = [_idx_path(folder, stem) for stem, _ in _IDX_FILES.values()]
        found = [path for path in paths if path is not None]
        if len(found) == len(paths):
            break
    else:
        listed = "".join(f"\n  {folder}" for folder in folders)
        files = "".join(f"\n  {stem}.gz" for stem, _ in _IDX_FILES.values())
        raise DataError(
            f"the data set {name!r} was not found in any of{listed}\n"
            f"download these four files from {source} into one of these folders, "
            f"or name their folder with FEATHERWEIGHT_DATA:{files}"
        )
    arrays = [read_idx(path, dimensions) for path, (_, dimensions) in zip(found, _IDX_FILES.values(), strict=True)]
    for images, labels, path in ((arrays[0], arrays[1], found[1]), (arrays[2], arrays[3], found[3])):
        if len(images) != len(labels):
            raise DataError(
                f"there must be one label for each image, got {len(images)} images and {len(labels)} labels in {path}"
            )
    train, test = Split(arrays[0], arrays[1].long()), Split(arrays[2], arrays[3].long())
    return Splits(train, None, test)


def _idx_path(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> torch.Tensor:
    """Reads an IDX file of bytes, as LeCun's MNIST page defines it.

    Two zero bytes, the type of the numbers (8: bytes), the number of axes, their sizes (big-endian, 32 bits), the numbers.

    Args:
        path: the file; gzipped if its name ends in ".gz".
        dimensions: how many axes it must have.

    Returns:
        The numbers, uint8.

    Raises:
        DataError: the file is unreadable, no IDX file of bytes, has other axes, or is shorter or longer than it says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(file, dimensions)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; get a fresh copy") from error
    except ValueError as error:
        raise DataError(f"{path} is no valid IDX file: {error}; get a fresh copy") from error


def _parse_idx(file: IO[bytes], dimensions: int) -> torch.Tensor:
    header = file.read(4)
    if header != bytes([0, 0, _IDX_BYTES, dimensions]):
        raise ValueError(f"it must start with {bytes([0, 0, _IDX_BYTES, dimensions])!r}, got {header!r}")
    sizes_read = file.read(4 * dimensions)
    sizes = np.frombuffer(sizes_read[: len(sizes_read) // 4 * 4], dtype=">u4").tolist()
    if len(sizes) != dimensions:
        raise ValueError(f"it must give {dimensions} sizes, but ends after {len(sizes)}")
    expected = math.prod(sizes)
    if not 0 < expected <= _IDX_LIMIT:
        raise ValueError(f"it must hold 1 to {_IDX_LIMIT} bytes, but its sizes {sizes} make {expected}")
    data = bytearray(file.read(expected + 1))  # one more, to see whether there is more
    if len(data) != expected:
        raise ValueError(f"its sizes {sizes} make {expected} bytes, but it has {'more' if len(data) > expected else len(data)}")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(sizes)
