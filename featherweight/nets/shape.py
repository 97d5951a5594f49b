"""Checks of the sizes a network is asked for, shared by all networks here."""

from __future__ import annotations

import math

from featherweight.errors import RequestError, check

__all__ = ["check_image", "check_shape", "check_width", "features", "strides"]


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


def check_width(net: str, width: float) -> None:
    """Refuses a width that is no positive number.

    Args:
        net: the network's name, for the error.
        width: the factor on its channels.

    Raises:
        RequestError: it is not above 0, or not finite.
    """
    check(f"width of {net}", width, "a finite number above 0", 0 < width < math.inf)


_LEAST_LEFT = 3.5  # pixels a side of the last map; 7 where an image of 224 is halved 5 times


def strides(input_shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The strides of a network that halves its images `count` times: the first ones fall away where the images are small.

    As many halvings are left as leave at least 3.5 pixels a side: 5 from 112 pixels on, 4 from 56, 3 from 28, 2 from 14, 1 from
    7. So a net for 224 x 224 ends in maps of 4 x 4 on 28 x 28 and 32 x 32, as is usual there. (Padding may add a pixel, and
    convolutions without any take some.)

    Args:
        input_shape: (channels, rows, columns).
        count: how often the network halves large images.

    Returns:
        A stride for each, in the order of the network: first ones, then twos.

    Example:
        >>> strides((3, 224, 224), 5), strides((1, 28, 28), 5)
        ((2, 2, 2, 2, 2), (1, 1, 2, 2, 2))
    """
    side = min(input_shape[1:])
    kept: int = sum(side / 2**halving >= _LEAST_LEFT for halving in range(1, count + 1))
    return (1,) * (count - kept) + (2,) * kept
