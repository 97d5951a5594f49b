"""Every script in examples/ runs, and prints what its reader is told to expect."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "compress_digits": ("smaller", ["digits.fw", "digits.report.json"]),
    "compress_transformer": ("times smaller; of 32 new texts", ["small.fw", "whole.fw"]),
    "own_recipe": ("cluster-weights {'clusters': 32, 'init': 'linear'}", ["own.fw", "own.report.json", "recipe.toml"]),
    "pack_and_measure": ("all parts together: True\nthe same outputs: True", ["net.fw"]),
}
MOST_LINES = 40


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text, files = EXPECTED[name]
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert text in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < MOST_LINES
