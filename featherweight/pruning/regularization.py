"""Training that drives whole neurons to zero, so that pruning them afterwards costs nothing.

Each is a step for `training.fit`'s `after_step`: after every update of the optimizer the penalty's proximal operator shrinks
the weights. Unlike a penalty added to the loss, it is no business of the optimizer's (as decoupled weight decay is not), and it
makes true zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from featherweight.errors import RequestError, check
from featherweight.graph.cutting import study
from featherweight.graph.groups import Axis
from featherweight.graph.program import tensor_called
from featherweight.pruning.channels import batch_norm_scales, matrices_of, slice_sums
from featherweight.pruning.neurons import select_groups
from featherweight.training.loaders import Loader
from featherweight.training.loop import Tuning, learning_rate_at
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["BatchNormL1", "GroupLasso"]


class GroupLasso:
    """Structured sparsity learning: the penalty Σ √n ‖w‖₂ over neurons (Wen et al., NIPS 2016, eq. 3; Yuan and Lin, 2006).

    Here w are all n weights of a neuron in the coupled matrices and kernels, not those of one layer: a neuron whose w is zero
    is read by nobody, and can go without a change of the outputs. (Biases and norms are not in w: they need not be zero for
    that. Only where a norm or a softmax runs over the neurons does a zero one still count.)

    Each step is the proximal operator: w shrinks by the factor max(0, 1 - rate · strength · √n / ‖w‖₂), which is exact for one
    neuron. A weight is in two neurons, that of its row and that of its column: they take turns, where the exact operator of
    such overlapping groups has no closed form.

    Args:
        model: what will be trained; it is not changed before.
        loader: as for `fit`; tells the inputs' shape and the number of steps.
        tuning: as for `fit`; tells the learning rate of each step.
        strength: the penalty's factor, above 0. At each step the root mean square of a neuron's weights falls by learning rate
            · strength, if the loss does not mind; Adam moves a weight by about the learning rate, so that there it is below 1.
        include: shell-style patterns of tensor names; only groups that hold one, if given.
        exclude: patterns of tensor names; no group that holds one.

    Raises:
        RequestError: a strength that is not above 0, patterns that fit nothing, or a weight that carries a constraint.
        DataError: the loader is empty.
        CaptureError, UnsupportedOpError: as `capture` says, or nothing may shrink.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> net[0].weight.data, net[2].weight.data = torch.tensor([[3.0, 4.0], [0.1, 0.1], [1.0, 1.0]]), torch.ones(1, 3) / 10
        >>> data = [(torch.zeros(4, 2), torch.zeros(4))]
        >>> lasso = GroupLasso(net, data, Tuning(learning_rate=0.1), strength=5)
        >>> lasso(net, 1.0)  # what `fit` does after its one step
        >>> net[0].weight[1].tolist(), round(lasso.sparsity(net), 2)
        ([0.0, 0.0], 0.33)
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        tuning: Tuning,
        *,
        strength: float,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        network = study(model, _example(model, loader))
        self._threshold_at = _thresholds(loader, tuning, strength)
        parameters = {spec.name for spec in network.program.tensors if spec.kind == "parameter"}
        self._groups: list[Mapping[Axis, torch.Tensor]] = []
        for group in select_groups(network, include=include, exclude=exclude):
            matrices = matrices_of(group, network.tensors)
            own = {key: indices for key, indices in matrices.items() if key[0] in parameters}
            self._groups += [own] if own else []
        _check_plain(model, {name for members in self._groups for name, _ in members})

    @torch.no_grad()
    def __call__(self, model: nn.Module, done: float) -> None:
        """Shrinks every neuron, IN PLACE."""
        threshold = self._threshold_at(done)
        for members in self._groups:
            rms = _rms(model, members)
            factors = torch.where(rms > threshold, 1 - threshold / rms, 0)
            for (name, axis), indices in members.items():
                weight = tensor_called(model, name)
                along = torch.ones(weight.shape[axis], dtype=weight.dtype, device=weight.device)
                along[indices.to(weight.device)] = factors[:, None].expand(indices.shape).to(weight)
                weight.mul_(along.view([-1 if a == axis else 1 for a in range(weight.dim())])).add_(0)  # turns -0 into 0

    @torch.no_grad()
    def sparsity(self, model: nn.Module) -> float:
        """The fraction of the neurons that are zero: `plan_neurons` with it and "magnitude" removes just these."""
        zeros = torch.cat([_rms(model, members) == 0 for members in self._groups])
        return float(zeros.double().mean())


class BatchNormL1:
    """Network slimming: the penalty Σ |γ| over the scales of batch norms (Liu et al., ICCV 2017, eq. 1).

    Each step is the proximal operator: |γ| falls by learning rate · strength, down to 0. The channels whose γ is 0 are what the
    criterion "bn_scale" finds. Their shift β may not be 0: removing them then changes the outputs by a constant, which tuning
    takes up.

    Args:
        model: what will be trained; it is not changed before.
        loader: as for `fit`; tells the inputs' shape and the number of steps.
        tuning: as for `fit`; tells the learning rate of each step.
        strength: the penalty's factor, above 0.

    Raises:
        RequestError: a strength that is not above 0, no batch norm with a scale, or one that carries a constraint.
        DataError: the loader is empty.
        CaptureError, UnsupportedOpError: as `capture` says.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> net[1].weight.data = torch.tensor([1.0, -0.25, -2.0])
        >>> data = [(torch.zeros(4, 2), torch.zeros(4))]
        >>> BatchNormL1(net, data, Tuning(learning_rate=0.1), strength=5)(net, 1.0)
        >>> net[1].weight.tolist()
        [0.5, 0.0, -1.5]
    """

    def __init__(self, model: nn.Module, loader: Loader, tuning: Tuning, *, strength: float) -> None:
        self._names = batch_norm_scales(study(model, _example(model, loader)))
        self._threshold_at = _thresholds(loader, tuning, strength)
        if not self._names:
            raise RequestError(f"slimming needs batch norms with a scale, but {type(model).__name__} has none")
        _check_plain(model, self._names)

    @torch.no_grad()
    def __call__(self, model: nn.Module, done: float) -> None:
        """Shrinks every scale, IN PLACE."""
        threshold = self._threshold_at(done)
        for name in self._names:
            scale = tensor_called(model, name)
            scale.copy_(nn.functional.softshrink(scale, threshold)).add_(0)  # turns -0 into 0


def _thresholds(loader: Loader, tuning: Tuning, strength: float) -> Callable[[float], float]:
    """From the fraction of all steps done, the last one included, to the learning rate of that step times the strength."""
    check("strength", strength, "finite and > 0", 0 < strength < math.inf)
    steps = len(loader) * tuning.epochs_on(loader)
    return lambda done: strength * learning_rate_at(tuning, max(round(done * steps) - 1, 0), steps)


def _example(model: nn.Module, loader: Loader) -> torch.Tensor:
    inputs, _ = next(batches_of(Evidence(model, loader, purpose="the penalty")))
    return inputs[:1]


def _check_plain(model: nn.Module, names: set[str] | list[str]) -> None:
    """A constrained weight is computed anew each time it is read: shrinking it in place would do nothing."""
    computed = sorted(name for name in names if not isinstance(tensor_called(model, name), nn.Parameter))
    if computed:
        raise RequestError(
            f"weights that are to shrink must carry no constraint, but {computed[0]!r} does; fold the model first"
        )


def _rms(model: nn.Module, members: Mapping[Axis, torch.Tensor]) -> torch.Tensor:
    """The root mean square of each channel's weights, (channels,)."""
    squares, entries = [], 0
    for (name, axis), indices in members.items():
        weight = tensor_called(model, name)
        squares.append(slice_sums(weight.square()[None], axis, indices)[0])
        entries += weight.numel() // weight.shape[axis] * indices.shape[1]
    return (torch.stack(squares).sum(dim=0) / entries).sqrt()
