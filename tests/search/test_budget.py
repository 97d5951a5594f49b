"""Limits: read from text, checked, and compared with what was measured."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.measuring import Report
from featherweight.search import Budget


def report(**figures: Any) -> Report:
    usual = {
        "accuracy": 0.9, "size_bytes": 1000, "parameters": 300, "nonzero_parameters": 200, "macs": 5000, "latency_s": 2e-3,
        "latency_spread_s": 0.0, "threads": 1, "batch": 1, "runtime": "none",
    }  # fmt: skip
    return Report(**(usual | figures))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("", Budget()),
        ("size=44KB,accuracy_drop=0.2pp", Budget(size_bytes=44_000, accuracy_drop=0.2)),
        ("size = 2.3kb", Budget(size_bytes=2300)),
        ("size=1KiB", Budget(size_bytes=1024)),
        ("size=.5MB,", Budget(size_bytes=500_000)),
        ("size=17", Budget(size_bytes=17)),
        ("macs=1.5M", Budget(macs=1_500_000)),
        ("macs=2e3", Budget(macs=2000)),
        ("latency=2ms", Budget(latency_s=0.002)),
        ("latency=250us, macs=3k", Budget(latency_s=0.00025, macs=3000)),
        ("accuracy_drop=0", Budget(accuracy_drop=0)),
    ],
)
def test_text_is_read(text: str, budget: Budget) -> None:
    read = Budget.parse(text)
    assert read.latency_s == pytest.approx(budget.latency_s)
    assert (read.size_bytes, read.accuracy_drop, read.macs) == (budget.size_bytes, budget.accuracy_drop, budget.macs)
    assert read.size_bytes is None or isinstance(read.size_bytes, int)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bytes=3", "size, accuracy_drop, macs, latency, got 'bytes'"),
        ("size", "size must be a number"),
        ("size=", "size must be a number"),
        ("size=.", "size must be a number"),
        ("size=1.2.3KB", "size must be a number"),
        ("size=-1KB", "size must be a number"),
        ("size=nan", "size must be a number"),
        ("size=3ms", "with a unit of B, KB"),
        ("latency=3KB", "with a unit of s, ms, us"),
        ("accuracy_drop=1%", "with a unit of PP"),
        ("size=0", "at least 1"),
        ("macs=0.2", "at least 1"),
        ("size=1e999", "finite"),
        ("latency=0ms", "above 0"),
        ("latency=1e-999", "above 0"),
        ("accuracy_drop=100pp", r"\[0, 100\)"),
        ("size=1KB,size=2KB", "contradicts itself: size is set twice"),
        ("size=1KB;macs=3", "size must be a number"),
    ],
)
def test_wrong_text_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        Budget.parse(text)


@given(st.text(alphabet="size=macs,latency_drop. 0123456789eE+-KMGBipu", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(Budget.parse(text), Budget)


@pytest.mark.parametrize(
    "limits",
    [
        {"size_bytes": "44KB"}, {"size_bytes": 0}, {"macs": float("nan")}, {"latency_s": float("inf")}, {"latency_s": 0},
        {"accuracy_drop": -0.1}, {"accuracy_drop": 100}, {"macs": True},
    ],
)  # fmt: skip
def test_wrong_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(limits))):
        Budget(**limits)


def test_open_means_that_only_accuracy_is_limited() -> None:
    assert Budget().is_open
    assert Budget(accuracy_drop=1).is_open
    assert not Budget(macs=1).is_open


def test_limits_that_are_reached_exactly_are_kept() -> None:
    budget = Budget(size_bytes=1000, macs=5000, latency_s=2e-3, accuracy_drop=1)
    assert budget.excesses(report(accuracy=0.91), report()) == []


def test_excesses_say_which_limit_and_by_how_much() -> None:
    budget = Budget(size_bytes=990, macs=4000, latency_s=1e-3, accuracy_drop=1)
    size, accuracy, macs, latency = budget.excesses(report(accuracy=0.935), report())
    assert size == "size is 1000 bytes, 10 over the limit of 990"
    assert accuracy == "accuracy fell by 3.50 pp, 2.50 pp over the limit of 1 pp"
    assert macs == "macs are 5000, 1000 over the limit of 4000"
    assert latency == "latency is 2.000 ms, 1.000 ms over the limit of 1 ms"
