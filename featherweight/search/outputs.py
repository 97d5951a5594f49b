"""Where a search writes: the file, its report and its checkpoint, side by side."""

from __future__ import annotations

import os
from pathlib import Path

from featherweight.errors import RequestError

__all__ = ["check_writable", "checkpoint_path", "report_path"]


def check_writable(path: str | Path) -> Path:
    """The path, if a file can be written there; found by trying, before any training.

    Args:
        path: where a file shall go.

    Returns:
        The same as a `Path`.

    Raises:
        RequestError: its folder is missing or not writable, or it is a folder itself.

    Example:
        >>> check_writable("network.fw").name
        'network.fw'
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise RequestError(f"the output must be a writable path, but {str(path)!r} is not: {error}") from error
    return path


def report_path(path: Path) -> Path:
    """`network.report.json` for `network.fw`."""
    return path.with_suffix(".report.json")


def checkpoint_path(path: Path) -> Path:
    """The folder `network.fw.checkpoint` for `network.fw`: what a run that was broken off goes on from."""
    return path.with_name(path.name + ".checkpoint")
