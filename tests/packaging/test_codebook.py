"""Codewords: those that are there are found and cost what they must, exactly; plain weights are let go at once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.graph.constraint import fold
from featherweight.packaging import codebook
from featherweight.packaging.codebook import decode_codewords, encode_codewords, find_codewords
from featherweight.packaging.coders import choose
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.survey import Bits, Survey
from featherweight.packaging.tensors import bits_of
from featherweight.quantization import cluster_weights, product_quantize


def of_codewords(rows: int, columns: int, group: int, block: int, count: int, *, zeros: float = 0.0) -> torch.Tensor:
    """A matrix of so many random codewords in each group of rows."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(-(-rows // group), count, block, generator=generator)
    numbers = torch.randint(0, count, (rows, columns // block), generator=generator)
    matrix = words[torch.arange(rows)[:, None] // group, numbers]
    kept = torch.rand(numbers.shape, generator=generator) >= zeros
    return torch.where(kept[:, :, None], matrix, torch.zeros(())).reshape(rows, columns)


def survey_of(matrix: torch.Tensor) -> Survey:
    return Survey(bits_of(matrix), len(matrix))


def round_trip(survey: Survey) -> int | None:
    """Codes and decodes; the bytes, or None if there are no codewords."""
    payload = encode_codewords(survey)
    if payload is None:
        return None
    cursor = Cursor(b"".join(payload), "test")
    assert np.array_equal(decode_codewords(cursor, survey.layout), survey.bits)
    cursor.end()
    return sum(map(len, payload))


def ideal_bits(matrix: torch.Tensor, group: int, block: int) -> float:
    """The entropy of each group's sub-vectors, and all their codewords but those of zeros, as they are."""
    bits = 0.0
    for part in matrix.split(group):
        words, counts = part.reshape(-1, block).unique(dim=0, return_counts=True)
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
        bits += 8 * matrix.element_size() * int((words != 0).any(1).sum()) * block
    return bits


@pytest.mark.parametrize(
    ("group", "block", "count", "zeros"),
    [
        (1, 1, 2, 0),
        (1, 1, 16, 0),
        (1, 1, 8, 0.8),
        (16, 1, 40, 0),
        (128, 1, 700, 0),
        (120, 4, 64, 0.5),
        (120, 9, 200, 0),
        (120, 30, 50, 0),
    ],
)
def test_codewords_are_found_and_cost_what_they_must(group: int, block: int, count: int, zeros: float) -> None:
    matrix = of_codewords(120, 720, group, block, count, zeros=zeros)
    survey = survey_of(matrix)
    found = find_codewords(survey)
    assert found is not None
    assert (found.group, found.block, found.has_zero) == (min(group, 120), block, zeros > 0)
    assert (found.sizes <= count).all()
    assert choose(survey) == "codebook_ans"
    size = round_trip(survey)
    assert size is not None
    assert 8 * size <= 1.03 * ideal_bits(matrix, group, block) + 400


def test_codewords_longer_than_a_row_of_the_sample_are_found_in_parts() -> None:
    matrix = of_codewords(64, 4096, 64, 2048, 5)
    found = find_codewords(survey_of(matrix))
    assert found is not None
    assert found.block == 1024
    assert round_trip(survey_of(matrix)) < matrix.numel() / 4


def test_networks_with_codebooks_of_every_kind_are_small() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.Conv2d(32, 64, 3))
    weight = net[1].weight
    for per, group in (("channel", 1), ("group", 16)):
        clustered = fold(cluster_weights(net, clusters=8, per=per)).get_parameter("1.weight").flatten(1)
        size = round_trip(survey_of(clustered))
        assert size is not None
        assert 8 * size <= 1.03 * ideal_bits(clustered, group, 1) + 400
    quantized = fold(product_quantize(net, codewords=32)).get_parameter("1.weight").flatten(1)
    size = round_trip(survey_of(quantized))
    assert size is not None
    assert 8 * size <= 1.03 * ideal_bits(quantized, 64, 9) + 400
    assert size < weight.numel() * 4 / 30


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_recurs_comes_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["<u1", "<u2", "<u4", "<u8"])))
    rows, block = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    columns = block * data.draw(st.integers(1, 40))
    seed, count = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 9))
    generator = np.random.default_rng(seed)
    words = generator.integers(0, np.iinfo(dtype).max, (rows, count, block), dtype, endpoint=True)
    words[:, 0] = data.draw(st.sampled_from([0, 1 << 8 * dtype.itemsize - 1, 1]))  # zero, minus zero, the smallest
    shared = data.draw(st.booleans())
    numbers = generator.integers(0, count, (rows, columns // block))
    matrix = words[np.zeros_like(numbers) if shared else np.arange(rows)[:, None], numbers]
    round_trip(Survey(matrix.reshape(-1), rows))


def test_odd_numbers_keep_their_bits() -> None:
    odd = np.array([0, 0x80000000, 0x7FC00001, 0x7F800000, 0xFFFFFFFF, 0x3F800001], np.uint32)
    survey = Survey(odd[np.random.default_rng(0).integers(0, 6, (40, 50)) * (np.arange(40)[:, None] % 2)].reshape(-1), 40)
    assert round_trip(survey) is not None or find_codewords(survey) is None
    words = np.random.default_rng(1).permutation(odd[np.arange(24) % 6]).reshape(6, 4)
    survey = Survey(words[np.random.default_rng(2).integers(0, 6, 500)].reshape(-1), 10)
    found = find_codewords(survey)
    assert found is not None
    assert not found.has_zero, "a codeword with a minus zero is none of zeros"
    assert round_trip(survey) is not None


@pytest.mark.parametrize("kind", ["normal", "integers", "grid", "few in all", "bfloat16"])
def test_other_tensors_are_left_to_others(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 300, generator=generator)
    few = torch.randint(0, 16, (64, 300), generator=generator)
    tensors = {"integers": few, "grid": (few + 1) * normal[:, :1], "few in all": normal[0][few], "bfloat16": normal.bfloat16()}
    assert find_codewords(survey_of(tensors.get(kind, normal))) is None


def test_plain_weights_are_let_go_within_milliseconds() -> None:
    survey = survey_of(torch.randn(1000, 4000))
    start = time.process_time()
    assert find_codewords(survey) is None
    assert time.process_time() - start < 0.15, "of four million weights a sample must do"


def test_sub_vectors_of_one_key_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_of(of_codewords(40, 400, 40, 4, 20))
    assert round_trip(survey) is not None

    def first(vectors: Bits) -> Bits:
        return vectors[..., 0] & np.uint32(0xFF)

    monkeypatch.setattr(codebook, "_keys", first)
    assert find_codewords(survey) is None


def test_more_codewords_than_numbers_of_two_bytes_are_declined() -> None:
    matrix = of_codewords(1, 1_200_000, 1, 1, 70_000)
    assert len(matrix.unique()) > 65536
    assert encode_codewords(survey_of(matrix)) is None
