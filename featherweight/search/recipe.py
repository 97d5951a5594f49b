"""A recipe: what to try, in which order, from gentle to harsh. Plain data, in TOML if you like."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import RequestError, look_up
from featherweight.graph.capture import Example
from featherweight.graph.surgery import Plan
from featherweight.pruning import GradualPruning, apply_masks, plan_neurons, plan_weights
from featherweight.quantization import cluster_weights
from featherweight.training import Tuning
from featherweight.training.loop import AfterStep

__all__ = ["STEPS", "Attempt", "ClusterWeights", "PruneNeurons", "PruneWeights", "Recipe", "Step"]


@dataclass(frozen=True)
class Attempt:
    """One thing to try: `propose` makes a lighter network, `tuning` and `after_step` say how to train it back.

    `setting` is for the report. `propose` is given the network as it stands (`current`), the network as it was when the step
    began (`base`) and an example; it returns the proposal and the plan it applied, if it cut anything.
    """

    setting: Mapping[str, Any]
    propose: Callable[[nn.Module, nn.Module, Example], tuple[nn.Module, Plan | None]]
    tuning: Tuning
    after_step: AfterStep | None = None


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
    """

    sparsity: float = 0.2
    rounds: int = 5
    criterion: str = "magnitude"
    allocation: str = "global"
    round_to: int = 1
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=3, learning_rate=1e-3))

    def attempts(self, seed: int) -> Iterator[Attempt]:
        """Each round on top of the last one that was accepted."""
        for number in range(1, self.rounds + 1):

            def propose(current: nn.Module, base: nn.Module, example: Example) -> tuple[nn.Module, Plan]:
                plan = plan_neurons(
                    current, example, sparsity=self.sparsity, criterion=self.criterion, allocation=self.allocation,
                    round_to=self.round_to, seed=seed,
                )  # fmt: skip
                return plan.apply(current), plan

            yield Attempt({"round": number, "sparsity": self.sparsity}, propose, self.tuning)


@dataclass(frozen=True)
class PruneWeights:
    """Gradual magnitude pruning to ever higher sparsities (Zhu and Gupta 2017), each from the last that was accepted.

    Args:
        sparsities: what to reach, increasing, each in (0, 1).
        schedule: how it grows while training, a name in `pruning.schedule.SCHEDULES`.
        until: the share of the training in which it grows; the rest tunes with fixed masks.
        tuning: how to train towards each sparsity.
    """

    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.98, 0.99)
    schedule: str = "cubic"
    until: float = 0.6
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=4, learning_rate=1e-3))

    def attempts(self, seed: int) -> Iterator[Attempt]:
        """Each sparsity from the last one that was accepted."""

        def propose(current: nn.Module, base: nn.Module, example: Example) -> tuple[nn.Module, None]:
            return apply_masks(current, plan_weights(current, sparsity=0.0)), None

        for start, end in zip((0.0, *self.sparsities), self.sparsities, strict=False):
            grow = GradualPruning(start=start, end=end, schedule=self.schedule, until=self.until)
            yield Attempt({"sparsity": end}, propose, self.tuning, grow)


@dataclass(frozen=True)
class ClusterWeights:
    """Shared weights with trained centroids (Deep Compression, section 3), from many clusters to few.

    Each number of clusters starts from the network as it was before this step.

    Args:
        clusters: how many shared values for each tensor, decreasing.
        init: where the centroids start, a name in `quantization.clusters.INITIALISATIONS`.
        tuning: how to train the centroids.
    """

    clusters: tuple[int, ...] = (64, 32, 16, 8)
    init: str = "linear"
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=2, learning_rate=3e-4))

    def attempts(self, seed: int) -> Iterator[Attempt]:
        """Each number of clusters, from the network as it was before this step."""
        for count in self.clusters:

            def propose(current: nn.Module, base: nn.Module, example: Example, count: int = count) -> tuple[nn.Module, None]:
                return cluster_weights(base, clusters=count, init=self.init, seed=seed), None

            yield Attempt({"clusters": count, "init": self.init}, propose, self.tuning)


Step = PruneNeurons | PruneWeights | ClusterWeights
STEPS: dict[str, type[PruneNeurons] | type[PruneWeights] | type[ClusterWeights]] = {
    "prune-neurons": PruneNeurons,
    "prune-weights": PruneWeights,
    "cluster-weights": ClusterWeights,
}


@dataclass(frozen=True)
class Recipe:
    """What `compress` does: the steps in order, and how a network without weights is trained first.

    The default is Deep Compression (Han, Mao and Dally, ICLR 2016) on a structurally pruned network.

    Args:
        steps: in order; each tries from gentle to harsh, and ends when the budget is met or accuracy does not come back.
        training: how to train a network that has no weights yet; None for one that is trained.
        seed: every random choice follows from it.

    Example:
        >>> [type(step).__name__ for step in Recipe().steps]
        ['PruneNeurons', 'PruneWeights', 'ClusterWeights']
    """

    steps: tuple[Step, ...] = (PruneNeurons(), PruneWeights(), ClusterWeights())
    training: Tuning | None = None
    seed: int = 0

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
        known = {"seed", "training", "step"}
        if raw.keys() - known:
            raise RequestError(
                f"a recipe has {', '.join(sorted(known))}, got {', '.join(sorted(raw.keys() - known))} in {path}"
            )
        steps = [_step(dict(table)) for table in raw.get("step", [])]
        options: dict[str, Any] = {"seed": raw.get("seed", 0)}
        if "step" in raw:
            options["steps"] = tuple(steps)
        if "training" in raw:
            options["training"] = _make(Tuning, raw["training"], "training")
        return Recipe(**options)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for reports and fingerprints."""
        kinds = {cls: kind for kind, cls in STEPS.items()}
        steps = [{"kind": kinds[type(step)], **asdict(step)} for step in self.steps]
        training = None if self.training is None else asdict(self.training)
        return {"seed": self.seed, "training": training, "step": steps}


def _step(table: dict[str, Any]) -> Step:
    kind = look_up(STEPS, table.pop("kind", ""), "a step's kind")
    if "tuning" in table:
        table["tuning"] = _make(Tuning, table["tuning"], "tuning")
    step: Step = _make(kind, {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}, kind.__name__)
    return step


def _make(cls: Any, options: Mapping[str, Any], what: str) -> Any:
    known = [f.name for f in fields(cls)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise RequestError(f"{what} has the settings {', '.join(known)}, got {', '.join(unknown)}")
    return cls(**options)
