"""Where a network splits its channels into attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featherweight.graph.ops import row_of
from featherweight.graph.program import Program, refs_in

__all__ = ["find_heads"]

_ATTENTION = frozenset({"scaled_dot_product_attention", "matmul", "einsum"})
_SPLITS = frozenset({"view", "reshape", "unflatten.int", "reshape_as", "view_as"})


def find_heads(program: Program, shapes: Sequence[Any]) -> dict[int, int]:
    """The operations that split channels into attention heads.

    An attention multiplies computed values of shape (batch, heads, positions, features); going back from each to the layer that
    made it, through operations that only move or scale, the reshapes on the way may split the heads off.

    Args:
        program: the network.
        shapes: of each value, as `infer_shapes` gives them.

    Returns:
        For each such reshape its position among the nodes, and the number of heads.
    """
    found: dict[int, int] = {}
    for node in program.nodes:
        if node.op in _ATTENTION:
            operands = [ref.index for ref in refs_in(node.args[:3])]  # a mask may have any shape
            if all(index >= program.first_node and shapes[index].dim() >= 4 for index in operands):
                for index in operands:
                    _walk(program, index, int(shapes[index].shape[-3]), found)
    return found


def _walk(program: Program, start: int, heads: int, found: dict[int, int]) -> None:
    todo, seen = [start], set()
    while todo:
        index = todo.pop()
        if index in seen or index < program.first_node or heads == 1:
            continue
        seen.add(index)
        node = program.nodes[index - program.first_node]
        if row_of(node.op).macs is not None:
            continue  # it multiplies and adds: a layer
        if node.op in _SPLITS:
            found.setdefault(index - program.first_node, heads)
        todo += [ref.index for ref in refs_in(node.args)]
