"""Levels of rows and columns, and parities, against SPEC.md §6.7."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging import levels as levels_module
from featherweight.packaging.ans import TOTAL, AnsDecoder, AnsEncoder
from featherweight.packaging.cursor import Cursor
from featherweight.packaging.levels import (
    Levels,
    decode_parities,
    encode_parities,
    find_levels,
    read_levels,
    write_levels,
)


def test_a_level_is_half_an_octave() -> None:
    scales = 2 ** np.arange(10)
    symbols = np.repeat(scales[:, None], 1000, axis=1)
    levels = find_levels(symbols, np.arange(1000))
    assert levels.rows.tolist() == [max(15 - 2 * below, 0) for below in range(9, -1, -1)]
    assert levels.columns.tolist() == [15] * 1000
    turned = find_levels(symbols.T, np.arange(1000))
    assert (turned.rows.tolist(), turned.columns.tolist()) == (levels.columns.tolist(), levels.rows.tolist())


def test_magnitudes_and_parities_count_and_chance_does_not() -> None:
    symbols = np.zeros((4, 40), np.uint8)
    symbols[0, :3] = 1
    symbols[1] = 1
    assert find_levels(symbols, np.array([0, 0])).rows.tolist() == [15] * 4
    assert find_levels(symbols, np.array([0, 9])).rows.tolist() == [8, 15, 4, 4]
    assert find_levels(symbols, np.array([0, 1])).rows.tolist() == [11, 15, 10, 10]
    parities = np.zeros((4, 40), np.uint8)
    parities[2] = 1
    assert find_levels(symbols, np.array([0, 1]), parities).rows.tolist() == [10, 15, 13, 8]


def test_blocks_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(0).integers(0, 50, (70, 30)) * np.arange(1, 71)[:, None] // 70
    parities = symbols.astype(np.uint8) & 1
    whole = find_levels(symbols, np.arange(50), parities)
    assert len(set(whole.rows.tolist())) > 5
    monkeypatch.setattr(levels_module, "_BLOCK", 100)
    parts = find_levels(symbols, np.arange(50), parities)
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.columns, parts.columns)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_levels_come_back_and_add_up(rows: list[int], columns: list[int]) -> None:
    levels = Levels(np.array(rows, np.uint8), np.array(columns, np.uint8))
    encoder = AnsEncoder()
    write_levels(encoder, levels)
    cursor = Cursor(encoder.finish(), "test")
    decoder = AnsDecoder(cursor)
    found = read_levels(decoder, (len(rows), len(columns)))
    decoder.end()
    cursor.end()
    sides = np.random.default_rng(0).integers(0, 4, (len(rows), len(columns))).astype(np.uint8)
    assert found.contexts().tolist() == [[row + column for column in columns] for row in rows]
    assert np.array_equal(found.contexts(sides), 4 * found.contexts() + sides)


def code(parities: np.ndarray) -> bytes:
    encoder = AnsEncoder()
    return encode_parities(encoder, parities) + encoder.finish()


def decode(data: bytes, count: int) -> np.ndarray:
    cursor = Cursor(data, "test")
    decoder = AnsDecoder(cursor)
    found = decode_parities(cursor, decoder, count)
    decoder.end()
    cursor.end()
    return found


@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 99))
def test_parities_come_back(count: int, share: float, seed: int) -> None:
    parities = (np.random.default_rng(seed).random(count) < share).astype(np.uint8)
    data = code(parities)
    assert data[0] == min(max(round(16 * parities.mean()), 1), 15)
    assert np.array_equal(decode(data, count), parities)
    if data[0] == 8:
        assert data[1:] == np.packbits(parities, bitorder="little").tobytes()


@pytest.mark.parametrize("sixteenths", [1, 3, 6])
def test_parities_take_what_they_should(sixteenths: int) -> None:
    parities = (np.random.default_rng(0).random(100_000) < sixteenths / 16).astype(np.uint8)
    share = parities.mean()
    ideal = -100_000 / 8 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert ideal < len(code(parities)) < 1.002 * ideal


def test_frequencies_of_bytes_by_the_book() -> None:
    class Recorder(AnsEncoder):
        def put(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
            self.found = symbols.tolist(), frequencies.tolist()

    recorder = Recorder()
    encode_parities(recorder, np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0], np.uint8))
    weights = [4 ** bin(byte).count("1") * 12 ** (8 - bin(byte).count("1")) for byte in range(256)]
    wanted = [1 + weight * (TOTAL - 256) // 16**8 for weight in weights]
    wanted[0] += TOTAL - sum(wanted)
    assert recorder.found == ([1, 3], wanted)


@pytest.mark.parametrize("data", ["00", "10", "ff 01", "08 ff", "08 10", "08", "04 01 00"])
def test_damaged_parities_are_refused(data: str) -> None:
    with pytest.raises(FormatError):
        decode(bytes.fromhex(data), 4)
