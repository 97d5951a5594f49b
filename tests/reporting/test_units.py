"""Numbers with units: three digits, rounded before the unit is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.reporting.units import bytes_text, count_text, percent_text, seconds_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.00 KB (1,000 B)"),
        (44_103, "44.1 KB (44,103 B)"),
        (999_499, "999 KB (999,499 B)"),
        (999_500, "1.00 MB (999,500 B)"),
        (1_726_000, "1.73 MB (1,726,000 B)"),
        (3 * 10**12, "3.00 TB (3,000,000,000,000 B)"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.00 K (1,000)"), (40_813_184, "40.8 M (40,813,184)")]
)
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(("fraction", "text"), [(None, "–"), (0.0, "0.00 %"), (0.9912, "99.12 %"), (1.0, "100.00 %")])
def test_percentages(fraction: float | None, text: str) -> None:
    assert percent_text(fraction) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (3e-10, "0.300 ns"),
        (83e-9, "83.0 ns"),
        (41.53e-6, "41.5 µs"),
        (999.6e-6, "1.00 ms"),
        (0.0032, "3.20 ms"),
        (0.5, "500 ms"),
        (1.068, "1.07 s"),
        (123.4, "123 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@given(st.floats(1e-9, 900))
def test_seconds_keep_three_digits(seconds: float) -> None:
    number, unit = seconds_text(seconds).split()
    scale = {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert float(number) * scale == pytest.approx(seconds, rel=0.0051)
    assert len(number.replace(".", "")) == 3
