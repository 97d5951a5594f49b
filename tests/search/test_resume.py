"""A search that is killed anywhere and resumed ends with the same file as one that is not."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.capture import to_module
from featherweight.search import Budget, ClusterWeights, PruneNeurons, PruneWeights, Recipe, compress
from featherweight.training import Data, Tuning

QUICK = Tuning(epochs=2, learning_rate=3e-3)
RECIPE = Recipe(
    steps=(
        PruneNeurons(sparsity=0.3, rounds=2, tuning=QUICK, share=1),
        PruneWeights(sparsities=(0.5,), tuning=QUICK, share=1),
        PruneNeurons(sparsity=0.001, tuning=QUICK),
        ClusterWeights(clusters=(8, 4), tuning=QUICK),
        PruneNeurons(sparsity=0.2, rounds=1, tuning=QUICK, share=1),
    ),
    training=Tuning(epochs=4, learning_rate=1e-2),
    seed=2,
)
BUDGET = Budget(accuracy_drop=20)


class Net(nn.Module):
    """A residual connection, batch norm, dropout, a depthwise convolution: all that has a state, or couples layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.norm2, self.dropout, self.fc = nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.pointwise(self.depthwise(x)))).relu()
        return self.fc(self.dropout(x.flatten(1)))  # type: ignore[no-any-return]


def net(*, captured: bool = True) -> nn.Module:
    """Captured once, as a .pt2 file would be: capturing it anew for every attempt takes most of the time here."""
    torch.manual_seed(7)
    return to_module(Net().eval(), torch.zeros(2, 1, 8, 8)) if captured else Net().eval()


class Killed:
    """A progress that notes who calls it, and stops everything at the call with a given number."""

    def __init__(self, after: int = -1) -> None:
        self.after = after
        self.tasks: list[str] = []

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        self.tasks.append(task)
        if len(self.tasks) == self.after:
            raise KeyboardInterrupt


def run(digits: Data, out: Path, *, model: nn.Module | None = None, recipe: Recipe = RECIPE, **options: Any) -> bytes:
    compress(model or net(), digits, budget=BUDGET, recipe=recipe, out=out, **options)
    return out.read_bytes()


@pytest.mark.usefixtures("no_export")
def test_killed_anywhere_and_resumed_ends_the_same(digits: Data, tmp_path: Path) -> None:
    """Interrupted in every task, by turns at its first call, in its middle, and at its last."""
    whole = Killed()
    expected = run(digits, tmp_path / "whole.fw", progress=whole)
    steps = json.loads((tmp_path / "whole.report.json").read_text())["steps"]
    assert Counter(step["kind"] for step in steps if step["outcome"] == "kept").keys() == {
        "prune-neurons", "prune-weights", "cluster-weights",
    }, "every kind of step has a part in the result"  # fmt: skip
    for turn, task in enumerate(dict.fromkeys(whole.tasks), start=1):
        calls = [number for number, name in enumerate(whole.tasks, start=1) if name == task]
        moment = calls[(0, len(calls) // 2, -1)[turn % 3]]
        out = tmp_path / f"killed-{moment}.fw"
        with pytest.raises(KeyboardInterrupt):
            run(digits, out, progress=Killed(moment))
        assert run(digits, out, resume=True) == expected, f"killed at call {moment}, in {whole.tasks[moment - 1]}"
        resumed = json.loads(out.with_suffix(".report.json").read_text())["steps"]
        assert [without_time(step) for step in resumed] == [without_time(step) for step in steps]
        assert not out.with_name(f"{out.name}.checkpoint").exists()


def without_time(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "seconds"}


@pytest.mark.usefixtures("no_export")
def test_the_users_own_class_killed_again_and_again_ends_the_same(digits: Data, tmp_path: Path) -> None:
    one_of_each = (replace(RECIPE.steps[0], rounds=1), RECIPE.steps[1], ClusterWeights((8,), tuning=QUICK))
    options: dict[str, Any] = {"model": net(captured=False), "recipe": replace(RECIPE, steps=one_of_each)}
    expected = run(digits, tmp_path / "whole.fw", **options)
    out, result, kills = tmp_path / "killed.fw", b"", 0
    while not result:
        try:
            result = run(digits, out, progress=Killed(14), resume=kills > 0, **options)
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 2
    assert result == expected


@pytest.mark.usefixtures("no_export")
def test_what_is_done_is_not_done_again(digits: Data, tmp_path: Path) -> None:
    whole, second = Killed(), Killed()
    run(digits, tmp_path / "whole.fw", progress=whole)
    first = Killed(1 + whole.tasks.index("cluster-weights 8 linear"))
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "killed.fw", progress=first)
    run(digits, tmp_path / "killed.fw", progress=second, resume=True)
    ended = set(first.tasks[:-1])
    assert len(ended) == 5
    expected = {"train": len(digits.validation) + 1}
    assert Counter(task for task in second.tasks if task in ended) == expected, "only the accuracy to compare with"


@pytest.mark.usefixtures("no_export")
def test_another_request_is_refused_and_the_run_kept(digits: Data, tmp_path: Path) -> None:
    out, start = tmp_path / "net.fw", net()
    with pytest.raises(KeyboardInterrupt):
        run(digits, out, model=start, progress=Killed(20))
    other = copy.deepcopy(start)
    other.get_parameter("fc.bias").data[0] += 1
    files = sorted(tmp_path.rglob("*"))
    asked: dict[str, Any] = {"model": start, "data": digits, "recipe": RECIPE, "budget": BUDGET}
    changes: dict[str, Any] = {
        "model": other,
        "data": replace(digits, name="others"),
        "recipe": replace(RECIPE, steps=RECIPE.steps[:1]),
        "budget": Budget(accuracy_drop=21),
    }
    for changed, value in changes.items():
        with pytest.raises(RequestError, match=rf"something else \({changed}\)"):
            compress(**asked | {changed: value}, out=out, resume=True)
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.usefixtures("no_export")
def test_a_finished_run_is_not_resumed(digits: Data, tmp_path: Path) -> None:
    recipe = Recipe(steps=())
    run(digits, tmp_path / "net.fw", recipe=recipe)
    with pytest.raises(RequestError, match="no run to resume"):
        run(digits, tmp_path / "net.fw", recipe=recipe, resume=True)
