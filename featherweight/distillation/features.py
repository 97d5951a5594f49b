"""What a student's inner layers lose by not being like its teacher's: plain functions of features, and the pairs they are for.

A feature is what a submodule gives: (B, channels, H, W) of images, (B, positions, channels) of sequences, or (B, channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, mse_loss, normalize, smooth_l1_loss

from featherweight.errors import RequestError, check, look_up

__all__ = [
    "FEATURE_LOSSES",
    "FeatureLoss",
    "Features",
    "attention_loss",
    "channels_last",
    "contrastive_loss",
    "hint_loss",
    "map_evenly",
    "relational_loss",
    "similarity_loss",
]

FeatureLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(student's feature, teacher's feature) -> a scalar."""


def hint_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of two features of equal width (FitNets, Romero et al., ICLR 2015, eq. 3, as a mean).

    Args:
        student: (B, channels, H, W), (B, positions, channels) or (B, channels).
        teacher: the same, detached; maps of another size are averaged to the student's.

    Returns:
        A scalar, at least 0.

    Raises:
        RequestError: the features have other positions.

    Example:
        >>> hint_loss(torch.zeros(2, 3), torch.ones(2, 3)).item()
        1.0
    """
    return mse_loss(student, _of_size(teacher, student))


def attention_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Where features are strong: the mean squared difference of their maps Σ_c f², each of length 1.

    Attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2 with p = 2, as their code has it: squared, a mean). Widths may
    differ; a map is over positions, so that features (B, channels) have none.

    Args:
        student: (B, channels, H, W) or (B, positions, channels).
        teacher: the same, of any width; maps of another size are averaged to the student's.

    Returns:
        A scalar, at least 0.

    Raises:
        RequestError: a feature has no positions, or the features have others.

    Example:
        >>> f = torch.tensor([[[[3.0, 4.0]]]])
        >>> round(attention_loss(f, f.flip(-1)).item(), 3)
        0.145
    """
    check("a feature for attention transfer", tuple(student.shape), "of 3 or 4 axes", student.dim() in (3, 4))
    maps = [channels_last(f).square().sum(-1) for f in (student, _of_size(teacher, student))]
    a, b = (normalize(m.flatten(1), dim=1) for m in maps)
    return (a - b).square().mean()


def relational_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How samples lie to one another: their distances, in units of the mean distance, and the angles between them.

    Relational distillation (Park et al., CVPR 2019, eqs. 4 to 9, with weight 1 for distances and 2 for angles as in their
    section 4). Widths and sizes may differ. For B samples it takes memory for B² features and B³ angles: pool large maps first.

    Args:
        student: (B, …).
        teacher: (B, …), detached.

    Returns:
        A scalar, at least 0; 0 for a batch of one sample.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> round(relational_loss(points, 2 * points).item(), 6)
        0.0
    """
    a, b = student.flatten(1), teacher.flatten(1)
    distances = smooth_l1_loss(_distances(a), _distances(b))
    return distances + 2 * smooth_l1_loss(_angles(a), _angles(b))


def similarity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Which samples are alike: the difference of the row-normalised Gram matrices, ‖G_s - G_t‖² / B².

    Similarity-preserving distillation (Tung and Mori, ICCV 2019, eqs. 1 to 4). Widths and sizes may differ.

    Args:
        student: (B, …).
        teacher: (B, …), detached.

    Returns:
        A scalar in [0, 4 / B].

    Example:
        >>> similarity_loss(torch.eye(2), torch.eye(2) * 5).item()
        0.0
    """
    grams = [normalize(f.flatten(1) @ f.flatten(1).T, dim=1) for f in (student, teacher)]
    return (grams[0] - grams[1]).square().sum() / len(student) ** 2


def contrastive_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float = 0.1) -> torch.Tensor:
    """A sample's feature must be nearer to the teacher's of the same sample than to those of the others.

    After contrastive representation distillation (Tian et al., ICLR 2020, eq. 10); the negatives are the other samples of the
    batch, scored with a softmax (van den Oord et al. 2018), where theirs are thousands from a memory of the training set.

    Args:
        student: (B, channels, …) or (B, positions, channels); positions are averaged.
        teacher: the same, of the same width, detached.
        temperature: of the cosines, above 0.

    Returns:
        A scalar, at least 0; log B where the student knows nothing.

    Example:
        >>> round(contrastive_loss(torch.eye(4), torch.eye(4)).item(), 4)
        0.0001
    """
    a, b = (normalize(_pooled(f), dim=1) for f in (student, teacher))
    return cross_entropy(a @ b.T / temperature, torch.arange(len(a), device=a.device))


FEATURE_LOSSES: dict[str, FeatureLoss] = {
    "hint": hint_loss,
    "attention": attention_loss,
    "relational": relational_loss,
    "similarity": similarity_loss,
    "contrastive": contrastive_loss,
}
"""What compares features, by name."""

NEEDS_EQUAL_WIDTH = frozenset({"hint", "contrastive"})
"""The feature losses before which the student's channels are projected to the teacher's, where their numbers differ."""


@dataclass(frozen=True)
class Features:
    """Which layers of the student learn from which of the teacher's, and how.

    Args:
        layers: names of the student's submodules, each with the name of the teacher's it learns from.
        loss: a name in `FEATURE_LOSSES`.
        weight: of the mean over all pairs, beside the loss of the outputs; above 0.

    Raises:
        RequestError: no pair, an unknown loss, or a weight that is not above 0.

    Example:
        >>> Features({"layers.0": "layers.3"}, loss="similarity").weight
        1.0
    """

    layers: Mapping[str, str]
    loss: str = "hint"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check("layers", dict(self.layers), "at least one pair of names", len(self.layers) > 0)
        look_up(FEATURE_LOSSES, self.loss, "the features' loss")
        check("the features' weight", self.weight, "above 0 and finite", 0 < self.weight < math.inf)


def map_evenly(student: Sequence[str], teacher: Sequence[str]) -> dict[str, str]:
    """Each of the student's layers with the one at the same depth in the teacher: layer i of m with layer ⌈i · n / m⌉ of n.

    The uniform mapping of Sun et al. ("Patient knowledge distillation", EMNLP 2019) and Jiao et al. ("TinyBERT", 2020): of 12
    layers, 3 students learn from the 4th, 8th and 12th.

    Args:
        student: names of layers, in order.
        teacher: names of layers, in order; at least as many.

    Returns:
        The teacher's name for each of the student's.

    Raises:
        RequestError: there is no layer, or the student has more than the teacher.

    Example:
        >>> map_evenly(["a", "b", "c"], [f"layers.{i}" for i in range(12)])
        {'a': 'layers.3', 'b': 'layers.7', 'c': 'layers.11'}
    """
    if not 1 <= len(student) <= len(teacher):
        raise RequestError(
            f"a student's layers must be at least 1 and at most the teacher's, got {len(student)} and {len(teacher)}"
        )
    share = len(teacher) / len(student)
    return {name: teacher[math.ceil((i + 1) * share - 1e-9) - 1] for i, name in enumerate(student)}


def channels_last(feature: torch.Tensor) -> torch.Tensor:
    """The feature with its channels on the last axis: those of images are on axis 1.

    Args:
        feature: (B, channels, H, W), (B, positions, channels) or (B, channels).

    Returns:
        A view (B, …, channels).

    Example:
        >>> channels_last(torch.zeros(2, 3, 5, 7)).shape
        torch.Size([2, 5, 7, 3])
    """
    return feature.movedim(1, -1) if feature.dim() == 4 else feature


def _of_size(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The teacher's feature, its maps averaged to the student's height and width."""
    if teacher.dim() == student.dim() == 4 and teacher.shape[2:] != student.shape[2:]:
        teacher = adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    if channels_last(teacher).shape[:-1] != channels_last(student).shape[:-1]:
        raise RequestError(
            f"features to compare must have the same positions, got {tuple(student.shape)} of the student and "
            f"{tuple(teacher.shape)} of the teacher; map layers of one kind, or take the loss 'relational' or 'similarity'"
        )
    return teacher


def _pooled(feature: torch.Tensor) -> torch.Tensor:
    return channels_last(feature).reshape(len(feature), -1, channels_last(feature).shape[-1]).mean(1)


def _distances(points: torch.Tensor) -> torch.Tensor:
    """The distances of all pairs, in units of their mean; shape (pairs,)."""
    squares = (points[:, None] - points[None]).square().sum(-1)
    first, second = torch.triu_indices(len(points), len(points), 1, device=points.device)
    found = squares[first, second].clamp_min(1e-12).sqrt()
    return found / found.mean().clamp_min(1e-12) if len(found) else squares.new_zeros(1)


def _angles(points: torch.Tensor) -> torch.Tensor:
    """The cosines of the angles at each point between all pairs of others; shape (B, B, B)."""
    directions = normalize(points[None] - points[:, None], dim=-1)
    return directions @ directions.transpose(1, 2)
