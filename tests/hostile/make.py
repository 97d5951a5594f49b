"""Files that somebody might send us: each breaks one rule of SPEC.md, or asks for more than it should.

They are built by hand from a small good file, checksums included, so that each reaches the check it is meant for.

    python tests/hostile/make.py
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

FOLDER = Path(__file__).parent
MAGIC = b"\x89FW\n"


def varint(number: int) -> bytes:
    """SPEC.md §1."""
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def frame(decoded: bytes, coder: int = 0, payload: bytes | None = None, checksum: int | None = None) -> bytes:
    """SPEC.md §3, `raw` and right unless told otherwise."""
    payload = decoded if payload is None else payload
    checksum = zlib.crc32(decoded) if checksum is None else checksum
    return bytes([coder]) + varint(len(payload)) + payload + checksum.to_bytes(4, "little")


def file(manifest: bytes, *frames: bytes, magic: bytes = MAGIC, version: int = 1) -> bytes:
    """SPEC.md §2."""
    return magic + bytes([version]) + varint(len(manifest)) + frame(manifest) + b"".join(frames)


def file_2(manifest: bytes, *frames: tuple[int, bytes], checksum: int = 0, version: int = 2) -> bytes:
    """SPEC.md §2 from version 2 on: coders and payloads, and one checksum for all, which damage is to be noticed without."""
    coded = b"".join(bytes([coder]) + varint(len(payload)) + payload for coder, payload in [(0, manifest), *frames])
    return MAGIC + bytes([version]) + varint(len(manifest)) + coded + checksum.to_bytes(4, "little")


def tensors_only(*entries: tuple[bytes, bytes]) -> bytes:
    """A manifest of tensors only: for each its coded name, and its coded dtype and shape."""
    names = varint(len(entries)) + b"".join(name for name, _ in entries)
    return b"\0" + names + b"\0\0\0\0" + b"\1" + b"".join(layout for _, layout in entries)


def network(
    nodes: bytes, *, tensors: bytes = b"\0", layouts: bytes = b"", op: bytes = b"relu", output: bytes = b"\0\1"
) -> bytes:
    """A manifest with a network: an input "x", one operation, one call of it on one reference, then `nodes`."""
    call = bytes.fromhex("01 00 0b 01 00 0d 00")
    return b"\1" + tensors + b"\1\1x\0\0" + b"\1" + varint(len(op)) + op + call + nodes + output + layouts


def float32(*shape: int) -> bytes:
    """A tensor's entry in a manifest."""
    return b"\0" + varint(len(shape)) + b"".join(map(varint, shape))


def name(text: bytes, shared: int = 0, kind: int = 1) -> bytes:
    """A tensor's name in a manifest."""
    return varint(4 * shared + kind) + varint(len(text)) + text


ONE = bytes.fromhex("0000803f")
GOOD = file(tensors_only((name(b"w"), float32(2))), frame(ONE + ONE))
GOOD_NETWORK = file(network(b"\1\0\1"))


def coded(coder: int, payload: str, *shape: int) -> bytes:
    """A file of one tensor with a payload of our choice."""
    return file(tensors_only((name(b"w"), float32(*shape))), frame(b"", coder, bytes.fromhex(payload)))


def coded_2(coder: int, payload: str, *shape: int) -> bytes:
    """A file of version 2 with one tensor and a payload of our choice."""
    return file_2(tensors_only((name(b"w"), float32(*shape))), (coder, bytes.fromhex(payload)))


def coded_3(coder: int, payload: str, *shape: int) -> bytes:
    """A file of version 3 with one tensor and a payload of our choice."""
    return file_2(tensors_only((name(b"w"), float32(*shape))), (coder, bytes.fromhex(payload)), version=3)


def one_name(text: bytes) -> bytes:
    """A network with one tensor of that name."""
    return file(network(b"\1\0\1", tensors=b"\1" + name(text, kind=0), layouts=float32(1)), frame(ONE))


def two_names(first: bytes, second: bytes) -> bytes:
    """A network with two tensors of those names."""
    both = b"\2" + name(first) + name(second)
    return file(network(b"\1\0\1", tensors=both, layouts=float32(1) + float32(1)), frame(ONE), frame(ONE))


def bomb(*shape: int) -> bytes:
    """One value, ever so often; with the right checksum where it is feasible."""
    count = math.prod(shape)
    return file(tensors_only((name(b"w"), float32(*shape))), frame(ONE * count if count < 10**6 else b"", 1, b"\0" + ONE))


def lone_run(symbol: int) -> str:
    """An alphabet whose last symbol alone occurs, which takes no bits (SPEC.md §6.3): 18 ones, zeros, 25 ones, a zero."""
    bits = (2**18 - 1) | (2**25 - 1) << (18 + symbol)
    return bytes([symbol]).hex() + bits.to_bytes((18 + symbol + 26 + 7) // 8, "little").hex()


def long_manifest() -> bytes:
    """A frame of a few bytes that decodes to a network whose output is a list of 2^24 - 64 references."""
    start = network(b"\1\0\1", output=b"\x0c" + varint(2**24 - 64))
    checksum = zlib.crc32(start + bytes(2**24 - len(start)))
    return frame(b"", 4, b"\0" + varint(len(start)) + b"\0\x7f" + start, checksum)


FILES: dict[str, bytes] = {
    "empty": b"",
    "magic only": MAGIC,
    "wrong magic": file(tensors_only(), magic=b"\x89PNG"),
    "zip": b"PK\x03\x04" + bytes(60),
    "pickle": b"\x80\x04cos\nsystem\n(S'echo'\ntR.",
    "newer version": file(tensors_only(), version=4),
    "version 0": file(tensors_only(), version=0),
    "cut in the manifest": GOOD[:12],
    "cut in a frame": GOOD[:-6],
    "cut in a checksum": GOOD[:-1],
    "a byte too many": GOOD + b"\0",
    "a frame too many": GOOD + frame(ONE),
    "a frame missing": file(tensors_only((name(b"w"), float32(2)))),
    "manifest length too long": MAGIC + b"\1" + varint(2**24 + 1) + frame(b""),
    "manifest length huge": MAGIC + b"\1" + varint(2**64 - 1) + frame(b""),
    "manifest of 16 MiB in 2 bytes": MAGIC + b"\1" + varint(2**24) + frame(b"\1" * 2**24, 1, b"\0\1"),
    "manifest of 16 million references": MAGIC + b"\1" + varint(2**24) + long_manifest(),
    "number that never ends": MAGIC + b"\1" + b"\x80" * 40,
    "number not the shortest": MAGIC + b"\1" + b"\x87\0" + frame(tensors_only()),
    "payload longer than the file": GOOD[:-14] + b"\0" + varint(2**40) + bytes(8),
    "payload of 2^63": GOOD[:-14] + b"\0" + varint(2**63) + bytes(8),
    "unknown coder": file(tensors_only((name(b"w"), float32(2))), frame(ONE + ONE, 7)),
    "wrong checksum": file(tensors_only((name(b"w"), float32(2))), frame(ONE + ONE, checksum=0)),
    "wrong checksum of the manifest": MAGIC + b"\1" + varint(len(tensors_only())) + frame(tensors_only(), checksum=0),
    "raw too short": coded(0, "00000000", 2),
    "raw too long": coded(0, "000000000000000000", 2),
    "bool of 2": file(tensors_only((name(b"w"), b"\x09\1\1")), frame(b"\2")),
    "unknown dtype": file(tensors_only((name(b"w"), b"\x40\1\1")), frame(ONE)),
    "33 axes": file(tensors_only((name(b"w"), float32(*[1] * 33))), frame(ONE)),
    "2^60 elements": bomb(2**60),
    "2^64 elements and more": bomb(*[2**63] * 32),
    "2^60 elements by none": bomb(2**30, 2**30, 0),
    "2^48 elements": bomb(2**48),
    "a gigabyte of one value": bomb(2**28),
    "a gigabyte of zeros in tensors": file(
        tensors_only(*((name(bytes([65 + i])), float32(2**22)) for i in range(60))), *[frame(b"", 1, b"\0" + ONE)] * 60
    ),
    "empty tensor, not raw": coded(1, "0000000000", 0),
    "palette index too high": coded(1, "02 00000000 00000001 00000002 ff", 4),
    "palette padding": coded(1, "01 00000000 00000001 f0", 4),
    "palette cut short": coded(1, "ff 00000000", 4),
    "huffman incomplete": coded(2, "01 00000000 00000001 7f01 0100", 4),
    "huffman over-full": coded(2, "02 00000000 00000001 00000002 1f00 0100", 4),
    "huffman lengths without end": coded(2, "01 00000000 00000001" + "ff" * 200, 4),
    "huffman stream too short": coded(2, "01 00000000 00000001 1f 00", 4),
    "huffman stream too long": coded(2, "01 00000000 00000001 1f 02 0000", 4),
    "huffman 2^24 symbols in a byte": coded(2, "01 00000000 00000001 1f 00 00 00", 2**24),
    "exponent of bytes": file(tensors_only((name(b"w"), b"\x08\1\1")), frame(b"", 3, b"\0\1")),
    "sparse without nonzeros": coded(4, "00 00 00 7f", 4),
    "sparse with too many nonzeros": coded(4, "00 05 00 7f", 4),
    "sparse with 2^63 nonzeros": coded(4, "00 8080808080808080 80 01 00 7f", 4),
    "sparse with 5 mantissa bits": coded(4, "05 01 00 7f 0000803f", 4),
    "sparse past the end": coded(4, f"00 01 {lone_run(3)} 01 0000803f", 5),
    "sparse far past the end": coded(4, f"00 01 {lone_run(3)} 01 0000803f", 2),
    "sparse run of 2^200": coded(4, f"00 01 {lone_run(200)}" + "55" * 30, 4),
    "name twice": file(tensors_only((name(b"w"), float32(1)), (name(b"w"), float32(1))), frame(ONE), frame(ONE)),
    "name shares too much": file(tensors_only((name(b"w", shared=1), float32(1))), frame(ONE)),
    "name not UTF-8": file(tensors_only((name(b"\xff\xfe"), float32(1))), frame(ONE)),
    "name of 2000 bytes": file(tensors_only((name(b"w" * 2000), float32(1))), frame(ONE)),
    "name of 500 modules": one_name(b"a." * 500 + b"w"),
    "name of nothing": one_name(b""),
    "name of dots": one_name(b"..."),
    "name that is taken": one_name(b"forward"),
    "name that is ours": one_name(b"program"),
    "name inside torch": one_name(b"_parameters.x"),
    "tensor and module": two_names(b"a", b"a.b"),
    "module and tensor": two_names(b"a.b", b"a"),
    "a million tensors": file(b"\0" + varint(10**6) + name(b"w") + b"\0\0\0\0\1" + float32(1), frame(ONE)),
    "tensors only, with a node": file(b"\0" + network(b"\1\0\1")[1:]),
    "kind of file unknown": file(b"\2" + network(b"\1\0\1")[1:]),
    "reference to the future": file(network(b"\1\0\1", output=b"\0\0")),
    "reference before the start": file(network(b"\1\0\3")),
    "reference to a missing tensor": file(network(b"\1\0\0")),
    "operation that is none": file(network(b"\1\0\1", op=b"no_such_op")),
    "operation that reads files": file(network(b"\1\0\1", op=b"from_file")),
    "operation of python": file(network(b"\1\0\1", op=b"py.__import__")),
    "operation by attribute": file(network(b"\1\0\1", op=b"relu.__class__")),
    "operation with odd signs": file(network(b"\1\0\1", op=b"relu.\0\xc3\xa9")),
    "call that is none": file(network(b"\1\1\1")),
    "nested 5000 deep": file(network(b"\1\0\1", output=b"\x0c\1" * 5000 + b"\1")),
    "list of 2^60": file(network(b"\1\0\1", output=b"\x0c" + varint(2**60))),
    "tag unknown": file(network(b"\1\0\1", output=b"\x0f")),
    "device unknown": file(network(b"\1\0\1", output=b"\x0a\3abc")),
    "two million nodes": file(network(varint(2**21) + b"\0\1" * 100)),
    "2 cut before the checksum": file_2(tensors_only())[:-4],
    "2 a byte too many": file_2(tensors_only(), checksum=zlib.crc32(tensors_only())) + b"\0",
    "2 unknown coder": coded_2(11, "00", 2),
    "2 a million tensors": file_2(b"\0" + varint(10**6) + name(b"w") + b"\0\0\0\0\1" + float32(1), (0, ONE)),
    "2 a gigabyte of one value": coded_2(7, "02 0000803f", 2**28),
    "2 palette without values": coded_2(7, "00", 4),
    "2 palette of 2^40 values": coded_2(7, "8080808080 40", 4),
    "2 palette cut short": coded_2(7, "04 0000803f", 4),
    "2 contexts of another kind": coded_2(7, "02 02 0000803f", 2, 2),
    "2 segment cut short": coded_2(7, "04 0000803f 00000040 05 00", 4),
    "2 segment with a zero byte last": coded_2(7, "04 0000803f 00000040 02 0100", 4),
    "2 segment too long": coded_2(7, "04 0000803f 00000040 09 ffffffffffffffffff", 4),
    "2 segment of 2^63 bytes": coded_2(7, "04 0000803f 00000040 80808080808080808001", 4),
    "2 exponents upside down": coded_2(8, "00 80 7f 00", 4),
    "2 exponents with 24 spare bits": coded_2(8, "00 7f 7f 18", 4),
    "2 exponents with two zeros": coded_2(8, "02 7f 7f 00", 4),
    "2 exponents without the rest": coded_2(8, "00 7f 7f 00", 4),
    "2 exponents of bytes": file_2(tensors_only((name(b"w"), b"\x08\1\1")), (8, b"\0\1\1\0")),
    "2 sparse without nonzeros": coded_2(9, "00 00 00 02 0000803f", 4),
    "2 sparse with too many nonzeros": coded_2(9, "00 05 00 02 0000803f", 4),
    "2 sparse with 5 mantissa bits": coded_2(9, "05 01 00 02 0000803f", 4),
    "2 sparse of a third kind": coded_2(9, "20 01 00 02 0000803f", 4),
    "2 sparse past the end": coded_2(9, "04 01 0f 02 0000803f 03 000080", 4),
    "2 sparse far past the end": coded_2(9, "00 01 c8 02 0000803f 03 0000ff 00", 4),
    "2 grid of an unknown kind": coded_2(10, "05 0000803f 00", 4),
    "2 grid of doubles": coded_2(10, "01 0000803f 00", 4),
    "2 grid of integers with steps for each row": coded_2(10, "14 00", 4),
    "2 grid with steps stored in two ways": coded_2(10, "60 0000803f 00", 4),
    "2 grid of large integers": coded_2(10, "00 0000803f ff", 4),
    "2 grid without steps": coded_2(10, "10 0000803f", 4),
    "2 grid with steps on a grid without end": coded_2(10, "50" * 2000, 4),
    "3 unknown coder": coded_3(200, "00", 2),
    "3 symbols coded in way 1": coded_3(7, "01 03 0000803f", 2, 2),
    "3 levels cut short": coded_3(10, "02 00 0000803f 02", 2, 2),
    "3 levels with bytes left": coded_3(10, "02 00 0000803f 02 00 00", 2, 2),
    "3 parities of no sixteenths": coded_3(10, "02 08 0000803f 02 00 00", 2, 2),
    "3 parities of all sixteenths": coded_3(10, "02 08 0000803f 02 10 00", 2, 2),
    "3 parities cut short": coded_3(10, "02 08 0000803f 02 08", 2, 2),
    "3 parities padded with ones": coded_3(10, "02 08 0000803f 02 08 1f 00", 2, 2),
    "3 codewords for no rows": coded_3(11, "00 02 00 0100 00 0000803f", 2, 2),
    "3 codewords for more rows than there are": coded_3(11, "03 02 00 0100 00 0000803f", 2, 2),
    "3 codewords without elements": coded_3(11, "02 00 00 0100 00", 2, 2),
    "3 codewords without elements but zeros": coded_3(11, "02 01 00 0000 00", 2, 2),
    "3 codewords that do not fit": coded_3(11, "02 06 00 0100 00" + "0000803f" * 3, 2, 2),
    "3 codewords longer than a row": coded_3(11, "02 80808080808080808001 00 0100 00", 2, 2),
    "3 codewords that are none": coded_3(11, "02 02 00 0000 00", 2, 2),
    "3 codewords more than sub-vectors": coded_3(11, "01 02 00 0200 0300 00" + "0000803f" * 5, 2, 2),
    "3 codewords cut short": coded_3(11, "02 02 00 0200 00 0000803f", 2, 2),
    "3 codewords in a third view": coded_3(11, "02 02 00 0100 03 0000803f", 2, 2),
    "3 codewords by none in a view": coded_3(11, "02 03 00 0000 01 02 0000803f", 2, 2),
    "3 codewords beyond their group": coded_3(11, "01 02 00 0100 0200 00" + "0000803f" * 3 + "00 04 00008007", 2, 2),
    "3 codewords with bytes left": coded_3(11, "02 02 00 0100 00 0000803f 00 00", 2, 2),
    "3 codewords coded in no known way": coded_3(11, "02 02 00 0100 00 0000803f 01", 2, 2),
    "3 a gigabyte of one codeword": coded_3(11, "01 80808002 00 0100 01 02 0000803f 00", 1, 2**28),
    "3 a group for each of 2^20 rows": coded_3(11, "01 03 01 02 0000 00 00 ff", 2**20, 1),
    "3 65535 codewords that are one": coded_3(11, f"8001 02 01 02 ffff 01 02 0000803f 02 80 01 {'55' * 128}", 128, 512),
    "wrong checksum of version 2": file_2(tensors_only((name(b"w"), float32(2))), (0, ONE + ONE)),
    "manifest with bytes left": file(network(b"\1\0\1") + b"\0"),
    "more tensors than layouts": file(network(b"\1\0\1", tensors=b"\1" + name(b"w"))),
}

if __name__ == "__main__":
    for old in FOLDER.glob("*.fw"):
        old.unlink()
    for title, data in FILES.items():
        (FOLDER / f"{title.replace(' ', '-').replace(',', '').replace('^', '')}.fw").write_bytes(data)
