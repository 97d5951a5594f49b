"""Asymmetric numeral systems: symbols as digits of one large number, in a stack of 32-bit words (SPEC.md §6.5).

The arithmetic is that of the `constriction` library (Bamler, 2022). It is given integer frequencies only, so that what it
computes is exact, the same on every machine, and a few lines of integer arithmetic (tests/packaging/test_ans.py) can read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.cursor import Cursor, varint

__all__ = ["SEGMENT", "TOTAL", "AnsDecoder", "AnsEncoder"]

Frequencies = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.int32]

TOTAL = 1 << 24
"""What the frequencies of an alphabet add up to."""

SEGMENT = 1 << 22
"""A stack is closed after so many symbols: a stack is written backwards, so that all of it must be in memory."""


class AnsEncoder:
    """Collects batches of symbols, each with its frequencies, and codes them in segments; the inverse of `AnsDecoder`."""

    def __init__(self) -> None:
        self._batches: list[tuple[Symbols, Frequencies]] = []
        self._pending = 0
        self._segments: list[bytes] = []

    def put(self, symbols: Symbols, frequencies: Frequencies) -> None:
        """Adds symbols, shape [n], below the number of frequencies, shape [k], which are at least 1 and add up to `TOTAL`."""
        if len(frequencies) > 1:
            self._batches.append((symbols, frequencies))
            self._pending += len(symbols)
            if self._pending >= SEGMENT:
                self._close()

    def finish(self) -> bytes:
        """All segments, each with its length in front."""
        if self._batches:
            self._close()
        return b"".join(self._segments)

    def _close(self) -> None:
        import constriction

        coder = constriction.stream.stack.AnsCoder()
        for symbols, frequencies in reversed(self._batches):
            coder.encode_reverse(symbols, _model(frequencies))
        words = coder.get_compressed().astype("<u4", copy=False).tobytes().rstrip(b"\0")
        self._segments.append(varint(len(words)) + words)
        self._batches.clear()
        self._pending = 0


class AnsDecoder:
    """Takes symbols from the segments that an `AnsEncoder` wrote.

    Args:
        cursor: where the first segment starts, by the time the first symbol is taken.

    Raises:
        FormatError: (every method) a segment is cut short, or its symbols do not take exactly its bytes.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._coder: Any = None
        self._taken = 0

    def take(self, count: int, frequencies: Frequencies) -> Symbols:
        """The next symbols, shape [count], put under the same frequencies."""
        if len(frequencies) == 1:
            return np.zeros(count, np.int32)
        if self._coder is None:
            self._open()
        symbols: Symbols = self._coder.decode(_model(frequencies), count)
        self._taken += count
        if self._taken >= SEGMENT:
            self.end()
        return symbols

    def end(self) -> None:
        """Nothing may be left of the segment."""
        if self._coder is not None and not self._coder.is_empty():
            raise FormatError(f"{self._cursor.what} is damaged: its symbols do not take all bytes of their segment")
        self._coder, self._taken = None, 0

    def _open(self) -> None:
        import constriction

        raw = bytes(self._cursor.take(self._cursor.varint()))
        if raw.endswith(b"\0"):
            raise FormatError(f"{self._cursor.what} is damaged: a segment ends with a zero byte")
        self._coder = constriction.stream.stack.AnsCoder(np.frombuffer(raw + bytes(-len(raw) % 4), "<u4").astype(np.uint32))


def _model(frequencies: Frequencies) -> Any:
    """The library adds one to each of the weights it is given, scaled to a sum of `TOTAL` - k; theirs is that sum already."""
    import constriction

    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float32), perfect=False)
