"""Residual branches: parts of a network without which it still runs, since what they add to is there without them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featherweight.graph.functions import functional, resolve_op
from featherweight.graph.ops import row_of
from featherweight.graph.program import Node, Program, Ref, refs_in
from featherweight.graph.rewrite import readers_of, rewrite, without_unneeded

__all__ = ["Residual", "find_residuals", "without_branches"]

_SUMS = frozenset({"add.Tensor", "add_.Tensor"})


@dataclass(frozen=True)
class Residual:
    """A sum `skip + branch`, of which the branch may go.

    Attributes:
        name: of its last layer ("layer1.0.conv2"); a branch around another one that ends with the same layer is "…#2".
        total: the value of the sum, by its number in the program.
        skip: what is left of it without the branch.
        branch: the value that is added.
        tensors: the names of the tensors that only the branch reads.
    """

    name: str
    total: int
    skip: Ref
    branch: Ref
    tensors: tuple[str, ...]


def find_residuals(program: Program, shapes: Sequence[Any]) -> tuple[Residual, ...]:
    """The residual branches of a network, in the order they run (He et al., CVPR 2016, eq. 1: y = F(x) + x).

    A branch is one of two summands of equal shape, together with all that is computed for it alone, weights too. Where both
    summands have weights of their own (a projection beside the block), the one with more layers is the branch; of equals, the
    later one.

    Args:
        program: the network.
        shapes: of each value, as `infer_shapes` gives them.

    Returns:
        The branches. They may be nested: of a sum inside a branch both are listed.

    Example:
        >>> import torch
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> from featherweight.graph.shapes import infer_shapes
        >>> net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> program = capture(net, torch.zeros(1, 3, 8))
        >>> [found.name for found in find_residuals(program, infer_shapes(program, tensors_of(net, program)))]
        ['self_attn.out_proj', 'linear2']
    """
    behind = _all_behind(program)
    end = program.first_node + len(program.nodes)  # the output reads, too
    readers: dict[int, set[int]] = {index: set() for index in range(end)}
    for index, positions in readers_of(program).items():
        readers[index] = {end if position < 0 else program.first_node + position for position in positions}
    found: list[Residual] = []
    for position, node in enumerate(program.nodes):
        total = program.first_node + position
        if node.op not in _SUMS:
            continue
        operands = [v for v in node.args[:2] if isinstance(v, Ref) and shapes[v.index].shape == shapes[total].shape]
        if len(operands) < 2:
            continue
        ends = (1,) if node.kwargs.get("alpha", 1) != 1 else (0, 1)  # a skip that is scaled is not what is left
        sides = [_branch(program, behind, readers, total, operands[1 - i], operands[i]) for i in ends]
        best = max((side for side in sides if side), key=lambda side: side[0], default=None)
        if best:
            same = sum(other.name.partition("#")[0] == best[1].name for other in found)
            found.append(replace(best[1], name=f"{best[1].name}#{same + 1}") if same else best[1])
    return tuple(found)


def without_branches(program: Program, residuals: Collection[Residual]) -> Program:
    """The program in which these sums are what is left without their branches; what nothing reads any more is gone.

    Args:
        program: the network.
        residuals: of this program.

    Returns:
        The smaller program.
    """
    skips = {residual.total: residual.skip for residual in residuals}
    changes: dict[int, Node | Ref] = dict(enumerate(_harmless(program, set(skips))))
    changes |= {total - program.first_node: skip for total, skip in skips.items()}
    return without_unneeded(rewrite(program, changes))


def _branch(
    program: Program, behind: Sequence[frozenset[int]], readers: Mapping[int, set[int]], total: int, skip: Ref, end: Ref
) -> tuple[tuple[int, int], Residual] | None:
    """The summand `end` as a branch beside `skip`, after its number of layers; None if it is none."""
    alone = (behind[end.index] | {end.index}) - behind[skip.index] - {skip.index}
    nodes = {index for index in alone if index >= program.first_node}
    if end.index not in nodes or any(readers[index] - nodes - {total} for index in nodes):
        return None
    first = len(program.inputs)
    tensors = sorted(index for index in alone if first <= index < program.first_node and readers[index] <= nodes)
    names = tuple(program.tensors[index - first].name for index in tensors)
    layers = sorted(index for index in nodes if row_of(program.nodes[index - program.first_node].op).macs is not None)
    weights = [index for index in tensors if readers[index] & set(layers)]
    if not weights:
        return None
    last = max(weights, key=lambda index: (max(readers[index]), -index))
    weight = program.tensors[last - first].name
    name = weight.rpartition(".")[0] or weight
    return (len(layers), end.index), Residual(name, total, skip, end, names)


def _harmless(program: Program, totals: set[int]) -> Iterator[Node]:
    """The nodes, where those that write to one of these sums, or to a view of one, give a new tensor instead.

    A sum is nobody else's; what is left of it without the branch may be an input of the network, or be read elsewhere.
    """
    shared = set(totals)
    for number, node in enumerate(program.nodes, start=program.first_node):
        schema = getattr(resolve_op(node.op), "_schema", None)  # a Python operator has none
        aliases = {
            argument.alias_info.is_write
            for argument, value in zip(schema.arguments if schema else (), node.args, strict=False)
            if argument.alias_info and any(ref.index in shared for ref in refs_in(value))
        }
        if True in aliases:
            node = replace(node, op=functional(node.op))
        elif aliases or (node.op == "py.getitem" and node.args[0].index in shared):  # one of the parts of a split
            shared.add(number)
        yield node


def _all_behind(program: Program) -> list[frozenset[int]]:
    """For each value all those it is computed from."""
    behind: list[frozenset[int]] = [frozenset()] * program.first_node
    for node in program.nodes:
        direct = {ref.index for ref in node.refs}
        behind.append(frozenset(direct).union(*(behind[index] for index in direct)))
    return behind
