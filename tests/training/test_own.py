"""The user's own loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from featherweight.errors import DataError, RequestError
from featherweight.training.own import cut_validation, load_function, load_own

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def batch(value, samples=4):
    return [(torch.full((samples, 2), value), torch.arange(samples) % 2)]

def three(): return batch(1.0), batch(2.0), batch(3.0)
def two(): return batch(1.0, 40), batch(3.0)
def one(): return batch(1.0)
def generator(): return iter(batch(1.0)), batch(1.0)
def empty(): return [], batch(1.0)
def unequal(): return [(torch.zeros(2), torch.zeros(3))], batch(1.0)
def unpaired(): return [torch.zeros(4, 2)], batch(1.0)
def broken(): raise KeyError("my file")
number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the user's, under a name of its own for each test."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def first(loader: Any) -> float:
    return float(next(iter(loader))[0][0, 0])


def test_three_loaders_are_left_as_they_are(own: str) -> None:
    assert [first(loader) for loader in load_own(f"{own}:three", 0.1, 0)] == [1.0, 2.0, 3.0]


def test_validation_is_cut_from_training(own: str) -> None:
    train, validation, test = load_own(f"{own}:two", 0.1, 0)
    assert [first(loader) for loader in (train, validation, test)] == [1.0, 1.0, 3.0]
    assert [sum(len(targets) for _, targets in loader) for loader in (train, validation)] == [36, 4]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one", r"must return loaders \(train, validation, test\) or \(train, test\), got list of tuple"),
        ("generator", "have a length of at least 1, but TypeError"),
        ("empty", "got NoneType as the first of 0 batches"),
        ("unequal", "got tuple of Tensor, Tensor as the first of 1 batches"),
        ("unpaired", "got Tensor as the first of 1 batches"),
        ("broken", "failed with KeyError: 'my file'"),
    ],
)
def test_wrong_loaders_are_errors(own: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_own(f"{own}:{function}", 0.1, 0)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module_here:f", "importing 'no_such_module_here' failed with ModuleNotFoundError"),
        ("math:no_such", "math has no function 'no_such'"),
        ("math:pi", "math has no function 'pi'"),
        (":f", "importing '' failed"),
        ("math:", "math has no function ''"),
        ("math", "math has no function ''"),
    ],
)
def test_wrong_references_are_errors(reference: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_function(reference)


def numbered(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(samples))[:, None], torch.arange(samples) % 2)


def members(loader: Any) -> list[float]:
    return sorted(float(x) for inputs, _ in loader for x in inputs)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(numbered(20))

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(numbered(20), batch_size=4, shuffle=True),
        lambda: DataLoader(numbered(20), batch_size=4, shuffle=False),
        lambda: DataLoader(Stream(), batch_size=4),
        lambda: list(DataLoader(numbered(20), batch_size=4)),
    ],
    ids=["shuffled", "ordered", "stream", "list"],
)
def test_cut_parts_the_samples_and_keeps_the_batch_size(make: Any) -> None:
    rest, validation = cut_validation(make(), 0.2, seed=3)
    assert sorted(members(rest) + members(validation)) == [float(i) for i in range(20)]
    assert len(members(validation)) == 4
    assert len(next(iter(rest))[1]) == 4
    again, other = cut_validation(make(), 0.2, seed=3)[1], cut_validation(make(), 0.2, seed=4)[1]
    assert members(again) == members(validation)
    assert members(other) != members(validation)


def test_cut_keeps_whether_to_shuffle() -> None:
    torch.manual_seed(0)
    for shuffle in (True, False):
        rest, validation = cut_validation(DataLoader(numbered(40), batch_size=40, shuffle=shuffle), 0.5, seed=0)
        passes = [next(iter(rest))[0].flatten().tolist() for _ in range(2)]
        assert (passes[0] != passes[1]) == shuffle
        assert next(iter(validation))[0].tolist() == next(iter(validation))[0].tolist()


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="1 training samples are too few"):
        cut_validation(DataLoader(numbered(1)), 0.1, 0)
    with pytest.raises(DataError, match="2 training samples are too few"):
        cut_validation([(torch.zeros(2, 1), torch.arange(2))], 0.1, 0)
