"""The scan against pruning by hand; the allocation against what it promises."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import constrained
from featherweight.pruning import prune_weights
from featherweight.pruning.sensitivity import Sensitivity, scan_sensitivity
from featherweight.training import evaluate


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(200, 6)
    return [(inputs[:100], inputs[:100, :3].argmax(dim=1)), (inputs[100:], inputs[100:, :3].argmax(dim=1))]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_scan_is_pruning_one_tensor_at_a_time(criterion: str) -> None:
    model, data = net(), batches()
    scan = scan_sensitivity(model, data, sparsities=(0.3, 0.6, 0.9), criterion=criterion, data=data)
    assert scan.accuracy == evaluate(model, data)
    for name in ("0.weight", "2.weight"):
        by_hand = [
            evaluate(prune_weights(model, sparsity=s, include=[name], criterion=criterion, data=data), data)
            for s in (0.3, 0.6, 0.9)
        ]
        assert scan.accuracies[name] == tuple(by_hand)
    assert scan.sizes == {"0.weight": 120, "2.weight": 60}
    assert Sensitivity(**scan.to_dict()) == scan
    assert json.loads(json.dumps(scan.to_dict()))["sparsities"] == [0.3, 0.6, 0.9]


def test_scan_leaves_the_network_alone_and_keeps_its_masks() -> None:
    model, seen = prune_weights(net(), sparsity=0.5), []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def judge(candidate: nn.Module) -> float:
        seen.append({name: int((candidate.get_submodule(name).weight == 0).sum()) for name in ("0", "2")})
        return 0.5

    scan_sensitivity(model, judge, sparsities=(0.1, 0.9), granularity="4x1")
    gone = {name: int((model.get_submodule(name).weight == 0).sum()) for name in ("0", "2")}
    assert seen[0] == gone
    assert seen[1] == gone | {"0": max(gone["0"], seen[1]["0"])}
    assert [step["2"] for step in seen[1:3]] == [gone["2"]] * 2
    assert [step["0"] for step in seen[3:]] == [gone["0"]] * 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(constrained(model)) == 2


def test_allocation_by_hand() -> None:
    """A loses 0.1 for each tenth of sparsity, b half as much; so at 0.3 in all, of 100 each, a gives 20 and b 40."""
    scan = Sensitivity(0.9, (0.2, 0.4, 0.8), {"a": (0.7, 0.5, 0.1), "b": (0.8, 0.7, 0.5)}, {"a": 100, "b": 100})
    assert scan.allocate(0.3) == {"a": 0.2, "b": 0.4}
    assert scan.allocate(0.6) == {"a": 0.4, "b": 0.8}
    assert scan.allocate(0.8) == {"a": 0.8, "b": 0.8}
    assert scan.allocate(0.0) == {"a": 0.0, "b": 0.0}


def test_what_costs_nothing_is_shared_and_noise_is_no_gain() -> None:
    scan = Sensitivity(0.9, (0.5, 0.8), {"a": (0.9, 0.2), "b": (0.95, 0.9)}, {"a": 100, "b": 300})
    assert scan.allocate(0.29) == {"a": 0.2, "b": 0.32}, "up to 0.5 of a and 0.8 of b cost nothing: two fifths of that way"
    assert scan.allocate(0.725) == {"a": 0.5, "b": 0.8}
    assert scan.allocate(0.75) == {"a": 0.6, "b": 0.8}
    dip = Sensitivity(0.9, (0.4, 0.6, 0.8), {"a": (0.6, 0.9, 0.3), "b": (0.9, 0.8, 0.3)}, {"a": 10, "b": 10})
    assert dip.allocate(0.5)["a"] < 0.4, "that 0.6 once did better than 0.4 does not make it safe"


curves = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(tuple)


@settings(max_examples=60)
@given(
    tensors=st.lists(st.tuples(curves, st.integers(1, 500)), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.9),
    accuracy=st.floats(0, 1),
)
def test_allocation_comes_to_the_sparsity_and_loses_equally(
    tensors: list[tuple[tuple[float, ...], int]], sparsity: float, accuracy: float
) -> None:
    sizes = {str(i): n for i, (_, n) in enumerate(tensors)}
    scan = Sensitivity(accuracy, (0.3, 0.6, 0.9), {str(i): curve for i, (curve, _) in enumerate(tensors)}, sizes)
    told = scan.allocate(sparsity)
    counts = {name: told[name] * n for name, n in sizes.items()}
    assert all(abs(count - round(count)) < 1e-9 and 0 <= told[name] <= 1 for name, count in counts.items())
    assert round(sum(counts.values())) == round(sparsity * sum(sizes.values()))

    def loss(name: str, at: float) -> float:
        points = [(0.0, 0.0)]
        for s, a in zip(scan.sparsities, scan.accuracies[name], strict=True):
            points.append((s, max(points[-1][1], accuracy - a)))
        for (left, below), (right, above) in pairwise(points):
            if at <= right:
                return below + (above - below) * max(at - left, 0.0) / (right - left)
        return points[-1][1]

    spent = max(loss(name, (counts[name] - 1) / sizes[name]) for name in sizes)
    for name, n in sizes.items():  # whoever spent less could not go two weights further for that price
        further = (counts[name] + 2) / n
        assert further > 0.9 or loss(name, further) >= spent - 1e-6


def test_allocation_is_one_that_pruning_takes() -> None:
    model, data = net(), batches()
    scan = scan_sensitivity(model, data)
    pruned = prune_weights(model, sparsity=0.7, allocation=scan.allocate(0.7))
    zeros = {name: int((pruned.get_submodule(name).weight == 0).sum()) for name in ("0", "2")}
    assert zeros == {name: round(scan.allocate(0.7)[f"{name}.weight"] * n) for name, n in (("0", 120), ("2", 60))}
    assert sum(zeros.values()) == 126


def test_wrong_requests() -> None:
    model, data = net(), batches()
    for sparsities in ((), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(RequestError, match="increasing numbers in"):
            scan_sensitivity(model, data, sparsities=sparsities)
    with pytest.raises(RequestError, match=r"an accuracy in \[0, 1\], got 93.5"):
        scan_sensitivity(model, lambda model: 93.5)
    with pytest.raises(RequestError, match=r"sparsity must be in \[0, 0.6\], as far as was scanned, got 0.7"):
        scan_sensitivity(model, data, sparsities=(0.3, 0.6)).allocate(0.7)
