"""A teacher's answers kept on disk, for long runs and for several students."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.training.checkpoint import fingerprint
from featherweight.training.mode import in_mode

__all__ = ["RememberedTeacher"]

_SCHEMA = "CREATE TABLE IF NOT EXISTS answers (inputs BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID"


class RememberedTeacher(nn.Module):
    """Answers from a file what its teacher was asked before, and asks it the rest.

    An answer is found by the content of the whole batch. `fit` draws the order of the data and their augmentation from its seed
    and the epoch, so that a second student (or a run that is resumed) sees the same batches and finds every answer, whatever
    the augmentation. Each answer is in the file as soon as it is given.

    Args:
        teacher: (B, …) -> logits; asked in eval mode, never trained.
        path: of an SQLite file; it is made if needed, and belongs to this teacher.

    Raises:
        RequestError: the file is no such memory, is another teacher's, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     teacher = RememberedTeacher(nn.Linear(3, 2), Path(folder, "answers.db"))
        ...     first = teacher(torch.ones(4, 3))
        ...     same = torch.equal(first, teacher(torch.ones(4, 3)))
        ...     teacher.close()
        >>> same, teacher.asked
        (True, 1)
    """

    def __init__(self, teacher: nn.Module, path: str | Path) -> None:
        super().__init__()
        self.teacher = teacher
        self.asked = 0
        self._path = Path(path)
        try:
            self._file = sqlite3.connect(self._path)
            self._file.execute(_SCHEMA)
            plain = fold(teacher)
            modules = [f"{type(module).__name__} {module.extra_repr()}" for module in plain.modules()]
            self._belongs_to(fingerprint(plain, {"modules": modules}))
        except sqlite3.Error as error:
            raise RequestError(
                f"a teacher's memory must be an SQLite file that can be written, but {path} is not: {error}"
            ) from error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The teacher's answer to a batch, from the file if it is there."""
        key = _digest(x)
        try:
            row = self._file.execute("SELECT logits FROM answers WHERE inputs = ?", (key,)).fetchone()
            if row is not None:
                return _from_bytes(row[0]).to(x.device)
            self.asked += 1
            with in_mode(self.teacher, training=False), torch.no_grad():
                logits: torch.Tensor = self.teacher(x)
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, _to_bytes(logits)))
        except sqlite3.Error as error:
            raise RequestError(f"the teacher's memory {self._path} cannot be used: {error}") from error
        return logits

    def close(self) -> None:
        """Closes the file; what was answered is in it already."""
        self._file.close()

    def _belongs_to(self, teacher: str) -> None:
        key = b"teacher"
        row = self._file.execute("SELECT logits FROM answers WHERE inputs = ?", (key,)).fetchone()
        if row is None:
            with self._file:
                self._file.execute("INSERT INTO answers VALUES (?, ?)", (key, teacher.encode()))
        elif row[0] != teacher.encode():
            with contextlib.suppress(sqlite3.Error):
                self._file.close()
            raise RequestError(f"{self._path} holds the answers of another teacher; give this one a file of its own")


def _digest(x: torch.Tensor) -> bytes:
    head = f"{x.dtype} {tuple(x.shape)} ".encode()
    content: Any = x.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=20, person=hashlib.blake2b(head, digest_size=16).digest()).digest()


def _to_bytes(logits: torch.Tensor) -> bytes:
    from safetensors.torch import save

    return save({"logits": logits.detach().cpu().contiguous()})


def _from_bytes(content: bytes) -> torch.Tensor:
    from safetensors.torch import load

    return load(content)["logits"]
