"""One-shot pruning that repairs: on a few batches of data, the weights that stay make up for those that go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.constraint import constraints_of, duplicate
from featherweight.graph.program import owner_of
from featherweight.graph.selection import select_weights
from featherweight.pruning.granularity import pattern_of
from featherweight.pruning.surgeon import METHODS, refit_rows
from featherweight.pruning.weights import Mask, check_patterns, removed_by_masks, set_masks
from featherweight.training.inputs import input_hessians
from featherweight.training.loaders import Batch
from featherweight.training.statistics import Evidence

__all__ = ["prune_reconstructing", "reconstruct_weights"]

_MOST_FOR_EXACT = 2**31  # rows · columns³ up to which "auto" takes the exact method: some seconds on one core


def prune_reconstructing(
    model: nn.Module,
    *,
    sparsity: float | None,
    data: Iterable[Batch],
    method: str = "auto",
    granularity: str = "element",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    damping: float = 0.01,
    seed: int = 0,
) -> nn.Module:
    """Removes round(sparsity · n) of the n weights of each layer, and changes the others so that its outputs change least.

    Optimal brain surgeon on layers (ExactOBS, Frantar and Alistarh, NeurIPS 2022) or, for large ones, its blocked form
    (SparseGPT, ICML 2023). Every layer is fitted to its own outputs in the network as it was, as in ExactOBS. No training; some
    hundred samples are enough, and their targets are not looked at.

    Args:
        model: one that `graph.capture` takes; it is not changed.
        sparsity: fraction of each layer's weights that is zero afterwards, in [0, 1); None where a pattern says it.
        data: batches of (inputs, targets).
        method: a name in `surgeon.METHODS`, or "auto": "obs" for layers small enough, else "sparsegpt".
        granularity: "element", or a pattern "N:M": of every M neighbouring inputs of an output N stay.
        include: shell-style patterns of names of linear and convolution weights; by default every weight of two or more axes.
        exclude: patterns of names to leave alone.
        damping: above 0; so many times the mean of its diagonal is added to the diagonal of XᵀX.
        seed: of the order in which a loader shuffles.

    Returns:
        A copy with masks and new weights; what a mask had removed stays removed.

    Raises:
        RequestError: an unknown name, a number out of range, a weight of another kind of layer, or one with other constraints.
        DataError: the data are empty, or no pairs of tensors.
        CaptureError: the network cannot be captured.

    Example:
        >>> layer, data = nn.Linear(8, 2), [(torch.randn(20, 8), torch.zeros(20))]
        >>> int((prune_reconstructing(layer, sparsity=0.5, data=data).weight == 0).sum())
        8
    """
    pattern = pattern_of(granularity)
    if pattern is None:
        check("granularity", granularity, '"element" or a pattern like "2:4"', granularity == "element")
        check("sparsity", sparsity, "in [0, 1)", sparsity is not None and 0 <= sparsity < 1)
    else:
        share = 1 - pattern[0] / pattern[1]
        check("sparsity", sparsity, f"{share:g} or None for {granularity}", sparsity is None or abs(sparsity - share) < 1e-9)
    if method != "auto":
        look_up(METHODS, method, "method")
    check_patterns(model, include, exclude)
    weights = select_weights(model, include=include, exclude=exclude)
    hessians = _hessians(model, weights, data, damping, seed)
    gone = removed_by_masks(model)
    fitted, masks = {}, {}
    for name, weight in weights.items():
        layer = _Layer(weight, len(hessians[name][0]), by_position=pattern is not None)
        hessian, unused = layer.arrange(*hessians[name])
        removed = layer.to_rows(gone.get(name, torch.zeros_like(weight, dtype=torch.bool)))
        if pattern is not None and hessian.shape[1] % pattern[1]:
            raise RequestError(f"inputs must be a multiple of {pattern[1]} for {granularity}, got {weight.shape[1]} for {name}")
        count = max(round((sparsity or 0.0) * weight.numel()), int(removed.sum()))
        remove = METHODS[_choose_method(hessian, len(weight)) if method == "auto" else method]
        rows = layer.to_rows(weight).to(hessian)
        repaired, keep = remove(rows.masked_fill(unused, 0), hessian, removed, count, pattern)  # what is unused goes first
        fitted[name] = layer.from_rows(torch.where(unused & keep, rows, repaired)).to(weight.dtype)
        masks[name] = layer.from_rows(keep)
    return _changed(model, fitted, masks)


def reconstruct_weights(
    model: nn.Module, masks: Mapping[str, torch.Tensor], *, data: Iterable[Batch], damping: float = 0.01, seed: int = 0
) -> nn.Module:
    """Puts on masks, and changes the weights that stay so that the outputs of each layer change least: least squares.

    Args:
        model: one that `graph.capture` takes; it is not changed.
        masks: for names of linear and convolution weights bool tensors of their shapes, as `plan_weights` gives them.
        data: batches of (inputs, targets); only the inputs count.
        damping: above 0; so many times the mean of its diagonal is added to the diagonal of XᵀX.
        seed: of the order in which a loader shuffles.

    Returns:
        A copy with masks and new weights.

    Raises:
        RequestError: masks that do not fit, a weight of another kind of layer, or one with other constraints.
        DataError: the data are empty, or no pairs of tensors.
        CaptureError: the network cannot be captured.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> data = [(torch.ones(5, 2), torch.zeros(5))]  # two inputs that are always the same: one weight can stand for both
        >>> repaired = reconstruct_weights(layer, {"weight": torch.tensor([[True, False]])}, data=data, damping=1e-6)
        >>> torch.allclose(repaired.weight[0, 0], layer.weight.sum(), atol=1e-4)
        True
    """
    set_masks(duplicate(model), masks)  # raises where they do not fit
    weights = {name: weight for name, weight in select_weights(model).items() if name in masks}
    hessians = _hessians(model, weights, data, damping, seed)
    fitted = {}
    for name, weight in weights.items():
        hessian, _ = hessians[name]
        layer = _Layer(weight, len(hessian))
        rows = refit_rows(layer.to_rows(weight).to(hessian), hessian, layer.to_rows(masks[name]))
        fitted[name] = layer.from_rows(rows).to(weight.dtype)
    return _changed(model, fitted, masks)


class _Layer:
    """A weight as rows (groups, outputs of a group, columns), and back.

    Columns are as in `weight.flatten(1)`; `by_position`, the input channels at one position of the kernel are neighbours.
    """

    def __init__(self, weight: torch.Tensor, groups: int, *, by_position: bool = False) -> None:
        self._shape, self._groups = weight.shape, groups
        channels, positions = weight.shape[1], weight[0, 0].numel()
        order = torch.arange(channels * positions, device=weight.device)
        self._order = order.reshape(channels, positions).t().flatten() if by_position else order

    def to_rows(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)[:, self._order].reshape(self._groups, -1, len(self._order))

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.flatten(0, 1)[:, self._order.argsort()].reshape(self._shape)

    def arrange(self, hessians: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hessians[:, self._order][:, :, self._order], unused[:, :, self._order]


def _choose_method(hessians: torch.Tensor, rows: int) -> str:
    return "obs" if rows * hessians.shape[1] ** 3 <= _MOST_FOR_EXACT else "sparsegpt"


def _hessians(
    model: nn.Module, weights: Mapping[str, torch.Tensor], data: Iterable[Batch], damping: float, seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """XᵀX of each layer, damped, in float64; and which inputs are always zero, (groups, 1, columns)."""
    check("damping", damping, "above 0", damping > 0)
    for name in weights:
        others = [type(c).__name__ for c in constraints_of(model, name) if not isinstance(c, Mask)]
        if others:
            raise RequestError(
                f"reconstruction must be free to change weights, but {name} has a {others[0]}; prune before that"
            )
    evidence = Evidence(model, data, generator=torch.Generator().manual_seed(seed), purpose="reconstruction")
    damped = {}
    for name, hessian in input_hessians(evidence, weights).items():
        exact = hessian.double()
        squares = exact.diagonal(dim1=1, dim2=2)
        mean = squares.mean(dim=1, keepdim=True)
        ridge = (damping * torch.where(mean > 0, mean, 1.0)).expand_as(squares)
        damped[name] = exact + torch.diag_embed(ridge), (squares == 0)[:, None]
    return damped


def _changed(model: nn.Module, weights: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with new weights and masks on them."""
    changed = duplicate(model)
    set_masks(changed, masks)
    with torch.no_grad():
        for name, weight in weights.items():
            owner, leaf = owner_of(changed, name)
            setattr(owner, leaf, weight)  # through the mask, to what is trained
    return changed
