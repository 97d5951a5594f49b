"""Do layers need the same width? A slimmable network at one width everywhere, against a width for each layer, at no more MACs.

The network of `widths.py` learns Fashion-MNIST at widths from a quarter up, all sharing batch norms: once with the same width
everywhere in each step ("uniform"), once with a width for each layer ("layers"). For the MACs of half and three quarters of the
width `find_shape` then looks for a shape, by the loss on 1024 validation images; batch norms find their statistics on 2048
training images, for the uniform width and the shape alike. Accuracies are of the test set, of which no choice was made.

Found with one seed: trained at widths of their own, shapes are as good as the same width everywhere (82.71 against 82.91 % and
84.68 against 84.54 %) with 7 to 8 % fewer MACs; trained at the same width everywhere they lose (82.24 against 83.13 % at half).
The differences are of the size that seeds make.

    python benchmarks/dynamic/shapes.py [--data-dir FOLDER] [--samples 8000] [--epochs 4] [--seeds 1]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from widths import WIDTHS, network, subset

from featherweight.dynamic import Sandwich, find_shape, make_slimmable, recalibrate, tune_widths
from featherweight.measuring import environment
from featherweight.training import TensorLoader, Tuning, evaluate, load_data

RESULT = Path(__file__).with_suffix(".json")


def compare(data: Any, samples: int, tuning: Tuning, seed: int, uniform: bool) -> dict[str, Any]:
    """Trains one network, and looks for shapes of it."""
    loader = subset(data.train, samples)
    torch.manual_seed(seed)
    net = make_slimmable(network(), data.example, widths=WIDTHS, switchable=False)
    tune_widths(net, loader, tuning, seed=seed, sandwich=Sandwich(uniform=uniform))
    seen = TensorLoader(loader.inputs[:2048], loader.targets[:2048], batch_size=256)
    chosen_on = TensorLoader(data.validation.inputs[:1024], data.validation.targets[:1024], batch_size=512)
    recalibrate(net, seen)
    found = {}
    for width in (0.5, 0.75):
        name = f"shape_{round(100 * width)}"
        net.add(name, find_shape(net, chosen_on, macs=net.cost(width).macs))
        recalibrate(net, seen, choices=[name])
        found[str(width)] = {
            "shapes": [net.shape(width), net.shape(name)],
            "macs": [net.cost(width).macs, net.cost(name).macs],
            "accuracy_percent": [round(100 * evaluate(net.at_width(choice), data.test), 2) for choice in (width, name)],
        }
    return found


def main() -> None:
    """Trains, compares, prints, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", data_dir=options.data_dir, batch_size=500)
    tuning = Tuning(epochs=options.epochs, learning_rate=3e-3)
    result: dict[str, Any] = {"samples": options.samples, "epochs": options.epochs, "environment": environment(), "runs": []}
    for seed in range(options.seeds):
        for trained in ("layers", "uniform"):
            found = compare(data, options.samples, tuning, seed, uniform=trained == "uniform")
            result["runs"].append({"seed": seed, "trained": trained, **found})
            print(json.dumps(result["runs"][-1]), flush=True)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
