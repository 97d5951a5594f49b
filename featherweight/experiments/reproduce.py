"""Runs an experiment cell by cell; what is finished is kept, so that a broken-off run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from featherweight.errors import RequestError
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.files import replacing
from featherweight.measuring.environment import environment
from featherweight.training import Progress, silent

__all__ = ["page", "read_outcomes", "reproduce"]

_RESULTS = "results.json"


def reproduce(
    name: str,
    experiment: Experiment,
    out: Path,
    *,
    quick: bool = False,
    data_dir: Path | None = None,
    progress: Progress = silent,
) -> str:
    """Runs the cells that are not finished yet, and writes results.json, plot.png and README.md.

    Each finished cell is written to results.json at once; interrupted, the same call goes on after it. A run of which all cells
    are finished is only tabled and drawn again.

    Args:
        name: of the experiment.
        experiment: what to run.
        out: the folder for the results; it is made if needed.
        quick: runs the small cells.
        data_dir: where the files of data sets are looked for first.
        progress: told how far the run is.

    Returns:
        The table, in Markdown.

    Raises:
        RequestError: the folder cannot be written, or holds the results of other settings.
        DataError: a data set is missing.

    Example:
        >>> trial = Experiment(
        ...     title="Doubling", source="nobody", text="", cells=lambda quick: [{"seed": 1}, {"seed": 2}],
        ...     run=lambda cell, lab: {"twice": 2 * cell["seed"]},
        ...     table=lambda outcomes: str([outcome.result["twice"] for outcome in outcomes]),
        ...     draw=lambda outcomes, path: None,
        ... )
        >>> reproduce("doubling", trial, Path("doubled"))
        '[2, 4]'
    """
    cells = experiment.cells(quick)
    _make_folder(out)
    finished = {_key(outcome.cell): outcome for outcome in read_outcomes(out)}
    _check_same_settings(out, finished.values(), cells)
    lab = Lab(out, data_dir, progress)
    progress("cells", len(finished), len(cells))
    for cell in cells:
        if _key(cell) not in finished:
            finished[_key(cell)] = _run(experiment, cell, lab)
            _write_json(out / _RESULTS, _record(name, [finished[_key(c)] for c in cells if _key(c) in finished]))
            progress("cells", len(finished), len(cells), "last: " + ", ".join(f"{key} {value}" for key, value in cell.items()))
    outcomes = [finished[_key(cell)] for cell in cells]
    table = experiment.table(outcomes)
    experiment.draw(outcomes, out / "plot.png")
    _write(out / "README.md", page(name, experiment, outcomes, quick=quick))
    return table


def page(name: str, experiment: Experiment, outcomes: Sequence[Outcome], *, quick: bool = False) -> str:
    """The page about an experiment's results, in Markdown; the same for the same outcomes.

    Args:
        name: of the experiment.
        experiment: its texts and its table.
        outcomes: of all its cells.
        quick: whether the cells are the small ones.

    Returns:
        What README.md holds.
    """
    command = f"featherweight reproduce {name}{' --quick' * quick}"
    parts = [
        f"# {experiment.title}",
        f"{experiment.source}.",
        experiment.text.strip(),
        experiment.table(outcomes).strip(),
        "![plot](plot.png)",
        f"Made by `{command}`; `results.json` has the numbers of each of the {len(outcomes)} cells, and the machine.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_outcomes(out: Path) -> list[Outcome]:
    """The finished cells in an experiment's folder.

    Args:
        out: the folder.

    Returns:
        The outcomes in the order of the file; none if there is no results.json.

    Raises:
        RequestError: the file is there, but is not what `reproduce` writes.
    """
    path = out / _RESULTS
    if not path.exists():
        return []
    try:
        return [Outcome(**outcome) for outcome in json.loads(path.read_bytes())["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} must hold an experiment's results, but does not: {error!r}; choose another --out"
        ) from error


def _run(experiment: Experiment, cell: Cell, lab: Lab) -> Outcome:
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        result = experiment.run(cell, lab)
    plain = json.loads(json.dumps(result, allow_nan=False))  # a table sees the same from a run as from the file
    return Outcome(dict(cell), plain, round(time.monotonic() - started, 1))


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _check_same_settings(out: Path, finished: Any, cells: Sequence[Cell]) -> None:
    known = {_key(cell) for cell in cells}
    others = [outcome.cell for outcome in finished if _key(outcome.cell) not in known]
    if others:
        raise RequestError(
            f"{out} must hold results of the same settings, but has {len(others)} of others ({_key(others[0])}); "
            "choose another --out, or delete it"
        )


def _record(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {"experiment": name, "environment": environment(), "cells": [asdict(outcome) for outcome in outcomes]}


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    _write(path, json.dumps(record, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out must be a folder that can be made, got {str(out)!r}: {error.strerror}") from error
