"""Small networks and data for the tests of pruning neurons."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from featherweight.graph.capture import to_module
from featherweight.graph.constraint import duplicate

__all__ = ["DATA", "EXAMPLE", "captured_chain", "chain", "permuted"]

_GENERATOR = torch.Generator().manual_seed(1)

DATA = [
    (torch.randn(count, 2, 8, 8, generator=_GENERATOR), torch.randint(3, (count,), generator=_GENERATOR)) for count in (6, 3)
]
"""Two batches of different size for `chain`."""

EXAMPLE = DATA[0][0][:1]


def chain() -> nn.Sequential:
    """Two convolutions, the first with a batch norm, and a linear layer behind pooling and flattening: groups of 5 and 4."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
        if name.endswith("running_var"):
            tensor.square_().add_(0.5)
    return net


def captured_chain() -> nn.Module:
    """`chain` as a captured program, which saves capturing it in every test."""
    return duplicate(_captured())


@cache
def _captured() -> nn.Module:
    return to_module(chain(), EXAMPLE)


def permuted(net: nn.Module, order: torch.Tensor) -> nn.Module:
    """The same function, with the channels of `chain`'s first convolution in another order."""
    state = net.state_dict()
    for name, tensor in state.items():
        if name.startswith(("0.", "1.")) and tensor.dim():
            tensor.copy_(tensor[order])
    state["4.weight"].copy_(state["4.weight"][:, order])
    return net
