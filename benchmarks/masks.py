"""Where weight pruning pays: how many bits of a file does a kept weight take, and how many of them say only where it is?

A LeNet-300-100, trained on MNIST for two epochs, is pruned at once (each tensor to the same sparsity, no tuning) and saved,
with its weights as they are and clustered to 16 shared values. What the three weight tensors take of the file, in bits per
kept weight:

    bits      all of them
    values    what the kept values alone take, saved as a dense tensor
    mask      the difference: the price of knowing where they are
    entropy   log2 of the number of such masks, per kept weight: no code of random masks can be shorter on average. For single
              weights that is H(s) / (1 - s), with H(s) = -s log2 s - (1 - s) log2 (1 - s)

Found: random masks come within 2 % of the entropy; masks by magnitude fall below it, because some inputs keep more of their
weights than others; patterns and blocks take less than single weights but more than they need, for each run is coded by itself.
What a file saves against one with 32 bits for each weight is `smaller`. MNIST is looked for as `training.load_data` says.

    python benchmarks/masks.py [--data-dir FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.graph.constraint import fold
from featherweight.measuring import environment
from featherweight.nets import lenet_300_100
from featherweight.packaging import inspect, save, save_tensors
from featherweight.pruning import prune_weights
from featherweight.pruning.granularity import pattern_of, units_of
from featherweight.quantization import cluster_weights
from featherweight.training import Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
PATTERNS = {"2:4": 0.5, "1:4": 0.75}
BLOCKS = ("1x4", "4x4", "16x16")
CLUSTERS = 16
HEAD = "values     criterion  granularity  sparsity    bytes  smaller    bits  values   mask  entropy"
LINE = (
    "{values:10} {criterion:10} {granularity:12} {sparsity:7.4g} {size_bytes:8} {smaller:7.2f}x "
    "{bits:7.3f} {value_bits:7.3f} {mask_bits:6.3f} {entropy:8.3f}"
)


def cases() -> Iterator[dict[str, Any]]:
    """What is measured: how the masks were chosen, what they are made of, how many weights go."""
    for values in ("float32", f"{CLUSTERS} shared"):
        for criterion in ("random", "magnitude"):
            for sparsity in SPARSITIES:
                yield {"values": values, "criterion": criterion, "granularity": "element", "sparsity": sparsity}
    for granularity, sparsity in PATTERNS.items():
        yield {"values": "float32", "criterion": "magnitude", "granularity": granularity, "sparsity": sparsity}
    for granularity in BLOCKS:
        for sparsity in (0.5, 0.9, 0.98):
            yield {"values": "float32", "criterion": "magnitude", "granularity": granularity, "sparsity": sparsity}


def log2_masks(weight: torch.Tensor, granularity: str) -> float:
    """log2 of the number of masks of this granularity that keep as much as this weight's does."""
    pattern = pattern_of(granularity)
    if pattern is not None:
        return weight.numel() / pattern[1] * math.log2(math.comb(pattern[1], pattern[0]))
    units = units_of(granularity)(weight.shape)
    kept = torch.zeros(int(units.max()) + 1, dtype=torch.bool).index_fill_(0, units[weight != 0], True)
    total, ones = len(kept), int(kept.sum())
    return (math.lgamma(total + 1) - math.lgamma(ones + 1) - math.lgamma(total - ones + 1)) / math.log(2)


def measure(net: nn.Module, example: torch.Tensor, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Prunes, saves, and takes the file apart."""
    options = {"criterion": case["criterion"], "granularity": case["granularity"], "allocation": "uniform"}
    pruned = prune_weights(net, sparsity=case["sparsity"], **options)
    pruned = fold(pruned if case["values"] == "float32" else cluster_weights(pruned, clusters=CLUSTERS))
    size = save(pruned, folder / "net.fw", example=example)
    bits = {tensor.name: 8 * tensor.size_bytes for tensor in inspect(folder / "net.fw").tensors}
    weights = {name: p.detach() for name, p in pruned.named_parameters() if p.dim() > 1}
    save_tensors({name: weight[weight != 0] for name, weight in weights.items()}, folder / "values.fw")
    value_bits = sum(8 * tensor.size_bytes for tensor in inspect(folder / "values.fw").tensors)
    kept = sum(int((weight != 0).sum()) for weight in weights.values())
    all_bits = sum(bits[name] for name in weights)
    return case | {
        "size_bytes": size,
        "smaller": round(sum(4 * p.numel() for p in net.parameters()) / size, 2),
        "kept": kept,
        "bits": round(all_bits / kept, 3),
        "value_bits": round(value_bits / kept, 3),
        "mask_bits": round((all_bits - value_bits) / kept, 3),
        "entropy": round(sum(log2_masks(weight, case["granularity"]) for weight in weights.values()) / kept, 3),
    }


def main() -> None:
    """Trains, measures, prints a table, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("mnist", data_dir=parser.parse_args().data_dir)
    net = lenet_300_100(input_shape=data.input_shape, classes=data.classes)
    fit(net, data.train, Tuning(epochs=2))
    accuracy = evaluate(net, data.validation)
    print(f"validation accuracy before pruning: {100 * accuracy:.2f} %")
    print(HEAD)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            row = measure(net, data.example, case, Path(folder))
            rows.append(row)
            print(LINE.format(**row))
    result = {"validation_accuracy": round(accuracy, 4), "rows": rows, "versions": environment()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
