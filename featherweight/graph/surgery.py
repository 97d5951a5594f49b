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

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import capture, on_device_of, tensors_of, twin_of
from featherweight.graph.constraint import Constraint, constrain, constrained, duplicate, fold
from featherweight.graph.groups import Axis, Coupling, trace
from featherweight.graph.labels import kept_along
from featherweight.graph.ops import row_of
from featherweight.graph.program import Input, Program, ProgramModule, Ref, owner_of, tensor_called
from featherweight.graph.shapes import infer_shapes
from featherweight.graph.sizes import Resize

__all__ = ["Plan", "PlannedGroup"]

_log = logging.getLogger(__name__)


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

        Where an operation has no finite value at zero (0/0, log) a removed channel gives NaN; `apply` does not compute it.

        Raises:
            RequestError: the plan does not fit the network.
        """
        masked = fold(model)
        for (name, axis), indices in self.removed.items():
            values = _tensor(masked, name, axis, indices).data
            values.index_fill_(axis, torch.tensor(indices, device=values.device), 0)
        return masked

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy without the removed slices, constraints kept; its outputs are those of the masked network.

        The user's own class comes back where its `forward` runs with the new sizes and agrees with the captured program;
        otherwise a `ProgramModule` does, and the log says so.

        Raises:
            RequestError: the plan does not fit the network, removes what must stay, or would empty an axis.
            UnsupportedOpError: an operation does not run with the new sizes (named with file:line), or the result is not what
                the masked network gives.
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
        taken = {name: _take(tensor, name, kept).clone() for name, tensor in tensors.items()}
        infer_shapes(smaller, taken)
        twin = twin_of(folded, smaller, taken)
        self._check(ProgramModule(program, tensors_of(self.mask(folded), program)), twin)
        result = twin if isinstance(model, ProgramModule) else _own_class(folded, twin, kept)
        _constrain_like(result, model, kept)
        return result

    def _check(self, masked: ProgramModule, smaller: ProgramModule) -> None:
        """Every plan checks itself: masked and applied must agree. (A NaN of the mask's own, such as 0 / 0, says nothing.)"""
        inputs = on_device_of(masked, masked.program.example(batch=2, seed=2))
        with torch.no_grad():
            difference = _difference(duplicate(smaller).eval()(*inputs), masked.eval()(*inputs))
        if difference > _tolerance(masked):
            raise UnsupportedOpError(
                f"a smaller network must compute what the masked one does, but they differ by {difference:.2g} of the largest "
                "output: some operation couples channels in a way its rule does not know; exclude its tensors, and report it"
            )

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
                tuple(PlannedGroup(name, tuple(names), int(kept), int(total)) for name, names, kept, total in raw["groups"]),
                dict(raw["locked"]),
                tuple(Input(name, tuple(shape), _dtype(dtype)) for name, shape, dtype in raw["inputs"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"this is not a plan that featherweight wrote: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a plan that `save` wrote.

        Raises:
            RequestError: the file cannot be read, or is no plan.
        """
        try:
            return Plan.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"a plan must be a readable JSON file, got {str(path)!r}: {error}") from error

    def __str__(self) -> str:
        lines = [f"{g.name:<32} {g.kept:>6} of {g.total:<6} {', '.join(g.tensors[1:])}".rstrip() for g in self.groups]
        lines += [f"{name:<32} locked: {reason}" for name, reason in self.locked.items()]
        return "\n".join(lines)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


def _labels_removed(plan: Plan, coupling: Coupling, model: nn.Module) -> torch.Tensor:
    """Which labels go, as bool over all labels; checks that these are whole channels that may go, and not all of any axis."""
    goes = torch.zeros(coupling.label_count, dtype=torch.bool)
    may_go: dict[Axis, set[int]] = {}
    for group in coupling.groups:
        for key, indices in group.members.items():
            may_go.setdefault(key, set()).update(indices.flatten().tolist())
    for (name, axis), planned in plan.removed.items():
        _tensor(model, name, axis, planned)
        stuck = sorted(set(planned) - may_go.get((name, axis), set()))
        if stuck:
            reason = coupling.locked.get((name, axis), "it belongs to no channel that may go")
            raise RequestError(
                f"a plan must leave what is locked: index {stuck[0]} of axis {axis} of {name!r} stays, for {reason}"
            )
        goes[coupling.axes[name, axis][list(planned)]] = True
    for (name, axis), labels in coupling.axes.items():
        expected = tuple(goes[labels.clamp(min=0)].nonzero().flatten().tolist())
        planned = plan.removed.get((name, axis), ())
        if expected != planned:
            raise RequestError(
                f"a plan must remove whole channels: axis {axis} of {name!r} would lose {list(planned[:8])}, but what is "
                f"coupled to it loses {list(expected[:8])}; make the plan from this network"
            )
        if len(planned) == len(labels):
            raise RequestError(f"a plan must leave at least one channel: axis {axis} of {name!r} would lose all {len(labels)}")
    return goes


def _resize_program(program: Program, tensors: Mapping[str, torch.Tensor], coupling: Coupling, goes: torch.Tensor) -> Program:
    """The program with every literal size that follows from the channels kept rewritten."""

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
        out = coupling.values[program.first_node + position]
        if resize is not None and out is not None:
            node = resize(Resize(node, [kept_by(a) for a in node.args], kept(out)))
        nodes.append(node)
    return Program(program.inputs, program.tensors, tuple(nodes), program.output)


def _own_class(folded: nn.Module, twin: ProgramModule, kept: Mapping[Axis, torch.Tensor]) -> nn.Module:
    """The user's own module with the new sizes, if it runs and agrees with its captured twin; else the twin."""
    own = duplicate(folded)
    for name in {name for name, _ in kept}:
        tensor = _tensor(own, name)
        tensor.data = _take(tensor.data, name, kept).clone()
    _refresh_sizes(own, twin.program)
    inputs = on_device_of(twin, twin.program.example(batch=3, seed=1))
    check = duplicate(twin).eval()
    with torch.no_grad():
        expected = check(*inputs)
        try:
            difference = _difference(duplicate(own).eval()(*inputs), expected)
        except Exception as error:  # it is the user's code, which may raise anything
            _log.warning("%s hard-wires a size (%s); a captured program comes back instead", type(folded).__name__, error)
            return twin
    if not difference <= _tolerance(twin):
        message = "%s disagrees with its captured program after surgery (by %.2g); the program comes back"
        _log.warning(message, type(folded).__name__, difference)
        return twin
    return own


def _constrain_like(smaller: nn.Module, model: nn.Module, kept: Mapping[Axis, torch.Tensor]) -> None:
    """Puts the model's constraints, sliced, on the smaller network, in place."""
    parameters = dict(smaller.named_parameters(remove_duplicate=False))
    for name, chain in constrained(model).items():
        if name not in parameters:
            continue  # a captured program holds only what it reads
        if not all(isinstance(constraint, Constraint) for constraint in chain):
            _log.warning("%s has a parametrization that cannot be sliced; its values stay, the parametrization goes", name)
            continue
        owner, leaf = owner_of(model, name)
        original = owner.parametrizations[leaf].original  # type: ignore[index,union-attr]
        # The first constraint is put on what it gave itself, not on what those after it made of that.
        parameters[name].data = _take(chain[0](original).detach(), name, kept).clone()
        for constraint in map(copy.deepcopy, chain):
            for (tensor_name, axis), indices in kept.items():
                if tensor_name == name:
                    constraint.take(axis, indices)
            constrain(smaller, name, constraint)


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


def _tolerance(model: nn.Module) -> float:
    """The largest relative difference between two ways of computing one thing: ten times √ε of the coarsest weight."""
    floats = [t.dtype for t in model.state_dict().values() if t.is_floating_point()]
    return float(10 * max((torch.finfo(dtype).eps for dtype in floats), default=0.0) ** 0.5)


def _difference(a: Any, b: Any) -> float:
    """The largest difference between two outputs of any structure, relative to the largest number in them; NaN if one is."""
    worst = [torch.tensor(0.0)]
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if not isinstance(x, torch.Tensor):
            worst.append(torch.tensor(0.0 if x == y else torch.inf))
        elif x.shape != y.shape:
            return torch.inf
        elif x.numel():
            x, y = x.double().cpu(), y.double().cpu()
            worst.append((x - y).abs().max() / y.abs().max().clamp(min=1e-12))
    return float(torch.stack([w.double() for w in worst]).max())


def _tensor(model: nn.Module, name: str, axis: int = 0, indices: tuple[int, ...] = ()) -> torch.Tensor:
    try:
        tensor = tensor_called(model, name)
    except AttributeError:
        raise RequestError(f"a plan must name tensors of the network, got {name!r}, which it lacks") from None
    if not 0 <= axis < tensor.dim() or (indices and not 0 <= min(indices) <= max(indices) < tensor.shape[axis]):
        raise RequestError(f"a plan must name indices of the network's tensors, but {name!r} has shape {tuple(tensor.shape)}")
    return tensor


def _complement(size: int, indices: tuple[int, ...]) -> torch.Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(indices)] = False
    return stays.nonzero().flatten()


def _take(tensor: torch.Tensor, name: str, kept: Mapping[Axis, torch.Tensor]) -> torch.Tensor:
    for axis in range(tensor.dim()):
        if (name, axis) in kept:
            tensor = tensor.index_select(axis, kept[name, axis].to(tensor.device))
    return tensor
