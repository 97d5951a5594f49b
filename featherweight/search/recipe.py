"""A recipe: what to try, in which order, from gentle to harsh. Plain data, in TOML if you like."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError, check, look_up
from featherweight.graph.capture import Example
from featherweight.graph.selection import select_weights
from featherweight.graph.surgery import Plan
from featherweight.pruning import GradualPruning, apply_masks, plan_neurons
from featherweight.pruning.allocation import choose
from featherweight.pruning.granularity import pattern_of
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.pruning.schedule import SCHEDULES
from featherweight.pruning.weight_criteria import WEIGHT_CRITERIA
from featherweight.quantization import cluster_weights
from featherweight.quantization.clusters import INITIALISATIONS
from featherweight.training import Tuning
from featherweight.training.loaders import Batch
from featherweight.training.loop import AfterStep

__all__ = [
    "DEFAULT_TRAINING",
    "STEPS",
    "Attempt",
    "ClusterWeights",
    "NothingToDo",
    "PruneNeurons",
    "PruneWeights",
    "Recipe",
    "Step",
    "kind_of",
]


@dataclass(frozen=True)
class Attempt:
    """One thing to try: `propose` makes a lighter network, `tuning` and `after_step` say how to train it back.

    `setting` is for the report. `propose` is given the network as it stands (`current`), the network as it was when the step
    began (`base`) and an example; it returns the proposal and the plan it applied, if it cut anything. It raises
    `NothingToDo` where the network offers nothing to this step.
    """

    setting: Mapping[str, Any]
    propose: Callable[[nn.Module, nn.Module, Example], tuple[nn.Module, Plan | None]]
    tuning: Tuning
    after_step: AfterStep | None = None


class NothingToDo(Exception):
    """A step finds nothing in this network that it could make lighter; the message says why. The search goes on without it."""


@dataclass(frozen=True)
class PruneNeurons:
    """A little structural pruning, tuning, and again, until accuracy does not come back.

    Args:
        sparsity: share of the neurons removed in each round, in (0, 1).
        rounds: at most so many.
        criterion: a name in `NEURON_CRITERIA`.
        allocation: a name in `ALLOCATIONS`.
        round_to: neurons kept are a multiple of this.
        tuning: how to train after each round.
        share: how much of the loss of accuracy that the budget allows may be used up when this step ends, in [0, 1].

    Raises:
        RequestError: a setting is out of range, or a name unknown.
    """

    sparsity: float = 0.2
    rounds: int = 5
    criterion: str = "magnitude"
    allocation: str = "global"
    round_to: int = 1
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=3, min_steps=400))
    share: float = 0.25

    def __post_init__(self) -> None:
        check("sparsity", self.sparsity, "a number in (0, 1)", _is_share(self.sparsity))
        check("rounds", self.rounds, "a whole number >= 1", _is_whole(self.rounds, 1))
        look_up(NEURON_CRITERIA, self.criterion, "criterion")
        choose({"neurons": torch.ones(1)}, 0.0, allocation=self.allocation)  # not every allocation is one for neurons
        check("round_to", self.round_to, "a whole number >= 1", _is_whole(self.round_to, 1))
        _check_share(self.share)

    def attempts(self, seed: int, data: Iterable[Batch]) -> Iterator[Attempt]:
        """Each round on top of the last one that was accepted; `data` are for criteria that look at some."""

        def propose(current: nn.Module, base: nn.Module, example: Example) -> tuple[nn.Module, Plan]:
            try:
                plan = plan_neurons(
                    current, example, sparsity=self.sparsity, criterion=self.criterion, allocation=self.allocation,
                    round_to=self.round_to, data=data, seed=seed,
                )  # fmt: skip
                smaller = plan.apply(current)
            except UnsupportedOpError as error:
                raise NothingToDo(str(error)) from error
            if not plan.removed:
                neurons, groups = sum(group.total for group in plan.groups), len(plan.groups)
                rule = f"sparsity {self.sparsity:g}, multiples of {self.round_to} staying in each of {groups} groups"
                raise NothingToDo(f"none of {neurons} neurons would go ({rule})")
            return smaller, plan

        for number in range(1, self.rounds + 1):
            yield Attempt({"round": number, "sparsity": self.sparsity}, propose, self.tuning)


@dataclass(frozen=True)
class PruneWeights:
    """Gradual pruning to ever higher sparsities (Zhu and Gupta 2017), each from the last that was accepted.

    Args:
        sparsities: what to reach, increasing, each in (0, 1).
        criterion: a name in `WEIGHT_CRITERIA`; one that looks at data gets the training data.
        allocation: a name in `pruning.allocation.ALLOCATIONS`.
        granularity: see `pruning.allocation.choose`; a pattern like "2:4" has one sparsity, and needs the schedule "once".
        schedule: how it grows while training, a name in `pruning.schedule.SCHEDULES`.
        until: the share of the training in which it grows; the rest tunes with fixed masks.
        updates: how many times the masks are chosen anew, at least 1.
        tuning: how to train towards each sparsity.
        share: how much of the loss of accuracy that the budget allows may be used up when this step ends, in [0, 1].

    Raises:
        RequestError: a setting is out of range, or a name unknown.
    """

    sparsities: tuple[float, ...] = (0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
    criterion: str = "magnitude"
    allocation: str = "global"
    granularity: str = "element"
    schedule: str = "cubic"
    until: float = 0.6
    updates: int = 100
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=8, min_steps=800))
    share: float = 0.75

    def __post_init__(self) -> None:
        holds = _is_list(self.sparsities, _is_share) and _increases(self.sparsities)
        check("sparsities", self.sparsities, "a list of increasing numbers in (0, 1)", holds)
        look_up(WEIGHT_CRITERIA, self.criterion, "criterion")
        pattern = pattern_of(self.granularity)
        check("schedule", self.schedule, "once, with a pattern N:M", pattern is None or self.schedule == "once")
        fitting = {"weights": torch.ones(1, 1 if pattern is None else pattern[1], 1)}
        for sparsity in self.sparsities:
            choose(fitting, sparsity, allocation=self.allocation, granularity=self.granularity)
        look_up(SCHEDULES, self.schedule, "schedule")
        check("until", self.until, "a number in (0, 1]", self.until == 1 or _is_share(self.until))
        check("updates", self.updates, "a whole number >= 1", _is_whole(self.updates, 1))
        _check_share(self.share)

    def attempts(self, seed: int, data: Iterable[Batch]) -> Iterator[Attempt]:
        """Each sparsity from the last one that was accepted; `data` are for criteria that look at some."""

        def propose(current: nn.Module, base: nn.Module, example: Example) -> tuple[nn.Module, None]:
            masks = {name: weight != 0 for name, weight in select_weights(current).items()}  # zeros stay zero
            if not masks:
                raise NothingToDo("no trainable weight has two or more axes")
            return apply_masks(current, masks), None

        for start, end in zip((0.0, *self.sparsities), self.sparsities, strict=False):
            grow = GradualPruning(
                start=start, end=end, schedule=self.schedule, until=self.until, updates=self.updates, criterion=self.criterion,
                allocation=self.allocation, granularity=self.granularity, data=data, seed=seed,
            )  # fmt: skip
            yield Attempt({"sparsity": end}, propose, self.tuning, grow)


@dataclass(frozen=True)
class ClusterWeights:
    """Shared weights with trained centroids (Deep Compression, section 3), from many clusters to few.

    Each number of clusters starts from the network as it was before this step.

    Args:
        clusters: how many shared values for each tensor, decreasing.
        init: where the centroids start, a name in `quantization.clusters.INITIALISATIONS`.
        tuning: how to train the centroids.
        share: how much of the loss of accuracy that the budget allows may be used up when this step ends, in [0, 1].

    Raises:
        RequestError: a setting is out of range, or a name unknown.
    """

    clusters: tuple[int, ...] = (64, 32, 16, 8)
    init: str = "linear"
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=3, min_steps=400, learning_rate=5e-4))
    share: float = 1.0

    def __post_init__(self) -> None:
        holds = _is_list(self.clusters, lambda count: _is_whole(count, 1, 65535)) and _increases(self.clusters[::-1])
        check("clusters", self.clusters, "a list of decreasing whole numbers in [1, 65535]", holds)
        look_up(INITIALISATIONS, self.init, "init")
        _check_share(self.share)

    def attempts(self, seed: int, data: Iterable[Batch]) -> Iterator[Attempt]:
        """Each number of clusters, from the network as it was before this step."""
        for count in self.clusters:

            def propose(current: nn.Module, base: nn.Module, example: Example, count: int = count) -> tuple[nn.Module, None]:
                return cluster_weights(base, clusters=count, init=self.init, seed=seed), None

            yield Attempt({"clusters": count, "init": self.init}, propose, self.tuning)


Step = PruneNeurons | PruneWeights | ClusterWeights
STEPS: dict[str, type[Step]] = {
    "prune-neurons": PruneNeurons,
    "prune-weights": PruneWeights,
    "cluster-weights": ClusterWeights,
}


DEFAULT_TRAINING = Tuning(epochs=15, min_steps=600)
"""How a network without weights is trained when the recipe does not say."""


@dataclass(frozen=True)
class Recipe:
    """What `compress` does: the steps in order, and how a network without weights is trained first.

    The default is Deep Compression (Han, Mao and Dally, ICLR 2016) on a structurally pruned network.

    Args:
        steps: in order; each tries from gentle to harsh, and ends when the budget is met or accuracy does not come back.
        training: how to train a network that has no weights yet; None for one that is trained.
        seed: every random choice follows from it, in [0, 2**32).

    Raises:
        RequestError: the seed is out of range.

    Example:
        >>> [type(step).__name__ for step in Recipe().steps]
        ['PruneNeurons', 'PruneWeights', 'ClusterWeights']
    """

    steps: tuple[Step, ...] = field(default_factory=lambda: (PruneNeurons(), PruneWeights(), ClusterWeights()))
    training: Tuning | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check("seed", self.seed, "a whole number in [0, 2**32)", _is_whole(self.seed, 0, 2**32 - 1))

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Reads a recipe from TOML: `seed`, a table `[training]`, and a list `[[step]]`, each with its `kind` and settings.

        Raises:
            RequestError: the file is missing, no TOML, or names what a recipe does not have.
        """
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"a recipe must be a readable TOML file, but {path} is not: {error}") from error
        try:
            return _recipe(raw)
        except RequestError as error:
            raise RequestError(f"{error}, in {path}") from error

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for reports and fingerprints."""
        steps = [{"kind": kind_of(step), **asdict(step)} for step in self.steps]
        training = None if self.training is None else asdict(self.training)
        return {"seed": self.seed, "training": training, "step": steps}


def kind_of(step: Step) -> str:
    """The name of a step's kind, as recipes write it.

    Args:
        step: one of a recipe's.

    Returns:
        Its key in `STEPS`.

    Example:
        >>> kind_of(PruneWeights())
        'prune-weights'
    """
    return next(kind for kind, cls in STEPS.items() if type(step) is cls)


def _recipe(raw: Mapping[str, Any]) -> Recipe:
    _check_names("a recipe", raw, ["seed", "training", "step"])
    options: dict[str, Any] = {"seed": raw.get("seed", 0)}
    if "training" in raw:
        options["training"] = _changed(Tuning(), raw["training"], "[training]")
    if "step" in raw:
        tables = raw["step"]
        check("step", tables, "a list of tables, each under [[step]]", _is_list(tables, lambda table: isinstance(table, dict)))
        options["steps"] = tuple(_step(table, f"step {number}") for number, table in enumerate(tables, start=1))
    return Recipe(**options)


def _step(table: Mapping[str, Any], where: str) -> Step:
    kind = table.get("kind", "nothing")
    check(f"the kind of {where}", kind, "a text", isinstance(kind, str))
    default = look_up(STEPS, kind, f"the kind of {where}")()
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key != "kind"}
    if "tuning" in settings:
        settings["tuning"] = _tuning(default.tuning, settings["tuning"], f"the tuning of {where}")
    step: Step = _changed(default, settings, f"{where} ({kind})")
    return step


def _tuning(default: Tuning, settings: Any, what: str) -> Tuning:
    """Where a recipe says how many epochs, so many it is: the default's least number of steps does not hold."""
    names_epochs = isinstance(settings, dict) and "epochs" in settings
    tuning: Tuning = _changed(replace(default, min_steps=0) if names_epochs else default, settings, what)
    return tuning


def _changed(default: Any, settings: Any, what: str) -> Any:
    """A dataclass with some settings changed; those that are not named keep the default."""
    check(what, settings, "a table of settings", isinstance(settings, dict))
    _check_names(what, settings, [f.name for f in fields(default)])
    try:
        return replace(default, **settings)
    except (RequestError, TypeError) as error:  # comparing a text with a number is a TypeError
        raise RequestError(f"{what}: {error}") from error


def _check_names(what: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise RequestError(f"{what} has the settings {', '.join(known)}, got {', '.join(unknown)}")


def _is_whole(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_share(share: object) -> None:
    check("share", share, "a number in [0, 1]", share in (0, 1) or _is_share(share))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < 1


def _is_list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple | list) and all(map(holds, value))


def _increases(values: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(values))
