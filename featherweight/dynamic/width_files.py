"""Slimmable networks as files: one `.fw` with the shared weights once, or one ONNX file for each width."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from featherweight.dynamic.widths import SlimmableNetwork, Width
from featherweight.errors import FormatError, RequestError, check
from featherweight.exporting.onnx import to_onnx
from featherweight.graph.capture import tensors_of
from featherweight.graph.groups import Unit, trace
from featherweight.graph.program import Program, ProgramModule, Ref, TensorSpec, map_refs, tensor_called
from featherweight.packaging import load, save

__all__ = ["export_widths", "load_slimmable", "save_slimmable"]

_PREFIX = "_widths."
_TABLE = "_widths.table"
_LAYOUT = 1


def save_slimmable(network: SlimmableNetwork, path: str | os.PathLike[str]) -> int:
    """Packs a slimmable network into one small file, losslessly, its shared weights once.

    The file holds the full network, and beside its tensors, which nothing of it reads, those that choices have for themselves
    and a table of the choices: their shapes and what they cost. So `packaging.load` reads it, too, as the full network.

    Args:
        network: it is not changed.
        path: of the file, usually ending in ".fw".

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: the path cannot be written.

    Example:
        >>> import tempfile
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> layers = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
        >>> net = make_slimmable(torch.nn.Sequential(*layers), torch.zeros(1, 4), widths=(0.5,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_slimmable(net, f"{folder}/net.fw")
        ...     loaded = load_slimmable(f"{folder}/net.fw")
        >>> x = torch.ones(1, 4)
        >>> loaded.choices(), torch.equal(loaded.at_width(0.5)(x), net.at_width(0.5)(x))
        ((0.5, 1.0), True)
    """
    specs: list[TensorSpec] = []
    tensors = tensors_of(network.full, network.full.program)
    rows = []
    for number, choice in enumerate(network.choices()):
        cost, own = network.cost(choice), network.own_tensors(choice)
        rows.append([choice, list(network.shape(choice)), cost.seconds])
        if own is None:
            continue
        for spec in own.program.tensors:
            specs.append(replace(spec, name=f"{_PREFIX}{number}.{spec.name}"))
            tensors[specs[-1].name] = tensor_called(own, spec.name)
    table = {"layout": _LAYOUT, "unit": network.unit, "switchable": network.switchable, "choices": rows}
    specs.append(TensorSpec(_TABLE, "buffer"))
    tensors[_TABLE] = torch.frombuffer(bytearray(json.dumps(table), "utf-8"), dtype=torch.uint8)
    return save(ProgramModule(_with(network.full.program, specs), tensors), path)


def load_slimmable(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> SlimmableNetwork:
    """Reads a slimmable network, ready to run in eval mode, with the costs that were measured where it was saved.

    Args:
        path: a file that `save_slimmable` wrote.
        max_bytes: the most bytes its tensors may take in memory, see `packaging.load`.

    Returns:
        The network; each width answers as it did, bit for bit.

    Raises:
        FormatError: the file is damaged, or holds another kind of network.
        RequestError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> layers = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
        >>> net = make_slimmable(torch.nn.Sequential(*layers), torch.zeros(1, 4), widths=(0.5,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_slimmable(net, f"{folder}/net.fw")
        ...     load_slimmable(f"{folder}/net.fw").cost(0.5).macs == net.cost(0.5).macs
        True
    """
    net = load(path, max_bytes=max_bytes)
    tensors = tensors_of(net, net.program)
    if _TABLE not in tensors:
        raise FormatError(f"{os.fspath(path)!r} holds a network without widths; read it with load")
    program = _without(net.program)
    try:
        table = json.loads(bytes(tensors[_TABLE].tolist()))
        if table["layout"] != _LAYOUT:
            raise FormatError(f"{os.fspath(path)!r} has its widths in a layout of a newer version, {table['layout']}; upgrade")
        check("the unit", table["unit"], f"one of {', '.join(get_args(Unit))}", table["unit"] in get_args(Unit))
        coupling = trace(program, tensors, unit=table["unit"])
        full = ProgramModule(program, {spec.name: tensors[spec.name] for spec in program.tensors}).eval()
        found = SlimmableNetwork(full, coupling, unit=table["unit"], switchable=table["switchable"] is True).eval()
        _add_choices(found, table["choices"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RequestError) as error:
        raise FormatError(f"{os.fspath(path)!r} is damaged: its table of widths does not fit its network: {error}") from error
    return found


def export_widths(network: SlimmableNetwork, folder: str | os.PathLike[str]) -> dict[Width, Path]:
    """Writes one ONNX file for each choice: "width-0.5.onnx", … ONNX has no weights that several files share.

    Args:
        network: it is not changed.
        folder: made if it is not there.

    Returns:
        The path of each choice's file.

    Raises:
        RequestError, FeatherweightError: as `to_onnx` says.

    Example:
        >>> import tempfile
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> layers = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
        >>> net = make_slimmable(torch.nn.Sequential(*layers), torch.zeros(1, 4), widths=(0.5,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in export_widths(net, folder).values())
        ['width-0.5.onnx', 'width-1.0.onnx']
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    example = network.full.program.example()
    return {
        choice: to_onnx(network.extract(choice), Path(folder, f"width-{choice}.onnx"), example) for choice in network.choices()
    }


def _add_choices(network: SlimmableNetwork, rows: list[Any], tensors: Mapping[str, torch.Tensor]) -> None:
    seconds = {}
    for number, (choice, shape, timed) in enumerate(rows):
        if choice != 1.0:
            network.add(choice, shape)
        prefix = f"{_PREFIX}{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        wanted = network.view(shape).tensors()
        for name, tensor in own.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, and its width needs {tuple(wanted[name].shape)}")
        if own:
            network.set_own(choice, own)
        if timed is not None:
            seconds[choice] = float(timed)
    network.seconds = seconds


def _with(program: Program, specs: list[TensorSpec]) -> Program:
    """The program with more tensors, which no node reads."""
    return _shifted(program, (*program.tensors, *specs))


def _without(program: Program) -> Program:
    return _shifted(program, tuple(spec for spec in program.tensors if not spec.name.startswith(_PREFIX)))


def _shifted(program: Program, tensors: tuple[TensorSpec, ...]) -> Program:
    """The program with tensors added or gone after those that it reads, its nodes renumbered."""
    first, more = program.first_node, len(tensors) - len(program.tensors)

    def move(ref: Ref) -> Ref:
        return Ref(ref.index + more) if ref.index >= first else ref

    nodes = tuple(replace(node, args=map_refs(node.args, move), kwargs=map_refs(node.kwargs, move)) for node in program.nodes)
    return replace(program, tensors=tensors, nodes=nodes, output=map_refs(program.output, move))
