"""How operations couple channels: one rule for each kind of operation. `graph.ops` says which operation has which.

A rule takes a `Call` and returns the lines of its result (a list of them for several results); on the way it ties the channels
that must go together and locks those that must stay. Parameters are values like any other, with a line along every axis.
Here are elementwise operations, reductions and norms; `graph.moves` has those that move data, `graph.contractions` those that
multiply and add.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.labels import Labelled, Labels
from featherweight.graph.program import Node

__all__ = [
    "Call",
    "Lines",
    "batch_norm",
    "constant",
    "count_along",
    "filled",
    "group_norm",
    "last_two",
    "layer_norm",
    "lock",
    "meet",
    "meet_all",
    "pointwise",
    "positions",
    "prelu",
    "reduce",
    "same",
    "tensors_in",
]

Lines = dict[int, torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One operation being traced.

    `args` and `kwargs` hold `Labelled` where the program has tensors and plain numbers elsewhere; `out` is the result on the
    meta device. `heads` is the number of attention heads if this operation splits channels into heads that are to go whole.
    """

    node: Node
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    labels: Labels
    heads: int | None = None

    @property
    def where(self) -> str:
        """The operation and the user's line, for messages."""
        return f"{self.node.op} at {self.node.origin}" if self.node.origin else self.node.op

    @property
    def input(self) -> Labelled:
        """The first argument."""
        first: Labelled = self.args[0]
        return first

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def everywhere(self, lines: Lines) -> Any:
        """These lines for the result, or for each of several."""
        return [lines for _ in self.out] if isinstance(self.out, list | tuple) else lines

    def lock(self, value: Any, why: str, axes: Iterable[int] | None = None) -> None:
        """Locks the channels along `axes` of a value, all by default."""
        if isinstance(value, Labelled):
            wanted = None if axes is None else {axis % len(value.shape) for axis in axes}
            for axis, line in value.lines.items():
                if wanted is None or axis in wanted:
                    self.labels.lock(line, f"{self.where} {why}")

    def drop(self, value: Labelled, why: str, axes: Iterable[int]) -> Lines:
        """The lines of a value but for `axes`, which are locked."""
        gone = {axis % len(value.shape) for axis in axes}
        self.lock(value, why, gone)
        return {axis: line for axis, line in value.lines.items() if axis not in gone}


def meet(call: Call, parts: Iterable[tuple[Labelled, int]]) -> torch.Tensor | None:
    """The line of an axis that several values share: tied, or locked where one of them has a fixed size there.

    Args:
        call: the operation.
        parts: values, each with its axis; an axis of size 1 broadcasts, and says nothing.

    Returns:
        The line, or None where the size is fixed.
    """
    lines, fixed = [], False
    for value, axis in parts:
        if value.shape[axis] != 1:
            line = value.lines.get(axis % len(value.shape))
            fixed |= line is None
            lines += [] if line is None else [line]
    for line in lines[1:]:
        call.labels.tie(lines[0], line)
    if fixed and lines:
        call.labels.lock(lines[0], f"{call.where} joins it with an axis of fixed size, an input's or one of positions")
    return lines[0] if lines and not fixed else None


def meet_all(call: Call, values: Sequence[Labelled], rank: int, skip: Sequence[int] = ()) -> Lines:
    """The lines of values that broadcast against each other, aligned at the last axis, in a result of `rank` axes."""
    lines = {}
    for axis in range(rank):
        parts = [(v, axis - rank + len(v.shape)) for v in values if axis - rank + len(v.shape) >= 0]
        line = None if axis in skip else meet(call, parts)
        if line is not None:
            lines[axis] = line
    return lines


def pointwise(call: Call) -> Any:
    """Elementwise: channels that meet are tied. An operand that broadcasts along an axis has none there."""
    return meet_all(call, tensors_in([*call.args, *call.kwargs.values()]), call.out.dim())


def same(call: Call) -> Any:
    """The channels of the first argument: elementwise functions, softmax, …"""
    return call.everywhere(dict(call.input.lines))


def filled(call: Call) -> Any:
    """zeros, full, …: one number everywhere, so each axis of a literal size may shrink with what it meets."""
    sizes = call.argument(1 if call.args and isinstance(call.args[0], Labelled) else 0, "size", ())
    return {axis: call.labels.fresh_copies(size) for axis, size in enumerate(sizes) if isinstance(size, int) and size > 1}


def count_along(call: Call) -> Any:
    """unfold, cumsum, sort, …: the order of channels matters along the axis; the others stay as they are."""
    axis = call.argument(1, "dim", -1)
    call.lock(call.input, "counts along it", [axis])
    results = call.out if isinstance(call.out, list | tuple) else [call.out]
    lines = [{a: line for a, line in call.input.lines.items() if out.shape[a : a + 1] == line.shape} for out in results]
    return lines if isinstance(call.out, list | tuple) else lines[0]


def positions(call: Call) -> Any:
    """Pooling, resizing, patches: run over positions, so channels along those axes stay; the others pass."""
    count = int(next(c for c in call.node.op if c.isdigit()))
    return call.everywhere(call.drop(call.input, "runs over it", range(-count, 0)))


def last_two(call: Call) -> Any:
    """tril, triu: the last two axes count."""
    return call.drop(call.input, "counts along it", [-2, -1])


def reduce(call: Call) -> Any:
    """Sums, means, maxima, norms over axes: over channels they take those that stay."""
    rank = len(call.input.shape)
    # linalg_vector_norm(x, order, axes) and norm have one argument before.
    axes = call.argument(2 if call.node.op.startswith(("linalg_vector_norm", "norm")) else 1, "dim")
    chosen = [axes] if isinstance(axes, int) else axes or range(rank)
    over = {axis % rank for axis in chosen if rank}  # a number may be summed over its axis 0
    first = call.out[0] if isinstance(call.out, list | tuple) else call.out
    kept = [axis for axis in range(rank) if axis not in over]
    place = {axis: axis if first.dim() == rank else i for i, axis in enumerate(kept)}
    lines = {place[axis]: line for axis, line in call.input.lines.items() if axis in place}
    if call.node.op in ("max.dim", "min.dim", "argmax", "argmin"):
        call.lock(call.input, "counts along it", over)
    return call.everywhere(lines)


def batch_norm(call: Call) -> Any:
    """batch_norm, instance_norm: scale, shift, mean and variance belong to the channels of axis 1."""
    _vectors(call, 1, call.args[1:5])
    return dict(call.input.lines)


def _vectors(call: Call, axis: int, vectors: Iterable[Any]) -> None:
    """Ties vectors of one number per channel, where there are any, to an axis of the input."""
    meet(call, [(call.input, axis), *((v, 0) for v in vectors if isinstance(v, Labelled))])


def layer_norm(call: Call) -> Any:
    """layer_norm, rms_norm(x, shape, weight, bias): over the last axes, of which those that stay are taken."""
    count = len(call.args[1])
    affine = [v for v in (call.argument(2, "weight"), call.argument(3, "bias")) if isinstance(v, Labelled)]
    meet_all(call, [Labelled(call.input.shape[-count:], _last(call.input, count)), *affine], count)
    return dict(call.input.lines)


def _last(value: Labelled, count: int) -> Lines:
    first = len(value.shape) - count
    return {axis - first: line for axis, line in value.lines.items() if axis >= first}


def group_norm(call: Call) -> Any:
    """group_norm(x, groups, weight, bias): every group loses the same positions, or goes whole where it is one channel."""
    groups = int(call.args[1])
    line = call.input.lines.get(1)
    if line is not None and groups < call.input.shape[1]:
        call.labels.tie_groups(line, groups)
    _vectors(call, 1, [call.argument(2, "weight"), call.argument(3, "bias")])
    return dict(call.input.lines)


def prelu(call: Call) -> Any:
    """A slope for each channel of axis 1, or one for all, which stays."""
    if call.args[1].shape not in ((1,), ()):
        _vectors(call, 1, [call.args[1]])
    return dict(call.input.lines)


def lock(call: Call) -> Any:
    """Nothing is known: whatever touches this operation stays as it is, and its result too, for the same reason."""
    reason = "has no rule that says how its channels are coupled"
    for value in tensors_in([*call.args, *call.kwargs.values()]):
        call.lock(value, reason)
    label = call.labels.fresh(1)
    call.labels.lock(label, f"{call.where} {reason}")
    if isinstance(call.out, list | tuple):
        return [_stuck(label, o) for o in call.out]
    return _stuck(label, call.out)


def _stuck(label: torch.Tensor, out: Any) -> Lines:
    """Lines of a result that must keep its shape."""
    shape = out.shape if isinstance(out, torch.Tensor) else ()
    return {axis: label.expand(size) for axis, size in enumerate(shape) if size > 1 and axis > 0}


def constant(call: Call) -> Any:
    """Made from numbers (arange, …): a fixed size."""
    return call.everywhere({})


def tensors_in(values: Iterable[Any]) -> list[Labelled]:
    """Every Labelled among `values`, in lists and tuples too."""
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += tensors_in(value)
        elif isinstance(value, Labelled):
            found.append(value)
    return found
