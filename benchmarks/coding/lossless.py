"""How close do the coders come to the entropy, and asymmetric numeral systems to it beside Huffman codes?

Each row is one kind of tensor. The entropy is that of its values as if they were independent (of the exponents, and all other
bits as they are, for floats; of the indices, for a walk along a trellis): the best that a code without statistics of rows,
columns and runs can reach, its tables for nothing. The columns are bits for each weight; speeds are those of the chosen
coder, in millions of weights per second of processor time, the best of three. Every tensor is compared bit for bit with what
was coded.

    python benchmarks/coding/lossless.py --weights 2_000_000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featherweight.measuring import environment
from featherweight.packaging import decode, encode
from featherweight.packaging.coders import CODERS, choose
from featherweight.packaging.lattice import INTEGER
from featherweight.packaging.survey import Survey, exponents_of
from featherweight.packaging.tensors import bits_of
from featherweight.quantization import quantize_entropy

WEIGHTS = 2_000_000
COLUMNS = 1000
RUNS = 3
RESULT = Path(__file__).with_suffix(".json")


def make_tensors(rows: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the kinds that our methods leave behind."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, COLUMNS, generator=generator)
    scaled = normal * 2 ** torch.randn(rows, 1, generator=generator) * 2 ** torch.randn(1, COLUMNS, generator=generator)
    yield "float32", normal
    yield "bfloat16", normal.bfloat16()
    yield "16 equal shares", torch.randn(16, generator=generator)[torch.randint(16, normal.shape, generator=generator)]
    yield "one sign", normal.sign() * 0.1
    yield "nine in ten zero, 8 values", torch.where(normal.abs() > 1.645, (normal * 2).round() * 0.3, 0.0)
    yield "99 of 100 zero, 8 values", torch.where(normal.abs() > 2.576, (normal * 2).round() * 0.3, 0.0)
    yield (
        "8 bits for each row",
        (normal / normal.abs().amax(1, keepdim=True) * 127).round().add(0.0) * normal.abs().amax(1, keepdim=True),
    )
    yield "grid", (normal / 0.3).round().add(0.0) * 0.3
    yield "grid, rows and columns scaled", (scaled / 0.3).round().add(0.0) * 0.3
    yield "trellis", quantize_entropy({"w": normal}, relative_error=0.1)["w"]


def entropy_bits(survey: Survey, tensor: torch.Tensor) -> float:
    """Bits for each weight, as the head of this file says."""
    plain, kept = 0.0, survey.bits
    if survey.follows_trellis and survey.lattice is not None:
        integers = survey.lattice.integers.reshape(-1).astype(np.int32)
        kept = (integers + np.sign(integers) * (integers & 1)) // 2
    elif survey.lattice is not None and survey.lattice.kind != INTEGER:
        kept = survey.lattice.integers
    elif survey.palette is None:
        kept, plain = exponents_of(survey.bits), 8.0 * tensor.itemsize - 8
    counts = np.unique(kept, return_counts=True)[1]
    return plain + float((counts * np.log2(counts.sum() / counts)).sum() / counts.sum())


def measure(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """A row: bits for each weight by each coder, and speeds."""
    survey = Survey(bits_of(tensor), len(tensor))
    sizes = {coder: size for coder in CODERS if (size := CODERS[coder].size(survey)) is not None}
    times: list[tuple[float, float]] = []
    for _ in range(RUNS):
        start = time.process_time()
        coded = encode({"w": tensor})
        middle = time.process_time()
        back = decode(coded)["w"]
        times.append((middle - start, time.process_time() - middle))
    if not np.array_equal(bits_of(back), survey.bits):
        raise SystemExit(f"{name} did not come back bit for bit")
    bits = {coder: round(8 * size / tensor.numel(), 4) for coder, size in sizes.items()}
    classic = [bits[coder] for coder in ("huffman", "exponent", "sparse_huffman", "sparse_exponent") if coder in bits]
    return {
        "tensor": name,
        "entropy": round(entropy_bits(survey, tensor), 4),
        "huffman": min(classic, default=None),
        "chosen": choose(survey),
        "bits": round(8 * len(coded) / tensor.numel(), 4),
        "encoded_weights_per_s": round(tensor.numel() / min(each[0] for each in times)),
        "decoded_weights_per_s": round(tensor.numel() / min(each[1] for each in times)),
        "all": bits,
    }


def main() -> None:
    """Measures, prints a table, and writes the result beside this script when the size is the standard one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=WEIGHTS)
    weights = parser.parse_args().weights
    torch.set_num_threads(1)
    print(f"{'tensor':32}{'entropy':>9}{'huffman':>9}{'ours':>9}  {'coder':14}{'encode M/s':>11}{'decode M/s':>11}")
    rows = []
    for name, tensor in make_tensors(weights // COLUMNS):
        row = measure(name, tensor)
        rows.append(row)
        speeds = f"{row['encoded_weights_per_s'] / 1e6:11.1f}{row['decoded_weights_per_s'] / 1e6:11.1f}"
        huffman = f"{row['huffman']:9.4f}" if row["huffman"] else f"{'':9}"
        print(f"{name:32}{row['entropy']:9.4f}{huffman}{row['bits']:9.4f}  {row['chosen']:14}{speeds}", flush=True)
    if weights == WEIGHTS:
        RESULT.write_text(json.dumps({"rows": rows, "threads": 1, "versions": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
