"""The search for topologies that work whatever their one weight is, by mutation and selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from featherweight.experiments.topology import MUTATIONS, Array, Topology, activate, downstream, sparse_topology

__all__ = ["WEIGHTS", "Search", "accuracies", "evolve", "log_likelihoods", "rank", "stack_outputs"]

WEIGHTS: Array = np.array([-2, -1, -0.5, 0.5, 1, 2], np.float32)
"""The values of the one weight that a network is judged by, the paper's."""

_Labels = NDArray[np.int64]
_Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        population: how many networks a generation has.
        generations: how many times the population is renewed.
        images: on how many training images the networks are judged.
        refresh: after how many generations these are drawn anew.
        share: of the connections between inputs and outputs that the first networks have.
        elite: the share of a generation that lives on.
        culled: the share that has no children.
        tournament: of so many networks drawn, the best becomes a parent.
        complexity: how often the number of connections is a goal beside the mean performance; else the best performance is.
    """

    population: int = 64
    generations: int = 3000
    images: int = 600
    refresh: int = 50
    share: float = 0.05
    elite: float = 0.2
    culled: float = 0.2
    tournament: int = 8
    complexity: float = 0.3


@dataclass(frozen=True)
class _Member:
    """A network, what its nodes say on the images, and how well it does with each weight."""

    topology: Topology
    values: dict[int, Array]
    performance: _Scores


def evolve(inputs: Array, labels: _Labels, search: Search, *, classes: int, seed: int) -> Iterator[Topology]:
    """Searches, and gives after each generation the network with the best mean performance on the images of the time.

    Children share their parents' node values, so that only what a mutation touches is computed.

    Args:
        inputs: (inputs, samples).
        labels: (samples,).
        search: how.
        classes: the number of outputs.
        seed: of all that is drawn.

    Yields:
        A topology for each generation.
    """
    random, draw = Random(seed), np.random.default_rng(seed)
    topologies = [sparse_topology(len(inputs), classes, share=search.share, random=random) for _ in range(search.population)]
    members: list[_Member] = []
    for generation in range(search.generations):
        if generation % search.refresh == 0:
            drawn = draw.choice(len(labels), min(search.images, len(labels)), replace=False)
            images, targets = np.ascontiguousarray(inputs[:, drawn]), labels[drawn]
            members = [_judge(topology, images, targets, {}) for topology in topologies]
        members = _renew(members, images, targets, search, random)
        topologies = [member.topology for member in members]
        yield max(members, key=lambda member: float(member.performance.mean())).topology


def _renew(members: list[_Member], images: Array, targets: _Labels, search: Search, random: Random) -> list[_Member]:
    """The next generation: the elite and children of the fit, the network with the best mean always among them."""
    performances = np.array([member.performance for member in members])
    mean = performances.mean(axis=1)
    if random.random() < search.complexity:
        order = rank(mean, np.array([-float(member.topology.connections) for member in members]))
    else:
        order = rank(mean, performances.max(axis=1))
    best = int(mean.argmax())
    elite = [best, *(i for i in order if i != best)][: max(1, round(search.elite * len(members)))]
    fit = order[: max(1, len(members) - round(search.culled * len(members)))]
    renewed = [members[i] for i in elite]
    while len(renewed) < len(members):
        parent = members[fit[min(random.randrange(len(fit)) for _ in range(search.tournament))]]
        renewed.append(_child(parent, images, targets, random))
    return renewed


def _child(parent: _Member, images: Array, targets: _Labels, random: Random) -> _Member:
    change = None
    while change is None:
        mutate = random.choices(list(MUTATIONS), list(MUTATIONS.values()))[0]
        change = mutate(parent.topology, random)
    topology, changed = change
    felt = downstream(topology, changed)
    return _judge(topology, images, targets, {node: v for node, v in parent.values.items() if node not in felt})


def _judge(topology: Topology, images: Array, targets: _Labels, known: dict[int, Array]) -> _Member:
    values = activate(topology, images, WEIGHTS, known=known)
    return _Member(topology, values, log_likelihoods(stack_outputs(topology, values), targets))


def stack_outputs(topology: Topology, values: dict[int, Array]) -> Array:
    """The outputs among the values of `activate`: (outputs, weights, samples)."""
    return np.stack([values[node] for node in topology.output_nodes])


def log_likelihoods(outputs: Array, labels: _Labels) -> _Scores:
    """The mean log-probability of the right class after a softmax, for each weight.

    Args:
        outputs: (classes, weights, samples).
        labels: (samples,).

    Returns:
        (weights,), at most 0.

    Example:
        >>> log_likelihoods(np.zeros((2, 1, 3), np.float32), np.array([0, 1, 1])).round(4).tolist()
        [-0.6931]
    """
    highest = outputs.max(axis=0)
    total = np.log(np.exp(outputs - highest).sum(axis=0)) + highest
    right = np.take_along_axis(outputs, labels[None, None], axis=0)[0]
    return (right - total).mean(axis=1, dtype=np.float64)  # type: ignore[no-any-return]


def accuracies(topology: Topology, inputs: Array, labels: _Labels, weights: Array) -> _Scores:
    """The accuracy with each value of the one weight.

    Args:
        topology: the network.
        inputs: (inputs, samples).
        labels: (samples,).
        weights: (values,).

    Returns:
        (values,), in [0, 1].

    Example:
        >>> net = Topology(1, 2, (), {1: (0,), 2: ()}, {})
        >>> accuracies(net, np.ones((1, 4), np.float32), np.array([0, 0, 0, 1]), np.array([1, -1], np.float32)).tolist()
        [0.75, 0.25]
    """
    found = [stack_outputs(topology, activate(topology, inputs, one)).argmax(axis=0)[0] for one in weights[:, None]]
    return (np.stack(found) == labels).mean(axis=1)  # type: ignore[no-any-return]


def rank(first: _Scores, second: _Scores) -> list[int]:
    """Orders networks by two goals: non-dominated fronts, and within a front the less crowded first (Deb et al. 2002, NSGA-II).

    Args:
        first, second: (networks,), the higher the better.

    Returns:
        The networks' numbers, the best first.

    Example:
        >>> rank(np.array([0.0, 3.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0, 1.5]))
        [1, 2, 3, 0]
    """
    at_least = (first[:, None] >= first) & (second[:, None] >= second)
    dominates = at_least & ~at_least.T
    left = np.ones(len(first), bool)
    order: list[int] = []
    while left.any():
        front = np.flatnonzero(left & ~dominates[left].any(axis=0))
        room = _room(first[front], second[front])
        order += front[np.argsort(-room, kind="stable")].tolist()
        left[front] = False
    return order


def _room(first: _Scores, second: _Scores) -> _Scores:
    """How far each network's neighbours in its front are apart, in both goals; infinite at the ends."""
    room = np.zeros(len(first))
    for goal in (first, second):
        order = np.argsort(goal, kind="stable")
        low, high = goal[order[0]], goal[order[-1]]
        gaps = np.full(len(goal), np.inf)
        gaps[1:-1] = (goal[order[2:]] - goal[order[:-2]]) / ((high - low) or 1.0)
        room[order] += gaps
    return room
