"""A recipe of your own, in a file: what to try, in which order; and the report of what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import featherweight as fw
from featherweight.search import Recipe
from featherweight.search.source import load_model
from featherweight.training import load_data

RECIPE = """
seed = 1
training = { epochs = 6, learning_rate = 3e-3 }
[[step]]
kind = "prune-neurons"
sparsity = 0.25
rounds = 1
tuning = { epochs = 2 }
[[step]]
kind = "cluster-weights"
clusters = [32, 8]
tuning = { epochs = 1 }
"""


def main() -> None:
    """Writes recipe.toml, own.fw and own.report.json into the working directory."""
    Path("recipe.toml").write_text(RECIPE)
    data = load_data("digits")
    net = load_model("zoo:mlp", input_shape=data.input_shape, classes=data.classes)
    fw.compress(net, data, budget=fw.Budget(accuracy_drop=3), recipe=Recipe.load("recipe.toml"), out="own.fw")
    for step in json.loads(Path("own.report.json").read_text())["steps"]:
        print(step["kind"], step["setting"], step["outcome"], step.get("size_bytes"))


if __name__ == "__main__":
    main()
