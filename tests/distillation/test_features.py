"""Losses of features: formulas written out in loops, and what they do not see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.distillation.features import (
    FEATURE_LOSSES,
    Features,
    attention_loss,
    contrastive_loss,
    hint_loss,
    map_evenly,
    relational_loss,
    similarity_loss,
)
from featherweight.errors import RequestError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hint_averages_larger_maps() -> None:
    student, teacher = normal(2, 3, 2, 2), normal(2, 3, 4, 4, seed=1)
    quarters = teacher.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert hint_loss(student, teacher).item() == pytest.approx((student - quarters).square().mean().item())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 20, 3)])
def test_attention_compares_normalised_maps(shape: tuple[int, ...]) -> None:
    student, teacher = normal(*shape), normal(*shape, seed=1)
    channels = 1 if len(shape) == 4 else 2
    total = 0.0
    for a, b in zip(student.square().sum(channels), teacher.square().sum(channels), strict=True):
        total += (a / a.norm() - b / b.norm()).square().sum().item()
    assert attention_loss(student, teacher).item() == pytest.approx(total / (2 * 20))


def test_attention_needs_positions() -> None:
    with pytest.raises(RequestError, match="must be of 3 or 4 axes"):
        attention_loss(normal(2, 3), normal(2, 3))


@pytest.mark.parametrize(("own", "theirs"), [((2, 5, 4), (2, 1, 4)), ((2, 5, 4), (2, 7, 4)), ((2, 4, 3, 3), (2, 9, 4))])
def test_positions_must_be_the_same(own: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    for loss in (hint_loss, attention_loss):
        with pytest.raises(RequestError, match="must have the same positions"):
            loss(normal(*own), normal(*theirs))


def test_relations_do_not_change_by_rotation_scale_and_shift() -> None:
    points = normal(7, 4)
    rotation = torch.linalg.qr(normal(4, 4, seed=1))[0]
    assert relational_loss(points, 3 * points @ rotation + 5).item() == pytest.approx(0, abs=1e-12)
    assert relational_loss(points, points * torch.tensor([1.0, 1.0, 1.0, 3.0])).item() > 1e-3


def test_relations_of_three_points() -> None:
    student, teacher = normal(3, 2), normal(3, 5, seed=1)

    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    def distances(points: torch.Tensor) -> list[float]:
        found = [(points[i] - points[j]).norm().item() for i, j in ((0, 1), (0, 2), (1, 2))]
        return [d / (sum(found) / 3) for d in found]

    def cosine(points: torch.Tensor, i: int, j: int, k: int) -> float:
        a, b = points[i] - points[j], points[k] - points[j]
        return 0.0 if j in (i, k) else (a @ b / (a.norm() * b.norm())).item()

    by_distance = sum(huber(a - b) for a, b in zip(distances(student), distances(teacher), strict=True)) / 3
    triples = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    by_angle = sum(huber(cosine(student, *t) - cosine(teacher, *t)) for t in triples) / 27
    assert relational_loss(student, teacher).item() == pytest.approx(by_distance + 2 * by_angle)


def test_similarity_compares_gram_matrices() -> None:
    student, teacher = normal(4, 3, 2, 2), normal(4, 9, seed=1)

    def gram(feature: torch.Tensor) -> torch.Tensor:
        rows = feature.flatten(1)
        return torch.stack([torch.stack([a @ b for b in rows]) / torch.stack([a @ b for b in rows]).norm() for a in rows])

    expected = (gram(student) - gram(teacher)).square().sum().item() / 16
    assert similarity_loss(student, teacher).item() == pytest.approx(expected)
    assert similarity_loss(student, 7 * student).item() == pytest.approx(0, abs=1e-12)


def test_contrast_tells_samples_apart() -> None:
    same = torch.ones(8, 3)
    assert contrastive_loss(same, same).item() == pytest.approx(math.log(8), rel=1e-5)
    apart = torch.eye(8)
    assert contrastive_loss(apart, apart).item() < contrastive_loss(apart, apart.flip(0)).item()


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_gradients_are_finite_and_lead_to_the_teacher(name: str) -> None:
    student, teacher = normal(5, 6, 3, 3).requires_grad_(), normal(5, 6, 3, 3, seed=1)
    first = FEATURE_LOSSES[name](student, teacher)
    first.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    nearer = student.detach() - 0.1 * student.grad / student.grad.norm()
    assert FEATURE_LOSSES[name](nearer, teacher).item() < first.item()


@given(st.integers(1, 12), st.integers(0, 12))
def test_layers_are_mapped_in_order_to_the_last(students: int, more: int) -> None:
    names = [str(i) for i in range(students + more)]
    mapped = [int(name) for name in map_evenly([f"s{i}" for i in range(students)], names).values()]
    assert mapped == sorted(set(mapped))
    assert mapped[-1] == len(names) - 1
    gaps = [b - a for a, b in zip([-1, *mapped], mapped, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_more_layers_than_the_teacher_has() -> None:
    with pytest.raises(RequestError, match="at most the teacher's, got 2 and 1"):
        map_evenly(["a", "b"], ["c"])


def test_features_that_make_no_sense() -> None:
    with pytest.raises(RequestError, match="at least one pair"):
        Features({})
    with pytest.raises(RequestError, match="did you mean 'attention'"):
        Features({"a": "b"}, loss="atention")
    with pytest.raises(RequestError, match="weight must be above 0"):
        Features({"a": "b"}, weight=0.0)
