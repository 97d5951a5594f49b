"""Reading bytes that nobody vouches for: every step is checked against what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from featherweight.errors import FormatError, RequestError

__all__ = ["Cursor", "signed", "string", "utf8", "varint"]

Item = TypeVar("Item")


class Cursor:
    """A position in a buffer. Each method reads one item of SPEC.md §1 and moves on.

    Args:
        data: what to read.
        what: its name in error messages.

    Raises:
        FormatError: (every method) the buffer ends before the item does, or the item is malformed.

    Example:
        >>> cursor = Cursor(b"\\x05\\xac\\x02", "an example")
        >>> cursor.byte(), cursor.varint(), cursor.left
        (5, 300, 0)
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.what = what

    @property
    def left(self) -> int:
        """The number of bytes not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        if size > self.left:
            raise FormatError(f"{self.what} is cut short: {size} more bytes expected at byte {self._at}, got {self.left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """An unsigned number below 2^64."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                if (byte == 0 and shift > 0) or number >> 64:
                    break
                return number
        raise FormatError(f"{self.what} holds a malformed number at byte {self._at}")

    def count(self, smallest: int = 1) -> int:
        """A varint that counts items of at least `smallest` bytes each, all still to come."""
        number = self.varint()
        if number * smallest > self.left:
            raise FormatError(f"{self.what} is damaged: its last {self.left} bytes cannot hold {number} items")
        return number

    def entry(self, table: Sequence[Item], index: int) -> Item:
        """An entry of a table, by a number that was just read."""
        if index >= len(table):
            raise FormatError(f"{self.what} is damaged at byte {self._at}: entry {index} of a table of {len(table)}")
        return table[index]

    def signed(self) -> int:
        """A signed number within int64."""
        number = self.varint()
        return -((number + 1) >> 1) if number & 1 else number >> 1

    def string(self) -> str:
        """A length and UTF-8 text."""
        return self.text(self.take(self.varint()))

    def text(self, raw: bytes | memoryview) -> str:
        """`raw` as UTF-8."""
        try:
            return bytes(raw).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{self.what} holds text that is not UTF-8 at byte {self._at}") from None

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise FormatError(f"{self.what} has {self.left} bytes too many")


def varint(number: int) -> bytes:
    """An unsigned number below 2^64 in 7-bit groups, lowest first (SPEC.md §1).

    Args:
        number: from 0 to 2^64 - 1.

    Returns:
        1 to 10 bytes.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def signed(number: int) -> bytes:
    """A signed number as a varint, small magnitudes first: 0, -1, 1, -2, … (SPEC.md §1).

    Args:
        number: within int64.

    Returns:
        1 to 10 bytes.
    """
    return varint(number << 1 if number >= 0 else ~number << 1 | 1)


def string(text: str) -> bytes:
    """A length and UTF-8 text (SPEC.md §1).

    Args:
        text: any valid Unicode.

    Returns:
        The bytes.
    """
    raw = utf8(text)
    return varint(len(raw)) + raw


def utf8(text: str) -> bytes:
    """The text's bytes.

    Args:
        text: any valid Unicode.

    Returns:
        The bytes, without their length.

    Raises:
        RequestError: it holds a lone surrogate, which UTF-8 cannot express.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"a .fw file holds names that are valid Unicode, got {text!r}; rename it") from None
