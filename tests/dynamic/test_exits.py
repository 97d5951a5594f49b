"""Exits: what is answered early is what computing everything would answer, and what is not needed is not run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.dynamic import CONFIDENCES, HEADS, ExitNetwork, Limit, add_exits
from featherweight.dynamic.branches import find_cuts
from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.constraint import duplicate
from featherweight.graph.cost import count_macs
from featherweight.graph.ops import row_of
from featherweight.graph.program import Call, map_refs
from featherweight.pruning import prune_neurons
from featherweight.training.mode import in_mode
from tests.dynamic.exit_nets import CLASSES, NETS, Residual, chain, samples

_MADE: dict[str, tuple[nn.Module, ExitNetwork]] = {}


def with_exits(name: str) -> ExitNetwork:
    """Exits on a network of the table; its heads are as they start."""
    if name not in _MADE:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            make, at = NETS[name]
            model = make().eval()
            _MADE[name] = model, add_exits(model, samples(2), at=at)
    _, net = _MADE[name]
    net.thresholds, net.confidence = (math.inf, math.inf), "probability"
    return net


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The MACs of every operation that a network with exits runs."""
    found: list[int] = []

    run = Call.__call__

    def counting(call: Call, values: Any, training: bool) -> Any:
        inputs = map_refs(call.node.args, lambda ref: values[ref.index])
        out = run(call, values, training)
        count = row_of(call.node.op).macs
        if count is not None:
            found.append(count(inputs, out))
        return out

    monkeypatch.setattr(Call, "__call__", counting)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("name", NETS)
def test_last_answer_is_the_networks_own(name: str) -> None:
    net = with_exits(name)
    model, _ = _MADE[name]
    for batch in (1, 7):
        x = samples(batch)
        assert torch.equal(net(x), model(x))
        assert torch.equal(net.network(x)[-1], model(x))
        answers = list(net.step(x))
        assert all(torch.equal(a, b) for a, b in zip(answers, net.network(x), strict=True))
    assert [answer.shape for answer in answers] == [(7, CLASSES)] * 3
    with in_mode(net, training=True), torch.no_grad():
        assert [answer.shape for answer in duplicate(net)(samples(4))] == [(4, CLASSES)] * 3


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("confidence", CONFIDENCES)
@settings(max_examples=8)
@given(count=st.integers(1, 9), seed=st.integers(0, 99), share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_removing_samples_changes_no_answer(
    name: str, confidence: str, count: int, seed: int, share: tuple[float, float]
) -> None:
    net, x = with_exits(name), samples(count, seed)
    answers = [answer.detach() for answer in net.network(x)]
    sure = torch.stack([CONFIDENCES[confidence](answers[: k + 1]) for k in range(2)])
    thresholds = [torch.quantile(row, q).item() for row, q in zip(sure, share, strict=True)]
    if confidence == "agreement":
        thresholds = [0.25, 0.25]  # the first exit agrees with none: nobody leaves there
    assume(all((row - t).abs().min() > 1e-5 for row, t in zip(sure, thresholds, strict=True)))
    net.confidence, net.thresholds = confidence, thresholds
    wanted = torch.stack(
        [
            next(answers[k][i] for k in range(3) if k == 2 or sure[k, i] >= thresholds[k])  # the first that is sure
            for i in range(count)
        ]
    )
    torch.testing.assert_close(net(x).detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_only_what_is_needed_is_run(name: str, spent: list[int]) -> None:
    net, x = with_exits(name), samples(6)
    answers = [answer.detach() for answer in net.network(x)]
    sure = torch.stack([CONFIDENCES["probability"](answers[: k + 1]) for k in range(2)])
    net.thresholds = [(row.sort().values[2:4].mean()).item() for row in sure]
    left = [next(k for k in range(3) if k == 2 or sure[k, i] >= net.thresholds[k]) for i in range(6)]
    assert len(set(left)) > 1
    spent.clear()
    net(x)
    assert sum(spent) == sum(net.cost_of_leaving(k).macs for k in left)
    for choice in net.choices():
        spent.clear()
        assert torch.equal(net.answer_at(choice, x), answers[choice])
        assert sum(spent) == 6 * net.cost(choice).macs
    spent.clear()
    steps = net.step(x)
    next(steps)
    assert sum(spent) == 6 * net.cost(0).macs


@pytest.mark.parametrize("name", NETS)
def test_all_leave_at_once_or_nobody_does(name: str, spent: list[int]) -> None:
    net, x = with_exits(name), samples(5)
    net.thresholds = [0, 0]
    assert torch.equal(net(x), net.network(x)[0])
    spent.clear()
    net(x)
    assert sum(spent) == 5 * net.cost(0).macs
    net.thresholds = [math.inf, math.inf]
    last = net.network(x)[-1]
    spent.clear()
    assert torch.equal(net(x), last)
    assert sum(spent) == 5 * net.cost(2).macs  # the heads of early exits are not run
    net.thresholds = [2.0, 2.0]
    spent.clear()
    last = net.network(x)[-1]
    spent.clear()
    assert torch.equal(net(x), last)
    assert sum(spent) == 5 * net.cost_of_leaving(2).macs


def test_costs_are_counted_from_the_layers() -> None:
    net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.zeros(1, 4))
    assert [net.cost(k).macs for k in net.choices()] == [32 + 8 * 3, 32 + 48 + 6 * 3, 32 + 48 + 18]
    assert [net.cost_of_leaving(k).macs for k in net.choices()] == [56, 56 + 48 + 18, 56 + 48 + 18 + 18]
    assert net.cost(0).seconds is None


def test_no_samples_give_no_answers() -> None:
    net = with_exits("chain")
    net.thresholds = [0.5, 0.5]
    assert net(samples(0)).shape == (0, CLASSES)


def test_budgets(caplog: pytest.LogCaptureFixture) -> None:
    net, x = with_exits("chain"), samples(3)
    costs = [net.cost(choice).macs for choice in net.choices()]
    for choice, macs in enumerate(costs):
        assert net.choose(Limit(macs=macs)) == choice
        assert torch.equal(net(x, budget=Limit(macs=macs + 0.5)), net.network(x)[choice])
    with caplog.at_level(logging.WARNING):
        assert net.choose(Limit(macs=costs[0] - 1)) == 0
    assert "the cheapest, 0" in caplog.text
    with pytest.raises(RequestError, match="no choice keeps"):
        net.choose(Limit(macs=costs[0] - 1), strict=True)
    with pytest.raises(RequestError, match="timed on this device"):
        net(x, budget=Limit(seconds=1))


def test_times_are_kept_for_budgets() -> None:
    net = duplicate(with_exits("chain"))
    net.time(samples(1), batch=2, seconds=1e-3)
    assert net.timing is not None
    assert net.timing.batch == 2
    assert min(*net.timing.straight, *net.timing.asked) > 0
    assert net.choose(Limit(seconds=10)) == 2
    assert net.thresholds == (math.inf, math.inf)


def test_a_copy_has_weights_of_its_own() -> None:
    net = with_exits("chain")
    before, copy = net.answer_at(0, samples(2)), duplicate(net)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert torch.equal(net.answer_at(0, samples(2)), before)
    assert not copy.answer_at(0, samples(2)).any()


def test_what_compresses_a_network_compresses_its_exits() -> None:
    net = with_exits("chain")
    small = prune_neurons(net.network, samples(2), sparsity=0.5)
    again = ExitNetwork(small)
    assert len(again.stages) == 3
    assert all(again.cost(k).macs < 0.6 * net.cost(k).macs for k in again.choices())


def test_places_are_found_in_the_graph() -> None:
    model = Residual()
    program = capture(model, samples(2))
    cuts = find_cuts(program, tensors_of(model, program))
    assert [cut.name for cut in cuts] == ["stem.norm", "first.1.norm", "second.1.norm"]
    assert [cut.macs for cut in cuts] == [144 * 9 * 6 + 144 * 9 * 36 * 2 * i for i in range(3)]
    assert not any(cut.channels_last for cut in cuts)
    model = NETS["transformer"][0]()
    program = capture(model, samples(2))
    cuts = find_cuts(program, tensors_of(model, program))
    assert all(cut.channels_last for cut in cuts)
    assert {"blocks.0.fc2", "blocks.1.attention.out", "blocks.2.fc2"} <= {cut.name for cut in cuts}


def test_shares_are_of_macs() -> None:
    net = add_exits(chain(), samples(2), at=[0.01, 0.02, 0.9])
    assert len(net.stages) == 3  # the first two are nearest to the same place
    assert [len(stage.takes) for stage in net.stages] == [1, 1, 1]


@pytest.mark.parametrize("head", HEADS)
def test_heads_answer_for_every_kind_of_features(head: str) -> None:
    for shape in ((6,), (6, 9), (6, 9, 7), (6, 2, 3)):
        assert HEADS[head](shape[0], shape[1:], 4)(torch.randn(2, *shape)).shape == (2, 4)


def test_a_head_of_ones_own() -> None:
    def head(channels: int, positions: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * math.prod(positions), classes)
        )

    net = add_exits(chain().double(), samples(2).double(), at=["0"], heads=head)
    assert net.network.get_parameter("exits.0.0.weight").shape == (3, 6, 1, 1)
    assert [answer.dtype for answer in net.step(samples(2).double())] == [torch.float64] * 2


def test_any_network_of_several_answers_has_exits() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
            self.early = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.first(x)
            return self.early(x), self.last(x.relu())

    model = Two().eval()
    net, x = ExitNetwork(model, torch.zeros(1, 4)), torch.randn(5, 4)
    assert all(torch.equal(a, b) for a, b in zip(net.step(x), model(x), strict=True))
    program = net.network.program
    assert sum(sum(macs) for macs in net._macs) == count_macs(program, net.network.state_dict())


class Mixer(nn.Module):
    """Hands on something without samples on axis 0."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = x.t()
        return x * mixed.sum(), (mixed * 2).t()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Residual, {"at": ["first.0"]}, "beside 'first.0' runs a branch .* after 'stem.norm' or 'first.1.norm'"),
        (Residual, {"at": ["fist"]}, "must name modules with parameters, got 'fist'"),
        (Residual, {"at": ["fc"]}, "would be the network's last answer; the last place before is 'second.1.norm'"),
        (Residual, {"at": []}, "at least one share"),
        (Residual, {"at": "stem"}, "at least one share"),
        (Residual, {"at": [1.0]}, r"in \(0, 1\), got 1.0"),
        (Residual, {"heads": "huge"}, "head must be one of mean, grid, got 'huge'"),
        (Residual, {"confidence": "probabilty"}, "did you mean 'probability'"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), {}, "none before its last layer"),
        (lambda: nn.Conv2d(1, 2, 3), {}, r"logits \(B, classes\), got \(3, 2, 10, 10\)"),
    ],
)
def test_wrong_requests_for_exits(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        add_exits(make(), samples(2), **options)


def test_wrong_requests_of_a_network() -> None:
    net = with_exits("chain")
    for wrong in ([0.5], [0.5] * 3, [-0.1, 0.5], [math.nan, 0.5]):
        with pytest.raises(RequestError, match="thresholds must be"):
            net.thresholds = wrong
    assert net.thresholds == (math.inf, math.inf)
    with pytest.raises(RequestError, match="one of 0 to 2, got 3"):
        net.cost(3)
    with pytest.raises(RequestError, match="takes 1 inputs"):
        net.answer_at(0, samples(1), samples(1))
    with pytest.raises(RequestError, match="needs an example"):
        ExitNetwork(chain())
    with pytest.raises(RequestError, match="two or more"):
        ExitNetwork(chain(), samples(2))
    with pytest.raises(UnsupportedOpError, match="samples on axis 0"):
        ExitNetwork(Mixer(), torch.zeros(2, 3))
