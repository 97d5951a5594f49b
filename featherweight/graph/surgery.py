"""Deciding and doing: a `Plan` says which slices of which tensors go; it masks a network, or makes it really smaller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import duplicate, fold
from featherweight.graph.cutting import Anatomy, cut, mask, recognise, study, tensor_at
from featherweight.graph.groups import Axis, Coupling, Unit
from featherweight.graph.program import Input, Program, make_example

__all__ = ["Plan", "PlannedGroup"]


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
        unit: what attention loses, as `trace` was told.
        shapes: of the tensors that shrink, in the network the plan was made from; what it is applied to must have the same.
        seen: the program and the coupling it was made from, if still known: a network that computes that program need not be
            captured again. Neither saved nor compared.
    """

    removed: Mapping[Axis, tuple[int, ...]]
    groups: tuple[PlannedGroup, ...] = ()
    locked: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    unit: Unit = "neuron"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seen: tuple[Program, Coupling] | None = field(default=None, compare=False, repr=False)

    def mask(self, model: nn.Module) -> nn.Module:
        """A copy of the same shapes that computes what `apply`'s does: the removed slices are zero, constraints folded.

        Where an operation mixes removed channels with others (a norm, a softmax, a mean over them), what comes back is a
        `MaskedModule`, in which it takes the kept ones only; otherwise the user's own class. Where an operation has no finite
        value at zero (0/0, log) a removed channel gives NaN; `apply` does not compute it.

        Raises:
            RequestError: the plan does not fit the network, removes what must stay, or would empty an axis.
            CaptureError, UnsupportedOpError: as `capture` says.
        """
        return mask(self._anatomy(model), self.removed) if self.removed else fold(model)

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy without the removed slices, constraints kept; its outputs are those of the masked network.

        The user's own class comes back where its `forward` runs with the new sizes and agrees with the captured program;
        otherwise a `ProgramModule` does, and the log says so.

        Raises:
            RequestError: the plan does not fit the network, removes what must stay, or would empty an axis.
            UnsupportedOpError: an operation does not run with the new sizes (named with file:line), or the result is not what
                the masked network gives.
            CaptureError: as `capture` says.
        """
        return cut(self._anatomy(model), self.removed, model) if self.removed else duplicate(model)

    def _anatomy(self, model: nn.Module) -> Anatomy:
        for name, axis in self.removed:
            shape = tuple(tensor_at(model, name, axis, self.removed[name, axis]).shape)
            if shape != self.shapes.get(name, shape):
                raise RequestError(
                    f"a plan must be applied to the network it was made from, but {name!r} has shape {shape} here and "
                    f"{self.shapes[name]} there; make a plan from this network"
                )
        known = recognise(model, *self.seen, unit=self.unit) if self.seen else None
        return known or study(model, make_example(self.inputs), unit=self.unit)

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
                "unit": self.unit,
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
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
                "head" if raw["unit"] == "head" else "neuron",
                {name: tuple(map(int, shape)) for name, shape in raw["shapes"].items()},
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
