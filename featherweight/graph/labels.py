"""Labels: which elements of all the network's values are one channel.

Every element of every value carries a label, the number of the channel it belongs to. Running an operation on labels instead of
numbers shows where each channel goes; two channels that must be removed together are tied (union-find). A label tensor has the
shape of the value it describes, mostly as an expanded view, so that a label per channel costs no more than the channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["FREE", "Labels", "collapse", "kept_along", "varying_axes"]

FREE = -1
"""The label of an element that belongs to no channel, and broadcasts to whatever it meets."""


class Labels:
    """The channels of a network while it is traced: fresh labels, ties between them, and those that must stay.

    Label 0 exists from the start and is locked: it belongs to what can never be removed.
    """

    def __init__(self) -> None:
        self._parent: list[int] = [0]
        self._locked: dict[int, str] = {0: "it is an input of the network"}

    def __len__(self) -> int:
        """How many labels were ever made."""
        return len(self._parent)

    def fresh(self, count: int) -> torch.Tensor:
        """`count` new labels, shape (count,), int64."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The representative of the labels tied to `label`."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def roots(self, labels: torch.Tensor) -> torch.Tensor:
        """`labels` with each replaced by its representative; FREE stays FREE."""
        distinct, inverse = torch.unique(labels, return_inverse=True)
        found = torch.tensor([label if label == FREE else self.find(label) for label in distinct.tolist()], dtype=torch.int64)
        return found[inverse] if found.numel() else labels

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Ties the labels of `a` to those of `b`, element by element; the shapes broadcast."""
        a, b = collapse(*torch.broadcast_tensors(a, b))
        pairs = torch.unique(torch.stack([a.reshape(-1), b.reshape(-1)]), dim=1)
        for x, y in pairs.t().tolist():
            if x != FREE and y != FREE:
                self._union(x, y)

    def tie_along(self, labels: torch.Tensor, axis: int) -> torch.Tensor:
        """Ties all labels that share an index of `axis`; returns one for each index, shape (size,)."""
        rows = labels.movedim(axis, 0)
        size = rows.shape[0]
        (small,) = collapse(rows, keep=0)
        columns = small.reshape(size, -1) if small.numel() else torch.full((size, 1), FREE)
        self.tie(columns, columns[:, :1])
        return columns[:, 0]

    def lock(self, labels: torch.Tensor, reason: str) -> None:
        """Marks the channels as not removable; the first reason is kept."""
        (small,) = collapse(labels)
        for label in torch.unique(small).tolist():
            if label != FREE:
                self._locked.setdefault(self.find(label), reason)

    def reason_locked(self, label: int) -> str | None:
        """Why this channel must stay, or None if it may go."""
        return self._locked.get(self.find(label))

    def _union(self, a: int, b: int) -> None:
        keep, gone = sorted((self.find(a), self.find(b)))
        if keep == gone:
            return
        self._parent[gone] = keep
        reason = self._locked.pop(gone, None)
        if reason is not None:
            self._locked.setdefault(keep, reason)


def collapse(*tensors: torch.Tensor, keep: int | None = None) -> tuple[torch.Tensor, ...]:
    """The tensors (of one shape) cut to index 0 along every axis that is only an expansion (stride 0) in all of them."""
    first = tensors[0]
    for axis in range(first.dim()):
        if axis != keep and all(t.shape[axis] > 1 and t.stride(axis) == 0 for t in tensors):
            tensors = tuple(t.narrow(axis, 0, 1) for t in tensors)
    return tensors


def varying_axes(labels: torch.Tensor) -> tuple[int, ...]:
    """The axes along which the labels differ."""
    (small,) = collapse(labels)
    return tuple(axis for axis, size in enumerate(small.shape) if size > 1 and bool((small != small.narrow(axis, 0, 1)).any()))


def kept_along(labels: torch.Tensor, removed: torch.Tensor) -> list[torch.Tensor]:
    """Which indices of each axis stay when the `removed` labels go.

    Args:
        labels: representatives, any shape.
        removed: bool, shape (labels ever made,): True for a representative that goes.

    Returns:
        For each axis a bool tensor, True where any element stays.
    """
    (small,) = collapse(labels)
    stays = (small == FREE) | ~removed[small.clamp(min=0)]
    axes: Sequence[int] = range(stays.dim())
    kept = []
    for axis in axes:
        others = [a for a in axes if a != axis]
        line = stays.any(dim=others) if others else stays
        kept.append(line.expand(labels.shape[axis]))
    return kept
