"""What every test gets: one thread, the same random numbers each time, and the package's modules as a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "featherweight").rglob("*.py"))

# No deadline: the machines that run this are shared. The same examples each time: a red run can be repeated.
hypothesis.settings.register_profile("featherweight", deadline=None, derandomize=True)
hypothesis.settings.load_profile("featherweight")

torch.set_num_threads(1)


def _module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `source` runs once for each file of the package; with `module_name`, once for each module."""
    if "source" in metafunc.fixturenames:
        metafunc.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
    if "module_name" in metafunc.fixturenames:
        metafunc.parametrize("module_name", [_module_name(path) for path in SOURCES if path.name != "__main__.py"])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same seed and leaves torch's random state as it found it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
