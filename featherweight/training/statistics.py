"""What data say about a network's weights: gradients and curvatures, the raw material of criteria.

Every statistic runs over a whole data set, in eval mode, on a folded copy: the network itself is not touched. Gradients are by
the weights that the network computes with, constraints applied. A loss is the mean over the batch it is given, as
`torch.nn.functional.cross_entropy` is, so what comes out does not depend on the size of the batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy

from featherweight.errors import DataError, RequestError
from featherweight.graph.constraint import fold
from featherweight.graph.program import tensor_called
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss
from featherweight.training.mode import device_of

__all__ = [
    "Evidence",
    "batches_of",
    "hessian_diagonals",
    "mean_gradients",
    "output_sensitivities",
    "sample_gradients",
    "squared_gradients",
]

Tensors = dict[str, torch.Tensor]

_ELEMENTS_AT_ONCE = 2**22  # of per-sample results in memory: what fits in a cache is several times faster
_EXACT_OUTPUTS = 32  # up to so many outputs the curvature is exact; above, it is sampled


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at besides the weights.

    Args:
        model: any module; it is not changed.
        data: batches of (inputs, targets), as often as one asks: a `DataLoader`, a `TensorLoader`, a list; or None.
        loss: (outputs, targets) -> scalar, the mean over the batch.
        generator: for what is drawn at random; its seed also fixes the order in which a loader shuffles.
        purpose: what asks, for the message when data are missing.
    """

    model: nn.Module
    data: Iterable[Batch] | None = None
    loss: Loss = cross_entropy
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    purpose: str = "this statistic"


def batches_of(evidence: Evidence) -> Iterator[Batch]:
    """The batches of the data, on the network's device; in the same order each time, and torch's random state is put back.

    Args:
        evidence: with data.

    Yields:
        (inputs, targets), each with at least one sample.

    Raises:
        RequestError: there are no data.
        DataError: they hold no batch, or something else than pairs of tensors.

    Example:
        >>> [len(x) for x, _ in batches_of(Evidence(nn.Identity(), [(torch.zeros(3, 1), torch.zeros(3))]))]
        [3]
    """
    if evidence.data is None:
        raise RequestError(
            f"{evidence.purpose} needs data, got none; pass data=, batches of (inputs, targets) such as a DataLoader"
        )
    device = device_of(evidence.model)
    empty = True
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(evidence.generator.initial_seed())
        for batch in evidence.data:
            is_pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, torch.Tensor) for t in batch)
            if not is_pair:
                raise DataError(f"data must be batches of two tensors (inputs, targets), got a {type(batch).__name__}")
            inputs, targets = batch
            if len(inputs):
                empty = False
                yield inputs.to(device), targets.to(device)
    if empty:
        raise DataError(
            f"{evidence.purpose} needs data, but they hold no batch; an iterator that was used up starts no new pass"
        )


def mean_gradients(evidence: Evidence, names: Collection[str]) -> Tensors:
    """The gradient of the mean loss over all samples.

    Args:
        evidence: with data and loss.
        names: of the tensors, in plain form ("conv1.weight").

    Returns:
        For each name its gradient, the tensor's shape.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))]
        >>> mean_gradients(Evidence(layer, data, loss=lambda outputs, _: outputs.mean()), ["weight"])["weight"].item()
        2.0
    """
    model, values = _prepare(evidence, names)
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    sums, samples = _zeros(values), 0
    for inputs, targets in batches_of(evidence):
        with torch.enable_grad():
            loss = evidence.loss(functional_call(model, leaves, (inputs,)), targets)
        samples += len(inputs)
        if loss.requires_grad:  # else no tensor that was asked for has a part in it
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                total.add_(gradient, alpha=len(inputs))
    return {name: total / samples for name, total in sums.items()}


def sample_gradients(evidence: Evidence, names: Collection[str]) -> Iterator[Tensors]:
    """The gradient of each sample's own loss, a chunk of samples at a time.

    These are true per-sample gradients, by `torch.func.vmap` of `grad` where the network's operations allow it, else one sample
    after the other: the square of a batch's mean gradient is another quantity, smaller by up to the batch size.

    Args:
        evidence: with data and loss.
        names: of the tensors.

    Yields:
        For each name the gradients of some samples, (B, *the tensor's shape); all samples once, in order.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))]
        >>> evidence = Evidence(layer, data, loss=lambda outputs, _: outputs.mean())
        >>> [chunk["weight"].flatten().tolist() for chunk in sample_gradients(evidence, ["weight"])]
        [[1.0, 3.0]]
    """
    model, values = _prepare(evidence, names)

    def loss_of(values: Tensors, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return evidence.loss(functional_call(model, values, (inputs[None],)), targets[None])

    gradient = _over_samples(grad(loss_of), values)
    for inputs, targets in batches_of(evidence):
        yield from gradient(inputs, targets)


def squared_gradients(evidence: Evidence, names: Collection[str]) -> Tensors:
    """The diagonal of the empirical Fisher information: the mean over samples of the squared gradient of a sample's loss.

    With the cross entropy it is the importance of elastic weight consolidation (Kirkpatrick et al., PNAS 2017) and the
    curvature in Fisher pruning (Theis et al., 2018): at the targets given, not at ones drawn from the network's outputs.

    Args:
        evidence: with data and loss.
        names: of the tensors.

    Returns:
        For each name the mean squares, the tensor's shape, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))]
        >>> squared_gradients(Evidence(layer, data, loss=lambda outputs, _: outputs.mean()), ["weight"])["weight"].item()
        5.0
    """
    return _mean({name: g.square() for name, g in chunk.items()} for chunk in sample_gradients(evidence, names))


def output_sensitivities(evidence: Evidence, names: Collection[str]) -> Tensors:
    """How strongly a weight moves the outputs: the mean over samples of |∂‖f(x)‖²/∂w|; no targets and no loss are used.

    Memory aware synapses (Aljundi et al., ECCV 2018, eq. 4, with the squared L2 norm as they do for several outputs).

    Args:
        evidence: with data, of which only the inputs count.
        names: of the tensors.

    Returns:
        For each name the mean absolute gradients, the tensor's shape, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(-1.0)
        >>> output_sensitivities(Evidence(layer, [(torch.tensor([[3.0]]), torch.zeros(1))]), ["weight"])["weight"].item()
        18.0
    """
    norm = replace(evidence, loss=lambda outputs, targets: outputs.square().sum())
    return _mean({name: g.abs() for name, g in chunk.items()} for chunk in sample_gradients(norm, names))


def hessian_diagonals(evidence: Evidence, names: Collection[str]) -> Tensors:
    """The diagonal of the Gauss-Newton matrix: the mean over samples of diag(JᵀHJ).

    J is the Jacobian of the outputs, H the Hessian of the loss by the outputs. Optimal brain damage (LeCun et al., NIPS 1989)
    also takes this for the Hessian by the weights: the two agree where outputs are linear in the weights, and where every
    sample is fitted; elsewhere this one stays positive. Up to 32 outputs it is exact; above, each sample draws one vector z of
    random signs, and (Jᵀz)(JᵀHz) has diag(JᵀHJ) as its mean (Hutchinson's estimator, in the space of outputs).

    Args:
        evidence: with data, and a loss that is convex in the outputs, as the cross entropy and the squared error are.
        names: of the tensors.

    Returns:
        For each name the diagonal, the tensor's shape, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))]
        >>> hessian_diagonals(Evidence(layer, data, loss=nn.functional.mse_loss), ["weight"])["weight"].item()
        10.0
    """
    model, values = _prepare(evidence, names)

    def curvature_of(values: Tensors, inputs: torch.Tensor, targets: torch.Tensor, probes: torch.Tensor) -> Tensors:
        outputs, pull = _pull_back(lambda v: functional_call(model, v, (inputs[None],)), values)
        _, turn = _pull_back(grad(lambda o: evidence.loss(o, targets[None])), outputs)
        sums = _zeros(values)
        for probe in probes:
            plain, curved = pull(probe[None]), pull(turn(probe[None]))
            sums = {name: total + plain[name] * curved[name] for name, total in sums.items()}
        return sums

    curvature = _over_samples(curvature_of, values)

    def chunks() -> Iterator[Tensors]:
        for inputs, targets in batches_of(evidence):
            with torch.no_grad():
                outputs = functional_call(model, values, (inputs,))
            yield from curvature(inputs, targets, _probes(outputs, evidence.generator))

    return {name: mean.clamp(min=0) for name, mean in _mean(chunks()).items()}  # rounding, and the sampling, may leave it below


def _probes(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vectors z in the space of outputs, (B, count, *outputs), such that the mean of z zᵀ, times count, is the identity."""
    one = outputs[0]
    if one.numel() <= _EXACT_OUTPUTS:
        units = torch.eye(one.numel(), dtype=one.dtype, device=one.device).reshape(-1, *one.shape)
        return units.expand(len(outputs), *units.shape)
    signs = torch.randint(2, (len(outputs), 1, *one.shape), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(outputs)


def _pull_back(function: Callable[[Any], Any], at: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The function's value, and the product of a vector with its Jacobian there."""
    value, pull, *_ = vjp(function, at)
    return value, lambda vector: pull(vector)[0]


def _prepare(evidence: Evidence, names: Collection[str]) -> tuple[nn.Module, Tensors]:
    """A copy to compute with, in eval mode and without constraints, and the tensors to differentiate by."""
    model = fold(evidence.model).eval().requires_grad_(False)
    return model, {name: tensor_called(model, name).detach() for name in names}


def _over_samples(function: Callable[..., Tensors], values: Tensors) -> Callable[..., Iterator[Tensors]]:
    """Turns a function of the values and one sample into one of a batch that gives chunks of stacked results."""
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, sum(value.numel() for value in values.values())))
    together = True

    def run(*batch: torch.Tensor) -> Iterator[Tensors]:
        nonlocal together
        for chunk in zip(*(tensor.split(at_once) for tensor in batch), strict=True):
            if together:
                try:
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                        result = vmap(function, in_dims=(None, *[0] * len(chunk)))(values, *chunk)
                except RuntimeError:  # an operation that vmap has no rule for; if the fault lies elsewhere, it is raised below
                    together = False
                else:
                    yield result
                    continue
            samples = [function(values, *sample) for sample in zip(*chunk, strict=True)]
            yield {name: torch.stack([sample[name] for sample in samples]) for name in values}

    return run


def _mean(chunks: Iterable[Mapping[str, torch.Tensor]]) -> Tensors:
    """The mean over the first axis of all chunks together."""
    sums: Tensors = {}
    samples = 0
    for chunk in chunks:
        for name, values in chunk.items():
            sums[name] = sums[name] + values.sum(dim=0) if name in sums else values.sum(dim=0)
        samples += len(next(iter(chunk.values()), ()))
    return {name: total / samples for name, total in sums.items()}


def _zeros(values: Tensors) -> Tensors:
    return {name: torch.zeros_like(value) for name, value in values.items()}
