"""What do gates on residual branches save on Fashion-MNIST, on the clock, and what do they cost in accuracy?

A residual network (a convolution of stride 2, then nine blocks of 16, 32 and 64 channels; 9 million MACs) is trained, and then
for six more epochs

    plain         as it is
    gates         with a gate in front of each branch (SkipNet): four epochs with straight-through gates and a cost of MACs of
                  0.2, then two of policy gradients, the network learning, too
    frugal gates  the same with a cost of 1
    policy        with a policy network on the input (BlockDrop): four epochs of policy gradients on the frozen network, the
                  last branch first, then two in which it learns, too

Prices are calibrated on the validation images; reported is the cheapest that loses at most 0.2 points against the plain network
there, or, where there is none, the best; the test images are looked at once. Times are of test images in batches of 1 and 64,
in PyTorch on one thread, all in turns batch by batch: means of a sample's processor time. "off" is a price of -∞, where gates
are not asked; "all yes" runs the gates and every branch; "captured" is the plain network as featherweight runs it. The result
of each is kept, and a network that is not asked for is not trained.

Found with one seed, in so short a training, with the gates of the first kind and the policy: gates keep the plain network's
accuracy on test images (85.7 %) and leave out 8 % of the MACs, which the clock shows at batch 1 only against gates that all say
yes; at batch 64 it costs as much to take samples apart and put them together. The policy leaves out the last branch, for nearly
all images alike, and loses 0.7 points. With everything on, gates that are not asked cost nothing; nine that are asked and say
yes a fifth of so small a network's time at batch 1.

    python benchmarks/dynamic/skips.py [--data-dir FOLDER] [--net gates …] [--samples 6000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.dynamic import (
    Reinforcement,
    SkipNetwork,
    add_gates,
    add_policy,
    calibrate_effort,
    cool,
    reinforce,
    skip_loss,
)
from featherweight.graph.capture import to_module
from featherweight.graph.constraint import duplicate
from featherweight.measuring import environment
from featherweight.nets.layers import classifier, conv_norm
from featherweight.training import Data, TensorLoader, Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
MOST_LOST = 0.002
SAMPLES = {1: 400, 64: 2560}
"""How many test images are timed, by the size of the batches."""
PENALTY = 2.0


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride=stride)
        self.second = conv_norm(outputs, outputs, 3, activation=None)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else conv_norm(inputs, outputs, stride=stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.first(features)) + self.shortcut(features))  # type: ignore[no-any-return]


def residual() -> nn.Module:
    """See the module's docstring."""
    stages = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    blocks = [block for i, o, stride in stages for block in (Block(i, o, stride), Block(o, o, 1), Block(o, o, 1))]
    return nn.Sequential(conv_norm(1, 16, 3, stride=2), *blocks, classifier(64, 10))


def with_gates(start: nn.Module, data: Data, train: TensorLoader, seed: int, cost: float) -> SkipNetwork:
    """As SkipNet: by gradients, then by rewards."""
    net = add_gates(start, data.example, seed=seed)
    fit(net, train, Tuning(epochs=4), loss=skip_loss(cost=cost), seed=seed, after_step=cool())
    print("gates, straight through:", evaluate(net, data.validation), flush=True)
    reinforce(net, train, Tuning(epochs=2, learning_rate=3e-4), Reinforcement(cost=cost, joint=True), seed=seed)
    return net


def with_policy(start: nn.Module, data: Data, train: TensorLoader, seed: int) -> SkipNetwork:
    """As BlockDrop: a curriculum on the frozen network, then all together."""
    net, how = add_policy(start, data.example, seed=seed), {"reward": "right", "penalty": PENALTY}
    reinforce(net, train, Tuning(epochs=4), Reinforcement(**how, curriculum=0.7), seed=seed)  # type: ignore[arg-type]
    print("policy, frozen:", evaluate(net, data.validation), flush=True)
    reinforce(net, train, Tuning(epochs=2, learning_rate=3e-4), Reinforcement(**how, joint=True), seed=seed)  # type: ignore[arg-type]
    return net


def report(net: SkipNetwork, data: Data, wanted: float) -> dict[str, Any]:
    """Sets the price that calibration finds, and says what comes of it on the test images."""
    found = calibrate_effort(net, data.validation)
    good = [effort for effort in found if effort.accuracy >= wanted and effort.price != -math.inf]
    best = min(good, key=lambda e: e.cost.macs) if good else max(found[:-1], key=lambda e: (e.accuracy, -e.cost.macs))
    net.price = best.price
    with torch.no_grad():
        spent = [(net.spend(net.price, x), y) for x, y in data.test]
    taken = torch.cat([s.taken for s, _ in spent]).double()
    classes = torch.cat([y for _, y in spent])
    return {
        "reached_wanted": bool(good),
        "price": best.price,
        "validation_accuracy": best.accuracy,
        "validation_curve": [[effort.price, effort.accuracy, effort.cost.macs] for effort in found],
        "test_accuracy": evaluate(net, data.test),
        "test_share_of_macs": torch.cat([s.macs for s, _ in spent]).mean().item() / net.cost(-math.inf).macs,
        "branches_taken": dict(zip(net.branches, taken.mean(0).tolist(), strict=True)),
        "distinct_ways": len(taken.unique(dim=0)),
        "branches_by_class": [taken[classes == k].sum(1).mean().item() for k in range(10)],
    }


NETS: dict[str, Callable[[nn.Module, Data, TensorLoader, int], SkipNetwork]] = {
    "gates": partial(with_gates, cost=0.2),
    "frugal gates": partial(with_gates, cost=1.0),
    "policy": with_policy,
}


def time_all(plain: nn.Module, net: SkipNetwork, data: Data, batch: int) -> dict[str, float]:
    """Mean milliseconds of processor time for a sample of the test data."""
    images = torch.cat([inputs for inputs, _ in data.test])[: SAMPLES[batch]]
    runs: dict[str, Callable[[torch.Tensor], object]] = {
        "plain": plain,
        "captured": to_module(plain, data.example).eval(),
        "off": partial(net.answer_at, -math.inf),
        "all yes": partial(net.answer_at, -1e9),
        "skipping": partial(net.answer_at, net.price),
    }
    spent = dict.fromkeys(runs, 0.0)
    with torch.no_grad():
        for run in runs.values():
            run(images[:batch])
        for part in images.split(batch):
            for name, run in runs.items():
                start = time.process_time()
                run(part)
                spent[name] += time.process_time() - start
    return {name: 1e3 * seconds / len(images) for name, seconds in spent.items()}


def main() -> None:
    """Trains, measures, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"samples": options.samples, "seed": options.seed}
    data, seed = load_data("fashion-mnist", data_dir=options.data_dir, batch_size=250), options.seed
    inputs, targets = (torch.cat(parts)[: options.samples] for parts in zip(*data.train, strict=True))
    train = TensorLoader(inputs, targets, batch_size=64, shuffle=True)
    torch.manual_seed(seed)
    start = residual()
    fit(start, train, Tuning(epochs=4, learning_rate=2e-3), seed=seed)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if result.get("settings") != settings:
        plain = duplicate(start)
        fit(plain, train, Tuning(epochs=6), seed=seed)
        accuracies = {"validation_accuracy": evaluate(plain, data.validation), "test_accuracy": evaluate(plain, data.test)}
        result = {"environment": environment(), "settings": settings, "plain": accuracies, "nets": {}}
    for name in options.net:
        net = NETS[name](start, data, train, seed).eval()
        found = report(net, data, result["plain"]["validation_accuracy"] - MOST_LOST)
        times = {str(batch): time_all(start.eval(), net, data, batch) for batch in SAMPLES}
        result["nets"][name] = found | {"milliseconds": times}
        print(json.dumps({name: result["nets"][name]}, indent=1), flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
