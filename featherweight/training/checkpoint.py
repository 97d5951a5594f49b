"""The state of an unfinished training run as one file, written atomically and read without pickle's dangers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.files import replacing

__all__ = ["fingerprint", "read_checkpoint", "write_checkpoint"]

_KEYS = {"fingerprint", "epoch", "model", "optimizer"}
_NOT_OURS = "{} exists and is no training checkpoint, so it is neither read nor overwritten; delete it or choose another path"


def fingerprint(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """The SHA-256 of a run's settings and start weights: two runs that share it end with the same weights on the same data.

    Args:
        model: with its start weights; names, shapes, dtypes, values and what is trainable all count.
        settings: plain numbers, strings and dicts of them.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> fingerprint(layer, {"seed": 0}) == fingerprint(layer, {"seed": 1})
        False
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    digest = hashlib.sha256(json.dumps([dict(settings), trained], sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, *, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> None:
    """Writes the state after `epoch` finished epochs; a crash in the middle leaves the previous file as it was.

    Args:
        path: the file; its folder is made if needed.
        epoch: how many epochs are finished, at least 1.
        model: whose state dict is written.
        optimizer: whose state dict is written.
        fingerprint: of the run, see `fingerprint`.

    Raises:
        RequestError: the file cannot be written.
    """
    state = {"fingerprint": fingerprint, "epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"a checkpoint must be writable, but {path} is not: {error}; choose another path") from error
    with replacing(path) as file:
        torch.save(state, file)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote.

    Args:
        path: the file.

    Returns:
        The state under the keys "fingerprint", "epoch", "model" and "optimizer", on the CPU; None if there is no such file.

    Raises:
        RequestError: the file is there but is no checkpoint, so training must not overwrite it.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise RequestError(_NOT_OURS.format(path)) from error
    if not isinstance(state, dict) or set(state) != _KEYS:
        raise RequestError(_NOT_OURS.format(path))
    return state
