"""Every error that featherweight raises on purpose.

    FeatherweightError
    ├── RequestError            the request is wrong: a name, an option, a budget, a path
    │   ├── DataError           a data set that is missing, or does not fit the network
    │   └── WeightsError        weights that do not fit the network, or are not finite
    ├── CaptureError            the network could not be captured as a program
    │   └── UnsupportedOpError  one operation stands in the way (named, with the user's file:line)
    ├── FormatError             a .fw file that is damaged, cut short, or not one at all
    └── TrainingError           training went wrong: the loss became NaN or infinite

A message states the rule, what was got, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = [
    "CaptureError",
    "DataError",
    "FeatherweightError",
    "FormatError",
    "RequestError",
    "TrainingError",
    "UnsupportedOpError",
    "WeightsError",
    "check",
    "look_up",
]

T = TypeVar("T")


class FeatherweightError(Exception):
    """The root of the tree: catch this to catch everything the library raises on purpose."""


class RequestError(FeatherweightError, ValueError):
    """What was asked for is wrong: an unknown name, an option out of range, a contradictory budget, an unusable path."""


class DataError(RequestError):
    """A data set is missing, malformed, or does not fit the network."""


class WeightsError(RequestError):
    """Weights do not fit the network (names and shapes are listed), or hold NaN or infinity."""


class CaptureError(FeatherweightError):
    """`torch.export` could not capture the network."""


class UnsupportedOpError(CaptureError):
    """One operation of the network cannot be handled; the message names it and the file:line it comes from."""


class FormatError(FeatherweightError):
    """A .fw file is damaged, cut short, or not a .fw file."""


class TrainingError(FeatherweightError):
    """Training went wrong, for example because the loss became NaN.

    `good_epochs` says how many epochs had ended well; the network holds the weights after the last of them.
    """

    def __init__(self, message: str, *, good_epochs: int = 0) -> None:
        super().__init__(message)
        self.good_epochs = good_epochs


def check(name: str, value: object, rule: str, holds: bool) -> None:
    """Raises unless a setting keeps its rule.

    Args:
        name: of the setting.
        value: what was got.
        rule: what it must be ("in [0, 1)").
        holds: whether it is.

    Raises:
        RequestError: it does not.

    Example:
        >>> check("epochs", 3, "at least 0", 3 >= 0)
    """
    if not holds:
        raise RequestError(f"{name} must be {rule}, got {value!r}")


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """The row called `name`, or an error that names the rows there are.

    Args:
        table: names to rows.
        name: the row asked for.
        what: what a row is ("criterion"), for the message.

    Returns:
        The row.

    Raises:
        RequestError: there is no such row.

    Example:
        >>> look_up({"magnitude": 1}, "magnitude", "criterion")
        1
    """
    if name in table:
        return table[name]
    close = get_close_matches(name, table, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise RequestError(f"{what} must be one of {', '.join(table)}, got {name!r}{hint}")
