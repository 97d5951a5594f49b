"""The coder of tensors made of few codewords: rows that share them, and a number for each sub-vector (SPEC.md §6.10).

Nobody says that channels were clustered, or rows made of codewords; what recurs in a sample of the bits does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from featherweight.errors import FormatError
from featherweight.packaging.cursor import Cursor, varint
from featherweight.packaging.matrices import Matrix, decode_matrix, encode_matrix
from featherweight.packaging.modelled import EXPONENT, PALETTE, Payload, decode_view, encode_view
from featherweight.packaging.survey import CHUNK, Bits, Layout, Survey, exponents_of, rotated

__all__ = ["Codewords", "decode_codewords", "encode_codewords", "find_codewords"]

Keys = npt.NDArray[np.unsignedinteger]
Numbers = npt.NDArray[np.int64]
Plan = tuple[int, int]
"""How many rows share codewords, and how many elements these have."""

_LEAST_SAMPLE, _SAMPLED, _MOST_SAMPLE = 1 << 16, 16, 1 << 20  # elements, and one in how many
_FEWEST_ROWS = 64  # of the sample, as far as there are so many: rows may share codewords
_FEWEST_AGAIN = 16  # one element of the sample in so many must have occurred before
_SHORT = 1 << 11  # a single row must have so many elements
_PRIMES = (2, 3, 5, 7, 11, 13)  # the lengths of sub-vectors are made of
_MOST_ON_GRID = 255  # a grid with such integers is no accident
_WORTH = 0.95  # of the bits that other coders would take, as far as a sample tells
_VIEWS = (PALETTE, EXPONENT)
_MOST_WORDS = (1 << 16) - 1
_MOST_WITH_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Codewords:
    """A matrix as numbers of codewords.

    Args:
        group: how many rows share codewords; the last group may have fewer.
        block: elements of a codeword.
        has_zero: whether number 0 stands for zeros in every group; they are not among the words.
        sizes: the number of words of each group.
        words: of all groups, one group after the other, shape [sum of sizes, block].
        numbers: of the codeword in its group, shape [rows, columns / block].
    """

    group: int
    block: int
    has_zero: bool
    sizes: Numbers
    words: Bits
    numbers: npt.NDArray[np.uint16]


def find_codewords(survey: Survey) -> Codewords | None:
    """The codewords that a tensor is made of, where they seem to take fewer bits than what other coders know.

    Args:
        survey: of a tensor of at least one element.

    Returns:
        The codewords; None if there are none, or if the tensor is on a grid.
    """
    plan = _plan(survey)
    return None if plan is None else _collect(survey.bits.reshape(survey.layout.shape), *plan)


# Which rows share codewords, and how long these are: a sample tells.


def _plan(survey: Survey) -> Plan | None:
    matrix = survey.bits.reshape(survey.layout.shape)
    rows, columns = matrix.shape
    known = survey.palette is not None
    if rows == 1 and (known or columns < _SHORT):
        return None  # the palette is all that it has, or too little to gain
    size = _LEAST_SAMPLE if matrix.itemsize < 4 else min(max(_LEAST_SAMPLE, matrix.size // _SAMPLED), _MOST_SAMPLE)
    height = min(rows, max(_FEWEST_ROWS, size // columns))
    sample = matrix[:height, : max(1, size // height)]
    ordered = np.sort(sample, axis=None)
    if np.count_nonzero(ordered[1:] == ordered[:-1]) * _FEWEST_AGAIN < sample.size:
        return None  # plain weights
    if survey.lattice is not None and int(np.abs(survey.lattice.integers).max()) <= _MOST_ON_GRID:
        return None

    @cache
    def cost(plan: Plan) -> float:
        return _cost(sample, (rows, columns), plan)

    def longer(plan: Plan) -> Iterable[Plan]:
        blocks = (plan[1] * prime for prime in _PRIMES)
        return [(rows, block) for block in blocks if columns % block == 0 and block <= sample.shape[1]]

    rivals = [_cost_of_exponents(sample)] + [cost((rows, 1))] * known
    shared = _descend((rows, 1), cost, longer)
    apart = _descend((1, 1), cost, lambda plan: [(min(2 * plan[0], rows), 1)])
    least, best = min(shared, apart)
    return best if least < _WORTH * min(rivals) else None


def _descend(start: Plan, cost: Callable[[Plan], float], beside: Callable[[Plan], Iterable[Plan]]) -> tuple[float, Plan]:
    """The least cost that can be reached from plan to better plan beside it, and its plan."""
    least = cost(start), start
    while (found := min(((cost(plan), plan) for plan in beside(least[1])), default=least)) < least:
        least = found
    return least


def _cost(sample: Bits, shape: tuple[int, int], plan: Plan) -> float:
    """Bits of an element, by the entropy of each group's codewords, and by how many they seem to be.

    What a sample leaves out brings new codewords as often as those seen once suggest (Good, Biometrika 1953); the entropy
    of few samples is too low by what Miller (1955) found.
    """
    group, block = plan
    groups = max(1, len(sample) // group)
    keys = np.sort(_keys(_cut(sample[: groups * group], block)).reshape(groups, -1), axis=1)
    first = np.ones(keys.shape, bool)
    first[:, 1:] = keys[:, 1:] != keys[:, :-1]
    starts = np.flatnonzero(first)
    counts = np.diff(starts, append=first.size)
    of_group = starts // keys.shape[1]
    distinct, seen, whole = first.sum(1), keys.shape[1], group * (shape[1] // block)
    entropy = np.log2(seen) - np.bincount(of_group, counts * np.log2(counts)) / seen + (distinct - 1) / (2 * np.log(2) * seen)
    words = distinct + (whole - seen) * np.bincount(of_group, counts == 1) / seen
    return float((whole * entropy + words * (block * 8 * sample.itemsize)).mean() / (whole * block))


def _cost_of_exponents(sample: Bits) -> float:
    """Bits of an element if the most significant byte is coded, and the others are stored where it is not zero."""
    kept = sample[sample != 0]
    counts = np.bincount(exponents_of(kept) if sample.itemsize > 1 else kept, minlength=256)
    chances = np.append(counts[counts > 0], max(1, sample.size - len(kept))) / sample.size
    return float(8 * (sample.itemsize - 1) * len(kept) / sample.size - (chances * np.log2(chances)).sum())


def _cut(matrix: Bits, block: int) -> Bits:
    """Sub-vectors, shape [rows, sub-vectors of a row, block]; what is left of a row is dropped."""
    count = matrix.shape[1] // block
    return matrix[:, : count * block].reshape(len(matrix), count, block)


def _keys(vectors: Bits) -> Keys:
    """A number for each vector, hardly ever the same for two that differ; shape [..., block] → [...]."""
    if vectors.shape[-1] == 1:
        return vectors[..., 0]
    keys = np.zeros(vectors.shape[:-1], np.uint64)
    for place in range(vectors.shape[-1]):
        keys = (keys ^ vectors[..., place]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


# The codewords of each group, and the number of each sub-vector.


def _collect(matrix: Bits, group: int, block: int) -> Codewords | None:
    vectors = _cut(matrix, block)
    numbers = np.empty(vectors.shape[:2], np.uint16)
    found = []
    for at in range(0, len(vectors), group):
        words = _words(vectors[at : at + group].reshape(-1, block), numbers[at : at + group].reshape(-1))
        if words is None:
            return None
        found.append(words)
    zeros = [not words[0].any() for words in found]
    has_zero = any(zeros)
    if has_zero:
        numbers += np.repeat(np.logical_not(zeros), group)[: len(numbers), None].astype(np.uint16)
        found = [words[int(zero) :] for words, zero in zip(found, zeros, strict=True)]
    return Codewords(group, block, has_zero, np.array([len(words) for words in found]), np.concatenate(found), numbers)


def _words(vectors: Bits, numbers: npt.NDArray[np.uint16]) -> Bits | None:
    """The distinct vectors, zeros first and then by their largest element; each vector's number is written to `numbers`."""
    pieces = [slice(at, at + CHUNK) for at in range(0, len(vectors), CHUNK)]
    keys = _keys(vectors[:0])
    for piece in pieces:
        keys = np.union1d(keys, _keys(vectors[piece]))
        if len(keys) > _MOST_WORDS:
            return None
    words = np.empty((len(keys), vectors.shape[1]), vectors.dtype)
    for piece in pieces:
        numbers[piece] = np.searchsorted(keys, _keys(vectors[piece]))
        words[numbers[piece]] = vectors[piece]
    if not all(np.array_equal(words[numbers[piece]], vectors[piece]) for piece in pieces):
        return None  # two vectors of one key
    order = np.argsort(rotated(words).max(1), kind="stable")
    rank = np.empty(len(order), np.uint16)
    rank[order] = np.arange(len(order))
    for piece in pieces:
        numbers[piece] = rank[numbers[piece]]
    return words[order]


# The payload.


def encode_codewords(survey: Survey) -> Payload | None:
    """Codes a tensor as numbers of codewords.

    Args:
        survey: of a tensor.

    Returns:
        The payload, or None where codewords save nothing.
    """
    found = find_codewords(survey) if len(survey.bits) else None
    if found is None:
        return None
    head = varint(found.group) + varint(2 * found.block + found.has_zero)
    sizes = _coded(Survey(found.sizes.astype("<u2")))
    words = _coded(Survey(found.words.reshape(-1), _rows_of_words(found.sizes)))
    count = int(found.sizes.max()) + found.has_zero
    uneven = found.has_zero and count <= _MOST_WITH_LEVELS  # zeros are seldom spread evenly over rows and columns
    way, coded = encode_matrix(Matrix(found.numbers, np.arange(count)), levels=uneven)
    return [head, sizes, words, bytes([way]), coded]


def decode_codewords(cursor: Cursor, layout: Layout) -> Bits:
    """The inverse of `encode_codewords`.

    Args:
        cursor: where the payload starts.
        layout: of the tensor.

    Returns:
        The elements.

    Raises:
        FormatError: the payload is damaged.
    """
    rows, columns = layout.shape
    group, head = cursor.varint(), cursor.varint()
    block, has_zero = head >> 1, bool(head & 1)
    if not 1 <= group <= rows or block == 0 or columns % block:
        raise FormatError(f"{cursor.what} is damaged: codewords of {block} elements for {group} of {rows} rows of {columns}")
    sizes = _read_coded(cursor, Layout(np.dtype("<u2"), -(-rows // group))).astype(np.int64)
    count, total = layout.count // block, int(sizes.sum())
    if total > count or not int(sizes.max()) + has_zero:
        raise FormatError(f"{cursor.what} is damaged: {total} codewords for {count} sub-vectors")
    words = _read_coded(cursor, Layout(layout.dtype, total * block, _rows_of_words(sizes))).reshape(total, block)
    shape = rows, columns // block
    numbers = decode_matrix(cursor, cursor.byte(), shape, int(sizes.max()) + has_zero, None)[0].reshape(shape)
    table = np.concatenate([np.zeros((1, block), layout.dtype), words])
    vectors = np.empty((*shape, block), layout.dtype)
    starts = np.cumsum(sizes) - sizes + (not has_zero)
    height = max(1, CHUNK // columns)
    for at in range(0, rows, height):
        part = numbers[at : at + height].astype(np.int64)
        of_row = np.arange(at, at + len(part)) // group
        if (part.max(1) >= sizes[of_row] + has_zero).any():
            raise FormatError(f"{cursor.what} is damaged: a number beyond the codewords of its rows")
        places = part + starts[of_row][:, None]
        np.take(table, np.where(part == 0, 0, places) if has_zero else places, axis=0, out=vectors[at : at + height])
    return vectors.reshape(-1)


def _rows_of_words(sizes: Numbers) -> int:
    """The words of groups that have as many each are a matrix of a row for each group."""
    return len(sizes) if int(sizes.min()) == int(sizes.max()) else 1


def _coded(survey: Survey) -> bytes:
    """Elements as they are or by the view that makes them smallest, with its number in front."""
    payloads = [[survey.bits.tobytes()], *(encode_view(survey, view) for view in _VIEWS)]
    coded = [bytes([number]) + b"".join(payload) for number, payload in enumerate(payloads) if payload is not None]
    return min(coded, key=len)


def _read_coded(cursor: Cursor, layout: Layout) -> Bits:
    """The inverse of `_coded`."""
    number = cursor.byte()
    if number == 0:
        return np.frombuffer(cursor.take(layout.count * layout.dtype.itemsize), layout.dtype)
    if number > len(_VIEWS) or layout.count == 0:
        raise FormatError(f"{cursor.what} is damaged: its codewords are stored in a way that is none")
    return decode_view(cursor, layout, _VIEWS[number - 1])
