"""What a student loses by not giving what its teacher gives: plain functions of logits, for any training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

from featherweight.errors import check

__all__ = [
    "TARGET_LOSSES",
    "TargetLoss",
    "decoupled_loss",
    "dist_loss",
    "label_smoothing_loss",
    "logits_loss",
    "soft_loss",
]

TargetLoss = Callable[..., torch.Tensor]
"""(student's logits, teacher's logits, targets, *, temperature) -> a scalar."""


def soft_loss(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor | None = None, *, temperature: float = 4.0
) -> torch.Tensor:
    """T² · KL(p ‖ q) of the softened outputs p = softmax(teacher / T) and q = softmax(student / T), the mean over samples.

    Hinton, Vinyals and Dean 2015, section 2: their cross-entropy less the teacher's entropy, which has no gradient. With T² the
    gradients are of the same size at every temperature; for a high one they are those of `logits_loss` on centred logits.

    Args:
        student: logits (B, …, classes).
        teacher: logits of the same shape.
        targets: not used.
        temperature: T, above 0.

    Returns:
        A scalar, at least 0.

    Raises:
        RequestError: the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]])
        >>> soft_loss(logits, logits).item(), round(soft_loss(logits, -logits, temperature=1.0).item(), 3)
        (0.0, 0.462)
    """
    _check_temperature(temperature)
    divergence = kl_div(
        _log_soft(student, temperature), _log_soft(teacher, temperature), reduction="batchmean", log_target=True
    )
    return temperature**2 * divergence


def logits_loss(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor | None = None, *, temperature: float = 4.0
) -> torch.Tensor:
    """½ ‖student - teacher‖² of the logits, the mean over samples (Ba and Caruana, NIPS 2014, eq. 1).

    Args:
        student: logits (B, …, classes).
        teacher: logits of the same shape.
        targets: not used.
        temperature: not used.

    Returns:
        A scalar, at least 0.

    Example:
        >>> logits_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
        1.0
    """
    return (student - teacher).square().sum() / (2 * len(student))


def decoupled_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    others_weight: float = 8.0,
) -> torch.Tensor:
    """Decoupled distillation: how sure of the target, and how the rest is shared among the others, weighted apart.

    T² · (α · KL over {target, any other} + β · KL over the other classes), the mean over samples (Zhao et al., CVPR 2022,
    eq. 7). Plain distillation is α = 1 with β the teacher's probability of any other class, next to nothing where it is sure.

    Args:
        student: logits (B, classes).
        teacher: logits of the same shape.
        targets: classes, int64 (B,).
        temperature: T, above 0.
        target_weight: α, at least 0.
        others_weight: β, at least 0; the paper's best is between 1 and 8.

    Returns:
        A scalar, at least 0.

    Raises:
        RequestError: the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 0.0]])
        >>> round(decoupled_loss(logits, logits[:, [0, 2, 1]], torch.tensor([0]), temperature=1.0, others_weight=1.0).item(), 3)
        0.462
    """
    _check_temperature(temperature)
    is_target = torch.nn.functional.one_hot(targets, student.shape[-1]).bool()

    def parts(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logs = _log_soft(logits, temperature)
        target = logs[is_target]
        others = logs[~is_target].reshape(len(logs), -1)
        any_other = others.logsumexp(-1)
        return torch.stack([target, any_other], -1), others - any_other[:, None]

    (binary, others), (teacher_binary, teacher_others) = parts(student), parts(teacher)
    of_target, of_others = _divergence(binary, teacher_binary), _divergence(others, teacher_others)
    return temperature**2 * (target_weight * of_target + others_weight * of_others)


def dist_loss(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor | None = None, *, temperature: float = 4.0
) -> torch.Tensor:
    """DIST: one minus the correlation of softened outputs, over the classes of a sample and over the samples for a class.

    T² · (mean of 1 - ρ over rows + mean of 1 - ρ over columns), ρ Pearson's coefficient (Huang et al., NeurIPS 2022, eqs. 6
    to 9, with their weights at 1): a student need only rank as its teacher does. With one sample the second part is 1.

    Args:
        student: logits (B, classes), at least 2 classes.
        teacher: logits of the same shape.
        targets: not used.
        temperature: T, above 0.

    Returns:
        A scalar in [0, 4·T²].

    Raises:
        RequestError: the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
        >>> round(dist_loss(logits, logits).item(), 5)
        0.0
    """
    _check_temperature(temperature)
    p, q = softmax(student / temperature, -1), softmax(teacher / temperature, -1)
    between = 1 - _correlation(p, q).mean()
    within = 1 - _correlation(p.T, q.T).mean()
    return temperature**2 * (between + within)


def label_smoothing_loss(logits: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.1) -> torch.Tensor:
    """Cross-entropy with targets that have `smoothing` spread over all classes (Szegedy et al., CVPR 2016, section 7).

    The control for distillation: soft targets that know nothing of the sample.

    Args:
        logits: (B, classes).
        targets: classes, int64 (B,).
        smoothing: in [0, 1].

    Returns:
        A scalar, at least 0.

    Raises:
        RequestError: the smoothing is out of range.

    Example:
        >>> round(label_smoothing_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), smoothing=0.5).item(), 3)
        0.627
    """
    check("smoothing", smoothing, "in [0, 1]", 0 <= smoothing <= 1)
    return cross_entropy(logits, targets, label_smoothing=smoothing)


TARGET_LOSSES: dict[str, TargetLoss] = {
    "soft": soft_loss,
    "logits": logits_loss,
    "decoupled": decoupled_loss,
    "dist": dist_loss,
}
"""What compares a student's logits with its teacher's, by name."""


def _log_soft(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return log_softmax(logits / temperature, -1)


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) of log-probabilities over the last axis, the sum of all over the number of samples."""
    return kl_div(student, teacher, reduction="batchmean", log_target=True)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's coefficient of each row of `a` with that of `b`; 0 where a row does not vary."""
    a, b = (normalize(rows - rows.mean(-1, keepdim=True), dim=-1, eps=1e-8) for rows in (a, b))
    return (a * b).sum(-1)


def _check_temperature(temperature: float) -> None:
    check("temperature", temperature, "above 0 and finite", 0 < temperature < float("inf"))
