"""Linear and convolution layers as chains of thin ones, where that pays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError, check, look_up
from featherweight.factorization.decompositions import METHODS, Method
from featherweight.factorization.layers import Layer, as_thin, macs_of, weights_of
from featherweight.factorization.network import look, replace_layers
from featherweight.factorization.ranks import rank_by_energy, rank_by_vbmf
from featherweight.graph.capture import Example
from featherweight.graph.program import Input, make_example
from featherweight.training.loaders import Batch

__all__ = ["FactorPlan", "Factoring", "factorize", "plan_factors"]


@dataclass(frozen=True)
class Factoring:
    """A line of the plan's table: a weight, its rank of the full one, and what its layer costs before and after."""

    name: str
    rank: int
    full: int
    weights: tuple[int, int]
    macs: tuple[int, int]


@dataclass(frozen=True)
class FactorPlan:
    """Which weights become chains of thin layers: plain data that prints and applies.

    Args:
        method: a name in `METHODS`.
        factorings: of the weights that are factored.
        skipped: names of weights that stay, each with the reason.
        inputs: the network's inputs, from which an example is made when the plan is applied.
    """

    method: str
    factorings: tuple[Factoring, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()

    def apply(self, model: nn.Module, *, data: Iterable[Batch] | None = None) -> nn.Module:
        """A copy with thin layers, the constraints on the tensors of its other layers kept.

        The user's own class comes back, with `nn.Sequential` in the place of layers, where its code runs with them and agrees
        with the captured program; otherwise a `ProgramModule` does, and the log says so.

        Args:
            model: of which the plan was made; it is not changed.
            data: batches of (inputs, targets), as when the plan was made, for factors that are best on data.

        Raises:
            RequestError: the plan does not fit the network.
            CaptureError, UnsupportedOpError: as `capture` says.
        """
        network = look(model, make_example(self.inputs), data)
        missing = [line.name for line in self.factorings if line.name not in network.layers]
        if missing:
            raise RequestError(f"a plan must be applied to the network it was made from, which has no layer {missing[0]!r}")
        factor = METHODS[self.method].factor
        chains = {line.name: factor(network.layers[line.name], line.rank) for line in self.factorings}
        return replace_layers(model, network, chains)

    def __str__(self) -> str:
        lines = [
            f"{line.name:<32} rank {line.rank:>5} of {line.full:<5} {line.weights[0]:>9} -> {line.weights[1]:<9} weights "
            f"{line.macs[0]:>11} -> {line.macs[1]} MACs"
            for line in self.factorings
        ]
        return "\n".join([*lines, *(f"{name:<32} stays: {reason}" for name, reason in self.skipped.items())])


def plan_factors(
    model: nn.Module,
    example: Example,
    *,
    rank: int | float | str | Mapping[str, int] | None = None,
    energy: float | None = None,
    budget: float | None = None,
    method: str = "svd",
    data: Iterable[Batch] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> FactorPlan:
    """Decides which linear and convolution layers become chains of thin ones, and of which rank.

    A layer stays as it is unless its chain has both fewer weights and fewer multiply-accumulates. Exactly one of `rank`,
    `energy` and `budget` says how many components are kept.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        rank: of every layer, an int of at least 1, or the full rank where that is less; or a share of its full rank, a float
            in (0, 1); or "vbmf", by `rank_by_vbmf`; or ranks by weight name (or pattern of names), and only these.
        energy: the share of the squared singular values kept in each layer, in (0, 1]; with data, of the layer's outputs.
        budget: the share of the weights of all layers that may be factored which is kept, in (0, 1); ranks are chosen together,
            so that the sum of the layers' relative errors is least.
        method: a name in `METHODS`.
        data: batches of (inputs, targets), of which only the inputs count: "svd" and "separable" then fit the layers' outputs
            rather than their weights.
        include: shell-style patterns of weight names; only these, if given.
        exclude: patterns of names to leave alone.

    Returns:
        The plan.

    Raises:
        RequestError: not exactly one of the three, a number out of range, an unknown name, a method that does not look at data,
            or patterns that leave nothing.
        WeightsError, DataError: a weight, or what the data make a layer get, is not finite.
        CaptureError, UnsupportedOpError: as `capture` says.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> print(plan_factors(net, torch.zeros(1, 64), rank=4, include=["0.*"]))
        0.weight                         rank     4 of 64         4096 -> 512       weights        4096 -> 512 MACs
    """
    if sum(choice is not None for choice in (rank, energy, budget)) != 1:
        raise RequestError(f"exactly one of rank, energy and budget must be given, got {rank}, {energy} and {budget}")
    way = look_up(METHODS, method, "method")
    names = list(rank) if isinstance(rank, Mapping) else include
    if data is not None and not way.uses_data:
        knowing = ", ".join(name for name, other in METHODS.items() if other.uses_data)
        raise RequestError(f"the method {method!r} does not look at data; {knowing} do")
    network = look(model, example, data, include=names, exclude=exclude)
    if isinstance(rank, Mapping):
        _check_names(rank, [*network.layers, *network.skipped])
    reasons = {name: way.fits(layer) for name, layer in network.layers.items()}
    skipped = dict(network.skipped) | {name: why for name, why in reasons.items() if why}
    fitting = {name: layer for name, layer in network.layers.items() if not reasons[name]}
    energies = {name: way.energies(layer) for name, layer in fitting.items()}
    if budget is not None:
        check("budget", budget, "in (0, 1)", 0 < budget < 1)
        ranks = _share(way, fitting, energies, budget)
    else:
        ranks = {name: _rank(name, layer, energies[name], rank, energy) for name, layer in fitting.items()}
    lines = []
    for name, chosen in ranks.items():
        line = _line(name, fitting[name], way, chosen, len(energies[name]))
        if line.weights[1] < line.weights[0] and line.macs[1] < line.macs[0]:
            lines.append(line)
        else:
            cost = f"{line.weights[1]} of {line.weights[0]} weights, {line.macs[1]} of {line.macs[0]} MACs"
            skipped[name] = f"rank {chosen} would cost {cost}"
    return FactorPlan(method, tuple(lines), skipped, network.program.inputs)


def factorize(model: nn.Module, example: Example, *, data: Iterable[Batch] | None = None, **options: Any) -> nn.Module:
    """Makes linear and convolution layers thin products at once: `plan_factors`, then `FactorPlan.apply`.

    Accuracy comes back by training (`training.fit`) or distillation from the network as it was (`distillation.distill`).

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        data: see `plan_factors`.
        **options: the others of `plan_factors`; one of `rank`, `energy` and `budget` is required.

    Returns:
        The network with thin layers.

    Raises:
        RequestError, CaptureError, UnsupportedOpError: as `plan_factors` and `FactorPlan.apply` say.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> [layer.weight.shape for layer in factorize(net, torch.zeros(1, 64), rank=4)[0]]
        [torch.Size([4, 64]), torch.Size([64, 4])]
    """
    return plan_factors(model, example, data=data, **options).apply(model, data=data)


def _rank(
    name: str, layer: Layer, energies: torch.Tensor, rank: int | float | str | Mapping[str, int] | None, energy: float | None
) -> int:
    full = len(energies)
    if energy is not None:
        return rank_by_energy(energies, energy)
    if isinstance(rank, str):
        check("rank", rank, "a number, 'vbmf', or ranks by name", rank == "vbmf")
        return max(1, rank_by_vbmf(energies, max(full, layer.weight.numel() // full)))
    if isinstance(rank, Mapping):
        rank = next(value for pattern, value in rank.items() if fnmatchcase(name, pattern))
        check(f"the rank of {name!r}", rank, f"at most its full rank, {full}", not isinstance(rank, int) or rank <= full)
    if isinstance(rank, float):
        check("rank", rank, "a share of the full rank in (0, 1), or a whole number", 0 < rank < 1)
        return max(1, round(rank * full))
    check("rank", rank, "a whole number >= 1", isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1)
    return min(int(rank or 1), full)


def _check_names(rank: Mapping[str, int], known: Sequence[str]) -> None:
    for pattern in rank:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise RequestError(
                f"ranks must be given by the names of linear or convolution weights, got {pattern!r}; "
                f"did you mean {', '.join(get_close_matches(pattern, known, cutoff=0.0)) or 'another network'}?"
            )


def _share(way: Method, layers: Mapping[str, Layer], energies: Mapping[str, torch.Tensor], budget: float) -> dict[str, int]:
    """Ranks that together keep a share of the weights, with a small sum of relative errors.

    From rank 1 everywhere, again and again what lowers the error most for each weight it costs, of all that the budget still
    allows: a higher rank, or the whole layer. Layers that are best left whole are not in the result.
    """
    errors, costs = {}, {}
    for name, layer in layers.items():
        held = energies[name].cpu().cumsum(0) / energies[name].sum().cpu().clamp_min(1e-30)
        left_out = torch.cat([1 - held, held.new_zeros(1)])
        errors[name] = left_out.masked_fill(left_out < 1e-9, 0.0)  # what rounding leaves is no error
        sizes = [way.weights(layer, rank) for rank in range(1, len(held) + 1)] + [layer.weight.numel()]
        costs[name] = torch.tensor(sizes, dtype=torch.float64)
    chosen = dict.fromkeys(layers, 0)
    left = budget * sum(layer.weight.numel() for layer in layers.values()) - sum(float(cost[0]) for cost in costs.values())

    def best(name: str) -> tuple[float, int]:
        """How much the best step of a layer lowers the error for each weight, and where it leads."""
        now, error, cost = chosen[name], errors[name], costs[name]
        dearer = cost - cost[now]
        gains = (error[now] - error) / dearer.clamp_min(1e-3)
        gains[(dearer > left) | (error >= error[now])] = -1.0
        return float(gains.max()), int(gains.argmax())

    steps = {name: best(name) for name in chosen}
    while any(gain > 0 for gain, _ in steps.values()):
        _, name, to = max((gain, name, to) for name, (gain, to) in steps.items())
        price = float(costs[name][to] - costs[name][chosen[name]])
        if price <= left:  # else it was the best when there was more left
            left -= price
            chosen[name] = to
        steps[name] = best(name)
    return {name: index + 1 for name, index in chosen.items() if index + 1 < len(costs[name])}


def _line(name: str, layer: Layer, way: Method, rank: int, full: int) -> Factoring:
    chain = way.factor(layer, rank)
    before = macs_of([as_thin(layer)], layer.size)
    return Factoring(
        name, rank, full, (layer.weight.numel(), weights_of(chain)), (before, macs_of(chain, layer.size))
    )  # fmt: skip
