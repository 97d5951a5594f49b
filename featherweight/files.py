"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from featherweight.errors import RequestError

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    Where the system can, the file has no name until it is complete, so that not even a killed process leaves one behind.

    Args:
        path: of the file that appears, or is replaced; its folder must exist.

    Returns:
        A context that gives the binary file to write to.

    Raises:
        RequestError: the path cannot be written, or the disk is full; an older file stays as it was.

    Example:
        >>> with replacing("notes.txt") as file:
        ...     _ = file.write(b"whole")
        >>> Path("notes.txt").read_bytes()
        b'whole'
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with _unnamed_file(target.parent) or open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not temporary.exists():
                _name(file, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(f"a path must be writable, got {os.fspath(path)!r}: {reason}; choose another") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unnamed_file(folder: Path) -> IO[bytes] | None:
    """A file in `folder` that has no name yet, or None where the system knows no such thing."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "wb")
    return None


def _name(file: IO[bytes], name: Path) -> None:
    """Gives an unnamed file its name, by a copy where the file system cannot link it."""
    handles = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        os.link(str(file.fileno()), name, src_dir_fd=handles, follow_symlinks=True)
    except OSError:
        shutil.copyfile(f"/proc/self/fd/{file.fileno()}", name)
    finally:
        os.close(handles)


def _sync_folder(folder: Path) -> None:
    """Makes the new name last, where a folder can be opened and synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
