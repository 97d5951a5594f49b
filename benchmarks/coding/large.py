"""A state dict larger than the memory: made, quantized and coded one tensor at a time, and the peak memory of that.

    OMP_NUM_THREADS=1 python benchmarks/coding/large.py --weights 1_000_000_000

Nothing holds more than one tensor: the plan looks at a sample of each, and the writer asks for each when its turn comes, twice:
for its shape, and for its elements. So each is drawn three times, and quantized twice. Memory is the peak of this process, and
what of it was in use before the first tensor was made; seconds are of processor time. A billion weights take minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from featherweight.measuring import environment
from featherweight.packaging import save_tensors
from featherweight.quantization import EntropyPlan, plan_entropy

COLUMNS = 2048
ROWS = 8192  # 64 MiB a tensor


class Made(Mapping[str, torch.Tensor]):
    """So many tensors, each drawn anew when it is asked for: Laplacian, with rows of different scales."""

    def __init__(self, count: int) -> None:
        self._names = [f"layers.{index:04d}.weight" for index in range(count)]
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        start = time.process_time()
        generator = torch.Generator().manual_seed(self._names.index(name))
        scales = 0.01 + 0.04 * torch.rand(ROWS, 1, generator=generator)
        drawn = torch.empty(ROWS, COLUMNS).exponential_(generator=generator)
        drawn -= torch.empty(ROWS, COLUMNS).exponential_(generator=generator)
        drawn.mul_(scales)
        self.seconds += time.process_time() - start
        return drawn


class Quantized(Mapping[str, torch.Tensor]):
    """The same tensors, quantized by a plan when they are asked for."""

    def __init__(self, made: Made, plan: EntropyPlan) -> None:
        self._made, self._plan = made, plan

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._plan.quantize({name: self._made[name]})[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1_000_000_000)
    parser.add_argument("--relative-error", type=float, default=0.1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = Made(math.ceil(arguments.weights / (ROWS * COLUMNS)))
    weights = len(made) * ROWS * COLUMNS
    before, start = peak_bytes(), time.process_time()
    plan = plan_entropy(made, relative_error=arguments.relative_error)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "large.fw")
        size = save_tensors(Quantized(made, plan), path)
    record = {
        "environment": environment(),
        "weights": weights,
        "largest_bytes": 4 * ROWS * COLUMNS,
        "bytes": size,
        "bits": 8 * size / weights,
        "relative_error": plan.relative_error,
        "seconds": time.process_time() - start,
        "of_it_drawing_seconds": made.seconds,
        "start_bytes": before,
        "peak_bytes": peak_bytes(),
    }
    Path(__file__).with_name("large.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def peak_bytes() -> int:
    """The most memory this process has had in use, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
