"""How much a network holds: counted tensors, and the bytes of the file it really becomes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from featherweight.graph.capture import Example
from featherweight.graph.constraint import fold
from featherweight.packaging import save

__all__ = ["count_nonzero", "count_parameters", "packed_bytes"]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, constraints folded: what the network computes with, not what the optimizer trains.

    A parameter used in several places counts once. Buffers (a batch norm's statistics) do not count.

    Args:
        model: any module; it is not changed.

    Returns:
        The count.

    Example:
        >>> count_parameters(nn.Linear(4, 2))  # 4 · 2 weights and 2 biases
        10
    """
    return sum(parameter.numel() for parameter in fold(model).parameters())


def count_nonzero(model: nn.Module) -> int:
    """The number of parameters that are not zero, constraints folded. See `count_parameters` for what counts.

    Args:
        model: any module; it is not changed.

    Returns:
        The count.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> count_nonzero(layer)
        8
    """
    return sum(int(parameter.count_nonzero()) for parameter in fold(model).parameters())


def packed_bytes(model: nn.Module, example: Example | None = None) -> int:
    """The size of the `.fw` file that the network becomes, in bytes; the file is really written, measured and removed.

    Args:
        model: any module that can be captured.
        example: a batch of inputs; may be left out for a `ProgramModule`.

    Returns:
        The file's size in bytes.

    Raises:
        CaptureError: the network cannot be captured.

    Example:
        >>> import torch
        >>> packed_bytes(torch.nn.Linear(100, 10), torch.zeros(1, 100)) < 4 * 1010
        True
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.fw")
        save(model, path, example=example)
        return path.stat().st_size
