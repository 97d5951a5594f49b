"""What a search has done so far, on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.files import replacing
from featherweight.graph.constraint import Constraint, constrain, constrained, duplicate, fold
from featherweight.graph.program import ProgramModule, tensor_called
from featherweight.graph.surgery import Plan
from featherweight.packaging.program import decode_program, encode_program
from featherweight.pruning import Mask
from featherweight.quantization import Binary, Codebook, Grid, Ternary

__all__ = ["Journal", "Network", "rebuild"]


@dataclass(frozen=True)
class Network:
    """A network in the middle of a search, and the plans that led from the first network's shapes to its own."""

    model: nn.Module
    plans: tuple[Plan, ...] = ()


@dataclass
class Journal:
    """The attempts made, and the networks kept, in a folder of small files; without a folder, only in memory.

    Every file is written beside its place and moved there, the list of attempts last, so that a kill at any moment leaves a
    state to go on from.

    Args:
        folder: where; None keeps nothing on disk.
        request: what the run was asked for; a run with another request cannot be resumed.
        entries: the attempts made so far, in order, as plain data.
        slots: which file holds which network ("trained", "base", "current").
    """

    folder: Path | None
    request: Mapping[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    slots: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path | None, request: Mapping[str, Any], *, resume: bool) -> Journal:
        """Begins a journal, or takes up the one in the folder.

        Raises:
            RequestError: there is nothing to resume, the folder was made by another request, or it cannot be written.
        """
        request = json.loads(json.dumps(request))
        if folder is None:
            return Journal(None, request)
        index = folder / "journal.json"
        if resume:
            try:
                stored = json.loads(index.read_text())
            except (OSError, ValueError) as error:
                raise RequestError(f"there is no run to resume in {folder}: {error}; start without --resume") from error
            if not isinstance(stored, dict) or stored.keys() != {"request", "entries", "slots"}:
                raise RequestError(f"there is no run to resume in {folder}: {index.name} is damaged; start without --resume")
            if stored["request"] != request:
                differing = sorted(key for key in request if stored["request"].get(key) != request[key])
                raise RequestError(
                    f"the run in {folder} was asked for something else ({', '.join(differing)}); start without --resume"
                )
            return Journal(folder, request, stored["entries"], stored["slots"])
        try:
            _clear(folder)
            folder.mkdir()
        except OSError as error:
            raise RequestError(f"a checkpoint must be writable, but {folder} is not: {error}; choose another --out") from error
        journal = Journal(folder, request)
        journal._write_index()
        return journal

    @property
    def epoch_checkpoint(self) -> Path | None:
        """Where training keeps the state of its last epoch."""
        return self.folder / "epoch.pt" if self.folder else None

    def record(self, entry: dict[str, Any] | None, networks: Mapping[str, Network]) -> None:
        """Adds an attempt and stores these networks under their slots.

        The training's own checkpoint goes before the list is written: no later training can mistake it for its own.
        """
        if entry is not None:
            self.entries.append(entry)
        if self.folder is None:
            return
        for slot, network in networks.items():
            name = f"{slot}-{len(self.entries)}.pt"
            with replacing(self.folder / name) as file:
                torch.save(_state(network), file)
            self.slots[slot] = name
        (self.folder / "epoch.pt").unlink(missing_ok=True)
        self._write_index()
        for leftover in self.folder.glob("*-*.pt"):
            if leftover.name not in self.slots.values():
                leftover.unlink()

    def network(self, slot: str, start: nn.Module) -> Network | None:
        """The network stored under a slot, rebuilt from the first network, or None."""
        if self.folder is None or slot not in self.slots:
            return None
        file = self.folder / self.slots[slot]
        try:
            return rebuild(torch.load(file, weights_only=True), start)
        except RequestError:
            raise
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise RequestError(f"{file} is missing or damaged: {error}; start without --resume") from error

    def close(self) -> None:
        """Removes the folder: the run is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write_index(self) -> None:
        if self.folder is not None:
            content = json.dumps({"request": self.request, "entries": self.entries, "slots": self.slots}, indent=1)
            with replacing(self.folder / "journal.json") as file:
                file.write(content.encode())


def _clear(folder: Path) -> None:
    """Removes an earlier run's folder, and nothing that is not one."""
    if not folder.exists():
        return
    strangers = [file.name for file in folder.iterdir() if file.suffix not in (".json", ".partial", ".pt", ".tmp")]
    if strangers:
        raise RequestError(f"{folder} is no checkpoint, for it holds {strangers[0]!r}; move it away or choose another --out")
    shutil.rmtree(folder)


# Each is made again from its buffers and parameters and its plain attributes, by the names of its arguments.
_KINDS: dict[str, type[Constraint]] = {kind.__name__: kind for kind in (Mask, Codebook, Grid, Binary, Ternary)}


def _state(network: Network) -> dict[str, Any]:
    """A network as plans or as its own program, kinds of constraints, and numbers: nothing that needs pickle."""
    model = network.model
    chains = {name: [_described(constraint) for constraint in chain] for name, chain in constrained(model).items()}
    state: dict[str, Any] = {
        "plans": [plan.to_json() for plan in network.plans],
        "constraints": chains,
        "tensors": model.state_dict(),
    }
    if isinstance(model, ProgramModule):
        plain = fold(model)
        state["program"] = encode_program(model.program)
        state["shapes"] = {name: list(tensor_called(plain, name).shape) for name in chains}
        state["frozen"] = [name for name, parameter in plain.named_parameters() if not parameter.requires_grad]
    return state


def rebuild(state: Mapping[str, Any], start: nn.Module) -> Network:
    """The network a state describes: its own program, or plans replayed on `start`; then constraints and numbers put back.

    Args:
        state: what the journal stored.
        start: the first network, before any plan; it is not changed.

    Returns:
        The network.

    Raises:
        RequestError: the state does not fit the first network.
    """
    plans = tuple(Plan.from_json(text) for text in state["plans"])
    if "program" in state:
        model: nn.Module = _of_program(state).train(start.training)
    else:
        model = duplicate(start)
        for plan in plans:
            model = plan.apply(model)
    for name, chain in state["constraints"].items():
        own = _below(state["tensors"], f"{_chain_path(name)}.")
        for position, described in enumerate(chain):
            constrain(model, name, _restored(described, _below(own, f"{position}.")))
    try:
        model.load_state_dict(state["tensors"])
    except RuntimeError as error:
        raise RequestError(f"the checkpoint does not fit this network: {error}; start without --resume") from error
    return Network(model, plans)


def _of_program(state: Mapping[str, Any]) -> ProgramModule:
    """A captured network, its weights of the right shapes and kinds; those with constraints are zeros yet."""
    program, stored = decode_program(state["program"]), state["tensors"]
    tensors = {}
    for spec in program.tensors:
        if spec.name in state["constraints"]:
            original = stored[f"{_chain_path(spec.name)}.original"]
            tensors[spec.name] = original.new_zeros(state["shapes"][spec.name])
        else:
            tensors[spec.name] = stored[spec.name].clone()
    model = ProgramModule(program, tensors)
    for name in state["frozen"]:
        model.get_parameter(name).requires_grad_(False)
    return model


def _described(constraint: Constraint) -> dict[str, Any]:
    """A constraint's kind and its plain settings, by the names of its arguments."""
    kind = type(constraint)
    if _KINDS.get(kind.__name__) is not kind:
        raise RequestError(f"a search keeps networks with {', '.join(_KINDS)} on their weights, got {kind.__name__}; fold it")
    found = {name: getattr(constraint, name, None) for name in inspect.signature(kind).parameters}
    return {"kind": kind.__name__} | {name: v for name, v in found.items() if isinstance(v, bool | int | float | str)}


def _restored(described: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> Constraint:
    """A constraint made from what `_described` tells and from its own tensors, which have its arguments' names."""
    settings = {name: value for name, value in described.items() if name != "kind"}
    return _KINDS[described["kind"]](**stored, **settings)


def _chain_path(name: str) -> str:
    """Where a state dict has the constraints of a tensor: "fc.parametrizations.weight" for "fc.weight"."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.parametrizations.{leaf}".lstrip(".")


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
