"""Slimmable networks: sorted without a change, really narrow, and each width the plain network that it extracts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featherweight.dynamic.cost import Limit
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable
from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.constraint import duplicate
from featherweight.nets import InvertedResidual, vit


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.inner(x))


def conv(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]


def chain() -> nn.Module:
    """A flattening, so that a channel is several inputs of the linear layer."""
    return nn.Sequential(
        *conv(1, 8), nn.ReLU(), *conv(8, 6), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )


def resnet() -> nn.Module:
    inner = nn.Sequential(*conv(8, 8), nn.ReLU(), *conv(8, 8))
    return nn.Sequential(*conv(1, 8), nn.ReLU(), Residual(inner), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def mobile() -> nn.Module:
    return nn.Sequential(
        *conv(1, 8), nn.ReLU(), InvertedResidual(8, 16, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def transformer() -> nn.Module:
    return vit(input_shape=(1, 8, 8), classes=3, channels=16, depth=1, heads=2, patch=4)


NETS: dict[str, Callable[[], nn.Module]] = {"chain": chain, "resnet": resnet, "mobile": mobile, "transformer": transformer}
EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module) -> nn.Module:
    """With norms that are not the identity, and differ from channel to channel."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module", params=NETS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, SlimmableNetwork]:
    torch.manual_seed(0)
    model = lively(NETS[request.param]())
    return model, make_slimmable(model, EXAMPLE, widths=(0.25, 0.5))


@pytest.mark.parametrize("name", NETS)
def test_sorting_leaves_the_outputs_as_they_are(name: str) -> None:
    model = lively(NETS[name]()).double()
    net = make_slimmable(model, EXAMPLE.double(), widths=(1.0,), criterion="random")
    moved = [not torch.equal(p, q) for p, q in zip(net.full.parameters(), model.parameters(), strict=True)]
    assert sum(moved) >= len(moved) // 2  # or nothing was tested
    assert (net(EXAMPLE.double()) - model(EXAMPLE.double())).abs().max() < 1e-12


def test_an_extracted_network_answers_as_its_width_bit_for_bit(pair: tuple[nn.Module, SlimmableNetwork]) -> None:
    _, net = pair
    with torch.no_grad():
        for width in net.choices():
            assert torch.equal(net.extract(width)(EXAMPLE), net.at_width(width)(EXAMPLE))


def test_a_narrow_network_is_the_full_one_with_the_tails_cut_off(pair: tuple[nn.Module, SlimmableNetwork]) -> None:
    _, net = pair
    whole, half = net.at_width(1.0).tensors(), net.at_width(0.5).tensors()
    narrower = {name for name in whole if half[name].shape != whole[name].shape}
    assert len(narrower) >= len(whole) // 2
    for group, kept in zip(net.coupling.groups, net.shape(0.5), strict=True):
        for (name, axis), indices in group.members.items():
            assert half[name].shape[axis] < whole[name].shape[axis]
            first = whole[name].index_select(axis, indices[:kept].flatten().sort().values)
            others = [a for a in range(whole[name].dim()) if a != axis]
            if all(half[name].shape[a] == whole[name].shape[a] for a in others):
                assert torch.equal(half[name], first)


def test_a_chain_at_half_width_is_what_slices_by_hand_give() -> None:
    model = lively(chain())
    net = make_slimmable(model, EXAMPLE, widths=(0.5,), criterion="l2")
    t = {name: tensor.detach() for name, tensor in net.full.state_dict().items()}

    def layer(x: torch.Tensor, number: int, channels: int) -> torch.Tensor:
        weight = t[f"{number}.weight"][:channels, : x.shape[1]]
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (t[f"{number + 1}.{name}"][:channels] for name in names)
        return F.batch_norm(F.conv2d(x, weight, padding=1), mean, var, scale, shift).relu()

    x = F.adaptive_max_pool2d(layer(layer(EXAMPLE, 0, 4), 3, 3), 2).flatten(1)
    expected = F.linear(x, t["8.weight"][:, :12], t["8.bias"])
    torch.testing.assert_close(net.at_width(0.5)(EXAMPLE), expected)


def test_the_most_important_channels_come_first() -> None:
    model = lively(chain())
    net = make_slimmable(model, EXAMPLE, criterion="l2")
    norms = net.full.get_parameter("0.weight").flatten(1).norm(dim=1)
    assert (norms.diff() <= 0).all()
    assert torch.equal(norms, model.get_parameter("0.weight").flatten(1).norm(dim=1).sort(descending=True).values)


def test_what_is_cut_away_is_not_computed(pair: tuple[nn.Module, SlimmableNetwork]) -> None:
    _, net = pair
    counted = []
    for width in net.choices():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose products can be counted
            net.at_width(width)(EXAMPLE[:1])
        counted.append(counter.get_total_flops() / 2)
        assert counted[-1] == net.cost(width).macs
    assert counted[0] < 0.3 * counted[-1]


def test_the_widths_share_one_set_of_weights(pair: tuple[nn.Module, SlimmableNetwork]) -> None:
    model, net = pair
    norms = [tensor for name in net.own for tensor in net.own[name].parameters()]
    count = sum(p.numel() for p in net.parameters())
    assert count == sum(p.numel() for p in model.parameters()) + sum(p.numel() for p in norms)
    matrices = {name: t for name, t in net.full.named_parameters() if t.dim() >= 2}
    views = net.at_width(0.5).tensors()
    shared = [name for name in matrices if views[name].data_ptr() == matrices[name].data_ptr()]
    assert len(shared) >= len(matrices) // 2  # the others' channels are no single run


def test_a_step_at_a_narrow_width_moves_its_slices_and_nothing_else() -> None:
    net = make_slimmable(chain(), EXAMPLE).train()
    net.at_width(0.5)(EXAMPLE).sum().backward()
    gradient = net.full.get_parameter("3.weight").grad
    assert gradient is not None
    assert (gradient[:3, :4] != 0).any()
    assert (gradient[3:] == 0).all()
    assert (gradient[:, 4:] == 0).all()
    assert net.full.get_parameter("1.weight").grad is None  # that batch norm is the full width's own
    own = net.own_tensors(0.5)
    assert own is not None
    assert own.get_parameter("1.weight").grad is not None


def test_each_width_keeps_statistics_of_its_own_in_training() -> None:
    net = make_slimmable(chain(), EXAMPLE).train()
    before = net.full.get_buffer("1.running_mean").clone()
    net.at_width(0.5)(EXAMPLE)
    own = net.own_tensors(0.5)
    assert torch.equal(net.full.get_buffer("1.running_mean"), before)
    assert own is not None
    assert not torch.equal(own.get_buffer("1.running_mean"), before[:4])


def test_without_switchable_norms_any_width_runs() -> None:
    net = make_slimmable(lively(chain()), EXAMPLE, widths=(0.25,), switchable=False)
    assert [net.at_width(width)(EXAMPLE).shape for width in (0.3, 0.301, 0.99)] == [(4, 3)] * 3
    assert net.choices() == (0.25, 1.0)
    assert len(net.own) == 0


def test_modes_follow_the_network_and_put_themselves_back() -> None:
    net = make_slimmable(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 64)), torch.zeros(1, 4)).train()
    x = torch.ones(1, 4)
    assert not torch.equal(net.at_width(0.5)(x), net.at_width(0.5)(x))
    net.eval()
    assert torch.equal(net.at_width(0.5)(x), net.at_width(0.5)(x))


def test_the_network_is_not_changed_and_a_copy_is_independent() -> None:
    model = lively(chain())
    before = copy.deepcopy(model.state_dict())
    net = make_slimmable(model, EXAMPLE)
    twin = duplicate(net)
    assert isinstance(twin, SlimmableNetwork)
    with torch.no_grad():
        expected = net.at_width(0.5)(EXAMPLE)
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(twin.at_width(0.5)(EXAMPLE), expected)
        assert not torch.equal(net.at_width(0.5)(EXAMPLE), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_budget_chooses_the_widest_that_keeps_it() -> None:
    net = make_slimmable(lively(chain()), EXAMPLE)
    half = net.cost(0.5).macs
    assert net.choose(Limit(macs=half)) == 0.5
    assert net.choose(Limit(macs=half - 1)) == 0.25
    with torch.no_grad():
        assert torch.equal(net(EXAMPLE, budget=Limit(macs=half)), net.at_width(0.5)(EXAMPLE))
    assert net.choose(Limit(macs=1)) == 0.25
    with pytest.raises(RequestError, match="no choice keeps"):
        net.choose(Limit(macs=1), strict=True)
    with pytest.raises(RequestError, match="timed"):
        net.choose(Limit(seconds=1))
    net.time(EXAMPLE, seconds=0.001)
    assert net.choose(Limit(seconds=1000)) == 1.0
    assert all((net.cost(width).seconds or 0) > 0 for width in net.choices())


def test_a_shape_of_its_own_is_a_choice_like_any_other() -> None:
    net = make_slimmable(lively(chain()), EXAMPLE, widths=(0.5,))
    net.add("tall", (2, 6))
    assert net.choices() == ("tall", 0.5, 1.0)  # by their MACs
    assert net.cost("tall").macs == 64 * 9 * (1 * 2 + 2 * 6) + 24 * 3
    assert net.extract("tall").get_parameter("3.weight").shape == (6, 2, 3, 3)


def test_whole_heads_go_where_that_is_asked() -> None:
    net = make_slimmable(transformer(), EXAMPLE, widths=(0.5,), granularity="head")
    heads = [(g.size, k) for g, k in zip(net.coupling.groups, net.shape(0.5), strict=True) if g.unit == "head"]
    assert heads == [(2, 1)]


@pytest.mark.parametrize("widths", [(), (0.0,), (1.5,), (0.5, -0.1), (float("nan"),)])
def test_widths_out_of_range_are_named(widths: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match=r"widths must be fractions in \(0, 1\]"):
        make_slimmable(chain(), EXAMPLE, widths=widths)


def test_what_cannot_be_is_said() -> None:
    net = make_slimmable(chain(), EXAMPLE, widths=(0.5,))
    for wrong in (lambda: net.at_width(0.3), lambda: net.cost(0.3), lambda: net.extract("tall")):
        with pytest.raises(RequestError, match=r"a width must be one of 0.5, 1.0, got"):
            wrong()
    with pytest.raises(RequestError, match=r"a shape must be for each group from 1 to as many"):
        net.add("tall", (0, 6))
    with pytest.raises(RequestError, match="a new one"):
        net.add(0.5)
    with pytest.raises(RequestError, match="name of a choice"):
        net.add("a.b", (2, 6))
    with pytest.raises(RequestError, match=r"in \(0, 1\]"):
        net.add("tall")
    with pytest.raises(UnsupportedOpError, match="no neuron"):
        make_slimmable(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(RequestError, match="needs data"):
        make_slimmable(chain(), EXAMPLE, criterion="taylor")
