"""What rounding, training and mixed precision give at few bits, after a minute of training on Fashion-MNIST.

LeNet-5 and a small network with depthwise convolutions are trained; then all their weights are quantized, first and last layer
included, with symmetric grids, a step for each output channel, ranges of least squared error:

    nearest    each weight to the nearest value of its grid
    equalised  the same after `equalize_layers`, and biases make up for the shift of the means
    gptq       `round_feeding_forward`, on 1,024 training images
    adaround   `round_learned`, on the same
    qat        `tune_quantized` from "nearest": 80 batches of 128 training images
    qat, lsq   the same, but steps start at 2 · mean|w| / √high, as LSQ's do
    qat, fit   the same as "qat", but by `fit` alone, which trains the steps as they are
    mixed      `allocate_bits` with so many bits on average, then "gptq"

Accuracy is on the test images, at which no choice looks. Biases and norms stay floats. Seconds are of one thread's processor
time, training of the float network aside. Fashion-MNIST is looked for as `training.load_data` says.

Found: at 4 bits GPTQ and AdaRound lose nothing on LeNet-5, and 0.6 and 0.3 points on the depthwise network (one seed), where
nearest loses 1.6. From 3 bits on it is training that counts there: 0.8 points lost, GPTQ 3.2, AdaRound 4.4, nearest 7.7; at 2
bits training alone leaves a network that works (5 lost; the others 37 and more). Equalisation wins 4 points at 3 bits and loses
1.4 at 4. Mixed bits win 0.4 over GPTQ at 4 and lose 3.8 at 3.

    python benchmarks/rounding.py [--data-dir FOLDER] [--net lenet5 depthwise] [--seed 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from featherweight.graph.constraint import constrained, duplicate, fold
from featherweight.graph.program import tensor_called
from featherweight.measuring import environment
from featherweight.nets import lenet5
from featherweight.quantization.aware import tune_quantized
from featherweight.quantization.grid import Grid
from featherweight.quantization.mixed import allocate_bits
from featherweight.quantization.uniform import UniformOptions, quantize_uniform
from featherweight.training import Data, TensorLoader, Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
TABLE = Path(__file__).with_suffix(".md")
BITS = (8, 4, 3, 2)
METHODS = ("nearest", "equalised", "gptq", "adaround", "qat", "qat, lsq", "qat, fit", "mixed")
ONLY = {"adaround": (4, 3, 2), "qat, lsq": (2,), "qat, fit": (2,), "mixed": (4, 3)}
"""Methods that are not tried at all bits, because it takes long and nothing is lost there to be won back."""
BATCHES = 80
TUNING = Tuning(learning_rate=1e-3)


def depthwise_net() -> nn.Module:
    """A 3x3 convolution and four depthwise separable ones: 13,962 parameters."""

    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        return [depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), pointwise, nn.BatchNorm2d(outputs), nn.ReLU()]

    first = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    body = [*separable(16, 32, 1), *separable(32, 64, 2), *separable(64, 64, 1), *separable(64, 64, 1)]
    return nn.Sequential(*first, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {"lenet5": (lenet5, 1), "depthwise": (depthwise_net, 2)}
"""Networks, and for how many epochs each is trained."""


def from_lsq(quantized: nn.Module) -> nn.Module:
    """The network with its grids' steps where LSQ starts."""
    moved = duplicate(quantized)
    for name, (grid,) in constrained(moved).items():
        original = moved.get_parameter(name.removesuffix("weight") + "parametrizations.weight.original")
        average = original.detach().abs().flatten(1).mean(dim=1).reshape(grid.step.shape)
        grid.step.data.copy_(2 * average / grid.high.sqrt())
    return moved


def by_fit(quantized: nn.Module, loader: Any, seed: int) -> nn.Module:
    """The network trained by `fit` and nothing else."""
    trained = duplicate(quantized)
    fit(trained, loader, TUNING, seed=seed)
    return trained


def methods(net: nn.Module, data: Data, seed: int) -> dict[str, Callable[[Any], nn.Module]]:
    """What is compared: functions of the bits."""
    few = list(islice(data.train, 8))
    some = TensorLoader(*(torch.cat(each) for each in zip(*islice(data.train, BATCHES), strict=True)), shuffle=True)

    def rounded(bits: Any, rounding: str, equalize: bool = False) -> nn.Module:
        options = UniformOptions(rounding=rounding, equalize=equalize, correct_bias=equalize)
        return quantize_uniform(net, data.example, weight_bits=bits, calibrate=few, options=options)

    return {
        "nearest": lambda bits: rounded(bits, "nearest"),
        "equalised": lambda bits: rounded(bits, "nearest", equalize=True),
        "gptq": lambda bits: rounded(bits, "gptq"),
        "adaround": lambda bits: rounded(bits, "adaround"),
        "qat": lambda bits: tune_quantized(rounded(bits, "nearest"), some, TUNING, seed=seed),
        "qat, lsq": lambda bits: tune_quantized(from_lsq(rounded(bits, "nearest")), some, TUNING, seed=seed),
        "qat, fit": lambda bits: by_fit(rounded(bits, "nearest"), some, seed),
        "mixed": lambda bits: rounded(allocate_bits(net, data.example, few, mean_bits=bits), "gptq"),
    }


def mean_bits(net: nn.Module) -> float:
    """Bits of a weight, on average, that the grids have."""
    sizes = {name: tensor_called(net, name).numel() for name in constrained(net)}
    grids = {name: grid for name, (grid,) in constrained(net).items() if isinstance(grid, Grid)}
    bits = {name: (int(grid.high.max()) - int(grid.low.min()) + 1).bit_length() - 1 for name, grid in grids.items()}
    return sum(sizes[name] * bits[name] for name in bits) / sum(sizes.values())


def measure(name: str, data: Data, seed: int, known: set[str]) -> list[dict[str, Any]]:
    """Trains one network, and quantizes it in every way that is not known."""
    torch.manual_seed(seed)
    make, epochs = NETS[name]
    net = make()
    fit(net, data.train, Tuning(epochs=epochs, learning_rate=2e-3), seed=seed)
    row = {"net": name, "seed": seed, "method": "float", "bits": 32, "mean_bits": 32.0, "seconds": 0.0}
    rows = [] if "float" in known else [row | {"accuracy": evaluate(net, data.test)}]
    for method, quantize in methods(net.eval(), data, seed).items():
        for bits in () if method in known else ONLY.get(method, BITS):
            start = time.process_time()
            quantized = quantize(bits)
            seconds = time.process_time() - start
            row = {"net": name, "seed": seed, "method": method, "bits": bits, "mean_bits": round(mean_bits(quantized), 3)}
            rows.append(row | {"seconds": round(seconds, 2), "accuracy": evaluate(fold(quantized), data.test)})
            print(rows[-1], flush=True)
    return rows


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation of several; nothing of none."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else "".join(f"{value:.2f}" for value in values)


def table(rows: list[dict[str, Any]]) -> str:
    """The mean over seeds and its standard deviation, as a table for each network."""
    lines = ["# Rounding, training and mixed precision at few bits", "", "Test accuracy in % on Fashion-MNIST, mean ± standard"]
    lines[-1] += " deviation over seeds, and processor seconds; what the rows are is said in `rounding.py`."
    for net in dict.fromkeys(row["net"] for row in rows):
        own = [row for row in rows if row["net"] == net]
        floats = {row["seed"]: 100 * row["accuracy"] for row in own if row["method"] == "float"}
        seeds = ", ".join(map(str, floats))
        lines += ["", f"## {net}: {mean(floats.values()):.2f} as floats; seeds {seeds}", ""]
        lines += ["| | " + " | ".join(f"{bits} bits" for bits in BITS) + " | seconds |", "|---|" + "---|" * 5]
        for method in [method for method in METHODS if any(row["method"] == method for row in own)]:
            found = {b: [100 * r["accuracy"] for r in own if (r["method"], r["bits"]) == (method, b)] for b in BITS}
            seconds = mean(r["seconds"] for r in own if r["method"] == method)
            lines.append(f"| {method} | " + " | ".join(map(spread, found.values())) + f" | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


def record(rows: list[dict[str, Any]]) -> str:
    """Writes all rows in their order; the table of them."""
    rows = sorted(rows, key=lambda row: (list(NETS).index(row["net"]), row["seed"]))
    tuning = {"batches": BATCHES, "learning_rate": TUNING.learning_rate}
    RESULT.write_text(json.dumps({"tuning": tuning, "rows": rows, "versions": environment()}, indent=2) + "\n")
    TABLE.write_text(table(rows))
    return table(rows)


def main() -> None:
    """Measures what is missing, writes what it has after each network and seed beside this script, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--net", choices=NETS, nargs="+", default=list(NETS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", data_dir=given.data_dir)
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for seed, name in product(given.seed, given.net):
        known = {row["method"] for row in rows if (row["net"], row["seed"]) == (name, seed)}
        if missing := {"float", *METHODS} - known:
            print(name, seed, "without", sorted(missing), flush=True)
            rows += measure(name, data, seed, known)
            print(record(rows), flush=True)


if __name__ == "__main__":
    main()
