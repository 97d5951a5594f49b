"""What the channels of a network do on data: statistics of the values that its contractions read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.graph.cutting import Anatomy
from featherweight.graph.functions import functional, resolve_op
from featherweight.graph.groups import Group
from featherweight.graph.labels import Labelled
from featherweight.graph.ops import row_of
from featherweight.graph.program import Node, Program, ProgramModule, refs_in
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["channel_activity"]


@dataclass(frozen=True)
class _Look:
    """A value to look at: its number, one of its axes, and the channel that each index of the axis belongs to, -1 for none."""

    value: int
    axis: int
    channels: torch.Tensor


def channel_activity(
    groups: Sequence[Group], network: Anatomy, evidence: Evidence, *, measure: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """The mean of a measure over all activations of each channel, on data, in eval mode.

    The activations of a channel are its entries in the outputs of the last elementwise operations (a nonlinearity, a residual
    sum) before each contraction (convolution, linear, matmul, attention) that reads it, so before any pooling; or, where
    nothing elementwise lies between two contractions, in what the second one reads. The labels of the program's values say
    which entries these are, in any architecture. A channel that no contraction reads is looked at in every value that has it.

    Args:
        groups: some of the network's.
        network: runs on the data.
        evidence: with data, of which only the inputs count.
        measure: from a tensor of activations to one number for each.

    Returns:
        For each group a tensor of shape (group.size,).

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> net[0].weight.data, net[0].bias.data = torch.eye(2), torch.zeros(2)
        >>> network = study(net, torch.zeros(1, 2))
        >>> evidence = Evidence(net, [(torch.tensor([[1.0, -1.0], [3.0, 1.0]]), torch.zeros(2))])
        >>> channel_activity(network.coupling.groups, network, evidence, measure=torch.abs)[0].tolist()
        [2.0, 0.5]
    """
    watched = _WatchedModule(network, _looks(groups, network), measure, sum(group.size for group in groups))
    with torch.no_grad():
        for inputs, _ in batches_of(evidence):
            watched(inputs)
    return list(watched.means().split([group.size for group in groups]))


class _WatchedModule(ProgramModule):
    """Runs a program, and measures what it looks at just before a node runs, for a later one may change it in place."""

    def __init__(
        self,
        network: Anatomy,
        looks: Mapping[int, Sequence[_Look]],
        measure: Callable[[torch.Tensor], torch.Tensor],
        channels: int,
    ) -> None:
        super().__init__(network.program, network.tensors)
        self.eval()
        self._looks, self._measure = looks, measure
        self._sums, self._counts = torch.zeros(2, channels, dtype=torch.float64)

    def means(self) -> torch.Tensor:
        """For each channel the mean of all that was measured, 0 if nothing was."""
        means: torch.Tensor = self._sums / self._counts.clamp(min=1)
        return means

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        for look in self._looks.get(position, ()):
            lines = self._measure(values[look.value]).movedim(look.axis, 0)
            lines = lines.reshape(len(lines), -1)
            known = look.channels >= 0
            sums = lines.sum(dim=1, dtype=torch.float64).cpu()[known]
            self._sums.index_add_(0, look.channels[known], sums)
            self._counts.index_add_(0, look.channels[known], torch.full_like(sums, lines.shape[1]))
        return super()._run(position, node, values)


def _looks(groups: Sequence[Group], network: Anatomy) -> Mapping[int, list[_Look]]:
    """Which values to look at just before each node runs."""
    program = network.program
    channel_of = _channel_of(groups, network)
    looks: dict[int, list[_Look]] = defaultdict(list)
    for index, position in _activations(program).items():
        looks[position] += _look(network, index, channel_of)
    covered = [look.channels.flatten() for together in looks.values() for look in together]
    left = channel_of.masked_fill(torch.isin(channel_of, torch.cat([channel_of.new_empty(0), *covered])), -1)
    if bool((left >= 0).any()):
        for position in range(1, len(program.nodes)):
            looks[position] += _look(network, program.first_node + position - 1, left)
    return looks


def _activations(program: Program) -> dict[int, int]:
    """The values to look at, each with the position of the node before which it is to be done.

    What a contraction reads is followed back to the elementwise operations it comes from, whose results are looked at when they
    are made; without one, it is looked at when it is read.
    """
    first = program.first_node
    found: dict[int, int] = {}
    for position, node in enumerate(program.nodes):
        if row_of(node.op).macs is not None:
            for ref in [ref for ref in refs_in(node.args) if ref.index >= first]:
                sources = _elementwise_before(program, ref.index)
                for index in sources:
                    found.setdefault(index, index - first + 1)
                if not sources:
                    found.setdefault(ref.index, position)
    return found


def _elementwise_before(program: Program, index: int) -> set[int]:
    """The values that this one was moved, pooled or normalised from, back to elementwise operations, not past contractions."""
    found, seen, todo = set(), set(), [index]
    while todo:
        index = todo.pop()
        if index in seen or index < program.first_node:
            continue
        seen.add(index)
        node = program.nodes[index - program.first_node]
        if _is_elementwise(node):
            found.add(index)
        elif row_of(node.op).macs is None:
            todo += [ref.index for ref in refs_in(node.args)]
    return found


# Elementwise operations that torch does not tag as such.
_UNTAGGED = frozenset({"hardswish", "prelu"})


def _is_elementwise(node: Node) -> bool:
    name = functional(node.op)  # not every in-place form has the tag
    return name.partition(".")[0] in _UNTAGGED or torch.Tag.pointwise in getattr(resolve_op(name), "tags", ())


def _channel_of(groups: Sequence[Group], network: Anatomy) -> torch.Tensor:
    """For each label the number of its channel, counted through the groups, or -1."""
    channel_of = torch.full((network.coupling.label_count,), -1)
    start = 0
    for group in groups:
        for key, indices in group.members.items():
            labels = network.coupling.axes[key][indices]
            channel_of[labels] = torch.arange(start, start + group.size)[:, None].expand(labels.shape)
        start += group.size
    return channel_of


def _look(network: Anatomy, index: int, channel_of: torch.Tensor) -> list[_Look]:
    """A look at a value for each of its axes along which some of the channels lie."""
    value = network.coupling.values[index]
    lines = value.lines if isinstance(value, Labelled) else {}
    looks = [_Look(index, axis, channel_of[line]) for axis, line in lines.items()]
    return [look for look in looks if bool((look.channels >= 0).any())]
