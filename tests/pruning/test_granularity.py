"""Units go whole, their number as near as may be; patterns keep N of every M."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.pruning.allocation import ALLOCATIONS, choose
from featherweight.pruning.granularity import GRANULARITIES, units_of

UNITS = ["2x3", "row", "kernel"]
WHOLE = sorted(set(ALLOCATIONS) - {"row"})
SHAPES = st.lists(st.integers(1, 4), min_size=3, max_size=4)
SPARSITY = st.floats(0, 1, exclude_max=True)


def members(units: torch.Tensor) -> list[torch.Tensor]:
    return [units == number for number in units.unique()]


@pytest.mark.parametrize("granularity", [*sorted(GRANULARITIES), "2x3", "4x1"])
@given(shape=SHAPES)
def test_units_part_the_entries(granularity: str, shape: list[int]) -> None:
    units = units_of(granularity)(torch.Size(shape))
    assert units.dtype == torch.int64
    assert list(units.shape) == shape
    assert units.unique().tolist() == list(range(int(units.max()) + 1)), "counted from 0, none left out"


def test_units_by_value() -> None:
    shape = torch.Size([2, 2, 1, 2])
    assert units_of("row")(shape).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert units_of("filter")(shape).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert units_of("kernel")(shape).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert units_of("1x3")(shape).flatten().tolist() == [0, 0, 0, 1, 2, 2, 2, 3]
    assert units_of("2x2")(torch.Size([3, 3])).tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]


@pytest.mark.parametrize("granularity", UNITS)
@pytest.mark.parametrize("allocation", WHOLE)
@settings(max_examples=30)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=3), low=SPARSITY, high=SPARSITY)
def test_units_go_whole_lowest_first(
    granularity: str, allocation: str, shapes: list[list[int]], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    scores = {str(i): torch.randint(4, shape).float() for i, shape in enumerate(shapes)}
    few, kept = (choose(scores, s, allocation=allocation, granularity=granularity) for s in (low, high))
    slack = 0.0
    for name, score in scores.items():
        assert bool((few[name] | ~kept[name]).all()), "a higher sparsity removes what a lower one does, and more"
        units = members(units_of(granularity)(score.shape))
        assert all(bool(kept[name][unit].all()) or not bool(kept[name][unit].any()) for unit in units)
        stays = [bool(kept[name][unit].any()) for unit in units]
        ranks = sorted((round(float(score[unit].double().mean()), 9), i) for i, unit in enumerate(units))
        gone = len(stays) - sum(stays)
        assert sorted(i for _, i in ranks[:gone]) == [i for i, stay in enumerate(stays) if not stay]
        slack += max(int(unit.sum()) for unit in units) / 2
    total = sum(score.numel() for score in scores.values())
    removed = total - sum(int(keep.sum()) for keep in kept.values())
    assert abs(removed - high * total) <= slack + len(scores) / 2


@pytest.mark.parametrize("allocation", WHOLE)
def test_blocks_of_one_are_elements(allocation: str) -> None:
    scores = {"a": torch.randint(5, (9, 7)).float(), "b": torch.randint(5, (4, 6)).float()}
    blocks, elements = (choose(scores, 0.7, allocation=allocation, granularity=g) for g in ("1x1", "element"))
    assert all(torch.equal(blocks[name], elements[name]) for name in scores)


@given(sparsity=SPARSITY, allocation=st.sampled_from(["global", "uniform"]))
def test_blocks_come_as_near_as_they_can(sparsity: float, allocation: str) -> None:
    score = torch.rand(10, 12)
    removed = int((~choose({"a": score}, sparsity, granularity="4x4", allocation=allocation)["a"]).sum())
    tiles = members(units_of("4x4")(score.shape))
    by_mean = sorted(tiles, key=lambda tile: float(score[tile].double().mean()))
    reachable = [sum(int(tile.sum()) for tile in by_mean[:n]) for n in range(len(tiles) + 1)]
    assert removed in reachable
    assert abs(removed - round(sparsity * 120)) == min(abs(n - round(sparsity * 120)) for n in reachable)


def test_a_unit_of_which_half_would_go_stays() -> None:
    score = torch.tensor([[1.0, 1.0, 2.0, 2.0]])
    kept = [choose({"a": score}, sparsity, granularity="1x2")["a"].tolist() for sparsity in (0.25, 0.5, 0.75)]
    assert kept == [[[True] * 4], [[False, False, True, True]], [[False, False, True, True]]]


def test_rows_of_different_length_compare_by_their_mean() -> None:
    scores = {"wide": torch.full((2, 100), 1.0), "narrow": torch.tensor([[2.0, 2.0], [0.5, 0.5]])}
    scores["wide"][1] = 3.0
    kept = choose(scores, 102 / 204, granularity="row")
    assert kept["wide"][:, 0].tolist() == [False, True]
    assert kept["narrow"][:, 0].tolist() == [True, False]


@pytest.mark.parametrize("allocation", WHOLE)
def test_what_is_gone_stays_gone_and_counts(allocation: str) -> None:
    """A block with removed entries is judged by those that are left."""
    score = torch.tensor([[-torch.inf, 9.0, 1.0, 1.0], [-torch.inf, 9.0, 1.0, 2.0]])
    kept = choose({"a": score}, 6 / 8, allocation=allocation, granularity="2x2")["a"]
    assert kept.tolist() == [[False, True, False, False]] * 2


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 4)])
@given(rows=st.integers(1, 4), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_patterns_keep_n_of_m(kept: int, of: int, rows: int, groups: int, seed: int) -> None:
    score = torch.randint(3, (rows, groups * of), generator=torch.Generator().manual_seed(seed)).float()
    keep = choose({"a": score}, 1 - kept / of, granularity=f"{kept}:{of}")["a"]
    assert torch.equal(keep, choose({"a": score}, None, granularity=f"{kept}:{of}", allocation="uniform")["a"])
    for row in range(rows):
        for start in range(0, groups * of, of):
            order = sorted(range(start, start + of), key=lambda i: (float(score[row, i]), i))
            assert [bool(keep[row, i]) for i in order] == [False] * (of - kept) + [True] * kept


def test_patterns_run_along_the_input_channels_of_a_convolution() -> None:
    score = torch.rand(6, 8, 3, 3)
    keep = choose({"conv": score}, 0.5, granularity="2:4")["conv"]
    assert keep.shape == score.shape
    assert bool((keep.reshape(6, 2, 4, 3, 3).sum(dim=2) == 2).all())
    for place in range(9):  # as if each position of the kernel were a matrix
        matrix = score[:, :, place // 3, place % 3]
        assert torch.equal(keep[:, :, place // 3, place % 3], choose({"m": matrix}, 0.5, granularity="2:4")["m"])


def test_patterns_never_bring_back_what_is_gone() -> None:
    score = torch.tensor([[-torch.inf, -torch.inf, -torch.inf, 1.0, 4.0, 3.0, 2.0, -torch.inf]])
    assert choose({"a": score}, 0.5, granularity="2:4")["a"].tolist() == [[False] * 3 + [True, True, True, False, False]]


def test_patterns_by_name_and_none_at_all() -> None:
    scores = {"a": torch.rand(2, 4), "b": torch.rand(2, 6)}
    kept = choose(scores, None, allocation={"a": 0.5}, granularity="2:4")
    assert [int(keep.sum()) for keep in kept.values()] == [4, 12]
    assert all(bool(keep.all()) for keep in choose(scores, 0, granularity="2:4").values())


@pytest.mark.parametrize(
    ("granularity", "sparsity", "allocation", "message"),
    [
        ("2:4", 0.6, "global", "removes 0.5 of each weight, so that sparsity must be 0.5, 0 or None, got 0.6"),
        ("2:4", 0.5, "lamp", "allocation must be 'uniform', 'global', 'row' or by name, got 'lamp'"),
        ("2:4", None, {"a": 0.4}, r"must be 0.5 or 0, got \{'a': 0.4\}"),
        ("4:8", 0.5, "global", r"inputs must be a multiple of 8 for the pattern 4:8, got 6, of a"),
        ("0:4", 1.0 - 1e-9, "global", "keep at least 1 of M and remove at least 1, got '0:4'"),
        ("4:4", 0.0, "global", "keep at least 1 of M and remove at least 1, got '4:4'"),
        ("0x4", 0.5, "global", "got '0x4'"),
        ("rows", 0.5, "global", "did you mean 'row'"),
        ("kernel", 0.5, "global", r"kernels need a weight of 3 or more axes, got the shape \(4, 6\); exclude it, of a"),
        ("row", 0.5, "row", "'row' compares the entries of a row, which 'row' takes together"),
    ],
)
def test_wrong_requests(granularity: str, sparsity: float | None, allocation: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose({"a": torch.rand(4, 6)}, sparsity, allocation=allocation, granularity=granularity)  # type: ignore[arg-type]
