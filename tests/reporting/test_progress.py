"""Progress: bars in a terminal, one line per finished task elsewhere, standard output untouched."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from featherweight.reporting.progress import RichProgress
from featherweight.training.progress import Progress


def report_all(progress: Progress, task: str, total: int, note: str = "") -> None:
    for done in range(1, total + 1):
        progress(task, done, total, note)


def test_a_log_gets_one_line_per_finished_task() -> None:
    log = io.StringIO()
    with RichProgress(Console(file=log, width=20)) as progress:
        report_all(progress, "tune", 100, note="epoch 1/1, loss [0.31] and more that must not be wrapped")
        report_all(progress, "evaluate", 3)
        report_all(progress, "evaluate", 3)
        progress("pack", 1, 2)
    assert [re.sub(r"^\[\d+\.\d s\] ", "", line) for line in log.getvalue().splitlines()] == [
        "tune: 100/100, epoch 1/1, loss [0.31] and more that must not be wrapped",
        "evaluate: 3/3",
        "evaluate: 3/3",
    ]


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress() as progress:
        report_all(progress, "tune", 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("tune: 2/2\n")


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    with RichProgress(Console(file=screen, force_terminal=True, width=100)) as progress:
        report_all(progress, "tune", 4, note="loss 0.25")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("tune")
    assert "4/4" in last
    assert last.rstrip().endswith("loss 0.25")


def test_a_task_that_starts_over_keeps_its_one_bar() -> None:
    screen = io.StringIO()
    with RichProgress(Console(file=screen, force_terminal=True, width=100)) as progress:
        report_all(progress, "evaluate", 3)
        progress("evaluate", 1, 3)
        progress("tune", 1, 5)
        assert [(task.description, task.completed, task.finished) for task in progress._bars.tasks] == [
            ("evaluate", 1, False),
            ("tune", 1, False),
        ]


def test_the_display_is_closed_when_work_fails() -> None:
    progress = RichProgress(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert not progress._bars.live.is_started
