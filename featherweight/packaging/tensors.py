"""Tensors as unsigned integers of the same bits, and as frames of a file (SPEC.md §3, §4)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import torch

from featherweight.errors import FormatError, RequestError
from featherweight.packaging.coders import CODERS, Layout, choose
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.survey import Bits, Survey

__all__ = [
    "DTYPES",
    "Frame",
    "TensorLayout",
    "bits_of",
    "checksum_of",
    "coder_name",
    "decode_frame",
    "layout_of",
    "tensor_of",
    "write_frame",
]

DTYPES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.int16: 6,
    torch.int8: 7,
    torch.uint8: 8,
    torch.bool: 9,
    torch.uint16: 10,
    torch.uint32: 11,
    torch.uint64: 12,
    torch.complex64: 13,
    torch.float8_e4m3fn: 14,
    torch.float8_e5m2: 15,
    torch.float8_e4m3fnuz: 16,
    torch.float8_e5m2fnuz: 17,
    torch.complex128: 18,
    torch.complex32: 19,
    torch.float8_e8m0fnu: 20,
    torch.float4_e2m1fn_x2: 21,
    **{getattr(torch, f"uint{bits}"): 21 + bits for bits in range(1, 8)},
    **{getattr(torch, f"int{bits}"): 28 + bits for bits in range(1, 8)},
}

_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what torch hands to numpy and back

_LAST_CODERS = {1: 6, 2: 10}
_NAMES = {coder.number: name for name, coder in CODERS.items()}


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """A tensor's element type and shape, as a manifest holds them."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    @property
    def size_bytes(self) -> int:
        """The bytes of the decoded tensor."""
        return self.count * self.dtype.itemsize

    def layout(self, version: int = 2) -> Layout:
        """The same for a coder; in version 1, complex numbers were not two elements but one."""
        parts = 2 if self.dtype.is_complex and version > 1 else 1
        return Layout(np.dtype(f"<u{self.dtype.itemsize // parts}"), self.count * parts, self.rows)

    @property
    def rows(self) -> int:
        """The rows of the tensor as a matrix, 1 where it has fewer than two axes."""
        return self.shape[0] if len(self.shape) > 1 else 1


@dataclass(frozen=True, slots=True)
class Frame:
    """A coded tensor: the coder's name, the payload, and the checksum of the decoded bytes (version 1 only)."""

    coder: str
    payload: bytes | memoryview
    checksum: int | None = None


def layout_of(tensor: torch.Tensor, name: str) -> TensorLayout:
    """A tensor's dtype and shape.

    Args:
        tensor: on any device.
        name: for the error message.

    Returns:
        The layout.

    Raises:
        RequestError: it is no ordinary dense tensor of a dtype in `DTYPES`.
    """
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
        kind = f"a {str(tensor.layout)[6:]} {str(tensor.dtype)[6:]} one on {tensor.device}"
        raise RequestError(f"a .fw file holds dense tensors of {len(DTYPES)} dtypes, got {kind} for {name!r}; convert it first")
    return TensorLayout(tensor.dtype, tuple(tensor.shape))


def bits_of(tensor: torch.Tensor) -> Bits:
    """A tensor's elements as unsigned integers of the same bits, row by row, shape [n]; a complex number is two elements.

    Args:
        tensor: one that has a layout, see `layout_of`.

    Returns:
        The elements, little-endian, not copied where that is possible.
    """
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    plain = (plain.view(torch.uint8) if plain.dtype.itemsize == 1 else plain).contiguous().reshape(-1)
    itemsize = tensor.dtype.itemsize // (2 if tensor.dtype.is_complex else 1)
    bits: Bits = plain.view(_SIGNED[itemsize]).numpy().view(f"u{itemsize}")
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False)


def tensor_of(bits: Bits, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `bits_of`; the tensor may share the bits' memory.

    Args:
        bits: shape [n].
        dtype: of as many bytes as an element, or as two if it is complex.
        shape: the tensor's.

    Returns:
        The tensor, on the CPU.
    """
    if not len(bits):
        return torch.empty(tuple(shape), dtype=dtype)
    native = np.require(bits.astype(bits.dtype.newbyteorder("="), copy=False), requirements="W")
    signed = native if native.itemsize == 1 else native.view(f"i{native.itemsize}")
    return torch.from_numpy(signed).view(dtype).reshape(tuple(shape))


def write_frame(file: IO[bytes], bits: Bits, rows: int = 1) -> int:
    """Codes one tensor by whichever coder makes it smallest and writes its frame.

    Args:
        file: where to.
        bits: the elements, shape [n].
        rows: of the tensor as a matrix.

    Returns:
        The number of bytes written.
    """
    survey = Survey(bits, rows)
    coder = CODERS[choose(survey)]
    payload = coder.encode(survey)
    size = sum(len(part) for part in payload)
    head = bytes([coder.number]) + varint(size)
    for part in (head, *payload):
        file.write(part)
    return len(head) + size


def checksum_of(bits: Bits, before: int = 0) -> int:
    """CRC-32 of the elements as little-endian bytes.

    Args:
        bits: shape [n].
        before: the checksum of what comes before them.

    Returns:
        A number below 2^32.
    """
    return zlib.crc32(cast(Any, bits).data if len(bits) else b"", before)


def coder_name(number: int, version: int, what: str) -> str:
    """The coder of that number.

    Args:
        number: as a frame holds it.
        version: of the file.
        what: the frame's name for the error message.

    Returns:
        A key of `CODERS`.

    Raises:
        FormatError: there is none.
    """
    last = _LAST_CODERS.get(version, max(_NAMES))
    if number > last:
        raise FormatError(f"{what} is coded by coder number {number}, a file of version {version} has 0 to {last}")
    return _NAMES[number]


def decode_frame(frame: Frame, layout: Layout, what: str) -> Bits:
    """The bits of a frame, checked.

    Args:
        frame: as read.
        layout: what it should hold.
        what: its name for error messages.

    Returns:
        The elements, shape [layout.count].

    Raises:
        FormatError: the payload is damaged.
    """
    if layout.count == 0 and frame.coder != "raw":
        raise FormatError(f"{what} is damaged: an empty tensor is coded by 'raw', got {frame.coder!r}")
    cursor = Cursor(frame.payload, what)
    bits = CODERS[frame.coder].decode(cursor, layout)
    cursor.end()
    if frame.checksum is not None and checksum_of(bits) != frame.checksum:
        raise FormatError(f"{what} is damaged: its checksum does not match; get the file again")
    return bits
