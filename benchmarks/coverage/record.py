"""What is written down about one network and one side: the stages tried, their seconds, and what went wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Record", "Stopped", "verdict_of"]

MOST_CHARACTERS = 600


class Stopped(Exception):
    """A stage failed that the later ones need."""


class Record:
    """A JSON file that is rewritten at each stage, so that it tells how far a killed process came."""

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self.facts: dict[str, Any] = {**facts, "stage": "start", "seconds": {}, "failed": {}}

    @contextmanager
    def stage(self, name: str, *, needed: bool = False) -> Iterator[None]:
        """Times what happens inside, on the clock and on the processor; an exception becomes an entry of `failed`.

        Raises:
            Stopped: it failed and was `needed`.
        """
        self.facts["stage"] = name
        self.write()
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        except Exception as error:  # the network's code and the library's may raise anything
            self.facts["failed"][name] = f"{type(error).__name__}: {error}"[:MOST_CHARACTERS]
            if needed:
                raise Stopped from error
        finally:
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor}
            self.facts["seconds"][name] = {kind: round(value, 3) for kind, value in seconds.items()}

    def write(self) -> None:
        """Replaces the file at once."""
        self.facts["verdict"] = verdict_of(self.facts)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def verdict_of(facts: dict[str, Any]) -> str:
    """ "ok", or the first stage that failed, for example "apply_fail"; "timeout" where time or memory ran out in a stage."""
    if "killed" in facts:
        return "timeout" if facts["killed"] == "time" else "crash"
    if facts["failed"]:
        return f"{next(iter(facts['failed']))}_fail"
    return "ok" if facts["stage"] == "end" else "unfinished"
