"""What clustering costs and loses: where centroids start, who shares them, what weighs the error, and how it scales.

A LeNet-300-100, trained on MNIST for two epochs, is clustered in many ways, without any training afterwards:

    seconds    processor time of the call on one thread
    excess     the squared error of all clustered tensors over that of the best centroids, 1 - the ratio in percent
    error      norm of what changes over norm of the weights, in percent
    accuracy   on validation data, right after clustering
    bytes      per weight of the two large layers, in a file of these alone
    ideal      bytes per weight if what shares a codebook were coded at the entropy of its indices, 4 bytes for a centroid

    outputs    squared error of the network's outputs on 2,000 training samples over their variance, in percent

Starts that draw at random are run with three seeds, of which the mean is given. `fisher` weighs the squared error with the
Fisher information of these samples, `inputs` with the second moments of the layers' inputs on them. `attraction` trains the
network for two more epochs with that strength (0: without pulling weights to their centres), clusters it, and tunes the
centroids for two epochs; the columns are accuracies after each.

Then one tensor of 100 million normal weights is clustered to 16 values in a process of its own: processor seconds, and the peak
of the resident memory above what the process had with the tensor in it, in multiples of the tensor's 400 MB.

Found: up to 8 clusters every start ends near the best; from 16 on "linear" does not (13 % more squared error at 16, 3.3 times
as much at 64), and "optimal" costs tenths of a second more. Fisher information is worth 2.4 to 2.8 points of accuracy at 4
clusters, nothing from 8 on, where little is lost anyway. Inputs' moments lower the error of the outputs with 64 codewords,
hardly with 256. Attraction is worth 9 points at 3 clusters before tuning and half a point after it. Codebooks for channels and
codewords do not make the file smaller yet: `bytes` is far from `ideal`.

    python benchmarks/clustering.py [--data-dir FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.graph.constraint import constrained, fold
from featherweight.measuring import environment
from featherweight.nets import lenet_300_100
from featherweight.packaging import save_tensors
from featherweight.quantization import Attraction, cluster_weights, product_quantize
from featherweight.quantization.codebook import Codebook
from featherweight.quantization.kmeans import INITIALISATIONS
from featherweight.training import Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
CLUSTERS = (4, 8, 16, 64, 256)
RANDOM = ("random", "kmeans++")
SEEDS = 3
LARGE = 100_000_000

Row = dict[str, Any]


def squared_error(net: nn.Module, changed: nn.Module) -> float:
    """Over the tensors that have a codebook."""
    pairs = ((net.get_parameter(name), fold(changed).get_parameter(name)) for name in constrained(changed))
    return sum(float((old - new).detach().double().square().sum()) for old, new in pairs)


def bytes_per_weight(changed: nn.Module) -> float:
    """Of the weights, in a file of these alone."""
    weights = {name: w.detach() for name, w in fold(changed).named_parameters() if w.dim() > 1 and name in constrained(changed)}
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(weights, Path(folder) / "weights.fw")
        size = (Path(folder) / "weights.fw").stat().st_size
    return size / sum(weight.numel() for weight in weights.values())


def ideal_bytes(changed: nn.Module, code_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Of the weights, at the entropy of the codes, (books, codes), that a matrix of indices stands for."""
    size, total = 0.0, 0
    for (codebook,) in constrained(changed).values():
        if isinstance(codebook, Codebook) and codebook.index.dim() > 1:
            for codes in code_of(codebook.index.int()):
                counts = torch.bincount(codes.flatten()).double()
                chances = counts[counts > 0] / counts.sum()
                size -= float((counts[counts > 0] * chances.log2()).sum()) / 8
            size += 4 * codebook.clusters
            total += codebook.index.numel()
    return size / total


def measured(net: nn.Module, data: Any, make: Callable[[int], nn.Module], seeds: int = 1) -> tuple[Row, nn.Module]:
    """What comes of one way of clustering, the mean over seeds; and the last network."""
    seconds = squared = accuracy = 0.0
    for seed in range(seeds):
        start = time.process_time()
        changed = make(seed)
        seconds += (time.process_time() - start) / seeds
        squared += squared_error(net, changed) / seeds
        accuracy += evaluate(changed, data.validation) / seeds
    norm = sum(float(net.get_parameter(name).detach().double().square().sum()) for name in constrained(changed))
    error = 100 * (squared / norm) ** 0.5
    return {"seconds": round(seconds, 4), "error": round(error, 3), "accuracy": round(accuracy, 4)}, changed


def starts(net: nn.Module, data: Any, samples: list[Any]) -> list[Row]:
    """Every initialisation, plain and with Fisher information."""
    rows = []
    for clusters in CLUSTERS:
        found = []
        for init, fisher in [*((name, False) for name in INITIALISATIONS), ("linear", True), ("optimal", True)]:
            options = {"clusters": clusters, "init": init, "importance": samples if fisher else None}
            make = partial(_cluster, net, options)
            row, _ = measured(net, data, make, SEEDS if init in RANDOM else 1)
            found.append({"clusters": clusters, "init": init, "fisher": fisher} | row)
        least = next(row["error"] for row in found if row["init"] == "optimal" and not row["fisher"])
        rows += [row | {"excess": round(100 * ((row["error"] / least) ** 2 - 1), 2)} for row in found]
    return rows


def _cluster(net: nn.Module, options: dict[str, Any], seed: int) -> nn.Module:
    return cluster_weights(net, **options, seed=seed)


def sharing(net: nn.Module, data: Any, samples: list[Any]) -> list[Row]:
    """Codebooks for tensors, groups of channels and channels; codewords."""
    ways: list[tuple[str, Callable[[int], nn.Module], Callable[[torch.Tensor], list[torch.Tensor]]]] = []
    for per, channels in (("tensor", 10**9), ("group", 16), ("channel", 1)):
        options = {"clusters": 16, "per": per, "init": "optimal", "min_dim": 2}
        ways.append((f"16 per {per}", partial(_cluster, net, options), partial(_books, channels)))
    for codewords, importance in itertools.product((64, 256), (None, samples)):
        make = partial(_quantize, net, {"codewords": codewords, "block": 4, "importance": importance})
        ways.append((f"{codewords} of 4" + (", inputs" if importance else ""), make, partial(_codes, 4)))
    rows = []
    inputs = torch.cat([inputs for inputs, _ in samples])
    for way, make, code_of in ways:
        row, changed = measured(net, data, make)
        with torch.no_grad():
            right = net(inputs)
            off = float((changed(inputs) - right).square().mean() / right.var())
        sizes = {"bytes": round(bytes_per_weight(changed), 4), "ideal": round(ideal_bytes(changed, code_of), 4)}
        rows.append({"way": way, **row, "outputs": round(100 * off, 2), **sizes})
    return rows


def _quantize(net: nn.Module, options: dict[str, Any], seed: int) -> nn.Module:
    return product_quantize(net, **options, seed=seed)


def _books(channels: int, index: torch.Tensor) -> list[torch.Tensor]:
    """For each codebook the numbers of its centroids."""
    return [part - part.min() for part in index.split(channels)]


def _codes(block: int, index: torch.Tensor) -> list[torch.Tensor]:
    """The number of each sub-vector's codeword, plus one; 0 for zeros."""
    first = index.reshape(-1, block)[:, 0]
    return [(first + block - 1) // block]


def attraction(net: nn.Module, data: Any) -> list[Row]:
    """Two more epochs, with and without the pull; clustered after that, and two epochs of trained centroids after that."""
    rows = []
    tuning = Tuning(epochs=2, learning_rate=1e-3, schedule="constant")
    for clusters, strength in itertools.product((3, 4), (0, 10, 30, 100)):
        model = copy.deepcopy(net)
        pull = Attraction(model, data.train, tuning, clusters=clusters, strength=strength or 1)
        fit(model, data.train, tuning, after_step=pull if strength else None)
        clustered = cluster_weights(model, clusters=clusters, min_dim=2)
        row = {"clusters": clusters, "strength": strength, "error": round(100 * pull.distance(model), 2)}
        row["trained"] = round(evaluate(model, data.validation), 4)
        row["clustered"] = round(evaluate(clustered, data.validation), 4)
        fit(clustered, data.train, Tuning(epochs=2, learning_rate=5e-4))
        row["tuned"] = round(evaluate(clustered, data.validation), 4)
        rows.append(row)
    return rows


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def large(init: str) -> Row:
    """One large tensor, clustered in this process."""
    layer = nn.Linear(10_000, LARGE // 10_000, bias=False)
    layer.weight.data.normal_()
    cluster_weights(nn.Linear(8, 8), clusters=4, init=init)  # what the first call loads
    before = resident()
    start = time.process_time()
    clustered = cluster_weights(layer, clusters=16, init=init)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    error = squared_error(layer, clustered) / LARGE
    row = {"init": init, "seconds": round(seconds, 2), "memory": round(peak / (4 * LARGE), 3)}
    return row | {"mean_squared_error": round(error, 7)}


def show(rows: list[Row]) -> None:
    """One line for each row."""
    print()
    print("  ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>12}" for value in row.values()))


def main() -> None:
    """Trains, clusters, prints tables, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--large", choices=list(INITIALISATIONS), help="only the large tensor, as a line of JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.large:
        print(json.dumps(large(options.large)))
        return
    result: dict[str, Any] = {"large": []}
    for init in ("linear", "density", "optimal"):
        command = [sys.executable, __file__, "--large", init]
        result["large"].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    show(result["large"])
    data = load_data("mnist", data_dir=options.data_dir)
    net = lenet_300_100(input_shape=data.input_shape, classes=data.classes)
    fit(net, data.train, Tuning(epochs=2))
    result["accuracy"] = round(evaluate(net, data.validation), 4)
    print(f"\nvalidation accuracy before clustering: {100 * result['accuracy']:.2f} %")
    inputs, targets = (torch.cat(parts)[:2000] for parts in zip(*itertools.islice(data.train, 40), strict=True))
    samples = list(zip(inputs.split(100), targets.split(100), strict=True))
    for name, rows in (
        ("starts", lambda: starts(net, data, samples)),
        ("sharing", lambda: sharing(net, data, samples)),
        ("attraction", lambda: attraction(net, data)),
    ):
        result[name] = rows()
        show(result[name])
    RESULT.write_text(json.dumps(result | {"versions": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
