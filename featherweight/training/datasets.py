"""The raw numbers of data sets, in the parts that their sources have; `idx` reads MNIST's files, `images` folders of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featherweight.errors import DataError

__all__ = ["Split", "Splits", "cut_test", "read_digits", "read_npz", "stratify"]


@dataclass(frozen=True)
class Split:
    """Some samples: inputs (N, …) of any real dtype, and targets (N,) int64."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def take(self, indices: torch.Tensor) -> Split:
        """The samples at these positions, in this order."""
        return Split(self.inputs[indices], self.targets[indices])


@dataclass(frozen=True)
class Splits:
    """A whole data set; `validation` is None when its source has no such part."""

    train: Split
    validation: Split | None
    test: Split


def stratify(targets: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts samples in two, so that every class is cut in the same proportion.

    Args:
        targets: (N,) classes.
        fraction: of each class that goes to the second part, in (0, 1); rounded, but at least one and never all of a class.
        seed: of the choice.

    Returns:
        The positions in the first and in the second part, each ascending. A class with one sample stays in the first.

    Example:
        >>> kept, cut = stratify(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 0.25, seed=0)
        >>> len(kept), len(cut)
        (5, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    for label in sorted(set(targets.tolist())):
        members = (targets == label).nonzero().squeeze(1)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def cut_test(everything: Split) -> Splits:
    """Makes a fifth of each class the test data: always the same, whatever seed one trains with.

    Args:
        everything: all samples of a source that has no test part.

    Returns:
        The training and the test part.

    Raises:
        DataError: no class has two samples.

    Example:
        >>> splits = cut_test(Split(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64)))
        >>> len(splits.train.targets), len(splits.test.targets)
        (8, 2)
    """
    train, test = stratify(everything.targets, 0.2, seed=0)
    if not len(test):
        raise DataError(f"a class needs 2 samples, so that one can be test data, but each of the {len(train)} classes has 1")
    return Splits(everything.take(train), None, everything.take(test))


def read_digits() -> Splits:
    """The 1797 handwritten digits that come with scikit-learn: 8x8 pixels, 10 classes; a fifth is test data.

    Returns:
        Inputs (N, 8, 8) float32 in [0, 1].

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits come with scikit-learn, which is not installed: pip install 'featherweight[data]'") from error
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32) / 16
    return cut_test(Split(pixels, torch.tensor(digits.target, dtype=torch.int64)))


def read_npz(path: Path) -> Splits:
    """A NumPy archive with the arrays x_train, y_train, x_test, y_test, and perhaps x_validation, y_validation.

    Args:
        path: the .npz file.

    Returns:
        Inputs (N, …) as they are in the file.

    Raises:
        DataError: the file is unreadable, lacks an array, or its arrays are not numbers with one whole-number label per sample.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive makes NumPy raise nearly anything
        raise DataError(f"{path} cannot be read as an .npz archive of plain arrays: {error}") from error
    parts = ["train", "test"] + ["validation"] * ("x_validation" in arrays or "y_validation" in arrays)
    missing = [key for part in parts for key in (f"x_{part}", f"y_{part}") if key not in arrays]
    if missing:
        raise DataError(f"{path} must hold the arrays x_train, y_train, x_test and y_test, but lacks {', '.join(missing)}")
    splits = {part: _npz_split(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in parts}
    return Splits(splits["train"], splits.get("validation"), splits["test"])


def _npz_split(path: Path, part: str, inputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    if inputs.dtype.kind not in "buif" or inputs.ndim < 2:
        raise DataError(f"x_{part} of {path} must be real numbers with 2 or more axes, got {inputs.dtype} {inputs.shape}")
    if labels.dtype.kind not in "ui" or labels.shape != inputs.shape[:1] or not len(labels):
        raise DataError(
            f"y_{part} of {path} must hold one whole-number label per sample of x_{part}, at least one, "
            f"got {labels.dtype} {labels.shape} for {len(inputs)} samples"
        )
    native = inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32)
    return Split(torch.from_numpy(np.ascontiguousarray(native)), torch.from_numpy(labels.astype(np.int64)))
