"""Writing: the same bytes for the same model, a file that is whole or not there, and refusals that say why."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.errors import FeatherweightError, RequestError
from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.constraint import Constraint, constrain
from featherweight.graph.program import Node, Program, Ref, TensorSpec
from featherweight.packaging import encode, load, load_tensors, save, save_tensors, writer
from featherweight.packaging.writer import pack, write

BIG = {"weight": torch.arange(100_000, dtype=torch.float32)}


def test_returns_the_size_of_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    size = save(model, tmp_path / "a.fw", example=torch.zeros(2, 3))
    assert size == (tmp_path / "a.fw").stat().st_size
    program = capture(model, torch.zeros(2, 3))
    assert (tmp_path / "a.fw").read_bytes() == pack(program, tensors_of(model, program))
    assert save_tensors(BIG, tmp_path / "b.fw") == (tmp_path / "b.fw").stat().st_size


def test_bytes_do_not_depend_on_the_order_of_a_dict_or_on_layout() -> None:
    tensors = {"b": torch.randn(40, 30), "a": torch.randn(7), "c": torch.zeros(3, 3)}
    backwards = dict(reversed(tensors.items()))
    backwards["b"] = tensors["b"].t().contiguous().t()
    assert pack(None, tensors) == pack(None, backwards)


SCRIPT = """
import torch
from featherweight.packaging.writer import pack
torch.manual_seed(0)
names = {f"layer{i}" for i in range(20)}
weights = dict(zip(sorted(names), torch.randn(20, 30).round(decimals=1)))
print(pack(None, {name: weights[name] for name in names}).hex())
"""


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_program_module_needs_no_example(tmp_path: Path) -> None:
    module = to_module(nn.Linear(3, 2), torch.zeros(2, 3))
    save(module, tmp_path / "a.fw")
    first = (tmp_path / "a.fw").read_bytes()
    save(load(tmp_path / "a.fw"), tmp_path / "b.fw")
    assert (tmp_path / "b.fw").read_bytes() == first


def test_a_missing_example_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="pass example="):
        save(nn.Linear(3, 2), tmp_path / "a.fw")
    assert list(tmp_path.iterdir()) == []


class Doubled(Constraint):
    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original * 2

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


@pytest.mark.parametrize("captured", [False, True])
def test_constraints_are_folded(tmp_path: Path, captured: bool) -> None:
    layer: nn.Module = nn.Linear(3, 2)
    layer = to_module(layer, torch.zeros(2, 3)) if captured else layer
    weight = layer.weight.detach().clone()
    constrain(layer, "weight", Doubled())
    save(layer, tmp_path / "a.fw", example=torch.zeros(2, 3))
    assert torch.equal(load_tensors(tmp_path / "a.fw")["weight"], weight)


def failing(after: int, error: BaseException) -> Any:
    """A stand-in for `write` that writes some bytes and fails."""

    def broken(file: io.RawIOBase, *_: Any) -> int:
        file.write(bytes(after))
        raise error

    return broken


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RequestError("no")],
    ids=lambda e: type(e).__name__,
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, unnamed: bool
) -> None:
    path = tmp_path / "a.fw"
    save_tensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr(writer, "write", failing(100_000, error))
    with pytest.raises(RequestError if isinstance(error, OSError) else type(error)):
        save_tensors(BIG, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EXDEV, "no links")


@pytest.mark.parametrize("missing", ["O_TMPFILE", "link"])
def test_saves_where_the_system_has_no_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "link":
        monkeypatch.setattr(os, "link", no_links)
    else:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    save_tensors(BIG, tmp_path / "a.fw")
    assert torch.equal(load_tensors(tmp_path / "a.fw")["weight"], BIG["weight"])
    assert list(tmp_path.iterdir()) == [tmp_path / "a.fw"]


KILLED = """
import os, signal, sys, torch
from featherweight.packaging import save_tensors, writer
def broken(file, *_):
    file.write(bytes(1_000_000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
writer.write = broken
save_tensors({}, sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no unnamed files")
def test_a_killed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.fw"
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["missing/a.fw", "folder", "file/a.fw"])
def test_a_path_that_cannot_be_written_is_a_request_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="must be writable"):
        save_tensors(BIG, tmp_path / where)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.fw").touch()
    (tmp_path / "link.fw").symlink_to("real.fw")
    save_tensors(BIG, tmp_path / "link.fw")
    assert (tmp_path / "link.fw").is_symlink()
    assert len(load_tensors(tmp_path / "real.fw")) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.empty(2, dtype=torch.bits8),
        torch.zeros((1,) * 33),
    ],
    ids=["sparse", "meta", "bits8", "33 axes"],
)
def test_tensors_a_file_cannot_hold_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="odd"):
        save_tensors({"fine": torch.zeros(2), "odd": tensor}, tmp_path / "a.fw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["w" * 1025, "\ud800", ".".join("a" * 100)])
def test_names_a_file_cannot_hold_are_refused(name: str) -> None:
    program = Program((), (TensorSpec(name, "buffer"),), (Node("relu", (Ref(0),)),), Ref(1))
    with pytest.raises(RequestError):
        pack(program, {name: torch.zeros(2)})


def test_a_program_without_its_tensors_is_refused() -> None:
    program = capture(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(RequestError, match="weight are missing"):
        pack(program, {"bias": torch.zeros(2)})


def test_every_error_belongs_to_the_family() -> None:
    with pytest.raises(FeatherweightError):
        pack(None, {"a": torch.eye(2).to_sparse()})


def test_write_says_how_much_it_wrote() -> None:
    file = io.BytesIO()
    assert write(file, None, BIG) == len(file.getvalue())


class Lazy(Mapping[str, torch.Tensor]):
    """Makes each tensor when it is asked for, and knows how many of them are alive."""

    def __init__(self, count: int) -> None:
        self.names = [f"layer{index}" for index in range(count)]
        self.alive = self.most_alive = self.made = 0

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = torch.arange(30.0).reshape(5, 6) * (self.names.index(name) + 1)
        self.alive += 1
        self.made += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(tensor, self._forget)
        return tensor

    def _forget(self) -> None:
        self.alive -= 1


def test_tensors_of_a_lazy_mapping_are_held_one_at_a_time(tmp_path: Path) -> None:
    lazy = Lazy(9)
    size = save_tensors(lazy, tmp_path / "lazy.fw")
    assert lazy.most_alive <= 2  # the next one is made before the name of the last one is bound anew
    assert lazy.made == 2 * len(lazy)
    assert (tmp_path / "lazy.fw").read_bytes() == encode(dict(lazy))
    assert size == len(encode(dict(lazy)))


def test_a_tensor_that_changes_while_it_is_written_is_refused(tmp_path: Path) -> None:
    class Changing(Lazy):
        def __getitem__(self, name: str) -> torch.Tensor:
            return super().__getitem__(name)[: 5 - self.made // 12]

    with pytest.raises(RequestError, match="the same each time it is asked for, 'layer2'"):
        save_tensors(Changing(9), tmp_path / "changing.fw")
    assert not (tmp_path / "changing.fw").exists()
