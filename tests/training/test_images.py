"""Folders of images: classes in alphabetical order, pixels as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featherweight.errors import DataError
from featherweight.training.images import read_image_folder


def save(path: Path, pixels: Any, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path)


def grey(value: int, shape: tuple[int, int] = (2, 3)) -> np.ndarray[Any, Any]:
    return np.full(shape, value)


def test_flat_folder(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / "cat" / f"{i}.png", grey(i))
        save(tmp_path / "ant" / f"{i}.PNG", grey(100 + i))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    splits = read_image_folder(tmp_path)
    assert splits.train.inputs.shape == (16, 1, 2, 3)
    assert splits.test.inputs.shape == (4, 1, 2, 3)
    assert splits.validation is None
    for split in (splits.train, splits.test):
        assert torch.equal(split.targets, (split.inputs[:, 0, 0, 0] < 100).long()), "ant is 0, cat is 1"
    values = torch.cat([splits.train.inputs, splits.test.inputs])[:, 0, 0, 0].tolist()
    assert sorted(values) == [*range(10), *range(100, 110)]


def test_parts(tmp_path: Path) -> None:
    for part, value in (("train", 1), ("validation", 2), ("test", 3)):
        for name in ("a", "b"):
            save(tmp_path / part / name / "x.png", grey(value))
    splits = read_image_folder(tmp_path)
    assert splits.validation is not None
    for split, value in ((splits.train, 1), (splits.validation, 2), (splits.test, 3)):
        assert split.inputs.tolist() == [[[[value] * 3] * 2]] * 2
        assert split.targets.tolist() == [0, 1]


def test_colour_is_channels_first(tmp_path: Path) -> None:
    pixels = np.arange(18).reshape(2, 3, 3)
    for part in ("train", "test"):
        save(tmp_path / part / "a" / "x.png", pixels)
        save(tmp_path / part / "b" / "x.png", grey(7))
    inputs = read_image_folder(tmp_path).train.inputs
    assert inputs.shape == (2, 3, 2, 3)
    assert torch.equal(inputs[0], torch.arange(18, dtype=torch.uint8).reshape(2, 3, 3).permute(2, 0, 1))
    assert inputs[1].unique().tolist() == [7], "one colour image makes the grey ones colour, too"


def test_odd_size_is_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", grey(i))
    save(tmp_path / "b" / "odd.png", grey(0, (4, 3)))
    with pytest.raises(DataError, match=r"b/odd\.png has \(3, 4\) and .*a/0\.png \(3, 2\) pixels"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", rng.integers(0, 255, (40, 40)))
    path = tmp_path / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(DataError, match=r"a/1\.png (cannot be read as an image|is a damaged image)"):
        read_image_folder(tmp_path)


def test_sixteen_bits_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(DataError, match=r"8 bits per channel, but .*deep\.png has Pillow's mode 'I;16'"):
        read_image_folder(tmp_path)


def test_wrong_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one folder of images .* per class, but it has no folders"):
        read_image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="the folder of class 'a' has none"):
        read_image_folder(tmp_path)
    save(tmp_path / "train" / "a" / "x.png", grey(0))
    with pytest.raises(DataError, match="so it must have test/, too"):
        read_image_folder(tmp_path)
    save(tmp_path / "test" / "b" / "x.png", grey(0))
    with pytest.raises(DataError, match=r"same classes, but .*test/ differ in a, b"):
        read_image_folder(tmp_path)
