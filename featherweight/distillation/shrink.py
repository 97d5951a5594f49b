"""A student of the teacher's kind: thinner and shallower, with what matters most of the teacher in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from featherweight.errors import check
from featherweight.graph.capture import Example
from featherweight.graph.constraint import duplicate
from featherweight.pruning.layers import LayerCriterion, prune_layers
from featherweight.pruning.neuron_criteria import NeuronCriterion
from featherweight.pruning.neurons import prune_neurons
from featherweight.training.loaders import Batch

__all__ = ["shrink"]


def shrink(
    model: nn.Module,
    example: Example,
    *,
    widths: float | Mapping[str, float] = 1.0,
    depths: float = 1.0,
    criterion: str | NeuronCriterion = "magnitude",
    layer_criterion: str | LayerCriterion = "magnitude",
    data: Iterable[Batch] | None = None,
) -> nn.Module:
    """Proposes a student: the teacher without its least important layers, then without its least important neurons.

    What is left has the teacher's weights, a far better start than random ones (Sanh et al. 2019 take every other layer; here
    the scores say which). It has lost much of its accuracy until it is distilled.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        widths: share of the neurons of each coupled group that stays, in (0, 1]; or such shares by shell-style pattern of group
            names, as `plan_neurons` prints them; groups that no pattern fits stay whole.
        depths: share of the residual branches that stays, in (0, 1]; see `plan_layers`.
        criterion: which neurons matter, see `plan_neurons`.
        layer_criterion: which layers matter, see `plan_layers`.
        data: batches of (inputs, targets), for criteria that look at data.

    Returns:
        The student; the user's own class where it runs with the new sizes and lost no layer.

    Raises:
        RequestError: a share is out of range, or as `plan_neurons` and `plan_layers` say.
        UnsupportedOpError: nothing may shrink, or there are no residual branches to lose.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> shrink(net, torch.zeros(1, 4), widths=0.25)[0].weight.shape
        torch.Size([2, 4])
    """
    shares = widths.values() if isinstance(widths, Mapping) else [widths]
    for share in (*shares, depths):
        check("widths and depths", share, "in (0, 1]", 0 < share <= 1)
    smaller = duplicate(model)
    if depths < 1:
        smaller = prune_layers(smaller, example, sparsity=1 - depths, criterion=layer_criterion, data=data)
    if isinstance(widths, Mapping):
        sparsities = {pattern: 1 - share for pattern, share in widths.items()}
        return prune_neurons(smaller, example, sparsity=None, allocation=sparsities, criterion=criterion, data=data)
    if widths < 1:
        smaller = prune_neurons(
            smaller, example, sparsity=1 - widths, allocation="uniform", criterion=criterion, data=data
        )  # fmt: skip
    return smaller
