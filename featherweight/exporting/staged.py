"""Networks with exits in ONNX Runtime: one session for each stage, since a session of its own cannot end early."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from featherweight.errors import check
from featherweight.exporting.folder import Array, open_folder, write_folder
from featherweight.graph.capture import Example

__all__ = ["StageFile", "StagedSession", "write_stages"]

_MANIFEST = "stages.json"


@dataclass(frozen=True)
class StageFile:
    """A stage as its file has it. Values that go from stage to stage are known by numbers, the network's inputs by 0, 1, ….

    Attributes:
        file: its name in the folder.
        takes: the values that are its inputs, in order.
        gives: the values it makes for later stages: its outputs after the answer and how sure it is.
        alive: all values that later stages still need.
    """

    file: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    alive: tuple[int, ...]


def write_stages(
    stages: Sequence[tuple[nn.Module, Example, StageFile]], thresholds: Sequence[float], folder: str | os.PathLike[str]
) -> Path:
    """Writes one ONNX file for each stage, and "stages.json", which says how they follow one another.

    Args:
        stages: of each the network that gives (answer, how sure, *what it hands on), or the last one's answer alone, a batch of
            its inputs, and how it goes together with the others.
        thresholds: how sure a sample must be to leave, one for each stage but the last.
        folder: where to; made if it is not there.

    Returns:
        The folder.

    Raises:
        RequestError: the folder cannot be written.
        FeatherweightError: as `to_onnx` says.
    """
    plan = {
        "thresholds": [None if math.isinf(threshold) else threshold for threshold in thresholds],
        "stages": [vars(stage) for _, _, stage in stages],
    }
    return write_folder([(network, example, stage.file) for network, example, stage in stages], plan, _MANIFEST, folder)


class StagedSession:
    """Runs the stages that `write_stages` wrote, in ONNX Runtime on the CPU, and each sample only as far as it must go.

    A sample leaves at the first stage whose confidence reaches its threshold. Those that left are removed from the batch, so
    that it costs what its samples cost.

    Args:
        folder: with the files.
        threads: of each operation, at least 1.

    Attributes:
        thresholds: one for each stage but the last; may be changed. Infinite where no sample leaves.

    Raises:
        RequestError: the folder holds no stages, or `threads` is below 1.
        FormatError: "stages.json" is damaged.
        FeatherweightError: ONNX Runtime cannot run a stage.
    """

    def __init__(self, folder: str | os.PathLike[str], *, threads: int = 1) -> None:
        def read(plan: Any) -> list[str]:
            self.stages = tuple(_read_stage(entry) for entry in plan["stages"])
            self.thresholds = [math.inf if value is None else float(value) for value in plan["thresholds"]]
            return [stage.file for stage in self.stages]

        self._runners = open_folder(folder, _MANIFEST, read, threads=threads)

    def run(self, *inputs: Array) -> Array:
        """One answer for each sample.

        Args:
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes), in the order of the samples.
        """
        check("thresholds", self.thresholds, f"{len(self.stages) - 1} numbers", len(self.thresholds) == len(self.stages) - 1)
        state = dict(enumerate(inputs))
        rows, result = None, np.empty(0)
        for number, threshold in enumerate(self.thresholds):
            answer, sure, state = self._step(number, state)
            leaving = sure >= threshold
            count = int(leaving.sum())
            if not count:
                continue
            if rows is None:
                if count == len(answer):
                    return answer
                rows, result = np.arange(len(answer)), np.empty_like(answer)
            result[rows[leaving]] = answer[leaving]
            if count == len(answer):
                return result
            rows = rows[~leaving]
            state = {index: value[~leaving] for index, value in state.items()}
        answer, _, _ = self._step(len(self.stages) - 1, state)
        if rows is None:
            return answer
        result[rows] = answer
        return result

    def run_to(self, choice: int, *inputs: Array) -> Array:
        """The answer of one stage for all samples; nothing behind it is run.

        Args:
            choice: which stage, from 0 on.
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes).
        """
        check("a stage", choice, f"one of 0 to {len(self.stages) - 1}", 0 <= choice < len(self.stages))
        state = dict(enumerate(inputs))
        for number in range(choice):
            _, _, state = self._step(number, state)
        return self._step(choice, state)[0]

    def _step(self, number: int, state: Mapping[int, Array]) -> tuple[Array, Array, dict[int, Array]]:
        stage = self.stages[number]
        answer, *rest = self._runners[number](state[index] for index in stage.takes)
        if number == len(self.stages) - 1:
            return answer, answer, {}
        sure, *given = rest
        known = {**state, **dict(zip(stage.gives, given, strict=True))}
        return answer, sure, {index: known[index] for index in stage.alive}


def _read_stage(entry: Mapping[str, Any]) -> StageFile:
    takes, gives, alive = (tuple(int(index) for index in entry[name]) for name in ("takes", "gives", "alive"))
    return StageFile(entry["file"], takes, gives, alive)
