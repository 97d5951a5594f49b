"""Reproduces the MNIST rows of Deep Compression (Han, Mao and Dally, ICLR 2016, table 1), down to the files.

For each net and seed: train, compress by the recipe beside this script, measure on the test set once. Writes one JSON per run
to `results/`; the file of the seed with the best validation accuracy is kept as `<net>.fw`. `report.py` makes the table and the
picture.

    python experiments/deep_compression/reproduce.py lenet5 --data-dir DIR --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import featherweight
from featherweight.nets import NETS
from featherweight.search.budget import Budget
from featherweight.search.recipe import Recipe
from featherweight.training import TensorLoader, load_data
from featherweight.training.data import Data

HERE = Path(__file__).parent
SHIFT = 1
"""Training images are shifted by up to this many pixels each way (the paper does not say that it did)."""


def shift(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by its own random offset of up to SHIFT pixels each way, the border filled with background."""
    count, _, height, width = images.shape
    background = float(images.min())
    padded = torch.nn.functional.pad(images, [SHIFT] * 4, value=background)
    offsets = torch.randint(0, 2 * SHIFT + 1, (2, count, 1))
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def with_shifts(data: Data) -> Data:
    """The data with shifted training images."""
    train = data.train
    if not isinstance(train, TensorLoader):
        raise SystemExit("this experiment needs MNIST in memory")
    return replace(data, train=TensorLoader(train.inputs, train.targets, train.batch_size, shuffle=True, augment=shift))


def run(net: str, seed: int, data: Data, *, shifts: bool, quiet: bool) -> None:
    """One network from scratch to file."""
    recipe = Recipe.load(HERE / f"{net}.toml")
    torch.manual_seed(seed)
    started = time.monotonic()

    def progress(task: str, done: int, total: int, note: str = "") -> None:
        if done == total and not quiet:
            print(f"{time.monotonic() - started:7.0f} s  {task}: {note}", file=sys.stderr, flush=True)

    name = f"{net}-seed{seed}" if shifts else f"{net}-plain-seed{seed}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{name}.fw"
        featherweight.compress(
            NETS[net](input_shape=data.input_shape, classes=data.classes),
            with_shifts(data) if shifts else data,
            budget=Budget(accuracy_drop=BUDGET[net] if shifts else PLAIN_BUDGET),
            recipe=replace(recipe, seed=seed),
            out=out,
            progress=progress,
        )
        report = json.loads(out.with_suffix(".report.json").read_text()) | {"net": net, "shifts": shifts}
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        (results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        shutil.copy(out, results / f"{name}.fw")
    keep_best(net)


BUDGET = {"lenet-300-100": 0.6, "lenet5": 0.1}
"""Percentage points of validation accuracy that compression may cost."""

PLAIN_BUDGET = 0.3
"""The same for the control."""


def keep_best(net: str) -> None:
    """Copies the file with the best validation accuracy beside this script; the smaller of equals."""

    def quality(path: Path) -> tuple[float, int]:
        report = json.loads(path.read_text())
        kept = [step for step in report["steps"] if step["accepted"]]
        return -kept[-1]["validation_accuracy"], report["after"]["size_bytes"]

    best = min((HERE / "results").glob(f"{net}-seed*.json"), key=quality, default=None)
    if best is not None:
        shutil.copy(best.with_suffix(".fw"), HERE / f"{net}.fw")


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="+", choices=sorted(BUDGET))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plain", action="store_true", help="train on the images as they are: the control")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist", data_dir=options.data_dir)
    for net in options.nets:
        for seed in options.seeds:
            run(net, seed, data, shifts=not options.plain, quiet=options.quiet)


if __name__ == "__main__":
    main()
