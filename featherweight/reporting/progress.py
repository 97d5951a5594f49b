"""Progress for a person who waits: bars in a terminal, one line for each finished task elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["RichProgress"]


class RichProgress:
    """A `Progress` that draws on standard error, to be used as a context manager.

    In a terminal each task has a bar with the time that is left; a task that starts over gets its bar back. Anywhere else (a
    pipe, a log file) a task gives one line when it is finished, with the seconds since the start of all. Standard output stays
    untouched.

    Args:
        console: where to draw; standard error by default.

    Example:
        >>> import io
        >>> from rich.console import Console
        >>> log = io.StringIO()
        >>> with RichProgress(Console(file=log)) as progress:
        ...     for done in range(1, 4):
        ...         progress("tune", done, 3, note=f"loss {1 / done:.2f}")
        >>> log.getvalue()
        '[... s] tune: 3/3, loss 0.33\\n'
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = console or Console(file=sys.stderr)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` batches of `task` are finished."""
        if self._console.is_terminal:
            self._draw(task, done, total, note)
        elif done >= total:
            line = f"[{time.monotonic() - self._start:.1f} s] {task}: {done}/{total}" + (f", {note}" if note else "")
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, task: str, done: int, total: int, note: str) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        bar = self._tasks[task]
        if self._bars.tasks[bar].finished and done < total:
            self._bars.reset(bar)
        self._bars.update(bar, completed=done, total=total, note=note)
