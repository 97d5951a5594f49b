"""Checks of the sizes a network is asked for, shared by all networks here."""

from __future__ import annotations

import math

from featherweight.errors import RequestError

__all__ = ["check_image", "check_shape", "features"]


def features(input_shape: tuple[int, ...]) -> int:
    """How many numbers one sample has.

    Args:
        input_shape: of one sample.

    Returns:
        The product of the sizes.

    Example:
        >>> features((3, 32, 32))
        3072
    """
    return math.prod(input_shape)


def check_shape(net: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Refuses sizes below 1.

    Args:
        net: the network's name, for the error.
        input_shape: of one sample, without the batch.
        classes: number of outputs.

    Raises:
        RequestError: a size is below 1, or there is none.
    """
    if not input_shape or min(input_shape) < 1:
        raise RequestError(f"{net} needs an input shape of sizes >= 1, without the batch, got {input_shape}")
    if classes < 1:
        raise RequestError(f"{net} needs at least 1 class, got {classes}")


def check_image(net: str, input_shape: tuple[int, ...], classes: int, smallest: int) -> tuple[int, int, int]:
    """Refuses what is not an image of at least `smallest` x `smallest` pixels.

    Args:
        net: the network's name, for the error.
        input_shape: should be (channels, rows, columns).
        classes: number of outputs, at least 1.
        smallest: the fewest rows and columns.

    Returns:
        (channels, rows, columns).

    Raises:
        RequestError: it is no image, or too small.

    Example:
        >>> check_image("lenet5", (1, 28, 28), 10, 16)
        (1, 28, 28)
    """
    check_shape(net, input_shape, classes)
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise RequestError(
            f"{net} needs images (channels, rows, columns) of at least {smallest}x{smallest} pixels, got {input_shape}; "
            "mlp and lenet-300-100 take any shape"
        )
    channels, rows, columns = input_shape
    return channels, rows, columns
