"""Coupled axes: which slices of which tensors must be removed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from featherweight.graph.heads import find_heads
from featherweight.graph.labels import Labelled, Labels, Solution
from featherweight.graph.ops import row_of
from featherweight.graph.program import Program, map_refs, refs_in
from featherweight.graph.rules import Call, tensors_in
from featherweight.graph.shapes import infer_shapes

__all__ = ["Axis", "Coupling", "Group", "Unit", "trace"]

Axis = tuple[str, int]
"""A tensor's name and one of its axes."""

Unit = Literal["neuron", "head"]
"""What attention loses: single features of every head, or whole heads. Other channels are neurons in any case."""


@dataclass(frozen=True)
class Group:
    """Channels that occupy the same axes: channel c is `members[axis][c]`, the indices of that axis that go with it.

    Removing a channel removes its indices from every axis of `members`, and nothing else needs to change.
    """

    name: str
    members: Mapping[Axis, torch.Tensor]
    unit: Unit = "neuron"

    @property
    def size(self) -> int:
        """How many channels it has."""
        return int(next(iter(self.members.values())).shape[0])


@dataclass(frozen=True)
class Coupling:
    """What a trace found: the groups that may shrink, why other tensors may not, and the labels behind both.

    `values` holds for each value of the program its `Labelled`, or a list of them (None where it is no tensor), and `axes` the
    line of each tensor's axis; all labels are representatives.
    """

    groups: tuple[Group, ...]
    locked: Mapping[Axis, str]
    values: Sequence[Any]
    axes: Mapping[Axis, torch.Tensor]
    label_count: int


def trace(program: Program, tensors: Mapping[str, torch.Tensor], *, unit: Unit = "neuron") -> Coupling:
    """Finds which slices of which tensors form one channel, by running the program on labels.

    After DepGraph (Fang et al., CVPR 2023), which propagates over layers; here every axis of every value carries the channels
    of its indices, so reshapes, concatenations and splits need no rule of their own.

    Args:
        program: the network.
        tensors: its tensors by name; only shapes are read.
        unit: "head" keeps the features of an attention head together, so that heads go whole; "neuron" takes features, the
            same of every head.

    Returns:
        The coupling. The network's inputs and outputs are locked.

    Raises:
        UnsupportedOpError: an operation's shapes do not follow from its inputs.

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> program = capture(net, torch.zeros(1, 4))
        >>> [(g.name, g.size, sorted(g.members)) for g in trace(program, tensors_of(net, program)).groups]
        [('0.weight', 3, [('0.bias', 0), ('0.weight', 0), ('2.weight', 1)])]
    """
    labels = Labels()
    values = _run(program, tensors, labels, unit)
    for value in tensors_in(values[ref.index] for ref in refs_in(program.output)):
        for line in value.lines.values():
            labels.lock(line, "it is an output of the network")
    solution = labels.solve()
    values = [solution.of(v) for v in values]
    owned = values[len(program.inputs) : program.first_node]
    axes = {
        (spec.name, axis): line
        for spec, value in zip(program.tensors, owned, strict=True)
        for axis, line in sorted(value.lines.items())
    }
    return Coupling(_groups(axes, solution), _locked(axes, solution), values, axes, len(solution.roots))


def _run(program: Program, tensors: Mapping[str, torch.Tensor], labels: Labels, unit: Unit) -> list[Any]:
    """What each value of the program is, as Labelled; numbers as they are."""
    shapes = infer_shapes(program, tensors)
    heads = find_heads(program, shapes) if unit == "head" else {}
    values: list[Any] = [Labelled(tuple(shapes[i].shape)) for i in range(len(program.inputs))]
    for spec in program.tensors:
        shape = tuple(tensors[spec.name].shape)
        made = spec.name in program.constants  # numbers in the code, which stays as it is
        values.append(Labelled(shape, {a: labels.fresh(n) for a, n in enumerate(shape) if n > 1 and not made}))
    for position, (node, out) in enumerate(zip(program.nodes, shapes[program.first_node :], strict=True)):
        if not _has_tensor(out):
            values.append(out)
            continue
        args = map_refs(node.args, lambda ref: values[ref.index])
        kwargs = map_refs(node.kwargs, lambda ref: values[ref.index])
        lines = row_of(node.op).couple(Call(node, args, kwargs, out, labels, heads.get(position)))
        values.append(_labelled(out, lines))
    return values


def _labelled(out: Any, lines: Any) -> Any:
    if isinstance(out, list | tuple):
        return [_labelled(o, part) for o, part in zip(out, lines, strict=True)]
    return Labelled(tuple(out.shape), lines) if isinstance(out, torch.Tensor) else out


def _groups(axes: Mapping[Axis, torch.Tensor], solution: Solution) -> tuple[Group, ...]:
    """Puts the channels that occupy the same axes, each as often, into one group; the smallest channel says which comes first.

    Channels start as two kinds, heads and others, and every axis parts those of a kind that lie on it, by how often.
    """
    kind = torch.zeros(len(solution.roots), dtype=torch.int64)
    kind[list(solution.heads)] = 1
    free = torch.ones(len(kind), dtype=torch.bool)
    free[list(solution.locked)] = False
    places: dict[Axis, tuple[torch.Tensor, torch.Tensor]] = {}
    for key, line in axes.items():
        roots, order = line.sort(stable=True)
        roots, indices = roots[free[roots]], order[free[roots]]
        if len(roots) > 0:
            places[key] = roots, indices
            channels, counts = roots.unique_consecutive(return_counts=True)
            parts = (kind[channels] * (len(line) + 1) + counts).unique(return_inverse=True)[1]
            kind[channels] = kind.max() + 1 + parts
    members: dict[int, dict[Axis, torch.Tensor]] = {}
    for key, (roots, indices) in places.items():
        for number in kind[roots].unique().tolist():
            here = kind[roots] == number
            channels = roots[here].unique_consecutive()
            members.setdefault(int(channels[0]), {})[key] = indices[here].view(len(channels), -1)
    return tuple(
        Group(_producer(members[first]), members[first], "head" if first in solution.heads else "neuron")
        for first in sorted(members)
    )


def _producer(members: Mapping[Axis, torch.Tensor]) -> str:
    """A group is called after the tensor that produces it: the first with the channels on axis 0."""
    return next((name for name, axis in members if axis == 0), next(iter(members))[0])


def _locked(axes: Mapping[Axis, torch.Tensor], solution: Solution) -> dict[Axis, str]:
    locked = {}
    for key, line in axes.items():
        reasons = [solution.locked.get(root) for root in line.tolist()]
        if reasons[0] is not None and all(reasons):
            locked[key] = reasons[0]
    return locked


def _has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and any(_has_tensor(v) for v in value))
