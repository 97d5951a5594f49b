"""Networks with gates and with routers as files: what a .fw holds beside their weights, and one ONNX file for each part."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from featherweight.dynamic.cost import Cost
from featherweight.dynamic.effort import EffortNetwork
from featherweight.dynamic.routing import RoutedNetwork
from featherweight.dynamic.settings import as_bytes, from_bytes
from featherweight.dynamic.skips import SkipNetwork
from featherweight.dynamic.width_files import pack_widths, unpack_widths
from featherweight.exporting.gated import write_parts
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example, tensors_of
from featherweight.graph.constraint import duplicate
from featherweight.graph.program import ProgramModule, Ref
from featherweight.graph.rewrite import graft, without_unneeded

__all__ = ["export_skips", "pack_routes", "pack_skips", "unpack_routes", "unpack_skips"]

_ROUTER = "router."


def pack_skips(net: SkipNetwork) -> tuple[ProgramModule, dict[str, torch.Tensor]]:
    """What a file holds of a network with gates; see `files.Kind`."""
    own = {"branches": list(net.branches), "gating": net.gating, "temperature": net.temperature}
    return net.network, {"effort": as_bytes(_settings(net) | own)}


def unpack_skips(network: ProgramModule, extras: Mapping[str, torch.Tensor]) -> SkipNetwork:
    """The network with gates that `pack_skips` was given; see `files.Kind`."""
    settings = from_bytes(extras["effort"])
    net = SkipNetwork(network, settings["branches"])
    net.gating, net.temperature = settings["gating"], float(settings["temperature"])
    _set(net, settings)
    return net


def pack_routes(net: RoutedNetwork) -> tuple[ProgramModule, dict[str, torch.Tensor]]:
    """What a file holds of a network with a router; see `files.Kind`. Its program gives the router's logits and the answer."""
    full, extras = pack_widths(net.slimmable)
    router = tensors_of(net.router, net.router.program)
    tensors = tensors_of(full, full.program) | {_ROUTER + name: tensor for name, tensor in router.items()}
    program, logits = graft(full.program, -1, Ref(0), net.router.program, prefix=_ROUTER)
    both = ProgramModule(replace(program, output=(logits, program.output)), tensors)
    return both, extras | {"effort": as_bytes(_settings(net))}


def unpack_routes(network: ProgramModule, extras: Mapping[str, torch.Tensor]) -> RoutedNetwork:
    """The network with a router that `pack_routes` was given; see `files.Kind`."""
    logits, answer = network.program.output
    settings = from_bytes(extras["effort"])
    slimmable = unpack_widths(_part(network, answer), {name: extras[name] for name in extras if name != "effort"})
    net = RoutedNetwork(slimmable, _part(network, logits, _ROUTER))
    _set(net, settings)
    return net


def export_skips(net: SkipNetwork, folder: str | os.PathLike[str], example: Example) -> Path:
    """Writes one ONNX file for each part of a network with gates, and "parts.json", which says how they follow one another.

    `exporting.GatedSession` runs them in ONNX Runtime at the network's price, or another one, and leaves out what no sample
    takes. Every file has been compared with the part it was made from.

    Args:
        net: with gates or a policy; not changed.
        folder: where to; made if it is not there.
        example: a batch of inputs.

    Returns:
        The folder.

    Raises:
        RequestError: the folder cannot be written.
        FeatherweightError: as `exporting.to_onnx` says.

    Example:
        >>> import tempfile
        >>> from featherweight.dynamic import add_gates
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        >>> x = torch.zeros(1, 3, 8)
        >>> net = add_gates(layer, x, at=["linear2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(file.name for file in export_skips(net, folder, x).iterdir())
        ['part_0.onnx', 'part_1.onnx', 'parts.json']
    """
    state: dict[int, torch.Tensor] = dict(enumerate(resize_batch(net.program, example, 2)))
    network = duplicate(net.network).cpu().eval()
    parts = []
    for number, (program, part) in enumerate(net.parts()):
        part = replace(part, file=f"part_{number}.onnx")
        module = ProgramModule(program, tensors_of(network, program)).eval()
        batch = tuple(state[index] for index in part.takes)
        with torch.no_grad():
            state |= dict(zip(part.gives, module(*batch), strict=True))
        parts.append((module, batch, part))
    return write_parts(parts, net.output, net.price, folder)


def _part(network: ProgramModule, output: Ref, prefix: str = "") -> ProgramModule:
    """What gives one of the outputs, as a network of its own, its tensors' names without a prefix."""
    program = without_unneeded(replace(network.program, output=output))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors_of(network, program).items()}
    specs = tuple(replace(spec, name=spec.name.removeprefix(prefix)) for spec in program.tensors)
    return ProgramModule(replace(program, tensors=specs), tensors).eval()


def _settings(net: EffortNetwork) -> dict[str, Any]:
    costs = [(price, net.cost(price)) for price in net.choices()]
    return {"price": net.price, "costs": [[price, float(cost.macs), cost.seconds] for price, cost in costs]}


def _set(net: EffortNetwork, settings: Mapping[str, Any]) -> None:
    costs = {
        float(price): Cost(float(macs), None if seconds is None else float(seconds))
        for price, macs, seconds in settings["costs"]
    }
    full = net.cost(-math.inf).macs
    if -math.inf not in costs or costs[-math.inf].macs != full:
        raise ValueError(f"the full network costs {full} MACs, which must be in the table of costs")
    net.set_costs(costs)
    net.price = float(settings["price"])
