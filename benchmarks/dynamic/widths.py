"""What does a slimmable network cost in accuracy, and what does each width save on the clock?

A convolutional network of four layers with batch norms learns Fashion-MNIST, from random weights, at four widths:

    alone       each width is a network of its own, trained by itself
    switchable  one slimmable network, each width with batch norms of its own
    shared      one slimmable network, all widths with the same batch norms and their running statistics
    universal   the same weights as `shared`, each width with statistics found anew: affine parameters still shared

All see the same samples, as often, in the same order; a step of the slimmable ones runs all four widths, or the lightest, the
full, and two between. Accuracies are of the test set, of which no choice was made. Times are medians of PyTorch on one thread,
all in turns; `over static` is the full width against the plain network that it was made from, in turns as well.

Found with one seed, in so short a training: switchable widths are 0.7 to 1.0 points below networks of their own; shared batch
norms collapse at narrow widths (35 % at a quarter), and come back when statistics are found anew. At batch 64 the quarter takes
a third of the full time; at batch 1 so small a network is all overhead, which `over static` shows. These times are from before
programs ran lean: `overhead.py` has later ones. Widths for single layers: `shapes.py`.

    python benchmarks/dynamic/widths.py [--data-dir FOLDER] [--samples 12000] [--epochs 4] [--seeds 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.sandwich import recalibrate, tune_widths
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable
from featherweight.measuring import environment
from featherweight.measuring.latency import time_in_turns
from featherweight.training import TensorLoader, Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
WIDTHS = (0.25, 0.5, 0.75, 1.0)


def network() -> nn.Module:
    """Four convolutions, 1.8 million MACs."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def subset(loader: TensorLoader, count: int) -> TensorLoader:
    """The first samples of a loader, in batches of 64."""
    return TensorLoader(loader.inputs[:count], loader.targets[:count], batch_size=64, shuffle=True)


def accuracies(net: SlimmableNetwork, test: Any) -> list[float]:
    """Of each width, in percent."""
    return [round(100 * evaluate(net.at_width(width), test), 2) for width in WIDTHS]


def train(data: Any, samples: int, tuning: Tuning, seed: int) -> tuple[dict[str, list[float]], SlimmableNetwork]:
    """All four ways with one seed: accuracies by width, and the universal network."""
    loader, example = subset(data.train, samples), data.example
    torch.manual_seed(seed)
    start = network()
    found: dict[str, list[float]] = {"alone": []}
    for width in WIDTHS:
        alone = make_slimmable(start, example, widths=(width,)).extract(width)
        fit(alone, loader, tuning, seed=seed)
        found["alone"].append(round(100 * evaluate(alone, data.test), 2))
    switchable = make_slimmable(start, example, widths=WIDTHS)
    tune_widths(switchable, loader, tuning, seed=seed)
    found["switchable"] = accuracies(switchable, data.test)
    shared = make_slimmable(start, example, widths=WIDTHS, switchable=False)
    tune_widths(shared, loader, tuning, seed=seed)
    found["shared"] = accuracies(shared, data.test)
    statistics_from = TensorLoader(loader.inputs[:2048], loader.targets[:2048], batch_size=256)
    recalibrate(shared, statistics_from)
    found["universal"] = accuracies(shared, data.test)
    return found, shared


def times(net: SlimmableNetwork, example: torch.Tensor, seconds: float = 1.0) -> dict[str, Any]:
    """Milliseconds of each width at batch 1 and 64, and of the full one over the plain network."""
    plain = network().eval()
    twin = make_slimmable(plain, example, widths=WIDTHS).eval()
    found: dict[str, Any] = {}
    for batch in (1, 64):
        inputs = example[:1].repeat(batch, 1, 1, 1)
        twin.time(inputs, batch=batch, seconds=seconds)
        found[f"batch_{batch}_ms"] = [round(1e3 * (twin.cost(width).seconds or 0), 3) for width in WIDTHS]
        with torch.no_grad():
            both = time_in_turns([lambda x=inputs: plain(x), lambda x=inputs: twin(x)], seconds)  # type: ignore[misc]
        before, after = map(statistics.median, both)
        found[f"batch_{batch}_over_static"] = round(after / before, 3)
    found["macs"] = [net.cost(width).macs for width in WIDTHS]
    return found


def main() -> None:
    """Trains, measures, prints a table, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", data_dir=options.data_dir, batch_size=500)
    tuning = Tuning(epochs=options.epochs, learning_rate=3e-3)
    runs = []
    for seed in range(options.seeds):
        found, net = train(data, options.samples, tuning, seed)
        runs.append(found)
        for name, values in found.items():
            print(f"seed {seed}  {name:10} " + " ".join(f"{value:7.2f}" for value in values), flush=True)
    clock = times(net, data.example)
    print(json.dumps(clock), flush=True)
    settings = {"samples": options.samples, "tuning": {"epochs": tuning.epochs, "learning_rate": tuning.learning_rate}}
    result = {
        "widths": WIDTHS,
        "accuracy_percent": runs,
        "times": clock,
        **settings,
        "versions": environment(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
