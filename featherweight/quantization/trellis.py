"""Trellis-coded quantization: two interleaved quantizers, and a state machine that says whose turn it is.

Weights become multiples n · step. Of these, quantizer 0 has the even ones and quantizer 1 the odd ones and zero, so that each
alone is as coarse as a grid of twice the step. Whose turn it is depends on what came before: with the index k of n in its
quantizer,

    quantizer 0: n = 2k    quantizer 1: n = 2k - sign(k)    parity p = k mod 2    next quantizer = p xor the one before this

(both 0 at the start). That is the machine of four states of Versatile Video Coding and of Neural Network Coding (Schwarz et
al., IEEE TCSVT 2021, section III; ISO/IEC 15938-17): its table ((0, 2), (2, 0), (1, 3), (3, 1)) of a state and a parity is just
this recursion, with the state 2 · quantizer + quantizer before. A Viterbi search picks the path: at high rates the error is
0.98 dB below that of a plain grid of as many bits, which is 0.16 bits a weight (no quantizer gains more than 1.53 dB).

Three things make it fast. The machine starts anew every `SEGMENT` elements of the flattened tensor, so that all segments of a
tensor step side by side. (A deviation from the standard, which starts anew at each tensor; it costs 0.1 to 0.2 % of the bytes.)
The parity can be told from n alone, and the quantizer is a xor of parities, p[t-1] xor p[t-3] xor …, so that whoever codes or
decodes need not walk. And the rate of a weight is taken as linear in |n| but for the smallest (see `quantization.rates`), so
that a rate-distortion decision is a rounding of the weight after a shift.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featherweight.quantization.rates import Costs

__all__ = ["SEGMENT", "follows", "parities", "quantizers", "search", "segments_of"]

SEGMENT = 128
"""After so many elements of the flattened tensor the state machine starts anew."""

_SIDE_BY_SIDE = 4096  # segments searched at once: long enough for numpy, short enough for the cache
_HALF = np.float32(1.5)  # between 0 and 3
_PART = 512 * SEGMENT  # looked at together
_BLOCK = 16  # steps whose costs are computed at once
_NEVER = np.float32(1e30)
_ZERO = np.float32(-1)  # what is shifted so far becomes zero

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int16]
Bits = npt.NDArray[np.uint8]


def parities(integers: Integers) -> Bits:
    """The parity of each integer's index in its quantizer.

    Args:
        integers: on the trellis or not, any shape.

    Returns:
        0 or 1, the same shape.

    Example:
        >>> parities(np.array([0, 2, -4, 1, -3, 5], np.int16)).tolist()
        [0, 1, 0, 1, 0, 1]
    """
    magnitudes = np.abs(integers)
    found: Bits = (((magnitudes + (magnitudes & 1)) >> 1) & 1).astype(np.uint8)
    return found


def quantizers(parities: Bits) -> Bits:
    """The quantizer of each element: the xor of the parities one, three, five, … elements before it in its segment.

    Computed on packed bits: seven doublings for 128 elements.

    Args:
        parities: of all elements of the flattened tensor, shape [n].

    Returns:
        0 or 1, shape [n].

    Example:
        >>> quantizers(np.array([1, 0, 0, 1, 0], np.uint8)).tolist()
        [0, 1, 0, 1, 1]
    """
    count = len(parities)
    padded = np.zeros(-(-count // SEGMENT) * SEGMENT, np.uint8)
    padded[:count] = parities
    words = np.packbits(padded, bitorder="little").view("<u8").reshape(-1, SEGMENT // 64)
    carried = np.zeros(len(words), np.uint64)
    found = np.empty_like(words)
    for index in range(words.shape[1]):
        sums = words[:, index].copy()
        for distance in (2, 4, 8, 16, 32):
            sums ^= sums << np.uint64(distance)
        even, odd = np.uint64(0x5555555555555555), np.uint64(0xAAAAAAAAAAAAAAAA)
        sums ^= np.where(carried & np.uint64(1), even, np.uint64(0)) ^ np.where(carried & np.uint64(2), odd, np.uint64(0))
        found[:, index] = (sums << np.uint64(1)) | (carried >> np.uint64(1))
        carried = sums >> np.uint64(62)
    return np.unpackbits(found.reshape(-1).view(np.uint8), count=count, bitorder="little")


def follows(integers: Integers) -> bool:
    """Whether a flattened tensor lies on the trellis: even, odd or zero as its quantizers ask for.

    Args:
        integers: multiples of the step, shape [n].

    Returns:
        True for what `search` gives.

    Example:
        >>> follows(np.array([2, 0, 4, 1], np.int16)), follows(np.array([1, 0], np.int16))
        (True, False)
    """
    parts = (integers[at : at + _PART] for at in range(0, len(integers), _PART))
    return all(bool((((part & 1) == quantizers(parities(part))) | (part == 0)).all()) for part in parts)


def segments_of(flat: Floats) -> Floats:
    """A flattened tensor cut into segments, the last one filled up with zeros.

    Args:
        flat: shape [n].

    Returns:
        Shape [segments, SEGMENT]; no copy where n is a multiple.

    Example:
        >>> segments_of(np.ones(130, np.float32)).sum(1).tolist()
        [128.0, 2.0]
    """
    short = -len(flat) % SEGMENT
    return (np.pad(flat, (0, short)) if short else flat).reshape(-1, SEGMENT)


def search(weights: Floats, costs: Costs, importance: Floats | None = None) -> Integers:
    """The integers on the trellis that minimise Σ importance · (|weight| - n)² + cost of n, by the Viterbi algorithm.

    Args:
        weights: in steps, shape [segments, SEGMENT], below 2¹⁵ in magnitude. Zeros stay zero.
        costs: of the integers, on the lattice `TRELLIS`.
        importance: of the weights' errors, the same shape, above 0; all 1 if none is given.

    Returns:
        Integers, the same shape, with the weights' signs.

    Example:
        >>> from featherweight.quantization.rates import TRELLIS, free
        >>> search(segments_of(np.array([2.1, 0.2, 5.8, -4.2], np.float32)), free(TRELLIS))[0, :4].tolist()
        [2, 0, 6, -4]
    """
    found = np.empty(weights.shape, np.int16)
    for start in range(0, len(weights), _SIDE_BY_SIDE):
        rows = slice(start, start + _SIDE_BY_SIDE)
        own = costs if costs.far.shape[-1] == 1 else costs.of(np.arange(len(weights))[rows])
        shifted = np.abs(weights[rows].T, order="C")
        zero = shifted == 0
        weighed = None if importance is None else np.ascontiguousarray(importance[rows].T)
        shifted -= own.shift if weighed is None else own.shift / weighed
        shifted[zero] = _ZERO
        np.maximum(shifted, _ZERO, out=shifted)
        magnitudes = _round_along(shifted, _trace(*_walk(shifted, own, weighed)))
        signs = np.int16(1) - np.int16(2) * (weights[rows] < 0)
        np.multiply(magnitudes.T, signs, out=found[rows])
    return found


def _walk(shifted: Floats, costs: Costs, importance: Floats | None) -> tuple[Bits, Bits]:
    """The Viterbi recursion over [SEGMENT, segments]: for each step four decisions, in bits 0 to 3, and the states it ends in.

    A state is (quantizer q, quantizer before b). From (q, b) parity p leads to (p xor b, q): so those that lead to (i, q) are
    (q, 0) by parity i and (q, 1) by parity 1 - i; bit 2q + i says whether the second is better.
    """
    steps, width = shifted.shape
    path = np.full((2, 2, width), _NEVER)  # the least cost to be in state [q, b]
    path[0, 0] = 0
    after = path.swapaxes(0, 1)  # the same memory as [b, q], which is [q, i] one step later
    first, second = np.empty_like(path), np.empty_like(path)
    step_costs = np.empty((_BLOCK, 2, 2, width), np.float32)
    better = np.empty((_BLOCK, 2, 2, width), np.bool_)
    decisions = np.empty((steps, width), np.uint8)
    for start in range(0, steps, _BLOCK):
        block = shifted[start : start + _BLOCK]
        _fill_distances(block, step_costs)
        if importance is not None:
            step_costs[: len(block)] *= importance[start : start + _BLOCK, None, None]
        _add_costs(block, costs, step_costs)
        for row in range(len(block)):
            np.add(path[:, 0:1], step_costs[row], out=first)
            np.add(path[:, 1:2], step_costs[row, :, ::-1], out=second)
            np.less(second, first, out=better[row])
            np.minimum(first, second, out=after)
        flags = better[: len(block)].view(np.uint8).reshape(len(block), 4, width)
        decisions[start : start + _BLOCK] = flags[:, 0] | flags[:, 1] << 1 | flags[:, 2] << 2 | flags[:, 3] << 3
    return decisions, path.reshape(4, width).argmin(0).astype(np.uint8)


def _fill_distances(block: Floats, out: Floats) -> None:
    """Writes [step, quantizer, parity, segment]: the squared distance to the nearest magnitude of each quantizer and parity.

    These are the classes 0, 2, 3 (that is -1), 1 modulo 4; all four distances follow from the one to the nearest multiple of 4.
    """
    zero, two, back, one = (out[: len(block), q, p] for q in (0, 1) for p in (0, 1))
    rest = np.rint(block * np.float32(0.25))
    rest *= -4
    rest += block
    np.square(rest, out=zero)
    np.copysign(rest, block, out=two)  # a weight shifted beyond zero is further from 2
    np.square(np.subtract(2, two, out=two), out=two)
    rest += 1
    np.abs(rest, out=rest)
    rest -= 2
    np.square(rest, out=one)
    np.abs(rest, out=rest)
    rest -= 2
    np.square(rest, out=back)
    small = block < _HALF  # the least of its class is not 1, which is in the other one, but 0
    back *= ~small  # (a product is faster than a copy under a mask)
    back += zero * small


def _add_costs(block: Floats, costs: Costs, out: Floats) -> None:
    """Adds what the rates of those magnitudes cost, beyond the line that the shift stands for."""
    zero, two, back, one = (out[: len(block), q, p] for q in (0, 1) for p in (0, 1))
    small = block < _HALF
    zero += costs.near[0] * (block < 2)
    two += costs.near[1] * (block < 4)
    one += costs.near[3] * (block < 3)
    back += costs.near[4] * (block < 5)
    back += (costs.near[2] - costs.near[4]) * small
    out[: len(block), 1] += costs.far
    forced = block <= _ZERO
    if forced.any():
        two[forced] = _NEVER
        one[forced] = _NEVER


def _trace(decisions: Bits, ends: Bits) -> npt.NDArray[np.int8]:
    """Back along the best paths: for each element where its class modulo 4 begins: 0, 2, -1 (that is 0, 3, …) or 1."""
    classes = np.empty(decisions.shape, np.int8)
    quantizer, before = ends >> 1, ends & 1
    for step in range(len(decisions) - 1, -1, -1):
        chosen = (decisions[step] >> (2 * before + quantizer)) & 1
        np.subtract(2 * (quantizer ^ chosen), before, out=classes[step], casting="unsafe")
        quantizer, before = before, chosen
    return classes


def _round_along(shifted: Floats, classes: npt.NDArray[np.int8]) -> Integers:
    """The nearest magnitude of each element's class."""
    nearest = shifted - classes
    nearest *= np.float32(0.25)
    np.rint(nearest, out=nearest)
    nearest *= 4
    nearest += classes
    np.maximum(nearest, classes, out=nearest)
    nearest *= (classes != -1) | (shifted >= _HALF)
    return nearest.astype(np.int16)
