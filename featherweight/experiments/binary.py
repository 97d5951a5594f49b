"""Binary and ternary weights on MNIST: what one bit, or one and a half, for each weight costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, select, spread
from featherweight.graph.constraint import constrained, fold
from featherweight.graph.program import tensor_called
from featherweight.graph.selection import select_weights
from featherweight.nets import binary_mlp, xnor_lenet5
from featherweight.packaging import save, save_tensors
from featherweight.quantization import binarize_weights, clip_weights, real_weights, ternarize_weights
from featherweight.quantization.xnor import compare_with_bits
from featherweight.training import Data, Tuning, evaluate, fit

__all__ = ["EXPERIMENT"]

_HIDDEN = 512
_COMPARED = 1000  # test images on which binary arithmetic is compared with the float simulation


@dataclass(frozen=True)
class _Kind:
    """One kind of network: what it is called, how it is made, its learning rate, and the papers' test error in %."""

    title: str
    make: Callable[[int], nn.Module]
    rate: float
    paper: str
    mlp: bool = True
    bits: bool = False  # whether inputs of layers are signs, too


_KINDS: Mapping[str, _Kind] = {
    "mlp": _Kind("real weights", lambda hidden: binary_mlp(hidden=hidden, binary=False), 1e-3, "1.30"),
    "mlp-signs": _Kind(
        "BinaryConnect, deterministic",
        lambda hidden: binarize_weights(binary_mlp(hidden=hidden, binary=False), scale="none"),
        3e-2,
        "1.29",
    ),
    "mlp-drawn": _Kind(
        "BinaryConnect, stochastic",
        lambda hidden: binarize_weights(binary_mlp(hidden=hidden, binary=False), scale="none", stochastic=True),
        3e-2,
        "",
    ),
    "mlp-bits": _Kind(
        "BNN: signs for weights and inputs",
        lambda hidden: binarize_weights(binary_mlp(hidden=hidden), scale="none"),
        3e-2,
        "0.96 to 1.40",
        bits=True,
    ),
    "lenet": _Kind("real weights", lambda _: xnor_lenet5(binary=False), 4e-3, "0.66 / 0.59", mlp=False),
    "lenet-ternary": _Kind(
        "ternary weights", lambda _: ternarize_weights(xnor_lenet5(binary=False)), 4e-3, "– / 0.65", mlp=False
    ),
    "lenet-signs": _Kind(
        "binary weights, scaled", lambda _: binarize_weights(xnor_lenet5(binary=False)), 4e-3, "– / 0.95", mlp=False
    ),
    "lenet-bits": _Kind(
        "XNOR: scaled signs for weights, signs for inputs",
        lambda _: binarize_weights(xnor_lenet5(), exclude=["conv1.*", "fc2.*"]),
        4e-3,
        "0.77 / –",
        mlp=False,
        bits=True,
    ),
}

_REAL = "BinaryConnect, stochastic, tested with the real weights"

_TEXT = """
Two networks on MNIST, all 54,000 images that are not set aside for validation, without augmentation. The first has three hidden
layers of {hidden} units with batch norm, where BinaryConnect has 1024 and BNN 1024 to 4096; all its weights are ±1. The second
is LeNet-5 (20 and 50 channels, 500 units) in XNOR-Net's blocks, batch norm → sign → convolution → pooling. There, binary and
ternary weights are scaled (by output channel, and by layer), and the rows with real inputs have ReLU in place of the sign. XNOR
leaves the first and the last layer real; the other rows leave none.

Adam with a cosine to zero in batches of 128, cross entropy, {mlp_epochs} epochs for the first network and {lenet_epochs} for
the second: far fewer than the papers', of which BinaryConnect and BNN use squared hinge loss. Learning rates (1e-3, or 3e-2
where weights are ±1; 4e-3 for LeNet-5) were chosen on validation data in short runs; the last epoch counts, and the test set
was looked at once per network. Stochastic BinaryConnect is tested with the real weights, as in the paper, and with their signs;
batch norms see the training data once more with the weights of the test.

Theirs: BinaryConnect's 1.30 is its network without a regularizer; BNN's figures are of its two implementations. LeNet-5's are
those of a public XNOR-Net implementation, before the stroke, and of ternary weight networks with a larger LeNet, after it.

Bits are those of the binary or ternary weights in a .fw file, scales included; bytes are those of the whole file, in which
batch norms are floats. The last column says for how many sums of products, in layers with signs for weights and inputs, XNOR
and popcount gave another integer than float arithmetic on the same signs, on {compared} test images.

What the full runs say: signs for weights cost less than a tenth of a point on both networks, as the papers have it, at one bit
a weight; ternary weights are no better here than the spread, at half a bit more. Signs for the inputs of layers cost more: some
0.3 points on LeNet-5, whose first and last layers stay real, and 0.6 on the MLP. Stochastic signs, ahead in the paper, are
behind here: they are a regularizer, and six epochs are likely too few to need one. The real weights behind them do better than
their signs.
"""

_MLP_EPOCHS, _LENET_EPOCHS = 6, 2


def _cells(quick: bool) -> list[Cell]:
    samples, seeds = (1000, 1) if quick else (54_000, 2)
    cells: list[Cell] = []
    for seed in range(seeds):
        for kind, row in _KINDS.items():
            epochs = 2 if quick else _MLP_EPOCHS if row.mlp else _LENET_EPOCHS
            size = {"hidden": 64 if quick else _HIDDEN} if row.mlp else {}
            cells.append({"kind": kind, "seed": seed, "samples": samples, "epochs": epochs, **size})
    return cells


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Trains one network; its accuracy, its size, and how its binary arithmetic compares."""
    data, kind = lab.data("mnist", samples=cell["samples"]), _KINDS[cell["kind"]]
    net = kind.make(cell.get("hidden", 0))
    tuning = Tuning(epochs=cell["epochs"], learning_rate=kind.rate)
    fit(net, data.train, tuning, seed=cell["seed"], after_step=clip_weights, progress=lab.progress)
    result: dict[str, Any] = {}
    if cell["kind"] == "mlp-drawn":
        real = real_weights(net)
        for tested in (real, net):
            update_bn(data.train, tested)
        result["real"] = _measure(real, data)
    result["plain"] = _measure(net, data)
    if kind.bits:
        compared = compare_with_bits(net, next(iter(data.test))[0][:_COMPARED])
        agree = compared.outputs.argmax(dim=1) == compared.simulated.argmax(dim=1)
        result["arithmetic"] = {
            "sums": sum(compared.sums.values()), "wrong": sum(compared.wrong.values()), "other_class": int((~agree).sum())
        }  # fmt: skip
    return result


def _measure(net: nn.Module, data: Data) -> dict[str, Any]:
    """The accuracy and the bytes of the file, and the bits for each binary or ternary weight, or else each weight."""
    folded = fold(net)
    weights = {name: tensor_called(folded, name) for name in constrained(net) or select_weights(net)}
    with TemporaryDirectory() as folder:
        size = save(folded, f"{folder}/net.fw", example=data.example)
        few = save_tensors(weights, f"{folder}/weights.fw")
    return {
        "accuracy": evaluate(folded, data.test),
        "validation": evaluate(folded, data.validation),
        "bytes": size,
        "bits": 8 * few / sum(weight.numel() for weight in weights.values()),
    }


@dataclass(frozen=True)
class _Row:
    """A row of the table: a network, the papers' error, and over seeds what was measured, and of its binary arithmetic."""

    title: str
    mlp: bool
    paper: str
    found: Sequence[Mapping[str, Any]]
    arithmetic: Sequence[Mapping[str, Any]] = ()

    @property
    def errors(self) -> list[float]:
        """Test errors in %."""
        return [100 * (1 - point["accuracy"]) for point in self.found]


def _rows(outcomes: Sequence[Outcome]) -> list[_Row]:
    rows = []
    for name, kind in _KINDS.items():
        results = [outcome.result for outcome in select(outcomes, kind=name)]
        if all("real" in result for result in results):
            rows.append(_Row(_REAL, kind.mlp, "1.18", [result["real"] for result in results]))
        arithmetic = [result["arithmetic"] for result in results if "arithmetic" in result]
        rows.append(_Row(kind.title, kind.mlp, kind.paper, [result["plain"] for result in results], arithmetic))
    return rows


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for row in _rows(outcomes):
        wrong, sums = (sum(point[key] for point in row.arithmetic) for key in ("wrong", "sums"))
        lines.append([
            f"{'MLP' if row.mlp else 'LeNet-5'}, {row.title}",
            row.paper or "–",
            f"**{spread(row.errors)}**",
            f"{mean([point['bytes'] for point in row.found]):,.0f}",
            f"{mean([point['bits'] for point in row.found]):.2f}",
            f"{wrong:,} of {sums:,}" if sums else "–",
        ])  # fmt: skip
    header = ["network", "papers' error, %", "our error, %", "bytes", "bits a weight", "sums that differ"]
    seeds = len({outcome.cell["seed"] for outcome in outcomes})
    other = sum(point["other_class"] for row in _rows(outcomes) for point in row.arithmetic)
    note = (
        f"Test error, ours: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}. Computed with XNOR and popcount, "
        f"the networks give another class than in floats for {other} images of all that were compared."
    )
    return markdown_table(header, lines) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for mlp, title in ((True, "MLP"), (False, "LeNet-5")):
        bars = [
            Bar(row.title, mean(row.errors), deviation(row.errors), _first_number(row.paper))
            for row in _rows(outcomes)
            if row.mlp is mlp
        ]
        panels.append(BarPanel(title, "test error, %", bars))
    draw_panels(panels, path)


def _first_number(paper: str) -> float | None:
    numbers = [float(word) for word in paper.split() if word[0].isdigit()]
    return numbers[0] if numbers else None


EXPERIMENT = Experiment(
    title="Binary and ternary weights",
    source=(
        'Courbariaux, Bengio and David, "BinaryConnect", NeurIPS 2015 (arXiv:1511.00363); Hubara, Courbariaux, Soudry, '
        'El-Yaniv and Bengio, "Binarized Neural Networks", NeurIPS 2016 (arXiv:1602.02830); Rastegari, Ordonez, Redmon and '
        'Farhadi, "XNOR-Net", ECCV 2016 (arXiv:1603.05279); Li, Zhang and Liu, "Ternary Weight Networks", 2016 '
        "(arXiv:1605.04711)"
    ),
    text=_TEXT.format(hidden=_HIDDEN, mlp_epochs=_MLP_EPOCHS, lenet_epochs=_LENET_EPOCHS, compared=_COMPARED),
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
