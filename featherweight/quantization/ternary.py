"""Ternary weights: scale · {-1, 0, +1}, with real weights behind them that training moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from featherweight.errors import check
from featherweight.graph.constraint import Constraint, constrain, duplicate
from featherweight.graph.selection import select_weights
from featherweight.quantization.binary import SCALES, magnitude, pass_gradient
from featherweight.training import check_finite

__all__ = ["Ternary", "TrainedTernary", "ternarize_weights"]


class Ternary(Constraint):
    """weight = α · sign(original) where |original| > Δ, else 0; Δ = 0.7 · mean |original|, α = the mean of what is beyond Δ.

    Ternary weight networks (Li, Zhang and Liu, 2016, section 2): nearly the Δ and α that bring the ternary weight nearest to
    the real one. The gradient passes as if the steps were the identity. Zeros do not count in the means, so that masks survive
    and change nothing else.

    Args:
        scale: one of `SCALES`: what shares Δ and α; "none" has α = 1 and one Δ for the tensor.
        threshold: Δ as a share of the mean magnitude, in (0, 1).

    Raises:
        RequestError: an unknown scale, or a threshold out of range.

    Example:
        >>> Ternary()(torch.tensor([[1.0, -2.0, 0.1, 0.9]])).tolist()  # the mean is 1, so that 0.7 is the threshold
        [[1.2999999523162842, -1.2999999523162842, 0.0, 1.2999999523162842]]
    """

    def __init__(self, *, scale: str = "tensor", threshold: float = 0.7) -> None:
        super().__init__()
        check("scale", scale, f"one of {', '.join(SCALES)}", scale in SCALES)
        check("threshold", threshold, "in (0, 1)", 0 < threshold < 1)
        self.scale, self.threshold = scale, threshold

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight."""
        limit = self.threshold * magnitude(original.detach(), "tensor" if self.scale == "none" else self.scale)
        kept = original.abs() > limit
        signs = torch.where(kept, original.detach().sign(), 0)
        return pass_gradient(signs, original) * magnitude(torch.where(kept, original, 0), self.scale)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The real weights: a weight that is ternary already stays what it is."""
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Nothing to slice: all is computed from the weights."""


class TrainedTernary(Constraint):
    """weight = p where original > Δ, -n where original < -Δ, else 0; p and n are trained, Δ = 0.05 · max |original|.

    Trained ternary quantization (Zhu, Han, Mao and Dally, ICLR 2017, section 4): the gradient of p and n is the sum over
    their weights, that of a real weight is scaled by the factor it stands for (1 for zeros).

    Args:
        weight: what p and n start from: the means of what lies beyond Δ.
        threshold: Δ as a share of the largest magnitude, in (0, 1).

    Raises:
        RequestError: a threshold out of range.

    Example:
        >>> weight = torch.tensor([3.0, 1.0, -0.5, 0.01])
        >>> TrainedTernary(weight)(weight).tolist()
        [2.0, 2.0, -0.5, 0.0]
    """

    def __init__(self, weight: torch.Tensor, *, threshold: float = 0.05) -> None:
        super().__init__()
        check("threshold", threshold, "in (0, 1)", 0 < threshold < 1)
        self.threshold = threshold
        positive, negative = self._sides(weight.detach())
        self.positive = nn.Parameter(magnitude(torch.where(positive, weight.detach(), 0), "tensor").reshape(()))
        self.negative = nn.Parameter(magnitude(torch.where(negative, weight.detach(), 0), "tensor").reshape(()))

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight."""
        positive, negative = self._sides(original.detach())
        weight = torch.where(positive, self.positive, torch.where(negative, -self.negative, 0))
        factor = torch.where(weight == 0, 1, weight.abs()).detach()
        return pass_gradient(weight, original * factor)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The real weights: a weight that is ternary already stays what it is."""
        return weight

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Nothing to slice: both factors belong to the whole tensor."""

    def _sides(self, original: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the weight is positive, and where it is negative."""
        limit = self.threshold * original.abs().amax()
        return original > limit, original < -limit


def ternarize_weights(
    model: nn.Module,
    *,
    scale: str = "tensor",
    trained: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> nn.Module:
    """Makes each weight -α, 0 or +α, trained from then on through the real weights behind.

    Ternary weight networks (Li, Zhang and Liu, 2016), or trained ternary quantization (Zhu et al., ICLR 2017), whose two
    factors are parameters: see `Ternary` and `TrainedTernary`.

    Args:
        model: any module; it is not changed. Its masks stay, and so do the zeros they make.
        scale: one of `SCALES`: what shares threshold and factor; the paper's is "tensor".
        trained: two trained factors for each tensor; only with `scale="tensor"`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.

    Returns:
        A copy with a constraint on each of these weights, after those it has.

    Raises:
        RequestError: an unknown scale, trained factors with another than "tensor", or patterns that leave no weight.
        WeightsError: the model holds NaN or infinity.

    Example:
        >>> len(ternarize_weights(nn.Linear(20, 3)).weight.unique())
        3
    """
    check("scale", scale, "'tensor' where factors are trained", scale == "tensor" or not trained)
    check_finite(model)
    ternary = duplicate(model)
    for name, weight in select_weights(ternary, include=include, exclude=exclude).items():
        constrain(ternary, name, TrainedTernary(weight) if trained else Ternary(scale=scale))
    return ternary
