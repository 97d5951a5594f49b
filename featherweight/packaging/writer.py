"""Writing .fw files: the same model gives the same bytes, and a file is either written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import Example, capture, tensors_of
from featherweight.graph.program import Program, ProgramModule, TensorSpec
from featherweight.packaging.cursor import varint
from featherweight.packaging.manifest import MAGIC, VERSION, Manifest, encode_manifest
from featherweight.packaging.tensors import TensorLayout, bits_of, write_frame

__all__ = ["pack", "save", "save_tensors", "write"]


def save(model: nn.Module, path: str | os.PathLike[str], *, example: Example | None = None) -> int:
    """Packs a network, its architecture included, into one small file, losslessly.

    Constraints are folded, each tensor is coded by whichever coder makes it smallest, and nothing of the user's code is stored. The
    file appears whole or not at all: when writing fails, an older file of that name stays as it was.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        path: of the file, usually ending in ".fw".
        example: a batch of inputs to capture the network with; a `ProgramModule` needs none.

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: there is no example, the path cannot be written, or the network holds what a file cannot (a sparse tensor, …).
        CaptureError: the network cannot be captured as a program.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(100, 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Flatten(), f"{folder}/flatten.fw", example=torch.zeros(2, 3, 4)) < 100
        True
    """
    if example is None and not isinstance(model, ProgramModule):
        raise RequestError(f"saving a {type(model).__name__} with its architecture needs an example: pass example=<a batch of its inputs>")
    program = capture(model, () if example is None else example)
    tensors = tensors_of(model, program)
    with _replacing(path) as file:
        return write(file, program, tensors)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> int:
    """Packs named tensors, such as a state dict, into one small file, losslessly and sorted by name.

    Args:
        tensors: by name; any shapes, dense.
        path: of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: the path cannot be written, or a tensor is not an ordinary dense one.
    """
    with _replacing(path) as file:
        return write(file, None, tensors)


def pack(program: Program | None, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a .fw file.

    Args:
        program: the network; None for a file of tensors only.
        tensors: by name: exactly those of the program, or any.

    Raises:
        RequestError: as for `save`.

    Example:
        >>> len(pack(None, {"a.weight": torch.zeros(1000, 1000)}))
        47
    """
    file = io.BytesIO()
    write(file, program, tensors)
    return file.getvalue()


def write(file: IO[bytes], program: Program | None, tensors: Mapping[str, torch.Tensor]) -> int:
    """Like `pack`, but writes to a file as it goes, so that memory holds one coded tensor at a time.

    Returns:
        The number of bytes written.
    """
    if program is None:
        has_network, program = False, Program((), tuple(TensorSpec(name, "buffer") for name in sorted(tensors)), (), None)
    else:
        has_network = True
        if missing := [spec.name for spec in program.tensors if spec.name not in tensors]:
            raise RequestError(f"a program needs all of its tensors, {', '.join(missing)} are missing")
    ordered = {spec.name: tensors[spec.name] for spec in program.tensors}
    layouts = tuple(TensorLayout(tensor.dtype, tuple(tensor.shape)) for tensor in ordered.values())
    for name, tensor in ordered.items():
        bits_of(tensor[:0] if tensor.dim() else tensor, name)  # refuses what cannot be coded before a byte is written
    manifest = encode_manifest(Manifest(has_network, program, layouts))
    head = MAGIC + bytes([VERSION]) + varint(len(manifest))
    file.write(head)
    size = len(head) + write_frame(file, np.frombuffer(manifest, np.uint8))
    for (name, tensor), layout in zip(ordered.items(), layouts, strict=True):
        size += write_frame(file, bits_of(tensor, name), layout.rows)
    return size


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    Where the system can, the file has no name until it is complete, so that not even a killed process leaves one behind.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with _unnamed_file(target.parent) or open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not temporary.exists():
                _name(file, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise RequestError(f"a .fw file must go to a path that can be written, got {os.fspath(path)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unnamed_file(folder: Path) -> IO[bytes] | None:
    """A file in `folder` that has no name yet, or None where the system knows no such thing."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "wb")
    return None


def _name(file: IO[bytes], name: Path) -> None:
    """Gives an unnamed file its name, by a copy where the file system cannot link it."""
    handles = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        os.link(str(file.fileno()), name, src_dir_fd=handles, follow_symlinks=True)
    except OSError:
        shutil.copyfile(f"/proc/self/fd/{file.fileno()}", name)
    finally:
        os.close(handles)


def _sync_folder(folder: Path) -> None:
    """Makes the new name last, where a folder can be opened and synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
