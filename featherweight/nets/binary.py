"""Networks for binary arithmetic: layers whose inputs are signs; `quantization.binarize_weights` makes signs of the weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from featherweight.errors import check
from featherweight.nets.lenet import pooled
from featherweight.nets.shape import check_image, check_shape, features

__all__ = ["BinaryActivation", "binary_mlp", "xnor_lenet5"]


class BinaryActivation(nn.Module):
    """The sign of each input: +1 where it is at least 0, else -1.

    Hubara, Courbariaux, Soudry, El-Yaniv and Bengio (NeurIPS 2016, section 1.3): the gradient passes as if this were hard tanh,
    and so is 0 beyond [-1, 1]. It is made of ordinary operations, so that a captured network trains with the same gradient.

    Example:
        >>> BinaryActivation()(torch.tensor([-0.3, 0.0, 5.0]))
        tensor([-1.,  1.,  1.])
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The signs, of the inputs' shape and dtype."""
        tamed = inputs.clamp(-1, 1)
        signs = torch.where(inputs >= 0, 1.0, -1.0).to(inputs.dtype)
        return signs + (tamed - tamed.detach())


def binary_mlp(
    *, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, hidden: int = 512, binary: bool = True
) -> nn.Module:
    """Three hidden layers of signs, each linear → batch norm → sign, on any input, which is flattened.

    The multilayer perceptron of Courbariaux, Bengio and David (BinaryConnect, NeurIPS 2015) and Hubara et al. (NeurIPS 2016),
    who have 1024 units in a hidden layer, or more. The outputs have a batch norm too, as theirs, which brings sums of signs to
    the size that a loss wants; layers need no bias before it.

    Args:
        input_shape: of one sample, without the batch; every size at least 1.
        classes: number of outputs, at least 1.
        hidden: units of each hidden layer, at least 1.
        binary: False has ReLU in place of the signs, as BinaryConnect has.

    Returns:
        The network: (B, *input_shape) -> (B, classes). On 28x28 inputs it has 933,908 parameters.

    Raises:
        RequestError: a size is below 1.

    Example:
        >>> sum(parameter.numel() for parameter in binary_mlp().parameters())
        933908
    """
    check_shape("binary-mlp", input_shape, classes)
    check("hidden", hidden, "at least 1", hidden >= 1)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten(1)}
    width = features(input_shape)
    for number in (1, 2, 3):
        layers[f"fc{number}"] = nn.Linear(width, hidden, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm1d(hidden)
        layers[f"sign{number}"] = BinaryActivation() if binary else nn.ReLU()
        width = hidden
    layers["fc4"] = nn.Linear(width, classes, bias=False)
    layers["norm4"] = nn.BatchNorm1d(classes)
    return nn.Sequential(OrderedDict(layers))


def xnor_lenet5(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, binary: bool = True) -> nn.Module:
    """LeNet-5 in XNOR-Net's blocks: batch norm → sign → convolution → pooling.

    Rastegari, Ordonez, Redmon and Farhadi (ECCV 2016, section 3.2), with the sizes of `lenet5`. The first and the last layer
    see real numbers, as theirs do, so binarize the weights of conv2 and fc1 only. Layers need no bias before a norm. Their
    factor K, one for each place of a layer's input, is left out: they found that it matters little beside that of the weights.

    Args:
        input_shape: (channels, rows, columns), at least 16 rows and columns.
        classes: number of outputs, at least 1.
        binary: False has ReLU in place of the signs: the network to compare with.

    Returns:
        The network: (B, *input_shape) -> (B, classes). On 1x28x28 inputs it has 431,650 parameters.

    Raises:
        RequestError: the input is no image, or too small.

    Example:
        >>> list(dict(xnor_lenet5().named_children()))[2:6]
        ['norm1', 'sign1', 'conv2', 'pool2']
    """
    channels, rows, columns = check_image("xnor-lenet5", input_shape, classes, 16)
    places = pooled(rows) * pooled(columns)
    activation = BinaryActivation if binary else nn.ReLU
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 20, 5, bias=False),
        "pool1": nn.MaxPool2d(2),
        "norm1": nn.BatchNorm2d(20),
        "sign1": activation(),
        "conv2": nn.Conv2d(20, 50, 5, bias=False),
        "pool2": nn.MaxPool2d(2),
        "norm2": nn.BatchNorm2d(50),
        "sign2": activation(),
        "flatten": nn.Flatten(1),
        "fc1": nn.Linear(50 * places, 500, bias=False),
        "norm3": nn.BatchNorm1d(500),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(500, classes),
    }
    return nn.Sequential(OrderedDict(layers))
