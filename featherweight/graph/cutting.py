"""Surgery: a network without the slices that were removed, and the masked network that must give the same."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import Example, capture, example_of, like, on_device_of, tensors_of, twin_of
from featherweight.graph.constraint import Constraint, constrain, constrained, duplicate, fold
from featherweight.graph.groups import Axis, Coupling, Unit, trace
from featherweight.graph.labels import kept_along, map_labelled
from featherweight.graph.masking import Inside, MaskedModule
from featherweight.graph.ops import row_of
from featherweight.graph.own_class import difference, resized, tolerance
from featherweight.graph.program import Node, Program, ProgramModule, Ref, owner_of, refs_in, tensor_called
from featherweight.graph.shapes import infer_shapes
from featherweight.graph.sizes import Resize

__all__ = ["Anatomy", "carry_constraints", "cut", "mask", "recognise", "resize", "study", "tensor_at"]

_log = logging.getLogger(__name__)

_Removed = Mapping[Axis, tuple[int, ...]]
_WHOLE: Mapping[Axis, torch.Tensor] = {}


@dataclass(frozen=True)
class Anatomy:
    """All that surgery has to know of a network: a folded copy, its program and tensors, and how they are coupled."""

    model: nn.Module
    program: Program
    tensors: Mapping[str, torch.Tensor]
    coupling: Coupling
    unit: Unit = "neuron"


def study(model: nn.Module, example: Example, *, unit: Unit = "neuron") -> Anatomy:
    """Captures and traces a network.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        unit: what attention loses, see `trace`.

    Returns:
        Its anatomy.

    Raises:
        CaptureError, UnsupportedOpError: as `capture` says.
    """
    folded = fold(model)
    program = capture(folded, example)
    tensors = tensors_of(folded, program)
    return Anatomy(folded, program, tensors, trace(program, tensors, unit=unit), unit)


def recognise(model: nn.Module, program: Program, coupling: Coupling, *, unit: Unit = "neuron") -> Anatomy | None:
    """What `study` gives, of a network that computes a known program; it runs both once instead of capturing again.

    Args:
        model: any module; it is not changed.
        program: captured before, from this network or one like it.
        coupling: the program's trace.
        unit: what it was traced for.

    Returns:
        Its anatomy, or None if its tensors have other shapes or it computes something else.
    """
    folded = fold(model)
    try:
        tensors = tensors_of(folded, program)
        owned = coupling.values[len(program.inputs) : program.first_node]
        if any(tensors[spec.name].shape != value.shape for spec, value in zip(program.tensors, owned, strict=True)):
            return None
        known = ProgramModule(program, tensors).eval()
        inputs = on_device_of(known, example_of(known, batch=1, seed=3))
        with torch.no_grad():
            same = difference(duplicate(folded).eval()(*inputs), known(*inputs)) <= tolerance(known)
    except Exception:  # the user's code may raise anything, and so may a program of another network
        return None
    return Anatomy(folded, program, tensors, coupling, unit) if same else None


def mask(anatomy: Anatomy, removed: _Removed) -> nn.Module:
    """The network with the removed slices at zero, see `Plan.mask`."""
    if not removed:
        return duplicate(anatomy.model)
    _, inside = _resize(anatomy, _labels_removed(anatomy, removed))
    masked = duplicate(anatomy.model)
    zeroed = _zeroed(anatomy.tensors, removed)
    for name in {name for name, _ in removed}:
        tensor_called(masked, name).data = zeroed[name]
    if not inside:
        return masked
    return like(masked, MaskedModule(anatomy.program, tensors_of(masked, anatomy.program), inside))


def cut(anatomy: Anatomy, removed: _Removed, model: nn.Module) -> nn.Module:
    """The network without the removed slices, with the model's constraints, see `Plan.apply`."""
    if not removed:
        return duplicate(model)
    smaller, inside = _resize(anatomy, _labels_removed(anatomy, removed))
    tensors = anatomy.tensors
    kept = {key: _complement(tensors[key[0]].shape[key[1]], indices) for key, indices in removed.items()}
    taken = {name: _take(tensor, name, kept).clone() for name, tensor in tensors.items()}
    twin = twin_of(anatomy.model, smaller, taken)
    _check(MaskedModule(anatomy.program, _zeroed(tensors, removed), inside), twin)
    result: nn.Module = twin
    if not isinstance(model, ProgramModule):
        result = resized(anatomy.model, twin, {name: taken[name] for name, _ in kept})
    carry_constraints(result, model, kept)
    return result


def resize(anatomy: Anatomy, removed: _Removed) -> Program:
    """The program of the network without the removed slices; `cut` makes it as well, and checks it."""
    return _resize(anatomy, _labels_removed(anatomy, removed))[0] if removed else anatomy.program


def _zeroed(tensors: Mapping[str, torch.Tensor], removed: _Removed) -> dict[str, torch.Tensor]:
    zeroed = dict(tensors)
    for (name, axis), indices in removed.items():
        zeroed[name] = zeroed[name].index_fill(axis, torch.tensor(indices, device=zeroed[name].device), 0)
    return zeroed


def _check(masked: MaskedModule, smaller: ProgramModule) -> None:
    """Every cut checks itself: masked and smaller must agree. A NaN of the mask's own, such as 0 / 0, says nothing; one of the
    smaller network's alone does."""
    inputs = on_device_of(masked, example_of(masked, seed=2))
    with torch.no_grad():
        try:
            outputs = duplicate(smaller).eval()(*inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            infer_shapes(smaller.program, dict(smaller.state_dict()))  # names the operation, with its line
            raise UnsupportedOpError(f"the smaller network does not run: {error}") from error
        expected = masked.eval()(*inputs)
    distance = difference(outputs, expected)
    if isnan(distance) and not isnan(difference(expected, expected)):
        distance = inf
    elif isnan(distance):
        _log.warning("the masked network gives NaN, so that the smaller one cannot be checked against it")
    if distance > tolerance(masked):
        raise UnsupportedOpError(
            f"a smaller network must compute what the masked one does, but they differ by {distance:.2g} of the largest "
            "output: some operation couples channels in a way its rule does not know; exclude its tensors, and report it"
        )


def _labels_removed(anatomy: Anatomy, removed: _Removed) -> torch.Tensor:
    """Which labels go, as bool over all labels; checks that these are whole channels that may go, and not all of any axis."""
    coupling = anatomy.coupling
    goes = torch.zeros(coupling.label_count, dtype=torch.bool)
    may_go: dict[Axis, set[int]] = {}
    for group in coupling.groups:
        for key, indices in group.members.items():
            may_go.setdefault(key, set()).update(indices.flatten().tolist())
    for (name, axis), planned in removed.items():
        stuck = sorted(set(planned) - may_go.get((name, axis), set()))
        if stuck:
            reason = coupling.locked.get((name, axis), "it belongs to no channel that may go")
            raise RequestError(
                f"a plan must leave what is locked: index {stuck[0]} of axis {axis} of {name!r} stays, for {reason}"
            )
        goes[coupling.axes[name, axis][list(planned)]] = True
    for (name, axis), labels in coupling.axes.items():
        expected = tuple(goes[labels].nonzero().flatten().tolist())
        planned = removed.get((name, axis), ())
        if expected != planned:
            raise RequestError(
                f"a plan must remove whole channels: axis {axis} of {name!r} would lose {list(planned[:8])}, but what is "
                f"coupled to it loses {list(expected[:8])}; make the plan from this network"
            )
        if len(planned) == len(labels):
            raise RequestError(f"a plan must leave at least one channel: axis {axis} of {name!r} would lose all {len(labels)}")
    return goes


def _resize(anatomy: Anatomy, goes: torch.Tensor) -> tuple[Program, dict[int, Inside]]:
    """The program with every literal size that follows from the channels kept rewritten, and how its masked twin runs."""
    program = anatomy.program
    kept = [map_labelled(value, lambda v: kept_along(v, goes)) for value in anatomy.coupling.values]
    nodes, inside = [], {}
    for position, node in enumerate(program.nodes):
        row, out = row_of(node.op), kept[program.first_node + position]
        if out is not None and (row.resize or row.across):
            resize = Resize(node, [_kept_of(argument, kept) for argument in node.args], out)
            node = row.resize(resize) if row.resize else node
            if row.across and row.across(resize):
                inside[position] = Inside(node, _read(node, kept), out)
        nodes.append(node)
    return replace(program, nodes=tuple(nodes)), inside


def _kept_of(argument: Any, kept: Sequence[Any]) -> Any:
    if isinstance(argument, list | tuple):
        return [_kept_of(a, kept) for a in argument]
    return kept[argument.index] if isinstance(argument, Ref) else None


def _read(node: Node, kept: Sequence[Any]) -> dict[int, Any]:
    return {ref.index: kept[ref.index] for ref in refs_in((node.args, node.kwargs)) if kept[ref.index] is not None}


def carry_constraints(smaller: nn.Module, model: nn.Module, kept: Mapping[Axis, torch.Tensor] = _WHOLE) -> None:
    """Gives the smaller network what the model trains behind its constraints, and the constraints, both sliced, in place.

    Args:
        smaller: a network with some of the model's parameters, under their names; it is changed.
        model: the network before.
        kept: for each axis that shrank the indices that stay; none by default.
    """
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


def tensor_at(model: nn.Module, name: str, axis: int = 0, indices: tuple[int, ...] = ()) -> torch.Tensor:
    """The tensor called `name`; RequestError if there is none, or if it has no such axis or indices."""
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
