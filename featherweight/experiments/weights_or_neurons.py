"""Weights or neurons: what each kind of pruning gains in bytes and on the clock, at equal sparsity."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import unfold

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.sizes import conv_net, prune_neurons_to, weight_sparsity_for
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.exporting.onnx import open_session, translate
from featherweight.graph.constraint import duplicate, fold
from featherweight.measuring import count_nonzero, count_parameters, packed_bytes
from featherweight.nets import lenet_300_100
from featherweight.pruning import prune_weights
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT", "SparseConv", "SparseLinear", "sparsify"]

_NETS: Mapping[str, Callable[[], nn.Module]] = {"lenet-300-100": lenet_300_100, "conv": conv_net}
_Run = Callable[[torch.Tensor], object]

_TITLES = {"lenet-300-100": "LeNet-300-100", "conv": "conv net"}
_SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
_BATCHES = (1, 64)
_RATE = 2e-3
_TURN_S = 0.005
_TURNS = 20  # of each network, at each batch size

_RUNS = {
    "zeros_onnx": "weights: zeros, ONNX Runtime",
    "zeros_torch": "weights: zeros, torch",
    "sparse_torch": "weights: sparse (CSR), torch",
    "smaller_onnx": "neurons: smaller, ONNX Runtime",
    "smaller_torch": "neurons: smaller, torch",
}

_TEXT = """
The same share of a network's parameters goes, as single weights (the smallest, in one ranking) or as neurons (the same share
of every layer, the weakest by magnitude), and what is left is tuned alike. Then the time: a matrix with zeros multiplied as
any other, a sparse matrix (CSR; convolutions as its product with unfolded patches), and a smaller network, each against the
unpruned network in the same runtime and batch, in turns on one thread. A factor above 1 is faster. It is the processor's
time, which on an idle machine is the clock's. Bytes are those of the whole .fw file, packed losslessly; the data are 4000
images of Fashion-MNIST; the test set was looked at once per network.

Why 95 % fewer weights need not be any faster: a multiplication by zero takes as long as any other, so zeros change nothing,
in either runtime. Skipping them costs an index beside each weight, inputs fetched from scattered places, and most of what the
vector units give. At batch 1 our sparse layers never make up for that: they are behind even at 98 %, where little but the
fixed cost of a call is left, and theirs is higher. At batch 64 an index fetched serves 64 samples, and the linear layers get
ahead between 80 and 90 %; the convolutions never do, since their patches must be copied out however few weights there are. A
smaller network skips nothing and is faster at once, up to its own fixed costs. But not by its share: at half the parameters
the conv net has 11, 22 and 45 channels, which fill the vectors badly, and is no faster in ONNX Runtime.

The accuracy says the opposite. At equal sparsity weights are far ahead of neurons, whose layers become too narrow. (At 98 %
the one ranking leaves the conv net a layer without any weight, and it answers by chance.) The file does not care: it shrinks
with both.

Theirs: Han et al. find pruned fully connected layers (of AlexNet and VGG-16, about 9 of 10 weights gone) 3 times faster on a
CPU at batch 1, and no faster once inputs are batched. Ours are the other way round: their layers hold up to 400 MB, and time
goes into reading them, which a sparse matrix shortens; ours fit in the cache. Wen et al. find AlexNet's convolutions, some 9
of 10 weights gone, at 0.2 to 1.4 times the dense speed on a GPU.
"""


class SparseLinear(nn.Module):
    """A linear layer whose weight is a sparse matrix.

    Args:
        layer: the dense one; its zeros are not stored.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = _csr(layer.weight), layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in) -> (B, out)."""
        return (self.weight @ inputs.T).T + self.bias


class SparseConv(nn.Module):
    """A convolution as a sparse matrix times the unfolded patches of all samples.

    Args:
        layer: the dense one, without groups or dilation; its zeros are not stored.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = _csr(layer.weight.flatten(1)), layer.bias
        self.kernel, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        patches = unfold(images, self.kernel, stride=self.stride, padding=self.padding)  # type: ignore[arg-type]
        batch, length, places = patches.shape
        products = self.weight @ patches.transpose(0, 1).reshape(length, batch * places)
        rows = (images.shape[2] + 2 * int(self.padding[0]) - self.kernel[0]) // self.stride[0] + 1
        outputs = products.reshape(-1, batch, rows, places // rows).transpose(0, 1)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


def sparsify(model: nn.Module) -> nn.Sequential:
    """The network with its linear layers and convolutions computing with sparse matrices.

    Args:
        model: a plain sequence of layers; it is not changed.

    Returns:
        The same function.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> torch.allclose(sparsify(net)(torch.ones(3, 4)), net(torch.ones(3, 4)))
        True
    """
    layers: list[nn.Module] = []
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            layer = SparseLinear(layer)
        elif isinstance(layer, nn.Conv2d):
            layer = SparseConv(layer)
        layers.append(layer)
    return nn.Sequential(*layers).train(model.training)


def _csr(matrix: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that this layout is in beta
        return matrix.detach().to_sparse_csr()


def _cells(quick: bool) -> list[Cell]:
    if quick:
        size = {"samples": 1000, "epochs": 2, "tuning_epochs": 1, "sparsities": [0.95]}
        return [{"net": "lenet-300-100", "seed": 0, **size}]
    size = {"samples": 4000, "epochs": 8, "tuning_epochs": 4, "sparsities": list(_SPARSITIES)}
    return [{"net": net, "seed": seed, **size} for seed in range(3) for net in _NETS]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One network, trained, and pruned both ways to each sparsity."""
    data = lab.data("fashion-mnist", batch_size=64, samples=cell["samples"])
    dense = _trained(_NETS[cell["net"]](), data, cell["epochs"], cell["seed"])
    references = _runs_of("dense", dense, data)
    points = []
    for done, sparsity in enumerate(cell["sparsities"], start=1):
        left = round((1 - sparsity) * count_parameters(dense))
        by_weights = prune_weights(dense, sparsity=weight_sparsity_for(dense, left))
        by_neurons = prune_neurons_to(dense, data.example, left)
        zeros, smaller = (fold(_trained(net, data, cell["tuning_epochs"], cell["seed"])) for net in (by_weights, by_neurons))
        runs = references | _runs_of("zeros", zeros, data) | _runs_of("smaller", smaller, data)
        runs["sparse_torch"] = _torch_run(sparsify(zeros))
        speedups = {str(batch): _speedups(runs, data, batch) for batch in _BATCHES}
        measured = {"weights": _measure(zeros, data), "neurons": _measure(smaller, data)}
        points.append({"sparsity": sparsity, **measured, "speedups": speedups})
        lab.progress("sparsities", done, len(cell["sparsities"]))
    return {"dense": _measure(dense, data), "points": points}


def _measure(net: nn.Module, data: Data) -> dict[str, float]:
    return {
        "accuracy": evaluate(net, data.test),
        "bytes": packed_bytes(net, data.example),
        "parameters": count_nonzero(net),
    }


def _speedups(runs: Mapping[str, _Run], data: Data, batch: int) -> dict[str, float]:
    """How many times faster than the dense network in the same runtime each form is."""
    inputs = next(iter(data.validation))[0][:batch]
    with _one_thread():
        times = _time_in_turns({name: partial(run, inputs) for name, run in runs.items()})
    found = {name: times[f"dense_{name.partition('_')[2]}"] / times[name] for name in _RUNS}
    return found | {f"{name}_s": times[name] for name in ("dense_onnx", "dense_torch")}


def _time_in_turns(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of a call of each function, without the first of a turn, which finds others' data in the caches.

    The processor's seconds, not the clock's: a call of milliseconds would often hold the time that other programs ran.
    """
    times: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(_TURNS):
        for name, run in runs.items():
            run()
            end = time.thread_time_ns() + _TURN_S * 1e9
            while time.thread_time_ns() < end:
                start = time.thread_time_ns()
                run()
                times[name].append(time.thread_time_ns() - start)
    return {name: 1e-9 * median(collected) for name, collected in times.items()}


def _runs_of(name: str, net: nn.Module, data: Data) -> dict[str, _Run]:
    return {f"{name}_onnx": _onnx_run(net, data.example), f"{name}_torch": _torch_run(net)}


def _onnx_run(net: nn.Module, example: torch.Tensor) -> _Run:
    session = open_session(translate(net, example))
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs.numpy()})


def _torch_run(net: nn.Module) -> _Run:
    ready = net.eval()  # ours alone; training a copy of it sets its own mode

    def run(inputs: torch.Tensor) -> object:
        with torch.inference_mode():
            return ready(inputs)

    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(model: nn.Module, data: Data, epochs: int, seed: int) -> nn.Module:
    """A trained copy."""
    net = duplicate(model)
    fit(net, data.train, Tuning(epochs=epochs, learning_rate=_RATE), seed=seed)
    return net


def _values(outcomes: Sequence[Outcome], sparsity: float, *keys: str) -> list[float]:
    """What is found under the keys at a sparsity, over seeds."""
    found = []
    for outcome in outcomes:
        value = next(point for point in outcome.result["points"] if point["sparsity"] == sparsity)
        for key in keys:
            value = value[key]
        found.append(float(value))
    return found


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for net in dict.fromkeys(outcome.cell["net"] for outcome in outcomes):
        mine = select(outcomes, net=net)
        accuracy = spread([100 * outcome.result["dense"]["accuracy"] for outcome in mine])
        kilobytes = spread([outcome.result["dense"]["bytes"] / 1000 for outcome in mine], digits=1)
        rows.append([_TITLES[net], "0 %", accuracy, accuracy, kilobytes, kilobytes, *("1 / 1" for _ in _RUNS)])
        rows += [[_TITLES[net], *_row(mine, sparsity)] for sparsity in mine[0].cell["sparsities"]]
    header = ["net", "sparsity"]
    header += [f"{what}: {quantity}" for quantity in ("accuracy, %", "KB") for what in ("weights", "neurons")]
    header += _RUNS.values()
    seeds = len({outcome.cell["seed"] for outcome in outcomes})
    note = (
        f"Mean ± standard deviation over {seeds} seeds. The last columns say how many times faster than the dense network in "
        "the same runtime, at batch 1 / at batch 64."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _row(outcomes: Sequence[Outcome], sparsity: float) -> list[str]:
    row = [f"{100 * sparsity:.0f} %"]
    for key, factor, digits in (("accuracy", 100, 2), ("bytes", 0.001, 1)):
        for what in ("weights", "neurons"):
            row.append(spread([factor * value for value in _values(outcomes, sparsity, what, key)], digits=digits))
    for run in _RUNS:
        row.append(" / ".join(spread(_values(outcomes, sparsity, "speedups", str(batch), run)) for batch in _BATCHES))
    return row


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    accuracies = []
    for net in dict.fromkeys(outcome.cell["net"] for outcome in outcomes):
        mine = select(outcomes, net=net)
        for batch in _BATCHES:
            lines = [_line(mine, title, "speedups", str(batch), run) for run, title in _RUNS.items()]
            panels.append(_panel(f"{_TITLES[net]}, batch {batch}", "times faster than dense", lines))
        for what in ("weights", "neurons"):
            accuracies.append(_line(mine, f"{_TITLES[net]}, {what}", what, "accuracy", factor=100))
    draw_panels([*panels, _panel("Accuracy", "test accuracy in %", accuracies)], path)


def _panel(title: str, label: str, lines: Sequence[Line]) -> LinePanel:
    return LinePanel(title, "parameters left, %", label, lines, logarithmic=True, reversed=True)


def _line(outcomes: Sequence[Outcome], title: str, *keys: str, factor: float = 1.0) -> Line:
    sparsities = outcomes[0].cell["sparsities"]
    values = [[factor * value for value in _values(outcomes, sparsity, *keys)] for sparsity in sparsities]
    left = [round(100 * (1 - sparsity), 6) for sparsity in sparsities]
    return Line(title, left, [mean(v) for v in values], [deviation(v) for v in values])


EXPERIMENT = Experiment(
    title="Weights or neurons",
    source=(
        'Han, Mao and Dally, "Deep Compression", ICLR 2016 (arXiv:1510.00149); Wen, Wu, Wang, Chen and Li, "Learning '
        'Structured Sparsity in Deep Neural Networks", NeurIPS 2016 (arXiv:1608.03665)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
