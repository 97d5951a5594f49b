"""Rules of the operations that move data. Most need none of their own: run on labels, they show where each channel goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from featherweight.graph.functions import resolve_op
from featherweight.graph.labels import FIXED, Labelled
from featherweight.graph.program import Node, Ref
from featherweight.graph.rules import Call, Lines, meet_all

__all__ = [
    "cat",
    "embedding",
    "expand",
    "expand_as",
    "index",
    "index_axis",
    "item",
    "move",
    "narrow",
    "pad",
    "pixel_shuffle",
    "reshape",
    "reshape_as",
    "roll",
    "select",
    "shuffle",
    "slice_",
    "stack",
    "unbind",
    "unfold_patches",
]


def move(call: Call) -> Any:
    """Data moves: run the operation on the labels of each axis, to see where they go."""
    results: Any = [{} for _ in call.out] if isinstance(call.out, list | tuple) else [{}]
    op = "reshape" if call.node.op == "view" else call.node.op  # labels are expanded views, which `view` may refuse
    for axis, line in sorted(call.input.lines.items()):
        shape = call.input.shape
        labels = line.view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
        moved = resolve_op(op)(labels, *call.args[1:], **call.kwargs)
        for part, lines in zip(moved if isinstance(moved, list | tuple) else [moved], results, strict=True):
            _place(call, part, lines)
    return results if isinstance(call.out, list | tuple) else results[0]


def _place(call: Call, moved: torch.Tensor, lines: Lines) -> None:
    """Finds the axis along which labels vary, and puts them there as its line.

    Where a channel axis was split (groups, heads, query and key and value), channels are tied across all parts but one: any
    choice is then a smaller box. Of the two longest the later one stays, unless heads are to go whole.
    """
    if not moved.numel():
        return None
    labels, varying = moved, []
    for axis in range(moved.dim()):
        first = labels.narrow(axis, 0, 1)
        if labels.shape[axis] == 1 or labels.stride(axis) == 0 or bool((labels == first).all()):
            labels = first
        else:
            varying.append(axis)
    if not varying:
        return call.labels.lock(labels, f"{call.where} leaves it alone on its axis")
    features = max(sorted(varying, key=lambda axis: moved.shape[axis])[-2:])
    heads = _axis_of_heads(call, moved.shape, [axis for axis in varying if axis != features])
    keep = features if heads is None else heads
    for axis in varying:
        if axis != keep:
            call.labels.tie(labels, labels.narrow(axis, 0, 1))
            labels = labels.narrow(axis, 0, 1)
    line = labels.reshape(-1)
    if keep in lines:
        stays, line = (line, lines[keep]) if call.labels.are_copies(line) else (lines[keep], line)
        call.labels.lock(stays, f"{call.where} merges it with another channel axis")
    lines[keep] = line
    if heads is not None:
        call.labels.mark_heads(lines[keep])
    return None


def _axis_of_heads(call: Call, shape: Sequence[int], axes: Sequence[int]) -> int | None:
    """The axis of the heads, where they are to go whole: of as many, of batch · heads, or of fewer that keys share."""
    heads = call.heads
    if heads is None:
        return None
    exact = [axis for axis in axes if shape[axis] == heads]
    with_batch = [axis for axis in axes if shape[axis] % heads == 0]
    shared = [axis for axis in axes if heads % shape[axis] == 0]
    alike = exact or with_batch or shared
    return alike[-1] if alike else None


def reshape(call: Call) -> Any:
    """view, reshape: a computed size (batch · channels) can follow the channels kept only if it is the one left open."""
    lines = move(call)
    sizes = call.node.args[1]
    computed = [axis for axis in lines if isinstance(sizes[axis], Ref)]
    if len(computed) > 1 or (computed and -1 in sizes):
        for axis in computed:
            call.labels.lock(lines.pop(axis), f"{call.where} computes a size from it")
    return lines


def reshape_as(call: Call) -> Any:
    """The same shape as another value: reshape, and tie."""
    shape = list(call.out.shape)
    node = Node("reshape", (call.node.args[0], shape), {}, call.node.origin)
    lines = move(Call(node, [call.input, shape], {}, call.out, call.labels, call.heads))
    return meet_all(call, [Labelled(tuple(shape), lines), call.args[1]], len(shape))


def expand(call: Call) -> Any:
    """An axis that is stretched to a literal size holds copies, so it may shrink with whatever it meets."""
    lines = _aligned(call)
    sizes = call.node.args[1]
    for axis, size in enumerate(sizes):
        source = axis - len(sizes) + len(call.input.shape)
        if isinstance(size, int) and size > 1 and (source < 0 or call.input.shape[source] == 1):
            lines[axis] = call.labels.fresh_copies(size)
    return lines


def expand_as(call: Call) -> Any:
    """Stretched to the shape of another value."""
    return meet_all(call, [call.input, call.args[1]], call.out.dim())


def _aligned(call: Call) -> Lines:
    """The lines of the first argument in a result that has more axes in front."""
    more = call.out.dim() - len(call.input.shape)
    return {axis + more: line for axis, line in call.input.lines.items()}


def slice_(call: Call) -> Any:
    """slice(x, axis, start, end, step): steps over channels, and bounds that are computed, would pick others of those kept."""
    axis = call.argument(1, "dim", 0)
    bounds = call.node.args[2:]
    if any(isinstance(bound, Ref) for bound in bounds) or (len(bounds) > 2 and bounds[2] != 1):
        call.lock(call.input, "counts along it", [axis])
    return move(call)


def narrow(call: Call) -> Any:
    """narrow(x, axis, start, length), of literal bounds."""
    if any(isinstance(bound, Ref) for bound in call.node.args[2:]):
        call.lock(call.input, "counts along it", [call.args[1]])
    return move(call)


def select(call: Call) -> Any:
    """One channel picked by its number stays."""
    _, axis, number = call.node.args
    line = call.input.lines.get(axis % len(call.input.shape))
    if line is not None:
        picked = line if isinstance(number, Ref) else line[number]
        call.labels.lock(picked, f"{call.where} picks it by its number")
    return move(call)


def unbind(call: Call) -> Any:
    """One result for each index: without some channels there would be fewer results."""
    call.lock(call.input, "counts along it", [call.argument(1, "dim", 0)])
    return move(call)


def item(call: Call) -> Any:
    """One of several results."""
    chosen = call.args[0][call.args[1]]
    return dict(chosen.lines) if isinstance(chosen, Labelled) else {}


def roll(call: Call) -> Any:
    """A shift counts channels; without axes it runs over all of them."""
    axes = call.argument(2, "dims") or range(call.out.dim())
    call.lock(call.input, "counts along it", axes)
    return move(call)


def cat(call: Call) -> Any:
    """Concatenation: one line after the other; along the other axes they meet."""
    values: Sequence[Labelled] = call.args[0]
    rank = call.out.dim()
    along = int(call.argument(1, "dim", 0)) % rank
    values = [v for v in values if len(v.shape) == rank]  # torch lets an empty vector pass
    lines = meet_all(call, values, rank, skip=[along])
    if any(along in v.lines for v in values):
        fixed = [torch.full((v.shape[along],), FIXED) for v in values]
        lines[along] = torch.cat([v.lines.get(along, f) for v, f in zip(values, fixed, strict=True)])
    return lines


def stack(call: Call) -> Any:
    """A new axis; along the others they meet."""
    values: Sequence[Labelled] = call.args[0]
    along = int(call.argument(1, "dim", 0)) % call.out.dim()
    lines = meet_all(call, values, call.out.dim() - 1)
    return {axis + (axis >= along): line for axis, line in lines.items()}


def index(call: Call) -> Any:
    """x[i, :, j]: what is picked by numbers that are computed stays; the other axes move as the operation says."""
    indices = call.args[1] if isinstance(call.args[1], list | tuple) else [call.args[1]]
    for numbers in indices:
        call.lock(numbers, "uses it as a number")
    picked = [axis for axis, numbers in enumerate(indices) if numbers is not None]
    lines = call.drop(call.input, "picks from it by number", picked)
    zeros = [None if n is None else torch.zeros(n.shape, dtype=torch.int64) for n in indices]
    node = Node("index.Tensor", call.node.args, {}, call.node.origin)
    return move(Call(node, [Labelled(call.input.shape, lines), zeros], {}, call.out, call.labels))


def index_axis(call: Call) -> Any:
    """index_select(x, axis, numbers)."""
    call.lock(call.args[2], "uses it as a number")
    return call.drop(call.input, "picks from it by number", [call.args[1]])


def embedding(call: Call) -> Any:
    """embedding(table, numbers): the rows stay, the columns are channels."""
    table, numbers = call.args[:2]
    columns = call.drop(table, "picks from it by number", [0])
    call.lock(numbers, "uses it as a number")
    return {call.out.dim() - 1: columns[1]} if 1 in columns else {}


def unfold_patches(call: Call) -> Any:
    """im2col: each channel becomes as many as a patch has pixels."""
    lines = call.drop(call.input, "runs over it", [-2, -1])
    repeat = call.out.shape[-2] // call.input.shape[-3]
    return {axis: line.repeat_interleave(repeat) if axis == call.out.dim() - 2 else line for axis, line in lines.items()}


def pad(call: Call) -> Any:
    """Padding: what is added stays; only constants may be added along channels."""
    lines = dict(call.input.lines)
    widths = call.args[1]
    reflects = call.node.op.startswith("pad") and call.argument(2, "mode", "constant") != "constant"
    for pair in range(len(widths) // 2):
        axis, before, after = call.out.dim() - 1 - pair, widths[2 * pair], widths[2 * pair + 1]
        if axis in lines and (before, after) != (0, 0):
            line = lines.pop(axis)
            if reflects or not all(isinstance(w, int) and w >= 0 for w in (before, after)):
                call.labels.lock(line, f"{call.where} runs over it")
            else:
                lines[axis] = torch.cat([torch.full((before,), FIXED), line, torch.full((after,), FIXED)])
    return lines


def shuffle(call: Call) -> Any:
    """channel_shuffle(x, groups): every group loses the same positions."""
    line = call.input.lines.get(1)
    if line is not None:
        call.labels.tie_groups(line, int(call.args[1]))
    return move(call)


def pixel_shuffle(call: Call) -> Any:
    """Each factor² channels become one, at the positions of factor² pixels."""
    lines = call.drop(call.input, "runs over it", [-2, -1])
    axis = len(call.input.shape) - 3
    if axis in lines:
        blocks = lines[axis].view(-1, int(call.args[1]) ** 2)
        call.labels.tie(blocks, blocks[:, :1])
        lines[axis] = blocks[:, 0]
    return lines
