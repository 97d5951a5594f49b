"""The search for weight-agnostic topologies: its ranking, its scores, and that it gets better."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from featherweight.experiments.evolution import WEIGHTS, Search, accuracies, evolve, log_likelihoods, rank, stack_outputs
from featherweight.experiments.topology import activate, sparse_topology


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which half of eight pixels is brighter."""
    draw = np.random.default_rng(seed)
    inputs = draw.random((8, 200)).astype(np.float32)
    labels = (inputs[:4].sum(axis=0) > inputs[4:].sum(axis=0)).astype(np.int64)
    return inputs, labels


def test_log_likelihoods_are_cross_entropies() -> None:
    outputs = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32) * 30
    labels = np.array([0, 1, 2, 3, 4, 0, 1])
    expected = [-cross_entropy(torch.from_numpy(outputs[:, i].T.copy()), torch.from_numpy(labels)).item() for i in range(3)]
    assert log_likelihoods(outputs, labels) == pytest.approx(expected, rel=1e-5)


def test_accuracies_are_counted() -> None:
    inputs, labels = problem()
    topology = sparse_topology(8, 2, share=0.5, random=Random(1))
    outputs = stack_outputs(topology, activate(topology, inputs, WEIGHTS))
    expected = [float((outputs[:, i].argmax(axis=0) == labels).mean()) for i in range(len(WEIGHTS))]
    assert accuracies(topology, inputs, labels, WEIGHTS).tolist() == expected


def test_rank_puts_the_undominated_first() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random(30), draw.random(30).round(1)
    order = rank(first, second)
    assert sorted(order) == list(range(30))

    def beaten(network: int, by: list[int]) -> bool:
        return any(
            first[other] >= first[network]
            and second[other] >= second[network]
            and (first[other] > first[network] or second[other] > second[network])
            for other in by
        )

    front = [network for network in range(30) if not beaten(network, list(range(30)))]
    assert sorted(order[: len(front)]) == front
    assert {order[0], order[1]} == {int(first.argmax()), max(front, key=lambda n: second[n])}, "the ends have most room"
    for place, network in enumerate(order):
        assert not beaten(network, order[place + 1 :]), "nobody later dominates"


def test_rank_of_equals_keeps_their_order() -> None:
    assert rank(np.zeros(3), np.zeros(3))[:2] == [0, 2]


def test_search_gets_better_is_deterministic_and_never_loses_its_best() -> None:
    inputs, labels = problem()
    search = Search(population=16, generations=60, images=200, refresh=1000, share=0.2, tournament=4)
    found = list(evolve(inputs, labels, search, classes=2, seed=0))
    means = [float(log_likelihoods(stack_outputs(net, activate(net, inputs, WEIGHTS)), labels).mean()) for net in found]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(means))
    assert accuracies(found[-1], inputs, labels, WEIGHTS).mean() > 0.7, "whatever the sign of the weight"
    again = list(evolve(inputs, labels, search, classes=2, seed=0))
    assert again[-1] == found[-1]
