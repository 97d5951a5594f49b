"""Plots of what was measured. They need the extra `plots`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.errors import RequestError
from featherweight.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featherweight.pruning.sensitivity import Sensitivity
    from featherweight.quantization.mixed import BitSensitivity

__all__ = ["COLOURS", "MARKERS", "Point", "canvas", "plot_bit_sensitivity", "plot_sensitivity", "plot_size_accuracy"]

# Okabe and Ito's colours (2008), apart for every kind of colour blindness; black is kept for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_FORMATS = (".svg", ".png")

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "featherweight",
    "svg.fonttype": "path",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One network in the plot.

    Attributes:
        size_bytes: size of its file in bytes, positive.
        accuracy: in [0, 1].
        series: the name of the line it belongs to.
        label: written beside it; nothing by default.
        reference: whether it comes from somewhere else (a paper's table): a marker of its own, on no line.
    """

    size_bytes: int
    accuracy: float
    series: str = "featherweight"
    label: str = ""
    reference: bool = False


def plot_size_accuracy(points: Sequence[Point], path: str | Path, *, title: str = "") -> Path:
    """Draws file size in KB (1000 bytes, logarithmic) against accuracy in %, on white, and the same bytes each time as SVG.

    Points of a series are joined in order of size. Series differ in colour and in marker.

    Args:
        points: at least one.
        path: where to write; ends in .svg or .png.
        title: above the plot; nothing by default.

    Returns:
        The path written.

    Raises:
        RequestError: there are no points, a point is out of range, the path is unusable, or matplotlib is missing.

    Example:
        >>> points = [Point(44_000, 0.9926, series="paper", reference=True), Point(3_300, 0.9926), Point(5_000, 0.993)]
        >>> plot_size_accuracy(points, "sizes.svg", title="LeNet-5").name
        'sizes.svg'
    """
    if not points:
        raise RequestError("a plot needs at least one point, got none")
    for point in points:
        if point.size_bytes <= 0 or not 0 <= point.accuracy <= 1:
            raise RequestError(f"a point needs a positive size in bytes and an accuracy in [0, 1], got {point}")
    with canvas(path) as figure:
        _draw(figure.add_subplot(), points, title)
    return Path(path)


def plot_sensitivity(scan: Sensitivity, path: str | Path, *, title: str = "") -> Path:
    """Draws the accuracy in % against the sparsity in %, a line for each tensor, and the untouched network's as a dashed line.

    Args:
        scan: what `pruning.sensitivity.scan_sensitivity` found.
        path: where to write; ends in .svg or .png.
        title: above the plot; nothing by default.

    Returns:
        The path written.

    Raises:
        RequestError: the path is unusable, or matplotlib is missing.

    Example:
        >>> from featherweight.pruning.sensitivity import Sensitivity
        >>> scan = Sensitivity(0.98, (0.5, 0.9), {"fc1.weight": (0.98, 0.9)}, {"fc1.weight": 100})
        >>> plot_sensitivity(scan, "sensitivity.svg", title="LeNet-300-100").name
        'sensitivity.svg'
    """
    with canvas(path) as figure:
        _draw_sensitivity(figure.add_subplot(), scan, title)
    return Path(path)


def plot_bit_sensitivity(scan: BitSensitivity, path: str | Path, *, title: str = "") -> Path:
    """Draws the error of the outputs (logarithmic) against the bits of one tensor, a line for each tensor.

    Args:
        scan: what `quantization.scan_bits` found; errors of 0 are not drawn.
        path: where to write; ends in .svg or .png.
        title: above the plot; nothing by default.

    Returns:
        The path written.

    Raises:
        RequestError: the path is unusable, or matplotlib is missing.

    Example:
        >>> from featherweight.quantization import BitSensitivity
        >>> plot_bit_sensitivity(BitSensitivity((2, 4), {"fc1.weight": (0.1, 0.001)}, {"fc1.weight": 100}), "bits.svg").name
        'bits.svg'
    """
    with canvas(path) as figure:
        _draw_bit_sensitivity(figure.add_subplot(), scan, title)
    return Path(path)


@contextmanager
def canvas(path: str | Path, *, inches: tuple[float, float] = (7.2, 4.5)) -> Iterator[Figure]:
    """An empty figure in the style of all our plots, on white, written when the block ends well.

    Args:
        path: where to write; ends in .svg or .png.
        inches: width and height.

    Returns:
        A context that gives matplotlib's figure.

    Raises:
        RequestError: the path is unusable, or matplotlib is missing.

    Example:
        >>> with canvas("line.png") as figure:
        ...     _ = figure.add_subplot().plot([1, 2], [3, 4])
        >>> Path("line.png").exists()
        True
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise RequestError(f"a plot must end in {' or '.join(_FORMATS)}, got {str(path)!r}")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plots need matplotlib; install it with: pip install 'featherweight[plots]'") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=inches, dpi=160, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        _write(figure, path)


def _draw(axes: Axes, points: Sequence[Point], title: str) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator

    names = list(dict.fromkeys(point.series for point in points if not point.reference))
    for position, name in enumerate(names):
        mine = sorted((p for p in points if p.series == name and not p.reference), key=lambda p: p.size_bytes)
        axes.plot(
            [p.size_bytes / 1000 for p in mine],
            [p.accuracy * 100 for p in mine],
            color=COLOURS[position % len(COLOURS)],
            marker=MARKERS[position % len(MARKERS)],
            markersize=6,
            linewidth=1.6,
            label=name,
            zorder=3,
        )
    references = [point for point in points if point.reference]
    for position, name in enumerate(dict.fromkeys(point.series for point in references)):
        theirs = [p for p in references if p.series == name]
        axes.plot(
            [p.size_bytes / 1000 for p in theirs],
            [p.accuracy * 100 for p in theirs],
            color="black",
            marker=("*", "X", "p")[position % 3],
            markersize=10,
            linestyle="none",
            label=name,
            zorder=4,
        )
    halo = [withStroke(linewidth=3, foreground="white")]  # keeps a label readable where a line passes behind it
    for point in points:
        if point.label:
            at = (point.size_bytes / 1000, point.accuracy * 100)
            place: dict[str, Any] = {"xytext": (7, -4), "textcoords": "offset points", "va": "top"}
            axes.annotate(point.label, at, **place, fontsize=9, color="#333333", path_effects=halo, zorder=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="file size in KB (logarithmic)", ylabel="accuracy in %")
    axes.margins(x=0.12, y=0.12)
    if title:
        axes.set_title(title, pad=12)
    if len(axes.get_lines()) > 1:
        axes.figure.legend(loc="outside lower center", ncols=3)  # beside the data, whatever their shape


def _draw_sensitivity(axes: Axes, scan: Sensitivity, title: str) -> None:
    sparsities = [100 * sparsity for sparsity in (0.0, *scan.sparsities)]
    axes.axhline(scan.accuracy * 100, color="black", linestyle="--", linewidth=1.2)
    for position, (name, accuracies) in enumerate(scan.accuracies.items()):
        axes.plot(
            sparsities, [100 * accuracy for accuracy in (scan.accuracy, *accuracies)], label=name, **_line_style(position)
        )
    axes.set(xlabel="sparsity of one tensor in %, the others whole", ylabel="accuracy in %")
    if title:
        axes.set_title(title, pad=12)
    axes.figure.legend(loc="outside lower center", ncols=3)


def _draw_bit_sensitivity(axes: Axes, scan: BitSensitivity, title: str) -> None:
    for position, (name, errors) in enumerate(scan.errors.items()):
        drawn = [(bits, error) for bits, error in zip(scan.bits, errors, strict=True) if error > 0]
        axes.plot([bits for bits, _ in drawn], [error for _, error in drawn], label=name, **_line_style(position))
    axes.set(xlabel="bits of one tensor, the others whole", ylabel="error of the outputs", yscale="log", xticks=scan.bits)
    if title:
        axes.set_title(title, pad=12)
    axes.figure.legend(loc="outside lower center", ncols=3)


def _line_style(position: int) -> dict[str, Any]:
    """Of one of many lines: no colour and marker together twice before the 37th."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + position // len(COLOURS)) % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.4,
    }


def _write(figure: Figure, path: Path) -> None:
    """Writes without a date, so that the same points give the same bytes."""
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
