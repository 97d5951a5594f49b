"""Programs rewritten as data: nodes replaced or left out, tensors added, all renumbered; and norms folded into weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from featherweight.graph.program import Node, Program, Ref, TensorSpec, map_refs, refs_in
from featherweight.graph.shapes import infer_shapes

__all__ = [
    "LINEAR_OPS",
    "add_biases",
    "expand",
    "fold_batch_norm",
    "graft",
    "input_channels",
    "output_channels",
    "readers_of",
    "rewrite",
    "without_unneeded",
    "without_unused",
]

LINEAR_OPS = frozenset(
    "linear conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding "
    "conv_transpose1d conv_transpose2d.input conv_transpose3d.input".split()
)
"""Operations (input, weight, bias, …) that are linear in each."""


def rewrite(program: Program, changes: Mapping[int, Node | Ref], tensors: Sequence[TensorSpec] = ()) -> Program:
    """A program with some nodes replaced or left out, without the tensors that nothing reads then.

    Everything is numbered as in the program before; new tensors are numbered on from its last value.

    Args:
        program: not changed.
        changes: for a node's position, the node in its place; or an earlier value, that is read instead, and the node goes.
        tensors: what the program owns besides.

    Returns:
        The program, renumbered.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> program = capture(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), torch.zeros(1, 2))
        >>> [node.op for node in rewrite(program, {0: Ref(0)}).nodes]
        ['tanh']
    """
    first, end = program.first_node, program.first_node + len(program.nodes)
    instead = {first + position: change for position, change in changes.items() if isinstance(change, Ref)}
    order = [*range(first), *range(end, end + len(tensors)), *(i for i in range(first, end) if i not in instead)]
    new = {old: Ref(i) for i, old in enumerate(order)}

    def renumber(ref: Ref) -> Ref:
        while ref.index in instead:
            ref = instead[ref.index]
        return new[ref.index]

    nodes = [changes.get(position, node) for position, node in enumerate(program.nodes)]
    return without_unused(
        replace(
            program,
            tensors=(*program.tensors, *tensors),
            nodes=tuple(node.renumbered(renumber) for node in nodes if isinstance(node, Node)),
            output=map_refs(program.output, renumber),
        )
    )


def expand(program: Program, changes: Mapping[int, Sequence[Node]], tensors: Sequence[TensorSpec] = ()) -> Program:
    """A program with several nodes, one after another, in the place of some, without the tensors that nothing reads then.

    Args:
        program: not changed.
        changes: for a node's position at least one node in its place, of which the last gives its value. They are numbered as
            in the program before, Ref(-1) is what the one before it gives, and Ref(-2) the one before that.
        tensors: what the program owns besides, numbered on from its last value.

    Returns:
        The program, renumbered.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> program = capture(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), torch.zeros(1, 2))
        >>> twice = expand(program, {0: [Node("neg", (Ref(0),)), Node("abs", (Ref(-1),))]})
        >>> [(node.op, node.args[0].index) for node in twice.nodes]
        [('neg', 0), ('abs', 1), ('tanh', 2)]
    """
    first, end = program.first_node, program.first_node + len(program.nodes)
    new = {i: i for i in range(first)} | {end + i: first + i for i in range(len(tensors))}
    start = first + len(tensors)
    nodes: list[Node] = []
    for position, node in enumerate(program.nodes):
        for number, part in enumerate(changes.get(position, (node,))):
            new.update({-back: start + len(nodes) - back for back in range(1, number + 1)})
            nodes.append(part.renumbered(lambda ref: Ref(new[ref.index])))
        new[first + position] = start + len(nodes) - 1
    output = map_refs(program.output, lambda ref: Ref(new[ref.index]))
    return without_unused(replace(program, tensors=(*program.tensors, *tensors), nodes=tuple(nodes), output=output))


def graft(program: Program, position: int, value: Ref, addition: Program, *, prefix: str = "") -> tuple[Program, Ref]:
    """A program that also computes another one, of one of its values.

    Args:
        program: not changed.
        position: of the node after which the addition's nodes come; `value` must be known there.
        value: what the addition gets as its only input.
        addition: a program of one input and one output; its constants are the program's then.
        prefix: put before the names of the addition's tensors, which must not be the program's.

    Returns:
        The program, renumbered, its output as before, and the value that the addition gives.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> relu, tanh = (capture(layer, torch.zeros(1, 2)) for layer in (torch.nn.ReLU(), torch.nn.Tanh()))
        >>> both, value = graft(relu, 0, Ref(1), tanh)
        >>> [node.op for node in both.nodes], both.output, value
        (['relu', 'tanh'], Ref(index=1), Ref(index=2))
    """
    first, more = program.first_node, len(addition.tensors)
    split = position + 1

    def moved(ref: Ref) -> Ref:
        if ref.index < first:
            return ref
        return Ref(ref.index + more + (len(addition.nodes) if ref.index >= first + split else 0))

    def inner(ref: Ref) -> Ref:
        if ref.index == 0:
            return moved(value)
        return Ref(first + ref.index - 1 if ref.index <= more else first + split + ref.index - 1)

    nodes = [node.renumbered(moved) for node in program.nodes]
    added = [node.renumbered(inner) for node in addition.nodes]
    specs = tuple(replace(spec, name=prefix + spec.name) for spec in addition.tensors)
    whole = Program(
        program.inputs,
        (*program.tensors, *specs),
        (*nodes[:split], *added, *nodes[split:]),
        map_refs(program.output, moved),
        {**program.constants, **{prefix + name: tensor for name, tensor in addition.constants.items()}},
    )
    return whole, inner(addition.output)


def without_unused(program: Program) -> Program:
    """The program without the tensors that nothing reads, renumbered."""
    nodes = range(program.first_node, program.first_node + len(program.nodes))
    return _only(program, {*nodes, *readers_of(program)})


def without_unneeded(program: Program) -> Program:
    """The program without the operations and tensors that its output does not need, renumbered.

    Args:
        program: not changed. An operation that writes in place, and whose result nothing reads, counts as not needed.

    Returns:
        The program; its inputs stay.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> program = capture(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), torch.zeros(1, 2))
        >>> [node.op for node in without_unneeded(replace(program, output=Ref(1))).nodes]
        ['relu']
    """
    needed = {ref.index for ref in refs_in(program.output)}
    for position in reversed(range(len(program.nodes))):
        if program.first_node + position in needed:
            needed |= {ref.index for ref in program.nodes[position].refs}
    return _only(program, needed)


def _only(program: Program, kept: Collection[int]) -> Program:
    """The program with its inputs and of its other values only these, renumbered."""
    inputs, first = len(program.inputs), program.first_node
    order = [index for index in range(first + len(program.nodes)) if index < inputs or index in kept]
    new = {old: Ref(i) for i, old in enumerate(order)}
    tensors = tuple(program.tensors[i - inputs] for i in order if inputs <= i < first)
    return Program(
        program.inputs,
        tensors,
        tuple(program.nodes[i - first].renumbered(lambda ref: new[ref.index]) for i in order if i >= first),
        map_refs(program.output, lambda ref: new[ref.index]),
        {spec.name: program.constants[spec.name] for spec in tensors if spec.name in program.constants},
    )


def readers_of(program: Program) -> dict[int, list[int]]:
    """Who reads each value.

    Args:
        program: any.

    Returns:
        For each value that is read the positions of the nodes that do, increasing; -1, last, stands for the output.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> readers_of(capture(torch.nn.ReLU(), torch.zeros(1, 2)))
        {0: [0], 1: [-1]}
    """
    readers: dict[int, list[int]] = {}
    for position, node in enumerate(program.nodes):
        for index in {ref.index for ref in node.refs}:
            readers.setdefault(index, []).append(position)
    for index in {ref.index for ref in refs_in(program.output)}:
        readers.setdefault(index, []).append(-1)
    return readers


def output_channels(node: Node, weight: torch.Tensor) -> torch.Tensor:
    """A view of a layer's weight whose rows are the output channels.

    Args:
        node: with an op of `LINEAR_OPS`.
        weight: its weight.

    Returns:
        (groups, output channels of one group, …), a view: the groups are 1 but for transposed convolutions.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> layer = torch.nn.ConvTranspose2d(6, 4, 3, groups=2)
        >>> node = capture(layer, torch.zeros(2, 6, 5, 5)).nodes[0]
        >>> output_channels(node, layer.weight).shape
        torch.Size([2, 2, 3, 3, 3])
    """
    if not node.op.startswith("conv_transpose"):
        return weight[None]
    groups = node.args[6] if len(node.args) > 6 else 1
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)


def input_channels(node: Node, weight: torch.Tensor) -> torch.Tensor:
    """A view of a layer's weight with an axis for its input channels.

    Args:
        node: with an op of `LINEAR_OPS`.
        weight: its weight, or one with more axes.

    Returns:
        (groups, output channels of one group, input channels of one group, …), a view.

    Example:
        >>> from featherweight.graph.capture import capture
        >>> layer = torch.nn.Conv2d(6, 4, 3, groups=2)
        >>> input_channels(capture(layer, torch.zeros(2, 6, 5, 5)).nodes[0], layer.weight).shape
        torch.Size([2, 2, 3, 3, 3])
    """
    if node.op.startswith("conv_transpose"):
        return output_channels(node, weight)
    groups = node.args[6] if node.op != "linear" and len(node.args) > 6 else 1
    return weight.reshape(groups, -1, *weight.shape[1:])


def fold_batch_norm(program: Program, tensors: Mapping[str, torch.Tensor]) -> tuple[Program, dict[str, torch.Tensor]]:
    """Makes each batch norm part of the linear or convolution layer before it, as it is in eval mode.

    Norm(W·x + b) = (γ/σ)·W·x + (γ/σ)·(b - μ) + β with σ² the running variance plus ε (Jacob et al. 2018, equation 14), computed
    in double precision. Norms stay whose input has other readers, that take each batch's own statistics, or that follow a layer
    whose weight or bias is computed or shared.

    Args:
        program: not changed.
        tensors: its tensors by name; not changed.

    Returns:
        The program without these norms, and its tensors. A layer that had no bias has one, named after its weight.

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.BatchNorm2d(2)).eval()
        >>> program = capture(net, torch.zeros(1, 1, 5, 5))
        >>> folded, tensors = fold_batch_norm(program, tensors_of(net, program))
        >>> [node.op for node in folded.nodes], sorted(tensors)
        (['conv2d'], ['0.bias', '0.weight'])
    """
    readers = readers_of(program)
    layers = {position: _layer_before(program, norm, readers) for position, norm in enumerate(program.nodes)}
    shapes, first = infer_shapes(program, tensors), program.first_node
    folds = {
        position: layer
        for position, layer in layers.items()
        if layer is not None and shapes[first + layer].dim() == shapes[program.nodes[layer].args[1].index].dim()
    }  # otherwise the norm's channels are not the layer's
    program, found = add_biases(program, tensors, set(folds.values()))
    for position, layer in folds.items():
        node, norm = program.nodes[layer], program.nodes[position]
        weight, bias = (str(program.tensor_name(value)) for value in node.args[1:3])
        scale, shift = _scale_and_shift(norm, [tensors.get(str(program.tensor_name(value))) for value in norm.args[1:5]])
        found[bias] = (found[bias].double() * scale + shift).to(found[weight].dtype)
        scaled = found[weight].double().clone()
        rows = output_channels(node, scaled)
        rows *= scale.reshape(*rows.shape[:2], *[1] * (rows.dim() - 2))
        found[weight] = scaled.to(found[weight].dtype)
    folded = rewrite(program, {position: program.nodes[position].args[0] for position in folds})
    return folded, {spec.name: found[spec.name] for spec in folded.tensors}


def add_biases(
    program: Program, tensors: Mapping[str, torch.Tensor], positions: Collection[int]
) -> tuple[Program, dict[str, torch.Tensor]]:
    """Gives layers a bias of zeros, where they have none.

    Args:
        program: not changed.
        tensors: its tensors by name; not changed.
        positions: of nodes with an op of `LINEAR_OPS` and a weight of the program's.

    Returns:
        The program, its nodes where they were, and its tensors; a new bias is "conv.bias" if the weight is "conv.weight".
    """
    found = dict(tensors)
    changes: dict[int, Node | Ref] = {}
    added: list[TensorSpec] = []
    for position in sorted(positions):
        node = program.nodes[position]
        if len(node.args) > 2 and node.args[2] is not None:
            continue
        weight = str(program.tensor_name(node.args[1]))
        name = _free_name(found, weight)
        found[name] = found[weight].new_zeros(output_channels(node, found[weight]).shape[:2].numel())
        number = Ref(program.first_node + len(program.nodes) + len(added))
        added.append(TensorSpec(name, "parameter"))
        changes[position] = replace(node, args=(*node.args[:2], number, *node.args[3:]))
    return rewrite(program, changes, added), found


def _layer_before(program: Program, norm: Node, readers: Mapping[int, list[int]]) -> int | None:
    """The position of the layer that a batch norm can become part of."""
    if norm.op != "batch_norm" or norm.args[5] or not isinstance(norm.args[0], Ref):
        return None
    position = norm.args[0].index - program.first_node
    if position < 0 or len(readers[norm.args[0].index]) > 1 or program.nodes[position].op not in LINEAR_OPS:
        return None
    own = [value for value in program.nodes[position].args[1:3] if value is not None]
    optional = [value for value in norm.args[1:3] if value is not None]
    if any(program.tensor_name(value) is None for value in (*own, *optional, *norm.args[3:5])):
        return None
    return position if all(len(readers[value.index]) == 1 for value in own) else None


def _scale_and_shift(norm: Node, statistics: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a norm with (weight, bias, running mean, running variance) multiplies by and adds, in double precision."""
    weight, bias, mean, variance = (torch.zeros(()) if tensor is None else tensor.double() for tensor in statistics)
    scale = (variance + norm.args[7]).rsqrt() * (1.0 if statistics[0] is None else weight)
    return scale, bias - mean * scale


def _free_name(taken: Mapping[str, torch.Tensor], weight: str) -> str:
    """A name for the bias of the layer with this weight: "conv.bias" for "conv.weight"."""
    path = weight.rpartition(".")[0]
    name = f"{path}.bias" if path else "bias"
    while name in taken:
        name += "_folded"
    return name
