"""A file's table of contents: the program, and each tensor's dtype and shape (SPEC.md §2 to §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featherweight.errors import FormatError, RequestError
from featherweight.graph.program import Program
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.program import MOST_AXES, encode_program, read_program
from featherweight.packaging.tensors import DTYPES, TensorLayout
from featherweight.packaging.value import read_dtype

__all__ = ["LONGEST_MANIFEST", "MAGIC", "VERSION", "Manifest", "decode_manifest", "encode_manifest"]

MAGIC = b"\x89FW\n"
VERSION = 3
LONGEST_MANIFEST = 1 << 24
MOST_ELEMENTS = 1 << 48
FREE_MODULES = 64


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a file holds: whether a network, its program (tensors only: no nodes), and the layout of each tensor, in order."""

    has_network: bool
    program: Program
    layouts: tuple[TensorLayout, ...]

    @property
    def size_bytes(self) -> int:
        """The decoded bytes of all tensors."""
        return sum(layout.size_bytes for layout in self.layouts)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's bytes.

    Args:
        manifest: what the file will hold.

    Returns:
        The bytes.

    Raises:
        RequestError: a file cannot hold the program, or a tensor's name or shape.
    """
    parts = [bytes([manifest.has_network]), encode_program(manifest.program)]
    for layout in manifest.layouts:
        parts += [bytes([DTYPES[layout.dtype]]), varint(len(layout.shape)), *map(varint, layout.shape)]
    coded = b"".join(parts)
    if len(coded) > LONGEST_MANIFEST:
        raise RequestError(f"the names, shapes and program of a .fw file may take {LONGEST_MANIFEST} bytes, got {len(coded)}")
    try:
        decode_manifest(coded)  # what a reader would refuse is never written
    except FormatError as error:
        raise RequestError(f"a .fw file cannot hold this network: {error}") from None
    return coded


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """The inverse of `encode_manifest`.

    Args:
        data: all of its bytes.

    Returns:
        The manifest.

    Raises:
        FormatError: the bytes are not a manifest.
    """
    cursor = Cursor(data, "the manifest")
    kind = cursor.byte()
    program = read_program(cursor)
    if kind > 1 or (kind == 0 and (program.inputs or program.nodes or program.output is not None)):
        raise FormatError("the manifest is damaged: it does not tell whether there is a network")
    if kind == 1:
        _check_modules([spec.name for spec in program.tensors])
    layouts = tuple(_read_layout(cursor, spec.name) for spec in program.tensors)
    cursor.end()
    return Manifest(kind == 1, program, layouts)


def _check_modules(names: list[str]) -> None:
    """Refuses names that imply many more modules than tensors; the count stops there, before it takes much memory itself."""
    modules: set[str] = set()
    for name in names:
        modules.update(name[:dot] for dot, letter in enumerate(name) if letter == ".")
        if len(modules) > FREE_MODULES + 8 * len(names):
            raise FormatError(f"the manifest is damaged: {len(names)} tensors cannot be in {len(modules)} modules and more")


def _read_layout(cursor: Cursor, name: str) -> TensorLayout:
    dtype = read_dtype(cursor)
    axes = cursor.count()
    shape = tuple(cursor.varint() for _ in range(min(axes, MOST_AXES)))
    if axes > MOST_AXES or math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
        raise FormatError(
            f"tensors have at most {MOST_AXES} axes and {MOST_ELEMENTS} elements, {name!r} has {axes} axes, {shape}"
        )
    return TensorLayout(dtype, shape)
