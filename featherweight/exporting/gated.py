"""Networks with gates in ONNX Runtime: one session for each part, since a session of its own cannot leave a branch out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from featherweight.errors import check
from featherweight.exporting.folder import Array, open_folder, write_folder
from featherweight.graph.capture import Example

__all__ = ["LOGITS", "GatedSession", "PartFile", "write_parts"]

_MANIFEST = "parts.json"

LOGITS = -1
"""Stands for what gates say, among the values that a part gives."""


@dataclass(frozen=True)
class PartFile:
    """A part as its file has it. Values that go from part to part are known by numbers, the network's inputs by 0, 1, ….

    Attributes:
        file: its name in the folder.
        takes: the values that are its inputs, in order.
        gives: the values that are its outputs, `LOGITS` among them where it holds gates.
        skip: of a branch, the value that its only output is for samples that do not take it; None for other parts.
        dead: the values that no part after it needs.
    """

    file: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    skip: int | None
    dead: tuple[int, ...]


def write_parts(
    parts: Sequence[tuple[nn.Module, Example, PartFile]], output: int, price: float, folder: str | os.PathLike[str]
) -> Path:
    """Writes one ONNX file for each part, and "parts.json", which says how they follow one another.

    Args:
        parts: of each the network that gives its values as a tuple, a batch of its inputs, and how it goes together with the
            others. Logits are (B, branches), in the order in which the branches run.
        output: the value that is the answer.
        price: what a gate's logit must exceed for its branch to run.
        folder: where to; made if it is not there.

    Returns:
        The folder.

    Raises:
        RequestError: the folder cannot be written.
        FeatherweightError: as `to_onnx` says.
    """
    plan = {"price": price, "output": output, "parts": [asdict(part) for _, _, part in parts]}
    return write_folder([(network, example, part.file) for network, example, part in parts], plan, _MANIFEST, folder)


class GatedSession:
    """Runs the parts that `write_parts` wrote, in ONNX Runtime on the CPU, and each branch for the samples that take it alone.

    Args:
        folder: with the files.
        threads: of each operation, at least 1.

    Attributes:
        price: what a gate's logit must exceed for its branch to run; may be changed.

    Raises:
        RequestError: the folder holds no parts, or `threads` is below 1.
        FormatError: "parts.json" is damaged.
        FeatherweightError: ONNX Runtime cannot run a part.
    """

    def __init__(self, folder: str | os.PathLike[str], *, threads: int = 1) -> None:
        def read(plan: Any) -> list[str]:
            self.price, self._output = float(plan["price"]), int(plan["output"])
            self.parts = tuple(_read_part(entry) for entry in plan["parts"])
            return [part.file for part in self.parts]

        self._runners = open_folder(folder, _MANIFEST, read, threads=threads)

    def run(self, *inputs: Array) -> Array:
        """One answer for each sample.

        Args:
            *inputs: as the network takes them, (B, …).

        Returns:
            (B, …), in the order of the samples.
        """
        check("the price", self.price, "a number, or infinite", not math.isnan(self.price))
        state: dict[int, Array] = dict(enumerate(inputs))
        waiting: list[Array] = []
        for number, part in enumerate(self.parts):
            if part.skip is None:
                state.update(self._give(number, state))
                if LOGITS in state:
                    waiting += list(state.pop(LOGITS).T)
            else:
                state[part.gives[0]] = self._add(number, state, waiting.pop(0) > self.price)
            for index in part.dead:
                del state[index]
        return state[self._output]

    def _add(self, number: int, state: Mapping[int, Array], taken: npt.NDArray[np.bool_]) -> Array:
        """The sum that ends a branch: the branch runs for the samples that take it."""
        part = self.parts[number]
        skip, total = state[part.skip or 0], part.gives[0]
        if not taken.any():
            return skip
        if taken.all():
            return self._give(number, state)[total]
        result = skip.copy()
        result[taken] = self._give(number, {index: state[index][taken] for index in part.takes})[total]
        return result

    def _give(self, number: int, state: Mapping[int, Array]) -> dict[int, Array]:
        part = self.parts[number]
        return dict(zip(part.gives, self._runners[number](state[index] for index in part.takes), strict=True))


def _read_part(entry: Mapping[str, Any]) -> PartFile:
    takes, gives, dead = (tuple(int(index) for index in entry[name]) for name in ("takes", "gives", "dead"))
    skip = entry["skip"]
    return PartFile(entry["file"], takes, gives, None if skip is None else int(skip), dead)
