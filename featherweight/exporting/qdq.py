"""Quantized networks in ONNX: QuantizeLinear and DequantizeLinear where the program quantizes, bytes for weights on grids.

This is the form that ONNX Runtime fuses into its int8 kernels. A quantizer's four operations go through torch.onnx as the one
multiplication that they end with; in the finished graph the two standard operations take its place.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featherweight.graph.capture import tensors_of
from featherweight.graph.program import Node, Program, ProgramModule, tensor_called
from featherweight.quantization.activations import find_quantizers
from featherweight.quantization.grid import FoundGrid, find_grid

if TYPE_CHECKING:
    import onnx

__all__ = ["QuantizedModule", "in_floats", "write_integers"]

log = logging.getLogger(__name__)

_CLIPS = frozenset({"Relu", "Clip"})


class _Passing(ProgramModule):
    """Runs a program in which some operations hand on their first operand."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor], passed: Collection[int]) -> None:
        super().__init__(program, tensors)
        self._passed = frozenset(passed)

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        return values[node.args[0].index] if position in self._passed else super()._run(position, node, values)


class QuantizedModule(_Passing):
    """Runs a program for torch.onnx, with each quantizer of at most 8 bits as one multiplication by its step.

    Args:
        program: what to run.
        tensors: a tensor for each of `program.tensors`, by name.

    Attributes:
        bounds: the least and greatest integer of those quantizers, by the name of their step.
    """

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        bounds: dict[str, tuple[int, int]] = {}
        passed: set[int] = set()
        for found in find_quantizers(program):
            in_bytes = found.high - found.low < 256 and tensors[found.step].shape == ()
            if in_bytes and bounds.setdefault(found.step, (found.low, found.high)) == (found.low, found.high):
                passed |= {found.position + i for i in range(3)}
        super().__init__(program, tensors, passed)
        self.bounds = bounds


class _InFloats(_Passing):
    """Runs a program whose quantizers do not round. Those of values that are not negative clip, as a ReLU or ReLU6 had done."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        found = [quantizer for quantizer in find_quantizers(program) if tensors[quantizer.step].dim() == 0]
        first = {quantizer.step: quantizer for quantizer in reversed(found)}  # later ones of the same step find it done
        ends = {q.position + 2: (0.0, q.high * tensors[q.step].item()) for q in first.values() if q.low == 0}
        super().__init__(program, tensors, {q.position + i for q in found for i in range(4)} - ends.keys())
        self._ends = ends

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        ends = self._ends.get(position)
        return super()._run(position, node, values) if ends is None else values[node.args[0].index].clamp(*ends)


def in_floats(net: ProgramModule) -> ProgramModule | None:
    """The network with its activations in floats; None if they are.

    Args:
        net: it is not changed, and its tensors are shared.

    Returns:
        What computes as `net` does, but for its quantizers: of these only clips are left that may stand for activations.

    Example:
        >>> from featherweight.graph.capture import to_module
        >>> in_floats(to_module(torch.nn.ReLU(), torch.zeros(1, 2))) is None
        True
    """
    if not any(tensor_called(net, quantizer.step).dim() == 0 for quantizer in find_quantizers(net.program)):
        return None
    return _InFloats(net.program, tensors_of(net, net.program)).eval()


def write_integers(model: onnx.ModelProto, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Writes what is quantized in a network as integers, in place.

    A layer that reads a quantized value, and whose weight lies on a grid of 8 bits (`find_grid`, one step for each output),
    gets its weight as int8 and its bias as int32, in steps of input and weight, both through DequantizeLinear. Where only the
    weight is quantized, it is a cast and a multiplication, which ONNX Runtime does once, when it loads the network: it would
    run DequantizeLinear each time.

    Args:
        model: a network, as torch.onnx made it from a `QuantizedModule`.
        bounds: the quantizers of that, which are multiplications still.
    """
    writer = _Writer(model.graph, bounds)
    for node in model.graph.node:
        if node.op_type == "Mul" and node.input[1] in bounds:
            writer.quantizer(node)
        elif node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in writer.arrays:
            writer.layer(node)
        else:
            writer.nodes.append(node)
    writer.finish()


class _Writer:
    """The new nodes of a graph, and the constants they need."""

    def __init__(self, graph: onnx.GraphProto, bounds: Mapping[str, tuple[int, int]]) -> None:
        from onnx import numpy_helper

        self.graph, self.bounds = graph, bounds
        self.nodes: list[onnx.NodeProto] = []
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._old = set(self.arrays)
        self._step_of = {n.output[0]: n.input[1] for n in graph.node if n.op_type == "Mul" and n.input[1] in bounds}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._grids: dict[tuple[str, int], FoundGrid | None] = {}

    def quantizer(self, node: onnx.NodeProto) -> None:
        """The pair in place of a multiplication: through unsigned bytes, which kernels are fastest with.

        A grid of fewer bits is cut out of that of 8 by a clip, after which the pair stands again.
        """
        source, step = node.input
        low, high = self.bounds[step]
        zero = self._constant(f"{step}.zero_point_{-low}", np.array(-low, np.uint8))
        if high - low < 255:
            size = self.arrays[step]
            ends = [self._constant(f"{step}.{end}", size * size.dtype.type(end)) for end in (low, high)]
            name = f"{node.output[0]}_wide"
            self._pair(source, step, zero, name)
            source = f"{name}_clipped"
            self._node("Clip", [name, *ends], source)
        self._pair(source, step, zero, node.output[0])

    def layer(self, node: onnx.NodeProto) -> None:
        """A convolution or a matrix product, its weight as bytes if it is on a grid."""
        axis = _output_axis(node)
        name = node.input[1]
        if (name, axis) not in self._grids:
            self._grids[name, axis] = _grid_of_bytes(self.arrays[name], axis)
        found = self._grids[name, axis]
        step = self._step_of.get(node.input[0])
        in_integers = step is not None and (node.op_type != "Conv" or self._ends_quantized(node.output[0]))
        if found is None:
            if in_integers:
                log.info("%r computes in floats: the weight %r is on no grid of 8 bits", node.name, name)
        elif in_integers:
            steps = found.steps.flatten().numpy()
            node.input[1] = self._dequantized(name, found.integers.numpy().astype(np.int8), steps, axis)
            if len(node.input) > 2 and node.input[2] in self.arrays:
                self._write_bias(node, self.arrays[step] * steps)
        else:
            node.input[1] = self._multiplied(name, found, axis)
        self.nodes.append(node)

    def finish(self) -> None:
        """Puts nodes and constants into the graph."""
        from onnx import numpy_helper

        read = {name for node in self.nodes for name in node.input} | {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        made = [numpy_helper.from_array(a, name) for name, a in self.arrays.items() if name in read - self._old]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *made])

    def _ends_quantized(self, value: str) -> bool:
        """Whether all that reads a value is its quantizer, perhaps after a clip."""
        readers = self._readers.get(value, [])
        if len(readers) == 1 and readers[0].op_type in _CLIPS:
            readers = self._readers.get(readers[0].output[0], [])
        return len(readers) == 1 and readers[0].output[0] in self._step_of

    def _write_bias(self, node: onnx.NodeProto, steps: np.ndarray) -> None:
        integers = np.round(self.arrays[node.input[2]].astype(np.float64) / steps)
        if np.abs(integers).max() < 2**31:
            node.input[2] = self._dequantized(f"{node.output[0]}.bias", integers.astype(np.int32), steps, 0)

    def _dequantized(self, name: str, integers: np.ndarray, steps: np.ndarray, axis: int) -> str:
        """The name of a value that DequantizeLinear makes of constants."""
        result = f"{name}_dequantized"
        if f"{name}_integers" not in self.arrays:
            zeros = np.zeros(steps.shape, integers.dtype)  # optional in the standard, but matrix products do not fuse without
            arrays = {"integers": integers, "steps": steps, "zeros": zeros}
            inputs = [self._constant(f"{name}_{what}", array) for what, array in arrays.items()]
            self._node("DequantizeLinear", inputs, result, axis=axis)
        return result

    def _multiplied(self, name: str, found: FoundGrid, axis: int) -> str:
        """The name of a weight that ONNX Runtime computes from bytes when it loads the network."""
        result = f"{name}_multiplied"
        if f"{name}_bytes" not in self.arrays:
            integers = self._constant(f"{name}_bytes", found.integers.numpy().astype(np.int8))
            self._node("Cast", [integers], f"{name}_cast", to=1)
            self._node("Mul", [f"{name}_cast", self._constant(f"{name}_sizes", found.steps.numpy())], result)
        return result

    def _pair(self, source: str, step: str, zero: str, result: str) -> None:
        self._node("QuantizeLinear", [source, step, zero], f"{result}_integers")
        self._node("DequantizeLinear", [f"{result}_integers", step, zero], result)

    def _node(self, op: str, inputs: Sequence[str], result: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.arrays[name] = value
        return name


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that its outputs lie along."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _grid_of_bytes(weight: np.ndarray, axis: int) -> FoundGrid | None:
    """The grid of a float32 weight, if its integers are int8."""
    if weight.dtype != np.float32 or weight.ndim < 2:
        return None
    found = find_grid(torch.from_numpy(weight.copy()), axis)
    return found if found is not None and found.integers.min() >= -128 and found.integers.max() <= 127 else None
