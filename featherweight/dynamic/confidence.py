"""How sure a network is of what it answers: what decides whether a sample leaves at an exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

__all__ = ["CONFIDENCES", "LEARNED", "Confidence", "Judge", "agreement", "largest_probability", "low_entropy", "margin"]

Confidence = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The logits (B, classes) of all exits so far, the latest last -> (B,) in [0, 1]; larger is surer."""


def largest_probability(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The probability of the class that the latest exit answers: as in MSDNet (Huang et al., ICLR 2018).

    Args:
        answers: logits (B, classes) of the exits so far.

    Returns:
        (B,) in [1 / classes, 1].

    Example:
        >>> largest_probability([torch.tensor([[0.0, 0.0], [0.0, 30.0]])])
        tensor([0.5000, 1.0000])
    """
    return answers[-1].softmax(1).amax(1)


def margin(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    """By how much the latest exit's largest probability exceeds the next one.

    Args:
        answers: logits (B, classes) of the exits so far, at least 2 classes.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> margin([torch.tensor([[0.0, 0.0, -30.0], [30.0, 0.0, 0.0]])])
        tensor([0., 1.])
    """
    largest = answers[-1].softmax(1).topk(2).values
    return largest[:, 0] - largest[:, 1]


def low_entropy(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    """One minus the entropy of the latest exit's probabilities, as a share of the largest there can be.

    BranchyNet (Teerapittayanon, McDanel and Kung, ICPR 2016) lets a sample leave where the entropy H is below a threshold; here
    it is 1 - H / log(classes), so that larger is surer, as everywhere.

    Args:
        answers: logits (B, classes) of the exits so far, at least 2 classes.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> low_entropy([torch.tensor([[0.0, 0.0], [0.0, 200.0]])])
        tensor([0., 1.])
    """
    logs = answers[-1].log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    return (1 - entropy / math.log(answers[-1].shape[1])).clamp(0, 1)


def agreement(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    """How many exits in a row, the latest last, answer the same class: the patience of PABEE (Zhou et al., NeurIPS 2020).

    A patience of t, that is t exits that agree with the one before them, is a confidence of t / (t + 1): thresholds are 1/2 for
    one, 2/3 for two. Exits that are not asked, whose threshold is infinite, do not count.

    Args:
        answers: logits (B, classes) of the exits so far.

    Returns:
        (B,) in [0, 1).

    Example:
        >>> first, second = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> agreement([first]), agreement([first, second])
        (tensor([0., 0.]), tensor([0.5000, 0.0000]))
    """
    classes = torch.stack([answer.argmax(1) for answer in answers])
    same = (classes[:-1] == classes[-1:]).flip(0).cumprod(0).sum(0)
    return same / (same + 1)


CONFIDENCES: Mapping[str, Confidence] = {
    "probability": largest_probability,
    "margin": margin,
    "entropy": low_entropy,
    "agreement": agreement,
}
"""Confidences by name."""

LEARNED = "learned"
"""The confidence that says what judges do, which are trained for a network: `learn_confidence`."""

_RANKS = 8
_HIDDEN = 32


class Judge(nn.Module):
    """Says how probable it is that an exit's answer is right: the learning-to-exit module of BERxiT (Xin et al., EACL 2021).

    Theirs looks at the features that an exit has; this one at what the exit makes of them, the log-probabilities of the classes
    and the largest in order, so that it knows which classes are taken for one another, and fits every network.

    Args:
        classes: how many, at least 2.

    Example:
        >>> Judge(10)([torch.zeros(4, 10)]).shape
        torch.Size([4])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._ranks = min(_RANKS, classes)
        self.hidden = nn.Linear(classes + self._ranks, _HIDDEN)
        self.logit = nn.Linear(_HIDDEN, 1)

    def forward(self, answers: Sequence[torch.Tensor]) -> torch.Tensor:
        """How sure the latest answer is, (B,) in [0, 1]."""
        return self.score(answers[-1]).sigmoid()

    def score(self, answer: torch.Tensor) -> torch.Tensor:
        """The logit (B,) of the probability that an answer (B, classes) is right."""
        logs = answer.log_softmax(1)
        seen = torch.cat([logs, logs.topk(self._ranks, 1).values], 1).clamp(min=-20)
        return self.logit(self.hidden(seen).relu())[:, 0]  # type: ignore[no-any-return]
