"""Rewritten programs compute what they should; batch norms become part of the layers before them, or stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.program import Node, Program, ProgramModule, Ref, TensorSpec
from featherweight.graph.rewrite import fold_batch_norm, readers_of, rewrite
from featherweight.nets import NETS
from tests.graph.nets import SMALL
from tests.graph.sequence_nets import SEQUENCES


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision, with norms as after training: no statistic or factor is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for tensor in (module.weight, module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
                if module.running_var is not None:
                    module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator).double() + 0.1)
    return model


def folded(model: nn.Module, *inputs: torch.Tensor) -> ProgramModule:
    """The folded program; checks that it computes the same, and that the tensors it came from are untouched."""
    program = capture(model, inputs)
    tensors = tensors_of(model, program)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    twin = ProgramModule(*fold_batch_norm(program, tensors)).eval()
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())
    with torch.no_grad():
        torch.testing.assert_close(twin(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)
    return twin


def norms(program: Program) -> int:
    return sum(node.op == "batch_norm" for node in program.nodes)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in SEQUENCES])
def test_small_networks_compute_the_same(name: str) -> None:
    make, shapes = SMALL[name]
    model = scrambled(make())
    inputs = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    folded(model, *inputs)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v1"])
def test_nets_of_the_zoo_lose_all_their_norms(name: str) -> None:
    model = scrambled(NETS[name](input_shape=(1, 28, 28), classes=10))
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    assert norms(capture(model, x)) > 10
    twin = folded(model, x)
    assert norms(twin.program) == 0
    assert not any("norm" in name for name, _ in twin.named_parameters()), "their tensors are gone"


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (4, 9, 9)),
    "same": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6)), (4, 9, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), (4, 5, 5, 5)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 9, 9)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (4, 9, 9)),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)),
    "transposed1d": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)), (4, 5, 5)),
    "transposed-groups": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
    "transposed3d": (lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, 3), nn.BatchNorm3d(6)), (4, 3, 3, 3)),
    "no-affine": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False, eps=0.1)), (4, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_takes_its_norm(name: str) -> None:
    make, shape = LAYERS[name]
    model = scrambled(make())
    twin = folded(model, torch.randn(3, *shape, dtype=torch.float64))
    assert norms(twin.program) == 0
    assert sorted(twin.state_dict()) == ["0.bias", "0.weight"]


class Shared(nn.Module):
    """One convolution, called twice, each time with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class ReadTwice(nn.Module):
    """What goes into the norm also goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class GivenOut(ReadTwice):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x)
        return x, self.norm(x)


class Computed(ReadTwice):
    """The weight is standardised first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        return self.norm(F.conv2d(x, weight, self.conv.bias))


class OtherAxis(nn.Module):
    """The norm's channels are the positions of the linear layer, of which there are as many as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(9, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x.flatten(2).unflatten(2, (9, 9))[:, :, 0]))


@pytest.mark.parametrize(
    "make",
    [
        Shared,
        ReadTwice,
        GivenOut,
        Computed,
        OtherAxis,
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
    ],
)
def test_norms_that_must_stay(make: Callable[[], nn.Module]) -> None:
    model = scrambled(make())
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    assert norms(folded(model, x).program) == norms(capture(model, x)) > 0


def test_a_folded_network_saves_nothing_of_its_norms_and_trains() -> None:
    twin = folded(scrambled(NETS["resnet20"](input_shape=(1, 28, 28), classes=10)), torch.randn(2, 1, 28, 28).double())
    twin.train()(torch.randn(2, 1, 28, 28).double()).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_replaced_left_out_and_added() -> None:
    """relu(linear(x)) * 2 becomes tanh(linear(x) + shift) with a new tensor, and what nothing reads is gone."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    program = capture(net, torch.zeros(2, 3))
    first, end = program.first_node, program.first_node + len(program.nodes)
    changes = {1: Node("add.Tensor", (Ref(first), Ref(end))), 2: Node("tanh", (Ref(first + 1),))}
    rewritten = rewrite(program, changes, [TensorSpec("shift", "parameter")])
    assert [spec.name for spec in rewritten.tensors] == ["0.weight", "0.bias", "shift"]
    shift = torch.tensor([1.0, -1.0])
    twin = ProgramModule(rewritten, {"0.weight": net[0].weight, "0.bias": net[0].bias, "shift": shift})
    x = torch.randn(5, 3)
    torch.testing.assert_close(twin(x), torch.tanh(net[0](x) + shift))
    assert [node.op for node in program.nodes] == ["linear", "relu", "linear"], "the program before is unchanged"


def test_values_that_stand_for_values_that_are_gone() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    program = capture(net, torch.zeros(2, 3))
    short = rewrite(program, {0: Ref(0), 1: Ref(1)})
    assert short.nodes == (Node("sigmoid", (Ref(0),)),)
    assert rewrite(program, {0: Ref(0), 1: Ref(1), 2: Ref(2)}).output == Ref(0)


def test_readers() -> None:
    net = to_module(ReadTwice(), torch.zeros(2, 4, 9, 9))
    readers = readers_of(net.program)
    first = net.program.first_node
    assert readers[first] == [1, 2]
    assert readers[first + 2] == [-1]


def test_training_passes_gradients_through_a_round() -> None:
    """As in LSQ: the gradients of a quantizer written as four operations."""

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(torch.round(x / self.step), -2, 1) * self.step

    twin = to_module(Quantized(), torch.zeros(2, 3)).train()
    x = torch.tensor([[0.1, -0.7, 3.0]], requires_grad=True)
    twin(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 0.0]]
    torch.testing.assert_close(twin.step.grad, torch.tensor((0 - 0.2) + (-1 + 1.4) + 1.0))
    assert twin(x).tolist() == Quantized()(x).tolist() == twin.eval()(x).tolist()
    x.grad = None
    twin(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0, 0.0]], "in eval mode it is torch's own"
