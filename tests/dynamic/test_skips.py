"""Skips: what a sample gets is what the network without its untaken branches gives, and these are not run."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featherweight.dynamic import Controller, Cost, Limit, SkipNetwork, add_gates, add_policy, calibrate_effort
from featherweight.dynamic.gates import image_policy
from featherweight.errors import RequestError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.residuals import Residual as ProgramResidual
from featherweight.graph.residuals import find_residuals, without_branches
from featherweight.graph.shapes import infer_shapes
from tests.dynamic.exit_nets import NETS, Residual, chain, samples

Make = Callable[..., SkipNetwork]


class PreActivation(nn.Module):
    """The first sum adds to the network's input, the last one is its answer, and one branch holds another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.outer, self.inner, self.last = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0]
        x = x + self.one(x.relu())
        y = self.outer(x)
        x = x + (y + self.inner(y.relu()))
        return x + self.last(x.relu())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "transformer": NETS["transformer"][0],
    "preactivation": PreActivation,
}
_MADE: dict[tuple[str, str], tuple[nn.Module, SkipNetwork]] = {}


def with_gates(name: str, kind: str) -> tuple[nn.Module, SkipNetwork]:
    """A model and the same with gates or with a policy, both in eval mode; do not change them."""
    if (name, kind) not in _MADE:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MODELS[name]().eval()
            net = (add_gates if kind == "gates" else add_policy)(model, samples(2))
        _MADE[name, kind] = model, net
    return _MADE[name, kind]


def cases(test: Any) -> Any:
    return pytest.mark.parametrize("kind", ["gates", "policy"])(pytest.mark.parametrize("name", MODELS)(test))


@functools.cache
def plain(name: str) -> tuple[Program, dict[str, torch.Tensor], dict[str, ProgramResidual]]:
    model, _ = with_gates(name, "gates")
    program = capture(model, samples(2))
    tensors = tensors_of(model, program)
    return program, tensors, {found.name: found for found in find_residuals(program, infer_shapes(program, tensors))}


def reference(model: nn.Module, net: SkipNetwork, x: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Each sample alone, through the plain network without the branches it does not take."""
    program, tensors, known = plain(type(model).__name__.lower())
    answers = []
    for sample, ways in zip(x, taken, strict=True):
        gone = [known[name] for name, way in zip(net.branches, ways, strict=True) if not way]
        answers.append(ProgramModule(without_branches(program, gone), tensors).eval()(sample[None]))
    return torch.cat(answers)


@cases
def test_gates_start_open_and_answers_are_the_networks_own(name: str, kind: str) -> None:
    model, net = with_gates(name, kind)
    for batch in (1, 7):
        x = samples(batch)
        assert torch.equal(net(x), model(x))
        assert torch.equal(net.answer_at(-math.inf, x), model(x))
    assert net.spend(0.0, x).taken.all()
    assert not net.spend(3.0, x).taken.any()


@cases
@settings(max_examples=4, deadline=None)
@given(ways=st.integers(0, 2**24 - 1), batch=st.integers(1, 5))
def test_each_sample_gets_what_its_branches_give(name: str, kind: str, ways: int, batch: int) -> None:
    model, net = with_gates(name, kind)
    x, count = samples(batch), len(net.branches)
    taken = torch.tensor([[bool(ways >> (i * count + k) & 1) for k in range(count)] for i in range(batch)])
    with torch.no_grad():
        path = net.follow([x], lambda number, _: taken[:, number])
        torch.testing.assert_close(path.answer, reference(model, net, x, taken), rtol=1e-4, atol=1e-5)
        blended = net.follow([x], lambda number, _: taken[:, number].float()).answer
    torch.testing.assert_close(blended, path.answer, rtol=1e-4, atol=1e-5)
    assert torch.equal(path.taken, taken)


def test_of_nested_branches_the_inner_one_gets_the_gate() -> None:
    assert with_gates("preactivation", "gates")[1].branches == ("one", "inner", "last")
    assert with_gates("transformer", "policy")[1].branches[:3] == ("blocks.0.fc2", "blocks.1.attention.out", "blocks.1.fc2")


def test_a_branch_that_no_sample_takes_is_not_run() -> None:
    net = copy.deepcopy(with_gates("residual", "gates")[1])
    net.network.get_parameter("first.0.conv.weight").data.fill_(math.nan)
    x = samples(4)
    refused = net.follow([x], lambda number, logits: torch.full_like(logits, number == 1, dtype=torch.bool))
    assert refused.answer.isfinite().all()
    one = net.follow([x], lambda number, logits: torch.tensor([False, False, True, False]) | (number == 1))
    assert one.answer.isnan().any(1).tolist() == [False, False, True, False]


def test_with_everything_on_gates_are_not_run() -> None:
    net = copy.deepcopy(with_gates("residual", "gates")[1])
    for name in net.gate_tensors:
        net.network.get_parameter(name).data.fill_(math.nan)
    assert net.answer_at(-math.inf, samples(2)).isfinite().all()
    assert not net.spend(0.0, samples(2)).taken.any()  # NaN exceeds no price


def flops(run: Callable[[], object]) -> int:
    """As torch counts them, of what is really executed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@cases
def test_macs_are_those_executed(name: str, kind: str) -> None:
    _, net = with_gates(name, kind)
    x, taken = samples(6), torch.rand(6, len(net.branches), generator=torch.Generator().manual_seed(1)) < 0.5
    assert flops(lambda: net.follow([x], lambda number, _: taken[:, number])) == 2 * net.macs_of(taken).sum()
    assert flops(lambda: net.answer_at(-math.inf, x)) == 12 * net.cost(-math.inf).macs
    assert flops(lambda: net.answer_at(0.0, x)) == 2 * net.spend(0.0, x).macs.sum()


def test_macs_by_hand() -> None:
    _, net = with_gates("residual", "gates")
    pixels = 12 * 12 if net.branch_macs[0] == 12 * 12 * 2 * 6 * 6 * 9 else 0
    trunk = pixels * 1 * 6 * 9 + 6 * 5
    assert net.branch_macs == (pixels * 2 * 6 * 6 * 9,) * 2
    assert net.cost(-math.inf) == Cost(trunk + 2 * pixels * 2 * 6 * 6 * 9)
    ways = torch.tensor([[False, False], [True, False], [True, True]])
    gates = 2 * 6
    assert net.macs_of(ways).tolist() == [trunk + gates + k * net.branch_macs[0] for k in range(3)]
    assert net.share_of(ways)[2].item() == pytest.approx(1 + 12 / net.cost(-math.inf).macs)


def test_the_price_says_who_takes_a_branch() -> None:
    net = gated()
    x = samples(8)
    logits = net.worth(x)
    assert logits.shape == (8, 2)
    price = logits[:, 0].median().item()
    assert torch.equal(net.spend(price, x).taken[:, 0], logits[:, 0] > price)
    net.price = price
    assert torch.equal(net(x), net.answer_at(price, x))
    assert torch.equal(net(x, budget=Limit(macs=1e9)), net.answer_at(-math.inf, x))


class InPlace(nn.Module):
    """Writes into the sum, which without its branch is the network's own input."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.one(x)).relu_()


def test_what_is_skipped_is_not_written_into() -> None:
    net, x = add_gates(InPlace().eval(), torch.zeros(2, 12)), torch.randn(5, 12)
    before = x.clone()
    assert torch.equal(net.answer_at(math.inf, x), before.relu())
    assert torch.equal(x, before)


def test_copies_run_on_their_own_tensors() -> None:
    net = gated()
    twin = copy.deepcopy(net)
    nn.init.zeros_(twin.network.get_parameter("fc.weight"))
    assert not torch.equal(twin(samples(2)), net(samples(2)))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(samples(2)), net(samples(2)))


def test_any_network_that_says_what_its_gates_do() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.gate(x)
            x = x + self.one(x)
            return logits, x + self.two(x)

    model, x = Own(), torch.randn(5, 4)
    net = SkipNetwork(model, ["one", "two"], x).eval()
    taken = model.gate(x) > 0
    assert torch.equal(net.spend(0.0, x).taken, taken)
    first = x + taken[:, :1] * model.one(x)
    torch.testing.assert_close(net(x), first + taken[:, 1:] * model.two(first))


def gated() -> SkipNetwork:
    """Gates that say different things of different samples."""
    net = copy.deepcopy(with_gates("residual", "gates")[1])
    for number in (0, 1):
        nn.init.normal_(net.network.get_parameter(f"gates.{number}.2.weight"), generator=torch.Generator().manual_seed(number))
    return net


def test_calibration_measures_each_price() -> None:
    net, x = gated(), samples(40)
    loader = [(x[:30], torch.arange(30) % 5), (x[30:], torch.arange(10) % 5)]
    found = calibrate_effort(net, loader, points=5)
    assert found[-1].price == -math.inf
    assert found[-1].shares == (1.0, 1.0)
    assert 0.0 in [effort.price for effort in found]
    for effort in found:
        spent = net.spend(effort.price, x)
        assert effort.cost.macs == pytest.approx(spent.macs.mean().item())
        assert effort.shares == pytest.approx(spent.taken.double().mean(0).tolist())
        right = spent.answer.argmax(1) == torch.cat([targets for _, targets in loader])
        assert effort.accuracy == pytest.approx(right.double().mean().item())
    costs = [net.cost(price).macs for price in net.choices()]
    assert costs == sorted(costs)
    assert net.choices()[-1] == -math.inf
    accuracy = {effort.price: effort.accuracy for effort in found}
    kept = [accuracy[price] for price in net.choices()[:-1]]
    assert kept == sorted(set(kept))


def test_choosing_timing_and_the_controller(caplog: pytest.LogCaptureFixture) -> None:
    net = gated()
    net.set_costs({2.0: Cost(100), 5.0: Cost(50)})
    assert net.choices() == (5.0, 2.0, -math.inf)
    assert net.choose(Limit(macs=120)) == 2.0
    assert Controller.of(net).start(Limit(macs=60)).choice == 5.0
    with caplog.at_level(logging.WARNING):
        assert net.choose(Limit(macs=10)) == 5.0
    assert "cheapest" in caplog.text
    with pytest.raises(RequestError, match="no choice keeps"):
        net.choose(Limit(macs=10), strict=True)
    with pytest.raises(RequestError, match="time it first"):
        net.choose(Limit(seconds=1))
    net.time(samples(5), batch=2, seconds=1e-3)
    assert all((net.cost(price).seconds or 0) > 0 for price in net.choices())
    assert net.cost(2.0).macs == 100


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: add_gates(chain(), samples(2)), "needs residual branches to skip"),
        (lambda: add_policy(chain(), samples(2)), "needs residual branches to skip"),
        (lambda: add_gates(Residual(), samples(2), at=[]), "at least one name"),
        (lambda: add_gates(Residual(), samples(2), at="first.1.conv"), "at least one name"),
        (
            lambda: add_gates(Residual(), samples(2), at=["first.1"]),
            "a branch in at must be one of first.1.conv, second.1.conv",
        ),
        (lambda: add_gates(Residual(), samples(2), gate="men"), "did you mean 'mean'"),
        (lambda: add_policy(Residual(), samples(2), policy=image_policy(1, 3)), "2 in all"),
        (lambda: add_policy(InPlace(), torch.zeros(2, 12)), "pass policy="),
        (lambda: SkipNetwork(Residual(), ["first.1.conv"]), "needs an example"),
        (lambda: SkipNetwork(Residual(), ["first.1.conv"], samples(2)), "gives their logits and then its answer"),
        (lambda: gated().cost(1.0), "one of -inf"),
        (lambda: setattr(gated(), "price", math.nan), "a price must be a number"),
        (lambda: setattr(gated(), "gating", "gumble"), "did you mean 'gumbel'"),
        (lambda: gated()(samples(1), samples(1)), "takes 1 inputs"),
        (lambda: calibrate_effort(gated(), []), "at least one batch"),
        (lambda: calibrate_effort(gated(), [(samples(1), torch.zeros(1))], points=0), "points must be"),
    ],
)
def test_wrong_requests(request_: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_()


def test_a_model_is_not_changed() -> None:
    model = Residual().train()
    before = copy.deepcopy(model.state_dict())
    net = add_gates(model, samples(2))
    assert net.training
    net(samples(4)).spent.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.fc.weight.grad is None
