"""A small multilayer perceptron: the quickest network to try something on."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from featherweight.nets.shape import check_shape, features

__all__ = ["mlp"]


def mlp(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """Two hidden layers of 64 units with ReLU, on any input, which is flattened.

    Args:
        input_shape: of one sample, without the batch; every size at least 1.
        classes: number of outputs, at least 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes). On 1x8x8 inputs it has 8,970 parameters.

    Raises:
        RequestError: a size is below 1.

    Example:
        >>> sum(parameter.numel() for parameter in mlp(input_shape=(1, 8, 8)).parameters())
        8970
    """
    check_shape("mlp", input_shape, classes)
    layers: dict[str, nn.Module] = {
        "flatten": nn.Flatten(1),
        "fc1": nn.Linear(features(input_shape), 64),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(64, 64),
        "relu2": nn.ReLU(),
        "fc3": nn.Linear(64, classes),
    }
    return nn.Sequential(OrderedDict(layers))
