"""The two LeNets that papers on compression measure themselves by."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from featherweight.nets.shape import check_image, check_shape, features

__all__ = ["lenet5", "lenet_300_100", "pooled"]


def lenet_300_100(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """LeNet-300-100: fully connected layers of 300 and 100 units with ReLU, on any input, which is flattened.

    LeCun, Bottou, Bengio and Haffner (1998), with ReLU in place of their scaled tanh, as in Han, Pool, Tran and Dally (2015).

    Args:
        input_shape: of one sample, without the batch; every size at least 1.
        classes: number of outputs, at least 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes). On 28x28 inputs it has 266,610 parameters.

    Raises:
        RequestError: a size is below 1.

    Example:
        >>> sum(parameter.numel() for parameter in lenet_300_100().parameters())
        266610
    """
    check_shape("lenet-300-100", input_shape, classes)
    layers: dict[str, nn.Module] = {
        "flatten": nn.Flatten(1),
        "fc1": nn.Linear(features(input_shape), 300),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(300, 100),
        "relu2": nn.ReLU(),
        "fc3": nn.Linear(100, classes),
    }
    return nn.Sequential(OrderedDict(layers))


_SMALLEST = 16  # -4, /2, -4, /2 leaves one pixel of 16 and none of 15


def lenet5(*, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """LeNet-5 as Caffe has it (Jia et al., 2014), which the papers on pruning and quantization call LeNet-5.

    Two 5x5 convolutions without padding to 20 and 50 channels, each followed by 2x2 max pooling and nothing else, then 500
    units with ReLU. LeCun et al. (1998) had 6 and 16 channels, subsampling with weights, and tanh.

    Args:
        input_shape: (channels, rows, columns), at least 16 rows and columns.
        classes: number of outputs, at least 1.

    Returns:
        The network: (B, *input_shape) -> (B, classes). On 1x28x28 inputs it has 431,080 parameters.

    Raises:
        RequestError: the input is no image, or too small.

    Example:
        >>> sum(parameter.numel() for parameter in lenet5().parameters())
        431080
    """
    channels, rows, columns = check_image("lenet5", input_shape, classes, _SMALLEST)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 20, 5),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(1),
        "fc1": nn.Linear(50 * pooled(rows) * pooled(columns), 500),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(500, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def pooled(size: int) -> int:
    """What LeNet-5's two convolutions and two poolings leave of `size` pixels in a row or a column.

    Example:
        >>> pooled(28)
        4
    """
    return ((size - 4) // 2 - 4) // 2
