"""Exits put on a network: where it can be cut, and what answers there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import nn

from featherweight.dynamic.exits import ExitNetwork
from featherweight.errors import RequestError, check, look_up
from featherweight.graph.capture import Example, capture, tensors_of, to_module
from featherweight.graph.cost import node_macs
from featherweight.graph.program import Program, ProgramModule, Ref, refs_in
from featherweight.graph.rewrite import graft
from featherweight.graph.shapes import infer_shapes
from featherweight.graph.stages import find_varying
from featherweight.training.mode import device_of

__all__ = [
    "HEADS",
    "Cut",
    "Head",
    "add_exits",
    "find_cuts",
    "grid_head",
    "has_channels_last",
    "make_head",
    "mean_head",
]

Head = Callable[[int, tuple[int, ...], int], nn.Module]
"""(channels, positions, classes) -> a module that makes logits (B, classes) of (B, channels, *positions)."""


def mean_head(channels: int, positions: tuple[int, ...], classes: int) -> nn.Module:
    """The mean over all positions, and a linear layer: for features of many channels.

    Args:
        channels: C.
        positions: sizes of the axes after the channels; () for (B, C).
        classes: number of logits.

    Returns:
        (B, C, *positions) -> (B, classes).

    Example:
        >>> mean_head(8, (5, 5), 10)(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(nn.Flatten(2), _Mean(), nn.Linear(channels, classes)) if positions else nn.Linear(channels, classes)


_GRID = 4


def grid_head(channels: int, positions: tuple[int, ...], classes: int) -> nn.Module:
    """Means over tiles of an image, at most 4 a side, and a linear layer: for few channels, where the place says much.

    Anything but an image gets a `mean_head`.

    Args:
        channels: C.
        positions: sizes of the axes after the channels; () for (B, C).
        classes: number of logits.

    Returns:
        (B, C, *positions) -> (B, classes).

    Example:
        >>> grid_head(8, (12, 12), 10)[-1].in_features  # 4 x 4 tiles of 3 x 3 pixels
        128
    """
    if len(positions) != 2:
        return mean_head(channels, positions, classes)
    rows, columns = positions
    tile = (math.ceil(rows / _GRID), math.ceil(columns / _GRID))
    left = (rows // tile[0]) * (columns // tile[1])
    return nn.Sequential(nn.AvgPool2d(tile), nn.Flatten(1), nn.Linear(channels * left, classes))


HEADS: Mapping[str, Head] = {"mean": mean_head, "grid": grid_head}
"""Heads by name."""


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-1)


class _ChannelsFirst(nn.Module):
    """Brings the channels of a sequence to axis 1, normalised: a sum of residual branches is of any size."""

    def __init__(self, channels: int, head: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x).movedim(-1, 1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cut:
    """A place for an exit: a value that all that is computed after it goes through.

    Attributes:
        value: its number in the program.
        name: of the last layer before it ("stage1.2.norm2").
        macs: of a sample, up to there.
        channels_last: whether its channels lie on the last axis, as in transformers, not on axis 1.
    """

    value: int
    name: str
    macs: int
    channels_last: bool


def find_cuts(program: Program, tensors: Mapping[str, torch.Tensor]) -> tuple[Cut, ...]:
    """The places where a network can get an exit, one after each layer at most, in the order they run.

    A value is one if it is the only one alive that inputs and parameters have gone into: everything later is computed from it,
    and from what needs no parameters (a mask of the input). Of those between two layers it is the last, a pooled one rather
    than the one before, as long as it has as many axes: not a flattened one.

    Args:
        program: a network with one output.
        tensors: its tensors by name; only shapes are read.

    Returns:
        The cuts; none after the last layer.

    Example:
        >>> from featherweight.graph.capture import tensors_of
        >>> from featherweight.nets import resnet20
        >>> net = resnet20()
        >>> program = capture(net, torch.zeros(1, 1, 28, 28))
        >>> [cut.name for cut in find_cuts(program, tensors_of(net, program))][:3]
        ['norm', 'stage1.0.norm2', 'stage1.1.norm2']
    """
    shapes, first = infer_shapes(program, tensors, batch=3), program.first_node
    macs = node_macs(program, tensors)
    alone = _alone(program)
    total, done, name = sum(macs), 0, ""
    found: dict[int, Cut] = {}
    for position, node in enumerate(program.nodes):
        done += macs[position]
        read = [n for n in map(program.tensor_name, node.refs) if n is not None]
        name = read[0].rpartition(".")[0] or read[0] if read else name
        value = shapes[first + position]
        if position not in alone or not _has_samples(value) or not 0 < done < total:
            continue
        earlier = found.get(done)
        if earlier is None or shapes[earlier.value].dim() == value.dim():
            found[done] = Cut(first + position, name, done, has_channels_last(program, position))
    return tuple(found.values())


def _alone(program: Program) -> set[int]:
    """The positions of nodes after which theirs is the only value alive that inputs and parameters have gone into."""
    varying, first = find_varying(program), program.first_node
    weighted = [len(program.inputs) <= index for index in range(first)]
    last = {ref.index: len(program.nodes) for ref in refs_in(program.output)}
    for position, node in enumerate(program.nodes):
        reads = {ref.index for ref in node.refs}
        weighted.append(any(weighted[index] for index in reads))
        for index in reads:
            last[index] = max(position, last.get(index, 0))
    alone, alive = set(), set()
    for position in range(len(program.nodes)):
        index = first + position
        if varying[index] and weighted[index] and index in last:
            alive.add(index)
        alive = {value for value in alive if last[value] > position}
        if alive == {index}:
            alone.add(position)
    return alone


def _has_samples(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[0] == 3 and value.is_floating_point()


_LAST = ("linear", "layer_norm", "rms_norm")
_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm")


def has_channels_last(program: Program, position: int) -> bool:
    """Whether a value has its channels on the last axis: the nearest layer before it that knows says so.

    Args:
        program: any.
        position: of the node that gives the value.

    Returns:
        True as in transformers, False as in convolutional networks, or where no layer says.
    """
    before = (node.op for node in reversed(program.nodes[: position + 1]))
    return next((op.startswith(_LAST) for op in before if op.startswith((*_LAST, *_FIRST))), False)


def add_exits(
    model: nn.Module,
    example: Example,
    *,
    at: Sequence[str | float] = (1 / 3, 2 / 3),
    heads: str | Head = "grid",
    confidence: str = "probability",
    seed: int = 0,
) -> ExitNetwork:
    """A copy of a network that may answer early, at exits between its layers.

    An exit is a small classifier on what the network has computed so far (Teerapittayanon, McDanel and Kung, "BranchyNet",
    ICPR 2016). The last answer is the network's own, bit for bit; the new heads have yet to be trained, with all the rest by
    `exit_loss`, or alone by `fit_heads`.

    Args:
        model: (B, …) -> (B, classes), any that can be captured; it is not changed.
        example: a batch of inputs.
        at: where: a share of the network's MACs in (0, 1), for the cut nearest to it, or the name of a module, for the one
            right after its last layer. At least one; of equal places there is one exit.
        heads: a name in `HEADS`, or a function (channels, positions, classes) -> module. On sequences, whose channels lie
            last, a layer norm comes first.
        confidence: a name in `CONFIDENCES`.
        seed: of the heads' weights.

    Returns:
        The network with exits, in the model's mode; tensors of head k are called "exits.k.…".

    Raises:
        RequestError: a place cannot be cut (the message says why, and what is near), or the model is no classifier.
        CaptureError: the model or a head cannot be captured.

    Example:
        >>> from featherweight.nets import lenet5
        >>> net = add_exits(lenet5(), torch.zeros(1, 1, 28, 28), at=["conv1", "conv2"])
        >>> [tuple(answer.shape) for answer in net.train()(torch.zeros(4, 1, 28, 28))]
        [(4, 10), (4, 10), (4, 10)]
    """
    make = look_up(HEADS, heads, "head") if isinstance(heads, str) else heads
    twin = to_module(model, example)
    program, tensors = twin.program, dict(twin.state_dict(keep_vars=True))
    values = infer_shapes(program, tensors, batch=3)
    classes = _classes(program, values)
    cuts = _places(program, tensors, at)
    prefix = "exits"
    while any(name.partition(".")[0] == prefix for name in tensors):
        prefix += "_"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [make_head(make, values[cut.value], cut.channels_last, classes) for cut in cuts]
    whole = replace(program, output=(program.output,))
    for number, (cut, head) in reversed(list(enumerate(zip(cuts, made, strict=True)))):
        position = cut.value - program.first_node  # nodes before the cut stay where they are: the last cut comes first
        addition = capture(head, torch.zeros(2, *values[cut.value].shape[1:]))
        named = {f"{prefix}.{number}.{name}": tensor for name, tensor in tensors_of(head, addition).items()}
        whole, answer = graft(whole, position, Ref(whole.first_node + position), addition, prefix=f"{prefix}.{number}.")
        whole = replace(whole, output=(answer, *whole.output))
        tensors |= {name: tensor.to(device_of(twin), values[cut.value].dtype) for name, tensor in named.items()}
    return ExitNetwork(ProgramModule(whole, tensors).train(model.training), confidence=confidence)


def make_head(make: Head, value: torch.Tensor, channels_last: bool, classes: int) -> nn.Module:
    """A head that fits a value of a network; where the channels lie last, a layer norm comes first.

    Args:
        make: the kind of head.
        value: (B, …), of which only the shape is read.
        channels_last: whether its channels lie on the last axis, not on axis 1.
        classes: the number of logits.

    Returns:
        (B, …) -> (B, classes).
    """
    shape = tuple(value.shape[1:])
    if channels_last and len(shape) > 1:
        return _ChannelsFirst(shape[-1], make(shape[-1], shape[:-1], classes))
    return make(shape[0], shape[1:], classes)


def _classes(program: Program, values: Sequence[object]) -> int:
    """How many classes the network knows."""
    answer = values[program.output.index] if isinstance(program.output, Ref) else None
    if not isinstance(answer, torch.Tensor) or answer.dim() != 2 or answer.shape[0] != 3:
        form = tuple(answer.shape) if isinstance(answer, torch.Tensor) else "several outputs, or none"
        raise RequestError(f"exits are for networks that answer with logits (B, classes), got {form} for a batch of 3")
    return answer.shape[1]


def _places(program: Program, tensors: Mapping[str, torch.Tensor], at: Sequence[str | float]) -> list[Cut]:
    """The cuts that are meant, in the order they run."""
    check("at", at, "at least one share or module name", not isinstance(at, str) and len(at) > 0)
    cuts = find_cuts(program, tensors)
    if not cuts:
        raise RequestError(
            "an exit needs a value that all that is computed later goes through, and this network has none before its last "
            "layer: it branches at once, or is one layer only"
        )
    macs = node_macs(program, tensors)
    chosen = []
    for place in at:
        if isinstance(place, str):
            chosen.append(_after(program, macs, cuts, place))
        else:
            check("a share of the MACs in at", place, "in (0, 1)", 0 < place < 1)
            chosen.append(min(cuts, key=lambda cut: abs(cut.macs - place * sum(macs))))
    return sorted(set(chosen), key=lambda cut: cut.value)


def _after(program: Program, macs: Sequence[int], cuts: Sequence[Cut], name: str) -> Cut:
    """The cut right after the last layer of a module."""
    last = -1
    for position, node in enumerate(program.nodes):
        read = [program.tensor_name(ref) or "" for ref in node.refs]
        if any(tensor.startswith(f"{name}.") for tensor in read):
            last = position
    modules = {spec.name.rpartition(".")[0] for spec in program.tensors}
    if last < 0:
        close = get_close_matches(name, modules, n=3, cutoff=0.4) or [cut.name for cut in cuts[:8]]
        raise RequestError(f"at must name modules with parameters, got {name!r}; there are {', '.join(sorted(close))}, …")
    done = sum(macs[: last + 1])
    for cut in cuts:
        if cut.macs == done:
            return cut
    if done == sum(macs):
        raise RequestError(
            f"an exit after {name!r} would be the network's last answer; the last place before is {cuts[-1].name!r}"
        )
    near = [cut.name for cut in (*[c for c in cuts if c.macs < done][-1:], *[c for c in cuts if c.macs > done][:1])]
    raise RequestError(
        f"an exit needs a value that all that is computed later goes through, but beside {name!r} runs a branch that is added "
        f"or joined later; near it can stand after {' or '.join(map(repr, near))}"
    )
