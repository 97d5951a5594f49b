"""MSDNet: answers of all exits, every layer used, and a network that runs exit by exit without computing anything twice."""

from __future__ import annotations

import pytest
import torch

from featherweight.dynamic import ExitNetwork
from featherweight.errors import RequestError
from featherweight.graph.cost import count_macs
from featherweight.nets import msdnet


def test_answers_come_stage_by_stage() -> None:
    model = msdnet(input_shape=(1, 17, 16), classes=3, exits=3, layers=1, channels=4, growth=2).eval()
    x = torch.randn(4, 1, 17, 16)
    net, wanted = ExitNetwork(model, x), model(x)
    assert [answer.shape for answer in wanted] == [(4, 3)] * 3
    assert all(torch.equal(a, b) for a, b in zip(net.step(x), wanted, strict=True))
    assert net.cost_of_leaving(2).macs == count_macs(net.network.program, net.network.state_dict())
    assert len(net.stages[1].takes) == 3  # one for each scale
    assert net.cost(0).macs < net.cost(1).macs < net.cost(2).macs


def test_every_layer_is_needed_by_an_exit() -> None:
    model = msdnet(exits=2, layers=2, channels=4, growth=2)
    sum(answer.square().sum() for answer in model(torch.randn(3, 1, 28, 28))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_wrong_sizes() -> None:
    for options, message in (
        ({"exits": 1}, "exits of msdnet must be a whole number of at least 2"),
        ({"layers": 0}, "layers of msdnet"),
        ({"growth": 3}, "growth of msdnet must be even"),
        ({"input_shape": (1, 15, 28)}, "at least 16x16 pixels"),
    ):
        with pytest.raises(RequestError, match=message):
            msdnet(**options)  # type: ignore[arg-type]
