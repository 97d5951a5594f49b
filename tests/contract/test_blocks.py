"""What every compact block promises, whatever its form: to be smaller, to start better than by chance, and to learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, mse_loss

from featherweight.distillation import Lesson
from featherweight.errors import RequestError
from featherweight.factorization import separate_convolutions
from featherweight.factorization.blocks import BLOCKS
from featherweight.factorization.layers import Branches, Layer, Replacement, Thin, as_thin, macs_of, weights_of
from featherweight.factorization.network import look, replace_layers
from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.cost import count_macs
from featherweight.graph.program import ProgramModule
from featherweight.packaging import load, save
from featherweight.training import Tuning
from featherweight.training.loaders import TensorLoader


def images(count: int = 96) -> torch.Tensor:
    """Smooth ones, on which neighbouring pixels and channels are alike."""
    noise = torch.randn(count, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    return nn.functional.avg_pool2d(noise, 3, 1, 1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 4),
    )  # fmt: skip
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net.eval()


def run(made: Replacement, x: torch.Tensor) -> torch.Tensor:
    def through(thin: Thin, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, thin.weight, None, thin.stride, thin.padding, thin.dilation, thin.groups)

    if isinstance(made, Branches):
        first = through(made.first, x)
        left = first if made.left is None else through(made.left, first)
        return torch.cat([left, through(made.right, first)], 1)[:, made.order]
    for thin in made:
        x = through(thin, x)
    return x


def second_layer() -> Layer:
    model = network()
    return look(model, images(2), [(images(), torch.zeros(96))]).layers["2.weight"]


def as_random(made: Replacement) -> Replacement:
    """The same block with PyTorch's first weights."""

    def renewed(thin: Thin) -> Thin:
        weight = torch.empty_like(thin.weight)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        return Thin(weight, thin.stride, thin.padding, thin.dilation, thin.groups)

    if isinstance(made, Branches):
        left = None if made.left is None else renewed(made.left)
        return Branches(renewed(made.first), left, renewed(made.right), made.order)
    return [renewed(thin) for thin in made]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_starts_nearer_than_a_random_one(block: str) -> None:
    layer = second_layer()
    x = torch.relu(network()[0](images())).detach()
    wanted = run([as_thin(layer)], x)
    made = BLOCKS[block].make(layer, 1)
    assert run(made, x).shape == wanted.shape
    start, chance = mse_loss(run(made, x), wanted), mse_loss(run(as_random(made), x), wanted)
    nothing = wanted.square().mean()
    assert start < 0.7 * nothing
    assert start < 0.7 * chance


@pytest.mark.parametrize("block", BLOCKS)
def test_data_make_the_start_better(block: str) -> None:
    layer = second_layer()
    x = torch.relu(network()[0](images())).detach()
    wanted = run([as_thin(layer)], x)
    blind = Layer(layer.weight, layer.stride, layer.padding, layer.dilation, layer.size)
    with_data, without = (mse_loss(run(BLOCKS[block].make(each, 1), x), wanted) for each in (layer, blind))
    assert with_data < without


@pytest.mark.parametrize("block", BLOCKS)
def test_costs_are_those_of_the_network(block: str) -> None:
    model, x = network(), images(2)
    found = look(model, x, None, include=["2.weight"])
    made = BLOCKS[block].make(found.layers["2.weight"], 1)
    smaller = replace_layers(model, found, {"2.weight": made})
    before, after = (to_module(net, x) for net in (model, smaller))
    saved = [count_macs(net.program, tensors_of(net, net.program)) for net in (before, after)]
    assert saved[0] - saved[1] == 16 * 16 * 9 * 36 - macs_of(made, (12, 12)) > 0
    weights = [sum(p.numel() for p in net.parameters()) for net in (model, smaller)]
    assert weights[0] - weights[1] == 16 * 16 * 9 - weights_of(made) > 0


@pytest.mark.parametrize("block", BLOCKS)
def test_distillation_brings_the_network_nearer(block: str) -> None:
    model, x = network(), images()
    wanted = model(x).detach()
    data = TensorLoader(x, wanted.argmax(1), 32, shuffle=True)
    untrained = separate_convolutions(model, x[:2], data, block=block, tuning=Tuning(epochs=0))
    lesson, tuning = Lesson(hard_weight=0.0, target="logits"), Tuning(epochs=20, learning_rate=3e-3)
    compact = separate_convolutions(model, x[:2], data, block=block, lesson=lesson, tuning=tuning)
    start, end = (mse_loss(net.eval()(x), wanted) for net in (untrained, compact))
    assert end < 0.7 * start
    assert torch.equal(model(x), wanted)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("block", BLOCKS)
def test_own_class_captured_program_and_file_agree(block: str, tmp_path: object) -> None:
    model, x = network(), images(3)
    captured = ProgramModule(program := capture(model, x), tensors_of(model, program))
    nets = []
    for each in (model, captured):
        found = look(each, x, None, include=["2.weight", "4.weight"])
        made = {name: BLOCKS[block].make(layer, 1) for name, layer in found.layers.items()}
        nets.append(replace_layers(each, found, made).eval())
    assert isinstance(nets[0], nn.Sequential)
    assert isinstance(nets[1], ProgramModule)
    expected = nets[0](x)
    torch.testing.assert_close(nets[1](x), expected)
    path = f"{tmp_path}/net.fw"
    save(nets[0], path, example=x)
    torch.testing.assert_close(load(path)(x), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_gets_no_smaller_stays(block: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 2))
    data = [(torch.randn(4, 4, 4, 4), torch.zeros(4, dtype=torch.int64))]
    if block == "ghost":  # one output kept, one made of it: (9 · 4 + 9) of 72 weights
        compact = separate_convolutions(model, data[0][0], data, block=block, tuning=Tuning(epochs=0))
        assert sum(p.numel() for p in compact.parameters()) == 45 + 2 + 66
    elif block == "fire":  # one channel, from it one output by 1x1, one by 3x3: 4 + 1 + 9
        compact = separate_convolutions(model, data[0][0], data, block=block, tuning=Tuning(epochs=0))
        assert sum(p.numel() for p in compact.parameters()) == 14 + 2 + 66
    else:
        with pytest.raises(RequestError, match=r"0\.weight: it would have 88 of 72 weights"):
            separate_convolutions(model, data[0][0], data, block=block, multiplier=4, tuning=Tuning(epochs=0))
