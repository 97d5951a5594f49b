"""What a recipe is made of: each step proposes lighter networks, from gentle to harsh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from featherweight.errors import UnsupportedOpError, check, look_up
from featherweight.factorization import plan_factors
from featherweight.factorization.decompositions import METHODS
from featherweight.graph.capture import Example, to_module
from featherweight.graph.cutting import carry_constraints
from featherweight.graph.selection import select_weights
from featherweight.graph.surgery import Plan
from featherweight.pruning import GradualPruning, apply_masks, plan_neurons
from featherweight.pruning.allocation import choose
from featherweight.pruning.granularity import pattern_of
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.pruning.schedule import SCHEDULES
from featherweight.pruning.weight_criteria import WEIGHT_CRITERIA
from featherweight.quantization import UniformOptions, cluster_weights, quantize_uniform
from featherweight.quantization.kmeans import INITIALISATIONS
from featherweight.quantization.rounding import ROUNDINGS
from featherweight.training import Tuning
from featherweight.training.loaders import Loader
from featherweight.training.loop import AfterStep

__all__ = [
    "STEPS",
    "Attempt",
    "ClusterWeights",
    "Factorize",
    "NothingToDo",
    "PruneNeurons",
    "PruneWeights",
    "QuantizeUniform",
    "Step",
    "is_whole",
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
        check("rounds", self.rounds, "a whole number >= 1", is_whole(self.rounds, 1))
        look_up(NEURON_CRITERIA, self.criterion, "criterion")
        choose({"neurons": torch.ones(1)}, 0.0, allocation=self.allocation)  # not every allocation is one for neurons
        check("round_to", self.round_to, "a whole number >= 1", is_whole(self.round_to, 1))
        _check_share(self.share)

    def attempts(self, seed: int, data: Loader) -> Iterator[Attempt]:
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
        check("updates", self.updates, "a whole number >= 1", is_whole(self.updates, 1))
        _check_share(self.share)

    def attempts(self, seed: int, data: Loader) -> Iterator[Attempt]:
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
        init: where the centroids start, a name in `quantization.kmeans.INITIALISATIONS`.
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
        holds = _is_list(self.clusters, lambda count: is_whole(count, 1, 65535)) and _increases(self.clusters[::-1])
        check("clusters", self.clusters, "a list of decreasing whole numbers in [1, 65535]", holds)
        look_up(INITIALISATIONS, self.init, "init")
        _check_share(self.share)

    def attempts(self, seed: int, data: Loader) -> Iterator[Attempt]:
        """Each number of clusters, from the network as it was before this step."""
        for count in self.clusters:

            def propose(current: nn.Module, base: nn.Module, example: Example, count: int = count) -> tuple[nn.Module, None]:
                return cluster_weights(base, clusters=count, init=self.init, seed=seed), None

            yield Attempt({"clusters": count, "init": self.init}, propose, self.tuning)


@dataclass(frozen=True)
class QuantizeUniform:
    """Weights on grids, and activations too if asked, from many bits to few (Jacob et al., CVPR 2018), with learned steps.

    Each number of bits starts from the network as it was before this step.

    Args:
        bits: of the weights, decreasing, each in [2, 16].
        activation_bits: of the activations, in [2, 8], for int8 kernels; None leaves them in floats.
        rounding: a name in `quantization.rounding.ROUNDINGS`.
        tuning: how to train the weights and their steps.
        share: how much of the loss of accuracy that the budget allows may be used up when this step ends, in [0, 1].

    Raises:
        RequestError: a setting is out of range, or a name unknown.
    """

    bits: tuple[int, ...] = (8, 6, 5, 4, 3)
    activation_bits: int | None = None
    rounding: str = "nearest"
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=3, min_steps=400, learning_rate=5e-4))
    share: float = 1.0

    def __post_init__(self) -> None:
        holds = _is_list(self.bits, lambda bits: is_whole(bits, 2, 16)) and _increases(self.bits[::-1])
        check("bits", self.bits, "a list of decreasing whole numbers in [2, 16]", holds)
        holds = self.activation_bits is None or is_whole(self.activation_bits, 2, 8)
        check("activation_bits", self.activation_bits, "a whole number in [2, 8], or left out", holds)
        look_up(ROUNDINGS, self.rounding, "rounding")
        _check_share(self.share)

    def attempts(self, seed: int, data: Loader) -> Iterator[Attempt]:
        """Each number of bits, from the network as it was before this step."""
        options = UniformOptions(rounding=self.rounding)
        for bits in self.bits:

            def propose(current: nn.Module, base: nn.Module, example: Example, bits: int = bits) -> tuple[nn.Module, None]:
                return quantize_uniform(
                    base, example, weight_bits=bits, activation_bits=self.activation_bits, calibrate=data, options=options
                ), None  # fmt: skip

            yield Attempt({"bits": bits, "activation_bits": self.activation_bits}, propose, self.tuning)


@dataclass(frozen=True)
class Factorize:
    """Layers as products of thin ones, from many weights to few (see `factorization.plan_factors`).

    Each share starts from the network as it was before this step. The result is a captured program; constraints stay on the
    layers that stay.

    Args:
        budgets: which share of the weights of all layers that may be factored is kept, decreasing, each in (0, 1).
        method: a name in `factorization.decompositions.METHODS`.
        tuning: how to train the thin layers.
        share: how much of the loss of accuracy that the budget allows may be used up when this step ends, in [0, 1].

    Raises:
        RequestError: a setting is out of range, or a name unknown.
    """

    budgets: tuple[float, ...] = (0.7, 0.5, 0.35, 0.25)
    method: str = "svd"
    tuning: Tuning = field(default_factory=lambda: Tuning(epochs=3, min_steps=400))
    share: float = 0.25

    def __post_init__(self) -> None:
        holds = _is_list(self.budgets, _is_share) and _increases(self.budgets[::-1])
        check("budgets", self.budgets, "a list of decreasing numbers in (0, 1)", holds)
        look_up(METHODS, self.method, "method")
        _check_share(self.share)

    def attempts(self, seed: int, data: Loader) -> Iterator[Attempt]:
        """Each share, from the network as it was before this step."""
        for budget in self.budgets:

            def propose(
                current: nn.Module, base: nn.Module, example: Example, budget: float = budget
            ) -> tuple[nn.Module, None]:
                whole = to_module(base, example)
                carry_constraints(whole, base)
                plan = plan_factors(whole, example, budget=budget, method=self.method)
                if not plan.factorings:
                    raise NothingToDo("no layer would be cheaper as a product of thin ones")
                return plan.apply(whole), None

            yield Attempt({"budget": budget, "method": self.method}, propose, self.tuning)


Step = PruneNeurons | PruneWeights | ClusterWeights | QuantizeUniform | Factorize
STEPS: dict[str, type[Step]] = {
    "prune-neurons": PruneNeurons,
    "prune-weights": PruneWeights,
    "cluster-weights": ClusterWeights,
    "quantize-uniform": QuantizeUniform,
    "factorize": Factorize,
}


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


def is_whole(value: object, low: int, high: float = math.inf) -> bool:
    """Whether a setting is a whole number in [low, high].

    Args:
        value: anything.
        low: the least.
        high: the greatest.

    Returns:
        Whether it is; True and False are no numbers.

    Example:
        >>> is_whole(3, 1), is_whole(True, 1), is_whole(0.5, 0)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_share(share: object) -> None:
    check("share", share, "a number in [0, 1]", share in (0, 1) or _is_share(share))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < 1


def _is_list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(holds, value))


def _increases(values: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(values))
