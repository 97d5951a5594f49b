"""Pictures of experiments: panels of lines with error bars, and panels of bars, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featherweight.reporting.plots import COLOURS, MARKERS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bar", "BarPanel", "Line", "LinePanel", "draw_panels"]


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        label: its name in the legend.
        x, y: of its points.
        error: half the length of each point's error bar; none by default.
        reference: whether it is the paper's: black and dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    reference: bool = False


@dataclass(frozen=True)
class LinePanel:
    """Lines over a common axis.

    Attributes:
        title, xlabel, ylabel: what the panel and its axes say.
        lines: at least one.
        logarithmic: the x axis.
        reversed: x falls from left to right.
        ylimits: the y axis, if it is not to show everything.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    logarithmic: bool = False
    reversed: bool = False
    ylimits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: written beside it.
        value: its length.
        error: half the length of its error bar.
        reference: the paper's value, marked in black; None if the paper has none.
    """

    label: str
    value: float
    error: float = 0.0
    reference: float | None = None


@dataclass(frozen=True)
class BarPanel:
    """Horizontal bars, the first on top; dots where the axis does not start at zero.

    Attributes:
        title, xlabel: what the panel and its axis say.
        bars: at least one.
        limits: of the axis.
    """

    title: str
    xlabel: str
    bars: Sequence[Bar]
    limits: tuple[float, float] | None = None


def draw_panels(panels: Sequence[LinePanel | BarPanel], path: Path) -> None:
    """Draws panels in a row.

    Args:
        panels: at least one.
        path: where to write; ends in .svg or .png.

    Raises:
        RequestError: the path is unusable, or matplotlib is missing.

    Example:
        >>> draw_panels([LinePanel("a", "x", "y", [Line("ours", [1, 2], [3, 4])])], Path("a.png"))
    """
    with canvas(path, inches=(1.2 + 5.2 * len(panels), 4.6)) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            if isinstance(panel, LinePanel):
                _draw_lines(axes, panel)
            else:
                _draw_bars(axes, panel)
            axes.set_title(panel.title)


def _draw_lines(axes: Axes, panel: LinePanel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for position, line in enumerate(panel.lines):
        axes.errorbar(
            line.x,
            line.y,
            yerr=list(line.error) or None,
            label=line.label,
            color="black" if line.reference else COLOURS[position % len(COLOURS)],
            linestyle="--" if line.reference else "-",
            marker=MARKERS[position % len(MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            capsize=2,
        )
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.reversed:
        axes.invert_xaxis()
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.ylimits is not None:
        axes.set_ylim(*panel.ylimits)
    axes.legend()


def _draw_bars(axes: Axes, panel: BarPanel) -> None:
    places = range(len(panel.bars))
    values, errors = [bar.value for bar in panel.bars], [bar.error for bar in panel.bars]
    if panel.limits is not None and panel.limits[0] > 0:  # the length of a bar means nothing where its axis is cut
        axes.errorbar(values, places, xerr=errors, color=COLOURS[0], marker="o", markersize=7, linestyle="none", capsize=2)
    else:
        axes.barh(places, values, xerr=errors, color=COLOURS[0], height=0.7, capsize=2)
    theirs = [(bar.reference, place) for place, bar in zip(places, panel.bars, strict=True) if bar.reference is not None]
    if theirs:
        axes.plot(*zip(*theirs, strict=True), color="black", marker="*", markersize=9, linestyle="none", label="paper")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_yticks(places, [bar.label for bar in panel.bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=panel.xlabel, xlim=panel.limits)
