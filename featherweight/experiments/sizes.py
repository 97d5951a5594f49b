"""Making things equal before they are compared: the size of networks, the compute of trainings, a fresh start."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from featherweight.errors import RequestError, check
from featherweight.graph import fold
from featherweight.graph.surgery import Plan
from featherweight.measuring import count_parameters
from featherweight.pruning import plan_neurons
from featherweight.training.mode import in_mode

__all__ = ["conv_net", "count_work", "epochs_for_work", "prune_neurons_to", "restart", "weight_sparsity_for"]


def conv_net() -> nn.Sequential:
    """Three 3x3 convolutions with batch norm, each halving the pixels: (B, 1, 28, 28) -> (B, 10), 24,170 parameters.

    Example:
        >>> count_parameters(conv_net())
        24170
    """
    layers: dict[str, nn.Module] = {}
    for number, (incoming, channels) in enumerate(((1, 16), (16, 32), (32, 64)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(incoming, channels, 3, stride=2, padding=1)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels)
        layers[f"relu{number}"] = nn.ReLU()
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1), "fc": nn.Linear(64, 10)}
    return nn.Sequential(OrderedDict(layers))


def restart(model: nn.Module, *, seed: int) -> nn.Module:
    """The same architecture with weights drawn anew, constraints left behind.

    Args:
        model: its modules know how to reset their parameters; it is not changed.
        seed: of the draw; torch's generator is put back afterwards.

    Returns:
        The fresh network.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> bool((restart(layer, seed=0).weight == layer.weight).any())
        False
    """
    fresh = fold(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def count_work(model: nn.Module, example: torch.Tensor) -> int:
    """The multiplications of one sample whose weight is not zero, in convolutions without groups and in linear layers.

    Without zeros these are its multiply-accumulates; with them, those of a machine that skips zeros at no cost.

    Args:
        model: run once on the example, in eval mode; it is not changed.
        example: a batch of inputs.

    Returns:
        The count.

    Example:
        >>> count_work(nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 5, 5))  # 4 filters of 9 weights at 3 x 3 places
        324
    """
    total = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        total += int(weight.count_nonzero()) * (output.numel() // (len(output) * len(weight)))

    plain = fold(model)
    layers = [module for module in plain.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with in_mode(plain, training=False), torch.no_grad():
        plain(example)
    for hook in hooks:
        hook.remove()
    return total


def epochs_for_work(epochs: int, work: int, lighter: int, *, most: float = 2.0) -> int:
    """How many epochs a lighter network gets for the compute of a heavier one's training, at most `most` times as many.

    Liu et al. (2019) double the epochs where the lighter network needs less than half the operations.

    Args:
        epochs: of the heavier network.
        work: operations of the heavier one.
        lighter: operations of the lighter one, at least 1.
        most: the highest factor.

    Returns:
        The epochs, rounded down, so that the compute is never more.

    Example:
        >>> epochs_for_work(10, 300, 200), epochs_for_work(10, 300, 30)
        (15, 20)
    """
    check("lighter", lighter, "in [1, work]", 1 <= lighter <= work)
    return min(epochs * work // lighter, int(most * epochs))


def weight_sparsity_for(model: nn.Module, parameters: int) -> float:
    """The sparsity of the weights at which just so many parameters are left, biases and norms all kept.

    Args:
        model: without constraints.
        parameters: that are to be left, more than there are biases and the like.

    Returns:
        What `prune_weights` takes; it leaves exactly `parameters`.

    Raises:
        RequestError: so many cannot be left.

    Example:
        >>> weight_sparsity_for(nn.Linear(10, 2), 12)
        0.5
    """
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() >= 2)
    others = count_parameters(model) - weights
    if not others < parameters <= others + weights:
        raise RequestError(
            f"parameters must be in ({others}, {others + weights}], got {parameters}; biases and norms always stay"
        )
    return 1 - (parameters - others) / weights


def prune_neurons_to(model: nn.Module, example: torch.Tensor, parameters: int) -> nn.Module:
    """Removes the same share of the neurons of every layer, so that as many parameters are left as may be, and not more.

    Args:
        model: without constraints; it is not changed.
        example: a batch of inputs.
        parameters: the most that may be left.

    Returns:
        The smaller network, the weakest neurons by magnitude gone.

    Raises:
        RequestError: even one neuron in each layer is too many.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> count_parameters(prune_neurons_to(net, torch.zeros(1, 4), 30))  # 4 neurons: 4 · (4 + 1) + 2 · (4 + 1)
        30
    """

    def plan_of(step: int) -> Plan:
        return plan_neurons(model, example, sparsity=max(step - 0.5, 0.0) / _STEPS, allocation="uniform")

    low, high = 0, _STEPS  # of the share that goes; `high` is known to be enough
    plan = plan_of(high)
    if _count_left(model, plan) > parameters:
        least = _count_left(model, plan)
        raise RequestError(f"parameters must be at least {least}, one neuron in each layer, got {parameters}")
    while high - low > 1:
        middle = (low + high) // 2
        smaller = plan_of(middle)
        if _count_left(model, smaller) <= parameters:
            high, plan = middle, smaller
        else:
            low = middle
    return plan.apply(model)


_STEPS = 256


def _count_left(model: nn.Module, plan: Plan) -> int:
    """How many parameters a plan leaves."""
    sizes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for (name, axis), indices in plan.removed.items():
        if name in sizes:
            sizes[name][axis] -= len(indices)
    return sum(map(math.prod, sizes.values()))
