"""Losses of outputs, each against its formula written out another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featherweight.distillation.losses import (
    TARGET_LOSSES,
    decoupled_loss,
    dist_loss,
    label_smoothing_loss,
    logits_loss,
    soft_loss,
)
from featherweight.errors import RequestError


def logits(seed: int, samples: int = 6, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_soft_loss_is_the_divergence_times_t_squared(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    q, p = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert soft_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected)


def test_a_hot_soft_loss_has_the_gradient_of_centred_logits() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    soft_loss(student, teacher, temperature=1e4).backward()
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(student.grad, difference.detach() / (5 * 6), rtol=1e-3, atol=1e-5)


def test_logits_loss() -> None:
    student, teacher = logits(0), logits(1)
    assert logits_loss(student, teacher).item() == pytest.approx(((student - teacher) ** 2).sum(-1).mean().item() / 2)


def test_plain_distillation_is_decoupled_with_the_weight_of_the_others() -> None:
    student, teacher, targets = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 4, 0])
    for i in range(6):
        one = slice(i, i + 1)
        others = 1 - (teacher[one] / 2).softmax(-1)[0, targets[i]].item()
        found = decoupled_loss(student[one], teacher[one], targets[one], temperature=2.0, others_weight=others)
        assert found.item() == pytest.approx(soft_loss(student[one], teacher[one], temperature=2.0).item())


def test_decoupled_weights_are_linear() -> None:
    student, teacher, targets = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 4, 0])

    def loss(alpha: float, beta: float) -> float:
        return decoupled_loss(student, teacher, targets, target_weight=alpha, others_weight=beta).item()

    assert loss(2, 3) == pytest.approx(2 * loss(1, 0) + 3 * loss(0, 1))
    assert min(loss(1, 0), loss(0, 1)) > 0


def test_dist_loss_is_made_of_correlations() -> None:
    student, teacher = logits(0), logits(1)
    p, q = softmax(student.numpy() / 4), softmax(teacher.numpy() / 4)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert dist_loss(student, teacher, temperature=4.0).item() == pytest.approx(16 * (rows + columns))


def test_classes_that_are_next_to_never_seen_correlate_too() -> None:
    sure = 10 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    assert dist_loss(sure, sure, temperature=1.0).item() == pytest.approx(0, abs=0.01)


def test_label_smoothing() -> None:
    student, targets = logits(0), torch.tensor([0, 1, 2, 3, 4, 0])
    soft = np.full((6, 5), 0.3 / 5)
    soft[np.arange(6), targets.numpy()] += 0.7
    expected = -(soft * np.log(softmax(student.numpy()))).sum(-1).mean()
    assert label_smoothing_loss(student, targets, smoothing=0.3).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", TARGET_LOSSES)
def test_a_student_like_its_teacher_loses_nothing(name: str) -> None:
    student, teacher, targets = logits(0).requires_grad_(), logits(0), torch.tensor([0, 1, 2, 3, 4, 0])
    loss = TARGET_LOSSES[name](student, teacher, targets, temperature=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert student.grad is not None
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-9)
    further = TARGET_LOSSES[name](logits(2), teacher, targets, temperature=3.0)
    assert (
        further.item() > TARGET_LOSSES[name](0.9 * logits(0) + 0.1 * logits(2), teacher, targets, temperature=3.0).item() > 1e-6
    )


@pytest.mark.parametrize("loss", [soft_loss, dist_loss, decoupled_loss])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_are_above_0(loss: object, temperature: float) -> None:
    with pytest.raises(RequestError, match="temperature must be above 0"):
        loss(logits(0), logits(1), torch.zeros(6, dtype=torch.int64), temperature=temperature)  # type: ignore[operator]
