"""The sparse layers compute what the dense ones do, and store no zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.experiments.sizes import conv_net
from featherweight.experiments.weights_or_neurons import SparseConv, SparseLinear, sparsify
from featherweight.graph import fold
from featherweight.nets import lenet_300_100
from featherweight.pruning import prune_weights


@pytest.mark.parametrize("make", [conv_net, lenet_300_100])
@pytest.mark.parametrize("batch", [1, 5])
def test_sparse_network_is_the_same_function(make: type[nn.Sequential], batch: int) -> None:
    torch.manual_seed(0)
    net = fold(prune_weights(make(), sparsity=0.9)).eval()
    images = torch.randn(batch, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(sparsify(net)(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((2, 1), (0, 2))])
def test_sparse_convolution(stride: int, padding: int) -> None:
    layer = nn.Conv2d(3, 4, (3, 2), stride=stride, padding=padding)
    images = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(SparseConv(layer)(images), layer(images), rtol=1e-4, atol=1e-5)


def test_zeros_are_not_stored() -> None:
    layer = nn.Linear(10, 10)
    with torch.no_grad():
        layer.weight[:, 3:] = 0
    assert SparseLinear(layer).weight.values().numel() == 30
