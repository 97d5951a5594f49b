"""A file's table of contents: the program, and each tensor's dtype and shape (SPEC.md §2 to §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featherweight.errors import FormatError, RequestError
from featherweight.graph.program import Program
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.program import DTYPE_OF, MOST_AXES, encode_program, read_program
from featherweight.packaging.tensors import DTYPES, TensorLayout

__all__ = ["LONGEST_MANIFEST", "MAGIC", "VERSION", "Manifest", "decode_manifest", "encode_manifest"]

MAGIC = b"\x89FW\n"
VERSION = 1
LONGEST_MANIFEST = 1 << 24
MOST_ELEMENTS = 1 << 48


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a file holds: whether a network, its program (of tensors only: no nodes), and the layout of each tensor, in order."""

    has_network: bool
    program: Program
    layouts: tuple[TensorLayout, ...]

    @property
    def size_bytes(self) -> int:
        """The decoded bytes of all tensors."""
        return sum(layout.size_bytes for layout in self.layouts)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's bytes.

    Raises:
        RequestError: the program or a tensor's shape cannot be held by a file.
    """
    parts = [bytes([manifest.has_network]), encode_program(manifest.program)]
    for spec, layout in zip(manifest.program.tensors, manifest.layouts, strict=True):
        if not _is_allowed(layout.shape):
            raise RequestError(f"a .fw file holds tensors of up to {MOST_AXES} axes, got {layout.shape} for {spec.name!r}")
        parts += [bytes([DTYPES[layout.dtype]]), varint(len(layout.shape)), *map(varint, layout.shape)]
    coded = b"".join(parts)
    if len(coded) > LONGEST_MANIFEST:
        raise RequestError(f"the names, shapes and program of a .fw file may take {LONGEST_MANIFEST} bytes, got {len(coded)}")
    return coded


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """The inverse of `encode_manifest`.

    Raises:
        FormatError: the bytes are not a manifest.
    """
    cursor = Cursor(data, "the manifest")
    kind = cursor.byte()
    program = read_program(cursor)
    if kind > 1 or (kind == 0 and (program.inputs or program.nodes or program.output is not None)):
        raise FormatError("the manifest is damaged: it says that the file holds no network, but there is one")
    layouts = tuple(_read_layout(cursor, spec.name) for spec in program.tensors)
    cursor.end()
    return Manifest(kind == 1, program, layouts)


def _read_layout(cursor: Cursor, name: str) -> TensorLayout:
    number = cursor.byte()
    shape = tuple(cursor.varint() for _ in range(cursor.count()))
    if number not in DTYPE_OF or not _is_allowed(shape):
        raise FormatError(f"{cursor.what} is damaged: {name!r} has dtype number {number} and {len(shape)} axes, {shape[:8]}")
    return TensorLayout(DTYPE_OF[number], shape)


def _is_allowed(shape: tuple[int, ...]) -> bool:
    return len(shape) <= MOST_AXES and math.prod(max(size, 1) for size in shape) <= MOST_ELEMENTS
