"""Cross-layer equalisation: scale moves from one layer's channels to the next layer, and the network computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from featherweight.graph.program import Node, Program, Ref
from featherweight.graph.rewrite import LINEAR_OPS, input_channels, output_channels, readers_of

__all__ = ["Pair", "equalize_layers", "find_pairs"]

# Operations on each channel by itself, for which f(s · x) = s · f(x) with s > 0.
_HOMOGENEOUS = frozenset(
    "relu relu_ leaky_relu leaky_relu_ dropout dropout_ feature_dropout max_pool1d max_pool2d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d flatten.using_ints".split()
)
_SWEEPS = 20
_DONE = 1e-3  # a sweep that changes no scale by more than this share was the last


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads what the first gives, channel by channel.

    Args:
        first: the position of the first layer's node.
        second: of the second's.
    """

    first: int
    second: int


def find_pairs(program: Program, tensors: Mapping[str, torch.Tensor]) -> list[Pair]:
    """The pairs of layers whose channels can be scaled against each other.

    Args:
        program: with its batch norms folded, or few are found.
        tensors: its tensors by name.

    Returns:
        The pairs in the program's order. Both have weights that nothing else reads.

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> program = capture(net, torch.zeros(1, 3))
        >>> find_pairs(program, tensors_of(net, program))
        [Pair(first=0, second=2)]
    """
    readers = readers_of(program)
    found = []
    for position, node in enumerate(program.nodes):
        if not _owns_its_tensors(program, node, readers):
            continue
        at = position
        while (next_reader := _only_reader(program, at, readers)) is not None:
            at = next_reader
            if program.nodes[at].op not in _HOMOGENEOUS:
                break
        pair = Pair(position, at)
        if at != position and _owns_its_tensors(program, program.nodes[at], readers) and _fits(program, pair, tensors):
            found.append(pair)
    return found


def equalize_layers(
    program: Program, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scales the channels between layers so that each has the same range in the layer that makes it as in that which reads it.

    Nagel, van Baalen, Blankevoort and Welling (ICCV 2019, equations 7 to 11): channel i of the first layer is divided by
    s = √(r₁/r₂), the inputs of the second that read it are multiplied by s, with r the largest magnitudes of their weights;
    pair after pair, again and again until nothing changes. The network computes the same. Deviation: layers with a ReLU6
    between them are left alone; in the paper it becomes a ReLU, which makes another network of one that uses the limit.

    Args:
        program: with its batch norms folded; not changed.
        tensors: its tensors by name; not changed.

    Returns:
        The tensors; and for each second layer's weight what its inputs were divided by, (inputs,).

    Example:
        >>> from featherweight.graph.capture import capture, tensors_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[8.0], [1.0]])), net[2].weight.data.copy_(torch.tensor([[2.0, 4.0]]))
        >>> program = capture(net, torch.zeros(1, 1))
        >>> equalize_layers(program, tensors_of(net, program))[0]["0.weight"].flatten().tolist()
        [4.0, 2.0]
    """
    pairs = find_pairs(program, tensors)
    found = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    divided: dict[str, torch.Tensor] = {}
    for _ in range(_SWEEPS):
        largest = 0.0
        for pair in pairs:
            scales = _scales(program, pair, found)
            _scale(program, pair, found, scales)
            weight = _weight(program, pair.second)
            divided[weight] = divided.get(weight, 1.0) * scales
            largest = max(largest, float((scales - 1).abs().max()))
        if largest < _DONE:
            break
    return {name: found[name].to(tensor.dtype) for name, tensor in tensors.items()}, divided


def _weight(program: Program, position: int) -> str:
    return str(program.tensor_name(program.nodes[position].args[1]))


def _owns_its_tensors(program: Program, node: Node, readers: Mapping[int, list[int]]) -> bool:
    """Whether this is a layer whose weight and bias nothing else reads."""
    if node.op not in LINEAR_OPS:
        return False
    own = [value for value in node.args[1:3] if value is not None]
    return all(program.tensor_name(value) is not None and len(readers[value.index]) == 1 for value in own)


def _only_reader(program: Program, position: int, readers: Mapping[int, list[int]]) -> int | None:
    """The position of the one node that reads what a node gives, as its first argument."""
    value = program.first_node + position
    after = readers.get(value, [])
    if len(after) != 1 or after[0] < 0:
        return None
    return after[0] if program.nodes[after[0]].args[0] == Ref(value) else None


def _channels(program: Program, position: int, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many channels a layer gives."""
    return output_channels(program.nodes[position], tensors[_weight(program, position)]).shape[:2].numel()


def _fits(program: Program, pair: Pair, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the second layer's inputs are the channels, or runs of them as after `flatten`."""
    second = input_channels(program.nodes[pair.second], tensors[_weight(program, pair.second)])
    inputs, channels = second.shape[0] * second.shape[2], _channels(program, pair.first, tensors)
    return inputs == channels or (second.shape[0] == 1 and program.nodes[pair.second].op == "linear" and inputs % channels == 0)


def _scales(program: Program, pair: Pair, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """√(r₁/r₂) for each channel; 1 where one of them is 0."""
    rows = output_channels(program.nodes[pair.first], tensors[_weight(program, pair.first)])
    columns = input_channels(program.nodes[pair.second], tensors[_weight(program, pair.second)])
    made = rows.flatten(0, 1).abs().flatten(1).amax(1)
    read = columns.transpose(1, 2).flatten(0, 1).abs().flatten(1).amax(1).reshape(len(made), -1).amax(1)
    return torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0)


def _scale(program: Program, pair: Pair, tensors: dict[str, torch.Tensor], scales: torch.Tensor) -> None:
    """Divides the first layer's channels and multiplies the second's inputs, in place of the dictionary's tensors."""
    node, weight = program.nodes[pair.first], tensors[_weight(program, pair.first)].clone()
    rows = output_channels(node, weight)
    rows /= scales.reshape(*rows.shape[:2], *[1] * (rows.dim() - 2))
    tensors[_weight(program, pair.first)] = weight
    bias = program.tensor_name((*node.args, None)[2])
    if bias is not None:
        tensors[bias] = tensors[bias] / scales
    weight = tensors[_weight(program, pair.second)].clone()
    columns = input_channels(program.nodes[pair.second], weight)
    repeated = scales.repeat_interleave(columns.shape[0] * columns.shape[2] // len(scales))
    columns *= repeated.reshape(columns.shape[0], 1, columns.shape[2], *[1] * (columns.dim() - 3))
    tensors[_weight(program, pair.second)] = weight
