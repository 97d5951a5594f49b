"""What an experiment is: cells to run, a table, a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight.errors import DataError
from featherweight.training import Data, Loader, Progress, TensorLoader, load_data, silent

__all__ = ["Cell", "Experiment", "Lab", "Outcome"]

Cell = Mapping[str, Any]
"""One setting with its "seed": plain values by name. A cell's result depends on nothing else."""


@dataclass(frozen=True)
class Outcome:
    """A finished cell.

    Attributes:
        cell: the setting.
        result: what its run returned: numbers, strings, lists and dicts by name.
        seconds: how long it ran, by the clock on the wall.
    """

    cell: Cell
    result: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Lab:
    """What a cell gets to work with.

    Attributes:
        out: the experiment's folder, where a cell may leave files.
        data_dir: where the files of data sets are looked for first.
        progress: told how far a cell is.
    """

    out: Path
    data_dir: Path | None = None
    progress: Progress = silent
    _loaded: dict[str, Data] = field(default_factory=dict)

    def data(self, name: str, *, batch_size: int = 128, samples: int | None = None) -> Data:
        """A data set, read once for all cells.

        Args:
            name: as `load_data` takes it; the parts must be in memory.
            batch_size: of the training part; the others are for looking only, and come in batches of 1000.
            samples: only so many training samples, the first ones; all by default.

        Returns:
            The data, with loaders of its own.

        Raises:
            DataError: the data set is missing, or not in memory.
        """
        if name not in self._loaded:
            self._loaded[name] = load_data(name, data_dir=self.data_dir)
        data = self._loaded[name]
        train = _in_memory(name, data.train)
        validation, test = _in_memory(name, data.validation), _in_memory(name, data.test)
        return replace(
            data,
            train=TensorLoader(train.inputs[:samples], train.targets[:samples], batch_size, shuffle=True),
            validation=TensorLoader(validation.inputs, validation.targets, 1000),
            test=TensorLoader(test.inputs, test.targets, 1000),
        )


def _in_memory(name: str, loader: Loader) -> TensorLoader:
    if not isinstance(loader, TensorLoader):
        raise DataError(f"an experiment needs its data in memory, got {type(loader).__name__} for {name}")
    return loader


@dataclass(frozen=True)
class Experiment:
    """A claim of a paper, as cells anyone can run again.

    Attributes:
        title: of its page.
        source: the paper: authors, title, where, year.
        text: how it is done here and where that differs from the paper, in Markdown.
        cells: whether it must be quick (all cells within two minutes on one core) -> the cells, in the order they run.
        run: runs one cell. torch's global generator has been seeded with the cell's seed.
        table: theirs beside ours, in Markdown, from the outcomes of all cells.
        draw: the same as a picture.
    """

    title: str
    source: str
    text: str
    cells: Callable[[bool], Sequence[Cell]]
    run: Callable[[Cell, Lab], Mapping[str, Any]]
    table: Callable[[Sequence[Outcome]], str]
    draw: Callable[[Sequence[Outcome], Path], None]
