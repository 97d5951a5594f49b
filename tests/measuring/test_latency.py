"""Latency: the deployed form's, robust to what else the machine does."""

from __future__ import annotations

import itertools
import math
import time

import onnxruntime
import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.measuring import latency
from featherweight.measuring.latency import compare_latency, measure_latency


def test_more_work_takes_longer() -> None:
    """96 times the multiply-accumulates; interleaved, so that a busy machine slows both."""
    small = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    large = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1))
    fast, slow = compare_latency([small, large], torch.randn(1, 3, 32, 32), seconds=0.2)
    assert slow.median_s > 2 * fast.median_s


def test_record() -> None:
    got = measure_latency(nn.Linear(64, 64), torch.randn(3, 64), threads=2, batch=5, seconds=0.05)
    assert (got.threads, got.batch, got.runtime) == (2, 5, f"onnxruntime {onnxruntime.__version__}")
    assert 0 < got.median_s < 0.05
    assert got.spread_s >= 0
    assert got.runs >= 7


def test_the_asked_batch_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    class Session:
        def run(self, names: None, feeds: dict[str, torch.Tensor]) -> None:
            shapes.append(feeds["input"].shape)

    monkeypatch.setattr(latency, "translate", lambda model, example: b"")
    monkeypatch.setattr(latency, "open_session", lambda content, threads: Session())
    measure_latency(nn.Linear(4, 2), torch.randn(3, 4), batch=7, seconds=1e-6)
    assert set(shapes) == {(7, 4)}


def test_turns_alternate() -> None:
    calls = []
    times = latency.time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], seconds=1e-4)
    turns = sum(first != second for first, second in itertools.pairwise(calls)) + 1
    assert turns >= 4  # two of warm-up, then one each at least
    assert min(map(len, times)) >= 7


def test_the_first_run_of_a_turn_is_not_counted() -> None:
    calls = []
    times = latency._turn(lambda: calls.append(None), seconds=1e-3)
    assert len(times) == len(calls) - 1


def test_a_slow_network_beside_a_fast_one_is_not_run_too_rarely() -> None:
    fast, slow = latency.time_in_turns([lambda: None, lambda: time.sleep(0.02)], seconds=1e-3)
    assert len(slow) >= 7
    assert sorted(fast)[len(fast) // 2] < 0.01 < sorted(slow)[len(slow) // 2]


def test_time_is_bounded_and_measured_in_seconds() -> None:
    start = time.perf_counter()
    (times,) = latency.time_in_turns([lambda: time.sleep(0.01)], seconds=0.1)
    assert time.perf_counter() - start < 5
    assert len(times) >= 7
    assert 0.01 <= sorted(times)[len(times) // 2] < 0.1


def test_summary_spelled_out() -> None:
    got = latency._summary([5.0, 1.0, 3.0, 2.0, 100.0], 2, 3, "runtime 1")
    assert got == latency.Latency(median_s=3.0, spread_s=3.0, runs=5, threads=2, batch=3, runtime="runtime 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be positive, got 0.0"),
        ({"seconds": math.nan}, "seconds must be positive, got nan"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), **options)


def test_nothing_to_compare() -> None:
    with pytest.raises(RequestError, match="at least one network"):
        compare_latency([], torch.zeros(1, 2))
