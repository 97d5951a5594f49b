"""Networks as graphs of single nodes whose connections all have one weight: what the weight-agnostic search mutates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = [
    "ACTIVATIONS",
    "MUTATIONS",
    "Array",
    "Change",
    "Topology",
    "TopologyNet",
    "activate",
    "add_connection",
    "change_activation",
    "downstream",
    "insert_node",
    "sparse_topology",
]

Array = NDArray[np.float32]
_PI = np.float32(np.pi)

ACTIVATIONS: Mapping[str, tuple[Callable[[Array], Array], Callable[[torch.Tensor], torch.Tensor]]] = {
    "linear": (lambda z: z, lambda z: z),
    "step": (lambda z: (z > 0).astype(np.float32), lambda z: (z > 0).to(z.dtype)),
    "sine": (lambda z: np.sin(_PI * z), lambda z: torch.sin(torch.pi * z)),
    "cosine": (lambda z: np.cos(_PI * z), lambda z: torch.cos(torch.pi * z)),
    "gaussian": (lambda z: np.exp(-z * z / 2), lambda z: torch.exp(-z * z / 2)),
    "tanh": (np.tanh, torch.tanh),
    "sigmoid": (lambda z: np.float32(0.5) * (np.tanh(z / 2) + np.float32(1)), torch.sigmoid),
    "inverse": (np.negative, torch.neg),
    "absolute": (np.abs, torch.abs),
    "relu": (lambda z: np.maximum(z, 0), torch.relu),
}
"""The paper's ten activations by name, each for arrays and for tensors."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Which node feels which: inputs are numbered from 0, then come the outputs, then the hidden nodes as they were born.

    Attributes:
        inputs: how many input nodes there are; one that is always 1 serves as the bias.
        outputs: how many output nodes there are; they are linear.
        hidden: the hidden nodes in an order in which each comes after its sources, so that there is never a cycle.
        sources: for each hidden and output node the nodes it adds up.
        activations: the name of each hidden node's activation.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    sources: Mapping[int, tuple[int, ...]]
    activations: Mapping[int, str]

    @property
    def output_nodes(self) -> range:
        """The numbers of the outputs."""
        return range(self.inputs, self.inputs + self.outputs)

    @property
    def order(self) -> tuple[int, ...]:
        """Hidden nodes and outputs, each after its sources."""
        return (*self.hidden, *self.output_nodes)

    @property
    def connections(self) -> int:
        """How many there are."""
        return sum(map(len, self.sources.values()))


Change = tuple[Topology, frozenset[int]]
"""A mutated topology, and the nodes whose own sum or activation is not what it was."""


def sparse_topology(inputs: int, outputs: int, *, share: float, random: Random) -> Topology:
    """A network without hidden nodes, in which each input is connected with each output with probability `share`.

    Example:
        >>> sparse_topology(2, 1, share=1.0, random=Random(0)).sources
        {2: (0, 1)}
    """
    targets = range(inputs, inputs + outputs)
    sources = {target: tuple(node for node in range(inputs) if random.random() < share) for target in targets}
    return Topology(inputs, outputs, (), sources, {})


def add_connection(topology: Topology, random: Random) -> Change | None:
    """A new connection from an input or hidden node to a later hidden node or an output; None if the pair drawn has one.

    Example:
        >>> child, changed = add_connection(Topology(1, 1, (), {1: ()}, {}), Random(0))
        >>> child.sources, changed
        ({1: (0,)}, frozenset({1}))
    """
    place = random.randrange(topology.inputs + len(topology.hidden))
    if place < topology.inputs:
        source, later = place, topology.order
    else:
        place -= topology.inputs
        source, later = topology.hidden[place], topology.order[place + 1 :]
    target = random.choice(later)
    old = topology.sources[target]
    if source in old:
        return None
    return replace(topology, sources={**topology.sources, target: (*old, source)}), frozenset([target])


def insert_node(topology: Topology, random: Random) -> Change | None:
    """A new node with a random activation in the middle of a random connection; None if there is no connection.

    Example:
        >>> child, changed = insert_node(Topology(1, 1, (), {1: (0,)}, {}), Random(0))
        >>> child.hidden, child.sources, sorted(changed)
        ((2,), {1: (2,), 2: (0,)}, [1, 2])
    """
    targets = [target for target, sources in topology.sources.items() for _ in sources]
    if not targets:
        return None
    target = random.choice(targets)
    source = random.choice(topology.sources[target])
    hidden = topology.hidden
    first = hidden.index(source) + 1 if source in topology.activations else 0
    last = hidden.index(target) if target in topology.activations else len(hidden)
    place = random.randint(first, last)
    born = max(topology.sources) + 1
    rewired = tuple(born if node == source else node for node in topology.sources[target])
    child = replace(
        topology,
        hidden=(*hidden[:place], born, *hidden[place:]),
        sources={**topology.sources, target: rewired, born: (source,)},
        activations={**topology.activations, born: random.choice(tuple(ACTIVATIONS))},
    )
    return child, frozenset([born, target])


def change_activation(topology: Topology, random: Random) -> Change | None:
    """Another activation for a random hidden node; None if there is none.

    Example:
        >>> change_activation(Topology(1, 1, (), {1: (0,)}, {}), Random(0)) is None
        True
    """
    if not topology.hidden:
        return None
    node = random.choice(topology.hidden)
    others = [name for name in ACTIVATIONS if name != topology.activations[node]]
    return replace(topology, activations={**topology.activations, node: random.choice(others)}), frozenset([node])


MUTATIONS: Mapping[Callable[[Topology, Random], Change | None], float] = {
    change_activation: 0.25,
    insert_node: 0.25,
    add_connection: 0.5,
}
"""The paper's three ways to change a network, with the probability of each (theirs: 0.5, 0.25 and 0.25)."""


def downstream(topology: Topology, changed: Collection[int]) -> set[int]:
    """The changed nodes and all that feel them, directly or not.

    Example:
        >>> sorted(downstream(Topology(1, 2, (3,), {1: (3,), 2: (0,), 3: (0,)}, {3: "relu"}), [3]))
        [1, 3]
    """
    felt = set(changed)
    for node in topology.order:
        if not felt.isdisjoint(topology.sources[node]):
            felt.add(node)
    return felt


def activate(
    topology: Topology, inputs: Array, weights: Array, *, known: Mapping[int, Array] | None = None
) -> dict[int, Array]:
    """Runs a network on samples, for several values of its one weight at once.

    Args:
        topology: the network.
        inputs: (inputs, samples).
        weights: (values,).
        known: values of nodes that are not computed again, from a network that agrees on all they feel.

    Returns:
        For each hidden node and output its values, (values, samples).

    Example:
        >>> pixel, weights = np.ones((1, 1), np.float32), np.array([-2, 1], np.float32)
        >>> activate(Topology(1, 1, (2,), {1: (2, 0), 2: (0,)}, {2: "relu"}), pixel, weights)[1].tolist()
        [[-2.0], [2.0]]
    """
    values = dict(known or {})
    scale = weights[:, None]
    for node in topology.order:
        if node not in values:
            sources = topology.sources[node]
            total = inputs[[source for source in sources if source < topology.inputs]].sum(axis=0)
            for source in sources:
                if source >= topology.inputs:
                    total = total + values[source]
            weighted = scale * total
            name = topology.activations.get(node)
            values[node] = weighted if name is None else ACTIVATIONS[name][0](weighted)
    return values


class TopologyNet(nn.Module):
    """A topology whose connections each have a weight of their own, to be trained. Nodes of equal depth are computed at once.

    Args:
        topology: the network.
        weight: the value all weights start from.
    """

    def __init__(self, topology: Topology, *, weight: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.activations: list[list[tuple[str, int]]] = []
        places = {node: node for node in range(topology.inputs)}
        for layer in _layers(topology):
            connected = torch.zeros(len(places), len(layer))
            for column, node in enumerate(layer):
                connected[[places[source] for source in topology.sources[node]], column] = 1
            places |= {node: len(places) + column for column, node in enumerate(layer)}
            self.weights.append(nn.Parameter(weight * connected))
            self.register_buffer(f"connected{len(self.activations)}", connected)
            names = [topology.activations.get(node, "linear") for node in layer]
            self.activations.append([(name, len(list(run))) for name, run in groupby(names)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs (B, outputs) for inputs (B, inputs)."""
        values = inputs
        for place, (weight, runs) in enumerate(zip(self.weights, self.activations, strict=True)):
            sums = (values @ (weight * self.get_buffer(f"connected{place}"))).split([length for _, length in runs], dim=1)
            new = [ACTIVATIONS[name][1](part) for (name, _), part in zip(runs, sums, strict=True)]
            values = torch.cat([values, *new], dim=1)
        return values[:, -self.weights[-1].shape[1] :]


def _layers(topology: Topology) -> list[list[int]]:
    """The nodes by depth, those with the same activation side by side; the outputs last, in order."""
    depth = dict.fromkeys(range(topology.inputs), 0)
    for node in topology.hidden:
        depth[node] = 1 + max((depth[source] for source in topology.sources[node]), default=0)
    hidden = sorted(topology.hidden, key=lambda node: (depth[node], topology.activations[node]))
    return [*(list(nodes) for _, nodes in groupby(hidden, key=depth.__getitem__)), list(topology.output_nodes)]
