"""Residual branches: where they are, and the network without them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.program import ProgramModule
from featherweight.graph.residuals import find_residuals, without_branches
from featherweight.graph.shapes import infer_shapes


class Net(nn.Module):
    """A block with a projection, one whose branch is inside another's, a sum of two inputs' layers, and one that leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.a, self.b = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 6, 1)
        self.outer, self.inner = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.leaking = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor, without: frozenset[str] = frozenset()) -> torch.Tensor:
        def kept(name: str, value: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(value) if name in without else value

        x = self.stem(x).relu()
        x = (kept("b", self.b(self.a(x).relu())) + self.project(x)).relu()
        wide = self.outer(x)
        x = x + kept("inner", wide + self.inner(wide).tanh())
        leaked = self.leaking(x)
        x = x + leaked
        return self.head(torch.cat([x.mean((2, 3)), leaked.amax((2, 3))], 1))


def residuals_of(model: nn.Module, x: torch.Tensor) -> tuple:
    program = capture(model, x)
    tensors = tensors_of(model, program)
    return program, tensors, find_residuals(program, infer_shapes(program, tensors))


def test_what_is_a_branch() -> None:
    _, _, found = residuals_of(Net(), torch.zeros(1, 3, 5, 5))
    assert [(residual.name, residual.tensors) for residual in found] == [
        ("b", ("a.weight", "a.bias", "b.weight", "b.bias")),
        ("inner", ("inner.weight", "inner.bias")),
        ("inner#2", ("outer.weight", "outer.bias", "inner.weight", "inner.bias")),
    ]


CASES = [
    ([0], {"b"}, {"a", "b"}),
    ([2], {"inner"}, {"outer", "inner"}),
    ([0, 1, 2], {"b", "inner"}, {"a", "b", "outer", "inner"}),
]


@pytest.mark.parametrize(("which", "without", "gone"), CASES)
def test_without_a_branch_its_sum_is_the_skip(which: list[int], without: set[str], gone: set[str]) -> None:
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    program, tensors, found = residuals_of(model, x)
    smaller = without_branches(program, [found[i] for i in which])
    left = {spec.name for spec in smaller.tensors}
    assert {name.partition(".")[0] for name in set(tensors) - left} == gone
    torch.testing.assert_close(ProgramModule(smaller, tensors)(x), model(x, frozenset(without)))


class InPlace(nn.Module):
    """Torchvision's way of adding; the skips are the input, a value that is read again, and a part of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.first(x)
        y += x
        y = F.relu_(y)
        z = self.second(y)
        z += y
        flat = z.flatten(2)
        flat.mul_(2)
        w = self.third(x)
        w += x
        w.mul_(3)
        return [x, y, flat, w]


def test_without_a_branch_nothing_else_is_written_to() -> None:
    torch.manual_seed(0)
    model, x = InPlace().double(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    program, _, found = residuals_of(model, x)
    assert [residual.name for residual in found] == ["first", "second", "third"]
    before = x.clone()
    outputs = ProgramModule(without_branches(program, found), {})(x)
    y = before.relu()
    for got, expected in zip(outputs, [before, y, 2 * y.flatten(2), 3 * before], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_skip_that_is_scaled_is_not_what_is_left() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.up = nn.Parameter(torch.eye(3)), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.add(x, F.linear(x, self.weight), alpha=2)
            return torch.add(self.up(x), x, alpha=2)

    _, _, found = residuals_of(Scaled(), torch.zeros(1, 3))
    assert [(residual.name, residual.tensors) for residual in found] == [("weight", ("weight",))]
