"""The main job: a trained network and a budget go in, the lightest network found that keeps to it comes out, as a file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.distillation import teach
from featherweight.errors import RequestError, TrainingError
from featherweight.exporting.onnx import translate
from featherweight.files import replacing
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.constraint import duplicate, fold
from featherweight.graph.cost import count_macs
from featherweight.measuring import Report, compare_latency, count_nonzero, count_parameters, environment, measure, speed_up
from featherweight.packaging import save
from featherweight.packaging.writer import pack
from featherweight.quantization import learnable_steps
from featherweight.search.budget import Budget
from featherweight.search.journal import Journal, Network
from featherweight.search.outputs import check_writable, checkpoint_path, report_path
from featherweight.search.recipe import Recipe
from featherweight.search.steps import Attempt, NothingToDo, Step, kind_of
from featherweight.training import Data, Tuning, check_finite, check_fits, evaluate, fit
from featherweight.training.loop import AfterStep
from featherweight.training.progress import Progress, silent

__all__ = ["Compressed", "compress"]

DEFAULT_DROP = 0.5
"""Percentage points of validation accuracy that may be lost when the budget does not say."""

KEPT, NO_LIGHTER, SLOWER, TOO_INACCURATE = "kept", "undone, no lighter", "undone, slower", "undone, too inaccurate"
NOTHING_TO_DO, STOPPED = "nothing to do", "stopped"
"""What becomes of an attempt. All but "kept" end their step, except that one that is no lighter, or slower, may have lighter
successors. Slower is what the clock says under a latency budget, whatever became of bytes and multiply-accumulates."""

_SLOWER = 0.95
"""A network that runs less than so many times as fast as the one before is slower; less than that may be chance."""


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
        model: the network, constraints folded.
        before: the uncompressed network, measured.
        after: the compressed network, measured on its file.
        unmet: the limits of the budget it exceeds, one line each; empty when the budget is met.
        steps: the attempts made, in order, as plain data: step, setting, outcome, and what was measured on validation data.
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
    tune: Callable[..., None] | None = None,
) -> Compressed:
    """Makes a trained classifier as light as the budget asks, or as light as its accuracy allows.

    Each step of the recipe proposes lighter networks, from gentle to harsh; each is tuned, judged on the validation data, and
    accepted if it is lighter and accurate enough, else undone. The search ends at the first network within the budget, which
    may be the one given, or when no step can go on without losing more accuracy than allowed (0.5 percentage points when the
    budget does not say). A step that finds nothing to remove is passed over. The test data are used at the end only.

    Args:
        model: a network of plain `nn.Module`s that `torch.export` captures, with outputs (B, classes); it is not changed.
        data: see `training.load_data`.
        budget: limits; none by default.
        recipe: what to try; `Recipe(training=…)` trains the network first.
        out: where the .fw file goes; beside it `.report.json`, and while running a folder `.checkpoint` to resume from.
        resume: go on with the run that the folder holds, with the same result as if it had not been broken off.
        progress: told about every batch.
        tune: trains a network in place, called like `training.fit`; by default `fit` trains the first network, and that one
            teaches the lighter ones (`distillation.teach` with the recipe's lesson).

    Returns:
        The network found and everything measured; also when the budget is not met, see `unmet`.

    Raises:
        RequestError: the request is wrong; found before any training.
        TrainingError: the first training failed, so that there is no network to compress.

    Example:
        >>> from featherweight.nets import mlp
        >>> from featherweight.training import Tuning, load_data
        >>> from featherweight.search import PruneWeights
        >>> step = PruneWeights(sparsities=(0.5,), tuning=Tuning(epochs=1))
        >>> recipe = Recipe(steps=(step,), training=Tuning(epochs=2))
        >>> found = compress(mlp(input_shape=(1, 8, 8)), load_data("digits"), recipe=recipe)
        >>> found.after.size_bytes < found.before.size_bytes
        True
    """
    budget, recipe, model = budget or Budget(), recipe or Recipe(), fold(model)
    if out is None and resume:
        raise RequestError("a run to resume lies beside its output, so resume=True needs out=")
    path = None if out is None else _check_outputs(out)
    example = data.example
    request = {
        "recipe": recipe.as_dict(),
        "budget": asdict(budget),
        "data": data.name,
        "model": _check_network(model, data, example, recipe),
    }
    journal = Journal.open(None if path is None else checkpoint_path(path), request, resume=resume)
    search = _Search(model, data, example, budget, journal, progress, recipe, tune)
    started = time.monotonic()
    trained, reference, stopped = search.train(recipe.training)
    found = trained
    if stopped is None:
        found, stopped = search.run(recipe, trained, reference)
    result = _finish(trained.model, found.model, search, path, stopped)
    if path is not None:
        _write_report(path, result, recipe, search, time.monotonic() - started)
        journal.close()
    return result


@dataclass(frozen=True)
class _Search:
    """What the attempts of one search share."""

    start: nn.Module
    data: Data
    example: torch.Tensor
    budget: Budget
    journal: Journal
    progress: Progress
    recipe: Recipe
    tune: Callable[..., None] | None

    def train(self, training: Tuning | None) -> tuple[Network, float, str | None]:
        """The network to compress (the one given, trained first if so asked), its accuracy on the validation data, and why the
        training ended early if it did, with the network of the last good epoch."""
        stopped = None
        label = "evaluate" if training is None else "train"
        network = self.journal.network("trained", self.start)
        if network is None:
            network = Network(duplicate(self.start))
            if training is not None:
                try:
                    self._tune(network.model, training, label)
                except TrainingError as error:
                    if not error.good_epochs:
                        self.journal.close()  # it would end the same way again
                        raise
                    stopped = str(error)
            if stopped is None:
                self.journal.record(None, {"trained": network})
        accuracy = evaluate(network.model, self.data.validation, progress=self._bar(label))
        self.progress(label, 1, 1, f"{100 * accuracy:.2f} % on validation")
        return network, accuracy, stopped

    def run(self, recipe: Recipe, trained: Network, reference: float) -> tuple[Network, str | None]:
        """Goes through the steps; returns the last network accepted, and why it ended early if it did."""
        current = self.journal.network("current", self.start) or trained
        base = self.journal.network("base", self.start) or trained
        done = {(entry["step"], entry["attempt"]): entry for entry in self.journal.entries}
        lightest = self._figures(trained.model)
        if not done and self._within(lightest):
            return trained, None
        for number, step in enumerate(recipe.steps):
            if (number, 0) not in done:
                base = current
            for position, attempt in enumerate(step.attempts(self.recipe.seed, self.data.train)):
                entry = done.get((number, position))
                if entry is None:
                    place = {"step": number, "kind": kind_of(step), "attempt": position, "setting": dict(attempt.setting)}
                    label = f"{kind_of(step)} {_short(attempt)}"
                    try:
                        outcome, network = self._try(
                            attempt, current, base, trained.model, label, _Threshold(reference, self._allowed(step), lightest)
                        )
                    except TrainingError as error:
                        failed = {"accepted": False, "within_budget": False, "outcome": STOPPED, "note": str(error)}
                        self.journal.record(place | failed, {})
                        return current, str(error)
                    entry = place | outcome
                    current = network if entry["accepted"] else current
                    self.journal.record(entry, {"base": base, "current": current})
                if entry["within_budget"] or entry["outcome"] == STOPPED:
                    return current, str(entry["note"]) if entry["outcome"] == STOPPED else None
                if entry["accepted"]:
                    lightest = entry
                elif entry["outcome"] not in (NO_LIGHTER, SLOWER):
                    break
        return current, None

    def _try(
        self, attempt: Attempt, current: Network, base: Network, teacher: nn.Module, label: str, threshold: _Threshold
    ) -> tuple[dict[str, Any], Network]:
        """Proposes, tunes and judges one network."""
        began = time.monotonic()
        try:
            model, plan = attempt.propose(current.model, base.model, self.example)
        except NothingToDo as reason:
            self.progress(label, 1, 1, f"{NOTHING_TO_DO}: {reason}")
            return {"accepted": False, "within_budget": False, "outcome": NOTHING_TO_DO, "note": str(reason)}, current
        with learnable_steps(model):
            self._tune(model, attempt.tuning, label, teacher=teacher, after_step=attempt.after_step)
        accuracy = evaluate(model, self.data.validation, progress=self._bar(label))
        figures = self._figures(model, current.model)
        drop = 100 * (threshold.accuracy - accuracy)
        outcome = TOO_INACCURATE if drop > threshold.allowed + 1e-9 else KEPT if threshold.is_lighter(figures) else NO_LIGHTER
        if outcome == KEPT and (figures.get("speed_up") or 1) < _SLOWER:
            outcome = SLOWER
        entry = {
            "validation_accuracy": accuracy,
            "validation_drop": drop,
            **figures,
            "accepted": outcome == KEPT,
            "within_budget": outcome == KEPT and self._within(figures),
            "outcome": outcome,
            "seconds": round(time.monotonic() - began, 3),
        }
        self.progress(label, 1, 1, f"{figures['size_bytes']} bytes, {100 * accuracy:.2f} % on validation, {outcome}")
        return entry, Network(model, (*current.plans, plan) if plan is not None else current.plans)

    def _allowed(self, step: Step) -> float:
        """Percentage points of accuracy that may be lost by the end of a step."""
        return step.share * (DEFAULT_DROP if self.budget.accuracy_drop is None else self.budget.accuracy_drop)

    def _bar(self, label: str) -> Progress:
        """Progress of a part of a task: it stays short of the end, which is for saying what came of the task."""

        def report(task: str, done: int, total: int, note: str = "") -> None:
            self.progress(label, done - 1 if done == total else done, total, note or task)

        return report

    def _tune(
        self,
        model: nn.Module,
        tuning: Tuning,
        label: str,
        *,
        teacher: nn.Module | None = None,
        after_step: AfterStep | None = None,
    ) -> None:
        """Trains in place."""
        options: dict[str, Any] = {
            "seed": self.recipe.seed,
            "progress": self._bar(label),
            "checkpoint": self.journal.epoch_checkpoint,
            "after_step": after_step,
        }
        if self.tune is None and teacher is not None and self.recipe.lesson is not None:
            teach(model, teacher, self.data.train, tuning, lesson=self.recipe.lesson, **options)
        else:
            (self.tune or fit)(model, self.data.train, tuning, **options)

    def _figures(self, model: nn.Module, before: nn.Module | None = None) -> dict[str, Any]:
        """What a network weighs; under a latency budget also its time, in turns with that of the network before."""
        net = to_module(model, self.example)
        tensors = tensors_of(net, net.program)
        figures: dict[str, Any] = {
            "size_bytes": len(pack(net.program, tensors)),
            "parameters": count_parameters(model),
            "nonzero_parameters": count_nonzero(model),
            "macs": count_macs(net.program, tensors),
        }
        if self.budget.latency_s is not None:
            after, *others = compare_latency([net, *([] if before is None else [before])], self.example[:1])
            figures["latency_s"] = after.median_s
            for other in others:
                figures["speed_up"] = speed_up(other.median_s, after.median_s, (other.spread_s + after.spread_s) / 2)
        return figures

    def _within(self, figures: Mapping[str, Any]) -> bool:
        """Whether every limit but accuracy is kept; an open budget is never met, so that the search goes on."""
        limits = {"size_bytes": self.budget.size_bytes, "macs": self.budget.macs, "latency_s": self.budget.latency_s}
        return not self.budget.is_open and all(figures[name] <= limit for name, limit in limits.items() if limit is not None)


@dataclass(frozen=True)
class _Threshold:
    """What a proposal is held against: the uncompressed network's accuracy, the percentage points it may lose, and the figures
    of the lightest network so far."""

    accuracy: float
    allowed: float
    figures: Mapping[str, Any]

    def is_lighter(self, figures: Mapping[str, Any]) -> bool:
        """Whether these figures are lighter in any respect that can be counted."""
        return any(figures[name] < self.figures[name] for name in ("size_bytes", "macs"))


def _short(attempt: Attempt) -> str:
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in attempt.setting.values())


def _finish(trained: nn.Module, found: nn.Module, search: _Search, path: Path | None, stopped: str | None) -> Compressed:
    """Writes the file, and measures before and after on the test data, their latencies in turns."""
    example, test = search.example, search.data.test
    original, folded = fold(trained).eval(), fold(found).eval()
    if path is not None:
        save(folded, path, example=example)
    search.progress("latency", 0, 1)
    latencies = compare_latency([original, folded], example[:1])
    search.progress("latency", 1, 1)
    before, after = (
        measure(model, example, data=test, latency=latency, progress=search.progress)
        for model, latency in zip((original, folded if path is None else path), latencies, strict=True)
    )
    unmet = tuple(search.budget.excesses(before, after))
    return Compressed(folded, before, after, unmet, tuple(search.journal.entries), stopped)


def _check_outputs(out: str | Path) -> Path:
    path = check_writable(out)
    check_writable(report_path(path))
    return path


def _check_network(model: nn.Module, data: Data, example: torch.Tensor, recipe: Recipe) -> str:
    """Finds before any training what would fail after it: does the network fit the data, train, pack, and deploy?

    Returns:
        A fingerprint of what it computes.
    """
    check_finite(model)
    check_fits(data, model)
    if (recipe.steps or recipe.training) and not any(parameter.requires_grad for parameter in model.parameters()):
        raise RequestError(f"a network to tune needs a parameter that requires grad, but {type(model).__name__} has none")
    net = to_module(model, example)
    tensors = tensors_of(net, net.program)
    count_macs(net.program, tensors)
    translate(net, example[:1])
    return hashlib.sha256(pack(net.program, tensors)).hexdigest()


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
    with replacing(report_path(path)) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
