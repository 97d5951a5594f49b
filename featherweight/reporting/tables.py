"""Reports as tables, for a terminal and for a README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featherweight.measuring.latency import speed_up
from featherweight.measuring.report import Report
from featherweight.reporting.units import bytes_text, count_text, percent_text, seconds_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from featherweight.packaging.reader import Contents

__all__ = ["before_after_markdown", "print_before_after", "print_contents", "print_report"]

_ENDLESS = 10_000


def print_before_after(before: Report, after: Report, *, console: Console | None = None) -> None:
    """Prints two reports side by side, with what changed.

    Args:
        before: of the network as it came.
        after: of the network it became.
        console: where to print; standard output by default.

    Example:
        >>> from featherweight.measuring import Report
        >>> before = Report(0.99, 2000, 500, 500, 450, 2e-5, 1e-6, 1, 1, "onnxruntime 1.31")
        >>> after = Report(0.98, 1000, 500, 250, 450, 2e-5, 1e-6, 1, 1, "onnxruntime 1.31")
        >>> print_before_after(before, after)  # doctest: +ELLIPSIS
        <BLANKLINE>
        ...
    """
    table = _table("", "before", "after", "change")
    for row in _before_after(before, after):
        table.add_row(*row)
    _print(table, console, note=_conditions(after))


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Prints one report, a line for each measurement.

    Args:
        report: what to print.
        console: where to print; standard output by default.

    Example:
        >>> from featherweight.measuring import Report
        >>> print_report(Report(0.99, 2000, 500, 500, 450, 2e-5, 1e-6, 1, 1, "onnxruntime 1.31"))  # doctest: +ELLIPSIS
        <BLANKLINE>
        ...
    """
    table = _table("", "")
    for name, value in _cells(report).items():
        table.add_row(name, value)
    if report.float_latency_s is not None and report.float_latency_spread_s is not None:
        table.add_row("in floats", _latency(report.float_latency_s, report.float_latency_spread_s))
        spread = (report.float_latency_spread_s + report.latency_spread_s) / 2
        table.add_row("by integers", _speed(report.float_latency_s, report.latency_s, spread))
    _print(table, console, note=_conditions(report))


def print_contents(contents: Contents, *, console: Console | None = None) -> None:
    """Prints what a `.fw` file holds: each tensor with its coder and its bits per weight, then where the bytes went.

    Args:
        contents: what `packaging.inspect` found.
        console: where to print; standard output by default.

    Example:
        >>> import torch
        >>> from featherweight.packaging import inspect, save
        >>> _ = save(torch.nn.Linear(3, 2), "layer.fw", example=torch.zeros(1, 3))
        >>> print_contents(inspect("layer.fw"))  # doctest: +ELLIPSIS
        <BLANKLINE>
        ...
    """
    from rich.text import Text

    table = _table("tensor", "shape", "coder", "bits per weight", "bytes", text_columns=3)
    for tensor in contents.tensors:
        name = Text(tensor.name)  # as it is: rich reads meaning into brackets
        shape = " × ".join(map(str, tensor.shape)) or "scalar"
        table.add_row(name, shape, tensor.coder, f"{tensor.bits_per_weight:.2f}", f"{tensor.size_bytes:,}")
    table.add_section()
    table.add_row("all tensors", "", "", "", f"{sum(tensor.size_bytes for tensor in contents.tensors):,}")
    table.add_row("architecture", "", "", "", f"{contents.architecture_bytes:,}")
    table.add_row("header", "", "", "", f"{contents.header_bytes:,}")
    table.add_row("file", "", "", "", f"{contents.total_bytes:,}")
    _print(table, console)


def before_after_markdown(before: Report, after: Report) -> str:
    """Two reports side by side as a Markdown table, for a README.

    Args:
        before: of the network as it came.
        after: of the network it became.

    Returns:
        The table and a line on how the latency was measured, ending with a newline.

    Example:
        >>> from featherweight.measuring import Report
        >>> before = Report(0.99, 2000, 500, 500, 450, 2e-5, 1e-6, 1, 1, "onnxruntime 1.31")
        >>> after = Report(0.98, 1000, 500, 250, 450, 2e-5, 1e-6, 1, 1, "onnxruntime 1.31")
        >>> before_after_markdown(before, after).splitlines()[3]
        '| file size | 2.00 KB (2,000 B) | 1.00 KB (1,000 B) | 2.00 × smaller |'
    """
    rows = [("", "before", "after", "change"), (":--", "--:", "--:", "--:"), *_before_after(before, after)]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return f"{table}\n{_conditions(after)}\n"


def _before_after(before: Report, after: Report) -> list[tuple[str, str, str, str]]:
    gains = {
        "accuracy": _points(before.accuracy, after.accuracy),
        "file size": _factor(before.size_bytes, after.size_bytes, "smaller", "larger"),
        "parameters": _factor(before.parameters, after.parameters, "fewer", "more"),
        "nonzero": _factor(before.nonzero_parameters, after.nonzero_parameters, "fewer", "more"),
        "MACs": _factor(before.macs, after.macs, "fewer", "more"),
        "latency": _speed(before.latency_s, after.latency_s, (before.latency_spread_s + after.latency_spread_s) / 2),
    }
    old, new = _cells(before), _cells(after)
    return [(name, old[name], new[name], gain) for name, gain in gains.items()]


def _cells(report: Report) -> dict[str, str]:
    """The rows of a table about one report: name and value."""
    return {
        "accuracy": percent_text(report.accuracy),
        "file size": bytes_text(report.size_bytes),
        "parameters": count_text(report.parameters),
        "nonzero": count_text(report.nonzero_parameters),
        "MACs": count_text(report.macs),
        "latency": _latency(report.latency_s, report.latency_spread_s),
    }


def _latency(median_s: float, spread_s: float) -> str:
    return f"{seconds_text(median_s)} (IQR {seconds_text(spread_s)})"


def _conditions(report: Report) -> str:
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    return (
        f"Latency: median and interquartile range (IQR) of a run at batch size {report.batch} on {threads}, {report.runtime}."
    )


def _points(before: float | None, after: float | None) -> str:
    """The change of an accuracy in percentage points."""
    if before is None or after is None:
        return "–"
    return f"{(after - before) * 100:+.2f} points"


def _speed(before_s: float, after_s: float, spread_s: float) -> str:
    """By what factor a latency changed, if the clock confirms it."""
    if speed_up(before_s, after_s, spread_s) is None:
        return "same, by this clock"
    return _factor(before_s, after_s, "faster", "slower")


def _factor(before: float, after: float, shrunk: str, grown: str) -> str:
    """By what factor a positive quantity changed, and to which side."""
    if before == after:
        return "same"
    if not (before and after):
        return "–"
    factor = max(before / after, after / before)
    digits = 0 if factor >= 99.95 else 1 if factor >= 9.995 else 2
    return f"{factor:.{digits}f} × {shrunk if after < before else grown}"


def _table(*columns: str, text_columns: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < text_columns else "right", overflow="fold")
    return table


def _print(table: Table, console: Console | None, note: str = "") -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    if not console.is_terminal:  # a file or a pipe has no width: lines are as long as they need to be
        table.width = Measurement.get(console, console.options.update_width(_ENDLESS), table).maximum
    console.print(table, crop=False)
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=not console.is_terminal)
