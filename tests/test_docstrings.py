"""Every example in a docstring runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest


def test_examples(module_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples fail, see above"


def test_examples_of_cached_functions_are_found() -> None:
    program = importlib.import_module("featherweight.graph.functions")
    assert any(case.examples for case in doctest.DocTestFinder().find(program.resolve_op, "resolve_op", module=program))
