"""Where a network's activations are quantized, so that ONNX Runtime computes in integers from one layer to the next."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from featherweight.graph.functions import functional
from featherweight.graph.program import Node, Program, Ref, refs_in
from featherweight.graph.rewrite import readers_of

__all__ = ["CLIPS", "LAYERS", "Place", "find_places"]

LAYERS = frozenset("conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding linear".split())
"""Operations whose weight is their second argument, and for which there are int8 kernels."""

# What gives integers as cheaply as it reads them, so that it pays between layers that want integers anyway.
_ELEMENTWISE = frozenset("add.Tensor cat avg_pool2d".split())

# They compute in floats, and read few of them for each that they give: no reason for what comes before to do so as well.
_MEANS = frozenset("adaptive_avg_pool2d mean.dim".split())

# Values stay on their grid.
_MOVES = frozenset(
    "view reshape flatten.using_ints unflatten.int permute transpose.int t squeeze squeeze.dim squeeze.dims unsqueeze "
    "slice.Tensor select.int max_pool1d max_pool2d chunk split.Tensor split_with_sizes unbind.int py.getitem channel_shuffle "
    "pixel_shuffle upsample_nearest2d.vec".split()
)
_LISTS = frozenset("chunk split.Tensor split_with_sizes unbind.int".split())
_IDENTITIES = frozenset("dropout feature_dropout alpha_dropout contiguous clone detach alias".split())
CLIPS = frozenset("relu relu6 hardtanh clamp clamp_min".split())
"""Operations that only cut values off."""


@dataclass(frozen=True, slots=True)
class Place:
    """A value that gets a quantizer.

    Attributes:
        value: its number in the program.
        readers: the positions of the nodes that read it quantized; None where all do.
        like: the number of the value whose step it shares, because it only moved; its own where the step is its own.
        clip: whether its node only clips what an integer kernel computes, so that the quantizer may make it redundant.
    """

    value: int
    readers: frozenset[int] | None
    like: int
    clip: bool = False


@dataclass
class _Plan:
    """What is known of a program while its places are looked for."""

    program: Program
    readers: dict[int, list[int]] = field(default_factory=dict)
    integer: set[int] = field(default_factory=set)  # positions of the nodes that an int8 kernel computes
    wanted: set[int] = field(default_factory=set)  # values that such a node reads, perhaps after moves

    def result(self, position: int) -> int:
        """The number of what a node gives in the end: the result of a clip, if nothing else reads it, as kernels clip too."""
        value = self.program.first_node + position
        readers = self.readers.get(value, [])
        if len(readers) == 1 and readers[0] >= 0 and functional(self.program.nodes[readers[0]].op) in CLIPS:
            return self.program.first_node + readers[0]
        return value

    def feeds_integers_only(self, value: int) -> bool:
        """Whether everything that reads a value computes in integers."""
        readers = self.readers.get(value, [])
        return bool(readers) and all(
            reader >= 0
            and (
                reader in self.integer
                or functional(self.program.nodes[reader].op) in _MEANS
                or (
                    functional(self.program.nodes[reader].op) in _MOVES | _IDENTITIES
                    and self.feeds_integers_only(self.program.first_node + reader)
                )
            )
            for reader in readers
        )


def find_places(program: Program) -> list[Place]:
    """The values to quantize, in the program's order.

    Convolutions and linear layers compute in integers: their inputs are quantized, and their outputs (after a clip such as
    ReLU, which costs the kernel nothing) unless a linear layer's output is read by nothing that computes in integers. Sums and
    concatenations follow where all their readers compute in integers. A first convolution of less than 4 channels whose readers
    do not stays in floats. What only moves values passes their step on. Everything
    else (softmax, norms, pooling by means, smooth activations) computes in floats on the values of the grid.

    Args:
        program: with its batch norms folded, or they would stand between a layer and its activation.

    Returns:
        The places; none for a network without convolutions and linear layers.

    Example:
        >>> import torch
        >>> from featherweight.graph import capture
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(place.value, place.clip) for place in find_places(capture(net, torch.zeros(1, 4)))]
        [(0, False), (6, True)]
    """
    plan = _Plan(program, readers_of(program))
    for position in reversed(range(len(program.nodes))):
        _note_wish(plan, position)
    places: list[Place] = []
    grids: dict[int, int] = {}  # value on a grid: the value whose step it has
    clipped: set[int] = set()
    for value in range(len(program.inputs)):
        places += _input_place(plan, value)
    for position, node in enumerate(program.nodes):
        value, name = program.first_node + position, functional(node.op)
        source = next((ref.index for ref in refs_in(node.args)), -1)
        if position in plan.integer and (name != "linear" or plan.wanted & {value, plan.result(position)}):
            result = plan.result(position)
            grids[result] = result
            if result == value:
                places.append(Place(value, None, value))
            else:
                clipped.add(result)
        elif value in clipped:
            places.append(Place(value, None, value, clip=True))
        elif source in grids and name in _MOVES | _IDENTITIES:
            grids[value] = grids[source]
            if name in _MOVES - _LISTS and value in plan.wanted:
                places.append(Place(value, None, grids[source]))
        else:
            places += _input_place(plan, value)
    return places


def _note_wish(plan: _Plan, position: int) -> None:
    """Decides whether a node computes in integers, all that come after it being decided, and notes which values it reads."""
    program, node = plan.program, plan.program.nodes[position]
    name, value = functional(node.op), plan.program.first_node + position
    inputs = list(_data(program, node))
    if name in LAYERS:
        chosen = program.tensor_name(node.args[1]) is not None and len(inputs) == 1 and not _is_bare_stem(plan, position)
    elif name in _ELEMENTWISE:
        chosen = bool(inputs) and plan.feeds_integers_only(plan.result(position)) and "alpha" not in node.kwargs
    else:
        chosen = False
    if chosen:
        plan.integer.add(position)
    if chosen or (name in _MOVES | _IDENTITIES and value in plan.wanted):
        plan.wanted.update(inputs)


def _is_bare_stem(plan: _Plan, position: int) -> bool:
    """Whether a node is a convolution of an image's few channels, from which a smooth activation or another float reads.

    With so few channels int8 kernels gain nothing (measured), and floats save a quantizer on either side.
    """
    program, node = plan.program, plan.program.nodes[position]
    source, result = node.args[0].index, plan.result(position)
    if not node.op.startswith("conv") or source >= len(program.inputs) or result != program.first_node + position:
        return False
    channels = program.inputs[source].shape[1]
    return channels is not None and channels < 4 and result not in plan.wanted


def _input_place(plan: _Plan, value: int) -> Iterator[Place]:
    """The place of a value that is computed in floats (or is an input), if a kernel wants it in integers."""
    readers = plan.readers.get(value, [])
    nodes = plan.program.nodes
    integer = frozenset(reader for reader in readers if reader in plan.integer and value in _data(plan.program, nodes[reader]))
    if integer:
        in_place = any(reader >= 0 and nodes[reader].op.partition(".")[0].endswith("_") for reader in readers)
        yield Place(value, None if in_place else integer, value)


def _data(program: Program, node: Node) -> Collection[int]:
    """The numbers of a node's operands that are no tensors of the program; none if one operand is a number or such a tensor."""
    operands = node.args[:1] if functional(node.op) in LAYERS | _MOVES | _IDENTITIES | {"cat", "avg_pool2d"} else node.args[:2]
    operands = tuple(operands[0]) if operands and isinstance(operands[0], list | tuple) else operands
    if not all(isinstance(v, Ref) and program.tensor_name(v) is None for v in operands):
        return ()
    return [v.index for v in operands]
