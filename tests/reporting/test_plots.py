"""Plots: deterministic, with every point and name in them, and helpful when something is missing."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

from featherweight.errors import RequestError
from featherweight.pruning.sensitivity import Sensitivity
from featherweight.quantization import BitSensitivity
from featherweight.reporting import plots
from featherweight.reporting.plots import Point, plot_bit_sensitivity, plot_sensitivity, plot_size_accuracy

POINTS = [
    Point(44_103, 0.9896, "prune + cluster", label="6 bits"),
    Point(21_000, 0.97, "prune + cluster"),
    Point(1_726_400, 0.9912, "original"),
    Point(27_000, 0.9874, "Deep Compression (2016)", reference=True),
]


def test_svg_is_the_same_each_time_and_undated(tmp_path: Path) -> None:
    first = plot_size_accuracy(POINTS, tmp_path / "a.svg", title="LeNet-5").read_bytes()
    assert first == plot_size_accuracy(POINTS, tmp_path / "b.svg", title="LeNet-5").read_bytes()
    assert first.startswith(b"<?xml")
    assert b"dc:date" not in first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_png(tmp_path: Path) -> None:
    assert plot_size_accuracy(POINTS, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_everything_is_drawn_in_its_units() -> None:
    axes = Figure(layout="constrained").add_subplot()
    plots._draw(axes, POINTS, "LeNet-5")
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {
        "prune + cluster": [[21.0, 97.0], [44.103, pytest.approx(98.96)]],  # joined in order of size
        "original": [[1726.4, pytest.approx(99.12)]],
        "Deep Compression (2016)": [[27.0, pytest.approx(98.74)]],
    }
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["6 bits"]
    assert {text.get_text() for text in axes.figure.legends[0].get_texts()} == set(lines)
    assert len({line.get_color() for line in axes.get_lines()}) == len({line.get_marker() for line in axes.get_lines()}) == 3


SCAN = Sensitivity(
    0.9, (0.5, 0.8), {f"layer{i}.weight": (0.9 - i / 20, 0.1) for i in range(8)}, {f"layer{i}.weight": 9 for i in range(8)}
)


def test_sensitivity_draws_a_line_for_each_tensor_and_one_for_the_network() -> None:
    axes = Figure(layout="constrained").add_subplot()
    plots._draw_sensitivity(axes, SCAN, "LeNet")
    whole, *lines = axes.get_lines()
    assert whole.get_ydata() == [90.0, 90.0]
    assert [str(line.get_label()) for line in lines] == list(SCAN.accuracies)
    assert lines[2].get_xydata().tolist() == [[0.0, 90.0], [50.0, pytest.approx(80.0)], [80.0, pytest.approx(10.0)]]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8


def test_sensitivity_svg_is_the_same_each_time(tmp_path: Path) -> None:
    first = plot_sensitivity(SCAN, tmp_path / "a.svg", title="LeNet").read_bytes()
    assert first == plot_sensitivity(SCAN, tmp_path / "b.svg", title="LeNet").read_bytes()


def test_bit_sensitivity_draws_a_line_for_each_tensor_without_zeros(tmp_path: Path) -> None:
    scan = BitSensitivity(
        (2, 4, 8), {"conv.weight": (0.5, 0.01, 0.0), "fc.weight": (0.1, 0.2, 0.3)}, {"conv.weight": 9, "fc.weight": 4}
    )
    axes = Figure(layout="constrained").add_subplot()
    plots._draw_bit_sensitivity(axes, scan, "LeNet")
    assert [str(line.get_label()) for line in axes.get_lines()] == list(scan.errors)
    assert axes.get_lines()[0].get_xydata().tolist() == [[2.0, 0.5], [4.0, 0.01]]
    assert axes.get_yscale() == "log"
    assert plot_bit_sensitivity(scan, tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_global_settings_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_size_accuracy(POINTS, tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("points", "name", "message"),
    [
        ([], "a.svg", "at least one point"),
        (POINTS, "a.pdf", "must end in .svg or .png, got"),
        ([Point(0, 0.5)], "a.svg", "positive size in bytes"),
        ([Point(1, 99.0)], "a.svg", r"accuracy in \[0, 1\]"),
        ([Point(1, math.nan)], "a.svg", r"accuracy in \[0, 1\]"),
        (POINTS, "missing/a.svg", "must be writable"),
    ],
)
def test_bad_requests(points: list[Point], name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        plot_size_accuracy(points, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(RequestError, match=r"pip install 'featherweight\[plots\]'"):
        plot_size_accuracy(POINTS, tmp_path / "a.svg")
