"""What every allocation, schedule and initialisation promises. A new row of a table is tested by being there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.pruning.allocation import ALLOCATIONS
from featherweight.pruning.schedule import SCHEDULES
from featherweight.quantization.clusters import INITIALISATIONS

SCORES = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=20), max_size=4
)
SPARSITY = st.floats(0, 1, exclude_max=True)


def tensors(scores: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in scores.items()}


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@given(scores=SCORES, sparsity=SPARSITY)
def test_allocation_counts_and_ranks(name: str, scores: dict[str, list[float]], sparsity: float) -> None:
    given_scores = tensors(scores)
    kept = ALLOCATIONS[name](given_scores, sparsity)
    assert list(kept) == list(scores)
    removed = sum(int((~k).sum()) for k in kept.values())
    counts = [len(values) for values in scores.values()]
    assert removed in {round(sparsity * sum(counts)), sum(round(sparsity * n) for n in counts)}
    for key, keep in kept.items():
        assert keep.dtype == torch.bool
        assert keep.shape == given_scores[key].shape
        order = sorted(range(len(keep)), key=lambda i: (scores[key][i], i))  # of equal scores the earlier goes first
        gone = int((~keep).sum())
        assert sorted((~keep).nonzero().flatten().tolist()) == sorted(order[:gone])


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@given(scores=SCORES)
def test_allocation_of_nothing_is_the_identity(name: str, scores: dict[str, list[float]]) -> None:
    assert all(bool(keep.all()) for keep in ALLOCATIONS[name](tensors(scores), 0.0).values())


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@given(scores=SCORES, low=SPARSITY, high=SPARSITY)
def test_allocation_grows_with_the_sparsity(name: str, scores: dict[str, list[float]], low: float, high: float) -> None:
    low, high = sorted((low, high))
    few, many = (ALLOCATIONS[name](tensors(scores), sparsity) for sparsity in (low, high))
    assert all(bool((few[key] | ~many[key]).all()) for key in scores)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_allocation_keeps_shapes_and_ranks_what_is_gone_first(name: str) -> None:
    scores = {"a": torch.tensor([[0.0, -torch.inf], [0.0, 3.0]]), "b": torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0])}
    kept = ALLOCATIONS[name](scores, 3 / 8)
    assert kept["a"].shape == (2, 2)
    assert not kept["a"][0, 1]
    assert kept["b"].tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", {"a": [False, False, True, True], "b": [False, False, True, True]}),
        ("global", {"a": [False, False, False, False], "b": [True, True, True, True]}),
    ],
)
def test_allocations_differ_in_what_they_compare(name: str, expected: dict[str, list[bool]]) -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 10}
    assert {key: keep.tolist() for key, keep in ALLOCATIONS[name](scores, 0.5).items()} == expected


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(times=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_schedule_grows_to_one(name: str, times: list[float]) -> None:
    grow = SCHEDULES[name]
    reached = [grow(t) for t in sorted(times)]
    assert reached == sorted(reached)
    assert all(0 <= share <= 1 for share in reached)
    assert grow(1.0) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cubic", [0.0, 0.578125, 0.875, 0.984375, 1.0]), ("linear", [0.0, 0.25, 0.5, 0.75, 1.0]), ("once", [1.0] * 5)],
)
def test_schedules_by_value(name: str, expected: list[float]) -> None:
    assert [SCHEDULES[name](quarter / 4) for quarter in range(5)] == expected


@pytest.mark.parametrize("name", sorted(INITIALISATIONS))
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), clusters=st.integers(1, 8))
def test_initialisation_lies_within_the_values(name: str, values: list[float], clusters: int) -> None:
    line = torch.tensor(values).sort().values
    clusters = min(clusters, len(values))
    centroids = INITIALISATIONS[name](line, clusters, torch.Generator().manual_seed(1))
    assert centroids.shape == (clusters,)
    assert centroids.dtype == line.dtype
    assert torch.equal(centroids, centroids.sort().values)
    slack = 1e-5 * float(line.abs().max())
    assert float(line[0]) - slack <= float(centroids[0])
    assert float(centroids[-1]) <= float(line[-1]) + slack
    assert torch.equal(centroids, INITIALISATIONS[name](line, clusters, torch.Generator().manual_seed(1)))
