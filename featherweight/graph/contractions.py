"""Rules of the operations that multiply and add over an axis: linear, convolution, matrix products, attention, recurrent cells.

All but convolutions are sums of products, and so said by a line of index letters as in einsum: an axis shared by operands is
tied, one that is summed over is gone afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from featherweight.graph.labels import Labelled
from featherweight.graph.program import Ref
from featherweight.graph.rules import Call, Lines, lock, meet, meet_all, tensors_in

__all__ = [
    "addmm",
    "attention",
    "conv",
    "conv_transpose",
    "einsum",
    "gru",
    "gru_cell",
    "linear",
    "lstm",
    "lstm_cell",
    "matmul",
    "parse",
    "rnn",
]


def _contract(call: Call, operands: Sequence[Labelled], equation: Sequence[str], result: str) -> Lines:
    """Ties the axes that share a letter; each operand may have more axes in front, which broadcast.

    Args:
        call: the operation.
        operands: the factors.
        equation: a letter for each of an operand's last axes.
        result: a letter for each of the result's last axes.

    Returns:
        The lines of the result.
    """
    by_letter: dict[str, torch.Tensor | None] = {}
    for letter in dict.fromkeys("".join(equation)):
        shared = [(v, i - len(e)) for v, e in zip(operands, equation, strict=True) for i, c in enumerate(e) if c == letter]
        by_letter[letter] = meet(call, shared)
    outer = [_front(v, len(e)) for v, e in zip(operands, equation, strict=True)]
    rank = max(len(v.shape) for v in outer)
    lines = meet_all(call, outer, rank)
    for i, letter in enumerate(result):
        line = by_letter[letter]
        if line is not None:
            lines[rank + i] = line
    return lines


def _front(value: Labelled, inner: int) -> Labelled:
    rank = len(value.shape) - inner
    return Labelled(value.shape[:rank], {axis: line for axis, line in value.lines.items() if axis < rank})


def _add(call: Call, lines: Lines, *more: Any) -> Lines:
    """The result of a product, with something added: a bias, which broadcasts."""
    rank = call.out.dim()
    return meet_all(call, [Labelled(tuple(call.out.shape), lines), *tensors_in(more)], rank) if tensors_in(more) else lines


def linear(call: Call) -> Any:
    """The last axis of the input meets the weight's axis 1, and its axis 0 is the output."""
    lines = _contract(call, call.args[:2], ["i", "oi"], "o")
    return _add(call, lines, call.argument(2, "bias"))


def matmul(call: Call) -> Any:
    """matmul, mm, bmm: rows times columns; a vector is one row, or one column."""
    a, b = call.args[:2]
    left, right = "i" if len(a.shape) == 1 else "ri", "i" if len(b.shape) == 1 else "ic"
    return _contract(call, [a, b], [left, right], left[:-1] + right[1:])


def addmm(call: Call) -> Any:
    """addmm, baddbmm: a product, and something added to it."""
    return _add(call, _contract(call, call.args[1:3], ["ri", "ic"], "rc"), call.args[0])


def attention(call: Call) -> Any:
    """Softmax of query times key, times value; with `enable_gqa` several heads of queries share one of keys and values."""
    query, key, value = call.args[:3]
    if call.argument(7, "enable_gqa", False) and query.shape[-3] != key.shape[-3]:
        key, value = (_repeated(v, query.shape[-3] // v.shape[-3]) for v in (key, value))
    lines = _contract(call, [query, key, value], ["id", "jd", "je"], "ie")
    mask = call.argument(3, "attn_mask")
    if isinstance(mask, Labelled):
        scores = _front(Labelled(tuple(call.out.shape), lines), 1)
        rank, along = len(scores.shape), key.lines.get(len(key.shape) - 2)
        lines_of_scores = {**scores.lines, **({} if along is None else {rank: along})}
        meet_all(call, [Labelled((*scores.shape, key.shape[-2]), lines_of_scores), mask], rank + 1)
    return lines


def _repeated(value: Labelled, times: int) -> Labelled:
    axis = len(value.shape) - 3
    shape = (*value.shape[:axis], value.shape[axis] * times, *value.shape[axis + 1 :])
    lines = {a: line.repeat_interleave(times) if a == axis else line for a, line in value.lines.items()}
    return Labelled(shape, lines)


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """An einsum's letters for each operand's last axes and the result's, where "..." may only stand in front; else None."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
        result = "..." * ("..." in left) + result
    inner = [part.removeprefix("...") for part in (*parts, result)]
    lengths = [len(p) != r for p, r in zip(inner, ranks, strict=False)]
    if (
        "." in "".join(inner)
        or ("..." in left and not result.startswith("..."))
        or any(long and not p.startswith("...") for long, p in zip(lengths, parts, strict=True))
    ):
        return None
    if any(len(set(p)) != len(p) for p in inner):
        return None  # a diagonal
    return inner[:-1], inner[-1]


def einsum(call: Call) -> Any:
    """einsum(equation, operands)."""
    operands = call.args[1]
    letters = parse(call.args[0], [len(v.shape) for v in operands])
    return lock(call) if letters is None else _contract(call, operands, *letters)


def conv(call: Call) -> Any:
    """Convolution. Depthwise: an output goes with its input. Other groups: every group loses the same positions."""
    x, weight, bias = call.input, call.args[1], call.argument(2, "bias")
    groups = call.argument(6, "groups", 1)
    computed = any(isinstance(number, Ref) for number in call.node.args[6:])
    if len(x.shape) != len(weight.shape) or (computed and weight.shape[1] == 1):
        return lock(call)  # one sample without a batch axis, or a computed number of groups, one for each channel
    call.lock(x, "runs over it", {0, *range(2, len(x.shape))})
    call.lock(weight, "runs over it", range(2, len(weight.shape)))
    return _channels(call, _grouped(call, x, weight, groups), bias)


def _grouped(call: Call, x: Labelled, weight: Labelled, groups: int) -> torch.Tensor | None:
    """The line of a convolution's outputs; inputs and weights are tied as its groups demand."""
    ins, outs, inner = x.lines.get(1), weight.lines.get(0), weight.lines.get(1)
    if groups == 1:
        meet(call, [(x, 1), (weight, 1)])
        return outs
    per_group = weight.shape[1]
    if per_group == 1:
        if ins is not None and outs is not None:
            call.labels.tie(ins.repeat_interleave(weight.shape[0] // groups), outs)
        else:
            _lock_all(call, ins, outs)
        return outs
    if ins is not None and inner is not None:
        call.labels.tie(ins.view(groups, -1), inner)
    else:
        _lock_all(call, ins, inner)
    if outs is not None:
        call.labels.tie_groups(outs, groups)
    return outs


def _lock_all(call: Call, *lines: torch.Tensor | None) -> None:
    for line in lines:
        if line is not None:
            call.labels.lock(line, f"{call.where} joins it with an axis of fixed size, an input's or one of positions")


def _channels(call: Call, outs: torch.Tensor | None, bias: Any) -> Lines:
    if isinstance(bias, Labelled):
        outs = meet(call, [(Labelled((call.out.shape[1],), {} if outs is None else {0: outs}), 0), (bias, 0)])
    return {} if outs is None else {1: outs}


def conv_transpose(call: Call) -> Any:
    """Transposed convolution: the weight's axis 0 meets the input, its axis 1 holds the outputs of a group."""
    x, weight, bias = call.input, call.args[1], call.argument(2, "bias")
    groups = call.argument(6, "groups", 1)
    if len(x.shape) != len(weight.shape):
        return lock(call)  # one sample without a batch axis
    call.lock(x, "runs over it", {0, *range(2, len(x.shape))})
    call.lock(weight, "runs over it", range(2, len(weight.shape)))
    ins = meet(call, [(x, 1), (weight, 0)])
    outs = weight.lines.get(1)
    if groups > 1:
        if weight.shape[:2] == (groups, 1):
            outs = ins
        else:
            outs = None if outs is None else outs.repeat(groups)
            if ins is not None:
                call.labels.tie_groups(ins, groups)
    return _channels(call, outs, bias)


def lstm(call: Call) -> Any:
    """lstm(input, (h, c), weights, …): the four gates lose the same units."""
    return _recurrent(call, states=call.args[1], gates=4)


def gru(call: Call) -> Any:
    """gru(input, h, weights, …): the three gates lose the same units."""
    return _recurrent(call, states=[call.args[1]], gates=3)


def rnn(call: Call) -> Any:
    """rnn_tanh, rnn_relu(input, h, weights, …): no gates."""
    return _recurrent(call, states=[call.args[1]], gates=1)


def _recurrent(call: Call, states: Sequence[Labelled], gates: int) -> Any:
    """All layers and directions share one line of units, for the state is one tensor that holds them all."""
    weights, has_biases, layers = call.args[2], call.args[3], int(call.args[4])
    directions = 2 if call.args[7] else 1
    per_cell = 4 if has_biases else 2
    if len(weights) != per_cell * layers * directions or 1 not in weights[1].lines:
        return lock(call)  # projected outputs, or a single unit
    units = weights[1].lines[1]
    x = Labelled(call.input.shape[2:], {0: call.input.lines[2]} if 2 in call.input.lines else {})
    out = Labelled((len(units) * directions,), {0: units.repeat(directions)})
    for number in range(layers * directions):
        cell = weights[number * per_cell : (number + 1) * per_cell]
        meet(call, [(x if number < directions else out, 0), (cell[0], 1)])
        _tie_gates(call, units, cell, gates)
    for state in states:
        meet(call, [(state, 2), (Labelled((len(units),), {0: units}), 0)])
        call.lock(state, "runs over it", [0, 1])
    call.lock(call.input, "runs over it", [0, 1])
    return [{2: out.lines[0]}, *({2: units} for _ in states)]


def _tie_gates(call: Call, units: torch.Tensor, cell: Sequence[Any], gates: int) -> None:
    """Ties a cell's units over its gates, and to the inputs of its recurrent matrix."""
    for tensor in cell:
        if isinstance(tensor, Labelled):
            call.labels.tie(tensor.lines[0].view(gates, -1), units)
    call.labels.tie(cell[1].lines[1], units)


def lstm_cell(call: Call) -> Any:
    """lstm_cell(input, (h, c), w_ih, w_hh, b_ih, b_hh): one step."""
    return _one_step(call, states=call.args[1], gates=4)


def gru_cell(call: Call) -> Any:
    """gru_cell, rnn_tanh_cell, rnn_relu_cell(input, h, w_ih, w_hh, b_ih, b_hh): one step."""
    return _one_step(call, states=[call.args[1]], gates=3 if call.node.op.startswith("gru") else 1)


def _one_step(call: Call, states: Sequence[Labelled], gates: int) -> Any:
    if 1 not in call.args[3].lines:
        return lock(call)  # a single unit
    units = call.args[3].lines[1]
    meet(call, [(call.input, 1), (call.args[2], 1)])
    _tie_gates(call, units, call.args[2:6], gates)
    for state in states:
        meet(call, [(state, 1), (Labelled((len(units),), {0: units}), 0)])
    return [{1: units} for _ in call.out] if isinstance(call.out, list | tuple) else {1: units}
