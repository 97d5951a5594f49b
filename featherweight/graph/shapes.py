"""The shape of every value of a program, without computing any number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from featherweight.errors import UnsupportedOpError
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Program, map_refs

__all__ = ["infer_shapes"]


def infer_shapes(program: Program, tensors: Mapping[str, torch.Tensor], batch: int = 2) -> list[Any]:
    """Runs a program on meta tensors.

    Args:
        program: what to run.
        tensors: the program's tensors by name; only shapes and dtypes are read.
        batch: the size of the batch axes, at least 1.

    Returns:
        One entry per value, in the program's numbering: a meta tensor, an int, or a list of these.

    Raises:
        UnsupportedOpError: an operation's shape depends on numbers, or its shapes do not fit (named with file:line).

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> layer = torch.nn.Linear(4, 2)
        >>> program = capture(layer, torch.zeros(1, 4))
        >>> infer_shapes(program, tensors_of(layer, program), batch=5)[-1].shape
        torch.Size([5, 2])
    """
    values: list[Any] = [_meta([batch if size is None else size for size in spec.shape], spec.dtype) for spec in program.inputs]
    values += [_meta(tensors[spec.name].shape, tensors[spec.name].dtype) for spec in program.tensors]
    for node in program.nodes:
        args = _on_meta(map_refs(node.args, lambda ref: values[ref.index]))
        kwargs = _on_meta(map_refs(node.kwargs, lambda ref: values[ref.index]))
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        try:
            values.append(resolve_op(node.op)(*args, **kwargs))
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError) as error:
            where = f" at {node.origin}" if node.origin else ""
            raise UnsupportedOpError(f"the shapes of {node.op}{where} do not follow from its inputs: {error}") from error
    return values


def _on_meta(value: Any) -> Any:
    """The arguments with every device in them replaced by meta."""
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, list | tuple):
        return type(value)(_on_meta(v) for v in value)
    return {k: _on_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def _meta(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
