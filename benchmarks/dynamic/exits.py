"""What early exits save on Fashion-MNIST, on the clock: against the same network trained without them.

Of each network two are trained alike, one as it is and one with exits, by the sum of all exits' losses. Thresholds are found
on the validation images, so that accuracy is that of the plain network minus 0.2 points there, or, where exits do not reach
it, the best they have. Then both run over test images in batches of 1 and of 64, taking turns batch by batch, in PyTorch and,
exported, in ONNX Runtime, on one thread. Milliseconds are means of a sample's processor time. "full" is the network with exits
with all thresholds infinite: what it costs to have exits and not to use them.

    lenet5     LeNet-5, exits after both convolutions
    residual   a convolution of stride 2 and six residual blocks of 16, 32 and 64 channels, exits after two and four

Fashion-MNIST is looked for as `training.load_data` says.

    python benchmarks/dynamic/exits.py [--data-dir FOLDER] [--net lenet5 residual] [--samples 12000] [--epochs 4] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from featherweight.dynamic import ExitNetwork, Limit, add_exits, calibrate, exit_loss, export_exits, record_exits
from featherweight.dynamic.policy import POLICIES, Calibration, Record
from featherweight.exporting import StagedSession
from featherweight.exporting.onnx import open_session, translate
from featherweight.graph.capture import to_module
from featherweight.measuring import environment
from featherweight.nets import lenet5
from featherweight.nets.layers import classifier, conv_norm
from featherweight.training import Data, TensorLoader, Tuning, evaluate, fit, load_data

RESULT = Path(__file__).with_suffix(".json")
MOST_LOST = 0.002
SAMPLES = {1: 500, 64: 2560}
"""How many test images are timed, by the size of the batches."""


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
    stages = [nn.Sequential(Block(i, o, s), Block(o, o, 1)) for i, o, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))]
    return nn.Sequential(conv_norm(1, 16, 3, stride=2), *stages, classifier(64, 10))


NETS: Mapping[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "lenet5": (lenet5, ("conv1", "conv2")),
    "residual": (residual, ("1", "2")),
}


def main() -> None:
    """Measures the networks asked for, and writes what was found beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--samples", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", data_dir=options.data_dir)
    found = json.loads(RESULT.read_text())["nets"] if RESULT.exists() else {}
    for name in options.net:
        found[name] = measure(name, data, options)
        print(json.dumps({name: found[name]}, indent=1))
        RESULT.write_text(json.dumps({"environment": environment(), "nets": found}, indent=1) + "\n")


def measure(name: str, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a network with exits and without, and times both."""
    make, places = NETS[name]
    tuning, seed = Tuning(epochs=options.epochs), options.seed
    torch.manual_seed(seed)
    inputs, targets = (torch.cat(parts)[: options.samples] for parts in zip(*data.train, strict=True))
    train = TensorLoader(inputs, targets, batch_size=64, shuffle=True)
    plain = make()
    net = add_exits(plain, data.example, at=places, seed=seed)
    fit(plain, train, tuning, seed=seed)
    fit(net, train, tuning, loss=exit_loss(), seed=seed)
    plain.eval()
    net.eval()
    record = record_exits(net, data.validation)
    wanted = evaluate(plain, data.validation) - MOST_LOST
    best = min((calibrate(record, accuracy=reached(record, wanted, policy), policy=policy) for policy in POLICIES), key=_macs)
    net.thresholds = best.thresholds
    test = record_exits(net, data.test)
    return {
        "samples": options.samples,
        "epochs": options.epochs,
        "seed": seed,
        "test_accuracy": {"plain": evaluate(plain, data.test), "exits": evaluate(net, data.test)},
        "test_accuracy_of_each_exit": test.accuracies,
        "macs_of_each_exit": [net.cost_of_leaving(choice).macs for choice in net.choices()],
        "validation": {"wanted_accuracy": wanted, **vars(best), "cost": vars(best.cost)},
        "milliseconds": {str(batch): time_both(plain, net, data, batch) for batch in SAMPLES},
    }


def reached(record: Record, wanted: float, policy: str) -> float:
    """The accuracy wanted, or the best there is."""
    return min(wanted, calibrate(record, limit=Limit(), policy=policy).accuracy)


def _macs(found: Calibration) -> float:
    return float(found.cost.macs)


def time_both(plain: nn.Module, net: ExitNetwork, data: Data, batch: int) -> dict[str, float]:
    """Mean milliseconds of processor time for a sample of the test data."""
    images = torch.cat([inputs for inputs, _ in data.test])[: SAMPLES[batch]]
    twin, session = to_module(plain, data.example).eval(), open_session(translate(plain, data.example))
    never = [float("inf")] * len(net.thresholds)
    thresholds = net.thresholds
    with TemporaryDirectory() as folder:
        staged = StagedSession(export_exits(net, folder, data.example))

    def with_thresholds(values: Sequence[float], images: torch.Tensor) -> None:
        net.thresholds = values
        net(images)

    runs: dict[str, Callable[[torch.Tensor], object]] = {
        "torch, plain": plain,
        "torch, plain, captured": twin,
        "torch, full": lambda x: with_thresholds(never, x),
        "torch, exits": lambda x: with_thresholds(thresholds, x),
        "onnx, plain": lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()}),
        "onnx, exits": lambda x: staged.run(x.numpy()),
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
    net.thresholds = thresholds
    return {name: 1e3 * seconds / len(images) for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
