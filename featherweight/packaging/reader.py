"""Reading .fw files that nobody vouches for: whatever the bytes, the outcome is a network or a `FormatError`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch

from featherweight.errors import FormatError, RequestError
from featherweight.graph.program import ProgramModule
from featherweight.packaging.coders import Layout
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.manifest import LONGEST_MANIFEST, MAGIC, VERSION, Manifest, decode_manifest
from featherweight.packaging.survey import Bits
from featherweight.packaging.tensors import Frame, TensorLayout, checksum_of, coder_name, decode_frame, tensor_of

__all__ = ["Contents", "TensorContents", "decode", "inspect", "load", "load_tensors"]

FREE_BYTES = 64 << 20
MOST_EXPANSION = 4096
_SMALLEST_FRAME = 2
_CHECKSUM = 4


@dataclass(frozen=True, slots=True)
class TensorContents:
    """What a tensor takes in a file: `size_bytes` includes the coder's number and the payload's length."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    coder: str
    size_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """The bits in the file for each element, 0 for an empty tensor."""
        count = TensorLayout(self.dtype, self.shape).count
        return 8 * self.size_bytes / count if count else 0.0


@dataclass(frozen=True, slots=True)
class Contents:
    """Where every byte of a file goes: header (with the checksum), architecture (program, names, shapes), and each tensor."""

    has_network: bool
    header_bytes: int
    architecture_bytes: int
    tensors: tuple[TensorContents, ...]

    @property
    def total_bytes(self) -> int:
        """The size of the file."""
        return self.header_bytes + self.architecture_bytes + sum(tensor.size_bytes for tensor in self.tensors)


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> ProgramModule:
    """Reads a network, ready to run in eval mode; the user's classes are not needed, and nothing in the file is executed.

    Args:
        path: a file that `save` wrote.
        max_bytes: the most bytes its tensors may take in memory; by default 64 MiB + 4096 times the file's size.

    Returns:
        The network, with the weights that were saved, bit for bit, under their original names.

    Raises:
        FormatError: the file is damaged, cut short, of a newer version, expands beyond `max_bytes`, or holds no network.
        RequestError: the file cannot be opened.

    Example:
        >>> from featherweight.packaging.writer import save
        >>> _ = save(torch.nn.Linear(3, 2), "layer.fw", example=torch.zeros(1, 3))
        >>> load("layer.fw")(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    with _open(path) as file:
        manifest, tensors = _read_all(file, repr(os.fspath(path)), max_bytes)
    if not manifest.has_network:
        raise FormatError(f"{os.fspath(path)!r} holds tensors but no network; read it with load_tensors")
    try:
        return ProgramModule(manifest.program, tensors).eval()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FormatError(f"{os.fspath(path)!r} is damaged: its tensors' names do not form a network: {error}") from error


def load_tensors(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Reads the tensors of a file, with or without a network, by name.

    Args:
        path: a file that `save_tensors` or `save` wrote.
        max_bytes: as for `load`.

    Returns:
        The tensors, in the file's order.

    Raises:
        FormatError: as for `load`.
        RequestError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from featherweight.packaging.writer import save_tensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_tensors({"a": torch.tensor([1.0, 2.0])}, f"{folder}/a.fw")
        ...     load_tensors(f"{folder}/a.fw")
        {'a': tensor([1., 2.])}
    """
    with _open(path) as file:
        return _read_all(file, repr(os.fspath(path)), max_bytes)[1]


def decode(data: bytes, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors that `encode` packed, bit for bit.

    Args:
        data: what `encode` gave, or all bytes of a file.
        max_bytes: as for `load`.

    Returns:
        The tensors, by name.

    Raises:
        FormatError: as for `load`.

    Example:
        >>> from featherweight.packaging.writer import encode
        >>> decode(encode({"a": torch.tensor([1 + 2j, -0.0])}))
        {'a': tensor([1.+2.j, -0.+0.j])}
    """
    return _read_all(io.BytesIO(data), f"a string of {len(data)} bytes", max_bytes)[1]


def inspect(path: str | os.PathLike[str]) -> Contents:
    """Where the bytes of a file go, without decoding its tensors.

    Args:
        path: a file that `save` or `save_tensors` wrote.

    Returns:
        The bytes of each part; they add up to the file's size.

    Raises:
        FormatError: the file is damaged as far as one can tell without decoding tensors.
        RequestError: the file cannot be opened.

    Example:
        >>> from featherweight.packaging.writer import save
        >>> size = save(torch.nn.Linear(3, 2), "layer.fw", example=torch.zeros(1, 3))
        >>> contents = inspect("layer.fw")
        >>> [tensor.name for tensor in contents.tensors], contents.total_bytes == size
        (['weight', 'bias'], True)
    """
    with _open(path) as file:
        source = _Source(file)
        manifest, header_bytes = _read_manifest(source)
        architecture_bytes = source.at - header_bytes
        tensors = []
        for spec, layout in zip(manifest.program.tensors, manifest.layouts, strict=True):
            start = source.at
            coder, size = source.frame_head(spec.name)
            source.skip(size + (_CHECKSUM if source.version == 1 else 0))
            tensors.append(TensorContents(spec.name, layout.shape, layout.dtype, coder, source.at - start))
        if source.version > 1:
            source.skip(_CHECKSUM)
            header_bytes += _CHECKSUM
        source.end()
    return Contents(manifest.has_network, header_bytes, architecture_bytes, tuple(tensors))


class _Source:
    """A file read front to back, every length checked against what is left of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self.at = file.seek(0)
        self.version = 0
        self._checksum = 0

    def skip(self, size: int) -> None:
        if size > self.size - self.at:
            raise FormatError(f"the file is cut short: {size} more bytes expected at byte {self.at} of {self.size}")
        self.at += size
        self._file.seek(self.at)

    def take(self, size: int) -> bytes:
        start = self.at
        self.skip(size)
        self._file.seek(start)
        data = self._file.read(size)
        if len(data) < size:
            raise FormatError(f"the file is cut short at byte {start + len(data)}")
        return data

    def varint(self) -> int:
        number = b""
        while not number or (number[-1] > 127 and len(number) < 10):
            number += self.take(1)
        return Cursor(number, "the file").varint()

    def frame_head(self, what: str) -> tuple[str, int]:
        return coder_name(self.take(1)[0], self.version, what), self.varint()

    def frame(self, layout: Layout, what: str) -> Bits:
        coder, size = self.frame_head(what)
        payload = self.take(size)
        checksum = int.from_bytes(self.take(_CHECKSUM), "little") if self.version == 1 else None
        bits = decode_frame(Frame(coder, payload, checksum), layout, what)
        self._checksum = checksum_of(bits, self._checksum)
        return bits

    def check(self) -> None:
        if self.version > 1 and int.from_bytes(self.take(_CHECKSUM), "little") != self._checksum:
            raise FormatError("the file is damaged: its checksum does not match; get the file again")

    def end(self) -> None:
        if self.at < self.size:
            raise FormatError(f"the file has {self.size - self.at} bytes too many")


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise RequestError(f"a .fw file must exist and be readable, got {os.fspath(path)!r}: {error.strerror}") from error


def _read_manifest(source: _Source) -> tuple[Manifest, int]:
    """The manifest, and the bytes of the header before it."""
    if source.size < len(MAGIC) or source.take(len(MAGIC)) != MAGIC:
        raise FormatError("this is not a .fw file: it does not start with its four magic bytes")
    source.version = source.take(1)[0]
    if not 1 <= source.version <= VERSION:
        raise FormatError(f"this featherweight reads .fw files of versions 1 to {VERSION}, got {source.version}; upgrade it")
    size = source.varint()
    if size > LONGEST_MANIFEST:
        raise FormatError(f"the manifest is damaged: it may take {LONGEST_MANIFEST} bytes, and says {size}")
    header_bytes = source.at
    manifest = decode_manifest(source.frame(Layout(np.dtype(np.uint8), size), "the manifest").tobytes())
    if len(manifest.layouts) * _SMALLEST_FRAME > source.size - source.at:
        raise FormatError(f"the file is cut short: it cannot hold {len(manifest.layouts)} tensors")
    return manifest, header_bytes


def _read_all(file: IO[bytes], name: str, max_bytes: int | None) -> tuple[Manifest, dict[str, torch.Tensor]]:
    source = _Source(file)
    manifest, _ = _read_manifest(source)
    limit = FREE_BYTES + MOST_EXPANSION * source.size if max_bytes is None else max_bytes
    if manifest.size_bytes > limit:
        raise FormatError(
            f"a file of {source.size} bytes may expand to {limit}, {name} says {manifest.size_bytes}; "
            "pass max_bytes= if you trust it"
        )
    tensors = dict(_read_tensors(source, manifest))
    source.check()
    source.end()
    return manifest, tensors


def _read_tensors(source: _Source, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
    for spec, layout in zip(manifest.program.tensors, manifest.layouts, strict=True):
        bits = source.frame(layout.layout(source.version), spec.name)
        if layout.dtype is torch.bool and len(bits) and int(bits.max()) > 1:
            raise FormatError(f"{spec.name} is damaged: a bool is neither 0 nor 1")
        yield spec.name, tensor_of(bits, layout.dtype, layout.shape)
