"""Pruning layers: residual branches that go whole, so that the network becomes shallower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from featherweight.errors import RequestError, UnsupportedOpError, check, look_up
from featherweight.graph.capture import Example, example_of, on_device_of, to_module
from featherweight.graph.constraint import duplicate
from featherweight.graph.cutting import carry_constraints
from featherweight.graph.own_class import difference, tolerance
from featherweight.graph.program import Input, Node, ProgramModule, make_example
from featherweight.graph.residuals import Residual, find_residuals, without_branches
from featherweight.graph.shapes import infer_shapes
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss, mean_loss
from featherweight.training.statistics import Evidence, batches_of

__all__ = [
    "LAYER_CRITERIA",
    "LayerCriterion",
    "LayerPlan",
    "layer_influence",
    "layer_loss",
    "layer_magnitude",
    "layer_random",
    "plan_layers",
    "prune_layers",
]

_log = logging.getLogger(__name__)

LayerCriterion = Callable[[Sequence[Residual], ProgramModule, Evidence], Sequence[float]]
"""(branches, their network, data and loss) -> a score for each; the lowest go first."""


def layer_magnitude(branches: Sequence[Residual], network: ProgramModule, evidence: Evidence) -> list[float]:
    """The root mean square of a branch's weights, of tensors with two or more axes (all, where there is none).

    Args:
        branches: residual branches of the network.
        network: gives the weights.
        evidence: not used.

    Returns:
        A score for each branch, at least 0.
    """
    tensors = network.state_dict()
    scores = []
    for branch in branches:
        values = [tensors[name] for name in branch.tensors if tensors[name].is_floating_point()]
        matrices = [value for value in values if value.dim() > 1] or values
        total = sum(float(value.double().square().sum()) for value in matrices)
        scores.append((total / sum(value.numel() for value in matrices)) ** 0.5)
    return scores


def layer_influence(branches: Sequence[Residual], network: ProgramModule, evidence: Evidence) -> list[float]:
    """How far a branch turns what it is added to: 1 minus the mean cosine of the sum and the skip.

    Block influence (Men et al., "ShortGPT", 2024, eq. 1), where the vectors are the features of a position: axis 1 of images,
    the last axis of anything else.

    Args:
        branches: residual branches of the network.
        network: runs on the data.
        evidence: with data, of which only the inputs count.

    Returns:
        A score for each branch, in [0, 2].
    """
    watched = _Watched(network, branches)
    with torch.no_grad():
        for inputs, _ in batches_of(evidence):
            watched(inputs)
    return [1 - float(total / count) for total, count in watched.cosines]


def layer_loss(branches: Sequence[Residual], network: ProgramModule, evidence: Evidence) -> list[float]:
    """How much the mean loss on data rises without a branch, each alone.

    Args:
        branches: residual branches of the network.
        network: runs on the data, once for each branch and once as it is.
        evidence: with data and loss.

    Returns:
        A score for each branch; below 0 where the loss falls.
    """

    def loss_of(one: nn.Module) -> float:
        return mean_loss(one, batches_of(evidence), loss=evidence.loss)

    whole = loss_of(network)
    return [loss_of(_shallower(network, [branch])) - whole for branch in branches]


def layer_random(branches: Sequence[Residual], network: ProgramModule, evidence: Evidence) -> list[float]:
    """Numbers drawn at random: the control.

    Args:
        branches: residual branches of the network.
        network: not used.
        evidence: gives the generator.

    Returns:
        A score for each branch, in [0, 1).
    """
    drawn: list[float] = torch.rand(len(branches), generator=evidence.generator).tolist()
    return drawn


LAYER_CRITERIA: dict[str, LayerCriterion] = {
    "magnitude": layer_magnitude,
    "influence": layer_influence,
    "loss": layer_loss,
    "random": layer_random,
}


@dataclass(frozen=True)
class LayerPlan:
    """Which residual branches go: plain data that prints, masks and applies.

    Args:
        removed: the names of the branches that go, each its last layer's ("layer1.0.conv2").
        scores: of every branch that may go, by name.
        inputs: the network's inputs, from which an example is made when the plan is applied.
    """

    removed: tuple[str, ...]
    scores: Mapping[str, float]
    inputs: tuple[Input, ...]

    def mask(self, model: nn.Module) -> nn.Module:
        """A copy, captured and without constraints, in which what these branches add is multiplied by 0.

        Raises:
            RequestError: the network has no branch of that name.
            CaptureError, UnsupportedOpError: as `capture` says.
        """
        twin, residuals = self._find(model)
        return _Silenced(twin, residuals)

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy without these branches, as a captured program, constraints kept; its outputs are those of the masked network.

        Raises:
            RequestError: the network has no branch of that name.
            UnsupportedOpError: the result is not what the masked network gives.
            CaptureError: as `capture` says.
        """
        if not self.removed:
            return duplicate(model)
        twin, residuals = self._find(model)
        smaller = _shallower(twin, residuals)
        inputs = on_device_of(twin, example_of(twin, seed=2))
        with torch.no_grad():
            distance = difference(duplicate(smaller).eval()(*inputs), _Silenced(twin, residuals).eval()(*inputs))
        if not distance <= tolerance(twin):
            raise UnsupportedOpError(
                f"a shallower network must compute what the masked one does, but they differ by {distance:.2g} of the largest "
                "output: something in a branch has an effect outside it; exclude it, and report it"
            )
        carry_constraints(smaller, model)
        _log.info("%s lost %d layers; a captured program comes back", type(model).__name__, len(residuals))
        return smaller

    def _find(self, model: nn.Module) -> tuple[ProgramModule, list[Residual]]:
        twin = to_module(model, make_example(self.inputs))
        known = {residual.name: residual for residual in _residuals(twin)}
        for name in self.removed:
            if name not in known:
                raise RequestError(
                    f"a plan must be applied to the network it was made from, but {type(model).__name__} has no residual "
                    f"branch {name!r}; it has {', '.join(known) or 'none'}"
                )
        return twin, [known[name] for name in self.removed]

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<32} {score:>12.4g} {'goes' if name in self.removed else ''}".rstrip()
            for name, score in self.scores.items()
        )


def plan_layers(
    model: nn.Module,
    example: Example,
    *,
    sparsity: float,
    criterion: str | LayerCriterion = "magnitude",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    data: Iterable[Batch] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> LayerPlan:
    """Decides which residual branches go: round(sparsity · n) of the n that may, the lowest scores first, then the earlier.

    A branch is what a block adds to its input (a ResNet's convolutions, a transformer's attention or MLP). Of branches inside
    one another both may be chosen.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        sparsity: fraction of the branches removed, in [0, 1).
        criterion: a name in `LAYER_CRITERIA`, or a function like those.
        include: shell-style patterns of branch names, as the plan prints them; only these, if given.
        exclude: patterns of names to leave alone.
        data: batches of (inputs, targets), for "influence" and "loss".
        loss: (outputs, targets) -> scalar, for "loss".
        seed: for what is drawn at random, and the order of data that are shuffled.

    Returns:
        The plan; `plan.apply(model)` makes the shallower network.

    Raises:
        RequestError: an unknown name, a number out of range, patterns that leave nothing, data that are needed and not given.
        UnsupportedOpError: the network has no residual branches.

    Example:
        >>> net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
        >>> plan_layers(net, torch.zeros(1, 3, 8), sparsity=0.25, criterion="random").removed
        ('layers.1.linear2',)
    """
    check("sparsity", sparsity, "in [0, 1)", 0 <= sparsity < 1)
    score = look_up(LAYER_CRITERIA, criterion, "criterion") if isinstance(criterion, str) else criterion
    twin = to_module(model, example).eval()
    residuals = _residuals(twin)
    if not residuals:
        raise UnsupportedOpError(f"{type(model).__name__} has no residual branches, without which it would still run")
    wanted = [r for r in residuals if _fits(r.name, include, True) and not _fits(r.name, exclude, False)]
    if not wanted:
        names = ", ".join(residual.name for residual in residuals)
        raise RequestError(f"include and exclude must leave a residual branch, got {include} and {exclude} for {names}")
    evidence = Evidence(twin, data, loss, torch.Generator().manual_seed(seed), f"the criterion {criterion!r}")
    scores = torch.tensor(score(wanted, twin, evidence), dtype=torch.float64)
    lowest = scores.argsort(stable=True)[: round(sparsity * len(wanted))].tolist()
    return LayerPlan(
        tuple(wanted[i].name for i in sorted(lowest)),
        {residual.name: value for residual, value in zip(wanted, scores.tolist(), strict=True)},
        twin.program.inputs,
    )


def prune_layers(model: nn.Module, example: Example, *, sparsity: float, **options: Any) -> nn.Module:
    """Removes residual branches at once: `plan_layers`, then `LayerPlan.apply`.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        sparsity: fraction of the branches removed, in [0, 1).
        **options: the others of `plan_layers`.

    Returns:
        The shallower network, constraints kept.

    Raises:
        RequestError, UnsupportedOpError: as `plan_layers` and `LayerPlan.apply` say.

    Example:
        >>> net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> sum(p.numel() for p in prune_layers(net, torch.zeros(1, 3, 8), sparsity=0.5).parameters())
        320
    """
    return plan_layers(model, example, sparsity=sparsity, **options).apply(model)


class _Silenced(ProgramModule):
    """The network with what some branches add multiplied by 0."""

    def __init__(self, network: ProgramModule, residuals: Sequence[Residual]) -> None:
        super().__init__(network.program, network.state_dict(keep_vars=True))
        self._positions = {residual.branch.index - network.program.first_node for residual in residuals}
        self.train(network.training)

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        result = super()._run(position, node, values)
        return result * 0 if position in self._positions else result


class _Watched(ProgramModule):
    """Sums, for each branch, the cosines of the sum and the skip."""

    def __init__(self, network: ProgramModule, residuals: Sequence[Residual]) -> None:
        super().__init__(network.program, network.state_dict())
        self.eval()
        self._at = {residual.total - network.program.first_node: (i, residual) for i, residual in enumerate(residuals)}
        self.cosines = [(0.0, 0)] * len(residuals)

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        if position not in self._at:
            return super()._run(position, node, values)
        number, residual = self._at[position]
        skip = values[residual.skip.index].clone()  # the sum may be made in its place
        result = super()._run(position, node, values)
        found = cosine_similarity(result.double(), skip.double(), dim=1 if result.dim() == 4 else -1)
        total, count = self.cosines[number]
        self.cosines[number] = (total + float(found.sum()), count + found.numel())
        return result


def _residuals(network: ProgramModule) -> tuple[Residual, ...]:
    return find_residuals(network.program, infer_shapes(network.program, dict(network.state_dict())))


def _shallower(network: ProgramModule, residuals: Sequence[Residual]) -> ProgramModule:
    tensors = network.state_dict(keep_vars=True)
    program = without_branches(network.program, residuals)
    smaller = ProgramModule(replace(program, constants={}), {spec.name: tensors[spec.name] for spec in program.tensors})
    return smaller.train(network.training)


def _fits(name: str, patterns: Sequence[str] | None, default: bool) -> bool:
    return default if patterns is None else any(fnmatchcase(name, pattern) for pattern in patterns)
