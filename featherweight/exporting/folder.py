"""A network as a folder: one ONNX file for each part of it, and a JSON file that says how they go together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from featherweight.errors import FormatError, RequestError
from featherweight.exporting.onnx import open_session, to_onnx
from featherweight.files import replacing
from featherweight.graph.capture import Example

__all__ = ["Array", "Runner", "open_folder", "write_folder"]

Array = npt.NDArray[Any]

Runner = Callable[[Iterable[Array]], list[Array]]
"""A part's inputs, in order -> its outputs."""


def write_folder(
    parts: Iterable[tuple[nn.Module, Example, str]], plan: Mapping[str, Any], manifest: str, folder: str | os.PathLike[str]
) -> Path:
    """Writes one ONNX file for each part of a network, and how they go together.

    Args:
        parts: of each the network, a batch of its inputs, and the name of its file.
        plan: JSON.
        manifest: the name of the plan's file: "stages.json".
        folder: where to; made if it is not there.

    Returns:
        The folder.

    Raises:
        RequestError: the folder cannot be written.
        FeatherweightError: as `to_onnx` says.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = Path(manifest).stem
        raise RequestError(
            f"{what} must go into a folder that can be written, got {str(folder)!r}: {error.strerror}"
        ) from error
    for network, example, name in parts:
        to_onnx(network, folder / name, example)
    with replacing(folder / manifest) as file:
        file.write(json.dumps(plan, indent=1).encode())
    return folder


def open_folder(
    folder: str | os.PathLike[str], manifest: str, read: Callable[[Any], Sequence[str]], *, threads: int = 1
) -> list[Runner]:
    """Opens what `write_folder` wrote, in ONNX Runtime on the CPU.

    Args:
        folder: with the files.
        manifest: the name of the plan's file.
        read: gets the plan and gives the names of the parts' files, in order; raises KeyError, TypeError or ValueError where
            the plan is damaged.
        threads: of each operation, at least 1.

    Returns:
        What runs each part.

    Raises:
        RequestError: a file is not there, or `threads` is below 1.
        FormatError: the plan is damaged.
        FeatherweightError: ONNX Runtime cannot run a part.
    """
    folder = Path(folder)
    try:
        names = read(json.loads((folder / manifest).read_text()))
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"a part's file must be a name, got {name!r}")
        contents = [(folder / name).read_bytes() for name in names]
    except OSError as error:
        raise RequestError(
            f"a folder must hold the {Path(manifest).stem} of a network, got {str(folder)!r}: {error}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{str(folder / manifest)!r} is damaged: {error!r}; export the network again") from error
    return [_runner(content, threads) for content in contents]


def _runner(content: bytes, threads: int) -> Runner:
    session = open_session(content, threads=threads)
    names = [spec.name for spec in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))
