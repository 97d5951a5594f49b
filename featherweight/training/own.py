"""The user's own loaders, named as module:function, and the validation part cut from them if they bring none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, random_split

from featherweight.errors import DataError, RequestError
from featherweight.training.datasets import stratify
from featherweight.training.loaders import Loader, TensorLoader

__all__ = ["cut_validation", "load_function", "load_own"]

_MOST_BYTES = 4 * 2**30  # what we are ready to hold in memory of a user's data
_TOO_FEW = "{} training samples are too few to cut off a validation part; return (train, validation, test)"


def load_function(reference: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Args:
        reference: a dotted module name that Python can import, a colon, and the name of a function in it.

    Returns:
        The function.

    Raises:
        RequestError: the module cannot be imported, or has no such function.

    Example:
        >>> load_function("math:sqrt")(9)
        3.0
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RequestError(
            f"{reference!r} must be module:function, but importing {module_name!r} failed with "
            f"{type(error).__name__}: {error}; is its folder on PYTHONPATH?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RequestError(f"{reference!r} must be module:function, but {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def load_own(reference: str, fraction: float, seed: int) -> tuple[Loader, Loader, Loader]:
    """Calls the user's function for its loaders.

    Args:
        reference: "module:function"; called without arguments, returns loaders (train, validation, test) or (train, test).
        fraction: of the training data that becomes the validation part, if there is none, in (0, 1).
        seed: of that cut.

    Returns:
        The loaders (train, validation, test).

    Raises:
        RequestError: the function is not there.
        DataError: it fails, or returns something else.
    """
    function = load_function(reference)
    try:
        loaders = function()
    except Exception as error:
        raise DataError(f"{reference} failed with {type(error).__name__}: {error}") from error
    if not isinstance(loaders, tuple | list) or len(loaders) not in (2, 3):
        raise DataError(
            f"{reference} must return loaders (train, validation, test) or (train, test), got {_described(loaders)}"
        )
    for loader in loaders:
        _check_loader(reference, loader)
    train, *validation, test = loaders
    if validation:
        return train, validation[0], test
    return (*cut_validation(train, fraction, seed), test)


def cut_validation(train: Loader, fraction: float, seed: int) -> tuple[Loader, Loader]:
    """Cuts a validation part from training data; the same cut each time.

    A `DataLoader` on a dataset with a length is cut by `random_split`, so the validation part sees the dataset's own
    transforms, augmentation included. Any other loader is read into memory once and cut class by class.

    Args:
        train: the user's loader.
        fraction: that becomes the validation part, in (0, 1).
        seed: of the cut.

    Returns:
        The rest, and the validation part, with the batch size of `train`.

    Raises:
        DataError: there are too few samples to cut, or too many to read into memory.

    Example:
        >>> rest, validation = cut_validation([(torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64))], 0.2, seed=0)
        >>> [len(targets) for _, targets in rest], [len(targets) for _, targets in validation]
        ([8], [2])
    """
    if isinstance(train, DataLoader) and train.batch_size is not None and not isinstance(train.dataset, IterableDataset):
        return _cut_dataset(train, fraction, seed)
    inputs, targets, batch_size = _read_all(train)
    kept, cut = stratify(targets, fraction, seed)
    if not len(cut):
        raise DataError(_TOO_FEW.format(len(targets)))
    return (
        TensorLoader(inputs[kept], targets[kept], batch_size, shuffle=True),
        TensorLoader(inputs[cut], targets[cut], batch_size),
    )


def _cut_dataset(train: DataLoader[Any], fraction: float, seed: int) -> tuple[Loader, Loader]:
    samples = len(train.dataset)  # type: ignore[arg-type]
    count = max(1, round(fraction * samples))
    if count >= samples:
        raise DataError(_TOO_FEW.format(samples))
    generator = torch.Generator().manual_seed(seed)
    rest, validation = random_split(train.dataset, [samples - count, count], generator=generator)

    def loader(part: Any, *, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        return DataLoader(
            part,
            train.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=train.num_workers,
            collate_fn=train.collate_fn,
            pin_memory=train.pin_memory,
            worker_init_fn=train.worker_init_fn,
        )

    shuffles = isinstance(train.sampler, RandomSampler)
    return loader(rest, shuffle=shuffles, drop_last=train.drop_last), loader(validation, shuffle=False, drop_last=False)


def _read_all(loader: Loader) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All inputs, all targets, and the size of the first batch."""
    batches = []
    size = 0
    for inputs, targets in loader:
        size += inputs.nbytes + targets.nbytes
        if size > _MOST_BYTES:
            raise DataError(
                f"training data of more than {_MOST_BYTES >> 30} GiB are not read into memory to cut off a validation part; "
                "return (train, validation, test)"
            )
        batches.append((inputs, targets))
    all_inputs, all_targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return all_inputs, all_targets, len(batches[0][1])


def _check_loader(reference: str, loader: Any) -> None:
    rule = f"a loader of {reference} must give (inputs, targets) batches and have a length of at least 1"
    try:
        batches = len(loader)
        first = next(iter(loader), None)
    except Exception as error:
        raise DataError(f"{rule}, but {type(error).__name__}: {error}") from error
    pair = isinstance(first, tuple | list) and len(first) == 2 and all(isinstance(part, torch.Tensor) for part in first)
    if not batches or not pair or len(first[0]) != len(first[1]):  # type: ignore[index]
        raise DataError(f"{rule}, got {_described(first)} as the first of {batches} batches")


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__
