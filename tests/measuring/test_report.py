"""The report: each field is what the function of that name measures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import to_module
from featherweight.measuring import report
from featherweight.measuring.latency import Latency
from featherweight.measuring.report import Report, measure
from featherweight.packaging import save
from featherweight.quantization.uniform import quantize_uniform


def small_net() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        net[3].weight[:, ::2] = 0
    return net


def batches(net: nn.Module, wrong: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of 5 whose targets are what the network says, except for the first `wrong` samples."""
    inputs = torch.randn(10, 1, 6, 6)
    with torch.no_grad():
        targets = net(inputs).argmax(1)
    targets[:wrong] = (targets[:wrong] + 1) % 3
    return list(zip(inputs.split(5), targets.split(5), strict=True))


@pytest.fixture
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about everything else: the latency costs an export."""
    monkeypatch.setattr(report, "compare_latency", lambda *_, **__: [Latency(1e-3, 1e-4, 7, 1, 1, "onnxruntime 0")])


def test_fields() -> None:
    net = small_net()
    got = measure(net, torch.randn(1, 1, 6, 6), data=batches(net, wrong=3))
    assert got.accuracy == pytest.approx(0.7)
    assert got.parameters == 18 + 2 + 96 + 3
    assert got.nonzero_parameters == 18 + 2 + 48 + 3
    assert got.macs == 2 * 4 * 4 * 9 + 32 * 3
    assert 0 < got.latency_s < 0.1
    assert got.latency_spread_s >= 0
    assert (got.threads, got.batch) == (1, 1)
    assert got.runtime.startswith("onnxruntime ")


@pytest.mark.usefixtures("_no_clock")
def test_file_program_and_module_measure_alike(tmp_path: Path) -> None:
    net, x, path = small_net(), torch.randn(1, 1, 6, 6), tmp_path / "net.fw"
    save(net, path, example=x)
    data = batches(net, wrong=1)
    reports = [
        measure(net, x, data=data),
        measure(to_module(net, x), data=data),
        measure(path, data=data),
        measure(str(path), data=data),
    ]
    exact = [(r.accuracy, r.size_bytes, r.parameters, r.nonzero_parameters, r.macs) for r in reports]
    assert exact == [(pytest.approx(0.9), path.stat().st_size, 119, 71, 384)] * 4


def test_a_latency_that_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featherweight.measuring.report.compare_latency", None)
    got = measure(small_net(), torch.randn(1, 1, 6, 6), latency=Latency(2e-6, 1e-7, 9, 4, 1, "a clock"))
    assert (got.latency_s, got.latency_spread_s, got.threads, got.runtime) == (2e-6, 1e-7, 4, "a clock")
    assert got.accuracy is None


@pytest.mark.usefixtures("_no_clock")
def test_progress_is_told() -> None:
    net, told = small_net(), []
    measure(net, torch.randn(1, 1, 6, 6), data=batches(net, 0), progress=lambda *call: told.append(call))
    assert ("latency", 1, 1) in told
    assert any(task != "latency" and done == total == 2 for task, done, total, *_ in told)


def test_json_round_trip() -> None:
    got = Report(0.99, 44_103, 430_500, 34_000, 2_293_000, 41e-6, 1e-6, 1, 1, "onnxruntime 1.31.1")
    assert Report(**json.loads(got.to_json())) == got
    assert list(got.as_dict())[:2] == ["accuracy", "size_bytes"]
    assert json.loads(Report(**{**got.as_dict(), "accuracy": None}).to_json())["accuracy"] is None


def test_a_module_needs_an_example() -> None:
    with pytest.raises(RequestError, match="measuring a Sequential needs an example input"):
        measure(small_net())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"net\.fw"):
        measure(tmp_path / "net.fw")


def test_a_quantized_network_is_timed_beside_itself_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def clock(models: list[nn.Module], *_: object, **__: object) -> list[Latency]:
        timed.extend(models)
        return [Latency(median, 1e-4, 7, 1, 1, "onnxruntime 0") for median in (1e-3, 3e-3)]

    monkeypatch.setattr(report, "compare_latency", clock)
    x = torch.randn(8, 1, 6, 6)
    net = small_net()
    quantized = quantize_uniform(net, x, activation_bits=8, calibrate=[(x, torch.zeros(8))])
    got = measure(quantized, x)
    assert (got.latency_s, got.float_latency_s, got.speed_up) == (1e-3, 3e-3, pytest.approx(3.0))
    with torch.no_grad():
        by_rounding = [(model(x) - net(x)).abs().max().item() for model in timed]
    assert by_rounding[1] < by_rounding[0]
    assert by_rounding[1] < 0.02  # its weights are on a grid, too


def test_what_the_clock_does_not_confirm_is_no_speed_up() -> None:
    usual = Report(None, 1, 1, 1, 1, 1e-3, 2e-4, 1, 1, "onnxruntime 0")
    assert usual.speed_up is None
    assert replace(usual, float_latency_s=1.1e-3, float_latency_spread_s=1e-4).speed_up is None
    assert replace(usual, float_latency_s=0.5e-3, float_latency_spread_s=1e-4).speed_up == pytest.approx(0.5)
