"""Cutting data sets, and reading those that need no format of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import DataError
from featherweight.training.datasets import Split, cut_test, read_digits, read_npz, stratify


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 9))
def test_stratify_cuts_every_class_alike(labels: list[int], fraction: float, seed: int) -> None:
    kept, cut = stratify(torch.tensor(labels), fraction, seed)
    assert sorted(kept.tolist() + cut.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert cut.tolist() == sorted(cut.tolist())
    for label in set(labels):
        total, there = labels.count(label), sum(labels[i] == label for i in cut.tolist())
        if total == 1:
            assert there == 0
        else:
            assert 1 <= there < total
            assert abs(there - fraction * total) <= 1


def test_stratify_depends_on_the_seed_only() -> None:
    targets = torch.arange(100) % 4
    first = stratify(targets, 0.1, 1)[1]
    torch.manual_seed(77)
    assert torch.equal(stratify(targets, 0.1, 1)[1], first)
    assert not torch.equal(stratify(targets, 0.1, 2)[1], first)


def test_single_samples_are_too_few_for_test_data() -> None:
    with pytest.raises(DataError, match="a class needs 2 samples"):
        cut_test(Split(torch.zeros(3, 1), torch.arange(3)))


def test_digits_are_what_scikit_learn_has() -> None:
    from sklearn.datasets import load_digits

    digits = read_digits()
    everything = torch.cat([digits.train.inputs, digits.test.inputs]) * 16
    assert abs(len(digits.test.targets) - 0.2 * 1797) <= 5, "ten classes, each rounded by at most a half"
    assert sorted(everything.flatten(1).tolist()) == sorted(load_digits().data.tolist())
    assert digits.validation is None


def archive(path: Path, **changes: Any) -> Path:
    arrays = {
        "x_train": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
        "y_train": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "x_test": np.zeros((3, 2, 2), dtype=np.uint8),
        "y_test": np.array([0, 1, 2]),
    }
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz(tmp_path: Path) -> None:
    splits = read_npz(archive(tmp_path / "data.npz"))
    assert torch.equal(splits.train.inputs, torch.arange(24, dtype=torch.uint8).reshape(6, 2, 2))
    assert splits.train.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.train.targets.dtype == torch.int64
    assert splits.validation is None
    assert len(splits.test.targets) == 3


def test_npz_with_validation(tmp_path: Path) -> None:
    path = archive(tmp_path / "data.npz", x_validation=np.full((1, 2, 2), 0.5), y_validation=np.array([2]))
    validation = read_npz(path).validation
    assert validation is not None
    assert validation.inputs.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    assert validation.targets.tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, "but lacks x_test, y_test"),
        ({"x_validation": np.zeros((1, 2, 2))}, "but lacks y_validation"),
        ({"x_train": np.array([["a"]] * 6)}, "x_train of .* must be real numbers with 2 or more axes"),
        ({"x_train": np.zeros(6)}, "x_train of .* must be real numbers with 2 or more axes"),
        ({"y_train": np.zeros(6)}, "y_train of .* must hold one whole-number label per sample"),
        ({"y_train": np.zeros(5, dtype=int)}, r"got int64 \(5,\) for 6 samples"),
        ({"x_test": np.zeros((0, 2, 2)), "y_test": np.zeros(0, dtype=int)}, "at least one"),
        ({"x_train": np.array([[{}]], dtype=object)}, "cannot be read as an .npz archive of plain arrays"),
    ],
)
def test_wrong_npz_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_npz(archive(tmp_path / "data.npz", **changes))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive"])
def test_unreadable_npz_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an"):
        read_npz(path)
