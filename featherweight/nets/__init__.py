"""Small networks to train, make smaller, and compare with the papers.

Their weights are PyTorch's default initialisation, drawn from its global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from featherweight.nets.binary import BinaryActivation, binary_mlp, xnor_lenet5
from featherweight.nets.ghostnet import GhostBottleneck, GhostModule, ghostnet
from featherweight.nets.layers import SeparableConv, SqueezeExcite
from featherweight.nets.lenet import lenet5, lenet_300_100
from featherweight.nets.mlp import mlp
from featherweight.nets.mobilenet import InvertedResidual, mobilenet_v1, mobilenet_v2, mobilenet_v3_small
from featherweight.nets.msdnet import msdnet
from featherweight.nets.resnet import resnet, resnet20
from featherweight.nets.shufflenet import ShuffleUnit, SplitUnit, shuffle_channels, shufflenet_v1, shufflenet_v2
from featherweight.nets.squeezenet import Fire, squeezenet
from featherweight.nets.transformer import Attention, TransformerBlock, text_encoder, vit
from featherweight.nets.xception import XceptionBlock, xception

__all__ = [
    "NETS",
    "Attention",
    "BinaryActivation",
    "Fire",
    "GhostBottleneck",
    "GhostModule",
    "InvertedResidual",
    "SeparableConv",
    "ShuffleUnit",
    "SplitUnit",
    "SqueezeExcite",
    "TransformerBlock",
    "XceptionBlock",
    "binary_mlp",
    "ghostnet",
    "lenet5",
    "lenet_300_100",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "msdnet",
    "resnet",
    "resnet20",
    "shuffle_channels",
    "shufflenet_v1",
    "shufflenet_v2",
    "squeezenet",
    "text_encoder",
    "vit",
    "xception",
    "xnor_lenet5",
]

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet5": lenet5,
    "mlp": mlp,
    "resnet20": resnet20,
    "squeezenet": squeezenet,
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3-small": mobilenet_v3_small,
    "shufflenet-v1": shufflenet_v1,
    "shufflenet-v2": shufflenet_v2,
    "xception": xception,
    "ghostnet": ghostnet,
    "vit": vit,
    "binary-mlp": binary_mlp,
    "xnor-lenet5": xnor_lenet5,
}
"""Networks by name; each takes `input_shape` (of one sample) and `classes`, both keyword-only."""
