"""What every allocation, schedule and initialisation promises. A new row of a table is tested by being there."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.pruning.allocation import ALLOCATIONS
from featherweight.pruning.schedule import SCHEDULES
from featherweight.quantization.kmeans import INITIALISATIONS


@st.composite
def score_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """A few tensors of two to four axes with few distinct scores, so that there are ties."""
    shapes = draw(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=4), max_size=3))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return {f"w{i}": torch.randint(4, shape, generator=numbers) / 2 for i, shape in enumerate(shapes)}


SPARSITY = st.floats(0, 1, exclude_max=True)
Scores = dict[str, torch.Tensor]

PIECES = {"uniform": lambda score: 1, "row": len}  # those that round for each tensor or row, not once in all


def removed_by(name: str, scores: Scores, sparsity: float) -> int:
    if name not in PIECES:
        return round(sparsity * sum(score.numel() for score in scores.values()))
    pieces = ((PIECES[name](score), score.numel()) for score in scores.values())
    return sum(count * round(sparsity * (n // count)) for count, n in pieces)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=40)
@given(scores=score_tensors(), sparsity=SPARSITY)
def test_allocation_counts_exactly(name: str, scores: Scores, sparsity: float) -> None:
    kept = ALLOCATIONS[name](scores, sparsity)
    assert list(kept) == list(scores)
    assert all(kept[key].dtype == torch.bool and kept[key].shape == score.shape for key, score in scores.items())
    assert sum(int((~keep).sum()) for keep in kept.values()) == removed_by(name, scores, sparsity)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=40)
@given(scores=score_tensors(), sparsity=SPARSITY)
def test_allocation_removes_the_lowest_and_of_equal_ones_the_earlier(name: str, scores: Scores, sparsity: float) -> None:
    for key, keep in ALLOCATIONS[name](scores, sparsity).items():
        groups = zip(keep.flatten(1), scores[key].flatten(1), strict=True) if name == "row" else [(keep, scores[key])]
        for stays, values in groups:
            order = sorted(range(values.numel()), key=lambda i: (float(values.flatten()[i]), i))
            gone = (~stays).flatten().nonzero().flatten().tolist()
            assert gone == sorted(order[: len(gone)])


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=40)
@given(scores=score_tensors())
def test_allocation_of_nothing_is_the_identity(name: str, scores: Scores) -> None:
    assert all(bool(keep.all()) for keep in ALLOCATIONS[name](scores, 0.0).values())


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=40)
@given(scores=score_tensors(), low=SPARSITY, high=SPARSITY)
def test_allocation_grows_with_the_sparsity(name: str, scores: Scores, low: float, high: float) -> None:
    low, high = sorted((low, high))
    few, many = (ALLOCATIONS[name](scores, sparsity) for sparsity in (low, high))
    assert all(bool((few[key] | ~many[key]).all()) for key in scores)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=40)
@given(sizes=st.permutations(["a", "b", "c"]), seed=st.integers(0, 9), sparsity=SPARSITY)
def test_allocation_does_not_depend_on_the_order(name: str, sizes: list[str], seed: int, sparsity: float) -> None:
    """Without ties: neither on the tensors' order, nor (but for "row", along one) on that of a tensor's entries."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 5), "b": (4, 6), "c": (5, 3)}  # all of different claims, for the allocations that go by shape
    scores = {key: torch.rand(shape, generator=draw) for key, shape in shapes.items()}
    shuffled = {key: torch.randperm(shapes[key][1], generator=draw) for key in sizes}
    plain = ALLOCATIONS[name](scores, sparsity)
    other = ALLOCATIONS[name]({key: scores[key][:, order] for key, order in shuffled.items()}, sparsity)
    assert all(torch.equal(plain[key][:, order], other[key]) for key, order in shuffled.items())


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_allocation_takes_what_is_gone_first(name: str) -> None:
    gone = -torch.inf
    scores = {
        "a": torch.tensor([[0.0, gone], [gone, 3.0]]),
        "b": torch.tensor([[gone, 1.0, gone, 2.0], [4.0, gone, gone, 5.0]]),
    }
    kept = ALLOCATIONS[name](scores, 0.5)
    assert all(torch.equal(kept[key], scores[key] > gone) for key in scores)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_allocation_takes_every_float(name: str, dtype: torch.dtype) -> None:
    kept = ALLOCATIONS[name]({"a": torch.arange(16).reshape(4, 4).flip(1).to(dtype)}, 0.25)["a"]
    row = [[True, True, True, False]] * 4
    assert kept.tolist() == (row if name == "row" else [[False] * 4, *[[True] * 4] * 3])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(bounds=st.tuples(SPARSITY, SPARSITY), times=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_schedule_grows_to_the_end(name: str, bounds: tuple[float, float], times: list[float]) -> None:
    start, end = sorted(bounds)
    reached = [SCHEDULES[name](start, end, t) for t in sorted(times)]
    assert all(a <= b + 1e-12 for a, b in pairwise(reached))
    assert all(start - 1e-12 <= sparsity <= end for sparsity in reached)
    assert SCHEDULES[name](start, end, 1.0) == end, "to the last bit, so that the count is exact"
    assert name == "once" or SCHEDULES[name](start, end, 0.0) == pytest.approx(start, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cubic", [0.0, 0.43359375, 0.65625, 0.73828125, 0.75]),
        ("exponential", [0.0, 1 - 0.5**0.5, 0.5, 1 - 0.5**1.5, 0.75]),
        ("linear", [0.0, 0.1875, 0.375, 0.5625, 0.75]),
        ("once", [0.75] * 5),
    ],
)
def test_schedules_by_value(name: str, expected: list[float]) -> None:
    assert [SCHEDULES[name](0.0, 0.75, quarter / 4) for quarter in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(INITIALISATIONS))
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), clusters=st.integers(1, 8))
def test_initialisation_lies_within_the_values(name: str, values: list[float], clusters: int) -> None:
    line = torch.tensor(values).sort().values
    clusters = min(clusters, len(values))
    centroids = INITIALISATIONS[name](line, clusters, torch.Generator().manual_seed(1), None)
    assert centroids.shape == (clusters,)
    assert centroids.dtype == line.dtype
    assert torch.equal(centroids, centroids.sort().values)
    slack = 1e-5 * float(line.abs().max())
    assert float(line[0]) - slack <= float(centroids[0])
    assert float(centroids[-1]) <= float(line[-1]) + slack
    assert torch.equal(centroids, INITIALISATIONS[name](line, clusters, torch.Generator().manual_seed(1), None))
