"""MNIST's stand-in: scikit-learn's digits in MNIST's files and size, few enough for every experiment to run in seconds."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

TRAIN, TEST = 300, 100


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `--data-dir` takes for MNIST and for Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    images = np.zeros((TRAIN + TEST, 28, 28), np.uint8)
    enlarged = digits.images[: TRAIN + TEST].repeat(3, axis=1).repeat(3, axis=2)
    images[:, 2:26, 2:26] = np.minimum(enlarged * 16, 255)
    labels = digits.target[: TRAIN + TEST].astype(np.uint8)
    for stem, part in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        for name in ("mnist", "fashion-mnist"):
            place = folder / name
            place.mkdir(exist_ok=True)
            _write_idx(place / f"{stem}-images-idx3-ubyte", images[part])
            _write_idx(place / f"{stem}-labels-idx1-ubyte", labels[part])
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())
