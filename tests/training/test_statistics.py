"""Statistics of gradients: each against a slower way of computing the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn.functional import cross_entropy, mse_loss

from featherweight.errors import DataError, RequestError
from featherweight.graph.constraint import fold
from featherweight.pruning import prune_weights
from featherweight.training import TensorLoader
from featherweight.training import statistics as under_test
from featherweight.training.statistics import (
    Evidence,
    batches_of,
    hessian_diagonals,
    mean_gradients,
    output_sensitivities,
    sample_gradients,
    squared_gradients,
)

INPUTS = torch.randn(11, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(11) % 3
NAMES = ["0.weight", "0.bias", "3.weight"]


class Branching(nn.Module):
    """What it computes depends on the data, which `vmap` cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([(sample * 2 if bool(sample.sum() > 0) else sample - 1)[None] for sample in x])


class Recurrent(nn.Module):
    """torch has no rule for an LSTM under `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x[:, :, None])[0][:, -1]


class Idle(nn.Module):
    """Has a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def net(middle: nn.Module | None = None, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(2)
    made = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), middle or nn.BatchNorm1d(4), nn.Linear(4, outputs))
    return made.double()


def evidence(model: nn.Module, loss: Callable[..., torch.Tensor] = cross_entropy, batch_size: int = 4) -> Evidence:
    return Evidence(model, TensorLoader(INPUTS, TARGETS, batch_size=batch_size), loss)


def gradients_by_loop(model: nn.Module, loss: Callable[..., torch.Tensor] = cross_entropy) -> dict[str, torch.Tensor]:
    """The gradients of each sample, by one backward pass for each."""
    model = fold(model).eval()
    found: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for x, y in zip(INPUTS, TARGETS, strict=True):
        model.zero_grad()
        loss(model(x[None]), y[None]).backward()
        for name in NAMES:
            found[name].append(model.get_parameter(name).grad.clone())
    return {name: torch.stack(gradients) for name, gradients in found.items()}


MIDDLES = [nn.BatchNorm1d(4), Branching(), Recurrent(), nn.Dropout()]


@pytest.mark.parametrize("middle", MIDDLES, ids=lambda module: type(module).__name__)
def test_against_one_backward_pass_per_sample(middle: nn.Module) -> None:
    model = net(middle)
    expected = gradients_by_loop(model)
    chunks = list(sample_gradients(evidence(model), NAMES))
    means, squares = mean_gradients(evidence(model), NAMES), squared_gradients(evidence(model), NAMES)
    sensitivities = output_sensitivities(evidence(model), NAMES)
    norms = gradients_by_loop(model, lambda outputs, _: outputs.square().sum())
    for name in NAMES:
        torch.testing.assert_close(torch.cat([chunk[name] for chunk in chunks]), expected[name])
        torch.testing.assert_close(means[name], expected[name].mean(dim=0))
        torch.testing.assert_close(squares[name], expected[name].square().mean(dim=0))
        torch.testing.assert_close(sensitivities[name], norms[name].abs().mean(dim=0))
        assert not torch.allclose(squares[name], means[name].square(), rtol=0.1)


def test_large_tensors_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_ELEMENTS_AT_ONCE", 2 * (24 + 4 + 12))
    chunks = list(sample_gradients(evidence(net()), NAMES))
    assert [len(chunk["0.bias"]) for chunk in chunks] == [2, 2, 2, 2, 2, 1]
    torch.testing.assert_close(torch.cat([chunk["0.bias"] for chunk in chunks]), gradients_by_loop(net())["0.bias"])


def test_curvature_of_a_linear_network_is_that_of_finite_differences() -> None:
    """Outputs are linear in the weights, so the Gauss-Newton matrix is the Hessian."""
    model = nn.Sequential(nn.Linear(6, 3)).double()
    found = hessian_diagonals(evidence(model), ["0.weight"])["0.weight"]
    step = 1e-5
    for row in range(3):
        for column in range(6):
            slopes = []
            for sign in (1, -1):
                moved = fold(model)
                moved[0].weight.data[row, column] += sign * step
                cross_entropy(moved(INPUTS), TARGETS).backward()
                slopes.append(moved[0].weight.grad[row, column].item())
            assert float(found[row, column]) == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=1e-4)


def curvature_by_jacobians(model: nn.Module, loss: Callable[..., torch.Tensor], name: str) -> torch.Tensor:
    model = fold(model).eval()
    weight = model.get_parameter(name).detach()
    total = torch.zeros_like(weight)
    for x, y in zip(INPUTS, TARGETS, strict=True):

        def outputs(value: torch.Tensor, x: torch.Tensor = x) -> torch.Tensor:
            return torch.func.functional_call(model, {name: value}, (x[None],))[0]

        slopes = jacobian(outputs, weight).flatten(1)
        hessian = torch.autograd.functional.hessian(lambda o, y=y: loss(o[None], y[None]), outputs(weight).detach())
        total += (slopes.T @ hessian @ slopes).diagonal().reshape(weight.shape)
    return total / len(INPUTS)


@pytest.mark.parametrize("middle", MIDDLES[:3], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("loss", [cross_entropy, lambda outputs, y: mse_loss(outputs, y[:, None] * torch.ones_like(outputs))])
def test_curvature_of_any_network_is_gauss_newton(middle: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
    model = net(middle)
    for name, found in hessian_diagonals(evidence(model, loss), NAMES).items():
        torch.testing.assert_close(found, curvature_by_jacobians(model, loss, name))


def test_curvature_of_many_outputs_is_right_on_average() -> None:
    model = net(outputs=40)
    exact = curvature_by_jacobians(model, cross_entropy, "0.weight")
    often = Evidence(model, TensorLoader(INPUTS.repeat(400, 1), TARGETS.repeat(400), batch_size=1100))
    found = hessian_diagonals(often, ["0.weight"])["0.weight"]
    assert not torch.equal(found, exact), "it is sampled"
    torch.testing.assert_close(found, exact, rtol=0.2, atol=0.05 * float(exact.mean()))
    assert torch.equal(found, hessian_diagonals(Evidence(model, often.data), ["0.weight"])["0.weight"])


def test_gradients_are_by_the_constrained_weight() -> None:
    """A removed weight has a gradient: what would happen if it came back."""
    model = prune_weights(net(), sparsity=0.5)
    expected = gradients_by_loop(model)["0.weight"].mean(dim=0)
    gone = fold(model)[0].weight == 0
    found = mean_gradients(evidence(model), ["0.weight"])["0.weight"]
    torch.testing.assert_close(found, expected)
    assert bool((found[gone] != 0).any())


def test_without_gradients_switched_on() -> None:
    with torch.no_grad():
        found = mean_gradients(evidence(net()), NAMES)
    torch.testing.assert_close(found["0.weight"], gradients_by_loop(net())["0.weight"].mean(dim=0))


def test_a_weight_that_is_not_used_has_zeros() -> None:
    model = net(Idle())
    for statistic in (mean_gradients, squared_gradients, output_sensitivities, hessian_diagonals):
        assert not statistic(evidence(model), ["2.unused"])["2.unused"].any()


def test_batches_come_in_the_same_order_and_leave_random_numbers_alone() -> None:
    shuffled = Evidence(net(), TensorLoader(INPUTS, TARGETS, batch_size=4, shuffle=True))
    torch.manual_seed(1)
    first = [targets.tolist() for _, targets in batches_of(shuffled)]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert first == [targets.tolist() for _, targets in batches_of(shuffled)]
    assert first != [targets.tolist() for _, targets in batches_of(evidence(net()))]
    other = Evidence(net(), shuffled.data, generator=torch.Generator().manual_seed(5))
    assert first != [targets.tolist() for _, targets in batches_of(other)]


def test_an_iterator_serves_once() -> None:
    once = Evidence(net(), iter([(INPUTS, TARGETS)]), purpose="this test")
    assert mean_gradients(once, ["0.bias"])["0.bias"].shape == (4,)
    with pytest.raises(DataError, match=r"this test needs data.*used up"):
        mean_gradients(once, ["0.bias"])


@pytest.mark.parametrize("statistic", [mean_gradients, squared_gradients, output_sensitivities, hessian_diagonals])
def test_no_data(statistic: Callable[..., object]) -> None:
    with pytest.raises(RequestError, match="this statistic needs data"):
        statistic(Evidence(net()), ["0.weight"])
