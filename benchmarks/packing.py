"""How fast are tensors packed and unpacked, on one core, and how much memory does it take?

A state dict of 100 million weights: a third dense random, a third on 16 shared values, a third nine tenths zero (half of
that with random values, half with 8 shared ones). Every tensor is compared bit for bit with what was packed.

Memory is the peak of a fresh process that does nothing else, in units of the model's size, the model itself included. Times
are seconds on the clock, to and from a file, the median of several runs each in a fresh process; the slowest and the fastest
stand beside it.

    python benchmarks/packing.py --weights 100_000_000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featherweight.measuring import environment
from featherweight.packaging import inspect, load_tensors, save_tensors

WEIGHTS = 100_000_000
COLUMNS = 4096
RUNS = 3
RESULT = Path(__file__).with_suffix(".json")


def make_tensors(weights: int) -> dict[str, torch.Tensor]:
    """The state dict: four matrices of `COLUMNS` columns."""
    generator = torch.Generator().manual_seed(0)

    def matrix(share: float) -> torch.Tensor:
        return torch.randn(round(weights * share / COLUMNS), COLUMNS, generator=generator)

    def snapped(tensor: torch.Tensor, values: int) -> torch.Tensor:
        """Each weight replaced by one of `values` random ones, all equally likely."""
        codebook = torch.randn(values, generator=generator)
        for row in tensor:
            row.copy_(codebook[torch.randint(values, row.shape, generator=generator)])
        return tensor

    def pruned(tensor: torch.Tensor) -> torch.Tensor:
        for row in tensor:
            row[torch.rand(row.shape, generator=generator) < 0.9] = 0
        return tensor

    return {
        "dense": matrix(1 / 3),
        "shared": snapped(matrix(1 / 3), 16),
        "pruned": pruned(matrix(1 / 6)),
        "pruned and shared": pruned(snapped(matrix(1 / 6), 8)),
    }


def peak_bytes() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def current_bytes() -> int:
    """The memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_packing(weights: int, path: str) -> dict[str, Any]:
    """Seconds and memory to pack the whole state dict, and each tensor alone."""
    torch.set_num_threads(1)
    baseline = current_bytes()
    tensors = make_tensors(weights)
    model_bytes = sum(tensor.nbytes for tensor in tensors.values())
    start = time.perf_counter()
    size = save_tensors(tensors, path)
    return {
        "size_bytes": size,
        "model_bytes": model_bytes,
        "seconds": time.perf_counter() - start,
        "peak_models": (peak_bytes() - baseline) / model_bytes,
    }


def measure_unpacking(path: str) -> dict[str, Any]:
    """Seconds and memory to unpack the whole state dict."""
    torch.set_num_threads(1)
    baseline = current_bytes()
    start = time.perf_counter()
    tensors = load_tensors(path)
    return {
        "seconds": time.perf_counter() - start,
        "peak_models": (peak_bytes() - baseline) / sum(tensor.nbytes for tensor in tensors.values()),
    }


def measure_tensors(weights: int, path: str) -> list[dict[str, Any]]:
    """The same for each tensor alone, which is also checked bit for bit."""
    torch.set_num_threads(1)
    rows = []
    for name, tensor in make_tensors(weights).items():
        start = time.perf_counter()
        save_tensors({name: tensor}, path)
        packed = time.perf_counter()
        loaded = load_tensors(path)[name]
        unpacked = time.perf_counter()
        if not np.array_equal(loaded.numpy().view(np.uint32), tensor.numpy().view(np.uint32)):
            raise SystemExit(f"{name} did not come back bit for bit")
        contents = inspect(path).tensors[0]
        rows.append(
            {
                "tensor": name,
                "weights": tensor.numel(),
                "coder": contents.coder,
                "bits_per_weight": round(contents.bits_per_weight, 3),
                "packed_weights_per_s": round(tensor.numel() / (packed - start)),
                "unpacked_weights_per_s": round(tensor.numel() / (unpacked - packed)),
            }
        )
    return rows


def run_alone(function: Any, *args: Any) -> Any:
    """Calls a function in a fresh process, so that memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    """Measures, prints a table, and writes the result beside this script when the size is the standard one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=WEIGHTS)
    weights = parser.parse_args().weights
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/packing.fw"
        packing = [run_alone(measure_packing, weights, path) for _ in range(RUNS)]
        unpacking = [run_alone(measure_unpacking, path) for _ in range(RUNS)]
        rows = run_alone(measure_tensors, weights, path)
    total = packing[0]["model_bytes"] // 4
    seconds = {"packing": [run["seconds"] for run in packing], "unpacking": [run["seconds"] for run in unpacking]}
    whole = {
        "tensor": "all",
        "weights": total,
        "bits_per_weight": round(8 * packing[0]["size_bytes"] / total, 3),
        "packed_weights_per_s": round(total / statistics.median(seconds["packing"])),
        "unpacked_weights_per_s": round(total / statistics.median(seconds["unpacking"])),
    }
    result = {
        "size_bytes": packing[0]["size_bytes"],
        "model_bytes": packing[0]["model_bytes"],
        "seconds": {what: [round(s, 3) for s in sorted(times)] for what, times in seconds.items()},
        "packing_peak_models": round(max(run["peak_models"] for run in packing), 3),
        "unpacking_peak_models": round(max(run["peak_models"] for run in unpacking), 3),
        "rows": [*rows, whole],
        "threads": 1,
        "versions": environment(),
    }
    print(f"{'tensor':20}{'coder':18}{'bits/weight':>12}{'packed M/s':>12}{'unpacked M/s':>14}")
    for row in result["rows"]:
        speeds = f"{row['packed_weights_per_s'] / 1e6:12.1f}{row['unpacked_weights_per_s'] / 1e6:14.1f}"
        print(f"{row['tensor']:20}{row.get('coder', ''):18}{row['bits_per_weight']:12.3f}{speeds}")
    print(f"seconds, fastest to slowest: {result['seconds']}")
    print(f"peak memory in model sizes: packing {result['packing_peak_models']}, unpacking {result['unpacking_peak_models']}")
    if weights == WEIGHTS:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
