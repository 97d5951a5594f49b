"""What the experiment on dynamic networks measures, and what its tables make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from featherweight.dynamic import Cost
from featherweight.dynamic.policy import Record
from featherweight.experiments import dynamic_networks
from featherweight.experiments.dynamic_clock import calibrated, mean_seconds, one_thread
from featherweight.experiments.dynamic_networks import KINDS, conv_head, network, own_class
from featherweight.experiments.dynamic_tables import clocks, tables
from featherweight.experiments.dynamic_wave import hexadecimal
from featherweight.experiments.experiment import Lab, Outcome
from featherweight.nets import resnet

CELL = {"data": "mnist", "samples": 200, "depth": 8, "epochs": 1, "seed": 3}


@pytest.mark.parametrize(("channels", "side"), [(16, 14), (32, 7), (64, 4), (8, 3)])
def test_heads_see_every_pixel(channels: int, side: int) -> None:
    head = conv_head(channels, (side, side), 10).eval()
    features = torch.zeros(1, channels, side, side, requires_grad=True)
    answer = head(features)
    assert answer.shape == (1, 10)
    head(features + torch.randn_like(features)).sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum((0, 1)) > 0).all()


def test_all_take_turns_and_see_every_image_once() -> None:
    seen: list[tuple[str, int]] = []
    runs = {name: lambda images, name=name: seen.append((name, len(images))) for name in "ab"}
    found = mean_seconds(runs, torch.zeros(7, 1), batch=3)
    assert seen == [turn for size in (3, 3, 1) for turn in [("a", size)] * 2 + [("b", size)] * 2]  # one untimed, one timed
    assert set(found) == {"a", "b"}
    assert all(seconds >= 0 for seconds in found.values())


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_thresholds_are_the_cheapest_that_reach_the_accuracy_or_the_best() -> None:
    confidences = torch.tensor([[0.9, 0.8, 0.3, 0.2]])
    right = torch.tensor([[True, False, True, False], [True, True, True, False]])
    record = Record(confidences, right, (Cost(10), Cost(30)))
    assert calibrated(record, 0.75).shares == (0.25, 0.75)  # the second must go on
    assert calibrated(record, 0.5).shares == (1.0, 0.0)
    assert calibrated(record, 0.9).accuracy == 0.75  # out of reach: the best


def test_networks_are_trained_once_and_kept_bit_for_bit(
    small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, small_mnist)
    first = network("plain", CELL, lab)
    monkeypatch.setattr(dynamic_networks, "KINDS", {"plain": replace(KINDS["plain"], make=_fail)})
    second = network("plain", CELL, lab)
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(first(images), second(images))
    own = own_class(second, CELL)
    assert type(own) is type(resnet(8, stride=2))
    torch.testing.assert_close(own(images), second(images))


def test_images_survive_as_hexadecimal_digits() -> None:
    image = torch.tensor([[0.0, 1.0], [0.2, 0.4]]) * 3 - 1  # normalised somehow
    assert bytes.fromhex(hexadecimal(image)) == bytes([0, 255, 51, 102])


def _fail(*_: object) -> None:
    pytest.fail("the network was trained again")


def timed(seed: int, plain: float, exits: float) -> Outcome:
    def row(macs: float, test: float, seconds: float) -> dict[str, float]:
        return {"macs": macs, "test": test, "torch, 1": seconds, "torch, 64": seconds / 2, "onnx, 1": 1.0, "onnx, 64": 0.5}

    result: dict[str, Any] = {"plain": row(2e6, 90.0, plain), "joint@0.2 points less": row(1e6, 89.0, exits)}
    return Outcome({"timed": ["plain", "exits"], "data": "mnist", "seed": seed}, result, 1.0)


def test_ratios_are_to_the_plain_network() -> None:
    (one, two) = clocks([timed(0, 4.0, 1.0), timed(1, 6.0, 2.0)])["joint@0.2 points less"]
    assert (one["times torch, 1"], two["times torch, 1"]) == (4.0, 3.0)
    assert one["times torch, 64"] == 4.0
    assert one["times onnx, 1"] == 1.0
    table = tables([timed(0, 4.0, 1.0), timed(1, 6.0, 2.0)])
    row = next(line for line in table.splitlines() if line.startswith("| exits: 0.2 points less"))
    assert row.startswith("| exits: 0.2 points less | 1.00 | 89.00 ± 0.00 | 1.500 (3.50 ± 0.71 ×) |")


def test_tables_of_exits_and_widths_have_a_column_for_each() -> None:
    def trained(kind: str, *test: float) -> Outcome:
        return Outcome({"net": kind, "data": "mnist", "seed": 0}, {"test": list(test)}, 1.0)

    outcomes = [trained("plain", 98.0), trained("joint", 95.0, 96.0, 97.0, 98.5)]
    outcomes += [trained(f"narrow-{width}", value) for width, value in ((0.25, 80.0), (0.5, 85.0), (0.75, 88.0))]
    outcomes += [trained("slimmable", 79.0, 84.0, 87.0, 97.0)]
    lines = tables(outcomes).splitlines()
    assert "| plain |  |  |  | 98.00 |" in lines
    assert "| exits | 95.00 | 96.00 | 97.00 | 98.50 |" in lines
    assert "| trained alone | 80.00 | 85.00 | 88.00 | 98.00 |" in lines
    assert "| slimmable | 79.00 | 84.00 | 87.00 | 97.00 |" in lines


def test_the_controllers_switches_and_misses_are_counted() -> None:
    found = {"limit": [2.0, 2.0, 1.0, 1.0], "milliseconds": [1.5, 2.5, 0.5, 0.5], "exit": [3, 3, 0, 0], "right": [1, 1, 0, 1]}
    text = tables([Outcome({"steered": "exits", "data": "mnist", "seed": 0}, found, 1.0)])
    assert "switched 1 time in 4 images" in text
    assert "jumped 1 time;" in text
    assert "75.0 % of the answers kept it" in text
    assert "Large budget: 2.000 ms of 2.000, 100.0 % right" in text
    assert "Small budget: 0.500 ms of 1.000, 50.0 % right" in text
