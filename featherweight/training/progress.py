"""How long-running work says how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called after every batch; the command draws a bar with it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Reports that `done` of `total` batches of `task` are finished; `note` is a short remark ("epoch 2/5, loss 0.31")."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Reports nothing: the default.

    Args:
        task, done, total, note: as in `Progress`; not looked at.

    Example:
        >>> silent("train", 1, 10, "loss 0.5")
    """
