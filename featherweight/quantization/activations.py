"""Quantized activations: four ordinary operations in a program, which train, save and deploy like any other.

A quantizer is clamp(round(value / step), low, high) · step, with the step as a parameter without axes. In train mode the round
passes gradients straight through, so that training learns the steps (LSQ, Esser et al., ICLR 2020). A zero point is in the
bounds: values are integer multiples of the step, and zero is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.capture import tensors_of
from featherweight.graph.functions import functional
from featherweight.graph.program import Node, Program, ProgramModule, Ref, TensorSpec, map_refs
from featherweight.quantization.calibration import collect
from featherweight.quantization.placement import CLIPS, LAYERS, Place, find_places
from featherweight.quantization.ranges import RANGES, Scheme
from featherweight.training.loaders import Loader

__all__ = ["Quantizer", "find_quantizers", "place_quantizers"]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A quantizer found in a program.

    Attributes:
        position: of its first node; it has four in a row.
        source: what it quantizes.
        step: the name of the tensor that holds its step.
        low: the least integer.
        high: the greatest integer.
    """

    position: int
    source: Ref
    step: str
    low: int
    high: int

    def nodes(self, step: Ref, first: int) -> tuple[Node, Node, Node, Node]:
        """The operations that compute it.

        Args:
            step: the step's value.
            first: the number of the first of them.

        Returns:
            Four nodes; the value of the last is the quantized one.
        """
        return (
            Node("div.Tensor", (self.source, step)),
            Node("round", (Ref(first),)),
            Node("clamp", (Ref(first + 1), self.low, self.high)),
            Node("mul.Tensor", (Ref(first + 2), step)),
        )


def find_quantizers(program: Program) -> list[Quantizer]:
    """The quantizers in a program, in its order.

    Args:
        program: any; it need not have been made by `place_quantizers`.

    Returns:
        What is there: division by a tensor of the program, round, clamp between integers around zero, multiplication by the
        same tensor, one after the other. Whoever gets the program from elsewhere checks that the tensor is a scalar.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.step = torch.nn.Parameter(torch.tensor(0.5))
        ...     def forward(self, x):
        ...         return torch.clamp(torch.round(x / self.step), -4, 3) * self.step
        >>> from featherweight.graph import capture
        >>> find_quantizers(capture(Net(), torch.zeros(1, 2)))
        [Quantizer(position=0, source=Ref(index=0), step='step', low=-4, high=3)]
    """
    found = []
    for position in range(len(program.nodes) - 3):
        four = program.nodes[position : position + 4]
        if [node.op for node in four] != ["div.Tensor", "round", "clamp", "mul.Tensor"]:
            continue
        bounds = four[2].args[1:]
        name = program.tensor_name(four[0].args[1])
        if name is None or len(bounds) != 2 or not all(isinstance(bound, int) for bound in bounds):
            continue
        quantizer = Quantizer(position, four[0].args[0], name, *bounds)
        if bounds[0] <= 0 < bounds[1] and four == quantizer.nodes(four[0].args[1], program.first_node + position):
            found.append(quantizer)
    return found


def place_quantizers(
    module: ProgramModule, *, calibrate: Loader, bits: int = 8, ranges: str = "minmax", symmetric: bool = False
) -> ProgramModule:
    """Quantizes the activations of a network where int8 kernels need them: see `placement.find_places`.

    Each value has one quantizer, which all share that read it; values that only move (reshape, transpose, max pooling) have the
    step of what they were. The zero point of values that are never negative is zero. A ReLU or ReLU6 whose work the quantizer's
    clamp does is left out.

    Args:
        module: a network with one input, its batch norms folded (`graph.rewrite`), its weights plain; it is not changed.
        calibrate: batches of (inputs, targets), of which the inputs count; a few hundred samples are enough.
        bits: in [2, 8].
        ranges: a row of `RANGES`: which interval the grid of each value covers.
        symmetric: whether values of both signs get as many integers below zero as above, or as many as their range says.

    Returns:
        A new network, in the mode of the old one, with the steps as parameters besides: "conv1.output_step" for what the layer
        with "conv1.weight" gives, "x.step" for input "x".

    Raises:
        RequestError: an option is out of range; there are no data; or activations are not finite.
        DataError: the data are empty, do not fit the network, or are not finite.

    Example:
        >>> from featherweight.graph.capture import to_module
        >>> net = to_module(torch.nn.Linear(2, 1), torch.zeros(1, 2))
        >>> quantized = place_quantizers(net, calibrate=[(torch.tensor([[0.0, 2.55]]), torch.zeros(1))])
        >>> dict(quantized.named_parameters())["input.step"]
        Parameter containing:
        tensor(0.0100, requires_grad=True)
    """
    check("bits", bits, "an integer in [2, 8]", isinstance(bits, int) and 2 <= bits <= 8)
    choose = look_up(RANGES, ranges, "ranges")
    program = module.program
    places = find_places(program)
    if not places:
        raise RequestError("a network to quantize needs a convolution or a linear layer with a weight of its own, got none")
    histograms = collect(module, calibrate, {place.like for place in places})
    names = _step_names(program, sorted(histograms))
    grids = {}
    for value, histogram in histograms.items():
        scheme = Scheme(bits, symmetric and histogram.least < 0)
        points, counts = histogram.points()
        step, low, high = scheme.grid(*choose(points, counts, scheme))
        grids[value] = _Grid(names[value], step.float().reshape(()), int(low), int(high))
    return _insert(module, places, grids)


@dataclass(frozen=True, slots=True)
class _Grid:
    name: str
    step: torch.Tensor
    low: int
    high: int


def _insert(module: ProgramModule, places: list[Place], grids: Mapping[int, _Grid]) -> ProgramModule:
    """The network with quantizers at the places."""
    program = module.program
    steps = [TensorSpec(grid.name, "parameter") for grid in grids.values()]
    writer = _Writer(program, len(steps))
    step_of = {value: Ref(program.first_node + i) for i, value in enumerate(grids)}
    at = {place.value: place for place in places}
    for value in (*range(len(program.inputs)), *range(program.first_node, program.first_node + len(program.nodes))):
        place = at.get(value)
        if value >= program.first_node:
            node = program.nodes[value - program.first_node]
            if place is not None and place.clip and _is_redundant(node, grids[place.like]):
                writer.drop(value, node.args[0])
            else:
                writer.copy(value, node)
        if place is not None:
            writer.quantize(place, grids[place.like], step_of[place.like])
    output = map_refs(program.output, lambda ref: writer.refs[ref.index])
    rewritten = replace(program, tensors=(*program.tensors, *steps), nodes=tuple(writer.nodes), output=output)
    tensors = {name: tensor.clone() for name, tensor in tensors_of(module, program).items()}
    result = ProgramModule(rewritten, tensors | {grid.name: grid.step for grid in grids.values()})
    for name, parameter in module.named_parameters():
        result.get_parameter(name).requires_grad_(parameter.requires_grad)
    return result.train(module.training)


class _Writer:
    """Writes a program anew, with tensors and nodes that the old one had not."""

    def __init__(self, program: Program, tensors: int) -> None:
        self.nodes: list[Node] = []
        self.refs = {index: Ref(index) for index in range(program.first_node)}  # old number: what is read in its place now
        self._first = program.first_node + tensors
        self._old_first = program.first_node
        self._private: dict[tuple[int, int], Ref] = {}  # (reader's old position, old number): the same for one reader

    def copy(self, value: int, node: Node) -> None:
        """Appends an old node, which gave `value`."""

        def now(ref: Ref) -> Ref:
            return self._private.get((value - self._old_first, ref.index), self.refs[ref.index])

        self.refs[value] = self._append(replace(node, args=map_refs(node.args, now), kwargs=map_refs(node.kwargs, now)))

    def drop(self, value: int, source: Ref) -> None:
        """Leaves out the node that gave `value`: its readers read `source`."""
        self.refs[value] = self.refs[source.index]

    def quantize(self, place: Place, grid: _Grid, step: Ref) -> None:
        """Appends a quantizer of the value at a place."""
        first = self._first + len(self.nodes)
        quantizer = Quantizer(len(self.nodes), self.refs[place.value], grid.name, grid.low, grid.high)
        for node in quantizer.nodes(step, first):
            quantized = self._append(node)
        if place.readers is None:
            self.refs[place.value] = quantized
        else:
            self._private.update({(reader, place.value): quantized for reader in place.readers})

    def _append(self, node: Node) -> Ref:
        self.nodes.append(node)
        return Ref(self._first + len(self.nodes) - 1)


def _is_redundant(node: Node, grid: _Grid) -> bool:
    """Whether a clip changes nothing, because the integers it leaves include all of the grid's."""
    name = functional(node.op).partition(".")[0]
    usual: dict[str, list[float | None]] = {"relu": [0, None], "relu6": [0, 6], "hardtanh": [-1, 1]}
    given = list(node.args[1:3])
    low, high = given + usual.get(name, [None, None])[len(given) :]
    step = grid.step.item()
    return (low is None or round(low / step) <= grid.low) and (high is None or round(high / step) >= grid.high)


def _step_names(program: Program, values: list[int]) -> dict[int, str]:
    """A name for the step of each value that is in use nowhere else: after the layer that gives it, or else the operation."""
    taken = {spec.name for spec in program.tensors}
    names = {}
    for value in values:
        stem = (
            program.inputs[value].name + ".step" if value < program.first_node else _layer_name(program, value) + "output_step"
        )
        number, name = 1, stem
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names[value] = name
    return names


def _layer_name(program: Program, value: int) -> str:
    """ "conv1." for what the layer with "conv1.weight" gives, perhaps clipped; "add." for a sum."""
    node = program.nodes[value - program.first_node]
    if functional(node.op).partition(".")[0] in CLIPS and node.args[0].index >= program.first_node:
        node = program.nodes[node.args[0].index - program.first_node]
    weight = program.tensor_name(node.args[1]) if node.op in LAYERS else None
    return weight.rpartition(".")[0] + "." if weight else node.op.replace(".", "_") + "."
