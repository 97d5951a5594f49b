"""What gives training its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from featherweight.errors import DataError, RequestError

__all__ = ["Batch", "Loader", "TensorLoader"]

Batch = tuple[torch.Tensor, torch.Tensor]


class Loader(Protocol):
    """Batches of (inputs, targets), as often as one asks; a torch `DataLoader` is one, and so is a list."""

    def __iter__(self) -> Iterator[Batch]:
        """Starts a new pass."""

    def __len__(self) -> int:
        """How many batches a pass has."""


class TensorLoader:
    """Batches of samples that are in memory, without worker processes.

    Args:
        inputs: (N, …).
        targets: (N,), or (N, …).
        batch_size: samples per batch, at least 1; the last batch has what is left.
        shuffle: a new order on each pass, drawn from torch's global generator, so seeding that makes it reproducible.
        augment: changes each batch of inputs, for training; must not change them in place.

    Raises:
        DataError: there are no samples, or not as many inputs as targets.
        RequestError: the batch size is below 1.

    Example:
        >>> loader = TensorLoader(torch.zeros(5, 1, 8, 8), torch.arange(5), batch_size=2)
        >>> len(loader), [targets.tolist() for _, targets in loader]
        (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        batch_size: int = 128,
        shuffle: bool = False,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise DataError(f"there must be one target for each input, at least one, got {len(inputs)} and {len(targets)}")
        if batch_size < 1:
            raise RequestError(f"batch_size must be >= 1, got {batch_size}")
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.augment = batch_size, shuffle, augment

    def __len__(self) -> int:
        return -(-len(self.targets) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.targets)) if self.shuffle else None
        for start in range(0, len(self.targets), self.batch_size):
            if order is None:
                inputs, targets = (t[start : start + self.batch_size] for t in (self.inputs, self.targets))
            else:
                indices = order[start : start + self.batch_size]
                inputs, targets = (t.index_select(0, indices) for t in (self.inputs, self.targets))
            yield (inputs if self.augment is None else self.augment(inputs)), targets
