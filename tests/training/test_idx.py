"""MNIST's files: what is read is what was written, and nothing else passes."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import DataError
from featherweight.training.idx import data_folders, read_idx, read_idx_folder


def idx(sizes: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes) + data


def write(path: Path, content: bytes, *, zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{path.name}.gz") if zipped else path
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def write_set(folder: Path, *, zipped: bool = False, samples: int = 6, labels: int | None = None) -> None:
    """A tiny MNIST: `samples` training images of 2x3 pixels, half as many test images."""
    for stem, count, many in (("train", samples, samples if labels is None else labels), ("t10k", samples // 2, samples // 2)):
        write(folder / f"{stem}-images-idx3-ubyte", idx((count, 2, 3), bytes(range(6 * count))), zipped=zipped)
        write(folder / f"{stem}-labels-idx1-ubyte", idx((many,), bytes(i % 3 for i in range(many))), zipped=zipped)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), zipped=st.booleans(), data=st.data())
def test_reading_inverts_writing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], zipped: bool, data: st.DataObject
) -> None:
    numbers = data.draw(st.binary(min_size=math.prod(sizes), max_size=math.prod(sizes)))
    path = write(tmp_path_factory.mktemp("idx") / "file", idx(tuple(sizes), numbers), zipped=zipped)
    read = read_idx(path, len(sizes))
    assert read.shape == tuple(sizes)
    assert read.dtype == torch.uint8
    assert bytes(read.flatten().tolist()) == numbers


GOOD = idx((2, 3), b"abcdef")


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_shortened_file_is_an_error(tmp_path: Path, length: int) -> None:
    with pytest.raises(DataError, match="no valid IDX file"):
        read_idx(write(tmp_path / "file", GOOD[:length]), 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b"x", "make 6 bytes, but it has more"),
        (b"\x00\x00\x0d" + GOOD[3:], "must start with"),
        (idx((6,), b"abcdef"), "must start with"),
        (idx((0, 3), b""), r"its sizes \[0, 3\] make 0"),
        (idx((2**32 - 1, 2**32 - 1), b"abc"), "must hold 1 to 2147483648 bytes"),
        (idx((2**15, 2**16), b"abc"), "make 2147483648 bytes, but it has 3"),
    ],
)
def test_wrong_idx_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(write(tmp_path / "file", content), 2)


@given(st.binary(max_size=60))
def test_noise_is_an_error_of_ours_or_valid(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("idx")
    for name in ("file", "file.gz"):
        try:
            tensor = read_idx(write(folder / name, content), 1)
        except DataError:
            continue
        assert content == idx(tuple(tensor.shape), bytes(tensor.tolist()))


@pytest.mark.parametrize("cut", [5, 15, -9, -1])
def test_damaged_gzip_is_an_error(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "file", GOOD, zipped=True)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"file\.gz cannot be read"):
        read_idx(path, 2)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_folder(tmp_path: Path, zipped: bool, nested: bool) -> None:
    write_set(tmp_path / "mnist" if nested else tmp_path, zipped=zipped)
    splits = read_idx_folder("mnist", data_folders("mnist", tmp_path, {}), "somewhere")
    assert torch.equal(splits.train.inputs, torch.arange(36, dtype=torch.uint8).reshape(6, 2, 3))
    assert splits.train.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.train.targets.dtype == torch.int64
    assert splits.test.targets.tolist() == [0, 1, 2]
    assert splits.validation is None


def test_first_place_with_all_four_files_wins(tmp_path: Path) -> None:
    write_set(tmp_path / "first", samples=6)
    (tmp_path / "first" / "t10k-labels-idx1-ubyte").unlink()
    write_set(tmp_path / "second", samples=4)
    write_set(tmp_path / "third", samples=2)
    splits = read_idx_folder("mnist", [tmp_path / "no", *(tmp_path / n for n in ("first", "second", "third"))], "somewhere")
    assert len(splits.train.targets) == 4


def test_places_in_order() -> None:
    folders = data_folders("mnist", "mine", {"FEATHERWEIGHT_DATA": "/data", "XDG_CACHE_HOME": "/cache"})
    assert [str(folder) for folder in folders] == [
        *("mine/mnist", "mine"),
        *("/data/mnist", "/data"),
        *("/cache/featherweight/mnist", "/cache/featherweight"),
        *("/usr/share/datasets/mnist", "/usr/share/datasets"),
    ]
    assert data_folders("mnist", None, {})[1] == Path.home() / ".cache" / "featherweight"


def test_missing_files_are_an_error_that_helps(tmp_path: Path) -> None:
    folders = data_folders("mnist", tmp_path, {"FEATHERWEIGHT_DATA": str(tmp_path / "data")})
    with pytest.raises(DataError) as caught:
        read_idx_folder("mnist", folders[:4], "https://example.org/mnist")
    message = str(caught.value)
    assert all(f"\n  {folder}\n" in message for folder in folders[:4])
    for part in ("'mnist' was not found", "https://example.org/mnist", "FEATHERWEIGHT_DATA", "t10k-labels-idx1-ubyte.gz"):
        assert part in message


def test_more_images_than_labels_are_an_error(tmp_path: Path) -> None:
    write_set(tmp_path, labels=5)
    with pytest.raises(DataError, match=r"one label.*, got 6 images and 5 labels"):
        read_idx_folder("mnist", [tmp_path], "somewhere")
