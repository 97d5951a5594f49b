"""Which weights of a module a method may change."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.program import tensor_called

__all__ = ["select_weights"]


def select_weights(
    model: nn.Module, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None, min_dim: int = 2
) -> dict[str, torch.Tensor]:
    """The weights a method may change: trainable parameters of at least `min_dim` axes, constraints folded, by plain name.

    A tied parameter counts once.

    Args:
        model: any module.
        include: shell-style patterns of names; only these, if given.
        exclude: shell-style patterns of names; never these.
        min_dim: 2 leaves out biases and the parameters of norms.

    Returns:
        Detached tensors by name, in the model's order.

    Raises:
        RequestError: `include` or `exclude` leave none.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> list(select_weights(net, exclude=["1.*"]))
        ['0.weight']
    """
    found = {}
    for name in _parameter_names(model):
        weight = tensor_called(model, name).detach()
        wanted = include is None or any(fnmatchcase(name, pattern) for pattern in include)
        if wanted and not any(fnmatchcase(name, pattern) for pattern in exclude or ()) and weight.dim() >= min_dim:
            found[name] = weight
    if not found and (include is not None or exclude):
        raise RequestError(f"include and exclude must leave a weight, got {include} and {exclude}, which leave none")
    return found


def _parameter_names(model: nn.Module) -> list[str]:
    """The plain names of trainable parameters: "conv.weight", also where a constraint hides it as an `original`."""
    names = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parts = name.split(".")
            if "parametrizations" in parts:
                at = parts.index("parametrizations")
                parts = [*parts[:at], parts[at + 1]]
            names.append(".".join(parts))
    return list(dict.fromkeys(names))
