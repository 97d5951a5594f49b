"""Networks are compared at the width that matches, wherever that is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.experiments.compact_nets import make_net, nearest_width


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", ["resnet20", "squeezenet"])
def test_every_net_comes_near_the_parameters(name: str) -> None:
    width = nearest_width(name, count, 100_000)
    found = count(make_net(name, width))
    assert 0.93 * 100_000 < found < 1.07 * 100_000
    beside = [count(make_net(name, width * factor)) for factor in (1.04**-3, 1.04**3)]
    assert all(abs(found - 100_000) <= abs(other - 100_000) for other in beside)


def test_the_nearest_of_all_widths_is_found() -> None:
    counts = {count(make_net("squeezenet", 0.02 * 1.2**step)) for step in range(23)}
    for limit in (1, 20_000, 61_234, 150_000, 10**9):
        width = nearest_width("squeezenet", count, limit, ratio=1.2)
        assert count(make_net("squeezenet", width)) == min(counts, key=lambda found: abs(found - limit))


def test_few_networks_are_tried() -> None:
    tried = []

    def cost(net: nn.Module) -> float:
        tried.append(count(net))
        return float(tried[-1])

    nearest_width("mobilenet-v3-small", cost, 50_000.0, ratio=1.2)
    assert len(tried) == len(set(tried)) <= 6


def test_a_net_without_norms_does_not_fade_out() -> None:
    torch.manual_seed(0)
    net = make_net("squeezenet", 0.35).eval()
    features = net[:-4](torch.randn(8, 1, 28, 28))  # before the last convolution
    assert 0.1 < features.std() < 10


def test_unknown_net_is_an_error() -> None:
    with pytest.raises(RequestError, match="a network must be one of"):
        make_net("lenet5", 1.0)
