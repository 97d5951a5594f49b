"""Binary arithmetic: sums of products of signs as XNOR and popcount on 64-bit words, and a network checked against it.

A number in {-1, 0, +1} is two bits: whether it is positive, and whether it is there at all. Where both factors are there, their
product is +1 if their first bits agree, so with m pairs there of which a agree the sum is 2 a - m: XNOR, AND, popcount
(Courbariaux et al., 2016; Rastegari et al., 2016, section 3.2). The second bit serves ternary weights, masks and padding alike.
This is a reference, vectorised but not fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import Example, as_example, capture, tensors_of
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Node, Program, ProgramModule, map_refs

__all__ = ["BitSums", "PackedSigns", "compare_with_bits", "pack_signs", "unpack_signs", "xnor_conv2d", "xnor_linear"]

Words = npt.NDArray[np.uint64]
Sums = npt.NDArray[np.int64]

_MOST_WORDS = 1 << 20  # of intermediate results at a time


@dataclass(frozen=True, eq=False)
class PackedSigns:
    """Vectors of numbers in {-1, 0, +1}, 64 to a word.

    Attributes:
        positive: bit i of a vector is set where its entry i is +1; shape (…, words).
        there: set where it is not 0; of the same shape. The bits after the last entry are 0 in both.
        length: how many entries a vector has.
    """

    positive: Words
    there: Words
    length: int


def pack_signs(values: npt.NDArray[Any]) -> PackedSigns:
    """Packs vectors of numbers in {-1, 0, +1} into bits.

    Args:
        values: shape (…, n), of any dtype.

    Returns:
        The bits: ⌈n / 64⌉ words for each vector, entry i in bit i mod 64 of word i // 64.

    Raises:
        RequestError: another number is among them.

    Example:
        >>> packed = pack_signs(np.array([[1, -1, 0, 1]]))
        >>> packed.positive.tolist(), packed.there.tolist()
        ([[9]], [[11]])
    """
    values = np.asarray(values)
    if values.ndim == 0 or not _are_signs(values):
        raise RequestError(f"signs must be -1, 0 or +1 along one axis at least, got shape {values.shape} with other numbers")
    return PackedSigns(_words(values > 0), _words(values != 0), values.shape[-1])


def unpack_signs(packed: PackedSigns) -> npt.NDArray[np.int8]:
    """The inverse of `pack_signs`.

    Args:
        packed: the bits.

    Returns:
        Numbers in {-1, 0, +1}, shape (…, n).

    Example:
        >>> unpack_signs(pack_signs(np.array([1, -1, 0]))).tolist()
        [1, -1, 0]
    """
    positive, there = (_bits(words, packed.length) for words in (packed.positive, packed.there))
    return there * (2 * positive - 1)


def xnor_linear(inputs: PackedSigns, weight: PackedSigns) -> Sums:
    """What a linear layer without bias computes, by XNOR and popcount.

    Args:
        inputs: of shape (N, n).
        weight: of shape (O, n).

    Returns:
        The sums of products, shape (N, O), in [-n, n].

    Raises:
        RequestError: the lengths differ.

    Example:
        >>> signs = pack_signs(np.array([[1, -1, 1], [-1, -1, 0]]))
        >>> xnor_linear(signs, signs).tolist()
        [[3, 0], [0, 2]]
    """
    if inputs.length != weight.length:
        raise RequestError(f"inputs and weight must have vectors of the same length, got {inputs.length} and {weight.length}")
    sums = np.empty((len(inputs.there), len(weight.there)), np.int64)
    step = max(1, _MOST_WORDS // max(1, weight.there.size))
    for start in range(0, len(sums), step):
        rows = slice(start, start + step)
        both = inputs.there[rows, None] & weight.there
        agree = ~(inputs.positive[rows, None] ^ weight.positive) & both
        sums[rows] = 2 * _count(agree) - _count(both)
    return sums


def xnor_conv2d(
    inputs: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Sums:
    """What a two-dimensional convolution without bias and groups computes, by XNOR and popcount.

    Args:
        inputs: numbers in {-1, 0, +1}, shape (N, C, H, W).
        weight: likewise, shape (O, C, h, w).
        stride: along rows and columns.
        padding: zeros on each side, along rows and columns.
        dilation: along rows and columns.

    Returns:
        The sums of products, shape (N, O, rows, columns).

    Raises:
        RequestError: another number is among them, or the channels differ.

    Example:
        >>> xnor_conv2d(np.ones((1, 2, 3, 3)), -np.ones((1, 2, 3, 3)), padding=(1, 1))[0, 0].tolist()
        [[-8, -12, -8], [-12, -18, -12], [-8, -12, -8]]
    """
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    padded = np.pad(inputs, ((0, 0), (0, 0), *((size, size) for size in padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))  # N, C, rows, columns, h, w
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]].transpose(0, 2, 3, 1, 4, 5)
    count, rows, columns = windows.shape[:3]
    patches = pack_signs(windows.reshape(count * rows * columns, -1))
    sums = xnor_linear(patches, pack_signs(weight.reshape(len(weight), -1)))
    return sums.reshape(count, rows, columns, -1).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class BitSums:
    """A network run with binary arithmetic where it is binary, beside the float simulation.

    Attributes:
        outputs: with XNOR and popcount.
        simulated: the network's own, all in floats.
        sums: for each layer computed with bits, by the name of its weight, how many sums it made.
        wrong: for each of these layers how many of its sums are not what float arithmetic on the same signs gives; 0 for all
            is agreement bit for bit.
    """

    outputs: torch.Tensor
    simulated: torch.Tensor
    sums: Mapping[str, int]
    wrong: Mapping[str, int]


def compare_with_bits(model: nn.Module, example: Example) -> BitSums:
    """Runs a network, in eval mode, with XNOR and popcount in each layer that multiplies signs with signs, and without.

    Such a layer is a linear layer or a convolution without groups whose inputs are all -1, 0 or +1 and whose weight is, for
    each output channel, one factor times -1, 0 or +1: what `BinaryActivation` and `binarize_weights` or `ternarize_weights`
    make. Its integer sums are multiplied with the factors, and the bias is added, in the weight's dtype. Layers that are not
    are computed in floats, so a network without any is computed as usual.

    Args:
        model: any module that `torch.export` captures, with one tensor as its output; it is not changed.
        example: the batch of inputs to compare on.

    Returns:
        Both outputs, and for each binary layer the sums and how many of them are wrong. The outputs are equal bit for bit where
        all factors are 1 or powers of two; others make the float simulation round.

    Raises:
        CaptureError, UnsupportedOpError: as `capture` says.

    Example:
        >>> from featherweight.quantization import binarize_weights
        >>> layer = binarize_weights(nn.Linear(100, 5, bias=False), scale="none")
        >>> compared = compare_with_bits(layer, torch.randn(3, 100).sign())
        >>> compared.sums, compared.wrong, torch.equal(compared.outputs, compared.simulated)
        ({'weight': 15}, {'weight': 0}, True)
    """
    program = capture(model, example)
    tensors = {name: tensor.cpu() for name, tensor in tensors_of(model, program).items()}
    by_bits = _BitModule(program, tensors).eval()
    inputs = [value.cpu() for value in as_example(example)]
    with torch.no_grad():
        outputs, simulated = by_bits(*inputs), ProgramModule(program, tensors).eval()(*inputs)
    return BitSums(outputs, simulated, by_bits.sums, by_bits.wrong)


class _BitModule(ProgramModule):
    """Runs a program with binary arithmetic where inputs and weight allow it, and compares as it goes."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(program, tensors)
        self.sums: dict[str, int] = {}
        self.wrong: dict[str, int] = {}

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        if node.op not in ("linear", "conv2d") or node.kwargs or (node.op == "conv2d" and node.args[6:] not in ((), (1,))):
            return super()._run(position, node, values)
        inputs, weight, bias, *settings = (*map_refs(node.args, lambda ref: values[ref.index]), None)[: max(3, len(node.args))]
        factors = _factors(weight)
        if factors is None or not _are_signs(inputs.numpy()):
            return super()._run(position, node, values)
        sums = _sums(inputs.to(torch.int8).numpy(), weight.sign().to(torch.int8).numpy(), settings)
        expected = resolve_op(node.op)(inputs.float(), weight.sign().float(), None, *settings).numpy()
        name = self.program.tensor_name(node.args[1]) or f"{node.op}, operation {position}"
        self.sums[name] = self.sums.get(name, 0) + sums.size
        self.wrong[name] = self.wrong.get(name, 0) + int((sums != expected).sum())
        channels = (-1,) if node.op == "linear" else (-1, 1, 1)
        outputs = torch.from_numpy(sums).to(weight.dtype) * factors.reshape(channels)
        return outputs if bias is None else outputs + bias.reshape(channels)


def _sums(inputs: npt.NDArray[Any], weight: npt.NDArray[Any], settings: Sequence[Any]) -> Sums:
    """A layer's sums of products; the settings are those of `conv2d` after the bias."""
    if weight.ndim == 2:
        rows = xnor_linear(pack_signs(inputs.reshape(-1, inputs.shape[-1])), pack_signs(weight))
        return rows.reshape(*inputs.shape[:-1], -1)
    given = dict(zip(("stride", "padding", "dilation"), settings, strict=False))
    return xnor_conv2d(inputs, weight, **{name: [*pair] * (2 // len(pair)) for name, pair in given.items()})


def _factors(weight: torch.Tensor) -> torch.Tensor | None:
    """The factor of each output channel whose weights are all ± it or 0; None if a channel has another value."""
    rows = weight.flatten(1).abs()
    factors = rows.amax(dim=1)
    return factors if bool(((rows == factors[:, None]) | (rows == 0)).all()) else None


def _are_signs(values: npt.NDArray[Any]) -> bool:
    return bool(((values == 0) | (values == 1) | (values == -1)).all())


def _words(bits: npt.NDArray[np.bool_]) -> Words:
    """Bits along the last axis as words, the first the least significant."""
    padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 64)])
    words: Words = np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    return words


def _bits(words: Words, length: int) -> npt.NDArray[np.int8]:
    single = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), axis=-1, count=length, bitorder="little")
    return single.view(np.int8)


def _count(words: Words) -> Sums:
    """How many bits are set in each vector of words."""
    counts: Sums = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
    return counts
