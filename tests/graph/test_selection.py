"""Which weights a method may change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrain
from featherweight.graph.selection import select_weights
from featherweight.pruning import Mask


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_weights_of_two_axes_or_more() -> None:
    assert list(select_weights(net())) == ["0.weight", "3.weight"]
    assert list(select_weights(net(), min_dim=1)) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert list(select_weights(net(), min_dim=3)) == ["0.weight"]


def test_patterns() -> None:
    assert list(select_weights(net(), include=["3.*"])) == ["3.weight"]
    assert next(iter(select_weights(net(), include=["*"], exclude=["0.*"], min_dim=1))) == "1.weight"
    assert list(select_weights(net(), include=["[03].bias"], min_dim=1)) == ["0.bias", "3.bias"]
    for options in ({"include": ["nothing"]}, {"include": []}, {"exclude": ["*"]}):
        with pytest.raises(RequestError, match="none"):
            select_weights(net(), **options)


def test_frozen_and_whole_number_parameters_are_left_alone() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    model.register_parameter("table", nn.Parameter(torch.zeros(2, 2, dtype=torch.int64), requires_grad=False))
    assert list(select_weights(model)) == ["3.weight"]
    assert select_weights(nn.ReLU()) == {}


def test_constrained_weights_by_their_plain_names() -> None:
    model = net()
    mask = torch.zeros(2, 4, dtype=torch.bool)
    constrain(model, "3.weight", Mask(mask))
    found = select_weights(model)
    assert set(found) == {"0.weight", "3.weight"}
    assert not found["3.weight"].any()
    assert not found["3.weight"].requires_grad


def test_tied_weights_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(select_weights(model)) == ["0.weight"]
