"""The table of the experiment on binary weights: what is beside what, and how numbers over seeds are put together."""

from __future__ import annotations

from typing import Any

from featherweight.experiments.binary import EXPERIMENT
from featherweight.experiments.experiment import Outcome


def outcome(kind: str, seed: int, accuracy: float, **more: Any) -> Outcome:
    plain = {"accuracy": accuracy, "validation": 0.5, "bytes": 1000 * (seed + 1), "bits": 1.0 + seed / 10}
    return Outcome({"kind": kind, "seed": seed}, {"plain": plain, **more}, 1.0)


def test_rows() -> None:
    kinds = list(dict.fromkeys(cell["kind"] for cell in EXPERIMENT.cells(False)))
    outcomes = []
    for seed in (0, 1):
        for kind in kinds:
            more: dict[str, Any] = {}
            if kind == "mlp-drawn":
                more["real"] = outcome(kind, seed, 0.9 + seed / 100).result["plain"]
            if kind.endswith("bits"):
                more["arithmetic"] = {"sums": 600, "wrong": seed, "other_class": 2}
            outcomes.append(outcome(kind, seed, 0.98 + seed / 100, **more))
    table = EXPERIMENT.table(outcomes)
    rows = {row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ")[1:] for row in table.splitlines()[2:11]}
    plain = ["**1.50 ± 0.71**", "1,500", "1.05"]
    assert rows["MLP, BinaryConnect, deterministic"] == ["1.29", *plain, "–"]
    assert rows["MLP, BinaryConnect, stochastic"] == ["–", *plain, "–"]
    assert rows["MLP, BinaryConnect, stochastic, tested with the real weights"][:2] == ["1.18", "**9.50 ± 0.71**"]
    assert rows["MLP, BNN: signs for weights and inputs"] == ["0.96 to 1.40", *plain, "1 of 1,200"]
    assert rows["LeNet-5, XNOR: scaled signs for weights, signs for inputs"] == ["0.77 / –", *plain, "1 of 1,200"]
    assert len(rows) == len(kinds) + 1
    assert "over 2 seeds" in table
    assert "another class than in floats for 8 images" in table
