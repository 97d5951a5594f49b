"""Training all widths at once, the statistics of their batch norms, and widths for single layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from featherweight.dynamic.sandwich import Sandwich, batch_statistics, recalibrate, tune_widths
from featherweight.dynamic.slimming import find_shape
from featherweight.dynamic.views import WidthView
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable
from featherweight.errors import DataError, RequestError
from featherweight.training import TensorLoader, Tuning, evaluate
from featherweight.training.loop import mean_loss


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with stripes across or along, in noise."""
    targets = torch.arange(count) % 2
    lines = (torch.arange(8) % 2 * 2.0 - 1).expand(count, 1, 8, 8)
    images = torch.where(targets[:, None, None, None] == 1, lines, lines.transpose(2, 3))
    return images + 0.5 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)), targets


LOADER = TensorLoader(*stripes(128), batch_size=32, shuffle=True)
EXAMPLE = torch.zeros(2, 1, 8, 8)


def test_all_widths_learn_together() -> None:
    torch.manual_seed(0)
    net = make_slimmable(network(), EXAMPLE)
    tune_widths(net, LOADER, Tuning(epochs=25, learning_rate=0.02))
    found = [evaluate(net.at_width(width), LOADER) for width in net.choices()]
    assert min(found) > 0.9, found


def test_the_loss_is_that_of_the_sandwich() -> None:
    """With all widths but two: cross-entropy of the full one, and the divergence of the narrow one from its answer."""
    seen = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.detach())
        return cross_entropy(outputs, targets)

    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    net = make_slimmable(model, torch.zeros(1, 2), widths=(0.5,))
    x, y = torch.randn(16, 2), torch.arange(16) % 3
    by_hand = copy.deepcopy(net)
    full, half = by_hand.at_width(1.0)(x), by_hand.at_width(0.5)(x)
    divergence = kl_div(half.log_softmax(1), full.detach().softmax(1), reduction="batchmean")
    (cross_entropy(full, y) + divergence).backward()
    rate = 0.1
    tune_widths(net, [(x, y)], Tuning(optimizer="sgd", learning_rate=rate, schedule="constant"), loss=loss)
    assert len(seen) == 1  # narrow widths do not see the targets
    for after, before in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert before.grad is not None  # Nesterov's first step goes 1.9 of the gradient
        torch.testing.assert_close(after, before - rate * 1.9 * before.grad, rtol=1e-4, atol=1e-6)


def test_without_distillation_every_width_learns_from_the_targets() -> None:
    counted = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        counted.append(len(outputs))
        return cross_entropy(outputs, targets)

    net = make_slimmable(network(), EXAMPLE)
    tune_widths(net, [stripes(8)], Tuning(), sandwich=Sandwich(distil=False, between=1), loss=loss)
    assert len(counted) == 3  # full, lightest, one of the two between


def test_the_widths_drawn_follow_from_the_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        net = make_slimmable(network(), EXAMPLE, widths=(0.25,), switchable=False)
        torch.manual_seed(len(found))
        tune_widths(net, [stripes_seeded], Tuning(epochs=2), seed=seed)
        found.append(net.full.get_parameter("0.weight").detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


stripes_seeded = stripes(16)


def test_an_untrained_width_between_works_after_universal_training() -> None:
    """US-Nets: any width in the range, once its statistics are found."""
    torch.manual_seed(1)
    net = make_slimmable(network(), EXAMPLE, widths=(0.25,), switchable=False)
    tune_widths(net, LOADER, Tuning(epochs=20, learning_rate=0.02))
    recalibrate(net, LOADER, choices=(0.25, 0.4, 0.7, 1.0))
    assert net.choices() == (0.25, 0.4, 0.7, 1.0)
    assert [evaluate(net.at_width(width), LOADER) > 0.9 for width in net.choices()] == [True] * 4


@pytest.mark.parametrize("switchable", [True, False])
def test_statistics_are_the_means_over_all_samples(switchable: bool) -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.5,), switchable=switchable)
    first, second = stripes(48)[0].split([32, 16])
    before = {name: value.clone() for name, value in net.full.state_dict().items()}
    recalibrate(net, [(first, torch.zeros(32)), (second, torch.zeros(16))], choices=[0.5])
    weight = net.full.get_parameter("0.weight")[:4]
    answers = [nn.functional.conv2d(x, weight).transpose(0, 1).flatten(1) for x in (first, second)]
    mean = (2 * answers[0].mean(1) + answers[1].mean(1)) / 3
    variance = (2 * answers[0].var(1) + answers[1].var(1)) / 3
    half = net.at_width(0.5).tensors()
    torch.testing.assert_close(half["1.running_mean"], mean)
    torch.testing.assert_close(half["1.running_var"], variance)
    assert all(torch.equal(value, before[name]) for name, value in net.full.state_dict().items())
    assert half["1.weight"].shape == (4,)


def test_statistics_of_the_full_width_are_the_full_network_s() -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.5,))
    recalibrate(net, LOADER, choices=[1.0])
    found = batch_statistics(net.at_width(1.0), [(LOADER.inputs, LOADER.targets)])
    torch.testing.assert_close(net.full.get_buffer("1.running_mean"), found["1.running_mean"])
    assert net.at_width(1.0).tensors()["1.running_mean"].data_ptr() == net.full.get_buffer("1.running_mean").data_ptr()


def test_statistics_need_data() -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.5,))
    with pytest.raises(DataError, match="no batch"):
        recalibrate(net, [])
    with pytest.raises(RequestError, match="between"):
        Sandwich(between=-1)


def idle() -> SlimmableNetwork:
    """A network in which the first group's tail of four does nothing, while the second group is all needed."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight[:, 4:] = 0  # type: ignore[union-attr,operator,index]
        model[0].weight[4:] *= 0.01  # type: ignore[union-attr,operator,index]
        model[0].bias[4:] = 0  # type: ignore[union-attr,operator,index]
    return make_slimmable(model, torch.zeros(1, 2))


def test_the_layer_that_is_idle_becomes_narrow_first() -> None:
    net = idle()
    x = torch.randn(64, 2)
    data = [(x, net(x).argmax(1))]
    whole = 2 * 8 + 8 * 8 + 8 * 2
    assert find_shape(net, data, macs=whole) == (8, 8)

    def error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - net(x)).square().mean()

    four = 2 * 4 + 4 * 8 + 8 * 2
    assert find_shape(net, data, macs=four, loss=error) == (4, 8)
    net.add("slim", find_shape(net, data, macs=four, loss=error))
    torch.testing.assert_close(net.at_width("slim")(x), net(x))


def test_a_shape_under_no_limit_is_said() -> None:
    net = idle()
    with pytest.raises(RequestError, match="which takes 5 MACs"):
        find_shape(net, [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))], macs=4)
    assert find_shape(net, [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))], macs=5, step=0.5) == (1, 1)
    with pytest.raises(DataError):
        find_shape(net, [], macs=50)


def test_layers_get_widths_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.25,), switchable=False)
    seen: list[tuple[int, ...]] = []
    view = SlimmableNetwork.view

    def watched(self: SlimmableNetwork, shape: tuple[int, ...], choice: float | None = None) -> WidthView:
        if choice is None:
            seen.append(tuple(shape))
        return view(self, shape, choice)

    monkeypatch.setattr(SlimmableNetwork, "view", watched)
    tune_widths(net, LOADER, Tuning(epochs=5), sandwich=Sandwich(between=3, uniform=False))
    assert len(seen) == 5 * len(LOADER) * 3
    assert {kept for shape in seen for kept in shape} == set(range(2, 9))
    first, second = torch.tensor(seen).double().T
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.5
    with pytest.raises(RequestError, match="switchable=False"):
        tune_widths(make_slimmable(network(), EXAMPLE), LOADER, Tuning(), sandwich=Sandwich(uniform=False))


def rings(count: int, seed: int) -> TensorLoader:
    """Points of two rings around one another: many neurons find them, one then tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    angles = 2 * torch.pi * torch.rand(count, generator=generator)
    points = torch.stack([angles.cos(), angles.sin()], 1) * (1.0 + targets[:, None])
    return TensorLoader(points + 0.1 * torch.randn(count, 2, generator=generator), targets, batch_size=64)


def test_a_shape_of_its_own_beats_the_same_width_everywhere() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    net = make_slimmable(model, torch.zeros(1, 2), widths=(0.25, 1.0), switchable=False)
    tune_widths(net, rings(512, 0), Tuning(epochs=30, learning_rate=1e-2), sandwich=Sandwich(uniform=False))
    uniform = net.cost(0.25).macs
    net.add("own", find_shape(net, rings(256, 1), macs=uniform))
    assert net.cost("own").macs <= uniform
    assert mean_loss(net.at_width("own"), rings(512, 2)) < mean_loss(net.at_width(0.25), rings(512, 2))
