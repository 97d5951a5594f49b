"""The networks of the zoo as small as is enough for a test, and their programs, captured once."""

from __future__ import annotations

import functools
import inspect

import torch
from torch import nn

from featherweight.graph.capture import to_module
from featherweight.graph.program import ProgramModule
from featherweight.nets import NETS

SHAPE, CLASSES = (3, 16, 16), 5
# Those for images of many sizes; resnet20 has a width too, but strides of its own.
COMPACT = [name for name in NETS if "width" in inspect.signature(NETS[name]).parameters and name != "resnet20"]


def small(name: str, **options: object) -> nn.Module:
    """The network at a quarter of its width, if it can be made so."""
    return NETS[name](**options, **({"width": 0.25} if name in COMPACT else {}))


@functools.cache
def captured(name: str) -> tuple[nn.Module, ProgramModule]:
    """A network in eval mode, whose norms are not trivial, and the program of the same weights."""
    torch.manual_seed(0)
    model = small(name, input_shape=SHAPE, classes=CLASSES).eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return model, to_module(model, torch.zeros(2, *SHAPE)).eval()
