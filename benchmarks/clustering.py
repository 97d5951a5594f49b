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

Files: LeNet-5 after an epoch, and a ResNet-18 of random weights, each clustered in each channel, in groups of 16, and made of
codewords; bits of a weight of their layers of two and more axes, biases aside:

    others     in a file without the coder of codewords (SPEC.md, section 6.10)
    file       in the file as it is
    ideal      as above; 32 bits for each number of a codebook
    pack       million weights packed in a second of processor time, the choice among all coders included; unpack likewise

Then one tensor of 100 million normal weights is clustered to 16 values in a process of its own: processor seconds, and the peak
of the resident memory above what the process had with the tensor in it, in multiples of the tensor's 400 MB.

Found: up to 8 clusters every start ends near the best; from 16 on "linear" does not (13 % more squared error at 16, 3.3 times
as much at 64), and "optimal" costs tenths of a second more. Fisher information is worth 2.4 to 2.8 points of accuracy at 4
clusters, nothing from 8 on, where little is lost anyway. Inputs' moments lower the error of the outputs with 64 codewords (11
to 8 %), with 256 by a third in this run and hardly in one before. Attraction is worth 9 points at 3 clusters before tuning and
half a point after it. Codebooks of channels, groups and sub-vectors take no more than the entropy of their indices and 32 bits
for each number in them (0.3 % more at worst, mostly less, for centroids are coded too): LeNet-5 with 2, 4, 8, 16 values in each
channel 1.07, 2.11, 3.14, 4.21 bits of a weight, where other coders take 23 to 26; a ResNet-18 of 256 kernels in each layer 1.05
bits instead of 26.5.

    python benchmarks/clustering.py [--data-dir FOLDER] [--sections large starts sharing attraction files]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.zoo import build
from featherweight.graph.constraint import constrained, fold
from featherweight.measuring import environment
from featherweight.nets import lenet5, lenet_300_100
from featherweight.packaging import decode, encode
from featherweight.packaging.coders import CODERS
from featherweight.packaging.survey import Survey
from featherweight.packaging.tensors import bits_of
from featherweight.quantization import Attraction, cluster_weights, product_quantize
from featherweight.quantization.codebook import Codebook
from featherweight.quantization.kmeans import INITIALISATIONS
from featherweight.training import Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
CLUSTERS = (4, 8, 16, 64, 256)
RANDOM = ("random", "kmeans++")
SEEDS = 3
LARGE = 100_000_000
SECTIONS = ("large", "starts", "sharing", "attraction", "files")

Row = dict[str, Any]


def squared_error(net: nn.Module, changed: nn.Module) -> float:
    """Over the tensors that have a codebook."""
    pairs = ((net.get_parameter(name), fold(changed).get_parameter(name)) for name in constrained(changed))
    return sum(float((old - new).detach().double().square().sum()) for old, new in pairs)


def weights_of(changed: nn.Module) -> dict[str, torch.Tensor]:
    """Those with a codebook and two axes or more."""
    return {name: w.detach() for name, w in fold(changed).named_parameters() if w.dim() > 1 and name in constrained(changed)}


def bytes_per_weight(changed: nn.Module) -> float:
    """Of the weights, in a file of these alone."""
    weights = weights_of(changed)
    return len(encode(weights)) / sum(weight.numel() for weight in weights.values())


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


def _codes(block: int | None, index: torch.Tensor) -> list[torch.Tensor]:
    """The number of each sub-vector's codeword, plus one; 0 for zeros. None: whole kernels, or 4 where they have one entry."""
    block = block or (kernel if (kernel := index[0, 0].numel()) > 1 else 4)
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


def files(data: Any) -> list[Row]:
    """What codebooks take in files, with and without the coder that looks for them."""
    torch.manual_seed(0)
    lenet = lenet5(input_shape=data.input_shape, classes=data.classes)
    fit(lenet, data.train, Tuning(epochs=1))
    rows = []
    for name, net, counts in (("LeNet-5", lenet, (2, 4, 8, 16)), ("ResNet-18", build("torchvision", "resnet18"), (4, 16))):
        for per, channels, clusters in (*(("channel", 1, count) for count in counts), ("group", 16, 16)):
            changed = cluster_weights(net, clusters=clusters, per=per, min_dim=2)
            rows.append({"net": name, "way": f"{clusters} per {per}"} | file_row(changed, partial(_books, channels)))
        for codewords in (64, 256):
            changed = product_quantize(net, codewords=codewords, iterations=2)
            rows.append({"net": name, "way": f"{codewords} kernels"} | file_row(changed, partial(_codes, None)))
    return rows


def file_row(changed: nn.Module, code_of: Callable[[torch.Tensor], list[torch.Tensor]]) -> Row:
    """Bits of a weight, and speed."""
    weights = weights_of(changed)
    total = sum(weight.numel() for weight in weights.values())
    start = time.process_time()
    packed = encode(weights)
    seconds = [time.process_time() - start]
    unpacked = decode(packed)
    seconds.append(time.process_time() - start - seconds[0])
    if not all(torch.equal(weight, unpacked[name]) for name, weight in weights.items()):
        raise RuntimeError("the file does not give back what was put in")
    others = 0
    for weight in weights.values():
        survey = Survey(bits_of(weight), len(weight))
        others += min(
            size for name, coder in CODERS.items() if name != "codebook_ans" and (size := coder.size(survey)) is not None
        )
    sizes = {"others": 8 * others / total, "file": 8 * len(packed) / total, "ideal": 8 * ideal_bytes(changed, code_of)}
    speeds = {"pack": total / seconds[0] / 1e6, "unpack": total / seconds[1] / 1e6}
    return {name: round(value, 3) for name, value in (sizes | speeds).items()}


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
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--large", choices=list(INITIALISATIONS), help="only the large tensor, as a line of JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.large:
        print(json.dumps(large(options.large)))
        return
    data = load_data("mnist", data_dir=options.data_dir)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if "large" in options.sections:
        result["large"] = [json.loads(_run("--large", init)) for init in ("linear", "density", "optimal")]
    if "files" in options.sections:
        result["files"] = files(data)
    if {"starts", "sharing", "attraction"} & {*options.sections}:
        net = lenet_300_100(input_shape=data.input_shape, classes=data.classes)
        fit(net, data.train, Tuning(epochs=2))
        accuracy = round(evaluate(net, data.validation), 4)
        print(f"\nvalidation accuracy before clustering: {100 * accuracy:.2f} %")
        inputs, targets = (torch.cat(parts)[:2000] for parts in zip(*itertools.islice(data.train, 40), strict=True))
        samples = list(zip(inputs.split(100), targets.split(100), strict=True))
        sections: dict[str, Callable[[], list[Row]]] = {
            "starts": lambda: starts(net, data, samples),
            "sharing": lambda: sharing(net, data, samples),
            "attraction": lambda: attraction(net, data),
        }
        for name in [name for name in sections if name in options.sections]:
            result[name] = sections[name]()
            result.setdefault("accuracy", {})[name] = accuracy
    for name in options.sections:
        show(result[name])
    RESULT.write_text(json.dumps(result | {"versions": environment()}, indent=2) + "\n")


def _run(*arguments: str) -> str:
    """What this script prints in a process of its own."""
    return subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
