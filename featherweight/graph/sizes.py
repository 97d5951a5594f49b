"""How the literal sizes in an operation's arguments follow from the channels kept: one function for each kind of operation.

Each takes a `Resize` and returns the node to put in its place. `graph.ops` says which operation has which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.program import Node

__all__ = ["Resize", "conv", "reshape", "select", "slice_", "split", "squeeze", "unflatten"]


@dataclass(frozen=True)
class Resize:
    """One operation whose channels were chosen.

    `kept[i]` holds, for argument i, which indices of each axis stay (None if it is no tensor), and `out` the same for the
    result (a list for several results): bool tensors, one for each axis.
    """

    node: Node
    kept: Sequence[Any]
    out: Any


def _count(kept: torch.Tensor) -> int:
    return int(kept.sum())


def _sizes(sizes: Sequence[Any], kept: Sequence[torch.Tensor]) -> list[Any]:
    """Each literal size becomes the number of indices kept; -1 and computed sizes stay."""
    return [_count(k) if isinstance(size, int) and size != -1 else size for size, k in zip(sizes, kept, strict=True)]


def reshape(resize: Resize) -> Node:
    """view, reshape, expand."""
    node = resize.node
    return Node(node.op, (node.args[0], _sizes(node.args[1], resize.out), *node.args[2:]), node.kwargs, node.origin)


def unflatten(resize: Resize) -> Node:
    """unflatten(x, axis, sizes)."""
    node, axis = resize.node, int(resize.node.args[1]) % len(resize.kept[0])
    sizes = _sizes(node.args[2], resize.out[axis : axis + len(node.args[2])])
    return Node(node.op, (node.args[0], axis, sizes), node.kwargs, node.origin)


def squeeze(resize: Resize) -> Node:
    """squeeze: an axis of which one channel stayed is still an axis."""
    node, kept = resize.node, resize.kept[0]
    axes = node.args[1] if len(node.args) > 1 else range(len(kept))
    single = [axis % len(kept) for axis in ([axes] if isinstance(axes, int) else axes) if len(kept[axis]) == 1]
    return Node("squeeze.dims", (node.args[0], single), {}, node.origin)


def conv(resize: Resize) -> Node:
    """Depthwise convolution: one group for each input channel kept."""
    args = list(resize.node.args)
    if len(args) > 6 and args[6] > 1 and len(resize.kept[1][1]) == 1:
        args[6] = _count(resize.kept[0][1])
    return Node(resize.node.op, tuple(args), resize.node.kwargs, resize.node.origin)


def slice_(resize: Resize) -> Node:
    """slice(x, axis, start, end, step): the bounds count the indices kept before them."""
    node, axis = resize.node, resize.node.args[1]
    kept = resize.kept[0][axis]
    if bool(kept.all()):
        return node
    start, end = (*node.args[2:4], None, None)[:2]
    chosen = range(len(kept))[start:end]  # steps are 1, and no bound is computed, or the rule would have locked the axis
    return Node(node.op, (node.args[0], axis, _count(kept[: chosen.start]), _count(kept[: chosen.stop])), {}, node.origin)


def select(resize: Resize) -> Node:
    """select(x, axis, index): the index counts the indices kept before it."""
    node = resize.node
    _, axis, index = node.args
    kept = resize.kept[0][axis]
    if bool(kept.all()):
        return node
    return Node(node.op, (node.args[0], axis, _count(kept[: index % len(kept)])), node.kwargs, node.origin)


def split(resize: Resize) -> Node:
    """chunk, split, split_with_sizes: the parts as they are left."""
    node = resize.node
    axis = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0))
    if bool(resize.kept[0][axis].all()):
        return node
    return Node("split_with_sizes", (node.args[0], [_count(part[axis]) for part in resize.out], axis), {}, node.origin)
