"""Whatever is in a file: the outcome is its tensors or a `FormatError`, soon, and without taking much memory."""

from __future__ import annotations

import contextlib
import runpy
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import FormatError
from featherweight.packaging import inspect, load, load_tensors

FOLDER = Path(__file__).parent
CORPUS = sorted(FOLDER.glob("*.fw"))
GOLDEN = {name: (FOLDER.parent / f"golden/{name}.fw").read_bytes() for name in ("network", "tensors", "network-3", "tensors-3")}
MAKE: dict[str, Any] = runpy.run_path(str(FOLDER / "make.py"))

MOST_SECONDS = 5.0
MOST_BYTES = 200_000_000


def read_timed(read: Callable[[Path], Any], path: Path) -> Any:
    """Reads; a `FormatError` is fine, anything else, or too much time, is not."""
    start = time.process_time()
    try:
        return read(path)
    except FormatError as error:
        return error
    finally:
        assert time.process_time() - start < MOST_SECONDS


def read_traced(read: Callable[[Path], Any], path: Path) -> None:
    """Reads, and fails for anything but a `FormatError` or too much memory. (Tracing is slow: time is another matter.)"""
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_hostile_files_are_refused_soon(path: Path) -> None:
    outcome = read_timed(load, path)
    assert isinstance(outcome, FormatError)
    assert ("checksum does not match" in str(outcome)) == path.stem.startswith("wrong-checksum"), (
        "each file reaches its own check"
    )
    for read in (load_tensors, inspect):
        read_timed(read, path)


READ_ALL = """
import contextlib, resource, sys
from featherweight.errors import FormatError
from featherweight.packaging import inspect, load, load_tensors
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with contextlib.suppress(FormatError):
    load(sys.argv[1])  # whatever is imported late, is now
before = peak()
for path in sys.argv[1:]:
    for read in (load, load_tensors, inspect):
        with contextlib.suppress(FormatError):
            read(path)
print(peak() - before)
"""


def test_hostile_files_take_little_memory() -> None:
    command = [sys.executable, "-c", READ_ALL, str(FOLDER.parent / "golden" / "network.fw"), *map(str, CORPUS)]
    grown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert int(grown) < MOST_BYTES


def test_the_corpus_is_what_the_script_makes() -> None:
    assert sorted(path.read_bytes() for path in CORPUS) == sorted(MAKE["FILES"].values())


def test_the_good_files_behind_the_corpus_are_good(tmp_path: Path) -> None:
    (tmp_path / "a.fw").write_bytes(MAKE["GOOD"])
    assert load_tensors(tmp_path / "a.fw")["w"].tolist() == [1, 1]
    (tmp_path / "b.fw").write_bytes(MAKE["GOOD_NETWORK"])
    assert load(tmp_path / "b.fw")(torch.tensor(-1.0)) == 0
    (tmp_path / "c.fw").write_bytes(MAKE["bomb"](1000))
    assert load_tensors(tmp_path / "c.fw")["w"].tolist() == [1] * 1000


@pytest.mark.parametrize("good", GOLDEN.values(), ids=GOLDEN)
def test_every_cut_is_noticed(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.fw"
    for size in range(0, len(good), 173):
        path.write_bytes(good[:size])
        for read in (load_tensors, inspect):
            with pytest.raises(FormatError):
                read(path)


@pytest.mark.parametrize("good", GOLDEN.values(), ids=GOLDEN)
def test_every_flipped_bit_is_noticed(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.fw"
    for at in range(0, 8 * len(good), 701):
        damaged = bytearray(good)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            load_tensors(path)


@settings(max_examples=60)
@given(st.sampled_from([*GOLDEN.values()]), st.data())
def test_mutations_never_do_harm(tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            damaged[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = tmp_path_factory.getbasetemp() / "mutated.fw"
    path.write_bytes(damaged)
    for read in (load, load_tensors, inspect):
        read_timed(read, path)
    read_traced(load, path)


@settings(max_examples=200)
@given(st.data())
def test_mutated_manifests_with_right_checksums_never_do_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Past the checksum: what a forger would send."""
    manifest = bytearray(
        MAKE["network"](
            b"\3\0\1\0\1\0\1", tensors=b"\2" + MAKE["name"](b"a.w") + MAKE["name"](b"b", 2), layouts=MAKE["float32"](1) * 2
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        manifest[data.draw(st.integers(0, len(manifest) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "forged.fw"
    path.write_bytes(MAKE["file"](bytes(manifest), MAKE["frame"](MAKE["ONE"]), MAKE["frame"](MAKE["ONE"])))
    for read in (load, load_tensors, inspect):
        read_timed(read, path)
    read_traced(load, path)
