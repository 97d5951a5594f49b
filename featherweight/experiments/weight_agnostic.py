"""Weight-agnostic networks on MNIST: topologies that classify digits with one weight for all connections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import affine_grid, grid_sample, interpolate

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.evolution import WEIGHTS, Search, accuracies, evolve, stack_outputs
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.summary import deviation, markdown_table, mean, spread
from featherweight.experiments.topology import Array, Topology, TopologyNet, activate
from featherweight.training import Loader, TensorLoader, Tuning, evaluate, fit

__all__ = ["EXPERIMENT", "deskew"]

_SEEDS = (0, 1, 2)
_CURVE = np.linspace(-2, 2, 41, dtype=np.float32)
_DRAWS = 100
_RATES = (0.003, 0.01)
_SIZE = 16

# Gaier and Ha, table 2: accuracy in %.
_PAPER = {
    "random": "82.0 ± 18.7",
    "ensemble": "91.6",
    "tuned": "91.9",
    "trained": "94.2",
}
_TITLES = {
    "random": "one random weight, uniform in [-2, 2]",
    "ensemble": "an ensemble over the six weights of the search",
    "tuned": "one weight, chosen on validation data",
    "trained": "every connection's own weight, trained",
}

_TEXT = """
A network is a graph of single nodes; all its connections share one weight, and a search adds connections, inserts nodes and
changes activations until the network classifies digits whatever that weight is. Images are deskewed and made 16×16, as in the
paper's code. A network's performance is its mean log-likelihood of the right class over the weights ±0.5, ±1 and ±2. Test
data were looked at once per seed, after the search; the best weight, and the learning rate of the last row, were chosen on a
tenth of the training data.

Ours is a search of minutes on one core: 64 networks over 3000 generations, 0.15 million networks judged on 600 images; theirs
had 960 networks over 4096 generations, nearly 4 million. To get far with less, we draw a new connection, a new node or
another activation with probability 0.5, 0.25, 0.25 (theirs 0.25, 0.25, 0.5), let the number of connections count in 30 % of
the generations (theirs 80 %), and keep the images for 50 generations, so that a child shares its parent's values and only
what a mutation touches is computed. Connections are never switched off.

What the full runs say: a search a twenty-fifth the size of theirs comes within 3 to 11 points of it, and the ensemble is
ahead of the best single weight. The first row's spread is the paper's, too: near a weight of 0 all outputs are alike, so
every such network answers by chance there, whatever the search found.
"""


def deskew(images: torch.Tensor) -> torch.Tensor:
    """Sheared so that the upright axis of the ink stands upright, by its second moments.

    Args:
        images: (B, 1, H, W), at least 0, background 0.

    Returns:
        The same shape, resampled bilinearly.

    Example:
        >>> upright = torch.zeros(1, 1, 5, 5)
        >>> upright[..., 2] = 1.0
        >>> torch.allclose(deskew(upright), upright, atol=1e-5)
        True
    """
    _, _, height, width = images.shape
    ink = images[:, 0] / images.sum(dim=(1, 2, 3)).clamp(min=1e-9)[:, None, None]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    row, column = (ink * y).sum(dim=(1, 2)), (ink * x).sum(dim=(1, 2))
    y = y - row[:, None, None]
    skew = (ink * y * (x - column[:, None, None])).sum(dim=(1, 2)) / (ink * y * y).sum(dim=(1, 2)).clamp(min=1e-3)
    shear = torch.zeros(len(images), 2, 3)
    shear[:, 0, 0] = shear[:, 1, 1] = 1
    shear[:, 0, 1], shear[:, 0, 2] = skew, -skew * row
    return grid_sample(images, affine_grid(shear, list(images.shape), align_corners=True), align_corners=True)


def _prepare(loader: Loader) -> TensorLoader:
    """Small upright images with values in [0, 1] as rows, and a last column of ones: the bias."""
    if not isinstance(loader, TensorLoader):  # the lab only gives such
        raise TypeError(type(loader).__name__)
    lowest, highest = loader.inputs.min(), loader.inputs.max()
    images = (loader.inputs - lowest) / (highest - lowest)
    small = interpolate(deskew(images), size=(_SIZE, _SIZE), mode="bilinear", antialias=True).flatten(1)
    inputs = torch.cat([small, torch.ones(len(small), 1)], dim=1)
    return TensorLoader(inputs, loader.targets, loader.batch_size, loader.shuffle)


def _arrays(loader: TensorLoader) -> tuple[Array, NDArray[np.int64]]:
    return np.ascontiguousarray(loader.inputs.numpy().T), loader.targets.numpy()


def _cells(quick: bool) -> list[Cell]:
    generations, epochs = (150, 1) if quick else (3000, 5)
    return [{"generations": generations, "epochs": epochs, "seed": seed} for seed in (_SEEDS[:1] if quick else _SEEDS)]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One search, and the network it found in the paper's four ways."""
    seed, generations = cell["seed"], cell["generations"]
    data = lab.data("mnist", batch_size=500)
    train, validation, test = (_prepare(loader) for loader in (data.train, data.validation, data.test))
    search = Search(generations=generations)
    history = []
    look = max(1, generations // 20)
    found = evolve(*_arrays(train), search, classes=data.classes, seed=seed)
    for done, champion in enumerate(islice(found, generations), start=1):
        lab.progress("search", done, generations)
        if done % look == 0 or done == 1:
            seen = float(accuracies(champion, *_arrays(validation), WEIGHTS).mean())
            history.append({"generation": done, "validation": seen, "connections": champion.connections})
    tuned = float(_CURVE[accuracies(champion, *_arrays(validation), _CURVE).argmax()])
    trained = _train(champion, tuned, train, validation, epochs=cell["epochs"], seed=seed)
    random = Random(seed)
    draws = np.array([random.uniform(-2, 2) for _ in range(_DRAWS)], np.float32)
    one_weight = accuracies(champion, *_arrays(test), np.concatenate([[np.float32(tuned)], draws, _CURVE]))
    return {
        "accuracy": {
            "random": one_weight[1 : 1 + _DRAWS].mean(),
            "ensemble": _vote(champion, *_arrays(test)),
            "tuned": one_weight[0],
            "trained": evaluate(trained, test),
        },
        "deviation_of_random": one_weight[1 : 1 + _DRAWS].std(ddof=1),
        "best_weight": tuned,
        "curve": one_weight[1 + _DRAWS :].tolist(),
        "history": history,
        "connections": champion.connections,
        "hidden": len(champion.hidden),
    }


def _vote(topology: Topology, inputs: Array, labels: NDArray[np.int64]) -> float:
    """The accuracy of the mean of the probabilities over the weights."""
    outputs = torch.from_numpy(stack_outputs(topology, activate(topology, inputs, WEIGHTS)))
    votes = outputs.softmax(dim=0).mean(dim=1).argmax(dim=0)
    return float((votes.numpy() == labels).mean())


def _train(
    topology: Topology, weight: float, train: TensorLoader, validation: TensorLoader, *, epochs: int, seed: int
) -> TopologyNet:
    """Trains each connection's weight, at the learning rate that does best on validation data."""
    nets = []
    for rate in _RATES:
        net = TopologyNet(topology, weight=weight)
        fit(net, train, Tuning(epochs=epochs, learning_rate=rate), seed=seed)
        nets.append(net)
    return max(nets, key=lambda net: evaluate(net, validation))


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for way, title in _TITLES.items():
        ours = spread([100 * outcome.result["accuracy"][way] for outcome in outcomes], digits=1)
        if way == "random":
            within = mean([100 * outcome.result["deviation_of_random"] for outcome in outcomes])
            ours += f" (± {within:.1f} over the weight)"
        rows.append([title, _PAPER[way], ours])
    size = {key: spread([outcome.result[key] for outcome in outcomes], digits=0) for key in ("connections", "hidden")}
    table = markdown_table(["the network with", "theirs, accuracy in %", f"ours, {len(outcomes)} seeds"], rows)
    note = (
        f"Ours: {size['connections']} connections and {size['hidden']} hidden nodes; mean ± standard deviation over seeds. "
        "Theirs is one network; the ± of its first row is over the weight."
    )
    return f"{table}\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    curves = [[100 * value for value in outcome.result["curve"]] for outcome in outcomes]
    looks = [outcome.result["history"] for outcome in outcomes]
    seen = [[100 * look["validation"] for look in history] for history in looks]
    draw_panels(
        [
            LinePanel(
                "What the search found",
                "the one weight of all connections",
                "test accuracy in %",
                [_line("ours", _CURVE.tolist(), curves)],
            ),
            LinePanel(
                "How it got there",
                "generation",
                "validation accuracy in %, mean of six weights",
                [_line("ours", [look["generation"] for look in looks[0]], seen)],
            ),
        ],
        path,
    )


def _line(label: str, x: Sequence[float], runs: Sequence[Sequence[float]]) -> Line:
    points = list(zip(*runs, strict=True))
    return Line(label, x, [mean(point) for point in points], [deviation(point) for point in points])


EXPERIMENT = Experiment(
    title="Weight-agnostic networks",
    source='Gaier and Ha, "Weight Agnostic Neural Networks", NeurIPS 2019',
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
