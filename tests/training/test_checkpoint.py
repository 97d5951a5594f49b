"""Checkpoints: a crash while writing leaves the old one; reading runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.training.checkpoint import fingerprint, read_checkpoint, write_checkpoint


def write(path: Path, model: nn.Module, epoch: int) -> None:
    write_checkpoint(path, epoch=epoch, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), fingerprint="id")


def test_reading_inverts_writing(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    write(tmp_path / "c", model, 4)
    state = read_checkpoint(tmp_path / "c")
    assert state is not None
    assert (state["fingerprint"], state["epoch"]) == ("id", 4)
    assert torch.equal(state["model"]["weight"], model.weight)
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert read_checkpoint(tmp_path / "no") is None


@pytest.mark.parametrize("crash", [OSError("disk full"), KeyboardInterrupt()])
def test_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: BaseException) -> None:
    write(tmp_path / "c", nn.Linear(2, 3), 1)
    before = (tmp_path / "c").read_bytes()

    def broken_save(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise crash

    monkeypatch.setattr(torch, "save", broken_save)
    with pytest.raises((RequestError, KeyboardInterrupt), match="disk full" if isinstance(crash, OSError) else None):
        write(tmp_path / "c", nn.Linear(2, 3), 2)
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_damaged_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "c", nn.Linear(2, 3), 1)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-200])
    with pytest.raises(RequestError, match="is no training checkpoint"):
        read_checkpoint(tmp_path / "c")


def test_fingerprint_sees_every_difference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    seen = {fingerprint(model, {"a": 1})}
    assert fingerprint(model, {"a": 1}) in seen
    seen.add(fingerprint(model, {"a": 2}))
    model[1].num_batches_tracked += 1
    seen.add(fingerprint(model, {"a": 1}))
    model[0].bias.requires_grad_(False)
    seen.add(fingerprint(model, {"a": 1}))
    model.double()
    seen.add(fingerprint(model, {"a": 1}))
    assert len(seen) == 5
