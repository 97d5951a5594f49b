"""The main job: a trained network and a budget go in, the lightest network found that keeps to it comes out, as a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError, TrainingError
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.constraint import duplicate, fold
from featherweight.graph.cost import count_macs
from featherweight.measuring import Report, compare_latency, count_nonzero, count_parameters, environment, measure
from featherweight.packaging import save
from featherweight.packaging.writer import pack
from featherweight.search.budget import Budget
from featherweight.search.journal import Journal, Network
from featherweight.search.recipe import Attempt, Recipe
from featherweight.training import Data, check_finite, check_fits, evaluate, fit
from featherweight.training.progress import Progress, silent

__all__ = ["Compressed", "compress"]

DEFAULT_DROP = 0.5
"""Percentage points of validation accuracy a step may cost when the budget does not say."""


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
        model: the network, constraints folded.
        before: the uncompressed network, measured.
        after: the compressed network, measured on its file.
        unmet: the limits of the budget it exceeds, one line each; empty when the budget is met.
        steps: the attempts made, in order, as plain data: step, setting, accepted, and what was measured on validation data.
        stopped: why the search ended early, or None.
    """

    model: nn.Module
    before: Report
    after: Report
    unmet: tuple[str, ...]
    steps: tuple[dict[str, Any], ...]
    stopped: str | None = None


def compress(
    model: nn.Module,
    data: Data,
    *,
    budget: Budget | None = None,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    tune: Callable[..., None] = fit,
) -> Compressed:
    """Makes a trained classifier as light as the budget asks, or as light as its accuracy allows.

    Each step of the recipe proposes lighter networks, from gentle to harsh; each is tuned, judged on the validation data, and
    accepted or undone. The search ends at the first network within the budget, or when no step can go on without losing more
    accuracy than allowed (0.5 percentage points when the budget does not say). The test data are used once, at the end.

    Args:
        model: a network of plain `nn.Module`s that `torch.export` captures, with outputs (B, classes); it is not changed.
        data: see `training.load_data`.
        budget: limits; none by default.
        recipe: what to try; `Recipe(training=…)` trains the network first.
        out: where the .fw file goes; beside it `.report.json`, and while running a folder `.checkpoint` to resume from.
        resume: go on with the run that the folder holds, with the same result as if it had not been broken off.
        progress: told about every batch.
        tune: trains a proposal in place, called like `training.fit`.

    Returns:
        The network found and everything measured; also when the budget is not met, see `unmet`.

    Raises:
        RequestError: the request is wrong; found before any training.
        TrainingError: the first training failed, so that there is no network to compress.

    Example:
        >>> from featherweight.nets import mlp
        >>> from featherweight.training import Tuning, load_data
        >>> from featherweight.search.recipe import PruneWeights
        >>> step = PruneWeights(sparsities=(0.5,), tuning=Tuning(epochs=1))
        >>> recipe = Recipe(steps=(step,), training=Tuning(epochs=2))
        >>> found = compress(mlp(input_shape=(1, 8, 8)), load_data("digits"), recipe=recipe)
        >>> found.after.size_bytes < found.before.size_bytes
        True
    """
    budget, recipe = budget or Budget(), recipe or Recipe()
    check_finite(model)
    check_fits(data, model)
    path = None if out is None else check_writable(out)
    request = {"recipe": recipe.as_dict(), "budget": asdict(budget), "data": data.name, "model": type(model).__name__}
    folder = None if path is None else path.with_name(path.name + ".checkpoint")
    search = _Search(model, data, budget, Journal.open(folder, request, resume=resume), progress, tune, recipe.seed)
    started = time.monotonic()
    trained = search.train(recipe)
    found, stopped = search.run(recipe, trained)
    result = _finish(trained.model, found.model, search, path, stopped)
    if path is not None:
        _write_report(path, result, recipe, search, time.monotonic() - started)
        search.journal.close()
    return result


@dataclass
class _Search:
    """What the attempts of one search share."""

    start: nn.Module
    data: Data
    budget: Budget
    journal: Journal
    progress: Progress
    tune: Callable[..., None]
    seed: int

    def train(self, recipe: Recipe) -> Network:
        """The network to compress: the one given, trained first if the recipe says so."""
        stored = self.journal.network("trained", self.start)
        if stored is not None:
            return stored
        network = Network(duplicate(self.start))
        if recipe.training is not None:
            self._tune(network.model, Attempt({}, lambda c, b, e: (c, None), recipe.training), "train")
        self.journal.record(None, {"trained": network})
        return network

    def run(self, recipe: Recipe, trained: Network) -> tuple[Network, str | None]:
        """Goes through the steps; returns the last network accepted, and why it ended early if it did."""
        reference = evaluate(trained.model, self.data.validation)
        current = self.journal.network("current", self.start) or trained
        base = self.journal.network("base", self.start) or trained
        done = list(self.journal.entries)
        if not any(entry["accepted"] and entry["within_budget"] for entry in done):
            for number, step in enumerate(recipe.steps):
                kind = recipe.as_dict()["step"][number]["kind"]
                if not any(entry["step"] == number for entry in done):
                    base = current
                for position, attempt in enumerate(step.attempts(self.seed)):
                    entry = next((e for e in done if e["step"] == number and e["attempt"] == position), None)
                    if entry is None:
                        try:
                            entry, network = self._try(attempt, current, base, reference, f"{kind} {_short(attempt)}")
                        except TrainingError as error:
                            return current, str(error)
                        entry |= {"step": number, "kind": kind, "attempt": position}
                        current = network if entry["accepted"] else current
                        self.journal.record(entry, {"base": base, "current": current})
                    if not entry["accepted"]:
                        break
                    if entry["within_budget"]:
                        return current, None
        return current, None

    def _try(
        self, attempt: Attempt, current: Network, base: Network, reference: float, label: str
    ) -> tuple[dict[str, Any], Network]:
        """Proposes, tunes and judges one network."""
        began = time.monotonic()
        model, plan = attempt.propose(current.model, base.model, self.data.example)
        self._tune(model, attempt, label)
        accuracy = evaluate(model, self.data.validation)
        allowed = DEFAULT_DROP if self.budget.accuracy_drop is None else self.budget.accuracy_drop
        drop = 100 * (reference - accuracy)
        figures = self._figures(model)
        accepted = drop <= allowed + 1e-9
        entry = {
            "setting": dict(attempt.setting),
            "validation_accuracy": accuracy,
            "validation_drop": drop,
            **figures,
            "accepted": accepted,
            "within_budget": accepted and self._within(figures),
            "seconds": round(time.monotonic() - began, 3),
        }
        state = f"{figures['size_bytes']} bytes, {100 * accuracy:.2f} % on validation, {'kept' if accepted else 'undone'}"
        self.progress(label, 1, 1, state)
        return entry, Network(model, (*current.plans, plan) if plan is not None else current.plans)

    def _tune(self, model: nn.Module, attempt: Attempt, label: str) -> None:
        def report(task: str, done: int, total: int, note: str = "") -> None:
            self.progress(label, done - 1 if done == total else done, total, note)

        self.tune(
            model, self.data.train, attempt.tuning, seed=self.seed, progress=report,
            checkpoint=self.journal.epoch_checkpoint, after_step=attempt.after_step,
        )  # fmt: skip

    def _figures(self, model: nn.Module) -> dict[str, Any]:
        net = to_module(model, self.data.example)
        tensors = tensors_of(net, net.program)
        figures: dict[str, Any] = {
            "size_bytes": len(pack(net.program, tensors)),
            "parameters": count_parameters(model),
            "nonzero_parameters": count_nonzero(model),
            "macs": count_macs(net.program, tensors),
        }
        if self.budget.latency_s is not None:
            figures["latency_s"] = compare_latency([net], self.data.example[:1])[0].median_s
        return figures

    def _within(self, figures: dict[str, Any]) -> bool:
        """Whether every limit but accuracy is set and kept; an open budget is never within, so the search goes on."""
        limits = {"size_bytes": self.budget.size_bytes, "macs": self.budget.macs, "latency_s": self.budget.latency_s}
        set_limits = {name: limit for name, limit in limits.items() if limit is not None}
        return bool(set_limits) and all(figures[name] <= limit for name, limit in set_limits.items())


def _short(attempt: Attempt) -> str:
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in attempt.setting.values())


def _finish(trained: nn.Module, found: nn.Module, search: _Search, path: Path | None, stopped: str | None) -> Compressed:
    """Writes the file, and measures before and after on the test data, their latencies in turns."""
    example, test = search.data.example, search.data.test
    original, folded = fold(trained).eval(), fold(found).eval()
    if path is not None:
        save(folded, path, example=example)
    before, after = (
        measure(model, example, data=test, progress=search.progress) for model in (original, folded if path is None else path)
    )
    latencies = compare_latency([original, folded], example[:1])
    before, after = (
        replace(report, latency_s=latency.median_s, latency_spread_s=latency.spread_s)
        for report, latency in zip((before, after), latencies, strict=True)
    )
    unmet = tuple(search.budget.excesses(before, after))
    return Compressed(folded, before, after, unmet, tuple(search.journal.entries), stopped)


def check_writable(path: str | Path) -> Path:
    """The path, if a file can be written there; found by trying, before any training.

    Args:
        path: where a file shall go.

    Returns:
        The same as a `Path`.

    Raises:
        RequestError: its folder is missing or not writable, or it is a folder itself.

    Example:
        >>> check_writable("network.fw").name
        'network.fw'
    """
    path = Path(path)
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"the output must be a writable path, but {path} is not: {error}") from error
    return path


def _write_report(path: Path, result: Compressed, recipe: Recipe, search: _Search, seconds: float) -> None:
    content = {
        "before": result.before.as_dict(),
        "after": result.after.as_dict(),
        "budget": asdict(search.budget),
        "unmet": list(result.unmet),
        "stopped": result.stopped,
        "data": search.data.name,
        "steps": list(result.steps),
        "recipe": recipe.as_dict(),
        "seeds": {"recipe": recipe.seed},
        "threads": {"training": torch.get_num_threads(), "latency": result.after.threads},
        "versions": environment(),
        "seconds": round(seconds, 1),
    }
    report_path(path).write_text(json.dumps(content, indent=2) + "\n")


def report_path(path: Path) -> Path:
    """`network.report.json` for `network.fw`."""
    return path.with_suffix(".report.json")
