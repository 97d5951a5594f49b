"""The masked network: all its shapes as before, with what was removed at zero and out of every norm, softmax and mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.program import Node, Program, ProgramModule, run_node

__all__ = ["Inside", "MaskedModule"]


@dataclass(frozen=True)
class Inside:
    """An operation that mixes channels, to be run on what is kept.

    Args:
        node: the operation with its sizes for what is kept.
        kept: for each value it reads that loses something, for each of its axes which indices stay: bool tensors.
        out: the same for the result; a list for several results.
    """

    node: Node
    kept: Mapping[int, Sequence[torch.Tensor]]
    out: Any


class MaskedModule(ProgramModule):
    """Runs a program whose removed channels are zero, so that it computes what the smaller network does, in the old shapes.

    Args:
        program: the network.
        tensors: its tensors, with zeros where slices are removed.
        inside: by position, the operations that mix channels: they take those that are kept, and give zeros for the others.
    """

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor], inside: Mapping[int, Inside]) -> None:
        super().__init__(program, tensors)
        self._inside = dict(inside)

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        inside = self._inside.get(position)
        if inside is None:
            return super()._run(position, node, values)
        narrowed = {i: _narrow(values[i], kept) for i, kept in inside.kept.items()}
        return _widen(run_node(inside.node, lambda ref: narrowed.get(ref.index, values[ref.index]), self.training), inside.out)


def _narrow(value: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    for axis, stays in enumerate(kept):
        if not bool(stays.all()):
            value = value.index_select(axis, _of_size(stays, value.shape[axis]).nonzero().flatten().to(value.device))
    return value


def _of_size(stays: torch.Tensor, size: int) -> torch.Tensor:
    """What stays of an axis that may hold the batch too (batch · channels), which was traced with two samples."""
    if len(stays) == size:
        return stays
    half, batch = len(stays) // 2, 2 * size // len(stays)
    batch_first = torch.equal(stays[:half], stays[half:])
    return stays[:half].repeat(batch) if batch_first else stays[::2].repeat_interleave(batch)


def _widen(value: Any, kept: Any) -> Any:
    """The value in its old shape, zero where nothing was kept."""
    if isinstance(value, list | tuple):
        return type(value)(_widen(v, k) for v, k in zip(value, kept, strict=True))
    for axis, stays in enumerate(kept):
        if not bool(stays.all()):
            stays = _of_size(stays, len(stays) * value.shape[axis] // max(1, int(stays.sum())))
            shape = (*value.shape[:axis], len(stays), *value.shape[axis + 1 :])
            value = value.new_zeros(shape).index_copy(axis, stays.nonzero().flatten().to(value.device), value)
    return value
