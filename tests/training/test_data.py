"""Data sets by name: parts that do not mix, numbers that are normalised, and errors that help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featherweight.errors import DataError, RequestError
from featherweight.training.data import Data, check_fits, load_data
from featherweight.training.datasets import read_digits
from featherweight.training.loaders import Loader, TensorLoader


def everything(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def npz(path: Path, **arrays: Any) -> str:
    rng = np.random.default_rng(0)
    defaults = {
        "x_train": rng.normal(5, 3, (40, 2, 4, 4)),
        "y_train": np.arange(40) % 4,
        "x_test": rng.normal(5, 3, (8, 2, 4, 4)),
        "y_test": np.arange(8) % 4,
    }
    np.savez(path / "data.npz", **(defaults | arrays))
    return str(path / "data.npz")


def test_digits() -> None:
    data = load_data("digits", batch_size=50)
    parts = [everything(loader) for loader in (data.train, data.validation, data.test)]
    assert data.input_shape == (1, 8, 8)
    assert data.example.shape == (4, 1, 8, 8)
    assert data.classes == 10
    assert sum(len(targets) for _, targets in parts) == 1797
    assert abs(len(parts[1][1]) / (len(parts[0][1]) + len(parts[1][1])) - 0.1) < 0.01
    for inputs, targets in parts:
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert set(targets.tolist()) == set(range(10))
    assert len(next(iter(data.train))[1]) == 50


def test_inputs_are_normalised_by_the_training_part() -> None:
    data = load_data("digits")
    train, _ = everything(data.train)
    assert abs(train.mean()) < 1e-4
    assert abs(train.std() - 1) < 1e-3
    raw = read_digits().test.inputs
    inputs, _ = everything(data.test)
    slope = (inputs.max() - inputs.min()) / (raw.max() - raw.min())
    assert torch.allclose(inputs[:, 0], (raw - raw.min()) * slope + inputs.min(), atol=1e-5), "one shift and scale for all"


def test_channels_are_normalised_apart(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal([[[1.0]], [[-50.0]]], [[[0.1]], [[20.0]]], (40, 2, 4, 4))
    inputs[:, :, 0, 0] = inputs[:, :, 0, 1]
    train, _ = everything(load_data(npz(tmp_path, x_train=inputs)).train)
    assert train.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (train.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-2


def test_constant_channel_becomes_zero(tmp_path: Path) -> None:
    train, _ = everything(load_data(npz(tmp_path, x_train=np.full((40, 2, 4, 4), 7.0))).train)
    assert torch.equal(train, torch.zeros_like(train))


def test_seed_moves_the_validation_part_and_not_the_test_part() -> None:
    one, same, other = (load_data("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(everything(one.validation)[0], everything(same.validation)[0])
    assert everything(one.validation)[1].tolist() != everything(other.validation)[1].tolist()
    assert torch.equal(everything(one.test)[1], everything(other.test)[1])


def test_parts_do_not_mix(tmp_path: Path) -> None:
    numbered = np.arange(40, dtype=np.float32)[:, None]
    path = npz(tmp_path, x_train=numbered, x_test=100 + np.arange(8)[:, None])
    data = load_data(path)
    train, validation, test = (everything(loader)[0].flatten().tolist() for loader in (data.train, data.validation, data.test))
    assert (len(train), len(validation), len(test)) == (36, 4, 8)
    assert len(set(train + validation + test)) == 48
    assert max(train + validation) < min(test)


def test_own_validation_part_is_used(tmp_path: Path) -> None:
    path = npz(tmp_path, x_validation=np.zeros((3, 2, 4, 4)), y_validation=np.array([0, 1, 2]))
    data = load_data(path)
    assert everything(data.validation)[1].tolist() == [0, 1, 2]
    assert len(everything(data.train)[1]) == 40


def test_image_folder(tmp_path: Path) -> None:
    for label, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(np.full((5, 6), 150 * label + i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    data = load_data(str(tmp_path))
    assert data.input_shape == (1, 5, 6)
    assert data.classes == 2
    for loader, count in ((data.train, 14), (data.validation, 2), (data.test, 4)):
        inputs, targets = everything(loader)
        assert len(targets) == count
        assert torch.equal(targets, (inputs[:, 0, 0, 0] > 0).long())


def test_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_of_test_data.py").write_text(
        "import torch\ndef loaders():\n    b = [(torch.full((6, 3), 9.0), torch.arange(6))]\n    return b, b, b\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load_data("own_of_test_data:loaders")
    assert data.classes == 6
    assert data.input_shape == (3,)
    assert torch.equal(everything(data.train)[0], torch.full((6, 3), 9.0)), "left as it is"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": np.zeros((8, 2, 5, 4))}, r"but test and training have \(2, 5, 4\) and \(2, 4, 4\)"),
        ({"y_test": np.full(8, 4)}, r"must be in \[0, 4\) as in .*training.*, got 4 to 4 in test"),
        ({"y_train": np.arange(40) % 4 - 1}, "got -1 to"),
        ({"x_test": np.full((8, 2, 4, 4), np.nan)}, "test data of .* hold NaN or infinity"),
        ({"y_train": np.arange(40)}, "needs 2 training samples"),
    ],
)
def test_contradictory_data_are_errors(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(npz(tmp_path, **arrays))


def test_wrong_requests_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"must be one of digits, fashion-mnist, mnist, a folder of images, .* got 'mnits'"):
        load_data("mnits")
    with pytest.raises(RequestError, match="batch_size must be >= 1, got 0"):
        load_data("digits", batch_size=0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEATHERWEIGHT_DATA", raising=False)
    with pytest.raises(DataError, match="cache/featherweight/fashion-mnist"):
        load_data("fashion-mnist", data_dir=tmp_path)


@pytest.mark.skipif("FEATHERWEIGHT_DATA" not in os.environ, reason="needs the real files")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files(name: str) -> None:
    data = load_data(name)
    assert data.input_shape == (1, 28, 28)
    sizes = [len(everything(loader)[1]) for loader in (data.train, data.validation, data.test)]
    assert sum(sizes) == 70000
    assert sizes[2] == 10000
    assert abs(sizes[1] - 6000) <= 5


# --- does it fit?


def tiny(inputs: torch.Tensor, targets: torch.Tensor, classes: int = 3) -> Data:
    loader = TensorLoader(inputs, targets)
    return Data("tiny", loader, loader, loader, classes)


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


GOOD = torch.zeros(5, 4)
TARGETS = torch.tensor([0, 1, 2, 0, 1])


def test_what_fits_passes_and_is_not_changed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_fits(tiny(torch.randn(5, 4), TARGETS), model)
    check_fits(tiny(torch.randn(5, 4), TARGETS), nn.Linear(4, 7))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].training


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (tiny(torch.zeros(5, 6), TARGETS), nn.Linear(4, 3), r"a batch \(5, 6\) of tiny does not fit Linear: mat1 and mat2"),
        (tiny(GOOD, TARGETS), nn.Linear(4, 2), r"must give outputs \(5, at least 3\) .* got \(5, 2\)"),
        (tiny(GOOD, TARGETS), nn.Flatten(0), r"got \(20,\)"),
        (tiny(GOOD, TARGETS), Pair(), "got a tuple"),
        (tiny(GOOD, TARGETS, classes=2), nn.Linear(4, 3), r"targets must be in \[0, 2\), but .* has 0 to 2"),
        (tiny(GOOD, TARGETS - 1), nn.Linear(4, 3), "has -1 to 1"),
        (
            tiny(GOOD, TARGETS.float()),
            nn.Linear(4, 3),
            r"\(B,\) int64, but those of tiny are \(5,\) torch.float32",
        ),
        (tiny(GOOD, torch.eye(5)[:, :3].long()), nn.Linear(4, 3), r"are \(5, 3\)"),
        (tiny(GOOD / 0, TARGETS), nn.Linear(4, 3), "holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_an_error(data: Data, model: nn.Module, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_fits(data, model)
    assert "\n" not in str(caught.value)
