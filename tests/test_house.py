"""The rules of the house that a program can check: layers, sizes, and what is not to be used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import featherweight

# A module may import from strictly lower levels and from its own folder. featherweight/__init__.py is the facade.
LEVELS = {
    "errors": 0,
    "files": 1,
    "graph": 2,
    "training": 3,
    "nets": 4,
    "pruning": 4,
    "quantization": 4,
    "distillation": 5,
    "exporting": 5,
    "packaging": 5,
    "measuring": 6,
    "factorization": 7,
    "dynamic": 8,
    "search": 9,
    "reporting": 10,
    "facade": 11,
    "experiments": 12,
    "cli": 13,
    "__main__": 14,
}

# Pickles run code when they are read; timm and torchvision would be large dependencies for little.
FORBIDDEN_IMPORTS = {"cPickle", "cloudpickle", "dill", "pickle", "shelve", "timm", "torchvision"}

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60


def test_every_folder_has_a_level(source: Path) -> None:
    assert _level(_module_of(source)) is not None, "a new folder gets a level in LEVELS"
    assert (source.parent / "__init__.py").exists(), "every folder of the package is a package"


def test_imports_point_downwards(source: Path) -> None:
    module = _module_of(source)
    if module == "featherweight":
        pytest.skip("the facade names things from everywhere, and imports them when they are used")
    wrong = [name for name in _imports(ast.parse(source.read_text())) if not _may_import(module, name)]
    assert wrong == [], f"{module} may import only from levels below its own, see LEVELS"


def test_file_is_short(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= MOST_LINES_OF_A_FILE


def test_functions_are_short(source: Path) -> None:
    lengths = _function_lengths(ast.parse(source.read_text()))
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


def test_nothing_forbidden_is_used(source: Path) -> None:
    assert list(_forbidden(ast.parse(source.read_text()))) == []


def _module_of(source: Path) -> str:
    parts = source.relative_to(Path(featherweight.__file__).parent.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(name: str) -> str:
    """The part of the package a name belongs to: "featherweight.graph.program" to graph, "featherweight" to the facade."""
    return name.partition(".")[2].partition(".")[0] or "facade"


def _level(name: str) -> int | None:
    return LEVELS.get(_part(name))


def _may_import(module: str, name: str) -> bool:
    """Whether `module` may import the module, or the name in a module, `name`."""
    if name.partition(".")[0] != "featherweight" or name == "featherweight.__version__" or _part(module) == _part(name):
        return True
    own, other = _level(module), _level(name)
    if other is None:  # a name of the facade: "featherweight.compress"
        other = LEVELS["facade"]
    return own is not None and other < own


def _imports(tree: ast.AST) -> Iterator[str]:
    """The full dotted names of all that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def _function_lengths(tree: ast.AST) -> dict[str, int]:
    """The lines of each function from its `def` on, without its docstring."""
    lengths = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _lines(node)
            if ast.get_docstring(node) is not None:
                length -= _lines(node.body[0])
            lengths[f"{node.name}, line {node.lineno}"] = length
    return lengths


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _forbidden(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert vanishes under python -O; raise an error of featherweight.errors"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: a bare except also catches KeyboardInterrupt"
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: a relative import; say from which module"
    for name in _imports(tree):
        if name.partition(".")[0] in FORBIDDEN_IMPORTS and name != "pickle.UnpicklingError":  # torch.load raises it
            yield f"import of {name}"


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [
        ("featherweight.graph.capture", "torch.export", True),
        ("featherweight.graph.capture", "featherweight.errors.CaptureError", True),
        ("featherweight.graph.capture", "featherweight.graph.program.Ref", True),
        ("featherweight.training.loop", "featherweight.graph.capture", True),
        ("featherweight.graph.capture", "featherweight.training.loop", False),
        ("featherweight.pruning.weights", "featherweight.quantization.clusters", False),
        ("featherweight.packaging.writer", "featherweight.exporting.onnx", False),
        ("featherweight.packaging.writer", "featherweight.measuring", False),
        ("featherweight.packaging.writer", "featherweight.__version__", True),
        ("featherweight.search.compress", "featherweight.reporting.progress", False),
        ("featherweight.search.compress", "featherweight.load", False),
        ("featherweight.cli", "featherweight.reporting.progress", True),
        ("featherweight.cli", "featherweight.compress", True),
        ("featherweight.graph.capture", "featherweight", False),
    ],
)
def test_levels(module: str, name: str, allowed: bool) -> None:
    assert _may_import(module, name) is allowed


def test_checks_find_what_they_look_for() -> None:
    tree = ast.parse(
        """
def loads(x):
    '''One line,

    and two more.'''
    import pickle
    from featherweight.graph import program
    from . import sibling
    assert x
    try:
        return pickle.loads(x)
    except:
        return 0
"""
    )
    assert list(_imports(tree)) == ["pickle", "featherweight.graph.program", "..sibling"]
    assert _function_lengths(tree) == {"loads, line 2": 9}
    assert [fault.split(";")[0].split(":")[0] for fault in _forbidden(tree)] == [
        "line 8",
        "line 9",
        "line 12",
        "import of pickle",
    ]
