"""Tables hold the exact values, line up, and carry nothing but text where no terminal reads them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from featherweight.measuring.report import Report
from featherweight.packaging import inspect, save
from featherweight.packaging.reader import Contents, TensorContents
from featherweight.reporting.tables import before_after_markdown, print_before_after, print_contents, print_report

BEFORE = Report(0.9912, 1_726_400, 430_500, 430_000, 2_293_000, 123.4e-6, 2.5e-6, 1, 1, "onnxruntime 1.31.1")
AFTER = Report(0.9896, 44_103, 430_500, 34_267, 1_146_500, 152e-6, 3e-6, 1, 1, "onnxruntime 1.31.1")

MARKDOWN = """\
|  | before | after | change |
| :-- | --: | --: | --: |
| accuracy | 99.12 % | 98.96 % | -0.16 points |
| file size | 1.73 MB (1,726,400 B) | 44.1 KB (44,103 B) | 39.1 × smaller |
| parameters | 430 K (430,500) | 430 K (430,500) | same |
| nonzero | 430 K (430,000) | 34.3 K (34,267) | 12.5 × fewer |
| MACs | 2.29 M (2,293,000) | 1.15 M (1,146,500) | 2.00 × fewer |
| latency | 123 µs (IQR 2.50 µs) | 152 µs (IQR 3.00 µs) | 1.23 × slower |

Latency: median and interquartile range (IQR) of a run at batch size 1 on 1 thread, onnxruntime 1.31.1.
"""


def printed(draw: Callable[[Console], None], *, terminal: bool = False, width: int | None = None) -> str:
    out = io.StringIO()
    draw(Console(file=out, force_terminal=terminal, width=width, color_system=None))
    return out.getvalue()


def rows_of(text: str) -> dict[str, str]:
    """The printed lines by their first cell."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {row[0]: " | ".join(row[1:]) for row in cells if row}


def test_markdown_golden() -> None:
    assert before_after_markdown(BEFORE, AFTER) == MARKDOWN


def test_before_after_holds_what_the_markdown_holds() -> None:
    rows = rows_of(printed(lambda console: print_before_after(BEFORE, AFTER, console=console)))
    for line in MARKDOWN.splitlines()[2:8]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert rows[name] == " | ".join(cells)


@pytest.mark.parametrize("width", [20, 200])
def test_no_terminal_no_wrapping_no_codes(width: int) -> None:
    text = printed(lambda console: print_before_after(BEFORE, AFTER, console=console), width=width)
    assert "\x1b" not in text
    lines = text.splitlines()
    ends = [max(line.index(unit) + len(unit) for line in lines if unit in line) for unit in ("(1,726,400 B)", "(430,500)")]
    assert ends[0] == ends[1]  # aligned on the right
    assert [line.split()[0] for line in lines[3:9]] == ["accuracy", "file", "parameters", "nonzero", "MACs", "latency"]


def test_terminal_of_80_columns_is_wide_enough() -> None:
    text = printed(lambda console: print_before_after(BEFORE, AFTER, console=console), terminal=True, width=80)
    assert rows_of(text)["file size"] == "1.73 MB (1,726,400 B) | 44.1 KB (44,103 B) | 39.1 × smaller"
    assert max(map(len, text.splitlines())) <= 80


def test_narrow_terminal_loses_nothing() -> None:
    text = printed(lambda console: print_before_after(BEFORE, AFTER, console=console), terminal=True, width=50)
    assert "1.73 MB" in text
    assert "…" not in text


def test_one_report() -> None:
    rows = rows_of(printed(lambda console: print_report(AFTER, console=console)))
    assert rows["accuracy"] == "98.96 %"
    assert rows["file size"] == "44.1 KB (44,103 B)"
    assert rows["nonzero"] == "34.3 K (34,267)"
    assert rows["latency"] == "152 µs (IQR 3.00 µs)"


def test_several_threads_are_said() -> None:
    text = printed(lambda console: print_report(dataclasses.replace(AFTER, threads=4, batch=8), console=console))
    assert "batch size 8 on 4 threads" in " ".join(text.split())


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({"accuracy": None}, {}, "| accuracy | – | 98.96 % | – |"),
        ({"macs": 0}, {"macs": 0}, "| MACs | 0 | 0 | same |"),
        ({"macs": 5}, {"macs": 0}, "| MACs | 5 | 0 | – |"),
        ({"macs": 999}, {"macs": 10}, "| MACs | 999 | 10 | 99.9 × fewer |"),
        ({"macs": 9996}, {"macs": 100}, "| MACs | 10.0 K (9,996) | 100 | 100 × fewer |"),
        ({"size_bytes": 100}, {"size_bytes": 150}, "| file size | 100 B | 150 B | 1.50 × larger |"),
        ({"accuracy": 0.5}, {"accuracy": 0.525}, "| accuracy | 50.00 % | 52.50 % | +2.50 points |"),
    ],
)
def test_changes(before: dict[str, float], after: dict[str, float], change: str) -> None:
    text = before_after_markdown(dataclasses.replace(BEFORE, **before), dataclasses.replace(AFTER, **after))
    assert change in text.splitlines()


def test_contents() -> None:
    tensors = (
        TensorContents("conv1.weight", (20, 1, 5, 5), torch.float32, "huffman", size_bytes=270),  # 8 · 270 / 500 bits
        TensorContents("[scale]", (), torch.float32, "raw", size_bytes=4),
    )
    contents = Contents(has_network=True, header_bytes=56, architecture_bytes=1_234, tensors=tensors)
    rows = rows_of(printed(lambda console: print_contents(contents, console=console)))
    assert rows["conv1.weight"] == "20 × 1 × 5 × 5 | huffman | 4.32 | 270"
    assert rows["[scale]"] == "scalar | raw | 32.00 | 4"
    assert rows["all tensors"] == "274"
    assert (rows["architecture"], rows["header"], rows["file"]) == ("1,234", "56", "1,564")


def test_contents_of_a_real_file(tmp_path: Path) -> None:
    size = save(nn.Linear(30, 20), tmp_path / "net.fw", example=torch.zeros(1, 30))
    rows = rows_of(printed(lambda console: print_contents(inspect(tmp_path / "net.fw"), console=console)))
    assert rows["file"] == f"{size:,}"
    assert rows["weight"].startswith("20 × 30 | ")


@pytest.mark.parametrize(
    ("float_s", "said"), [(300e-6, "1.97 × faster"), (100e-6, "1.52 × slower"), (153e-6, "same, by this clock")]
)
def test_integers_are_faster_only_where_the_clock_says_so(float_s: float, said: str) -> None:
    quantized = dataclasses.replace(AFTER, float_latency_s=float_s, float_latency_spread_s=1e-6)
    rows = rows_of(printed(lambda console: print_report(quantized, console=console)))
    assert rows["by integers"] == said
    assert "in floats" not in rows_of(printed(lambda console: print_report(AFTER, console=console)))
