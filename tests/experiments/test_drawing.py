"""Panels: what is drawn is what was given, and an axis that is cut has no bars on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from featherweight.errors import RequestError
from featherweight.experiments import drawing
from featherweight.experiments.drawing import Bar, BarPanel, Line, LinePanel, draw_panels

LINES = LinePanel(
    "accuracy",
    "weights kept, %",
    "accuracy, %",
    [Line("ours", [100, 50], [97, 98], [0.1, 0.2]), Line("theirs", [100, 50], [96, 97], reference=True)],
    logarithmic=True,
    reversed=True,
    ylimits=(90, 100),
)
BARS = [Bar("random", 10.0, 2.0), Bar("learned", 94.0, 1.0, reference=95.3)]


def test_lines() -> None:
    axes = Figure().add_subplot()
    drawing._draw_lines(axes, LINES)
    ours, theirs = (container.lines[0] for container in axes.containers)
    assert ours.get_xydata().tolist() == [[100, 97], [50, 98]]
    assert theirs.get_color() == "black"
    segments = axes.containers[0].lines[2][0].get_segments()
    assert [[round(y, 6) for _, y in segment] for segment in segments] == [[96.9, 97.1], [97.8, 98.2]]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert axes.get_ylim() == (90, 100)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]


def test_bars_start_at_zero_and_are_in_order() -> None:
    axes = Figure().add_subplot()
    drawing._draw_bars(axes, BarPanel("masks", "accuracy, %", BARS, limits=(0, 100)))
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 10.0), (0, 94.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "learned"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    star = next(line for line in axes.get_lines() if line.get_label() == "paper")
    assert star.get_xydata().tolist() == [[95.3, 1.0]]


def test_a_cut_axis_has_dots() -> None:
    axes = Figure().add_subplot()
    drawing._draw_bars(axes, BarPanel("masks", "accuracy, %", BARS, limits=(5, 100)))
    assert len(axes.patches) == 0
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[10.0, 0.0], [94.0, 1.0]]


def test_a_row_of_panels(tmp_path: Path) -> None:
    draw_panels([LINES, BarPanel("masks", "accuracy, %", BARS[:1])], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match=r"must end in \.svg or \.png"):
        draw_panels([LINES], tmp_path / "plot.txt")
