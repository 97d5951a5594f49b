"""Writing .fw files: the same model gives the same bytes, and a file is either written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import IO

import numpy as np
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.files import replacing
from featherweight.graph.capture import Example, capture, tensors_of
from featherweight.graph.program import Program, ProgramModule, TensorSpec
from featherweight.packaging.cursor import varint
from featherweight.packaging.manifest import MAGIC, VERSION, Manifest, encode_manifest
from featherweight.packaging.survey import Bits
from featherweight.packaging.tensors import TensorLayout, bits_of, checksum_of, layout_of, write_frame

__all__ = ["encode", "pack", "save", "save_tensors", "write"]


def save(model: nn.Module, path: str | os.PathLike[str], *, example: Example | None = None) -> int:
    """Packs a network, its architecture included, into one small file, losslessly.

    Constraints are folded, each tensor is coded by whichever coder makes it smallest, and nothing of the user's code is stored.
    The file appears whole or not at all: when writing fails, an older file of that name stays as it was.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        path: of the file, usually ending in ".fw".
        example: a batch of inputs to capture the network with; a `ProgramModule` needs none.

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: there is no example, the path cannot be written, or a file cannot hold the network (a sparse tensor, …).
        CaptureError: the network cannot be captured as a program.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(100, 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Flatten(), f"{folder}/flatten.fw", example=torch.zeros(2, 3, 4)) < 100
        True
    """
    if example is None and type(model) is not ProgramModule:
        raise RequestError(f"capturing a {type(model).__name__} needs an example of its inputs: pass example=<one batch>")
    program = capture(model, () if example is None else example)
    tensors = tensors_of(model, program)
    with replacing(path) as file:
        return write(file, program, tensors)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> int:
    """Packs named tensors, such as a state dict, into one small file, losslessly and sorted by name.

    Args:
        tensors: by name; any shapes, dense. They may be more than memory holds, if the mapping makes each when it is asked for:
            that happens twice, and one tensor is held at a time.
        path: of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: the path cannot be written, or a tensor is not an ordinary dense one.

    Example:
        >>> save_tensors({"zeros": torch.zeros(1000, 1000)}, "zeros.fw") < 100
        True
    """
    with replacing(path) as file:
        return write(file, None, tensors)


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Packs named tensors into bytes, losslessly and sorted by name: what `save_tensors` writes; `decode` is its inverse.

    Args:
        tensors: by name; any shapes, dense, of any dtype a torch tensor can have.

    Returns:
        The bytes; the same for the same tensors.

    Raises:
        RequestError: a tensor is not an ordinary dense one.

    Example:
        >>> len(encode({"zeros": torch.zeros(1000, 1000)})) < 50
        True
    """
    return pack(None, tensors)


def pack(program: Program | None, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a .fw file.

    Args:
        program: the network; None for a file of tensors only.
        tensors: by name: exactly those of the program, or any.

    Returns:
        The whole file.

    Raises:
        RequestError: as for `save`.

    Example:
        >>> len(pack(None, {"a.weight": torch.zeros(1000, 1000)}))
        39
    """
    file = io.BytesIO()
    write(file, program, tensors)
    return file.getvalue()


def write(file: IO[bytes], program: Program | None, tensors: Mapping[str, torch.Tensor]) -> int:
    """Like `pack`, but writes to a file as it goes, so that memory holds one coded tensor at a time.

    Args:
        file: where to, opened for binary writing.
        program: as for `pack`.
        tensors: as for `pack`; each is asked for twice, first for its shape, then for its elements, and not kept.

    Returns:
        The number of bytes written.
    """
    if program is None:
        has_network, program = False, Program((), tuple(TensorSpec(name, "buffer") for name in sorted(tensors)), (), None)
    else:
        has_network = True
        if missing := [spec.name for spec in program.tensors if spec.name not in tensors]:
            raise RequestError(f"a program needs all of its tensors, {', '.join(missing)} are missing")
    names = [spec.name for spec in program.tensors]
    layouts = tuple(layout_of(tensors[name], name) for name in names)
    manifest = encode_manifest(Manifest(has_network, program, layouts))
    head = MAGIC + bytes([VERSION]) + varint(len(manifest))
    file.write(head)
    bits: Bits = np.frombuffer(manifest, np.uint8)
    size, checksum = len(head) + write_frame(file, bits), checksum_of(bits)
    for name, layout in zip(names, layouts, strict=True):
        bits = _bits_again(tensors[name], layout, name)
        size, checksum = size + write_frame(file, bits, layout.rows), checksum_of(bits, checksum)
    return size + file.write(checksum.to_bytes(4, "little"))


def _bits_again(tensor: torch.Tensor, layout: TensorLayout, name: str) -> Bits:
    """A tensor's elements; it must be what it was when its layout was written."""
    found = layout_of(tensor, name)
    if found != layout:
        raise RequestError(f"a tensor must be the same each time it is asked for, {name!r} was {layout} and is {found}")
    return bits_of(tensor)
