"""Measurements as a person reads them: tables, plots, progress."""

from featherweight.reporting.plots import Point, plot_size_accuracy
from featherweight.reporting.progress import RichProgress
from featherweight.reporting.tables import before_after_markdown, print_before_after, print_contents, print_report

__all__ = [
    "Point",
    "RichProgress",
    "before_after_markdown",
    "plot_size_accuracy",
    "print_before_after",
    "print_contents",
    "print_report",
]
