"""Deciding and doing: a `Plan` says which slices of which tensors go; it masks a network, or makes it really smaller."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from featherweight.errors import RequestError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.constraint import constrain, constrained, duplicate, fold
from featherweight.graph.groups import Axis, Coupling, trace
from featherweight.graph.labels import kept_along
from featherweight.graph.ops import Resize, row_of
from featherweight.graph.program import Input, Node, Program, ProgramModule, Ref

__all__ = ["Plan", "PlannedGroup"]

_log = logging.getLogger(__name__)
_AGREEMENT = 1e-3
"""Largest relative difference between the user's own class and its captured twin after surgery, in the network's own precision."""


@dataclass(frozen=True)
class PlannedGroup:
    """A line of the plan's table: a group, the tensors in it, and how many of its channels stay."""

    name: str
    tensors: tuple[str, ...]
    kept: int
    total: int


@dataclass(frozen=True)
class Plan:
    """Which slices of which tensors go, by tensor name: plain data that prints, saves, loads, masks and applies.

    Args:
        removed: for each (tensor, axis) the indices that go, increasing.
        groups: the lines of the printed table.
        locked: tensors that cannot shrink, and why.
        inputs: the network's inputs, from which an example is made when the plan is applied.
    """

    removed: Mapping[Axis, tuple[int, ...]]
    groups: tuple[PlannedGroup, ...] = ()
    locked: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()

    def mask(self, model: nn.Module) -> nn.Module:
        """A copy of the same shapes in which the removed slices are zero; its constraints are folded.

        Raises:
            RequestError: the plan does not fit the network.
        """
        masked = fold(model)
        for (name, axis), indices in self.removed.items():
            _tensor(masked, name, axis, indices).data.index_fill_(axis, torch.tensor(indices), 0)
        return masked

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy without the removed slices, constraints kept; its outputs are those of the masked network.

        The user's own class comes back where its `forward` runs with the new sizes and agrees with the captured program;
        otherwise a `ProgramModule` does, and the log says so.

        Raises:
            RequestError: the plan does not fit the network, or would empty an axis.
        """
        if not self.removed:
            return duplicate(model)
        folded = fold(model)
        program = capture(folded, Program(self.inputs, (), (), None).example())
        tensors = tensors_of(folded, program)
        coupling = trace(program, tensors)
        goes = _labels_removed(self, coupling, folded)
        smaller = _resize_program(program, tensors, coupling, goes)
        kept = {key: _complement(tensors[key[0]].shape[key[1]], indices) for key, indices in self.removed.items()}
        twin = ProgramModule(smaller, {name: _take(tensor, name, kept).clone() for name, tensor in tensors.items()})
        result = twin if isinstance(model, ProgramModule) else _own_class(folded, twin, kept)
        for name, chain in constrained(model).items():
            for constraint in chain:
                constraint = copy.deepcopy(constraint)
                for axis in range(8):
                    if (name, axis) in kept:
                        constraint.take(axis, kept[name, axis])
                constrain(result, name, constraint)
        return result.train(model.training)

    def to_json(self) -> str:
        """The plan as JSON, keys sorted."""
        removed: dict[str, dict[str, list[int]]] = {}
        for (name, axis), indices in self.removed.items():
            removed.setdefault(name, {})[str(axis)] = list(indices)
        return json.dumps(
            {
                "removed": removed,
                "groups": [[g.name, list(g.tensors), g.kept, g.total] for g in self.groups],
                "locked": dict(self.locked),
                "inputs": [[i.name, list(i.shape), str(i.dtype).removeprefix("torch.")] for i in self.inputs],
            },
            sort_keys=True,
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            RequestError: the text is no plan.
        """
        try:
            raw = json.loads(text)
            return Plan(
                {(name, int(axis)): tuple(map(int, i)) for name, axes in raw["removed"].items() for axis, i in axes.items()},
                tuple(PlannedGroup(name, tuple(tensors), int(kept), int(total)) for name, tensors, kept, total in raw["groups"]),
                dict(raw["locked"]),
                tuple(Input(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in raw["inputs"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"this is not a plan that featherweight wrote: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a plan that `save` wrote."""
        return Plan.from_json(Path(path).read_text())

    def __str__(self) -> str:
        lines = [f"{g.name:<32} {g.kept:>6} of {g.total:<6} {', '.join(g.tensors[1:])}".rstrip() for g in self.groups]
        lines += [f"{name:<32} locked: {reason}" for name, reason in self.locked.items()]
        return "\n".join(lines)


def _labels_removed(plan: Plan, coupling: Coupling, model: nn.Module) -> torch.Tensor:
    """Which labels go, as bool over all labels; checks that the plan removes whole channels of this network, and not all of any axis."""
    goes = torch.zeros(coupling.label_count, dtype=torch.bool)
    for (name, axis), indices in plan.removed.items():
        _tensor(model, name, axis, indices)
        if (name, axis) in coupling.axes:
            goes[coupling.axes[name, axis][list(indices)]] = True
    for (name, axis), labels in coupling.axes.items():
        expected = goes[labels.clamp(min=0)].nonzero().flatten().tolist()
        planned = list(plan.removed.get((name, axis), ()))
        if expected != planned:
            raise RequestError(
                f"a plan must remove whole channels: axis {axis} of {name!r} would lose {planned[:8]}, but what is coupled to it "
                f"loses {expected[:8]}; make the plan from this network"
            )
        if len(planned) == len(labels):
            raise RequestError(f"a plan must leave at least one channel: axis {axis} of {name!r} would lose all {len(labels)}")
    return goes


def _resize_program(
    program: Program, tensors: Mapping[str, torch.Tensor], coupling: Coupling, goes: torch.Tensor
) -> Program:
    """The program with every literal size that follows from the channels kept rewritten."""
    first = len(program.inputs)

    def kept(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [kept(v) for v in value]
        return kept_along(value, goes) if isinstance(value, torch.Tensor) else None

    def kept_by(argument: Any) -> Any:
        if not isinstance(argument, Ref):
            return None
        name = program.tensor_name(argument)
        if name is None or coupling.values[argument.index] is not None:
            return kept(coupling.values[argument.index])
        every = [torch.ones(size, dtype=torch.bool) for size in tensors[name].shape]
        return [~goes[coupling.axes[name, axis]] if (name, axis) in coupling.axes else all_ for axis, all_ in enumerate(every)]

    nodes = []
    for position, node in enumerate(program.nodes):
        resize = row_of(node.op).resize
        out = coupling.values[first + len(program.tensors) + position]
        if resize is not None and out is not None:
            node = resize(Resize(node, node.args, [kept_by(a) for a in node.args], kept(out)))
        nodes.append(Node(node.op, node.args, node.kwargs, node.origin))
    return Program(program.inputs, program.tensors, tuple(nodes), program.output)


def _own_class(folded: nn.Module, twin: ProgramModule, kept: Mapping[Axis, torch.Tensor]) -> nn.Module:
    """The user's own module with the new sizes, if it runs and agrees with its captured twin; else the twin."""
    own = duplicate(folded)
    for name in {name for name, _ in kept}:
        tensor = _tensor(own, name)
        tensor.data = _take(tensor.data, name, kept).clone()
    _refresh_sizes(own, twin.program)
    inputs = twin.program.example(batch=3, seed=1)
    with torch.no_grad():
        try:
            difference = _difference(own.eval()(*inputs), twin.eval()(*inputs))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            _log.warning("%s hard-wires a size (%s); a captured program comes back instead", type(folded).__name__, error)
            return twin
    if not difference <= _AGREEMENT:
        _log.warning("%s disagrees with its captured program after surgery (by %.2g); the program comes back", type(folded).__name__, difference)
        return twin
    return own


def _refresh_sizes(model: nn.Module, program: Program) -> None:
    """Sets the sizes that torch's own layers keep as attributes to those of their tensors."""
    groups = {program.tensor_name(n.args[1]): n.args[6] for n in program.nodes if n.op.startswith("conv") and len(n.args) > 6}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.groups = groups.get(f"{path}.weight" if path else "weight", module.groups)
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.num_features = weight.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = weight.shape[0]


def _difference(a: Any, b: Any) -> float:
    """The largest difference between two outputs of any structure, relative to the largest number in them."""
    pairs = list(zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))
    return max((float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs if x.numel()), default=0.0)


def _tensor(model: nn.Module, name: str, axis: int = 0, indices: tuple[int, ...] = ()) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    try:
        tensor = getattr(model.get_submodule(owner), leaf)
    except AttributeError:
        raise RequestError(f"a plan must name tensors of the network, got {name!r}, which it lacks") from None
    if axis >= tensor.dim() or (indices and not 0 <= min(indices) <= max(indices) < tensor.shape[axis]):
        raise RequestError(f"a plan's indices must lie within the tensor, but axis {axis} of {name!r} has shape {tuple(tensor.shape)}")
    return tensor  # type: ignore[no-any-return]


def _complement(size: int, indices: tuple[int, ...]) -> torch.Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(indices)] = False
    return stays.nonzero().flatten()


def _take(tensor: torch.Tensor, name: str, kept: Mapping[Axis, torch.Tensor]) -> torch.Tensor:
    for axis in range(tensor.dim()):
        if (name, axis) in kept:
            tensor = tensor.index_select(axis, kept[name, axis])
    return tensor
