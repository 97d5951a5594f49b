"""Data sets as three loaders: by name, from a folder or an archive, or the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from featherweight.errors import DataError
from featherweight.training import datasets, idx, images
from featherweight.training.datasets import Splits, stratify
from featherweight.training.loaders import Loader, TensorLoader
from featherweight.training.mode import device_of, in_mode
from featherweight.training.own import load_own

__all__ = ["Data", "Loader", "TensorLoader", "check_fits", "load_data"]


@dataclass(frozen=True)
class Data:
    """A classification data set. The test part is for the last measurement only; choices are made on the validation part."""

    name: str
    train: Loader
    validation: Loader
    test: Loader
    classes: int

    @property
    def example(self) -> torch.Tensor:
        """The first few inputs of the validation part, (B, …) with B at most 4: what `graph.capture` wants to see."""
        return next(iter(self.validation))[0][:4]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.example.shape[1:])


_VALIDATION = 0.1
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_MNIST = "https://github.com/zalandoresearch/fashion-mnist"


def _read_idx(name: str, data_dir: str | os.PathLike[str] | None, source: str) -> Splits:
    return idx.read_idx_folder(name, idx.data_folders(name, data_dir, os.environ), source)


_NAMED: dict[str, Callable[[str | os.PathLike[str] | None], Splits]] = {
    "digits": lambda data_dir: datasets.read_digits(),
    "fashion-mnist": lambda data_dir: _read_idx("fashion-mnist", data_dir, _FASHION_MNIST),
    "mnist": lambda data_dir: _read_idx("mnist", data_dir, _MNIST),
}


def load_data(name: str, *, data_dir: str | os.PathLike[str] | None = None, batch_size: int = 128, seed: int = 0) -> Data:
    """Loads a data set with a validation part: its own, or a tenth of each class of the training data, cut off with `seed`.

    Inputs become float32 with the channels first (images without a channel axis get one); bytes are divided by 255, and
    then every channel (axis 1) is shifted and scaled so that the training data have mean 0 and standard deviation 1. The user's
    own loaders (`module:function`) are left as they are.

    Args:
        name: one of
            "digits": scikit-learn's, 1x8x8, 10 classes, no download;
            "mnist", "fashion-mnist": 1x28x28, 10 classes, from the four IDX files, see `idx.data_folders`;
            a folder of images, see `images.read_image_folder`;
            an .npz file, see `datasets.read_npz`;
            "module:function": returns loaders (train, validation, test) or (train, test), see `own.load_own`.
        data_dir: where the files of a named data set are looked for first.
        batch_size: of all three loaders, at least 1.
        seed: of the cut between training and validation, not of the order of training.

    Returns:
        The data; the training loader shuffles.

    Raises:
        DataError: the name is unknown, or its files are missing, damaged or contradictory.
        RequestError: the batch size is below 1.

    Example:
        >>> data = load_data("digits")
        >>> data.input_shape, data.classes, len(data.test)
        ((1, 8, 8), 10, 3)
    """
    if name in _NAMED:
        splits = _NAMED[name](data_dir)
    elif name.endswith(".npz"):
        splits = datasets.read_npz(Path(name))
    elif Path(name).is_dir():
        splits = images.read_image_folder(Path(name))
    elif ":" in name:
        return _own(name, seed)
    else:
        raise DataError(
            f"data must be one of {', '.join(_NAMED)}, a folder of images, an .npz file, or module:function, got {name!r}"
        )
    return _as_data(name, splits, batch_size, seed)


def _as_data(name: str, splits: Splits, batch_size: int, seed: int) -> Data:
    """Cuts off the validation data, normalises, and wraps in loaders."""
    train, validation = splits.train, splits.validation
    if validation is None:
        kept, cut = stratify(train.targets, _VALIDATION, seed)
        if not len(cut):
            raise DataError(
                f"{name} needs 2 training samples of a class, so that one can be set aside for validation, got 1 of each"
            )
        train, validation = train.take(kept), train.take(cut)
    parts = {"training": train, "validation": validation, "test": splits.test}
    classes = int(train.targets.max()) + 1
    for part, split in parts.items():
        if split.inputs.shape[1:] != train.inputs.shape[1:]:
            shapes = f"{tuple(split.inputs.shape[1:])} and {tuple(train.inputs.shape[1:])}"
            raise DataError(f"all parts of {name} must have the same input shape, but {part} and training have {shapes}")
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels must be in [0, {classes}) as in the training data of {name}, got {low} to {high} in {part}"
            )
    scaled = {part: _scaled(split.inputs) for part, split in parts.items()}
    for part, inputs in scaled.items():
        if not bool(torch.isfinite(inputs).all()):
            raise DataError(f"inputs must be finite, but the {part} data of {name} hold NaN or infinity")
    _normalise(scaled["training"], list(scaled.values()))
    train_loader, validation_loader, test_loader = (
        TensorLoader(inputs, parts[part].targets, batch_size, shuffle=part == "training") for part, inputs in scaled.items()
    )
    return Data(name, train_loader, validation_loader, test_loader, classes)


def _scaled(inputs: torch.Tensor) -> torch.Tensor:
    """A new float32 tensor, bytes as [0, 1], with a channel axis."""
    scaled = inputs.to(torch.float32, copy=True)
    if inputs.dtype == torch.uint8:
        scaled /= 255
    return scaled[:, None] if scaled.dim() == 3 else scaled


def _normalise(train: torch.Tensor, parts: list[torch.Tensor]) -> None:
    """Mean 0 and standard deviation 1 per channel, by the training data, in place; a constant channel is only shifted."""
    variance, mean = torch.var_mean(train, dim=[axis for axis in range(train.dim()) if axis != 1], correction=0, keepdim=True)
    deviation = torch.where(variance > 0, variance.sqrt(), 1.0)
    for part in parts:
        part.sub_(mean).div_(deviation)


def _own(name: str, seed: int) -> Data:
    """The user's loaders; their classes are counted on the validation and the test part, which are read once for that."""
    train, validation, test = load_own(name, _VALIDATION, seed)
    classes = max(int(targets.max()) for loader in (validation, test) for _, targets in loader) + 1
    return Data(name, train, validation, test, classes)


def check_fits(data: Data, model: nn.Module) -> None:
    """Runs one validation batch through a network, to find before a long training that they do not fit.

    Args:
        data: its first validation batch is looked at.
        model: run in eval mode on the device of its parameters, without gradients; not changed.

    Raises:
        DataError: the batch holds NaN or infinity, or targets that are no classes; or the network does not take such inputs, or
            does not give outputs (B, classes) with at least `data.classes` columns.

    Example:
        >>> check_fits(load_data("digits"), nn.Sequential(nn.Flatten(1), nn.Linear(64, 10)))
    """
    inputs, targets = next(iter(data.validation))
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"inputs must be finite, but a validation batch of {data.name} holds NaN or infinity")
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise DataError(f"targets must be (B,) int64, but those of {data.name} are {tuple(targets.shape)} {targets.dtype}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= data.classes:
        raise DataError(f"targets must be in [0, {data.classes}), but a validation batch of {data.name} has {low} to {high}")
    batch, net = f"a batch {tuple(inputs.shape)} of {data.name}", type(model).__name__
    try:
        with in_mode(model, training=False), torch.no_grad():
            outputs = model(inputs.to(device_of(model)))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{batch} does not fit {net}: {reason}") from error
    rule = f"{net} must give outputs ({len(inputs)}, at least {data.classes}) for {batch}"
    if not isinstance(outputs, torch.Tensor):
        raise DataError(f"{rule}, got a {type(outputs).__name__}")
    if outputs.dim() != 2 or len(outputs) != len(inputs) or outputs.shape[1] < data.classes:
        raise DataError(f"{rule}, got {tuple(outputs.shape)}")
