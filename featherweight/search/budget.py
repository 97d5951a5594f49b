"""What the device allows: limits on measured quantities."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from featherweight.errors import RequestError
from featherweight.measuring import Report

__all__ = ["Budget"]

_SIZE: dict[str, float] = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
_COUNT: dict[str, float] = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
_TIME: dict[str, float] = {"": 1, "S": 1, "MS": 1e-3, "US": 1e-6}
_POINTS: dict[str, float] = {"": 1, "PP": 1}

_NUMBER_AND_UNIT = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]*)")

# key as the user writes it: the field, and what its units are worth
_KEYS: dict[str, tuple[str, dict[str, float]]] = {
    "size": ("size_bytes", _SIZE),
    "accuracy_drop": ("accuracy_drop", _POINTS),
    "macs": ("macs", _COUNT),
    "latency": ("latency_s", _TIME),
}


@dataclass(frozen=True)
class Budget:
    """Limits the compressed network must keep. A limit that is None is not set.

    Args:
        size_bytes: the whole .fw file, at least 1 byte.
        accuracy_drop: how far accuracy may fall below the uncompressed network's, in percentage points, in [0, 100).
        macs: multiply-accumulates for one sample, at least 1.
        latency_s: median seconds for one sample in ONNX Runtime, above 0.

    Raises:
        RequestError: a limit is out of its range.

    Example:
        >>> Budget.parse("size=44KB, accuracy_drop=0.2pp")
        Budget(size_bytes=44000, accuracy_drop=0.2, macs=None, latency_s=None)
    """

    size_bytes: int | None = None
    accuracy_drop: float | None = None
    macs: int | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        limits = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RequestError(f"{name} must be a finite number, got {value!r}; Budget.parse reads text with units")
            if name in ("size_bytes", "macs") and value < 1:
                raise RequestError(f"{name} must be at least 1, got {value}: no network is that light")
            if name == "latency_s" and value <= 0:
                raise RequestError(f"latency_s must be above 0, got {value}: no network is that fast")
            if name == "accuracy_drop" and not 0 <= value < 100:
                raise RequestError(f"accuracy_drop must be in [0, 100) percentage points, got {value}")

    @staticmethod
    def parse(text: str) -> Budget:
        """Reads "size=44KB,accuracy_drop=0.2pp,macs=2M,latency=2ms"; units may be left out (bytes, points, one, seconds).

        Raises:
            RequestError: an unknown key or unit, a value that is no number, or a key given twice.
        """
        limits: dict[str, float] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = (s.strip() for s in part.partition("="))
            if key not in _KEYS:
                raise RequestError(f"a budget has the keys {', '.join(_KEYS)}, got {key!r} in {text!r}")
            name, units = _KEYS[key]
            if name in limits:
                raise RequestError(f"a budget may set each limit once, but {text!r} contradicts itself: {key} is set twice")
            found = _NUMBER_AND_UNIT.fullmatch(value)
            if not found or found[2].upper() not in units:
                known = ", ".join(unit.lower() if units is _TIME else unit for unit in units if unit)
                raise RequestError(f"{key} must be a number with a unit of {known} or none, got {value!r}")
            limits[name] = float(found[1]) * units[found[2].upper()]
        for name in {"size_bytes", "macs"} & limits.keys():
            limits[name] = round(limits[name]) if math.isfinite(limits[name]) else math.inf
        return Budget(**limits)  # type: ignore[arg-type]

    @property
    def is_open(self) -> bool:
        """Whether it sets no limit but accuracy, so that the search goes on while accuracy holds."""
        return all(getattr(self, f.name) is None for f in fields(self) if f.name != "accuracy_drop")

    def excesses(self, before: Report, after: Report) -> list[str]:
        """The limits that `after` exceeds, each as a line that says by how much; empty when the budget is met.

        Args:
            before: the uncompressed network.
            after: the compressed network, measured on the same data.

        Returns:
            One line for each limit exceeded.
        """
        lines = []
        if self.size_bytes is not None and after.size_bytes > self.size_bytes:
            over = after.size_bytes - self.size_bytes
            lines.append(f"size is {after.size_bytes} bytes, {over} over the limit of {self.size_bytes}")
        if self.accuracy_drop is not None and before.accuracy is not None and after.accuracy is not None:
            drop = 100 * (before.accuracy - after.accuracy)
            if drop > self.accuracy_drop + 1e-9:
                over_points = drop - self.accuracy_drop
                lines.append(
                    f"accuracy fell by {drop:.2f} pp, {over_points:.2f} pp over the limit of {self.accuracy_drop:g} pp"
                )
        if self.macs is not None and after.macs > self.macs:
            lines.append(f"macs are {after.macs}, {after.macs - self.macs} over the limit of {self.macs}")
        if self.latency_s is not None and after.latency_s > self.latency_s:
            over_ms = 1e3 * (after.latency_s - self.latency_s)
            lines.append(
                f"latency is {1e3 * after.latency_s:.3f} ms, {over_ms:.3f} ms over the limit of {1e3 * self.latency_s:g} ms"
            )
        return lines
