"""Small networks to train, make smaller, and compare with the papers.

Their weights are PyTorch's default initialisation, drawn from its global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from featherweight.nets.lenet import lenet5, lenet_300_100
from featherweight.nets.mlp import mlp
from featherweight.nets.resnet import resnet20

__all__ = ["NETS", "lenet5", "lenet_300_100", "mlp", "resnet20"]

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet5": lenet5,
    "mlp": mlp,
    "resnet20": resnet20,
}
"""Networks by name; each takes `input_shape` (of one sample) and `classes`, both keyword-only."""
