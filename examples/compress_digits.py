"""Makes a small network for handwritten digits smaller still: train, compress, and see what was gained."""

from __future__ import annotations

import featherweight as fw
from featherweight.nets import mlp
from featherweight.reporting import print_before_after
from featherweight.search import ClusterWeights, PruneWeights, Recipe
from featherweight.training import Tuning, load_data


def main() -> None:
    """Writes digits.fw and digits.report.json into the working directory."""
    data = load_data("digits")
    net = mlp(input_shape=data.input_shape, classes=data.classes)
    recipe = Recipe(
        training=Tuning(epochs=8, learning_rate=3e-3),
        steps=(
            PruneWeights(sparsities=(0.5, 0.8), tuning=Tuning(epochs=3)),
            ClusterWeights(clusters=(16,), tuning=Tuning(epochs=2)),
        ),
    )
    budget = fw.Budget.parse("size=5KB, accuracy_drop=2pp")
    found = fw.compress(net, data, budget=budget, recipe=recipe, out="digits.fw")
    print_before_after(found.before, found.after)
    for line in found.unmet:
        print("not met:", line)


if __name__ == "__main__":
    main()
