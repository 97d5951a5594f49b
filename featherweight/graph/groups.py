"""Coupled axes: which slices of which tensors must be removed together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.labels import FREE, Labels, varying_axes
from featherweight.graph.ops import row_of
from featherweight.graph.program import Program, map_refs, refs_in
from featherweight.graph.rules import Call, Owned
from featherweight.graph.shapes import infer_shapes

__all__ = ["Axis", "Coupling", "Group", "trace"]

Axis = tuple[str, int]
"""A tensor's name and one of its axes."""


@dataclass(frozen=True)
class Group:
    """Channels that occupy the same axes: channel c is `members[axis][c]`, the indices of that axis that go with it.

    Removing a channel removes its indices from every axis of `members`, and nothing else needs to change.
    """

    name: str
    members: Mapping[Axis, torch.Tensor]

    @property
    def size(self) -> int:
        """How many channels it has."""
        return int(next(iter(self.members.values())).shape[0])


@dataclass(frozen=True)
class Coupling:
    """What a trace found: the groups that may shrink, why other tensors may not, and the labels behind both.

    `values` holds the label tensor of each value of the program (None where it is no tensor) and `axes` that of each tensor's
    axis; all labels are representatives.
    """

    groups: tuple[Group, ...]
    locked: Mapping[Axis, str]
    values: Sequence[Any]
    axes: Mapping[Axis, torch.Tensor]
    label_count: int


def trace(program: Program, tensors: Mapping[str, torch.Tensor]) -> Coupling:
    """Finds which slices of which tensors form one channel, by running the program on labels.

    After DepGraph (Fang et al., CVPR 2023), which propagates over layers; here every element of every value carries its
    channel, so reshapes, concatenations and splits need no rule of their own.

    Args:
        program: the network.
        tensors: its tensors by name; only shapes are read.

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
    tracer = _Tracer(program, tensors)
    values = tracer.run()
    axes = tracer.axes()
    roots = [_map_tensors(v, tracer.labels.roots) for v in values]
    return Coupling(_groups(axes, tracer.labels), _locked(axes, tracer.labels), roots, axes, len(tracer.labels))


class _Tracer:
    """Runs a program on labels."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        self.program = program
        self.labels = Labels()
        self._tensors = tensors
        self._axis_labels: dict[Axis, torch.Tensor] = {}
        self._element_labels: dict[str, torch.Tensor] = {}

    def run(self) -> list[Any]:
        program = self.program
        shapes = infer_shapes(program, self._tensors)
        values: list[Any] = [torch.zeros((), dtype=torch.int64).expand(shapes[i].shape) for i in range(len(program.inputs))]
        values += [Owned(spec.name, tuple(self._tensors[spec.name].shape)) for spec in program.tensors]
        for node, out in zip(program.nodes, shapes[program.first_node :], strict=True):
            if not _has_tensor(out):
                values.append(out)
                continue
            args = map_refs(node.args, lambda ref: values[ref.index])
            kwargs = map_refs(node.kwargs, lambda ref: values[ref.index])
            call = Call(node, args, kwargs, out, self.labels, self.axis, self.elements)
            values.append(row_of(node.op).couple(call))
        for ref in refs_in(program.output):
            if isinstance(values[ref.index], Owned | torch.Tensor):
                self.labels.lock(self.elements(values[ref.index]), "it is an output of the network")
        return [self._element_labels.get(v.name) if isinstance(v, Owned) else v for v in values]

    def axis(self, owned: Owned, axis: int) -> torch.Tensor:
        key = (owned.name, axis)
        if key not in self._axis_labels:
            self._axis_labels[key] = self.labels.fresh(owned.shape[axis])
        return self._axis_labels[key]

    def elements(self, value: Any) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value
        if not isinstance(value, Owned):
            return torch.full((), FREE)
        if len(value.shape) == 1:
            return self.axis(value, 0)
        if value.name not in self._element_labels:
            count = int(torch.Size(value.shape).numel())
            self._element_labels[value.name] = self.labels.fresh(count).reshape(value.shape)
        return self._element_labels[value.name]

    def axes(self) -> dict[Axis, torch.Tensor]:
        """The labels of each tensor's axes; a tensor whose elements' channels do not lie along one axis is locked."""
        found = dict(self._axis_labels)
        for name, labels in self._element_labels.items():
            roots = self.labels.roots(labels)
            varying = varying_axes(roots)
            own = varying[0] if len(varying) == 1 else None
            if own is None:
                self.labels.lock(roots, f"the channels of {name} do not lie along one of its axes")
            # The axes that contractions see: an axis that the elements know nothing of must stay for their sake.
            for axis in range(labels.dim()):
                if axis != own and (name, axis) in found:
                    self.labels.lock(found[name, axis], f"{name} is also used element by element")
            if own is not None:
                line = roots.movedim(own, 0).reshape(roots.shape[own], -1)[:, 0]
                self.labels.tie(line, found.setdefault((name, own), line))
        return {key: self.labels.roots(labels) for key, labels in found.items()}


def _groups(axes: Mapping[Axis, torch.Tensor], labels: Labels) -> tuple[Group, ...]:
    """Collects the channels, and puts those that occupy the same axes into one group."""
    channels: dict[int, dict[Axis, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, roots in axes.items():
        for index, root in enumerate(roots.tolist()):
            if root != FREE and labels.reason_locked(root) is None:
                channels[root][key].append(index)
    grouped: dict[tuple[tuple[Axis, int], ...], list[dict[Axis, list[int]]]] = defaultdict(list)
    for root in sorted(channels):
        signature = tuple((key, len(indices)) for key, indices in channels[root].items())
        grouped[signature].append(channels[root])
    groups = []
    for signature, members in grouped.items():
        stacked = {key: torch.tensor([channel[key] for channel in members]) for key, _ in signature}
        groups.append(Group(_producer(stacked), stacked))
    return tuple(groups)


def _producer(members: Mapping[Axis, torch.Tensor]) -> str:
    """A group is called after the tensor that produces it: the first with the channels on axis 0."""
    return next((name for name, axis in members if axis == 0), next(iter(members))[0])


def _locked(axes: Mapping[Axis, torch.Tensor], labels: Labels) -> dict[Axis, str]:
    locked = {}
    for key, roots in axes.items():
        reasons = [labels.reason_locked(root) for root in roots.tolist() if root != FREE]
        if reasons and reasons[0] is not None and all(reasons):
            locked[key] = reasons[0]
    return locked


def _has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and any(_has_tensor(v) for v in value))


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value) if value.dtype == torch.int64 else None
    if isinstance(value, list | tuple):
        return [_map_tensors(v, change) for v in value]
    return None
