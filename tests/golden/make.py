"""The models behind the golden files. Run this only after a deliberate change of the format, which also needs a new version.

python tests/golden/make.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from featherweight.graph.program import Input, Node, Program, Ref, TensorSpec
from featherweight.packaging.writer import pack
from featherweight.quantization.trellis import parities, quantizers

FOLDER = Path(__file__).parent


def counting(*shape: int) -> torch.Tensor:
    """Numbers that no random generator can change: multiples of 1/8 from a quadratic recurrence."""
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) ** 2 * 37 + 11) % 1009 / 8 - 60).reshape(shape)


def sparse(*shape: int, every: int, values: int | None = None) -> torch.Tensor:
    """Zeros but for roughly one weight in `every`, on few values if told."""
    weights = counting(*shape)
    kept = (torch.arange(weights.numel()) ** 2 * 13 % 101 % every == 0).reshape(shape)
    return torch.where(kept, weights.remainder(values) + 1 if values else weights, torch.zeros(()))


def network() -> tuple[Program, dict[str, torch.Tensor]]:
    """A small convolutional network, written down by hand."""
    inputs = (Input("image", (None, 1, 8, 8), torch.float32),)
    names = ("conv.weight", "conv.bias", "head.weight", "head.bias", "scale")
    tensors = tuple(TensorSpec(name, "buffer" if name == "scale" else "parameter") for name in names)
    nodes = (
        Node("conv2d", (Ref(0), Ref(1), Ref(2), [1, 1], [1, 1])),
        Node("relu", (Ref(6),)),
        Node("max_pool2d", (Ref(7), [2, 2], [2, 2])),
        Node("flatten.using_ints", (Ref(8), 1)),
        Node("linear", (Ref(9), Ref(3), Ref(4))),
        Node("mul.Tensor", (Ref(10), Ref(5))),
        Node("to.dtype", (Ref(11), torch.float64), {"copy": True}),
    )
    program = Program(inputs, tensors, nodes, {"logits": Ref(11), "precise": (Ref(12), 0.5, None, "done", -300)})
    values = [sparse(4, 1, 3, 3, every=2), counting(4), sparse(10, 64, every=10, values=4), torch.zeros(10), torch.tensor(2.0)]
    return program, dict(zip(names, values, strict=True))


def tensors() -> dict[str, torch.Tensor]:
    """A tensor for each coder, and the odd cases."""
    wide = sparse(40, 70, every=20, values=3)
    wide[:, ::3] = 0
    noise = (torch.arange(600) ** 2 * 40503 % 65521 - 32768).to(torch.int16).reshape(30, 20)
    odd = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 0, 1], dtype=torch.int64).to(torch.int32).view(torch.float32)
    return {
        "bool": torch.arange(20) % 3 == 0,
        "empty": torch.zeros(0, 3),
        "layer.0.exponent": counting(30, 20).to(torch.bfloat16),
        "layer.0.huffman": counting(3000).remainder(5).floor().pow(3).clamp(max=30),
        "layer.0.palette": (torch.arange(99) % 4 - 1).to(torch.float64),
        "layer.1.sparse": torch.where(sparse(30, 20, every=8) != 0, noise, torch.zeros((), dtype=torch.int16)),
        "layer.1.sparse_down_columns": wide.t().contiguous().t(),
        "layer.1.sparse_exponent": sparse(60, 80, every=9),
        "layer.1.sparse_huffman": sparse(50, 90, every=30, values=6),
        "odd": odd,
        "scalar": torch.tensor(7),
    }


def newer_tensors() -> dict[str, torch.Tensor]:
    """A tensor for each coder of version 2, among them a walk along the trellis, and the dtypes that came with it."""
    integers = (torch.arange(4000) ** 2 * 7 % 1013 % 29 - 14).to(torch.int16).reshape(40, 100)
    odd = torch.from_numpy(parities(integers.numpy().reshape(-1))).reshape(40, 100)
    indices = integers.to(torch.int64)
    quantizer = torch.from_numpy(quantizers(indices.remainder(2).to(torch.uint8).numpy().reshape(-1))).reshape(40, 100)
    steps = torch.tensor([0.1, 0.3, 0.7, 1.1, 0.1, 0.2, 0.3, 0.4])
    return {
        "complex128": torch.complex(counting(5, 7).double(), counting(5, 7).double() / 3),
        "exponent": counting(40, 60).pow(3) / 7,
        "exponent.few_bits": counting(40, 60),
        "float4": (torch.arange(21) % 7).to(torch.uint8).view(torch.float4_e2m1fn_x2),
        "grid": integers * torch.tensor(0.1),
        "grid.bfloat16": (integers.to(torch.bfloat16) + 0) * torch.tensor(0.1, dtype=torch.bfloat16),
        "grid.rows": integers.reshape(8, 500) * steps[:, None],
        "grid.trellis": (2 * indices - indices.sign() * quantizer) * torch.tensor(0.1),
        "integers": integers.to(torch.int64) * 9 + odd,
        "palette": sparse(50, 90, every=3, values=6) / 3 * torch.pi,
        "palette.one": torch.full((9,), torch.pi),
        "sparse.palette": sparse(80, 200, every=90, values=4) * torch.pi,
    }


def newest_tensors() -> dict[str, torch.Tensor]:
    """A tensor for each coder of version 3: rows, groups of rows and sub-vectors on few values off any grid; and levels."""
    values, numbers = counting(120).abs().add(1).sqrt(), torch.arange(700) ** 2 * 13 % 1019
    indices = (torch.arange(1800) ** 2 * 7 % 1013 % 31 - 15).reshape(30, 60) // 4 ** (torch.arange(30) % 3)[:, None]
    odd = indices.remainder(2).to(torch.uint8).numpy().reshape(-1)
    quantizer = torch.from_numpy(quantizers(odd)).reshape(30, 60)
    rows = values[torch.arange(7)[:, None] * 5 + (numbers % 5).reshape(7, 100)]
    return {
        "codebook.groups": values[torch.arange(20)[:, None] // 16 * 20 + (numbers % 20).reshape(20, 35)],
        "codebook.rows": torch.where(numbers.reshape(7, 100) % 3 > 0, rows, torch.zeros(())),
        "codebook.words": values.reshape(-1, 4)[numbers[:200] % 15].reshape(5, 8, 5, 4),
        "levels": indices * torch.tensor(0.1),
        "levels.trellis": (2 * indices - indices.sign() * quantizer) * torch.tensor(0.1),
        "sparse": sparse(60, 80, every=30) * torch.pi,
    }


OLD = {
    "network.fw": network,
    "tensors.fw": lambda: (None, tensors()),
    "network-2.fw": network,
    "tensors-2.fw": lambda: (None, tensors() | newer_tensors()),
}
"""Files of versions 1 and 2, which can be read, and no longer be made."""

FILES = {
    "network-3.fw": lambda: pack(*network()),
    "tensors-3.fw": lambda: pack(None, tensors() | newer_tensors() | newest_tensors()),
}

if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_bytes(make())
