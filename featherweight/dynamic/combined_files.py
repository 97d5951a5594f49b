"""Networks with exits and widths as files: what they hold beside their weights, and one ONNX file for each width and stage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from featherweight.dynamic.combined import SlimmableExitNetwork
from featherweight.dynamic.exit_files import exit_settings, export_exits, set_exits
from featherweight.dynamic.settings import as_bytes, below, from_bytes
from featherweight.dynamic.width_files import pack_widths, unpack_widths
from featherweight.dynamic.widths import Width
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example
from featherweight.graph.program import ProgramModule

__all__ = ["export_combined", "pack_combined", "unpack_combined"]


def pack_combined(net: SlimmableExitNetwork) -> tuple[ProgramModule, dict[str, torch.Tensor]]:
    """What a file holds of a network with exits and widths; see `files.Kind`."""
    network, widths = pack_widths(net.slimmable)
    extras = {f"widths.{name}": tensor for name, tensor in widths.items()}
    for number, width in enumerate(net.slimmable.choices()):
        settings = exit_settings(net.at_width(width))
        extras |= {f"exits.{number}.{name}": tensor for name, tensor in settings.items()}
    table = {"choice": net.choice, "shares": [[*choice, shares] for choice, shares in net.shares.items()]}
    return network, extras | {"table": as_bytes(table)}


def unpack_combined(network: ProgramModule, extras: Mapping[str, torch.Tensor]) -> SlimmableExitNetwork:
    """The network with exits and widths that `pack_combined` was given; see `files.Kind`."""
    net = SlimmableExitNetwork(unpack_widths(network, below("widths.", extras))).eval()
    for number, width in enumerate(net.slimmable.choices()):
        set_exits(net.at_width(width), below(f"exits.{number}.", extras))
    table = from_bytes(extras["table"])
    net.shares = {_choice(width, way): tuple(map(float, shares)) for width, way, shares in table["shares"]}
    net.choice = _choice(*table["choice"])
    return net


def export_combined(net: SlimmableExitNetwork, folder: str | os.PathLike[str], example: Example) -> dict[Width, Path]:
    """Writes a folder for each width, "width-0.5", …, with one ONNX file for each stage; see `export_exits`.

    Args:
        net: it is not changed.
        folder: where to; made if it is not there.
        example: a batch of inputs.

    Returns:
        The folder of each width, for `exporting.StagedSession`, whose thresholds may be set to those of a choice.

    Raises:
        RequestError, FeatherweightError: as `export_exits` says.

    Example:
        >>> from featherweight.dynamic import add_exits, add_widths
        >>> chain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> net = add_widths(add_exits(chain, torch.zeros(1, 4), at=["0"]), widths=(0.5,))
        >>> [folder.name for folder in export_combined(net, "onnx", torch.zeros(1, 4)).values()]
        ['width-0.5', 'width-1.0']
    """
    inputs = resize_batch(net.slimmable.full.program, example, 2)
    return {
        width: export_exits(net.at_width(width), Path(folder, f"width-{width}"), inputs) for width in net.slimmable.choices()
    }


def _choice(width: Width, way: int | list[float | None]) -> tuple[Width, int | tuple[float, ...]]:
    return width, way if isinstance(way, int) else tuple(map(float, way))  # type: ignore[arg-type]
