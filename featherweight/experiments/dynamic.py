"""One network that spends what each sample needs: exits, widths and skips against static networks, on the clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from featherweight.dynamic import ExitNetwork, SlimmableExitNetwork, SlimmableNetwork, record_exits
from featherweight.experiments.dynamic_clock import measure
from featherweight.experiments.dynamic_networks import data_of, network
from featherweight.experiments.dynamic_pictures import draw
from featherweight.experiments.dynamic_tables import tables
from featherweight.experiments.dynamic_wave import first_and_last, follow_wave
from featherweight.experiments.experiment import Cell, Experiment, Lab
from featherweight.training import evaluate

__all__ = ["EXPERIMENT"]

_MAIN = ("plain", "joint")
_SIZE = {"samples": 24_000, "depth": 20, "epochs": 3}
_PLAN: Sequence[tuple[str, Sequence[str], Sequence[int]]] = (
    ("fashion-mnist", (*_MAIN, "exits", "distilled", "frozen", "first-exit"), [0]),
    ("mnist", (*_MAIN, "exits", "first-exit", "msdnet"), [0]),
    ("fashion-mnist", ("narrow-0.5", "pruned-0.5", "skips", "combined", "slimmable", "narrow-0.25"), [0]),
    ("mnist", (*_MAIN, "first-exit"), [1, 2]),
    ("fashion-mnist", ("shared", "recalibrated"), [0]),
    ("fashion-mnist", (*_MAIN, "first-exit"), [1, 2]),
)
"""Data, networks, seeds: in the order in which they are trained."""

_NOT_TIMED = ("distilled", "frozen", "exits", "shared", "recalibrated")
"""What others stand for on the clock."""

_TEXT = """
Networks that can answer in several ways, against static ones, by accuracy and by the clock. All are made of one:
ResNet-20 for small images, whose first convolution has stride 2 (8.5 million MACs on 28x28). `plain` is that network, trained
as usual. `exits` has three more answers, after blocks 1, 3 and 6 of 9, each from a convolution of stride 2 to 32 channels and a
linear layer on all of them; all answers are trained together, from labels, with equal weights. `exits x widths` is the same at
two widths, `slimmable` the plain network at four, both trained by the sandwich rule with switchable batch norms (or with shared
ones, as a control). `MSDNet` has four exits, with one layer of its dense connections, at all scales, before each. `skips` has
gates on its blocks (SkipNet): it begins as the trained plain network and is tuned for three epochs more, the last of them by
policy gradients. Static networks beside them: what `exits` is up to its first exit, trained alone; the plain network at a half
and a quarter of its width, trained alone; and the plain network with half of its channels pruned, tuned for two more epochs.

All learn 24 000 images for three epochs (Adam from 2e-3 down to zero by a cosine, batches of 64, bf16 in convolutions), with
the same images in the same order. Thresholds, prices and pairs of width and thresholds are chosen on 6000 validation images:
the cheapest in MACs that is there as right as the plain network, or less right by 0.2 or 0.5 points; where that is out of
reach, the best. Which exits to time was settled on validation data, too, but after the test accuracies of seed 0 had been seen.
Milliseconds are processor time of one thread, means of a sample over test images, all networks in turns batch by batch; on a
shared machine the ratios are what to look at. In ONNX Runtime a network with exits runs as one session for each stage.

Theirs: BranchyNet is 5.4 times faster than LeNet on MNIST on a CPU, at equal accuracy; SkipNet saves half of ResNet-110's MACs
on CIFAR-10 at equal accuracy; slimmable networks are within a point of networks trained alone at each width.

What the run says (three seeds for `plain`, `exits` and what is up to the first exit, one for all others; so short a training
that tenths of a point are chance): on MNIST thresholds that are as right as the plain network on validation data are so on test
data, too, in a third to a fifth of its time, at batch 1 and at batch 64, in both runtimes. Depth pays there: the network that
ends at the first exit falls short by 0.4 points, and exits keep the accuracy in nearly its time. On Fashion-MNIST the same
speed costs 0.2 points of test accuracy, and leaving by difficulty deserves little of the credit: nearly all images leave at the
first exit, and the network that ends there, trained alone, is hardly worse. In three epochs depth does not pay there. What no
static network here has is the row `at its best`, above plain by half a point. MSDNet is slower than ResNet-20 with exits and no
better: many small operations.

Learning from labels with equal weights is best here: it costs the last answer nothing, rather the contrary, and exits on a
frozen trunk are close behind. Distillation from the last exit (temperature 3, a weight of a half) costs the first exit a point.
Gates fail: a third of the MACs is saved and more than a point of accuracy lost, and on the clock gathering and scattering take
back what the branches save. Slimmable widths are 1.7 to 2.1 points below networks trained alone, twice what the paper has after
full training; with shared batch norms narrow ones collapse, as the paper says, and statistics taken anew for each width mend
that entirely. At batch 1 PyTorch's time goes by the number of operations, and narrow networks save little. Widths add nothing
to exits. Having exits and not using them costs PyTorch 1 to 3 % at batch 64, 5 to 11 % at batch 1; stages in ONNX Runtime cost
much more, since each is a session that always runs its head: what shall never leave early should be exported in one piece.
"""


def _cells(quick: bool) -> list[Cell]:
    if quick:
        size = {"data": "mnist", "samples": 600, "depth": 8, "epochs": 1, "seed": 0}
        trained: list[Cell] = [{"net": net, **size} for net in ("plain", "joint", "slimmable")]
        return [*trained, *_timed(trained, images=64, onnx=False), *({**look, "images": 64, **size} for look in _LOOKS)]
    trained = [
        {"net": net, "data": data, **_SIZE, "seed": seed} for data, nets, seeds in _PLAN for seed in seeds for net in nets
    ]
    looks = [
        {**look, "images": 240, "data": data, **_SIZE, "seed": 0} for data in ("fashion-mnist", "mnist") for look in _LOOKS
    ]
    return [*trained, *_timed(trained, images=300, onnx=True), *looks]


_LOOKS = ({"sorted": "joint"}, {"steered": "joint"})


def _timed(trained: Sequence[Cell], *, images: int, onnx: bool) -> list[Cell]:
    """A cell for each training of each data set with each seed, for all its networks."""
    nets: dict[str, list[str]] = {}
    for cell in trained:
        settings = json.dumps({key: value for key, value in cell.items() if key != "net"})
        nets.setdefault(settings, []).extend([cell["net"]] * (cell["net"] not in _NOT_TIMED))
    return [{"timed": names, "images": images, "onnx": onnx, **json.loads(settings)} for settings, names in nets.items()]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    for key, run in (("timed", measure), ("sorted", first_and_last), ("steered", follow_wave)):
        if key in cell:
            return run(cell, lab)
    return _train(cell, lab)


def _train(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Test accuracies in % of a network, of each of its exits or widths."""
    net, data = network(cell["net"], cell, lab), data_of(cell, lab)
    if isinstance(net, ExitNetwork):
        return {"test": [100 * accuracy for accuracy in record_exits(net, data.test).accuracies]}
    if isinstance(net, SlimmableExitNetwork):
        return {"test": [100 * accuracy for accuracy in record_exits(net.at_width(1.0), data.test).accuracies]}
    if isinstance(net, SlimmableNetwork):
        return {"test": [100 * evaluate(net.at_width(width), data.test) for width in net.choices()]}
    return {"test": [100 * evaluate(net, data.test)]}


EXPERIMENT = Experiment(
    title="A network that spends what each image needs",
    source=(
        'Teerapittayanon, McDanel and Kung, "BranchyNet", ICPR 2016 (arXiv:1709.01686); '
        'Huang et al., "Multi-Scale Dense Networks", ICLR 2018 (arXiv:1703.09844); '
        'Yu et al., "Slimmable Neural Networks", ICLR 2019 (arXiv:1812.08928); '
        'Wang et al., "SkipNet", ECCV 2018 (arXiv:1711.09485)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=tables,
    draw=draw,
)
