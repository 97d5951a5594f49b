"""Recipes: read from TOML, checked before anything is done, and what their steps propose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.distillation import Lesson
from featherweight.errors import RequestError
from featherweight.graph.constraint import constraints_of, fold
from featherweight.pruning import Mask, prune_weights
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.pruning.weight_criteria import WEIGHT_CRITERIA
from featherweight.search.recipe import Recipe
from featherweight.search.steps import (
    STEPS,
    ClusterWeights,
    Factorize,
    NothingToDo,
    PruneNeurons,
    PruneWeights,
    QuantizeUniform,
    kind_of,
)
from featherweight.training import Tuning

EVERYTHING = """
seed = 7
[training]
epochs = 3
optimizer = "sgd"
[lesson]
temperature = 2
target = "dist"
[[step]]
kind = "prune-neurons"
sparsity = 0.1
rounds = 2
criterion = "random"
allocation = "uniform"
round_to = 4
[[step]]
kind = "prune-weights"
sparsities = [0.5, 0.9]
criterion = "taylor"
allocation = "erdos_renyi_kernel"
granularity = "4x4"
schedule = "linear"
until = 1
updates = 10
[step.tuning]
epochs = 2
[[step]]
kind = "cluster-weights"
clusters = [32, 4]
init = "density"
tuning = { learning_rate = 0.1 }
share = 0.5
[[step]]
kind = "quantize-uniform"
bits = [8, 4]
activation_bits = 8
rounding = "gptq"
[[step]]
kind = "factorize"
budgets = [0.5]
method = "tucker"
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Recipe]:
    def load(text: str) -> Recipe:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return Recipe.load(path)

    return load


def test_every_setting_is_read(load: Callable[[str], Recipe]) -> None:
    assert load(EVERYTHING) == Recipe(
        steps=(
            PruneNeurons(sparsity=0.1, rounds=2, criterion="random", allocation="uniform", round_to=4),
            PruneWeights(
                sparsities=(0.5, 0.9),
                criterion="taylor",
                allocation="erdos_renyi_kernel",
                granularity="4x4",
                schedule="linear",
                until=1,
                updates=10,
                tuning=Tuning(epochs=2),
            ),
            ClusterWeights(
                clusters=(32, 4), init="density", tuning=replace(ClusterWeights().tuning, learning_rate=0.1), share=0.5
            ),
            QuantizeUniform(bits=(8, 4), activation_bits=8, rounding="gptq"),
            Factorize(budgets=(0.5,), method="tucker"),
        ),
        training=Tuning(epochs=3, optimizer="sgd"),
        lesson=Lesson(temperature=2, target="dist"),
        seed=7,
    )


def test_tuning_that_is_named_in_part_keeps_the_rest_of_the_steps_own(load: Callable[[str], Recipe]) -> None:
    (step,) = load('[[step]]\nkind = "cluster-weights"\ntuning = { epochs = 9 }').steps
    assert step.tuning == Tuning(epochs=9, learning_rate=ClusterWeights().tuning.learning_rate), "9 epochs, however few steps"
    assert step.tuning.learning_rate != Tuning().learning_rate
    (step,) = load('[[step]]\nkind = "cluster-weights"\ntuning = { learning_rate = 0.5 }').steps
    assert step.tuning == replace(ClusterWeights().tuning, learning_rate=0.5)


def test_empty_recipe_is_the_default(load: Callable[[str], Recipe]) -> None:
    assert load("") == Recipe()
    assert [kind_of(step) for step in Recipe().steps] == ["prune-neurons", "prune-weights", "cluster-weights"]
    assert load("lesson = false") == Recipe(lesson=None)
    assert "lesson" not in Recipe(lesson=None).as_dict()


def test_no_step_is_a_recipe_too(load: Callable[[str], Recipe]) -> None:
    assert load("step = []").steps == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed = [", "readable TOML"),
        ("sead = 1", "seed, training, lesson, step, got sead"),
        ('seed = "x"', r"seed must be a whole number in \[0, 2\*\*32\)"),
        ("seed = -1", "seed"),
        ("seed = 4294967296", "seed"),
        ("seed = 1.5", "seed"),
        ("training = 5", "table of settings"),
        ("[training]\nepoch = 5", "got epoch"),
        ("[training]\nepochs = -1", "epochs must be"),
        ('[training]\nlearning_rate = "fast"', r"\[training\]"),
        ("lesson = true", r"\[lesson\] must be a table"),
        ("[lesson]\ntemperature = 0", "temperature must be above 0"),
        ("[lesson]\nfeatures = { a = 'b' }", "features must be Features"),
        ("step = 5", "list of tables"),
        ("step = [5]", "list of tables"),
        ("[step]\nkind = 'prune-weights'", "list of tables"),
        ("[[step]]\nsparsity = 0.5", "kind of step 1 must be one of prune-neurons"),
        ("[[step]]\nkind = 'prune-weight'", "did you mean 'prune-weights'"),
        ("[[step]]\nkind = 3", "kind of step 1"),
        ("[[step]]\nkind = 'prune-neurons'\n[[step]]\nkind = 'prune-weights'\nsparsity = 0.5", "step 2 .* got sparsity"),
        *(
            (f"[[step]]\nkind = '{kind}'\n{setting}", complaint)
            for kind, setting, complaint in [
                ("prune-neurons", "sparsity = 0", r"sparsity must be a number in \(0, 1\), got 0"),
                ("prune-neurons", "sparsity = 1", "sparsity"),
                ("prune-neurons", "sparsity = 'a'", "sparsity"),
                ("prune-neurons", "rounds = 0", "rounds"),
                ("prune-neurons", "rounds = 1.5", "rounds"),
                ("prune-neurons", "criterion = 'size'", "criterion must be one of"),
                ("prune-neurons", "allocation = 'size'", "allocation must be one of"),
                ("prune-neurons", "round_to = 0", "round_to"),
                ("prune-neurons", "share = 1.1", "share"),
                ("prune-neurons", "tuning = 3", "the tuning of step 1"),
                ("prune-neurons", "tuning = { optimizer = 'lion' }", "optimizer"),
                ("prune-weights", "sparsities = 0.5", "sparsities must be a list"),
                ("prune-weights", "sparsities = [0.5, 0.4]", "increasing"),
                ("prune-weights", "sparsities = [0.5, 1.0]", "sparsities"),
                ("prune-weights", "sparsities = ['0.5']", "sparsities"),
                ("prune-weights", "schedule = 'cube'", "did you mean 'cubic'"),
                ("prune-weights", "until = 0", "until"),
                ("prune-weights", "until = 1.1", "until"),
                ("cluster-weights", "clusters = 8", "clusters must be a list"),
                ("cluster-weights", "clusters = [8, 16]", "decreasing"),
                ("cluster-weights", "clusters = []", "clusters must be a list"),
                ("cluster-weights", "clusters = [8, 0]", "clusters"),
                ("cluster-weights", "clusters = [65536]", "clusters"),
                ("cluster-weights", "clusters = [8.0]", "clusters"),
                ("cluster-weights", "init = 'forgy'", "init must be one of"),
                ("quantize-uniform", "bits = 8", "bits must be a list"),
                ("quantize-uniform", "bits = [4, 8]", "decreasing"),
                ("quantize-uniform", "bits = [1]", r"in \[2, 16\]"),
                ("quantize-uniform", "activation_bits = 9", "activation_bits"),
                ("quantize-uniform", "rounding = 'up'", "rounding must be one of"),
                ("factorize", "budgets = [0.2, 0.5]", "decreasing"),
                ("factorize", "method = 'tuker'", "did you mean 'tucker'"),
            ]
        ),
    ],
)
def test_wrong_recipes_are_refused(load: Callable[[str], Recipe], text: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        load(text)
    assert "recipe.toml" in str(caught.value), "the message names the file"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="readable TOML"):
        Recipe.load(path)


def test_plain_data_holds_every_setting() -> None:
    recipe = Recipe(training=Tuning(epochs=1), seed=3)
    plain = recipe.as_dict()
    assert plain["seed"] == 3
    assert plain["training"]["epochs"] == 1
    tables = [dict(table) for table in plain["step"]]
    rebuilt = [STEPS[table.pop("kind")](**table | {"tuning": Tuning(**table["tuning"])}) for table in tables]
    assert tuple(rebuilt) == recipe.steps


def proposals(step: Any, net: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """What a step proposes when every proposal is accepted as it is."""
    found = [net]
    data = [(torch.randn(16, 6), torch.randint(3, (16,)))]
    for attempt in step.attempts(seed=0, data=data):
        found.append(attempt.propose(found[-1], net, example)[0])
        if attempt.after_step is not None:
            attempt.after_step(found[-1], 1.0)
    return found[1:]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


def test_neurons_go_round_by_round() -> None:
    nets = proposals(PruneNeurons(sparsity=0.5, rounds=3), two_layers(), torch.zeros(2, 6))
    assert [net[0].out_features for net in nets] == [10, 5, 3]  # round(0.5 · 5) = 2 go


def test_sparsity_rises_to_each_target() -> None:
    nets = proposals(PruneWeights(sparsities=(0.5, 0.75)), two_layers(), torch.zeros(2, 6))
    weights = [torch.cat([net[0].weight.flatten(), net[2].weight.flatten()]) for net in nets]
    assert [int((w == 0).sum()) for w in weights] == [90, 135]


def test_each_number_of_clusters_starts_from_the_networks_own_weights() -> None:
    net = two_layers()
    nets = proposals(ClusterWeights(clusters=(16, 2)), net, torch.zeros(2, 6))
    assert [len(n[0].weight.unique()) for n in nets] == [16, 2]
    (again,) = proposals(ClusterWeights(clusters=(2,)), net, torch.zeros(2, 6))
    assert torch.equal(nets[1][0].weight, again[0].weight), "16 clusters on the way make no difference"


def test_thin_layers_leave_masks_on_the_others() -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    masked = prune_weights(net, sparsity=0.5, allocation="uniform", include=["4.weight"])
    thin = proposals(Factorize(budgets=(0.3,)), masked, torch.zeros(2, 6))[0]
    assert "2.0.weight" in dict(thin.named_parameters())
    assert [type(c) for c in constraints_of(thin, "4.weight")] == [Mask]


@pytest.mark.parametrize(
    ("step", "net", "reason"),
    [
        (PruneNeurons(), nn.Linear(6, 3), "no neuron"),
        (PruneNeurons(sparsity=0.01), two_layers(), "none of 20 neurons would go"),
        (PruneNeurons(round_to=32), two_layers(), "multiples of 32"),
        (PruneWeights(), nn.BatchNorm1d(6), "two or more axes"),
    ],
)
def test_steps_say_when_there_is_nothing_to_do(step: Any, net: nn.Module, reason: str) -> None:
    with pytest.raises(NothingToDo, match=reason):
        proposals(step, net, torch.zeros(2, 6))


def test_criteria_are_passed_on() -> None:
    """Also to those that look at data; this network has no norms whose scales could be looked at."""
    net = two_layers()
    steps = [PruneNeurons(sparsity=0.5, rounds=1, criterion=name) for name in sorted(set(NEURON_CRITERIA) - {"bn_scale"})]
    kept = [proposals(step, net, torch.zeros(2, 6))[0] for step in steps]
    assert any(not torch.equal(kept[0][0].weight, other[0].weight) for other in kept[1:])
    steps = [PruneWeights(sparsities=(0.5,), criterion=name) for name in sorted(WEIGHT_CRITERIA)]
    found = [fold(proposals(step, net, torch.zeros(2, 6))[0])[0].weight for step in steps]
    assert len({tuple((weight != 0).flatten().tolist()) for weight in found}) >= len(found) - 2


def test_allocation_and_granularity_are_passed_on() -> None:
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4))

    def alive(step: PruneWeights) -> list[torch.Tensor]:
        pruned = proposals(step, net, torch.zeros(2, 8))[0]
        return [pruned[place].weight != 0 for place in (0, 2)]

    assert [int(w.sum()) for w in alive(PruneWeights(sparsities=(0.75,), allocation="uniform"))] == [40, 20]
    assert [int(w.sum()) for w in alive(PruneWeights(sparsities=(0.75,), allocation="erdos_renyi"))] == [32, 28]
    assert [int(w.sum()) for w in alive(PruneWeights(sparsities=(0.75,), allocation="lamp"))] != [40, 20]
    for weight in alive(PruneWeights(sparsities=(0.75,), granularity="row")):
        assert bool((weight.all(dim=1) | ~weight.any(dim=1)).all())
    for weight in alive(PruneWeights(sparsities=(0.5,), granularity="2:4", schedule="once")):
        assert bool((weight.reshape(-1, 4).sum(dim=1) == 2).all())


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ('kind = "prune-weights"\ncriterion = "magnitud"', "did you mean 'magnitude'"),
        ('kind = "prune-weights"\nallocation = "erdos_reni"', "did you mean 'erdos_renyi'"),
        ('kind = "prune-weights"\ngranularity = "rows"', "did you mean 'row'"),
        ('kind = "prune-weights"\ngranularity = "2:4"\nsparsities = [0.5]', "schedule must be once, with a pattern N:M"),
        ('kind = "prune-weights"\ngranularity = "2:4"\nschedule = "once"', "sparsity must be 0.5, 0 or None, got 0.6"),
        ('kind = "prune-weights"\ngranularity = "row"\nallocation = "row"', "'row' compares the entries of a row"),
        ('kind = "prune-weights"\ngranularity = 4', "step 1"),
        ('kind = "prune-weights"\nupdates = 0', "updates must be a whole number >= 1"),
        ('kind = "prune-neurons"\nallocation = "erdos_renyi"', "needs two or more axes"),
    ],
)
def test_wrong_ways_of_pruning_are_found_before_anything_is_done(
    load: Callable[[str], Recipe], step: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        load(f"[[step]]\n{step}")
