"""What the package promises, what it documents and what is there are the same; importing it is cheap."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import featherweight

# What only some calls need, and what only training and the command need.
OPTIONAL = {"PIL", "matplotlib", "onnx", "onnxruntime", "onnxscript", "rich", "sklearn"}
HEAVY = OPTIONAL | {"lightning_fabric", "torch", "typer"}


@pytest.mark.parametrize("name", featherweight.__all__)
def test_facade_keeps_its_promises(name: str) -> None:
    assert getattr(featherweight, name) is not None
    assert name in dir(featherweight)


def test_facade_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = featherweight.no_such_name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [("import featherweight", HEAVY), ("from featherweight import *", OPTIONAL)],
)
def test_import_is_light(statement: str, absent: set[str]) -> None:
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    loaded = set(process.stdout.split())
    assert "featherweight" in loaded
    assert loaded & absent == set()


def test_promised_names_exist_and_are_documented(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert module.__doc__, "a module says in its docstring what it is for"
    names = getattr(module, "__all__", None)
    assert names is not None, "a module lists its public names in __all__"
    assert len(set(names)) == len(names)
    undocumented = [name for name in names if not _documented(getattr(module, name))]
    assert undocumented == []


def test_docstrings_agree_with_signatures(module_name: str) -> None:
    """`Args:` names the parameters, all and only them; `Returns:` is there when something comes back."""
    if module_name == "featherweight.cli":
        pytest.skip("the docstring of a command is its help text")
    wrong = [fault for name, function in _functions(module_name) for fault in _faults(name, function)]
    assert not wrong, "\n".join(wrong)


def _documented(value: Any) -> bool:
    """Whether a function or class has a docstring that somebody wrote; anything else is taken as it is."""
    if inspect.isclass(value):
        generated = f"{value.__name__}("  # what a dataclass and a named tuple get when nobody wrote one
        return not (value.__doc__ or generated).startswith(generated)
    return not inspect.isroutine(inspect.unwrap(value)) or bool(value.__doc__)


def _functions(module_name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions a folder promises; what only its files share needs a docstring, not the whole form."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__path__"):
        for name in module.__all__:
            function = inspect.unwrap(getattr(module, name))
            if inspect.isfunction(function):
                yield name, function


def _faults(name: str, function: Callable[..., Any]) -> Iterator[str]:
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    parameters, documented = list(signature.parameters), _documented_arguments(text)
    if sorted(parameters) != sorted(documented):
        yield f"{name}: takes {parameters}, Args: has {documented}"
    nothing = signature.return_annotation in ("None", "NoReturn", None)
    if parameters and not nothing and not re.search(r"^(Returns|Yields):", text, re.MULTILINE):
        yield f"{name}: no Returns:"
    if ">>>" not in text:
        yield f"{name}: no Example:"


def _documented_arguments(text: str) -> list[str]:
    """The names before the colons in a docstring's `Args:`; "teacher, student: …" are two."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):", section[1], re.MULTILINE) if section else []
    return [name.strip(" *") for entry in entries for name in entry.split(",")]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Does it.", []),
        ("Does it.\n\nArgs:\n    x: shape (n,).\n        Note: more.\n    y, z: two.\n\nReturns:\n    w: no.", ["x", "y", "z"]),
        ("Does it.\n\nArgs:\n    *rest: many.\n", ["rest"]),
    ],
)
def test_documented_arguments(text: str, names: list[str]) -> None:
    assert _documented_arguments(text) == names


def test_faults_are_found() -> None:
    def stale(x: int) -> int:
        """Does it.

        Args:
            y: gone.
        """
        return x

    assert list(_faults("stale", stale)) == [
        "stale: takes ['x'], Args: has ['y']",
        "stale: no Returns:",
        "stale: no Example:",
    ]
