"""A program with several answers, cut into stages: each holds what one answer needs beyond those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.program import Input, Node, Program, Ref
from featherweight.graph.shapes import infer_shapes

__all__ = ["Stage", "find_varying", "split_stages"]


@dataclass(frozen=True)
class Stage:
    """What one answer needs beyond the answers before it.

    Values are known by their numbers in the whole program.

    Attributes:
        program: the part; its output is the answer, then `gives`.
        takes: the values that are its inputs, in order.
        gives: the values it makes for later stages.
        alive: all values, inputs of the network too, that later stages still need when this one is done.
        head: positions of the nodes in `program` that nothing but the answer needs.
        nodes: where the program's nodes come from, by positions in the whole program; -1 is a batch size read anew.
    """

    program: Program
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    alive: tuple[int, ...]
    head: frozenset[int]
    nodes: tuple[int, ...]


def split_stages(program: Program, tensors: Mapping[str, torch.Tensor]) -> tuple[Stage, ...]:
    """Cuts a program into stages, one for each of its answers, that together run every operation once.

    What depends on parameters or on the batch size alone is computed in every stage that needs it, so that a stage may be given
    fewer samples than the one before.

    Args:
        program: its output is a sequence of answers, each the value of a node, from the first to the last.
        tensors: its tensors by name; only shapes are read.

    Returns:
        The stages, in order.

    Raises:
        RequestError: there are fewer than two answers, or one of them is no value of its own.
        UnsupportedOpError: a value that a later stage needs has no sample for each of the batch on axis 0.

    Example:
        >>> from featherweight.graph.program import TensorSpec
        >>> nodes = (Node("linear", (Ref(0), Ref(1))), Node("relu", (Ref(0),)), Node("linear", (Ref(3), Ref(2))))
        >>> names = (TensorSpec("first", "parameter"), TensorSpec("last", "parameter"))
        >>> whole = Program((Input("x", (None, 3), torch.float32),), names, nodes, (Ref(3), Ref(5)))
        >>> first, last = split_stages(whole, {"first": torch.zeros(3, 3), "last": torch.zeros(3, 3)})
        >>> first.nodes, last.nodes, first.alive, last.takes
        ((0,), (2,), (3,), (3,))
    """
    return _Splitter(program, tensors).stages()


def find_varying(program: Program) -> list[bool]:
    """Whether each value depends on what the inputs hold, and not on the parameters and the batch size alone.

    Args:
        program: any.

    Returns:
        One entry for each value, in the program's numbering.
    """
    varying = [i < len(program.inputs) for i in range(program.first_node)]
    for node in program.nodes:
        varying.append(not node.op.startswith("sym_size") and any(varying[ref.index] for ref in node.refs))
    return varying


class _Splitter:
    """The whole program, and of each of its values when it is needed first."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        self.program = program
        self.varying = find_varying(program)
        self.sizes = [infer_shapes(program, tensors, batch) for batch in (2, 3)]
        answers = program.output if isinstance(program.output, tuple | list) else (program.output,)
        if len(answers) < 2 or not all(isinstance(a, Ref) and a.index >= program.first_node for a in answers):
            raise RequestError(
                "stages are cut between the answers of a network, which must be two or more tensors that it computes, "
                f"got {len(answers)}"
            )
        self.answers = [answer.index for answer in answers]
        self.first_needed = self._first_needed()

    def stages(self) -> tuple[Stage, ...]:
        numbers = [self._numbers_of(k) for k in range(len(self.answers))]
        takes = [self._taken(k, own) for k, own in enumerate(numbers)]
        found = []
        for k, own in enumerate(numbers):
            later = {index for taken in takes[k + 1 :] for index in taken}
            alive = sorted(i for i in later if i < self.program.first_node or self.first_needed[i] <= k)
            for index in alive:
                self._check_batch(index)
            found.append(self._stage(k, own, takes[k], alive))
        return tuple(found)

    def _first_needed(self) -> dict[int, int]:
        """For each node that is needed, by its value's number, the first answer that needs it."""
        first = self.program.first_node
        needed: dict[int, int] = {}
        for k, answer in enumerate(self.answers):
            waiting = [answer]
            while waiting:
                index = waiting.pop()
                if index >= first and index not in needed:
                    needed[index] = k
                    waiting += [ref.index for ref in self.program.nodes[index - first].refs]
        for index in sorted(needed):  # parts of a list are made with it, so that what is handed on are tensors
            node = self.program.nodes[index - first]
            if node.op == "py.getitem" and node.args[0].index in needed:
                needed[index] = min(needed[index], needed[node.args[0].index])
        return needed

    def _numbers_of(self, k: int) -> list[int]:
        """The values of stage k, in order: its own, and what they need that depends on nothing but parameters and sizes."""
        first = self.program.first_node
        waiting = [i for i, at in self.first_needed.items() if at == k and self.varying[i]]
        own: set[int] = set()
        while waiting:
            index = waiting.pop()
            if index in own:
                continue
            own.add(index)
            node = self.program.nodes[index - first]
            if not node.op.startswith("sym_size"):
                waiting += [ref.index for ref in node.refs if ref.index >= first and not self.varying[ref.index]]
        return sorted(own)

    def _taken(self, k: int, own: Sequence[int]) -> list[int]:
        """The values that stage k reads and does not make, increasing."""
        mine, first = set(own), self.program.first_node
        nodes = [self.program.nodes[i - first] for i in own]
        read = {ref.index for node in nodes if k == 0 or not node.op.startswith("sym_size") for ref in node.refs}
        if self.answers[k] not in mine:
            raise RequestError(f"answer {k} of the network must be a value of its own, but an earlier answer needs it")
        return sorted(i for i in read - mine if self.varying[i])

    def _check_batch(self, index: int) -> None:
        for size, values in zip((2, 3), self.sizes, strict=True):
            value = values[index]
            if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] != size:
                form = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise UnsupportedOpError(
                    f"what an exit hands on must have the samples on axis 0, so that some of them can leave; "
                    f"{self._where(index)} gives {form} for a batch of {size}: put the exit elsewhere"
                )

    def _where(self, index: int) -> str:
        if index < self.program.first_node:
            return f"input {self.program.inputs[index].name!r}"
        node = self.program.nodes[index - self.program.first_node]
        return f"{node.op} at {node.origin}" if node.origin else node.op

    def _stage(self, k: int, own: Sequence[int], takes: Sequence[int], alive: Sequence[int]) -> Stage:
        whole, first = self.program, self.program.first_node
        names = sorted(
            {ref.index for i in own for ref in whole.nodes[i - first].refs if len(whole.inputs) <= ref.index < first}
        )
        new = {old: Ref(i) for i, old in enumerate([*takes, *names])}
        start, new[-2] = len(new), Ref(0)
        nodes: list[Node] = []
        origins: list[int] = []
        for index in own:
            node = whole.nodes[index - first]
            for part in self._anew(index) if k and node.op.startswith("sym_size") else (node,):
                new[-1] = Ref(start + len(nodes) - 1)
                nodes.append(part.renumbered(lambda ref: new[ref.index]))
                origins.append(index - first if part is node else -1)
            new[index] = Ref(start + len(nodes) - 1)
        gives = tuple(i for i in alive if i in set(own))
        part_program = Program(
            tuple(self._input(i) for i in takes),
            tuple(whole.tensors[i - len(whole.inputs)] for i in names),
            tuple(nodes),
            tuple(new[i] for i in (self.answers[k], *gives)),
            {
                name: t
                for name, t in whole.constants.items()
                if name in {whole.tensors[i - len(whole.inputs)].name for i in names}
            },
        )
        head = _without_use(part_program, [new[i] for i in gives])
        return Stage(part_program, tuple(takes), gives, tuple(alive), head, tuple(origins))

    def _anew(self, index: int) -> tuple[Node, ...]:
        """Nodes that read a size, a multiple of the batch's, from the first of a stage's inputs."""
        two, three = (values[index] for values in self.sizes)
        if two % 2 or three * 2 != two * 3:
            raise UnsupportedOpError(
                f"a size read after an exit must be a multiple of the batch's; {self._where(index)} is not"
            )
        size = Node("sym_size.int", (Ref(-2), 0))
        return (size,) if two == 2 else (size, Node("py.mul", (Ref(-1), two // 2)))

    def _input(self, index: int) -> Input:
        if index < len(self.program.inputs):
            return self.program.inputs[index]
        value = self.sizes[0][index]
        return Input(f"value_{index}", (None, *value.shape[1:]), value.dtype)


def _without_use(program: Program, handed_on: Sequence[Ref]) -> frozenset[int]:
    """The positions of nodes that none of these values needs."""
    needed = {ref.index for ref in handed_on}
    for position in reversed(range(len(program.nodes))):
        if program.first_node + position in needed:
            needed |= {ref.index for ref in program.nodes[position].refs}
    return frozenset(p for p in range(len(program.nodes)) if program.first_node + p not in needed)
