"""Binary weights: scale · sign, with real weights behind the signs that training moves.

Sources: BinaryConnect (Courbariaux, Bengio and David, NeurIPS 2015) and XNOR-Net (Rastegari, Ordonez, Redmon and Farhadi,
ECCV 2016). `nets.BinaryActivation` makes the inputs of a layer signs too; `xnor` computes with both as bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.errors import check
from featherweight.graph.constraint import Constraint, constrain, constrained, duplicate
from featherweight.graph.program import owner_of
from featherweight.graph.selection import select_weights
from featherweight.training import check_finite

__all__ = ["SCALES", "Binary", "binarize_weights", "clip_weights", "magnitude", "pass_gradient", "real_weights"]

SCALES = ("none", "tensor", "channel")
"""What shares a factor: nothing has one, the whole tensor has one, each output channel (index of axis 0) has its own."""


class Binary(Constraint):
    """weight = α · sign(original), with α = mean |original| or 1; zeros stay zeros, so that masks survive.

    The gradient passes the sign as if it were the identity (BinaryConnect, algorithm 1). With a scale, α is that of XNOR-Net
    (section 3.1): of all α it brings α · sign(w) nearest to w. Deviation: the gradient of α is the exact one, where they give
    each weight only its own part. Zeros do not count in the mean.

    A stochastic sign is +1 with probability clip((w + 1) / 2, 0, 1) (BinaryConnect, section 2.2), drawn anew in each training
    step. Without gradients, or in eval mode, it is the plain sign: so the network is a function, and can be folded.

    Args:
        scale: one of `SCALES`.
        stochastic: draw signs in training; only without a scale, for the weights must fill [-1, 1].

    Raises:
        RequestError: an unknown scale, or a stochastic sign with one.

    Example:
        >>> Binary(scale="channel")(torch.tensor([[0.5, -1.5], [0.25, 0.0]])).tolist()
        [[1.0, -1.0], [0.25, 0.0]]
    """

    def __init__(self, *, scale: str = "channel", stochastic: bool = False) -> None:
        super().__init__()
        check("scale", scale, f"one of {', '.join(SCALES)}", scale in SCALES)
        check("scale", scale, "'none' where signs are stochastic", scale == "none" or not stochastic)
        self.scale, self.stochastic = scale, stochastic

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight."""
        signs = original.detach().sign()
        if self.stochastic and self.training and torch.is_grad_enabled():
            drawn = torch.rand_like(original) < (original.detach() + 1) / 2
            signs = torch.where(drawn, 1, -1) * signs.abs()
        return pass_gradient(signs, original) * magnitude(original, self.scale)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The real weights: without a scale they are stretched to fill [-1, 1], for then only their proportions count."""
        if self.scale != "none":
            return weight
        largest = weight.abs().max() if weight.numel() else weight.new_ones(())
        return weight / largest.clamp(min=torch.finfo(weight.dtype).tiny)

    def take(self, axis: int, indices: torch.Tensor) -> None:
        """Nothing to slice: all is computed from the weights."""


def pass_gradient(value: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """`value`, bit for bit, with the gradient of `through`: a straight-through estimator.

    Example:
        >>> x = torch.tensor(0.3, requires_grad=True)
        >>> y = pass_gradient(x.detach().sign(), x)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (1.0, 1.0)
    """
    return value + (through - through.detach())


def magnitude(weight: torch.Tensor, scale: str) -> torch.Tensor:
    """The mean magnitude of the entries that are not zero.

    Summed in float64, so that for a float32 weight of ± one value it is that value, bit for bit.

    Args:
        weight: of one axis or more.
        scale: over what: one of `SCALES`; "none" gives 1.

    Returns:
        Shape () for "none", else all axes of the weight with size 1, except axis 0 for "channel"; 0 where all is zero.

    Example:
        >>> magnitude(torch.tensor([[1.0, -3.0], [0.0, 5.0]]), "channel").tolist()
        [[2.0], [5.0]]
    """
    if scale == "none":
        return weight.new_ones(())
    axes = tuple(range(scale == "channel", weight.dim()))
    total = weight.abs().sum(axes, keepdim=True, dtype=torch.float64)
    return (total / (weight != 0).sum(axes, keepdim=True).clamp(min=1)).to(weight.dtype)


def binarize_weights(
    model: nn.Module,
    *,
    scale: str = "channel",
    stochastic: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> nn.Module:
    """Makes each weight ± one value, trained from then on through the real weights behind the signs.

    `scale="none"` is BinaryConnect, whose weights are ±1 and need a norm after each layer; train it with
    `fit(…, after_step=clip_weights)`, or weights grow until no gradient turns them. `scale="channel"` is XNOR-Net's
    binary-weight network. BinaryConnect binarizes every layer, XNOR-Net all but the first and the last: see `exclude`.

    Args:
        model: any module; it is not changed. Its masks stay, and so do the zeros they make.
        scale: one of `SCALES`: what shares a factor.
        stochastic: draw signs in training; only with `scale="none"`.
        include: shell-style patterns of parameter names; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.

    Returns:
        A copy with a `Binary` on each of these weights, after the constraints it has.

    Raises:
        RequestError: an unknown scale, a stochastic sign with one, or patterns that leave no weight.
        WeightsError: the model holds NaN or infinity.

    Example:
        >>> net = binarize_weights(nn.Linear(20, 3))
        >>> [len(channel.unique()) for channel in net.weight]
        [2, 2, 2]
    """
    check_finite(model)
    binary = duplicate(model)
    for name in select_weights(binary, include=include, exclude=exclude):
        constrain(binary, name, Binary(scale=scale, stochastic=stochastic))
    return binary


def clip_weights(model: nn.Module, done: float = 1.0) -> None:
    """Clips the real weights behind signs to [-1, 1], IN PLACE: what `fit` takes as `after_step`.

    BinaryConnect, section 2.4: beyond that a weight has no effect, and would take ever longer to turn.

    Args:
        model: with `Binary` constraints; other weights stay as they are.
        done: the fraction of all steps that is done; of no effect.

    Example:
        >>> net = binarize_weights(nn.Linear(2, 1), scale="none")
        >>> with torch.no_grad():
        ...     _ = net.parametrizations.weight.original.fill_(3.0)
        >>> clip_weights(net)
        >>> net.parametrizations.weight.original.tolist()
        [[1.0, 1.0]]
    """
    with torch.no_grad():
        for module in model.modules():
            if parametrize.is_parametrized(module):
                for chain in module.parametrizations.values():  # type: ignore[operator]
                    if any(isinstance(constraint, Binary) for constraint in chain):
                        chain.original.clamp_(-1, 1)


def real_weights(model: nn.Module) -> nn.Module:
    """A copy that computes with the real weights in place of their signs; other constraints stay.

    BinaryConnect, section 2.6: where signs were drawn in training, the real weights are their mean, and serve better for
    testing. The statistics of batch norms are those of the signs, and want to be collected again, as
    `torch.optim.swa_utils.update_bn` does.

    Args:
        model: with `Binary` constraints; it is not changed.

    Returns:
        The copy, with nothing binary about it.

    Example:
        >>> net = binarize_weights(nn.Linear(9, 1), scale="none", stochastic=True)
        >>> net.weight.unique().tolist(), len(real_weights(net).weight.unique())
        ([-1.0, 1.0], 9)
    """
    real = duplicate(model)
    for name, chain in constrained(real).items():
        if any(isinstance(constraint, Binary) for constraint in chain):
            owner, leaf = owner_of(real, name)
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)
            for constraint in chain:
                if not isinstance(constraint, Binary):
                    constrain(real, name, constraint)
    return real
