"""Where a network is, and in which mode it runs for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["device_of", "in_mode"]


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first parameter, or else buffer.

    Args:
        model: any module.

    Returns:
        The device; the CPU for a module without tensors.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    tensor = next((t for tensors in (model.parameters(), model.buffers()) for t in tensors), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; then every submodule is in its own mode again.

    Args:
        model: any module; submodules that were in another mode than the module itself are put back to theirs.
        training: train mode if true, else eval mode.

    Yields:
        Nothing.

    Example:
        >>> model = nn.Dropout()
        >>> with in_mode(model, training=False):
        ...     model.training
        False
        >>> model.training
        True
    """
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
