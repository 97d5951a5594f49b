"""How operations couple channels: one rule for each kind of operation. `graph.ops` says which operation has which.

A rule takes a `Call` and returns the labels of its result, in the result's shape; on the way it ties the channels that must go
together and locks those that must stay. Operations that only move data need no rule of their own: run on labels they show
where every channel goes. Elementwise operations tie the labels that meet. Only contractions, normalisations, reductions, and
moves that count channels have a rule each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.labels import FREE, Labels, collapse, varying_axes
from featherweight.graph.program import Node, Ref, resolve_op

__all__ = [
    "Call",
    "Owned",
    "batch_norm",
    "constant",
    "conv",
    "linear",
    "lock",
    "move",
    "pad",
    "pixel_shuffle",
    "pointwise",
    "pool",
    "prelu",
    "reduce",
    "reshape",
    "roll",
    "same",
    "select",
    "shuffle",
    "slice_",
    "softmax",
    "unbind",
]


@dataclass(frozen=True)
class Owned:
    """A tensor of the program, as an operation's argument while channels are traced."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operation being traced.

    `args` and `kwargs` hold label tensors where the program has values, `Owned` where it has tensors, and plain numbers
    elsewhere; `out` is the result on the meta device. `axis(owned, k)` gives the labels of a tensor's axis k, `elements(x)` a
    label for every element.
    """

    node: Node
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    labels: Labels
    axis: Callable[[Owned, int], torch.Tensor]
    elements: Callable[[Any], torch.Tensor]

    @property
    def where(self) -> str:
        """The operation and the user's line, for messages."""
        return f"{self.node.op} at {self.node.origin}" if self.node.origin else self.node.op

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


def move(call: Call) -> Any:
    """Data moves: run the operation itself on labels."""
    op = "reshape" if call.node.op == "view" else call.node.op  # labels are expanded views, which `view` may refuse
    moved = resolve_op(op)(*[_labels_of(a, call) for a in call.args], **call.kwargs)
    for part in moved if isinstance(moved, list | tuple) else [moved]:
        _make_product(part, call.labels)
    return moved


def reshape(call: Call) -> Any:
    """view, reshape, expand: a size computed from the batch's (batch · channels) cannot follow the channels kept."""
    moved = move(call)
    if any(isinstance(call.node.args[1][axis], Ref) for axis in varying_axes(moved)):
        call.labels.lock(moved, f"{call.where} computes a size from it")
    return moved


def slice_(call: Call) -> Any:
    """slice(x, axis, start, end, step): steps over channels, and bounds that are computed, would pick others of those kept."""
    _, axis, *bounds = call.node.args
    if any(isinstance(bound, Ref) for bound in bounds) or (len(bounds) > 2 and bounds[2] != 1):
        _lock_along(call, axis)
    return move(call)


def select(call: Call) -> Any:
    """One channel picked by its number stays."""
    _, axis, index = call.node.args
    if isinstance(index, Ref):
        _lock_along(call, axis)
    moved = move(call)
    labels = call.elements(call.args[0])
    if axis % labels.dim() in varying_axes(labels):
        call.labels.lock(moved, f"{call.where} picks it by its number")
    return moved


def unbind(call: Call) -> Any:
    """One result for each index: without some channels there would be fewer results."""
    _lock_along(call, call.argument(1, "dim", 0))
    return move(call)


def roll(call: Call) -> Any:
    """A shift counts channels; without axes it runs over all of them."""
    for axis in call.argument(2, "dims") or range(call.out.dim()):
        _lock_along(call, axis)
    return move(call)


def _lock_along(call: Call, axis: int) -> None:
    labels = call.elements(call.args[0])
    if axis % labels.dim() in varying_axes(labels):
        call.labels.lock(labels, f"{call.where} counts along it")


def shuffle(call: Call) -> Any:
    """channel_shuffle(x, groups): every group loses the same positions."""
    by_group = call.elements(call.args[0]).unflatten(1, (call.args[1], -1))
    call.labels.tie(by_group, by_group[:, :1])
    return move(call)


def pixel_shuffle(call: Call) -> Any:
    """Each factor² channels become one, at the positions of factor² pixels."""
    labels = _cut(call, call.elements(call.args[0]), [-2, -1])
    blocks = labels.unflatten(-3, (-1, call.args[1] ** 2))
    call.labels.tie(blocks, blocks.narrow(-3, 0, 1))
    return blocks.select(-3, 0).expand(call.out.shape)


def _labels_of(value: Any, call: Call) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(v, Owned | torch.Tensor) for v in value):
        return [call.elements(v) for v in value]
    return call.elements(value) if isinstance(value, Owned) else value


def _make_product(labels: torch.Tensor, channels: Labels) -> None:
    """Where a channel axis was split in two (groups, heads), ties across the earlier one: any choice is then a smaller box."""
    varying = varying_axes(labels)
    for axis in varying[:-1]:
        channels.tie(labels, labels.narrow(axis, 0, 1))


def pointwise(call: Call) -> Any:
    """Elementwise: labels that meet are tied. An operand that broadcasts along the other's channels has none there."""
    result = torch.full((), FREE).expand(call.out.shape)
    result_stretched: set[int] = set(range(result.dim()))
    for argument in call.args:
        if isinstance(argument, Owned | torch.Tensor):
            labels = call.elements(argument)
            labels = labels.reshape((1,) * (result.dim() - labels.dim()) + tuple(labels.shape))
            stretched = {axis for axis, size in enumerate(call.out.shape) if labels.shape[axis] == 1 and size > 1}
            result = _meet(call, result, result_stretched, labels.expand(call.out.shape), stretched)
            result_stretched &= stretched
    return result


def _meet(call: Call, a: torch.Tensor, a_stretched: set[int], b: torch.Tensor, b_stretched: set[int]) -> torch.Tensor:
    if bool((collapse(a)[0] == FREE).all()):
        return b
    if bool((collapse(b)[0] == FREE).all()):
        return a
    a_wins, b_wins = b_stretched & set(varying_axes(a)), a_stretched & set(varying_axes(b))
    if not a_wins and not b_wins:
        call.labels.tie(a, b)
        return b if a_stretched else a
    reason = f"{call.where} broadcasts it along another channel axis"
    if a_wins:
        call.labels.lock(b, reason)
    if b_wins:
        call.labels.lock(a, reason)
    return a if a_wins else b


def same(call: Call) -> Any:
    """One tensor in, the same channels out."""
    return call.elements(call.args[0]).expand(call.out.shape)


def pool(call: Call) -> Any:
    """Pooling and resizing over positions: a channel stays a channel, also of the indices that some pools return."""
    labels = call.elements(call.args[0])
    positions = int(re.search(r"(\d)d", call.node.op).group(1))  # type: ignore[union-attr]
    pooled = _cut(call, labels, range(-positions, 0))
    return [pooled.expand(o.shape) for o in call.out] if isinstance(call.out, tuple) else pooled.expand(call.out.shape)


def pad(call: Call) -> Any:
    """Padding of positions is free; of channels it is not."""
    padded = {-1 - i // 2 for i, width in enumerate(call.args[1]) if width != 0}  # pairs, from the last axis on
    return _cut(call, call.elements(call.args[0]), sorted(padded)).expand(call.out.shape)


def reduce(call: Call) -> Any:
    """Sums, means, maxima over axes: free over positions, locked over channels."""
    labels = call.elements(call.args[0])
    axes = call.argument(1, "dim")
    chosen = [axes] if isinstance(axes, int) else axes or range(labels.dim())
    over = {axis % labels.dim() for axis in chosen}
    labels = _cut(call, labels, sorted(over))
    if call.out.dim() != labels.dim():
        labels = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in over])
    return labels.expand(call.out.shape)


def _cut(call: Call, labels: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Cuts axes to one index; where channels differ along them they are locked, for the operation mixes them."""
    if {axis % labels.dim() for axis in axes} & set(varying_axes(labels)):
        call.labels.lock(labels, f"{call.where} runs over it")
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def softmax(call: Call) -> Any:
    """Normalises along one axis: locked if that is the channels'."""
    labels = call.elements(call.args[0])
    if int(call.args[1]) % labels.dim() in varying_axes(labels):
        call.labels.lock(labels, f"{call.where} normalises over it")
    return labels


def linear(call: Call) -> Any:
    """The last axis of the input meets the weight's axis 1, and its axis 0 is the output."""
    x, weight, bias = call.elements(call.args[0]), call.args[1], call.argument(2, "bias")
    if not isinstance(weight, Owned):
        return lock(call)
    call.labels.tie(call.labels.tie_along(x, -1), call.axis(weight, 1))
    outs = call.axis(weight, 0)
    _tie_vector(call, outs, bias)
    return outs.expand(call.out.shape)


def _tie_vector(call: Call, channels: torch.Tensor, vector: Any) -> None:
    """Ties a vector of one number per channel (a bias, a mean), where there is one."""
    if isinstance(vector, Owned | torch.Tensor):
        call.labels.tie(channels, call.elements(vector))


def conv(call: Call) -> Any:
    """Convolution. Depthwise: an output goes with its input. Other groups: every group loses the same positions."""
    weight = call.args[1]
    if not isinstance(weight, Owned) or call.args[0].dim() != len(weight.shape):
        return lock(call)
    groups = int(call.argument(6, "groups", 1))
    ins = call.labels.tie_along(call.elements(call.args[0]), 1)
    outs = call.axis(weight, 0)
    _tie_vector(call, outs, call.argument(2, "bias"))
    if groups == 1:
        call.labels.tie(ins, call.axis(weight, 1))
    elif weight.shape[1] == 1:
        call.labels.tie(ins.repeat_interleave(weight.shape[0] // groups), outs)
    else:
        call.labels.tie(ins.reshape(groups, -1), call.axis(weight, 1))
        by_group = outs.reshape(groups, -1)
        call.labels.tie(by_group, by_group[:1])
    return outs.reshape(-1, *[1] * (call.out.dim() - 2)).expand(call.out.shape)


def batch_norm(call: Call) -> Any:
    """Scale, shift, mean and variance belong to the channels of axis 1."""
    x = call.elements(call.args[0])
    channels = call.labels.tie_along(x, 1)
    for vector in call.args[1:5]:
        _tie_vector(call, channels, vector)
    return x


def prelu(call: Call) -> Any:
    """A slope for each channel of axis 1, or one for all, which stays."""
    x, slope = call.elements(call.args[0]), call.elements(call.args[1])
    if slope.numel() > 1:
        _tie_vector(call, call.labels.tie_along(x, 1), slope)
    else:
        call.labels.lock(slope, f"{call.where} has one slope for all channels")
    return x


def lock(call: Call) -> Any:
    """Nothing is known: whatever touches this operation stays as it is."""
    reason = f"{call.where} has no rule that says how its channels are coupled"
    for value in _tensors_in([*call.args, *call.kwargs.values()]):
        call.labels.lock(call.elements(value), reason)
    if isinstance(call.out, list | tuple):
        return [_locked(call, reason, o) if isinstance(o, torch.Tensor) else o for o in call.out]
    return _locked(call, reason, call.out)


def _locked(call: Call, reason: str, out: torch.Tensor) -> torch.Tensor:
    """Labels of a result that must keep its shape."""
    label = call.labels.fresh(1)
    call.labels.lock(label, reason)
    return label[0].expand(out.shape)


def _tensors_in(values: Sequence[Any]) -> list[Any]:
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _tensors_in(value)
        elif isinstance(value, Owned | torch.Tensor):
            found.append(value)
    return found


def constant(call: Call) -> Any:
    """Made from nothing: a fixed size, so what meets it along an axis longer than 1 must keep that size."""
    if call.out.numel() == 1:
        return torch.full((), FREE).expand(call.out.shape)
    return _locked(call, f"{call.where} has a fixed size", call.out)
