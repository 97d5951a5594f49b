"""The networks that are compared have equal depth, and as many parameters as they may have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.experiments.blocks import BLOCKS, block_net, widest_net


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("parameters", [12_500, 50_000])
def test_sizes_are_close_below_the_limit(block: str, parameters: int) -> None:
    with torch.device("meta"):
        assert 0.8 * parameters < count(widest_net(block, parameters)) <= parameters


@pytest.mark.parametrize("block", BLOCKS)
def test_every_net_has_six_blocks_on_the_same_maps(block: str) -> None:
    net = block_net(block, 4.0).eval()
    sizes, features = [], torch.zeros(1, 1, 28, 28)
    for layer in net[:-1]:
        features = layer(features)
        sizes.append((features.shape[1], features.shape[2]))
    assert sizes == [(4, 14), (4, 14), (4, 14), (8, 7), (8, 7), (16, 4), (16, 4)]
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_unknown_block_is_an_error() -> None:
    with pytest.raises(RequestError, match="did you mean 'ghost'"):
        block_net("gost", 4.0)
