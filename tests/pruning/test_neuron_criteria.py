"""Criteria of neurons against the same numbers computed another way, channel by channel, and what must hold for them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from featherweight.graph.capture import to_module
from featherweight.graph.cutting import study
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.training.statistics import Evidence
from tests.graph.nets import Residual
from tests.pruning.neuron_nets import DATA, EXAMPLE, captured_chain


def score(name: str, model: nn.Module) -> list[torch.Tensor]:
    network = study(model, EXAMPLE)
    return [s for s in NEURON_CRITERIA[name](network.coupling.groups, network, Evidence(model, DATA)) if s is not None]


def slices(state: dict[str, torch.Tensor], group: int, channel: int) -> dict[str, torch.Tensor]:
    """All that belongs to a channel of `chain`, tensor by tensor."""
    if group == 0:
        vectors = {name: state[name][channel] for name in ("0.bias", "1.weight", "1.bias")}
        return {"0.weight": state["0.weight"][channel], "4.weight": state["4.weight"][:, channel], **vectors}
    flattened = state["7.weight"][:, 4 * channel : 4 * channel + 4]
    return {"4.weight": state["4.weight"][channel], "7.weight": flattened, "4.bias": state["4.bias"][channel]}


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten().tolist()


CHANNELS = [(group, channel) for group, size in ((0, 5), (1, 4)) for channel in range(size)]


@pytest.mark.parametrize(("name", "power"), [("magnitude", 2), ("group_l1", 1)])
def test_group_norms(name: str, power: int) -> None:
    model = captured_chain()
    scores, state = score(name, model), model.state_dict()
    for group, channel in CHANNELS:
        parts = [numbers(part) for part in slices(state, group, channel).values() if part.dim() > 0]
        means = [sum(abs(w) ** power for w in part) / len(part) for part in parts]
        assert len(means) == 2
        assert float(scores[group][channel]) == pytest.approx((sum(means) / 2) ** (1 / power), rel=1e-5)


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_filter_norms(name: str, power: int) -> None:
    model = captured_chain()
    scores, state = score(name, model), model.state_dict()
    for group, channel in CHANNELS:
        own = numbers(state["0.weight" if group == 0 else "4.weight"][channel])
        assert float(scores[group][channel]) == pytest.approx(sum(abs(w) ** power for w in own) ** (1 / power), rel=1e-5)


def test_filter_norms_are_of_all_that_produce_a_channel() -> None:
    model = Residual()
    network = study(model, torch.zeros(1, 3, 8, 8))
    scores = NEURON_CRITERIA["l1"](network.coupling.groups, network, Evidence(model))
    sums = dict(zip([group.name for group in network.coupling.groups], scores, strict=True))
    expected = model.stem.weight.abs().sum((1, 2, 3)) + model.a[0].weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(sums["stem.weight"], expected.detach())
    expected = model.projection.weight.abs().sum((1, 2, 3)) + model.b[3].weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(sums["b.3.weight"], expected.detach())


def test_transposed_convolutions_have_their_filters_on_axis_1() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose2d(4, 2, 2))
    network = study(model, torch.zeros(1, 3, 4, 4))
    (scores,) = NEURON_CRITERIA["l1"](network.coupling.groups, network, Evidence(model))
    torch.testing.assert_close(scores, model[0].weight.detach().abs().sum((0, 2, 3)))


def test_batch_norm_scale() -> None:
    model = captured_chain()
    (scores,) = score("bn_scale", model)  # the second group has no batch norm
    assert scores.tolist() == pytest.approx([abs(scale) for scale in model.state_dict()["1.weight"].tolist()])


def test_geometric_median() -> None:
    model = captured_chain()
    scores, state = score("fpgm", model), model.state_dict()

    def distance(group: int, a: int, b: int) -> float:
        means = []
        for one, other in zip(slices(state, group, a).values(), slices(state, group, b).values(), strict=True):
            if one.dim() > 0:
                pairs = zip(numbers(one), numbers(other), strict=True)
                means.append(sum((x - y) ** 2 for x, y in pairs) / one.numel())
        return math.sqrt(sum(means) / len(means))

    for group, channel in CHANNELS:
        others = [other for g, other in CHANNELS if g == group and other != channel]
        expected = sum(distance(group, channel, other) for other in others) / len(others)
        assert float(scores[group][channel]) == pytest.approx(expected, rel=1e-4)


def change(model: nn.Module, group: int, channel: int, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The derivative of the loss by a factor on every parameter of a channel, at 1."""
    factor = torch.ones((), requires_grad=True)
    state = dict(model.named_parameters())
    for name, part in slices({n: t.detach() for n, t in state.items()}, group, channel).items():
        one = torch.zeros_like(state[name])
        slices({**state, name: one}, group, channel)[name].fill_(1)
        assert int(one.sum()) == part.numel()
        state[name] = state[name].detach() * (1 + (factor - 1) * one)
    (gradient,) = torch.autograd.grad(cross_entropy(functional_call(model, state, (inputs,)), targets), factor)
    return float(gradient)


def test_taylor() -> None:
    model = captured_chain()
    scores = score("taylor", model)
    for group, channel in CHANNELS:
        squares = [change(model, group, channel, *batch) ** 2 for batch in DATA]
        assert float(scores[group][channel]) == pytest.approx(sum(squares) / len(DATA), rel=1e-3, abs=1e-7)


def test_fisher() -> None:
    model = captured_chain()
    scores = score("fisher", model)
    samples = [(x[None], t[None]) for x, t in itertools.chain.from_iterable(zip(*batch, strict=True) for batch in DATA)]
    assert len(samples) == 9
    for group, channel in CHANNELS:
        squares = [change(model, group, channel, *sample) ** 2 for sample in samples]
        assert float(scores[group][channel]) == pytest.approx(sum(squares) / 9, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", ["taylor", "fisher", "apoz"])
def test_scores_that_know_no_scale(name: str) -> None:
    """A channel made 10 times as large by its layer, and 10 times as small by the next, is as important as before."""
    before, after = captured_chain(), captured_chain()
    state = after.state_dict()
    state["4.weight"][2].mul_(10)
    state["4.bias"][2].mul_(10)
    state["7.weight"][:, 8:12].div_(10)
    for a, b in zip(score(name, before), score(name, after), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(score("l1", before)[1], score("l1", after)[1])


@pytest.mark.parametrize("name", ["taylor", "fisher", "apoz", "mean_activation"])
def test_a_dead_channel_scores_zero_and_no_other_does(name: str) -> None:
    model = captured_chain()
    model.state_dict()["1.bias"][3] = -1e4
    first, _ = score(name, model)
    assert float(first[3]) == 0
    assert bool((first[[0, 1, 2, 4]] > 0).all())


def test_taylor_depends_on_the_batches_and_fisher_does_not() -> None:
    model = captured_chain()
    network = study(model, EXAMPLE)
    inputs, targets = (torch.cat(part) for part in zip(*DATA, strict=True))
    for name, same in (("fisher", True), ("taylor", False)):
        cut = NEURON_CRITERIA[name](network.coupling.groups, network, Evidence(model, DATA))[0]
        whole = NEURON_CRITERIA[name](network.coupling.groups, network, Evidence(model, [(inputs, targets)]))[0]
        assert torch.allclose(cut, whole, rtol=1e-4) is same


def test_random_follows_the_seed() -> None:
    network = study(to_module(nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 2)), torch.zeros(1, 2)), torch.zeros(1, 2))
    first, again, other = (
        NEURON_CRITERIA["random"](
            network.coupling.groups, network, Evidence(nn.Identity(), generator=torch.Generator().manual_seed(seed))
        )[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < 0.2 < 0.8 < float(first.max()) < 1
