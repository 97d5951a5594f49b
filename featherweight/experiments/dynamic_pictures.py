"""The pictures of the experiment `dynamic`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.dynamic_clock import BATCHES, FULL
from featherweight.experiments.dynamic_networks import KINDS
from featherweight.experiments.dynamic_tables import PICTURES, RUNTIMES, by_training, clocks, picture_of
from featherweight.experiments.experiment import Outcome
from featherweight.experiments.summary import deviation, mean
from featherweight.reporting.plots import COLOURS, canvas

__all__ = ["draw"]

_SIDE = 28
_NAMES = {"torch": "PyTorch", "onnx": "ONNX Runtime"}
_STATIC = ("plain", "first", "narrow")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Accuracy against the clock, in `path` for the first data set and beside it for others; sorted images; the controller.

    Args:
        outcomes: of all cells.
        path: of the first picture.
    """
    for number, here in enumerate(by_training(outcomes).values()):
        panels = [panel for runtime in RUNTIMES for batch in BATCHES if (panel := _panel(here, runtime, batch)).lines]
        if panels:
            draw_panels(panels, path.with_name(picture_of(number)))
    _draw_images([outcome for outcome in outcomes if "sorted" in outcome.cell], path.with_name(PICTURES["sorted"]))
    _draw_waves([outcome for outcome in outcomes if "steered" in outcome.cell], path.with_name(PICTURES["steered"]))


def _panel(outcomes: Sequence[Outcome], runtime: str, batch: int) -> LinePanel:
    """A line for each network that has several points, and one for static networks of all sizes."""
    key = f"{runtime}, {batch}"
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, seeds in clocks(outcomes).items():
        kind, _, point = name.partition("@")
        if key not in seeds[0] or point == FULL or kind not in KINDS:
            continue
        label = "static, trained alone" if kind.startswith(_STATIC) else KINDS[kind].title
        label = "static, pruned" if kind.startswith("pruned") else label
        tests = [one["test"] for one in seeds]
        series.setdefault(label, []).append((mean([one[key] for one in seeds]), mean(tests), deviation(tests)))
    lines = []
    for label, points in series.items():
        x, y, error = zip(*sorted(points), strict=True)
        lines.append(Line(label, x, y, error))
    title = f"{_NAMES[runtime]}, batch {batch}"
    return LinePanel(title, "mean ms of a sample, 1 thread", "test accuracy in %", lines, logarithmic=True)


def _draw_images(outcomes: Sequence[Outcome], path: Path) -> None:
    """Of each class an image that leaves first, above one that goes to the end."""
    if not outcomes:
        return
    rows = [(outcome.cell["data"], row, outcome.result[row]) for outcome in outcomes for row in ("first", "last")]
    with canvas(path, inches=(10, 1.05 * len(rows))) as figure:
        grid = figure.subplots(len(rows), 10, squeeze=False)
        for places, (data, row, images) in zip(grid, rows, strict=True):
            for axes, image in zip(places, images, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if image:
                    axes.imshow(np.frombuffer(bytes.fromhex(image), np.uint8).reshape(_SIDE, _SIDE), cmap="gray_r")
            places[0].set_ylabel(f"{data}\n{row} exit", fontsize=7)


def _draw_waves(outcomes: Sequence[Outcome], path: Path) -> None:
    """The budget, what each answer took, and the exit it came from."""
    if not outcomes:
        return
    with canvas(path, inches=(10, 3.2 * len(outcomes))) as figure:
        for axes, outcome in zip(figure.subplots(len(outcomes), 1, squeeze=False)[:, 0], outcomes, strict=True):
            found = outcome.result
            steps = range(len(found["limit"]))
            axes.step(steps, found["limit"], color="black", linestyle="--", where="mid", label="budget")
            for number in sorted(set(found["exit"])):
                mine = [step for step in steps if found["exit"][step] == number]
                times = [found["milliseconds"][step] for step in mine]
                axes.plot(mine, times, ".", color=COLOURS[number % len(COLOURS)], label=f"exit {number + 1}")
            axes.set(xlabel="image", ylabel="ms", title=outcome.cell["data"], ylim=(0, 2 * max(found["limit"])))
            axes.legend(ncols=5)
