"""Bias correction: what rounding the weights adds to a layer's outputs on the mean is taken off its bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from featherweight.graph.program import Node, Program, ProgramModule, Ref, run_node, tensor_called
from featherweight.graph.rewrite import LINEAR_OPS, input_channels
from featherweight.training.loaders import Loader
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["expected_inputs", "measured_shifts", "predicted_shifts"]

_QUANTILES = 999
# Operations on each number by itself, and those that leave a channel's mean as it is.
_ELEMENTWISE = frozenset(
    "relu relu_ relu6 relu6_ hardtanh hardtanh_ leaky_relu leaky_relu_ silu silu_ hardswish hardswish_ sigmoid sigmoid_ "
    "hardsigmoid tanh tanh_ gelu elu elu_ mish softplus".split()
)
_MEAN_KEEPING = frozenset(
    "dropout dropout_ feature_dropout avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d flatten.using_ints".split()
)


def expected_inputs(program: Program, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of each layer's inputs, as the batch norm before it says, without data.

    Nagel et al. (ICCV 2019, section 4.2.1 and appendix C): what a batch norm gives is taken as normal with mean β and standard
    deviation γ. Where they write down the mean of a clipped normal distribution, we send its quantiles through the activation,
    so that any elementwise one will do.

    Args:
        program: with its batch norms where they are.
        tensors: its tensors by name.

    Returns:
        For the weight of each layer that reads a batch norm, by way of activations and means alone, a tensor (channels,).

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).eval()
        >>> program = capture(net, torch.zeros(1, 2))
        >>> expected_inputs(program, tensors_of(net, program))["2.weight"]  # 1/√(2π)
        tensor([0.3989, 0.3989], dtype=torch.float64)
    """
    normal = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES)[:, None]
    quantiles: dict[int, torch.Tensor] = {}
    found = {}
    for position, node in enumerate(program.nodes):
        source = node.args[0].index if node.args and isinstance(node.args[0], Ref) else -1
        value = program.first_node + position
        if node.op == "batch_norm":
            factor, offset, mean = (tensors.get(str(program.tensor_name(argument))) for argument in node.args[1:4])
            if mean is not None and not node.args[5]:
                scale = torch.ones_like(mean) if factor is None else factor
                quantiles[value] = normal * scale.double().cpu() + (0.0 if offset is None else offset.double().cpu())
        elif source not in quantiles:
            continue
        elif node.op in _ELEMENTWISE:
            quantiles[value] = run_node(node, partial(_copied, quantiles), training=False)
        elif node.op in _MEAN_KEEPING:
            quantiles[value] = quantiles[source]
        elif node.op in LINEAR_OPS and (name := program.tensor_name(node.args[1])) is not None:
            found[name] = quantiles[source].mean(0)
    return found


def _copied(values: Mapping[int, torch.Tensor], ref: Ref) -> torch.Tensor:
    return values[ref.index].clone()  # an operation may work in place


def predicted_shifts(
    program: Program, changes: Mapping[str, torch.Tensor], means: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """By how much changed weights move the mean of each output channel, given the means of the inputs; padding is neglected.

    Args:
        program: any.
        changes: for weights by name the new minus the old.
        means: of the inputs of the layers with these weights, (channels,), as `expected_inputs` gives them.

    Returns:
        For each weight in both that a layer reads, the shifts, float64 (output channels,).

    Example:
        >>> from featherweight.graph.capture import capture
        >>> program = capture(torch.nn.Linear(2, 1), torch.zeros(1, 2))
        >>> predicted_shifts(program, {"weight": torch.tensor([[0.1, -0.2]])}, {"weight": torch.tensor([1.0, 3.0])})["weight"]
        tensor([-0.5000], dtype=torch.float64)
    """
    shifts = {}
    for node in program.nodes:
        name = program.tensor_name(node.args[1]) if node.op in LINEAR_OPS else None
        if name is None or name not in changes or name not in means:
            continue
        columns = input_channels(node, changes[name].double()[..., None]).flatten(3).sum(3)
        groups, _, inputs = columns.shape
        repeated = means[name].double().to(columns.device)
        if groups * inputs % len(repeated):
            continue
        repeated = repeated.repeat_interleave(groups * inputs // len(repeated)).reshape(groups, inputs, 1)
        shifts[name] = (columns @ repeated).flatten()
    return shifts


def measured_shifts(module: ProgramModule, changes: Mapping[str, torch.Tensor], calibrate: Loader) -> dict[str, torch.Tensor]:
    """By how much changed weights move the mean of each output channel on data.

    Nagel et al. (2019, appendix D). Each layer sees what the float network gives it, so that one pass over the data is enough;
    they go through the layers one after the other, each with the ones before it corrected.

    Args:
        module: the network before; it is not changed.
        changes: for weights by name the new minus the old.
        calibrate: batches of (inputs, targets), of which the inputs count.

    Returns:
        For each of these weights that a layer reads, the shifts, float64 (output channels,).

    Raises:
        RequestError, DataError: no data, empty data, or not finite ones.

    Example:
        >>> from featherweight.graph.capture import to_module
        >>> data = [(torch.tensor([[1.0, 3.0]]), torch.zeros(1))]
        >>> net = to_module(torch.nn.Linear(2, 1), torch.zeros(1, 2))
        >>> measured_shifts(net, {"weight": torch.tensor([[0.1, -0.2]])}, data)["weight"]
        tensor([-0.5000], dtype=torch.float64)
    """
    watched = _Watched(module, changes)
    for inputs, _ in batches_of(Evidence(module, calibrate, purpose="bias correction")):
        with torch.no_grad():
            watched(inputs)
    return {name: total / watched.counts[name] for name, total in watched.sums.items()}


class _Watched(ProgramModule):
    """Runs a program, and beside each layer its change."""

    def __init__(self, module: ProgramModule, changes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(module.program, {s.name: tensor_called(module, s.name).detach() for s in module.program.tensors})
        self.eval()
        self._changes = changes
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        name = self.program.tensor_name(node.args[1]) if node.op in LINEAR_OPS else None
        if name is not None and name in self._changes:
            alone = replace(node, args=(*node.args[:2], None, *node.args[3:]))
            change = {node.args[1].index: self._changes[name]}
            moved = run_node(alone, lambda ref: change.get(ref.index, values[ref.index]), training=False)
            moved = moved.flatten(0, -2) if node.op == "linear" else moved.transpose(0, 1).flatten(1).T
            self.sums[name] = self.sums.get(name, 0.0) + moved.sum(0, dtype=torch.float64)
            self.counts[name] = self.counts.get(name, 0) + len(moved)
        return super()._run(position, node, values)
