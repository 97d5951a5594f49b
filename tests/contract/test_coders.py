"""What every row of `CODERS` must do: give back every bit, or decline; refuse damage; and never lie about its size."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featherweight.errors import FormatError
from featherweight.packaging.coders import CODERS, Layout, choose
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.streams import stream_count
from featherweight.packaging.survey import Bits, Survey
from featherweight.packaging.tensors import DTYPES, Frame, bits_of, checksum_of, decode_frame, tensor_of

SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (5, 1), (1, 5), (4, 6), (10, 3, 3, 3), (64, 80)]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]

coders = pytest.mark.parametrize("name", CODERS)


def round_trip(name: str, bits: Bits, rows: int = 1) -> bytes | None:
    """Codes and decodes; checks all that must hold; the payload, or None if the coder declines."""
    survey = Survey(bits, rows)
    size = CODERS[name].size(survey)
    if size is None:
        return None
    before = bits.copy()
    payload = b"".join(CODERS[name].encode(survey))
    cursor = Cursor(payload, name)
    found = CODERS[name].decode(cursor, Layout(bits.dtype, len(bits), rows))
    cursor.end()
    assert found.dtype == bits.dtype
    assert np.array_equal(found, bits)
    assert np.array_equal(before, bits), "a coder must not change what it codes"
    if len(bits) < 2048:
        assert len(payload) == size
    else:
        assert abs(len(payload) - size) <= 32 + 2 * stream_count(len(bits)) * 2
    assert b"".join(CODERS[name].encode(Survey(before, rows))) == payload, "the same bits give the same bytes"
    return payload


def patterns(shape: tuple[int, ...], dtype: type[np.unsignedinteger]) -> Iterator[Bits]:
    """Zeros, one value, few values, sparse ones, whole columns, and noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    yield np.zeros(shape, dtype)
    yield np.full(shape, np.iinfo(dtype).max, dtype)
    yield noise
    yield noise & dtype(3)
    yield noise * (generator.random(shape) < 0.1).astype(dtype)
    yield (noise & dtype(3)) * (generator.random(shape) < 0.1).astype(dtype)
    if len(shape) > 1:
        yield noise * (generator.random(shape[1:]) < 0.3).astype(dtype)


@coders
@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_comes_back(name: str, shape: tuple[int, ...], dtype: type[np.unsignedinteger]) -> None:
    for bits in patterns(shape, dtype):
        round_trip(name, np.asarray(bits).reshape(-1), shape[0] if len(shape) > 1 else 1)


@coders
def test_does_something(name: str) -> None:
    """A coder that always declines would pass everything else."""
    many = np.random.default_rng(0).random(5000) + 0.5
    kinds = {"many values": many, "few values": np.arange(5000) % 7.0, "many values, ten times": np.tile(many[:500], 10)}
    kinds |= {f"{kind}, sparse": values * (np.arange(5000) % 9 == 0) for kind, values in kinds.items()}
    applied = [kind for kind, values in kinds.items() if round_trip(name, values.astype(np.float32).view(np.uint32))]
    assert applied != []


@coders
@settings(max_examples=40)
@given(
    st.sampled_from(UNSIGNED).flatmap(lambda d: hnp.arrays(d, st.integers(1, 90), elements=st.integers(0, 2**8 - 1))), st.data()
)
def test_any_small_tensor(name: str, bits: Bits, data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([n for n in range(1, len(bits) + 1) if len(bits) % n == 0]))
    round_trip(name, bits, rows)


@coders
@pytest.mark.parametrize("count", [2047, 2048, 70_000])
def test_many_streams(name: str, count: int) -> None:
    for bits in patterns((count // 2, 2), np.uint32):
        round_trip(name, bits.reshape(-1), count // 2)


@functools.cache
def sample_of(name: str) -> tuple[Bits, bytes]:
    """60 elements in 4 rows that the coder can code, and how it does."""
    numbers = np.arange(60, dtype=np.float32)
    odd = np.array([0, 0, 0, 1, 0, 3, 0, 0, 0x80000000, 0x7FC00001, 0, 0] * 5, np.uint32)
    kinds = [
        odd,
        (numbers % 7 * np.float32(0.3)).view(np.uint32),
        np.sqrt(numbers // 15 + numbers % 15 % 2 * 5).view(np.uint32),
    ]
    values = next(values for values in kinds if CODERS[name].size(Survey(values, 4)) is not None)
    return values, b"".join(CODERS[name].encode(Survey(values, 4)))


@coders
@settings(max_examples=100)
@given(st.data())
def test_damage_is_refused_or_seen_by_the_checksum(name: str, data: st.DataObject) -> None:
    values, coded = sample_of(name)
    payload = bytearray(coded)
    at = data.draw(st.integers(0, len(payload) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "add", "replace"])):
        case "flip":
            payload[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del payload[at:]
        case "add":
            payload += data.draw(st.binary(min_size=1, max_size=9))
        case "replace":
            payload[at:] = data.draw(st.binary(min_size=len(payload) - at, max_size=len(payload) - at))
    frame = Frame(name, bytes(payload), checksum_of(values))
    try:
        found = decode_frame(frame, Layout(values.dtype, len(values), 4), "test")
    except FormatError:
        return
    assert np.array_equal(found, values), "what passes must be what was coded"


@coders
@settings(max_examples=100)
@given(st.binary(max_size=80), st.sampled_from(UNSIGNED), st.integers(1, 40), st.integers(1, 40))
def test_any_bytes_decode_or_are_refused(name: str, payload: bytes, dtype: type, rows: int, columns: int) -> None:
    try:
        found = CODERS[name].decode(Cursor(payload, "test"), Layout(np.dtype(dtype), rows * columns, rows))
    except FormatError:
        return
    assert found.shape == (rows * columns,)


@coders
@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(name: str, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (6, 8 * dtype.itemsize), dtype=torch.uint8)
    raw = raw % 2 if dtype is torch.bool else raw
    raw[2:4] = 0
    raw[:, 2 * dtype.itemsize :] = raw[0, : dtype.itemsize].repeat(6)
    tensor = raw.view(dtype)
    for view in (tensor, tensor.t(), tensor[:, 1::3], tensor[0, 0]):
        bits = bits_of(view)
        rows = view.shape[0] if view.dim() > 1 else 1
        if round_trip(name, bits, rows) is not None:
            back = tensor_of(bits, dtype, view.shape)
            assert back.dtype == dtype
            assert np.array_equal(bits_of(back), bits)
            assert bits.nbytes == view.numel() * dtype.itemsize


def test_numbers_are_distinct_and_in_order() -> None:
    assert [coder.number for coder in CODERS.values()] == list(range(len(CODERS)))


@settings(max_examples=40)
@given(hnp.arrays(np.uint32, st.integers(1, 400), elements=st.sampled_from([0, 0, 0, 0, 1, 2, 0x3F800000, 0xBF800000])))
def test_the_chosen_coder_is_the_smallest(bits: Bits) -> None:
    sizes = {name: len(payload) for name in CODERS if (payload := round_trip(name, bits)) is not None}
    assert sizes[choose(Survey(bits))] == min(sizes.values())


def test_all_of_one_value_costs_a_few_bytes() -> None:
    bits = np.full(1_000_000, 0x3F800000, np.uint32)
    assert round_trip(choose(Survey(bits)), bits) == b"\0" + bits[:1].tobytes()


def test_palettes_of_256_values_are_found_and_larger_ones_are_codebooks() -> None:
    bits = np.random.default_rng(0).permutation((np.arange(1, 257, dtype=np.uint32) * np.uint32(0x9E3779B1)).repeat(40))
    assert choose(Survey(bits)).startswith("palette")
    assert choose(Survey(np.append(bits, np.uint32(1000)))) == "codebook_ans"
