"""Weights from a file into a network, checked name by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import WeightsError

__all__ = ["check_finite", "load_weights"]

_MOST_NAMES = 10
_NESTS = ("state_dict", "model")


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into a network, in place, and only if all of it fits.

    Args:
        model: gets the weights; as it was if there is an error. Tensors of another floating-point type are converted.
        path: a .safetensors file, or a .pt or .pth file with a state dict, by itself or under the key "state_dict" or "model";
            read with `weights_only=True`, so that the file cannot run code.

    Raises:
        WeightsError: the file is missing, unreadable or holds no state dict; names are missing or unexpected; shapes differ;
            or a tensor holds NaN or infinity.

    Example:
        >>> torch.save(nn.Linear(2, 1).state_dict(), "weights.pt")
        >>> load_weights(nn.Linear(2, 1), Path("weights.pt"))
    """
    path = Path(path)
    state = _read(path)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    misfits = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        *_listed("missing", [name for name in own if name not in state]),
        *_listed("unexpected", [name for name in state if name not in own]),
        *_listed("of another shape", misfits),
    ]
    if problems:
        raise WeightsError(f"{path} must hold the tensors of {type(model).__name__}, but some are\n" + "\n".join(problems))
    _check_finite(state, str(path))
    model.load_state_dict(state)


def check_finite(model: nn.Module) -> None:
    """Refuses a network with NaN or infinity in a parameter or buffer.

    Args:
        model: any module.

    Raises:
        WeightsError: naming the tensors, and how many of their numbers are not finite.

    Example:
        >>> check_finite(nn.Linear(2, 2))
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    _check_finite(state, type(model).__name__)


def _check_finite(state: Mapping[str, torch.Tensor], owner: str) -> None:
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in state.items()}
    bad = [f"{name}: {count} of {state[name].numel()}" for name, count in counts.items() if count]
    if bad:
        raise WeightsError(f"weights must be finite, but {owner} holds NaN or infinity\n" + "\n".join(_listed("in", bad)))


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    """A title and the first few lines under it; nothing when there are none."""
    lines = list(lines)
    more = [f"    and {len(lines) - _MOST_NAMES} more"] if len(lines) > _MOST_NAMES else []
    return [f"  {title}:", *(f"    {line}" for line in lines[:_MOST_NAMES]), *more] if lines else []


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"weights are read from .safetensors, .pt and .pth files, got {path}")
    if not path.is_file():
        raise WeightsError(f"there is no file {path} to read weights from")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{path} cannot be read as weights: {reason}; save a state dict, as torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    for nest in _NESTS:
        if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
            state = state[nest]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} must hold a state dict (name -> tensor), by itself or under {' or '.join(_NESTS)}")
    return dict(state)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)
