"""A captured network's layers, and the network with others in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featherweight.errors import DataError, WeightsError
from featherweight.factorization.layers import Branches, Layer, Pair, Replacement, Thin
from featherweight.graph.capture import Example, capture, example_of, like, on_device_of, tensors_of
from featherweight.graph.constraint import duplicate, fold
from featherweight.graph.cutting import carry_constraints
from featherweight.graph.own_class import difference, tolerance
from featherweight.graph.program import Node, Program, ProgramModule, Ref, TensorSpec, owner_of, tensor_called
from featherweight.graph.rewrite import expand, readers_of
from featherweight.graph.selection import select_weights
from featherweight.graph.shapes import infer_shapes
from featherweight.training.inputs import input_hessians
from featherweight.training.loaders import Batch
from featherweight.training.statistics import Evidence

__all__ = ["BranchedConv", "Network", "look", "replace_layers"]

_log = logging.getLogger(__name__)

_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
"""What a convolution leaves out: stride, padding, dilation, groups."""


@dataclass(frozen=True)
class Network:
    """A captured network: the layers that may be factored, by weight name, their nodes' positions, and why others stay."""

    program: Program
    tensors: Mapping[str, torch.Tensor]
    layers: Mapping[str, Layer]
    positions: Mapping[str, int]
    skipped: dict[str, str]


def look(
    model: nn.Module,
    example: Example,
    data: Iterable[Batch] | None,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> Network:
    """Captures a network, and finds the layers that may be factored.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        data: batches of (inputs, targets), whose moments the layers get, if any.
        include: shell-style patterns of weight names; only these, if given.
        exclude: patterns of names to leave alone.

    Returns:
        The network.

    Raises:
        RequestError: patterns that leave nothing.
        WeightsError, DataError: a weight, or what the data make a layer get, is not finite.
        CaptureError, UnsupportedOpError: as `capture` says.
    """
    program = capture(model, example)
    tensors = {name: tensor.clone() for name, tensor in tensors_of(fold(model), program).items()}
    twin = ProgramModule(program, tensors)
    chosen = set(select_weights(twin, include=include, exclude=exclude))
    shapes, readers = infer_shapes(program, tensors, batch=1), readers_of(program)
    layers: dict[str, Layer] = {}
    positions: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for position, node in enumerate(program.nodes):
        name = program.tensor_name(node.args[1]) if len(node.args) > 1 else None
        if name not in chosen or not (node.op == "linear" or node.op.startswith("conv")):
            continue
        if not bool(tensors[name].isfinite().all()):
            raise WeightsError(f"a weight to factor must be finite, but {name!r} holds NaN or infinity")
        shared = len(readers[node.args[1].index]) > 1
        size = tuple(shapes[node.args[0].index].shape[-2:])
        found = "several layers share it" if shared else _layer(node, tensors[name], size)
        if isinstance(found, str):
            skipped[name] = found
        else:
            layers[name], positions[name] = found, position
    if data is not None and layers:
        moments = input_hessians(Evidence(twin, data, purpose="factoring for data"), list(layers))
        if not all(bool(found.isfinite().all()) for found in moments.values()):
            raise DataError("data must be finite wherever they flow, but what some layer gets of them holds NaN or infinity")
        layers = {name: replace(layer, moments=moments[name][0]) for name, layer in layers.items()}
    return Network(program, tensors, layers, positions, skipped)


def _layer(node: Node, weight: torch.Tensor, size: tuple[int, ...]) -> Layer | str:
    """What a node computes with, or why it cannot be factored."""
    if node.op == "linear":
        return Layer(weight)
    if node.op not in ("conv2d", "conv2d.padding"):
        return f"{node.op.partition('.')[0]} is neither a linear layer nor a two-dimensional convolution"
    given = node.args[3:7]
    stride, padding, dilation, groups = given + _DEFAULTS[len(given) :]
    if groups != 1:
        return f"it has {groups} groups"
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if any(total % 2 for total in whole):
            return "its padding is more on one side than on the other"
        padding = [total // 2 for total in whole]
    return Layer(weight, _pair(stride), _pair(padding), _pair(dilation), _pair(size))


def _pair(values: Any) -> Pair:
    numbers = [values] * 2 if isinstance(values, int) else list(values) * (2 if len(values) == 1 else 1)
    return int(numbers[0]), int(numbers[1])


def replace_layers(model: nn.Module, network: Network, chains: Mapping[str, Replacement]) -> nn.Module:
    """The network with thin layers in the place of some, as `FactorPlan.apply` says.

    Args:
        model: what was captured; it is not changed.
        network: the same, captured.
        chains: thin layers one after the other, or branches, by the names of the weights that go.

    Returns:
        A module of the user's class, or a `ProgramModule`.
    """
    if not chains:
        return duplicate(model)
    program, tensors, folded = network.program, dict(network.tensors), fold(model)
    end = program.first_node + len(program.nodes)
    added: list[TensorSpec] = []
    changes: dict[int, list[Node]] = {}
    for name, chain in chains.items():
        parts = chain.parts if isinstance(chain, Branches) else {str(number): thin for number, thin in enumerate(chain)}
        refs = []
        for part, thin in parts.items():
            own = _inside(name, f"{part}.weight")
            tensors[own] = nn.Parameter(thin.weight, requires_grad=tensor_called(folded, name).requires_grad)
            refs.append(Ref(end + len(added)))
            added.append(TensorSpec(own, "parameter"))
        node = program.nodes[network.positions[name]]
        if isinstance(chain, Branches):
            own = _inside(name, "order")
            tensors[own] = chain.order
            changes[network.positions[name]] = _branched(node, chain, refs, Ref(end + len(added)))
            added.append(TensorSpec(own, "buffer"))
        else:
            changes[network.positions[name]] = _chained(node, chain, refs)
    smaller = expand(program, changes, added)
    twin = ProgramModule(replace(smaller, constants={}), {spec.name: tensors[spec.name] for spec in smaller.tensors})
    result = _own_class(folded, like(folded, twin), chains)
    carry_constraints(result, model)
    return result


def _chained(node: Node, chain: Sequence[Thin], weights: Sequence[Ref]) -> list[Node]:
    """Thin layers one after the other, with the bias on the last."""
    bias, last = _bias(node), len(chain) - 1
    return [
        _node(node, thin, weight, Ref(-1) if number else node.args[0], bias if number == last else None)
        for number, (thin, weight) in enumerate(zip(chain, weights, strict=True))
    ]


def _branched(node: Node, branches: Branches, weights: Sequence[Ref], order: Ref) -> list[Node]:
    """What `BranchedConv` computes."""
    nodes = [_node(node, branches.first, weights[0], node.args[0], None)]
    if branches.left is not None:
        nodes.append(_node(node, branches.left, weights[1], Ref(-1), None))
    nodes.append(_node(node, branches.right, weights[-1], Ref(-len(nodes)), None))
    nodes.append(Node("cat", ([Ref(-2), Ref(-1)], 1), {}, node.origin))
    nodes.append(Node("index_select", (Ref(-1), 1, order), {}, node.origin))
    if (bias := _bias(node)) is not None:
        nodes.append(Node("unsqueeze", (bias, 1), {}, node.origin))
        nodes.append(Node("unsqueeze", (Ref(-1), 2), {}, node.origin))
        nodes.append(Node("add.Tensor", (Ref(-3), Ref(-1)), {}, node.origin))
    return nodes


def _bias(node: Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def _node(node: Node, thin: Thin, weight: Ref, source: Any, bias: Any) -> Node:
    if node.op == "linear":
        return Node("linear", (source, weight, *([] if bias is None else [bias])), {}, node.origin)
    settings = (list(thin.stride), list(thin.padding), list(thin.dilation), thin.groups)
    return Node("conv2d", (source, weight, bias, *settings), {}, node.origin)


def _inside(name: str, leaf: str) -> str:
    """ "fc.0.weight" for the first layer in the place of "fc.weight"."""
    path = name.rpartition(".")[0]
    return f"{path}.{leaf}" if path else leaf


def _own_class(folded: nn.Module, twin: ProgramModule, chains: Mapping[str, Replacement]) -> nn.Module:
    """The user's module with other modules in the place of its layers, if it agrees with its captured twin; else the twin."""
    own = duplicate(folded)
    why = ""
    for name, chain in chains.items():
        layer, leaf = owner_of(own, name)
        path = name.rpartition(".")[0]
        if type(layer) not in (nn.Linear, nn.Conv2d) or leaf != "weight" or not path:
            return _captured(folded, twin, f"{name} belongs to a {type(layer).__name__}")
        parent, child = owner_of(own, path)
        made = BranchedConv(layer, chain) if isinstance(chain, Branches) else _sequential(layer, chain)
        setattr(parent, child, made.train(layer.training))
    inputs = on_device_of(twin, example_of(twin, seed=1))
    with torch.no_grad():
        try:
            distance = difference(duplicate(own).eval()(*inputs), duplicate(twin).eval()(*inputs))
        except Exception as error:  # it is the user's code, which may raise anything
            why = str(error)
    if not why and distance <= tolerance(twin):
        return own
    return _captured(folded, twin, why or f"its code computes something else with them (by {distance:.2g})")


def _captured(folded: nn.Module, twin: ProgramModule, why: str) -> ProgramModule:
    if not isinstance(folded, ProgramModule):
        _log.warning("%s cannot have other layers (%s); a captured program comes back instead", type(folded).__name__, why)
    return twin


def _sequential(layer: Any, chain: Sequence[Thin]) -> nn.Sequential:
    """Modules for a chain, the bias of the layer on the last."""
    made = [_module(thin, layer) for thin in chain]
    made[-1].bias = layer.bias
    return nn.Sequential(*made)


def _module(thin: Thin, layer: Any) -> nn.Linear | nn.Conv2d:
    """A module without bias, trainable if the layer was that it stands for."""
    outputs, inputs, *kernel = thin.weight.shape
    module: nn.Linear | nn.Conv2d
    if kernel:
        size = (kernel[0], kernel[1])
        settings = (thin.stride, thin.padding, thin.dilation, thin.groups)
        module = nn.Conv2d(inputs * thin.groups, outputs, size, *settings, bias=False, device="meta")
    else:
        module = nn.Linear(inputs, outputs, bias=False, device="meta")  # which draws no random weights
    module.weight = nn.Parameter(thin.weight.clone(), requires_grad=layer.weight.requires_grad)
    return module


class BranchedConv(nn.Module):
    """`Branches` as a module, with the bias of the layer in whose place it is."""

    order: torch.Tensor

    def __init__(self, layer: Any, branches: Branches) -> None:
        super().__init__()
        self.first = _module(branches.first, layer)
        self.left = nn.Identity() if branches.left is None else _module(branches.left, layer)
        self.right = _module(branches.right, layer)
        self.register_buffer("order", branches.order)
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first = self.first(inputs)
        outputs = torch.cat([self.left(first), self.right(first)], 1).index_select(1, self.order)
        return outputs if self.bias is None else outputs + self.bias.unsqueeze(1).unsqueeze(2)
