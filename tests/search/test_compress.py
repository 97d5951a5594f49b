"""The main job: budgets met and not, steps accepted and undone, and what is looked at when."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.distillation import Lesson
from featherweight.errors import CaptureError, DataError, RequestError, TrainingError, WeightsError
from featherweight.graph.capture import to_module
from featherweight.graph.constraint import fold
from featherweight.graph.selection import select_weights
from featherweight.measuring import count_parameters
from featherweight.measuring.latency import Latency
from featherweight.nets import mlp
from featherweight.packaging import load
from featherweight.pruning import prune_weights
from featherweight.search import Budget, ClusterWeights, Compressed, PruneNeurons, PruneWeights, Recipe, compress
from featherweight.search.outputs import check_writable
from featherweight.training import Data, Tuning, evaluate, fit
from featherweight.training.loaders import Batch, Loader

QUICK = Tuning(epochs=1, learning_rate=1e-3)
STEPS = (
    PruneNeurons(sparsity=0.3, rounds=2, tuning=QUICK, share=1),
    PruneWeights(sparsities=(0.5, 0.8), tuning=QUICK, share=1),
    ClusterWeights(clusters=(16, 4), tuning=QUICK),
)
ANY_LOSS = Budget(accuracy_drop=99)


@pytest.fixture(scope="session")
def trained(digits: Data) -> nn.Module:
    """Captured once, for capturing it anew for every attempt takes most of the time here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp(input_shape=(1, 8, 8))
    fit(net, digits.train, Tuning(epochs=12, learning_rate=1e-2))
    return to_module(net.eval(), digits.example)


class Counted:
    """A loader that counts its passes."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.passes = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        return iter(self.loader)


@pytest.mark.usefixtures("no_export")
def test_what_the_clock_calls_slower_is_undone(trained: nn.Module, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("featherweight.search.compress")

    def latencies(models: list[nn.Module], example: object) -> list[Latency]:
        """Fewer neurons take longer, fewer values as long."""
        return [Latency(1 / sum(p.numel() for p in fold(model).parameters()), 0.0, 7, 1, 1, "none") for model in models]

    monkeypatch.setattr(module, "compare_latency", latencies)
    budget = Budget(latency_s=1e-9, accuracy_drop=99)
    found = compress(trained, digits, budget=budget, recipe=Recipe(steps=STEPS), tune=no_tuning)
    assert outcomes(found)[:2] == [("prune-neurons", "undone, slower")] * 2
    assert ("cluster-weights", "kept") in outcomes(found)
    assert count_parameters(found.model) == count_parameters(trained)
    assert found.steps[0]["speed_up"] < 0.95


@pytest.mark.usefixtures("no_export")
def test_the_network_as_it_was_teaches(trained: nn.Module, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("featherweight.search.compress")
    seen: list[Any] = []

    def watch(student: nn.Module, teacher: nn.Module, loader: Loader, tuning: Tuning, **options: Any) -> None:
        seen.append((teacher, options["lesson"]))
        no_tuning(student, loader, tuning, **options)

    monkeypatch.setattr(module, "teach", watch)
    lesson = Lesson(temperature=3)
    compress(trained, digits, budget=ANY_LOSS, recipe=Recipe(steps=STEPS, lesson=lesson))
    assert len(seen) == 6
    for teacher, used in seen:
        assert used == lesson
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), trained.parameters(), strict=True))
    seen.clear()
    compress(trained, digits, budget=ANY_LOSS, recipe=Recipe(steps=STEPS[2:], lesson=None))
    assert seen == []


def outcomes(found: Compressed) -> list[tuple[str, str]]:
    return [(step["kind"], step["outcome"]) for step in found.steps]


def no_tuning(model: nn.Module, loader: Loader, tuning: Tuning, **options: Any) -> None:
    """Does not train; pruning on the way is done at once."""
    if options["after_step"] is not None:
        options["after_step"](model, 1.0)


@pytest.mark.usefixtures("no_export")
def test_everything_is_written_and_reported(trained: nn.Module, digits: Data, tmp_path: Path) -> None:
    """From the user's own class; the file is the network reported on, to the byte."""
    out, before = tmp_path / "net.fw", copy.deepcopy(trained.state_dict())
    net = mlp(input_shape=(1, 8, 8))
    net.load_state_dict(before)
    found = compress(net, digits, budget=ANY_LOSS, recipe=Recipe(steps=STEPS, seed=3), out=out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.fw", "net.report.json"]
    assert found.after.size_bytes == out.stat().st_size < found.before.size_bytes
    assert found.after.macs < found.before.macs
    assert found.after.nonzero_parameters < found.after.parameters < found.before.parameters
    assert found.after.latency_s > 0
    loaded = load(out)
    assert evaluate(loaded, digits.test) == found.after.accuracy
    inputs = digits.example
    torch.testing.assert_close(loaded(inputs), found.model(inputs))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items()), "the model is not changed"
    report = json.loads((tmp_path / "net.report.json").read_text())
    for part, measured in (("before", found.before), ("after", found.after)):
        assert report[part] == measured.as_dict()
        assert {"accuracy", "size_bytes", "parameters", "nonzero_parameters", "macs", "latency_s"} <= report[part].keys()
    assert report["steps"] == list(found.steps)
    assert outcomes(found) == [(kind, "kept") for kind in ("prune-neurons", "prune-weights", "cluster-weights") for _ in "12"]
    assert report["seeds"] == {"recipe": 3}
    assert report["threads"] == {"training": torch.get_num_threads(), "latency": 1}
    assert report["versions"]["torch"] == torch.__version__


@pytest.mark.usefixtures("no_export")
def test_same_seed_same_bytes(digits: Data, tmp_path: Path) -> None:
    recipe = Recipe(steps=STEPS, training=Tuning(epochs=2), seed=5)
    files = []
    for name in ("one.fw", "two.fw"):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(1), nn.Linear(64, 16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 10))
        net = to_module(net, digits.example)
        torch.manual_seed(len(files))  # what else draws random numbers must not matter
        compress(net, digits, budget=ANY_LOSS, recipe=recipe, out=tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


@pytest.mark.usefixtures("no_export")
def test_test_data_are_read_once_for_each_network(trained: nn.Module, digits: Data) -> None:
    counted = replace(digits, test=Counted(digits.test))
    passes_while_searching = []

    def tune(*arguments: Any, **options: Any) -> None:
        passes_while_searching.append(counted.test.passes)  # type: ignore[attr-defined]
        no_tuning(*arguments, **options)

    compress(trained, counted, budget=ANY_LOSS, recipe=Recipe(steps=STEPS), tune=tune)
    assert passes_while_searching == [0] * 6
    assert counted.test.passes == 2  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_export")
def test_what_costs_too_much_is_undone(trained: nn.Module, digits: Data) -> None:
    """Without tuning, 99 % sparsity ruins the network; the step ends there, and the next goes on from what it had kept."""
    steps = (PruneWeights(sparsities=(0.1, 0.99, 0.995), share=1), ClusterWeights(clusters=(64,)))
    found = compress(trained, digits, budget=Budget(accuracy_drop=3), recipe=Recipe(steps=steps), tune=no_tuning)
    assert outcomes(found) == [
        ("prune-weights", "kept"), ("prune-weights", "undone, too inaccurate"), ("cluster-weights", "kept"),
    ]  # fmt: skip
    ruined = found.steps[1]
    assert ruined["validation_drop"] > 3
    assert ruined["size_bytes"] < found.steps[0]["size_bytes"]
    weights = torch.cat([parameter.flatten() for parameter in found.model.parameters() if parameter.dim() > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.1, abs=1e-3)
    reference = evaluate(trained, digits.validation)
    assert 100 * (reference - evaluate(found.model, digits.validation)) <= 3


@pytest.mark.usefixtures("no_export")
def test_a_step_may_use_up_its_share_of_the_loss(trained: nn.Module, digits: Data) -> None:
    """The same attempt, which costs something, is kept or undone by the share of its step alone."""
    cost = compress(trained, digits, budget=ANY_LOSS, recipe=harsh(share=1), tune=no_tuning).steps[0]["validation_drop"]
    assert 0 < cost < 40
    for share, kept in ((0.51, True), (0.49, False)):
        found = compress(trained, digits, budget=Budget(accuracy_drop=2 * cost), recipe=harsh(share=share), tune=no_tuning)
        assert found.steps[0]["accepted"] is kept


def harsh(*, share: float) -> Recipe:
    return Recipe(steps=(PruneWeights(sparsities=(0.7,), share=share),))


@pytest.mark.usefixtures("no_export")
def test_without_a_word_on_accuracy_half_a_point_may_go(trained: nn.Module, digits: Data) -> None:
    found = compress(trained, digits, recipe=Recipe(steps=(PruneWeights(sparsities=(0.99,)),)), tune=no_tuning)
    assert outcomes(found) == [("prune-weights", "undone, too inaccurate")]
    assert found.after.accuracy == found.before.accuracy
    assert found.unmet == ()


@pytest.mark.usefixtures("no_export")
def test_what_gains_nothing_is_undone_and_harsher_attempts_follow(trained: nn.Module, digits: Data) -> None:
    """A network of 4 shared values has nothing to gain from 64, 16 or 4 of them."""
    first = compress(trained, digits, budget=ANY_LOSS, recipe=Recipe(steps=(ClusterWeights(clusters=(4,)),)), tune=no_tuning)
    steps = (ClusterWeights(clusters=(64, 16, 2)),)
    again = compress(first.model, digits, budget=ANY_LOSS, recipe=Recipe(steps=steps), tune=no_tuning)
    assert [outcome for _, outcome in outcomes(again)] == ["undone, no lighter", "undone, no lighter", "kept"]


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    "budget", [Budget(size_bytes=25_000), Budget(macs=8_000), Budget(latency_s=8e-3)], ids=["size", "macs", "latency"]
)
def test_search_stops_at_the_budget(trained: nn.Module, digits: Data, budget: Budget) -> None:
    """30 KB, 8,832 MACs and, as the fixture has it, 8.97 ms: the first round of pruning is enough for each of these."""
    found = compress(trained, digits, budget=replace(budget, accuracy_drop=99), recipe=Recipe(steps=STEPS), tune=no_tuning)
    assert outcomes(found) == [("prune-neurons", "kept")]
    assert found.steps[0]["within_budget"]
    assert found.unmet == ()


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        (Budget(size_bytes=100), "over the limit of 100"),
        (Budget(macs=10), "over the limit of 10"),
        (Budget(latency_s=1e-9), "over the limit of 1e-06 ms"),
    ],
    ids=["size", "macs", "latency"],
)
def test_impossible_budgets_give_the_lightest_network_and_the_excess(
    trained: nn.Module, digits: Data, tmp_path: Path, budget: Budget, complaint: str
) -> None:
    out = tmp_path / "net.fw"
    recipe = Recipe(steps=STEPS)
    found = compress(trained, digits, budget=replace(budget, accuracy_drop=99), recipe=recipe, out=out, tune=no_tuning)
    assert [step["outcome"] for step in found.steps] == ["kept"] * 6
    assert len(found.unmet) == 1
    assert complaint in found.unmet[0]
    assert out.stat().st_size == found.after.size_bytes < found.before.size_bytes / 5
    assert json.loads((tmp_path / "net.report.json").read_text())["unmet"] == list(found.unmet)


@pytest.mark.usefixtures("no_export")
def test_network_within_the_budget_is_left_as_it_is(trained: nn.Module, digits: Data) -> None:
    found = compress(trained, digits, budget=Budget(size_bytes=1_000_000), recipe=Recipe(steps=STEPS))
    assert found.steps == ()
    assert found.unmet == ()
    assert found.after.accuracy == found.before.accuracy


@pytest.mark.usefixtures("no_export")
def test_steps_without_anything_to_do_are_passed_over(digits: Data) -> None:
    net = nn.Sequential(nn.Flatten(1), nn.Linear(64, 10))
    found = compress(net, digits, budget=ANY_LOSS, recipe=Recipe(steps=STEPS), tune=no_tuning)
    assert outcomes(found)[:2] == [("prune-neurons", "nothing to do"), ("prune-weights", "kept")]
    assert "no neuron" in found.steps[0]["note"]
    assert found.after.size_bytes < found.before.size_bytes


@pytest.mark.usefixtures("no_export")
def test_rounds_end_when_nothing_is_left_to_remove(digits: Data) -> None:
    net = nn.Sequential(nn.Flatten(1), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 10))
    steps = (PruneNeurons(sparsity=0.5, rounds=5, share=1),)
    found = compress(net, digits, budget=ANY_LOSS, recipe=Recipe(steps=steps), tune=no_tuning)
    assert outcomes(found) == [("prune-neurons", "kept"), ("prune-neurons", "nothing to do")]


@pytest.mark.usefixtures("no_export")
def test_empty_recipe_packs_the_network_as_it_is(trained: nn.Module, digits: Data, tmp_path: Path) -> None:
    found = compress(trained, digits, recipe=Recipe(steps=()), out=tmp_path / "net.fw")
    assert found.steps == ()
    assert torch.equal(load(tmp_path / "net.fw")(digits.example), trained(digits.example))


@pytest.mark.usefixtures("no_export")
def test_training_that_breaks_keeps_the_last_good_network(trained: nn.Module, digits: Data, tmp_path: Path) -> None:
    steps = (*STEPS[:1], PruneWeights((0.5,), tuning=Tuning(epochs=3, learning_rate=1e30), share=1), *STEPS[2:])
    found = compress(trained, digits, budget=ANY_LOSS, recipe=Recipe(steps=steps), out=tmp_path / "net.fw")
    assert found.stopped is not None
    assert "finite" in found.stopped
    assert outcomes(found) == [("prune-neurons", "kept"), ("prune-neurons", "kept"), ("prune-weights", "stopped")]
    assert found.steps[-1]["note"] == found.stopped
    assert found.after.size_bytes == found.steps[-2]["size_bytes"]
    assert json.loads((tmp_path / "net.report.json").read_text())["stopped"] == found.stopped


@pytest.mark.usefixtures("no_export")
def test_first_training_that_breaks_leaves_nothing(digits: Data, tmp_path: Path) -> None:
    recipe = Recipe(training=Tuning(epochs=3, learning_rate=1e30))
    with pytest.raises(TrainingError, match="finite"):
        compress(mlp(input_shape=(1, 8, 8)), digits, recipe=recipe, out=tmp_path / "net.fw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_export")
def test_first_training_that_breaks_late_keeps_its_last_good_epoch(digits: Data, tmp_path: Path) -> None:
    def tune(model: nn.Module, loader: Loader, tuning: Tuning, **options: Any) -> None:
        fit(model, loader, Tuning(epochs=1), seed=options["seed"])
        raise TrainingError("the loss became nan", good_epochs=1)

    net = mlp(input_shape=(1, 8, 8))
    found = compress(net, digits, recipe=Recipe(training=Tuning(epochs=3)), out=tmp_path / "net.fw", tune=tune)
    expected = copy.deepcopy(net)
    fit(expected, digits.train, Tuning(epochs=1))
    assert found.stopped == "the loss became nan"
    assert found.steps == ()
    assert torch.equal(load(tmp_path / "net.fw")(digits.example), expected.eval()(digits.example))


@pytest.mark.usefixtures("no_export")
def test_zeros_stay_zero_through_every_attempt(trained: nn.Module, digits: Data) -> None:
    """Those the network came with, and those of the attempt before."""
    zeros: list[dict[str, torch.Tensor]] = []

    def watch(model: nn.Module, loader: Loader, tuning: Tuning, **options: Any) -> None:
        before = {name: weight == 0 for name, weight in select_weights(model).items()}
        fit(model, loader, tuning, seed=options["seed"], after_step=options["after_step"])
        after = {name: weight == 0 for name, weight in select_weights(model).items()}
        assert all(bool(after[name][was].all()) for name, was in before.items())
        zeros.extend([before, after])

    start = prune_weights(trained, sparsity=0.3)
    recipe = Recipe(steps=(PruneWeights((0.5, 0.8), tuning=QUICK, share=1), *STEPS[2:]))
    compress(start, digits, budget=ANY_LOSS, recipe=recipe, tune=watch)
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in zeros]
    total = sum(weight.numel() for weight in select_weights(trained).values())
    assert counts[:4] == [round(0.3 * total), round(0.5 * total), round(0.5 * total), round(0.8 * total)]


class Counting(nn.Module):
    """torch.export cannot capture what depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1)) * (2 if float(x.sum()) > 0 else 1)  # type: ignore[no-any-return]


def infinite() -> nn.Module:
    net = mlp(input_shape=(1, 8, 8))
    net.get_parameter("fc2.weight").data[0, 0] = torch.inf
    return net


@pytest.mark.parametrize(
    ("net", "error", "complaint"),
    [
        (mlp(input_shape=(1, 28, 28)), DataError, "does not fit"),
        (mlp(input_shape=(1, 8, 8), classes=9), DataError, "at least 10"),
        (infinite(), WeightsError, "fc2.weight"),
        (Counting(), CaptureError, "Counting"),
        (mlp(input_shape=(1, 8, 8)).requires_grad_(False), RequestError, "requires grad"),
    ],
    ids=["shape", "classes", "infinity", "capture", "frozen"],
)
def test_wrong_networks_are_refused_before_any_training(
    net: nn.Module, error: type[Exception], complaint: str, digits: Data, tmp_path: Path
) -> None:
    def tune(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained")

    recipe = Recipe(training=Tuning(epochs=1))
    with pytest.raises(error, match=complaint):
        compress(net, digits, recipe=recipe, out=tmp_path / "net.fw", tune=tune)
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_cannot_express_is_refused_before_any_training(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def translate(model: nn.Module, example: object) -> bytes:
        raise RequestError("ONNX cannot express this")

    monkeypatch.setitem(compress.__globals__, "translate", translate)
    with pytest.raises(RequestError, match="cannot express"):
        compress(mlp(input_shape=(1, 8, 8)), digits, recipe=Recipe(training=Tuning(epochs=1)), out=tmp_path / "net.fw")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_outputs_are_found_first(digits: Data, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "net.report.json").mkdir()
    wrong = [tmp_path, tmp_path / "file" / "net.fw", tmp_path / "missing" / "net.fw", tmp_path / "net.fw", Path("a\0b.fw")]
    before = sorted(tmp_path.rglob("*"))
    for out in wrong:
        with pytest.raises(RequestError, match="writable"):
            compress(mlp(input_shape=(1, 8, 8)), digits, recipe=Recipe(training=Tuning(epochs=1)), out=out)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_writable_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "net.fw").write_bytes(b"older")
    assert check_writable(str(tmp_path / "net.fw")) == tmp_path / "net.fw"
    assert (tmp_path / "net.fw").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RequestError, match="writable"):
        check_writable("")


def test_resuming_needs_an_output(digits: Data) -> None:
    with pytest.raises(RequestError, match="out="):
        compress(mlp(input_shape=(1, 8, 8)), digits, resume=True)


@pytest.mark.usefixtures("no_export")
def test_every_task_ends_its_progress(trained: nn.Module, digits: Data) -> None:
    reported: dict[str, tuple[int, int]] = {}

    def progress(task: str, done: int, total: int, note: str = "") -> None:
        assert 0 <= done <= total
        reported[task] = (done, total)

    recipe = Recipe(steps=(*STEPS, PruneNeurons(sparsity=0.001)), training=QUICK)
    compress(trained, digits, budget=ANY_LOSS, recipe=recipe, progress=progress)
    assert len(reported) == 1 + 6 + 1 + 2  # the training, the attempts, one with nothing to do, the measuring
    assert all(done == total for done, total in reported.values())
