"""Widths chosen for each sample: equal to running each sample at its width alone, and cheaper where that is enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featherweight.dynamic import Limit, RoutedNetwork, add_router, calibrate_effort, make_slimmable, tune_router, tune_widths
from featherweight.dynamic.routing import Routes
from featherweight.errors import RequestError
from featherweight.graph.constraint import duplicate
from featherweight.training import Tuning

EXAMPLE = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )


@pytest.fixture(scope="module")
def net() -> RoutedNetwork:
    torch.manual_seed(0)
    router = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return RoutedNetwork(make_slimmable(network(), EXAMPLE, widths=(0.25, 0.5)), router).eval()


def test_each_sample_runs_at_its_width(net: RoutedNetwork) -> None:
    with torch.no_grad():
        for price in (-1.0, 0.0, 1.0):
            logits = net.router(EXAMPLE)
            shares = torch.tensor([net.slimmable.cost(width).macs for width in net.widths])
            routes = (logits - price * shares / shares[-1]).argmax(1)
            spent = net.spend(price, EXAMPLE)
            assert spent.taken.int().argmax(1).tolist() == routes.tolist()
            for row, route in enumerate(routes.tolist()):
                alone = net.slimmable.at_width(net.widths[route])(EXAMPLE[row : row + 1])
                torch.testing.assert_close(spent.answer[row : row + 1], alone, rtol=1e-4, atol=1e-5)
                assert spent.macs[row] == net.slimmable.cost(net.widths[route]).macs + 64 * 3
        assert len(net.spend(0.0, EXAMPLE).taken.unique(dim=0)) > 1


def test_prices_from_everything_to_the_lightest(net: RoutedNetwork) -> None:
    full = net.slimmable.at_width(1.0)(EXAMPLE)
    assert torch.equal(net.answer_at(-math.inf, EXAMPLE), full)
    assert net.spend(-math.inf, EXAMPLE).macs.tolist() == [net.slimmable.cost(1.0).macs] * 8
    assert net.spend(math.inf, EXAMPLE).taken[:, 0].all()
    leaving = net.worth(EXAMPLE).min(1).values
    for row, price in enumerate(leaving.tolist()):
        ways = [net.spend(p, EXAMPLE[row : row + 1]).taken[0, -1].item() for p in (price - 1e-3, price + 1e-3)]
        assert ways == [True, False]
    before = duplicate(net)
    before.slimmable.full.get_parameter("0.weight").data.fill_(math.nan)
    assert net(EXAMPLE).isfinite().all()


def test_the_loss_is_the_mean_over_the_routers_decisions(net: RoutedNetwork) -> None:
    routed = duplicate(net).train()
    routes = routed(EXAMPLE)
    assert isinstance(routes, Routes)
    assert routes.answers.shape == (3, 8, 3)
    assert not routes.answers.requires_grad
    torch.testing.assert_close(routes.answers[1], routed.slimmable.eval().at_width(0.5)(EXAMPLE))
    assert routes.shares[-1] == 1
    before = {name: tensor.clone() for name, tensor in routed.slimmable.state_dict().items()}
    routed = add_router(routed.slimmable, router=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    assert routed.train()(EXAMPLE).chances.flatten().tolist() == pytest.approx([1 / 3] * 24)
    tune_router(routed, [(EXAMPLE, torch.arange(8) % 3)], Tuning(epochs=100, learning_rate=0.03), cost=9.0)
    assert routed.spend(0.0, EXAMPLE).taken[:, 0].all()
    changed = [name for name, tensor in routed.slimmable.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == []


def test_hard_samples_get_more_width() -> None:
    """The class is the sign of a number, or of a product of three: a narrow network cannot know the second."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 4, generator=generator).sign() * (0.5 + torch.rand(1024, 4, generator=generator))
    x[:, 0] = x[:, 0].sign()
    targets = (torch.where(x[:, 0] > 0, x[:, 1] * x[:, 2] * x[:, 3], x[:, 1]) > 0).long()
    data = [(a, b) for a, b in zip(x.split(128), targets.split(128), strict=True)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    slimmable = make_slimmable(model, x[:2], widths=(0.06,))  # two channels of each layer
    tune_widths(slimmable, data, Tuning(epochs=30, learning_rate=0.02))
    net = add_router(slimmable, router=nn.Linear(4, 2))
    tune_router(net, data, Tuning(epochs=30, learning_rate=0.05), cost=0.3)
    net.eval()
    wide = net.spend(0.0, x).taken[:, 1].double()
    assert wide[x[:, 0] < 0].mean() < 0.1
    assert wide[x[:, 0] > 0].mean() > 0.5
    assert (net(x).argmax(1) == targets).double().mean() > 0.95
    found = calibrate_effort(net, data, points=3)
    assert found[-1].shares == (0.0, 1.0)
    cheaper = net.choose(Limit(macs=0.7 * net.cost(-math.inf).macs))
    assert net.cost(cheaper).macs < 0.7 * net.cost(-math.inf).macs
    net.time(x[:64], batch=16, seconds=1e-3)
    assert (net.cost(cheaper).seconds or 0) > 0


def test_wrong_requests() -> None:
    slimmable = make_slimmable(network(), EXAMPLE, widths=(0.5,))
    with pytest.raises(RequestError, match=r"\(2, 2\) for a batch of 2"):
        add_router(slimmable, router=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(RequestError, match="two or more"):
        add_router(make_slimmable(network(), EXAMPLE, widths=(1.0,)))
    flat = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(RequestError, match="pass router="):
        add_router(make_slimmable(flat, torch.zeros(1, 4), widths=(0.5,)))
    with pytest.raises(RequestError, match="cost must be"):
        tune_router(add_router(slimmable), [], Tuning(), cost=-1.0)
