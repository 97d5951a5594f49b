"""Multiply-accumulates, from the op table."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from featherweight.graph.ops import row_of
from featherweight.graph.program import Program, map_refs
from featherweight.graph.shapes import infer_shapes

__all__ = ["count_macs", "node_macs"]


def count_macs(program: Program, tensors: Mapping[str, torch.Tensor]) -> int:
    """Multiply-accumulates of one sample: convolutions, linear layers, matrix products and attention, zeros counted as work.

    Biases, normalisations, activations and pooling are not counted, as is usual in the field.

    Args:
        program: the network.
        tensors: its tensors by name; only shapes are read.

    Returns:
        The count for a batch of one.

    Raises:
        UnsupportedOpError: an operation's shapes do not follow from its inputs.

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> layer = torch.nn.Conv2d(3, 8, 3)
        >>> program = capture(layer, torch.zeros(1, 3, 10, 10))
        >>> count_macs(program, tensors_of(layer, program)) == 8 * 8 * 8 * 3 * 3 * 3
        True
    """
    return sum(node_macs(program, tensors))


def node_macs(program: Program, tensors: Mapping[str, torch.Tensor]) -> list[int]:
    """Multiply-accumulates of one sample in each node, as `count_macs` counts them.

    Args:
        program: the network.
        tensors: its tensors by name; only shapes are read.

    Returns:
        A count for each of the program's nodes.

    Raises:
        UnsupportedOpError: an operation's shapes do not follow from its inputs.

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> program = capture(net, torch.zeros(1, 3))
        >>> node_macs(program, tensors_of(net, program))
        [24, 0, 16]
    """
    values = infer_shapes(program, tensors, batch=1)
    found = []
    for node, out in zip(program.nodes, values[program.first_node :], strict=True):
        count = row_of(node.op).macs
        found.append(0 if count is None else count(map_refs(node.args, lambda ref: values[ref.index]), out))
    return found
