"""What is committed as an experiment's result came from the recipe that is committed beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featherweight.search.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "experiments" / "deep_compression"


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda path: path.stem)
def test_result_comes_from_the_committed_recipe(path: Path) -> None:
    result = json.loads(path.read_text())
    recipe = json.loads(json.dumps(Recipe.load(FOLDER / f"{result['net']}.toml").as_dict()))
    assert {**recipe, "seed": result["recipe"]["seed"]} == result["recipe"]


@pytest.mark.parametrize("net", ["lenet-300-100", "lenet5"])
def test_kept_file_is_one_of_the_results(net: str) -> None:
    sizes = {}
    for path in (FOLDER / "results").glob(f"{net}-seed*.json"):
        sizes[path.with_suffix(".fw").read_bytes()] = json.loads(path.read_text())["after"]["size_bytes"]
    kept = (FOLDER / f"{net}.fw").read_bytes()
    assert sizes[kept] == len(kept)
