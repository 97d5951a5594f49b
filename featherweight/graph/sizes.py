"""How the literal sizes in an operation's arguments follow from the channels kept: one function for each kind of operation.

Each takes a `Resize` and returns the node to put in its place. `graph.ops` says which operation has which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.program import Node, Ref

__all__ = [
    "Resize",
    "anywhere",
    "attention",
    "beyond_channels",
    "conv",
    "filled",
    "group_norm",
    "layer_norm",
    "narrow",
    "new_filled",
    "reshape",
    "select",
    "slice_",
    "split",
    "squeeze",
    "unflatten",
]


@dataclass(frozen=True)
class Resize:
    """One operation whose channels were chosen.

    `kept[i]` holds, for argument i, which indices of each axis stay (None if it is no tensor), and `out` the same for the
    result (a list for several results): bool tensors, one for each axis.
    """

    node: Node
    kept: Sequence[Any]
    out: Any

    def axis(self, position: int, name: str = "dim") -> int:
        """The axis of the input that an argument names, counted from the front."""
        args = self.node.args
        return int(args[position] if position < len(args) else self.node.kwargs.get(name, 0)) % len(self.kept[0])

    def with_argument(self, position: int, value: Any) -> Node:
        """The node with one argument replaced."""
        args = (*self.node.args[:position], value, *self.node.args[position + 1 :])
        return Node(self.node.op, args, self.node.kwargs, self.node.origin)


def anywhere(resize: Resize) -> bool:
    """Whether anything goes from a value that the operation reads."""
    return any(not bool(k.all()) for value in _values(resize.kept) for k in value)


def beyond_channels(resize: Resize) -> bool:
    """Whether anything goes from an axis that a batch norm takes its statistics over."""
    return any(not bool(k.all()) for axis, k in enumerate(resize.kept[0]) if axis != 1)


def _values(kept: Sequence[Any]) -> list[Any]:
    """The values among an operation's arguments, also those in lists: each a list of bool tensors, one for each axis."""
    found: list[Any] = []
    for value in kept:
        if isinstance(value, list):
            found += [value] if value and isinstance(value[0], torch.Tensor) else _values(value)
    return found


def _count(kept: torch.Tensor) -> int:
    return int(kept.sum())


def _sizes(sizes: Sequence[Any], kept: Sequence[torch.Tensor]) -> list[Any]:
    """Each literal size becomes the number of indices kept; -1 stays, and so does a computed size, of which nothing goes."""
    found = []
    for size, k in zip(sizes, kept, strict=True):
        if isinstance(size, Ref):
            found.append(size if bool(k.all()) else -1)
        else:
            found.append(size if size == -1 else _count(k))
    return found


def reshape(resize: Resize) -> Node:
    """view, reshape, expand."""
    return resize.with_argument(1, _sizes(resize.node.args[1], resize.out))


def filled(resize: Resize) -> Node:
    """zeros(sizes), full(sizes, number), …"""
    return resize.with_argument(0, _sizes(resize.node.args[0], resize.out))


def new_filled(resize: Resize) -> Node:
    """new_zeros(x, sizes), …"""
    return resize.with_argument(1, _sizes(resize.node.args[1], resize.out))


def unflatten(resize: Resize) -> Node:
    """unflatten(x, axis, sizes)."""
    axis, sizes = resize.axis(1), resize.node.args[2]
    return resize.with_argument(2, _sizes(sizes, resize.out[axis : axis + len(sizes)]))


def squeeze(resize: Resize) -> Node:
    """squeeze: an axis of which one channel stayed is still an axis."""
    node, kept = resize.node, resize.kept[0]
    axes = node.args[1] if len(node.args) > 1 else range(len(kept))
    single = [axis % len(kept) for axis in ([axes] if isinstance(axes, int) else axes) if len(kept[axis]) == 1]
    return Node("squeeze.dims", (node.args[0], single), {}, node.origin)


def conv(resize: Resize) -> Node:
    """Depthwise convolution: one group for each input channel kept."""
    args = resize.node.args
    if len(args) > 6 and isinstance(args[6], int) and args[6] != 1 and len(resize.kept[1][1]) == 1:
        return resize.with_argument(6, _count(resize.kept[0][1]))
    return resize.node


def layer_norm(resize: Resize) -> Node:
    """layer_norm, rms_norm(x, shape, …)."""
    return resize.with_argument(1, [_count(k) for k in resize.kept[0][-len(resize.node.args[1]) :]])


def group_norm(resize: Resize) -> Node:
    """group_norm(x, groups, …): groups of one channel go with it."""
    channels = resize.kept[0][1]
    return resize.with_argument(1, _count(channels)) if resize.node.args[1] == len(channels) else resize.node


def attention(resize: Resize) -> Node:
    """scaled_dot_product_attention: the scale is that of the size before."""
    node, features = resize.node, resize.kept[0][-1]
    if node.kwargs.get("scale") is not None or bool(features.all()):
        return node
    return Node(node.op, node.args, {**node.kwargs, "scale": len(features) ** -0.5}, node.origin)


def slice_(resize: Resize) -> Node:
    """slice(x, axis, start, end, step): the bounds count the indices kept before them."""
    node, axis = resize.node, resize.axis(1)
    kept = resize.kept[0][axis]
    if bool(kept.all()):
        return node
    start, end = (*node.args[2:4], None, None)[:2]
    chosen = range(len(kept))[start:end]  # steps are 1, and no bound is computed, or the rule would have locked the axis
    return Node(node.op, (node.args[0], axis, _count(kept[: chosen.start]), _count(kept[: chosen.stop])), {}, node.origin)


def narrow(resize: Resize) -> Node:
    """narrow(x, axis, start, length)."""
    node, axis = resize.node, resize.axis(1)
    kept, start = resize.kept[0][axis], node.args[2]
    if bool(kept.all()):
        return node
    return Node(node.op, (node.args[0], axis, _count(kept[:start]), _count(resize.out[axis])), node.kwargs, node.origin)


def select(resize: Resize) -> Node:
    """select(x, axis, index): the index counts the indices kept before it."""
    kept = resize.kept[0][resize.axis(1)]
    return resize.node if bool(kept.all()) else resize.with_argument(2, _count(kept[: resize.node.args[2] % len(kept)]))


def split(resize: Resize) -> Node:
    """chunk, split, split_with_sizes: the parts as they are left."""
    axis = resize.axis(2)
    if bool(resize.kept[0][axis].all()):
        return resize.node
    sizes = [_count(part[axis]) for part in resize.out]
    return Node("split_with_sizes", (resize.node.args[0], sizes, axis), {}, resize.node.origin)
