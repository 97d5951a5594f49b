"""What is set of a dynamic network, as tensors by name: so that a file holds it beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["as_bytes", "below", "from_bytes"]


def as_bytes(value: Any) -> torch.Tensor:
    """Lists, dicts, numbers, strings and None as a tensor of bytes (n,): JSON, infinity included."""
    return torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)


def from_bytes(tensor: torch.Tensor) -> Any:
    """What `as_bytes` was given; ValueError where the bytes are no JSON."""
    return json.loads(bytes(tensor.tolist()))


def below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
