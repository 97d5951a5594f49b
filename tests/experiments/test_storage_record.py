"""What brings networks into few bytes: grids on all parameters, neurons that are gone, and which file is picked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from featherweight.experiments.experiment import Outcome
from featherweight.experiments.storage_record import EXPERIMENT, pick, put_on_grids, without_dead
from featherweight.graph.constraint import constrained, fold
from featherweight.nets import lenet5
from featherweight.quantization.grid import find_grid


def test_every_parameter_is_an_integer_times_a_coarse_step() -> None:
    torch.manual_seed(0)
    net = lenet5()
    plain = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    put_on_grids(net, coarseness={"*": 1.5})
    assert set(constrained(net)) == set(plain)
    for name, weight in fold(net).named_parameters():
        found = find_grid(weight.detach())
        assert found is not None
        coarse = 1.5 if weight.dim() > 1 else 0.5
        step = coarse * float(plain[name].square().mean().sqrt())
        assert torch.allclose(weight, torch.round(plain[name] / step) * step, atol=1e-6)
        assert int(found.integers.abs().max()) <= 4
    assert not any(weight.requires_grad for name, weight in net.named_parameters() if name.endswith("step"))


def test_neurons_with_only_zeros_go_and_nothing_changes() -> None:
    torch.manual_seed(0)
    net = lenet5()
    with torch.no_grad():
        for layer, later, channel, width in (
            (net.conv1, net.conv2, 3, 1),
            (net.conv2, net.fc1, 7, 16),
            (net.fc1, net.fc2, 9, 1),
        ):
            layer.weight[channel] = layer.bias[channel] = 0  # type: ignore[union-attr,operator]
            later.weight[:, channel * width : (channel + 1) * width] = 0  # type: ignore[union-attr,operator]
        net.conv2.weight[11] = 0  # type: ignore[union-attr,operator]
    put_on_grids(net, coarseness={"*": 1.5})
    images = torch.randn(3, 1, 28, 28)
    smaller = without_dead(net, images)
    assert [tuple(weight.shape) for weight in fold(smaller).parameters() if weight.dim() > 1] == [
        (19, 1, 5, 5), (49, 19, 5, 5), (499, 784), (10, 499),
    ]  # fmt: skip
    assert torch.allclose(smaller(images), net(images), atol=1e-4)


def test_one_neuron_stays() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    for weight in net.parameters():
        nn.init.zeros_(weight)
    assert without_dead(net, torch.zeros(2, 4))[0].weight.shape == (1, 4)  # type: ignore[index]


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 700), (0.9, 800), (0.5, 900)])
def test_pick(limit: float, expected: int) -> None:
    tried = [{"bytes": b, "validation": e} for b, e in ((900, 0.8), (800, 1.0), (700, 1.15), (600, 1.3))]
    assert pick(tried, limit)["bytes"] == expected


def test_table_puts_ours_below_theirs() -> None:
    def file(limit: float, size: int) -> dict[str, Any]:
        return {"limit": limit, "bytes": size, "test": 0.7, "validation": 0.8, "file": f"results/{limit}.fw"}

    outcomes = [Outcome({"way": "lenet5", "seed": 0}, {"tried": [], "files": [file(0.75, 2000), file(1.0, 1000)]}, 1.0)]
    rows = EXPERIMENT.table(outcomes).splitlines()[2:]
    assert [row.split(" | ")[3] for row in rows] == ["44,000", "2,840", "1,520", "**2,000**", "**1,000**"]
    assert all(row.startswith("| LeNet-5 (Caffe)") for row in rows)
