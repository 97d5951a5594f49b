"""Mixed precision: how much each weight tensor suffers from few bits, measured, and the bits for each that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from featherweight.errors import RequestError, check
from featherweight.graph.capture import Example
from featherweight.graph.constraint import constrained, fold
from featherweight.graph.program import tensor_called
from featherweight.quantization.grid import Grid
from featherweight.quantization.uniform import quantize_uniform
from featherweight.training.loaders import Batch
from featherweight.training.loop import Loss, predict
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["BitSensitivity", "Quantize", "allocate_bits", "divergence", "scan_bits"]

Quantize = Callable[[nn.Module, int], nn.Module]
"""(network, bits) -> the network with a `Grid` of so many bits on each weight to be quantized, its tensors' names kept."""

_CELLS = 2**16  # into which a budget is divided


def divergence(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The mean over samples of the Kullback-Leibler divergence of a classifier's probabilities from those of a reference.

    Args:
        outputs: logits, (N, classes).
        reference: logits, (N, classes).

    Returns:
        A scalar in nats, at least 0.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> round(divergence(torch.tensor([[math.log(3), 0.0]]), logits).item(), 4), divergence(logits, logits).item()
        (0.1438, 0.0)
    """
    found, wanted = log_softmax(outputs.double(), dim=1), log_softmax(reference.double(), dim=1)
    return kl_div(found, wanted, reduction="batchmean", log_target=True).clamp(min=0)


@dataclass(frozen=True)
class BitSensitivity:
    """What a scan found: the error with one tensor quantized at a time and all others whole.

    Attributes:
        bits: that were tried, increasing.
        errors: for each tensor's name the error of the outputs at each of these bits, at least 0.
        sizes: for each tensor's name its number of weights.
    """

    bits: tuple[int, ...]
    errors: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The scan as plain data, for JSON; `BitSensitivity(**…)` makes it again."""
        return asdict(self)

    def allocate(self, mean_bits: float) -> dict[str, int]:
        """Bits for each tensor, so that the sum of the errors is least within a budget.

        That errors of tensors quantized together add up is an approximation, good while they are small. The sum is the least
        there is (dynamic programming), with a budget of more than 65,536 bits counted in so many cells: at most one cell for
        each tensor stays unused.

        Args:
            mean_bits: the most there may be for a weight on average, at least the fewest bits that were tried.

        Returns:
            For each name one of the bits tried; among equals the fewest.

        Raises:
            RequestError: the budget is too small.
        """
        least, weights = self.bits[0], sum(self.sizes.values())
        check("mean_bits", mean_bits, f"at least {least}, the fewest that were tried", least <= mean_bits < math.inf)
        if not self.errors:
            return {}
        spare = math.floor(min(mean_bits, self.bits[-1]) * weights) - least * weights
        extra = {name: [size * (bits - least) for bits in self.bits] for name, size in self.sizes.items()}
        cell = max(math.gcd(*(bits for row in extra.values() for bits in row)), -(-spare // _CELLS), 1)
        best = np.zeros(spare // cell + 1)  # the least sum of errors of the tensors so far, with so many cells spent at most
        choices = []
        for name, errors in self.errors.items():
            ways = np.full((len(errors), len(best)), np.inf)
            for way, error, bits in zip(ways, errors, extra[name], strict=True):
                cells = -(-bits // cell)
                way[cells:] = best[: max(0, len(best) - cells)] + error
            choices.append(ways.argmin(axis=0))
            best = ways.min(axis=0)
        allocated, left = dict.fromkeys(self.errors, least), len(best) - 1
        for name, choice in reversed([*zip(self.errors, choices, strict=True)]):
            allocated[name] = self.bits[choice[left]]
            left -= -(-extra[name][choice[left]] // cell)
        return allocated


def scan_bits(
    model: nn.Module,
    data: Iterable[Batch],
    quantize: Quantize,
    *,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    error: Loss = divergence,
    seed: int = 0,
) -> BitSensitivity:
    """Measures the error of the outputs with one weight tensor quantized at a time, all others as they are.

    The network is quantized once for each number of bits, and runs over the data once for each of these and each tensor. It is
    what Dong et al. (HAWQ, ICCV 2019) estimate by the Hessian's largest eigenvalue.

    Args:
        model: any module; it is not changed.
        data: batches of (inputs, targets), of which the inputs count; some hundred samples are enough.
        quantize: (network, bits) -> the network with a `Grid` of so many bits on each weight.
        bits: to try, increasing, each in [2, 16].
        error: (outputs, the whole network's outputs) -> a scalar, at least 0; by default for classifiers.
        seed: of the order in which a loader shuffles.

    Returns:
        The errors; `allocate` turns them into bits.

    Raises:
        RequestError: the bits do not increase, nothing was quantized, or an error is not finite.
        DataError: the data are empty, or no pairs of tensors.

    Example:
        >>> net, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(9, 4), torch.zeros(9))
        >>> quantize = lambda model, bits: quantize_uniform(model, batch[0], weight_bits=bits, activation_bits=None)
        >>> scan = scan_bits(net, [batch], quantize, bits=(2, 4))
        >>> list(scan.errors), scan.errors["0.weight"][0] > scan.errors["0.weight"][1]
        (['0.weight', '2.weight'], True)
    """
    holds = len(bits) > 0 and all(low < high <= 16 for low, high in pairwise((1, *bits)))
    check("bits", bits, "increasing whole numbers in [2, 16], at least one", holds)
    evidence = Evidence(model, data, generator=torch.Generator().manual_seed(seed), purpose="a scan of bits")
    batches = list(batches_of(evidence))
    whole = fold(model)
    reference, _ = predict(whole, batches)
    errors: dict[str, list[float]] = {}
    for each in bits:
        quantized = quantize(model, each)
        names = [name for name, chain in constrained(quantized).items() if any(isinstance(c, Grid) for c in chain)]
        for name in names:
            outputs = _outputs_with(whole, batches, name, tensor_called(quantized, name))
            errors.setdefault(name, []).append(float(error(outputs, reference)))
    if not errors:
        raise RequestError(f"a scan of bits needs weights to quantize, but {type(model).__name__} has none that were quantized")
    broken = [name for name, found in errors.items() if not all(math.isfinite(e) for e in found)]
    if broken:
        raise RequestError(
            f"the error must be finite, but is not with {broken[0]} quantized; are the weights and the data finite?"
        )
    sizes = {name: tensor_called(whole, name).numel() for name in errors}
    return BitSensitivity(tuple(bits), {name: tuple(found) for name, found in errors.items()}, sizes)


def _outputs_with(model: nn.Module, batches: list[Batch], name: str, weight: torch.Tensor) -> torch.Tensor:
    """The outputs with one tensor exchanged; it is put back afterwards."""
    tensor = tensor_called(model, name)
    before = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(weight)
        try:
            return predict(model, batches)[0]
        finally:
            tensor.copy_(before)


def allocate_bits(
    model: nn.Module,
    example: Example,
    data: Iterable[Batch],
    *,
    mean_bits: float,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    quantize: Quantize | None = None,
    error: Loss = divergence,
    seed: int = 0,
) -> dict[str, int]:
    """Bits for each weight tensor by measured sensitivity: `scan_bits` and its `allocate` in one.

    The budget is in bits of a weight before entropy coding, which spends fewer; what a file takes, the file says.

    Args:
        model: any module; it is not changed.
        example: inputs for it, as `quantize_uniform` wants them.
        data: batches of (inputs, targets), of which the inputs count.
        mean_bits: the most there may be for a weight on average, at least the fewest of `bits`.
        bits: to choose from, increasing, each in [2, 16].
        quantize: how to quantize; by default `quantize_uniform` as it comes, weights only.
        error: (outputs, the whole network's outputs) -> a scalar, at least 0; by default for classifiers.
        seed: of the order in which a loader shuffles.

    Returns:
        Bits by tensor name, which `quantize_uniform(…, weight_bits=…)` takes.

    Raises:
        RequestError, DataError: as `scan_bits` says, or the budget is too small.

    Example:
        >>> net, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(9, 4), torch.zeros(9))
        >>> allocated = allocate_bits(net, batch[0], [batch], mean_bits=4, bits=(2, 4, 8))
        >>> 32 * allocated["0.weight"] + 16 * allocated["2.weight"] <= 48 * 4
        True
    """

    def plainly(model: nn.Module, bits: int) -> nn.Module:
        return quantize_uniform(model, example, weight_bits=bits, activation_bits=None)

    scan = scan_bits(model, data, quantize or plainly, bits=bits, error=error, seed=seed)
    return scan.allocate(mean_bits)
