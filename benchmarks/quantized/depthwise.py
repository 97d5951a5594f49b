"""What int8 weights and activations cost networks with depthwise convolutions, and what wins it back, on Fashion-MNIST.

    PYTHONPATH=. python benchmarks/quantized/depthwise.py [--data-dir FOLDER] [--net NAME …] [--seed 0 1 2]

Networks of the zoo at an eighth to a quarter of their width are trained for three epochs on 7,680 training images, with
batch norms that average over some ten batches (MobileNetV3's hundred would still remember the first weights). Then
comes `quantize_uniform`, 8 bits for weights and activations, symmetric grids for weights, 1,024 images to calibrate on:

    per tensor     a step for each weight tensor
    per channel    a step for each output channel
    equalised      the same after `equalize_layers`, so that channels that are convolved alone have like ranges
    corrected      equalised, and biases make up for the shift of the means
    qat            the best of the three before, tuned: 40 batches of the same training images by `tune_quantized` (LSQ)
    chosen         the first of per channel, equalised, corrected that is at most 0.25 points below the float network; else qat

Choices look at 3,000 validation images; the test images are looked at once, in each way. `qat` trains 40 steps more than the
float network did: "float, tuned" is what these steps do to the float network. Points are percentage points of top-1 accuracy.
Finished cells of the table are kept.

Found, with one seed: int8 hardly costs these networks anything. A step for each tensor loses 0.1 to 0.3 points, a step for each
channel nothing; equalisation, correction and training have nothing to win back, and the fallback to training is never needed.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from featherweight.measuring import environment
from featherweight.nets import NETS
from featherweight.quantization.aware import tune_quantized
from featherweight.quantization.uniform import UniformOptions, quantize_uniform
from featherweight.training import Data, TensorLoader, Tuning, evaluate, fit, load_data

RESULTS = Path(__file__).with_name("depthwise.json")
TABLE = Path(__file__).with_name("depthwise.md")
WIDTHS = {"mobilenet-v2": 0.125, "mobilenet-v3-small": 0.25, "shufflenet-v2": 0.25}
TRAINED, EPOCHS, CALIBRATED, TUNED, JUDGED = 60, 3, 8, 40, 3000  # batches of 128, and images
NEAR = 0.0025
AGAIN = Tuning(epochs=1, learning_rate=2e-4)
WAYS = {
    "per tensor": UniformOptions(per="tensor"),
    "per channel": UniformOptions(),
    "equalised": UniformOptions(equalize=True),
    "corrected": UniformOptions(equalize=True, correct_bias=True),
}


def loaders(data: Data) -> tuple[TensorLoader, TensorLoader, TensorLoader]:
    """Images to train on, to tune on, and to choose by; all in memory."""
    torch.manual_seed(0)
    inputs, targets = (torch.cat(parts) for parts in zip(*islice(data.train, TRAINED), strict=True))
    trained = TensorLoader(inputs, targets, batch_size=128, shuffle=True)
    tuned = TensorLoader(inputs[: 128 * TUNED], targets[: 128 * TUNED], batch_size=128, shuffle=True)
    inputs, targets = (torch.cat(parts)[:JUDGED] for parts in zip(*data.validation, strict=True))
    return trained, tuned, TensorLoader(inputs, targets, batch_size=500)


def variants(net: nn.Module, data: Data, tuned: TensorLoader, judge: Callable[[nn.Module], float]) -> dict[str, nn.Module]:
    """The quantized networks, and the chosen one."""
    calibrate = list(islice(tuned, CALIBRATED))
    quantize = partial(quantize_uniform, net, data.example, weight_bits=8, activation_bits=8, calibrate=calibrate)
    found: dict[str, nn.Module] = {way: quantize(options=options) for way, options in WAYS.items()}
    accuracy = {way: judge(found[way]) for way in WAYS if way != "per tensor"}
    best = max(accuracy, key=lambda way: accuracy[way])
    found["qat"] = tune_quantized(found[best], tuned, AGAIN)
    near = [way for way in accuracy if accuracy[way] >= judge(net) - NEAR]
    return found | {"chosen": found[near[0] if near else "qat"]}


def measure(name: str, data: Data, seed: int) -> dict[str, Any]:
    """Trains one network, quantizes it in every way, and looks at the test images."""
    trained, tuned, judged = loaders(data)
    torch.manual_seed(seed)
    net = NETS[name](input_shape=data.input_shape, classes=data.classes, width=WIDTHS[name])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    start = time.process_time()
    fit(net, trained, Tuning(epochs=EPOCHS, learning_rate=3e-3), seed=seed)
    found = variants(net.eval(), data, tuned, partial(evaluate, loader=judged))
    test = {way: evaluate(each, data.test) for way, each in found.items() if way != "chosen"}
    chosen = next(way for way in test if found[way] is found["chosen"])
    again = copy.deepcopy(net)
    fit(again, tuned, AGAIN)
    row: dict[str, Any] = {"net": name, "seed": seed, "parameters": sum(p.numel() for p in net.parameters())}
    row |= (
        {"float": evaluate(net, data.test), "float, tuned": evaluate(again, data.test)}
        | test
        | {"chosen": test[chosen], "choice": chosen}
    )
    return row | {"seconds": round(time.process_time() - start, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy of the floats, and how far from it each way ends, the mean over seeds; which was chosen."""
    ways = ["float, tuned", *WAYS, "qat", "chosen"]
    lines = ["# Int8 for networks with depthwise convolutions", ""]
    lines += [
        "Test accuracy on Fashion-MNIST as floats in %, and what is lost (-) or won in 8 bits, in percentage points; mean ±"
    ]
    lines += ["standard deviation over seeds. What the columns are is said in `depthwise.py`, which wrote this page.", ""]
    lines += ["| | parameters | seeds | float | " + " | ".join(ways) + " | choices |", "|---|" + "---|" * (len(ways) + 4)]
    for net in dict.fromkeys(row["net"] for row in rows):
        own = [row for row in rows if row["net"] == net]
        cells = [f"{net} × {WIDTHS[net]}", f"{own[0]['parameters']:,}", ", ".join(str(row["seed"]) for row in own)]
        cells += [spread([100 * row["float"] for row in own], "")]
        cells += [spread([100 * (row[way] - row["float"]) for row in own], "+") for way in ways]
        lines.append("| " + " | ".join([*cells, ", ".join(row["choice"] for row in own)]) + " |")
    worst = min(100 * (row["chosen"] - row["float"]) for row in rows)
    lines += [
        "",
        f"What is chosen on validation images ends at worst {worst:+.2f} points from its float network on test images.",
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float], sign: str) -> str:
    """The mean, and the standard deviation of several."""
    return f"{mean(values):{sign}.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Measures what is not in the results yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--net", choices=WIDTHS, nargs="+", default=list(WIDTHS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", data_dir=given.data_dir)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for seed, name in product(given.seed, given.net):
        if (name, seed) not in {(row["net"], row["seed"]) for row in rows}:
            rows = sorted([*rows, measure(name, data, seed)], key=lambda row: (list(WIDTHS).index(row["net"]), row["seed"]))
            RESULTS.write_text(json.dumps({"rows": rows, "versions": environment()}, indent=2) + "\n")
            print(table(rows), flush=True)
    TABLE.write_text(table(rows))


if __name__ == "__main__":
    main()
