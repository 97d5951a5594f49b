"""Questions asked of a pruned network, the same for both sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from zoo import Entry, example, loss_of

__all__ = [
    "GONE_AT_LEAST",
    "TOLERANCE",
    "Wrong",
    "check_backward",
    "check_finite",
    "check_gone",
    "check_same",
    "check_shape",
    "check_step",
    "count",
    "difference",
    "run",
    "run_precisely",
]

GONE_AT_LEAST = 0.3
LARGE = 400_000_000
"""Parameters from which on a copy in double precision would need too much memory."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Largest relative difference from the masked network. float32 where a network holds a data type fast, or is very large."""


class Wrong(Exception):
    """A check has found what must not be."""


def run(model: nn.Module, inputs: torch.Tensor) -> Any:
    """The outputs, without gradients."""
    with torch.no_grad():
        return model(inputs)


def run_precisely(entry: Entry, *makers: Callable[[], nn.Module]) -> tuple[torch.Tensor, list[Any]]:
    """New inputs, at another batch size, and what each network that is made gives for them: in double precision, unless the
    networks are large or one of them cannot."""
    inputs = example(entry, batch=3, seed=11)
    if entry.parameters <= LARGE:
        try:
            return inputs.double(), [run(copy.deepcopy(make()).double(), inputs.double()) for make in makers]
        except RuntimeError:  # a data type is written into the network
            pass
    return inputs, [run(make(), inputs) for make in makers]


def count(model: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def difference(a: Any, b: Any) -> float:
    """The largest difference relative to the largest magnitude in `b`, over all outputs; infinite where shapes differ."""
    worst = 0.0
    for x, y in zip(_tensors(a), _tensors(b), strict=True):
        if x.shape != y.shape:
            return torch.inf
        gap = float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-12))
        worst = gap if gap != gap else max(worst, gap)
        if worst != worst:
            break
    return worst


def check_same(what: str, found: float, allowed: float) -> None:
    """Raises unless a relative difference is within bounds; NaN is not."""
    if not found <= allowed:
        raise Wrong(f"{what} differ by {found:.3g} of the largest output, more than {allowed:g}")


def check_gone(gone: float) -> None:
    """Raises unless enough of the parameters went."""
    if gone < GONE_AT_LEAST:
        raise Wrong(f"only {100 * gone:.1f} % of the parameters went, fewer than {100 * GONE_AT_LEAST:.0f} %")


def check_shape(model: nn.Module, dense: nn.Module, entry: Entry, *, batch: int = 3) -> None:
    """Raises unless outputs at another batch size have the dense network's shapes and are finite."""
    inputs = example(entry, batch=batch, seed=7)
    found, wanted = _tensors(run(model, inputs)), _tensors(run(dense, inputs))
    if [t.shape for t in found] != [t.shape for t in wanted]:
        raise Wrong(f"outputs of shapes {[list(t.shape) for t in found]} where {[list(t.shape) for t in wanted]} are due")
    check_finite(found)


def check_finite(outputs: Any) -> None:
    """Raises unless all outputs are."""
    if not all(bool(tensor.isfinite().all()) for tensor in _tensors(outputs)):
        raise Wrong("an output is not finite")


def check_backward(model: nn.Module, entry: Entry) -> list[str]:
    """Raises unless gradients in eval mode are finite; the names of the parameters that get none."""
    net = copy.deepcopy(model).eval()
    loss_of(net(example(entry, seed=8))).backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    if not any(gradient is not None for gradient in gradients.values()):
        raise Wrong("no parameter has a gradient")
    if not all(bool(gradient.isfinite().all()) for gradient in gradients.values() if gradient is not None):
        raise Wrong("a gradient is not finite")
    return [name for name, gradient in gradients.items() if gradient is None]


def check_step(model: nn.Module, entry: Entry) -> None:
    """Raises unless a step of SGD in train mode runs, with a finite loss."""
    net = copy.deepcopy(model).train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    loss = loss_of(net(example(entry, seed=9)))
    loss.backward()
    optimizer.step()
    if not bool(loss.isfinite()):
        raise Wrong(f"the loss is {float(loss)}")


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
