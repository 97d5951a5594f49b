"""Dynamic networks as files: one `.fw` with the shared weights once, whatever the network can do without."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.combined import SlimmableExitNetwork
from featherweight.dynamic.combined_files import pack_combined, unpack_combined
from featherweight.dynamic.effort_files import pack_routes, pack_skips, unpack_routes, unpack_skips
from featherweight.dynamic.exit_files import pack_exits, unpack_exits
from featherweight.dynamic.exits import ExitNetwork
from featherweight.dynamic.routing import RoutedNetwork
from featherweight.dynamic.settings import below
from featherweight.dynamic.skips import SkipNetwork
from featherweight.dynamic.width_files import pack_widths, unpack_widths
from featherweight.dynamic.widths import SlimmableNetwork
from featherweight.errors import FormatError, RequestError
from featherweight.graph.capture import tensors_of
from featherweight.graph.program import Program, ProgramModule, Ref, TensorSpec, map_refs
from featherweight.graph.rewrite import without_unused
from featherweight.packaging import load, save

__all__ = ["KINDS", "Kind", "load_dynamic", "save_dynamic"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of dynamic network, as files have it.

    Attributes:
        type: its class.
        pack: gives the ordinary network that holds its weights, and all else there is to it as tensors by name.
        unpack: the reverse, of a network in eval mode.
    """

    type: type[nn.Module]
    pack: Callable[[Any], tuple[ProgramModule, Tensors]]
    unpack: Callable[[ProgramModule, Tensors], nn.Module]


KINDS: Mapping[str, Kind] = {
    "_widths": Kind(SlimmableNetwork, pack_widths, unpack_widths),
    "exit_settings": Kind(ExitNetwork, pack_exits, unpack_exits),
    "_exits_at_widths": Kind(SlimmableExitNetwork, pack_combined, unpack_combined),
    "_skips": Kind(SkipNetwork, pack_skips, unpack_skips),
    "_routes": Kind(RoutedNetwork, pack_routes, unpack_routes),
}
"""Kinds of dynamic networks, by what the names of their additional tensors begin with."""


def save_dynamic(net: nn.Module, path: str | os.PathLike[str]) -> int:
    """Packs a dynamic network into one small file, losslessly, its shared weights once, with its settings and its times.

    The file holds the ordinary network behind it, and beside its tensors, which nothing of it reads, what makes it dynamic. So
    `packaging.load` reads it, too: as the full width, or as the network that gives the answers of all exits.

    Args:
        net: of a type in `KINDS`; it is not changed.
        path: of the file, usually ending in ".fw".

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: the network is none of these, or as `packaging.save` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> chain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> save_dynamic(add_exits(chain, torch.zeros(1, 4), at=["0"]), "exits.fw") < 1000
        True
    """
    found = next((prefix for prefix, kind in KINDS.items() if type(net) is kind.type), None)
    if found is None:
        known = ", ".join(kind.type.__name__ for kind in KINDS.values())
        raise RequestError(f"a dynamic network must be one of {known}, got a {type(net).__name__}; others are for save")
    network, extras = KINDS[found].pack(net)
    program = without_unused(network.program)
    specs = tuple(TensorSpec(f"{found}.{name}", "buffer") for name in extras)
    tensors = tensors_of(network, program) | {f"{found}.{name}": tensor for name, tensor in extras.items()}
    return save(ProgramModule(_with(program, specs), tensors), path)


def load_dynamic(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> nn.Module:
    """Reads a dynamic network, ready to run in eval mode, with the settings and the times it was saved with.

    Args:
        path: a file that `save_dynamic` wrote, or one of a network with several answers, which becomes an `ExitNetwork`.
        max_bytes: the most bytes its tensors may take in memory, see `packaging.load`.

    Returns:
        The network; by each choice it answers as it did, bit for bit.

    Raises:
        FormatError: the file is damaged, or holds a network that is not dynamic.
        RequestError: the file cannot be opened.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=["0"])
        >>> net.thresholds = [0.75]
        >>> _ = save_dynamic(net, "exits.fw")
        >>> load_dynamic("exits.fw").thresholds
        (0.75,)
    """
    file = load(path, max_bytes=max_bytes)
    tensors = tensors_of(file, file.program)
    program = without_unused(file.program)
    network = ProgramModule(program, {spec.name: tensors[spec.name] for spec in program.tensors}).eval()
    kinds = {spec.name.partition(".")[0] for spec in file.program.tensors} - {s.name.partition(".")[0] for s in program.tensors}
    found = [prefix for prefix in KINDS if prefix in kinds]
    if not found and not isinstance(program.output, tuple | list):
        raise FormatError(f"{os.fspath(path)!r} holds a network that is not dynamic; read it with load")
    try:
        if not found:
            return ExitNetwork(network)
        (prefix,) = found
        return KINDS[prefix].unpack(network, below(f"{prefix}.", tensors)).eval()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RequestError) as error:
        raise FormatError(f"{os.fspath(path)!r} is damaged: its settings do not fit its network: {error}") from error


def _with(program: Program, specs: tuple[TensorSpec, ...]) -> Program:
    """The program with more tensors, which no node reads: they are numbered last, and every node by so much more."""
    first, more = program.first_node, len(specs)

    def moved(ref: Ref) -> Ref:
        return Ref(ref.index + more) if ref.index >= first else ref

    nodes = tuple(node.renumbered(moved) for node in program.nodes)
    return replace(program, tensors=(*program.tensors, *specs), nodes=nodes, output=map_refs(program.output, moved))
