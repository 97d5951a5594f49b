"""Topologies: mutation never makes a cycle, and what is computed is what a node-by-node reading of the graph says."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch

from featherweight.experiments.topology import (
    ACTIVATIONS,
    MUTATIONS,
    Topology,
    TopologyNet,
    activate,
    add_connection,
    change_activation,
    downstream,
    insert_node,
    sparse_topology,
)

PLAIN = {
    "linear": lambda z: z,
    "step": lambda z: 1.0 if z > 0 else 0.0,
    "sine": lambda z: math.sin(math.pi * z),
    "cosine": lambda z: math.cos(math.pi * z),
    "gaussian": lambda z: math.exp(-(z**2) / 2),
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "inverse": lambda z: -z,
    "absolute": abs,
    "relu": lambda z: max(z, 0.0),
}


def grow(seed: int, steps: int) -> list[tuple[Topology, Topology, frozenset[int]]]:
    """Parents, children, and what changed, one mutation after the other."""
    random = Random(seed)
    topology = sparse_topology(5, 3, share=0.4, random=random)
    family = []
    while len(family) < steps:
        change = random.choice(list(MUTATIONS))(topology, random)
        if change is not None:
            child, changed = change
            family.append((topology, child, changed))
            topology = child
    return family


def read(topology: Topology, node: int, sample: list[float], weight: float, path: tuple[int, ...] = ()) -> float:
    """A node's value by following its sources back to the inputs; follows no order, and so finds any cycle."""
    assert node not in path
    if node < topology.inputs:
        return sample[node]
    total = weight * sum(read(topology, source, sample, weight, (*path, node)) for source in topology.sources[node])
    return PLAIN[topology.activations.get(node, "linear")](total)


def samples(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_values_are_what_the_graph_says(seed: int) -> None:
    topology = grow(seed, 30)[-1][1]
    inputs, weights = samples(seed), np.array([-1.5, 0.5], np.float32)
    values = activate(topology, inputs, weights)
    assert set(values) == set(topology.order)
    for node in topology.output_nodes:
        expected = [[read(topology, node, sample.tolist(), w) for sample in inputs.T] for w in weights.tolist()]
        np.testing.assert_allclose(values[node], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    z = np.array([-1.25, -0.5, 0.0, 0.75, 2.0], np.float32)
    for_arrays, for_tensors = ACTIVATIONS[name]
    expected = [PLAIN[name](float(value)) for value in z]
    np.testing.assert_allclose(for_arrays(z), expected, atol=1e-6)
    np.testing.assert_allclose(for_tensors(torch.from_numpy(z)), expected, atol=1e-6)
    assert for_arrays(z).dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
def test_mutations_keep_the_graph_whole(seed: int) -> None:
    for parent, child, changed in grow(seed, 40):
        seen = set(range(child.inputs))
        for node in child.order:
            assert set(child.sources[node]) <= seen, "a node comes after its sources"
            assert len(set(child.sources[node])) == len(child.sources[node]), "no connection twice"
            seen.add(node)
        assert set(child.sources) == set(child.order)
        assert set(child.activations) == set(child.hidden)
        differs = {
            node
            for node in child.order
            if parent.sources.get(node) != child.sources[node] or parent.activations.get(node) != child.activations.get(node)
        }
        assert differs == changed


@pytest.mark.parametrize("seed", range(4))
def test_a_child_computed_from_its_parent_is_as_if_from_scratch(seed: int) -> None:
    inputs, weights = samples(seed), np.array([-2, 1], np.float32)
    for parent, child, changed in grow(seed, 40):
        felt = downstream(child, changed)
        known = {node: value for node, value in activate(parent, inputs, weights).items() if node not in felt}
        scratch = activate(child, inputs, weights)
        for node, value in activate(child, inputs, weights, known=known).items():
            np.testing.assert_array_equal(value, scratch[node])


def test_each_mutation_does_its_own() -> None:
    start = grow(0, 20)[-1][1]
    for seed in range(20):
        if (change := add_connection(start, Random(seed))) is not None:
            assert change[0].connections == start.connections + 1
            assert change[0].hidden == start.hidden
        child, _ = insert_node(start, Random(seed)) or pytest.fail("there is a connection")
        assert (child.connections, len(child.hidden)) == (start.connections + 1, len(start.hidden) + 1)
        child, (node,) = change_activation(start, Random(seed)) or pytest.fail("there is a hidden node")
        assert child.sources == start.sources
        assert child.activations[node] != start.activations[node]


def test_what_cannot_be_mutated() -> None:
    empty = sparse_topology(1, 1, share=0.0, random=Random(0))
    assert insert_node(empty, Random(0)) is None
    assert change_activation(empty, Random(0)) is None
    full = sparse_topology(1, 1, share=1.0, random=Random(0))
    assert add_connection(full, Random(0)) is None


@pytest.mark.parametrize("seed", range(4))
def test_net_agrees_with_the_topology_and_trains_only_its_connections(seed: int) -> None:
    topology = grow(seed, 40)[-1][1]
    inputs = samples(seed)
    net = TopologyNet(topology, weight=0.5)
    values = activate(topology, inputs, np.array([0.5], np.float32))
    expected = np.stack([values[node][0] for node in topology.output_nodes], axis=1)
    outputs = net(torch.from_numpy(inputs.T.copy()))
    np.testing.assert_allclose(outputs.detach(), expected, rtol=1e-3, atol=1e-5)
    outputs.square().sum().backward()
    assert sum(int((weight != 0).sum()) for weight in net.weights) == topology.connections
    assert all(bool((weight.grad[weight == 0] == 0).all()) for weight in net.weights if weight.grad is not None)
