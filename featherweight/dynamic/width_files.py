"""Slimmable networks as files: what a .fw holds beside the full width, and one ONNX file for each width."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from featherweight.dynamic.settings import as_bytes, below, from_bytes
from featherweight.dynamic.widths import SlimmableNetwork, Width
from featherweight.errors import check
from featherweight.exporting.onnx import to_onnx
from featherweight.graph.capture import tensors_of
from featherweight.graph.groups import Unit, trace
from featherweight.graph.program import ProgramModule, tensor_called

__all__ = ["export_widths", "pack_widths", "unpack_widths"]

_LAYOUT = 1


def pack_widths(net: SlimmableNetwork) -> tuple[ProgramModule, dict[str, torch.Tensor]]:
    """What a file holds of a slimmable network: what choices have for themselves, and a table of them; see `files.Kind`."""
    extras: dict[str, torch.Tensor] = {}
    rows = []
    for number, choice in enumerate(net.choices()):
        rows.append([choice, list(net.shape(choice)), net.cost(choice).seconds])
        own = net.own_tensors(choice)
        if own is not None:
            extras |= {f"{number}.{spec.name}": tensor_called(own, spec.name) for spec in own.program.tensors}
    table = {"layout": _LAYOUT, "unit": net.unit, "switchable": net.switchable, "choices": rows}
    return net.full, extras | {"table": as_bytes(table)}


def unpack_widths(network: ProgramModule, extras: Mapping[str, torch.Tensor]) -> SlimmableNetwork:
    """The slimmable network that `pack_widths` was given; see `files.Kind`."""
    table = from_bytes(extras["table"])
    check("the layout of a table of widths", table["layout"], f"{_LAYOUT}; upgrade", table["layout"] == _LAYOUT)
    check("the unit", table["unit"], f"one of {', '.join(get_args(Unit))}", table["unit"] in get_args(Unit))
    coupling = trace(network.program, tensors_of(network, network.program), unit=table["unit"])
    net = SlimmableNetwork(network, coupling, unit=table["unit"], switchable=table["switchable"] is True).eval()
    _add_choices(net, table["choices"], extras)
    return net


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
        own = below(f"{number}.", tensors)
        wanted = network.view(shape).tensors()
        for name, tensor in own.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, and its width needs {tuple(wanted[name].shape)}")
        if own:
            network.set_own(choice, own)
        if timed is not None:
            seconds[choice] = float(timed)
    network.seconds = seconds
