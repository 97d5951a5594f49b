"""Thresholds for a target: what is found is what comes of them, and the best there is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.dynamic import POLICIES, Cost, Limit, add_exits, calibrate, record_exits
from featherweight.dynamic.policy import Record, simulate
from featherweight.errors import DataError, RequestError
from featherweight.training import evaluate
from tests.dynamic.exit_nets import NETS, samples

COSTS = (Cost(10, 1.0), Cost(25, 2.0), Cost(50, 6.0))


def record(seed: int = 0, count: int = 60) -> Record:
    """Three exits, each better than the one before, and surer where it is right."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(count, generator=generator)
    right = torch.stack([hard < share for share in (0.6, 0.8, 0.95)])
    confidences = (1 - hard + 0.2 * torch.rand(2, count, generator=generator)).clamp(0, 1)
    return Record(confidences, right, COSTS)


@given(seed=st.integers(0, 50), first=st.floats(0, 1.2), second=st.floats(0, 1.2))
def test_simulation_is_what_each_sample_does(seed: int, first: float, second: float) -> None:
    known = record(seed, 20)
    found = simulate(known, (first, second))
    left = []
    for sure in known.confidences.T.tolist():
        limits = torch.tensor([first, second]).tolist()  # as the network compares: in single precision
        left.append(0 if sure[0] >= limits[0] else 1 if sure[1] >= limits[1] else 2)
    assert found.accuracy == pytest.approx(sum(known.right[k, i].item() for i, k in enumerate(left)) / 20)
    assert found.shares == pytest.approx([left.count(k) / 20 for k in range(3)])
    assert found.cost.macs == pytest.approx(sum(COSTS[k].macs for k in left) / 20)
    assert found.cost.seconds == pytest.approx(sum((1, 2, 6)[k] for k in left) / 20)


@pytest.mark.parametrize("policy", POLICIES)
def test_targets_are_met_as_cheaply_or_as_well_as_the_family_can(policy: str) -> None:
    known = record()
    family = [simulate(known, thresholds) for thresholds in POLICIES[policy](known)]
    for limit in (Limit(macs=10), Limit(macs=21.5), Limit(seconds=2.5), Limit(macs=30, seconds=2.5), Limit()):
        found = calibrate(known, limit=limit, policy=policy)
        assert limit.allows(found.cost)
        assert found.accuracy == max(one.accuracy for one in family if limit.allows(one.cost))
    for accuracy in (0.0, 0.7, 0.9, known.accuracies[-1]):
        found = calibrate(known, accuracy=accuracy, policy=policy)
        assert found.accuracy >= accuracy
        assert found.cost.seconds == min(one.cost.seconds or 0 for one in family if one.accuracy >= accuracy)


@pytest.mark.parametrize("policy", POLICIES)
def test_families_reach_from_the_first_exit_to_the_last(policy: str) -> None:
    known = record()
    family = [simulate(known, thresholds) for thresholds in POLICIES[policy](known)]
    assert family[0].shares == (1.0, 0.0, 0.0)
    assert family[-1].shares == (0.0, 0.0, 1.0)
    assert len({one.cost.macs for one in family}) > 20


def test_budgeted_batches_leave_in_geometric_shares() -> None:
    known = record(count=700)
    shares = [simulate(known, thresholds).shares for thresholds in POLICIES["geometric"](known)]
    halves = min(shares, key=lambda share: abs(share[0] - 4 / 7))
    assert halves == pytest.approx((4 / 7, 2 / 7, 1 / 7), abs=0.01)


@pytest.mark.parametrize("confidence", ["probability", "agreement"])
def test_the_network_does_what_was_simulated(confidence: str) -> None:
    make, at = NETS["chain"]
    net = add_exits(make().eval(), samples(2), at=at, confidence=confidence)
    data = [(samples(16, seed), torch.arange(16) % 5) for seed in range(3)]
    known = record_exits(net, data)
    assert [cost.macs for cost in known.costs] == [net.cost_of_leaving(k).macs for k in net.choices()]
    net.thresholds = tuple(row.median().item() + 1e-6 for row in known.confidences)
    assert evaluate(net, data) == pytest.approx(simulate(known, net.thresholds).accuracy)
    net.thresholds = (math.inf, math.inf)
    assert evaluate(net, data) == pytest.approx(known.accuracies[-1])
    net.time(samples(1), batch=4, seconds=1e-3)
    assert net.timing is not None
    assert [cost.seconds for cost in record_exits(net, data).costs] == [seconds / 4 for seconds in net.timing.asked]


def test_wrong_targets() -> None:
    known = record()
    for options in ({}, {"limit": Limit(), "accuracy": 0.5}):
        with pytest.raises(RequestError, match="one target"):
            calibrate(known, **options)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"no thresholds keep Limit\(macs=9, .* the least is Cost\(macs=10"):
        calibrate(known, limit=Limit(macs=9))
    with pytest.raises(RequestError, match=r"no thresholds reach an accuracy of 0\.999; the best is 0"):
        calibrate(known, accuracy=0.999)
    with pytest.raises(RequestError, match=r"accuracy must be in \[0, 1\], got 90"):
        calibrate(known, accuracy=90)
    with pytest.raises(RequestError, match="policy must be one of equal, geometric"):
        calibrate(known, accuracy=0.5, policy="greedy")
    with pytest.raises(RequestError, match="seconds"):
        calibrate(Record(known.confidences, known.right, (Cost(1), Cost(2), Cost(3))), limit=Limit(seconds=1))
    make, at = NETS["chain"]
    with pytest.raises(DataError, match="at least one batch"):
        record_exits(add_exits(make(), samples(2), at=at), [])
