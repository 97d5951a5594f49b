"""Labels: which indices of all the network's axes are one channel.

Every index of an axis that may shrink carries a label, the number of the channel it belongs to; the labels of an axis are its
*line*. Two channels that must go together are tied. A value's lines say all there is to know about it: an element stays if the
labels of all its indices stay, so what is left is always a box. An axis without a line keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["FIXED", "Labelled", "Labels", "Solution", "kept_along", "map_labelled"]

FIXED = 0
"""The label of an index that always stays; it exists from the start."""


@dataclass(frozen=True)
class Labelled:
    """A value while its channels are traced: its shape, and the line of each axis along which channels lie, shape (size,)."""

    shape: tuple[int, ...]
    lines: Mapping[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """What ties and locks come to: the representative of each label, why representatives must stay, and which are heads."""

    roots: torch.Tensor
    locked: Mapping[int, str]
    heads: frozenset[int]

    def of(self, value: Any) -> Any:
        """`value` (Labelled, a list of such, or anything else) with every label replaced by its representative."""
        return map_labelled(value, lambda v: Labelled(v.shape, {axis: self.roots[line] for axis, line in v.lines.items()}))


class Labels:
    """The channels of a network while it is traced: fresh labels, ties between them, and those that must stay."""

    def __init__(self) -> None:
        self._count = 1
        self._ties: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._locks: list[tuple[torch.Tensor, str]] = [(torch.tensor([FIXED]), "it is an input of the network")]
        self._heads: list[torch.Tensor] = []
        self._copies: set[int] = set()

    def fresh(self, count: int) -> torch.Tensor:
        """`count` new labels, shape (count,), int64."""
        start, self._count = self._count, self._count + count
        return torch.arange(start, start + count)

    def fresh_copies(self, count: int) -> torch.Tensor:
        """`count` new labels of an axis that holds copies of one thing, and so is the first to stay where two axes clash."""
        labels = self.fresh(count)
        self._copies.update(labels.tolist())
        return labels

    def are_copies(self, labels: torch.Tensor) -> bool:
        """Whether `fresh_copies` made them."""
        return int(labels.reshape(-1)[0]) in self._copies

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Ties the labels of `a` to those of `b`, element by element; the shapes broadcast."""
        if a is not b:
            a, b = torch.broadcast_tensors(a, b)
            self._ties.append((a.reshape(-1), b.reshape(-1)))

    def tie_groups(self, line: torch.Tensor, groups: int) -> None:
        """Ties the groups that an axis consists of, one after the other, so that each loses the same positions."""
        by_group = line.view(groups, -1)
        self.tie(by_group, by_group[:1])

    def lock(self, labels: torch.Tensor, reason: str) -> None:
        """Marks channels as not removable; the first reason is kept."""
        self._locks.append((labels.reshape(-1), reason))

    def mark_heads(self, labels: torch.Tensor) -> None:
        """Notes that these channels are whole attention heads."""
        self._heads.append(labels.reshape(-1))

    def solve(self) -> Solution:
        """The representatives (the smallest label of those tied), and what follows for locks."""
        roots = torch.from_numpy(_components(self._count, self._ties))
        locked: dict[int, str] = {}
        for labels, reason in self._locks:
            for root in torch.unique(roots[labels]).tolist():
                locked.setdefault(root, reason)
        heads = torch.unique(roots[torch.cat(self._heads)]).tolist() if self._heads else []
        return Solution(roots, locked, frozenset(heads))


def _components(count: int, ties: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Connected components: each label's parent becomes the smallest label it is tied to, until nothing changes."""
    parent = np.arange(count)
    if not ties:
        return parent
    a = torch.cat([a for a, _ in ties]).numpy()
    b = torch.cat([b for _, b in ties]).numpy()
    while True:
        of_a, of_b = parent[a], parent[b]
        apart = of_a != of_b
        if not apart.any():
            return parent
        a, b, of_a, of_b = a[apart], b[apart], of_a[apart], of_b[apart]
        np.minimum.at(parent, np.maximum(of_a, of_b), np.minimum(of_a, of_b))
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]


def map_labelled(value: Any, change: Any) -> Any:
    """`value` with every Labelled in it, in lists and tuples too, replaced by `change(labelled)`; the rest becomes None."""
    if isinstance(value, Labelled):
        return change(value)
    if isinstance(value, list | tuple):
        return [map_labelled(v, change) for v in value]
    return None


def kept_along(value: Labelled, goes: torch.Tensor) -> list[torch.Tensor]:
    """Which indices of each axis stay.

    Args:
        value: with representatives as labels.
        goes: bool, shape (labels ever made,): True for a representative that goes.

    Returns:
        For each axis a bool tensor of its size, True where the index stays.
    """
    return [
        ~goes[value.lines[axis]] if axis in value.lines else torch.ones(size, dtype=torch.bool)
        for axis, size in enumerate(value.shape)
    ]
