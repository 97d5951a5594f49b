"""What may shrink, what must stay, and that the reason names the operation and the line."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.groups import Coupling, Unit, trace
from featherweight.graph.labels import FIXED, Labelled, Labels, kept_along
from featherweight.pruning.neurons import plan_neurons
from tests.graph.conv_net import ConvNet
from tests.graph.nets import SMALL


def coupling_of(model: nn.Module, *shapes: tuple[int, ...]) -> Coupling:
    program = capture(model, tuple(torch.zeros(2, *shape) for shape in shapes))
    return trace(program, tensors_of(model, program))


class Strange(ConvNet):
    """An operation over channels that has no rule, in one branch of two."""

    middle_channels = 16

    def __init__(self, strange: nn.Module) -> None:
        super().__init__()
        self.strange, self.free = strange, nn.Conv2d(8, 5, 1)
        self.touched, self.after = nn.Conv2d(5, 7, 1), nn.Conv2d(7, 16, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.strange(self.touched(self.free(x))))


class Cumulated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(1).values


@pytest.mark.parametrize("strange", [Cumulated, Sorted])
def test_operation_that_counts_channels_locks_only_what_touches_it(strange: type[nn.Module]) -> None:
    model = Strange(strange()).double().eval()
    example = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    program = capture(model, example)
    coupling = trace(program, tensors_of(model, program))
    assert {(group.name, group.size) for group in coupling.groups} == {
        ("stem.weight", 8),
        ("free.weight", 5),
        ("after.weight", 16),
        ("last.weight", 6),
    }
    line = inspect.getsourcelines(strange)[1] + 2
    for axis in (("touched.weight", 0), ("touched.bias", 0), ("after.weight", 1)):
        assert f"test_groups.py:{line}" in coupling.locked[axis]
        assert "counts along it" in coupling.locked[axis]
    plan = plan_neurons(model, example, sparsity=0.5)
    assert f"test_groups.py:{line}" in str(plan)
    torch.testing.assert_close(plan.apply(model)(example), plan.mask(model)(example))


def test_inputs_and_outputs_are_locked() -> None:
    coupling = coupling_of(ConvNet(), (3, 8, 8))
    locked = {axis: reason for axis, reason in coupling.locked.items() if axis[1] < 2}
    assert set(locked) == {("stem.weight", 1), ("head.2.weight", 0), ("head.2.bias", 0)}
    assert "an input's" in locked["stem.weight", 1]
    assert locked["head.2.weight", 0] == "it is an output of the network"
    assert all("runs over it" in coupling.locked["stem.weight", axis] for axis in (2, 3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("residual", {"stem.weight": (8, 1), "b.3.weight": (10, 1), "b.0.weight": (5, 1), "last.weight": (6, 1)}),
        ("depthwise", {"stem.weight": (8, 1), "point.weight": (9, 1), "last.weight": (6, 1)}),
        ("grouped", {"stem.weight": (4, 2), "two.weight": (3, 4), "four.weight": (3, 4), "last.weight": (6, 1)}),
        ("shuffled-by-torch", {"stem.weight": (4, 2), "last.weight": (6, 1)}),
        ("pixel-shuffled", {"stem.weight": (2, 4), "last.weight": (6, 1)}),
        ("tied", {"stem.weight": (8, 1), "last.weight": (6, 1)}),
        ("sequence", {"a.weight": (4, 2), "b.weight": (3, 2), "c.weight": (5, 1)}),
        ("steps", {"last.weight": (6, 1)}),
        ("picked", {"stem.weight": (5, 1), "last.weight": (6, 1)}),
        ("folded", {"stem.weight": (8, 1), "last.weight": (6, 1)}),
        ("shifted-channels", {"last.weight": (6, 1)}),
        ("tied-across", {"encode.weight": (6, 1), "hidden.weight": (8, 1)}),
    ],
)
def test_channels_are_grouped(name: str, expected: dict[str, tuple[int, int]]) -> None:
    """For each group its channels, and how many filters of its first tensor one channel has."""
    make, shapes = SMALL[name]
    groups = coupling_of(make(), *shapes).groups
    assert {g.name: (g.size, g.members[g.name, 0].shape[1]) for g in groups} == expected


def test_flattened_channels_take_their_positions_along() -> None:
    make, shapes = SMALL["flatten"]
    group = coupling_of(make(), *shapes).groups[0]
    torch.testing.assert_close(group.members["hidden.weight", 1], torch.arange(54).reshape(6, 9))


def test_groups_do_not_overlap_and_cover_the_free_axes() -> None:
    for make, shapes in (SMALL["chunked"], SMALL["dense"], SMALL["repeated"]):
        coupling = coupling_of(make(), *shapes)
        seen: dict[tuple[str, int], list[int]] = {}
        for group in coupling.groups:
            for axis, indices in group.members.items():
                seen.setdefault(axis, []).extend(indices.flatten().tolist())
        for axis, indices in seen.items():
            assert len(indices) == len(set(indices))
            assert max(indices) < len(coupling.axes[axis])


def test_nothing_to_prune_is_an_error_with_its_reasons() -> None:
    with pytest.raises(UnsupportedOpError, match="output of the network"):
        plan_neurons(nn.Linear(4, 2), torch.zeros(1, 4), sparsity=0.5)
    with pytest.raises(RequestError, match="nothing"):
        plan_neurons(ConvNet(), torch.zeros(1, 3, 8, 8), sparsity=0.5, include=["nothing*"])


def test_labels_tie_and_lock_transitively() -> None:
    labels = Labels()
    a, b, c = labels.fresh(3), labels.fresh(3), labels.fresh(1)
    labels.tie(a, b.flip(0))
    labels.lock(b[:1], "first")
    labels.lock(a[2:], "second")
    labels.lock(c, "alone")
    labels.tie(a[0], a[1])
    solution = labels.solve()
    roots = solution.roots
    assert roots[b[2]] == roots[b[1]] == roots[a[0]] == a[0]
    assert [solution.locked.get(int(roots[x])) for x in [*a, *b, *c]] == [None, None, "first", "first", None, None, "alone"]
    labels.tie(a, torch.tensor([FIXED]))
    solution = labels.solve()
    assert [solution.locked.get(int(solution.roots[x])) for x in b] == ["it is an input of the network"] * 3


@pytest.mark.parametrize("seed", range(5))
def test_labels_find_connected_components(seed: int) -> None:
    """Against a plain walk over the ties, long chains among them."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.cat(
        [torch.randint(1, 200, (60, 2), generator=generator), torch.stack([torch.arange(200, 299), torch.arange(201, 300)], 1)]
    )
    labels = Labels()
    labels.fresh(299)
    labels.tie(pairs[:, 0], pairs[:, 1])
    neighbours: dict[int, set[int]] = {i: {i} for i in range(300)}
    for x, y in pairs.tolist():
        neighbours[x].add(y)
        neighbours[y].add(x)
    for start in range(300):
        found = {start}
        while found != (more := set().union(*(neighbours[i] for i in found))):
            found = more
        assert int(labels.solve().roots[start]) == min(found)


def test_what_is_kept_is_a_box() -> None:
    value = Labelled((2, 3, 4), {1: torch.tensor([5, 6, 7]), 2: torch.tensor([1, 2, 1, 2])})
    goes = torch.zeros(8, dtype=torch.bool)
    goes[[2, 6]] = True
    assert [k.tolist() for k in kept_along(value, goes)] == [[True] * 2, [True, False, True], [True, False, True, False]]


class LastOfThree(nn.Module):
    """Query, key and value along the last axis of (heads, features, three)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 4 * 5 * 3), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (4, 5, 3)).transpose(1, 2).unbind(-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("unit", "size"), [("neuron", 5), ("head", 4)])
def test_a_unit_is_what_was_asked_for(unit: Unit, size: int) -> None:
    model, x = LastOfThree(), torch.zeros(2, 6, 8)
    program = capture(model, x)
    (group,) = trace(program, tensors_of(model, program), unit=unit).groups
    assert (group.unit, group.size) == (unit, size)
