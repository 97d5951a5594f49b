"""Allocations against their formulas, computed another way; and `choose`, which joins them with a granularity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.pruning.allocation import ALLOCATIONS, allocate_globally, choose

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def random_scores(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}


def kept_by(allocation: object, scores: dict[str, torch.Tensor], sparsity: float | None) -> dict[str, int]:
    kept = choose(scores, sparsity, allocation=allocation)  # type: ignore[arg-type]
    return {name: int(keep.sum()) for name, keep in kept.items()}


def test_uniform_and_global_differ_in_what_they_compare() -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 10}
    assert {k: v.tolist() for k, v in choose(scores, 0.5, allocation="uniform").items()} == {
        "a": [False, False, True, True],
        "b": [False, False, True, True],
    }
    assert {k: v.tolist() for k, v in choose(scores, 0.5).items()} == {"a": [False] * 4, "b": [True] * 4}


def test_row_compares_the_weights_of_an_output() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])}
    assert choose(scores, 0.5, allocation="row")["a"].tolist() == [[False, False, True, True], [True, True, False, False]]
    assert choose(scores, 0.5, allocation="uniform")["a"].tolist() == [[False] * 4, [True] * 4]


def test_erdos_renyi_of_lenet_300_100() -> None:
    """By hand: 26620 kept are shared out as 1084 to 400 to 110, the sums of sides; so fc3, full at 1000, gets 1000."""
    rest = 26620 - 1000
    expected = {"fc1": round(rest * 1084 / 1484), "fc2": round(rest * 400 / 1484), "fc3": 1000}
    assert expected == {"fc1": 18714, "fc2": 6906, "fc3": 1000}
    assert kept_by("erdos_renyi", random_scores(LENET), 0.9) == expected
    assert kept_by("erdos_renyi_kernel", random_scores(LENET), 0.9) == expected


def test_erdos_renyi_kernel_counts_the_kernels_sides() -> None:
    """By hand, 102 kept: with the kernel's sides 16 + 8 + 3 + 3 = 30 to 10 + 11 = 21; without, (16 + 8) · 9 = 216 to 21."""
    scores = random_scores({"conv": (16, 8, 3, 3), "linear": (10, 11)})
    sparsity = 1 - 102 / (16 * 8 * 9 + 110)
    assert kept_by("erdos_renyi_kernel", scores, sparsity) == {"conv": 60, "linear": 42}
    assert kept_by("erdos_renyi", scores, sparsity) == {"conv": 93, "linear": 9}


@pytest.mark.parametrize("allocation", ["erdos_renyi", "erdos_renyi_kernel"])
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=5),
    sparsity=st.floats(0.01, 0.99),
)
def test_erdos_renyi_against_the_iteration_of_the_paper(allocation: str, shapes: list[list[int]], sparsity: float) -> None:
    """Evci et al.: one factor for all that are not dense; whoever comes to more than 1 is made dense, and again."""
    scores = random_scores({str(i): tuple(shape) for i, shape in enumerate(shapes)})
    counts = [score.numel() for score in scores.values()]
    sides = [shape if allocation == "erdos_renyi_kernel" else shape[:2] for shape in shapes]
    raw = [sum(side) / torch.tensor(side).prod().item() for side in sides]
    kept, dense = sum(counts) - round(sparsity * sum(counts)), set()
    while True:
        open_ = [i for i in range(len(shapes)) if i not in dense]
        left = kept - sum(counts[i] for i in dense)
        factor = left / sum(counts[i] * raw[i] for i in open_) if open_ else 0.0
        over = {i for i in open_ if factor * raw[i] > 1}
        if not over:
            break
        dense |= over
    expected = [counts[i] if i in dense else factor * raw[i] * counts[i] for i in range(len(shapes))]
    got = list(kept_by(allocation, scores, sparsity).values())
    assert sum(got) == kept
    assert all(abs(a - b) < 1.5 for a, b in zip(got, expected, strict=True))


@given(data=st.data(), sparsity=st.floats(0, 1, exclude_max=True))
def test_lamp_against_its_formula(data: st.DataObject, sparsity: float) -> None:
    levels = st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.5, 7.0]), min_size=1, max_size=12)
    lists = data.draw(st.lists(levels, min_size=1, max_size=3))
    lamp = []
    for values in lists:
        order = sorted(range(len(values)), key=lambda i: (values[i], i))
        own = [0.0] * len(values)
        for position, i in enumerate(order):
            not_lower = sum(values[j] ** 2 for j in order[position:])
            own[i] = values[i] ** 2 / not_lower if not_lower else 0.0
        lamp.append(torch.tensor(own, dtype=torch.float64))
    expected = allocate_globally({str(i): own for i, own in enumerate(lamp)}, sparsity)
    got = choose({str(i): torch.tensor(values) for i, values in enumerate(lists)}, sparsity, allocation="lamp")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_lamp_leaves_the_best_of_every_tensor_and_knows_no_scale() -> None:
    scores = random_scores(LENET)
    scores["fc2"] *= 1e-6
    kept = choose(scores, 0.9999, allocation="lamp")
    assert [int(keep.sum()) > 0 for keep in kept.values()] == [True] * 3
    assert all(bool(kept[name].flatten()[score.argmax()]) for name, score in scores.items())
    plain = choose(random_scores(LENET), 0.9999, allocation="lamp")
    assert torch.equal(plain["fc1"], kept["fc1"])
    with pytest.raises(RequestError, match="'lamp' needs scores of at least 0, got -1 for a"):
        choose({"a": torch.tensor([-1.0, 2.0])}, 0.5, allocation="lamp")
    assert choose({"a": torch.tensor([torch.inf, 2.0, 1.0])}, 1 / 3, allocation="lamp")["a"].tolist() == [True, True, False]


@pytest.mark.parametrize("allocation", ["erdos_renyi", "erdos_renyi_kernel", "global", "lamp"])
def test_what_is_gone_goes_first_wherever_it_is(allocation: str) -> None:
    gone = -torch.inf
    scores = {"a": torch.tensor([[gone, gone], [gone, 1.0]]), "b": torch.tensor([[2.0, 3.0, gone], [4.0, 5.0, 6.0]])}
    kept = choose(scores, 0.4, allocation=allocation)
    assert all(torch.equal(kept[name], score > gone) for name, score in scores.items())


def test_sparsities_by_name() -> None:
    scores = random_scores(LENET)
    assert kept_by({"fc1": 0.9, "fc*": 0.5}, scores, None) == {"fc1": 23520, "fc2": 15000, "fc3": 500}
    assert kept_by({"fc2": 0.9}, scores, None) == {"fc1": 235200, "fc2": 3000, "fc3": 1000}
    kept = choose(scores, None, allocation={"fc2": 0.9})["fc2"]
    assert float(scores["fc2"][~kept].max()) < float(scores["fc2"][kept].min())


@given(sparsity=st.floats(0, 0.8))
def test_sparsities_by_name_are_reached_in_proportion(sparsity: float) -> None:
    """What a schedule needs, as it grows to the whole."""
    scores = {"a": torch.rand(60), "b": torch.rand(40), "c": torch.rand(20)}
    told = {"a": 0.9, "b": 0.6}
    most = (54 + 24) / 120
    if sparsity > most + 0.005:
        with pytest.raises(RequestError, match=r"at most 0\.65"):
            choose(scores, sparsity, allocation=told)
        return
    kept = kept_by(told, scores, min(sparsity, most))
    assert kept["c"] == 20
    assert sum(kept.values()) == 120 - round(min(sparsity, most) * 120)
    assert kept["a"] == pytest.approx(60 - 54 * sparsity / most, abs=1.01)
    assert kept_by(told, scores, most) == {"a": 6, "b": 16, "c": 20}


def test_sparsities_by_name_must_fit() -> None:
    scores = random_scores({"conv1.weight": (2, 2), "fc.weight": (2, 2)})
    with pytest.raises(RequestError, match=r"must fit a weight, got 'conv.weight'; did you mean conv1\.weight"):
        choose(scores, None, allocation={"conv.weight": 0.5})
    with pytest.raises(RequestError, match=r"there are conv1\.weight, fc\.weight"):
        choose(scores, None, allocation={"zzz": 0.5})
    with pytest.raises(RequestError, match=r"sparsity of 'fc\*' must be in \[0, 1\), got 1.0"):
        choose(scores, None, allocation={"fc*": 1.0})


def test_an_allocation_of_ones_own() -> None:
    def all_of_the_first(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
        return {name: torch.full(s.shape, name != "a") for name, s in scores.items()}

    scores = random_scores({"a": (2, 2), "b": (2, 2)})
    assert kept_by(all_of_the_first, scores, 0.5) == {"a": 0, "b": 4}
    with pytest.raises(RequestError, match="bool tensor \\(2, 2\\) for a, got nothing"):
        choose(scores, 0.5, allocation=lambda scores, sparsity: {})
    with pytest.raises(RequestError, match=r"got torch.float32 \(2, 2\)"):
        choose(scores, 0.5, allocation=lambda scores, sparsity: dict(scores))


@pytest.mark.parametrize("allocation", [*sorted(ALLOCATIONS), {"*": 0.5}])
@pytest.mark.parametrize("granularity", ["element", "2x2", "row"])
def test_choose_of_nothing_and_from_nothing(allocation: object, granularity: str) -> None:
    if allocation == "row" and granularity != "element":
        pytest.skip("refused, see test_granularity.py")
    scores = {"a": torch.rand(3, 5), "b": torch.tensor([[-torch.inf, 1.0], [2.0, -torch.inf]])}
    kept = choose(scores, 0.0, allocation=allocation, granularity=granularity)  # type: ignore[arg-type]
    assert all(bool(keep.all()) for keep in kept.values())
    if isinstance(allocation, str):
        assert choose({}, 0.5, allocation=allocation, granularity=granularity) == {}


@pytest.mark.parametrize(
    ("sparsity", "options", "message"),
    [
        (1.0, {}, r"sparsity must be in \[0, 1\), got 1.0"),
        (-0.1, {}, r"sparsity must be in \[0, 1\)"),
        (float("nan"), {}, r"sparsity must be in \[0, 1\)"),
        (None, {}, "sparsity must be given"),
        (0.5, {"allocation": "globl"}, "did you mean 'global'"),
        (0.5, {"allocation": "erdos_renyi"}, r"'erdos_renyi' needs two or more axes, got \(4,\) of line"),
        (0.5, {"allocation": "row"}, r"'row' needs two or more axes, got \(4,\) of line"),
    ],
)
def test_wrong_requests(sparsity: float | None, options: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose({"line": torch.rand(4)}, sparsity, **options)  # type: ignore[arg-type]


def test_scores_must_be_numbers() -> None:
    with pytest.raises(RequestError, match="got NaN for b"):
        choose({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, 0.5)
