"""Uniform quantization: grids of the right size in the right places, on the user's class or a program; nothing half-done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError, WeightsError
from featherweight.graph.constraint import constrain, constrained, constraints_of, fold
from featherweight.graph.program import ProgramModule, tensor_called
from featherweight.pruning import Mask, prune_weights
from featherweight.quantization import cluster_weights
from featherweight.quantization.grid import Grid, find_grid
from featherweight.quantization.ranges import RANGES
from featherweight.quantization.uniform import UniformOptions, choose_grid, quantize_uniform
from tests.graph.nets import Depthwise

EXAMPLE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [(x, torch.zeros(len(x))) for x in torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(8)]


class Net(nn.Module):
    """Convolutions with a norm, one of them transposed, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.out = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.norm(self.conv(x))))
        return self.out(torch.relu(x).mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net()
    made.norm.weight.data.uniform_(0.5, 2)
    made.norm.bias.data.uniform_(-1, 1)
    made.norm.running_mean.uniform_(-0.2, 0.2)
    made.norm.running_var.uniform_(0.2, 2)
    return made.eval()


def difference(a: nn.Module, b: nn.Module, x: torch.Tensor = DATA[0][0]) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / b(x).norm())


def integers(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The weight's integers, checked to be some: whole, within the bounds, exact multiples."""
    step, low, high = (grid.spread(each) for each in (grid.step, grid.low, grid.high))
    found = torch.round(weight / step)
    assert torch.equal(found * step, weight)
    assert (found >= low).all()
    assert (found <= high).all()
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
def test_weights_are_few_multiples_of_their_steps(per: Any, symmetric: bool, bits: int) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize_uniform(
        model, EXAMPLE, weight_bits=bits, options=UniformOptions(per=per, group=2, symmetric=symmetric)
    )
    assert type(quantized) is Net
    assert list(constrained(quantized)) == ["conv.weight", "up.weight", "out.weight"]
    steps = {"tensor": (1, 1, 1), "channel": (6, 5, 4), "group": (6 * 2, 5, 4 * 3)}[per]
    for (name, (grid,)), count in zip(constrained(quantized).items(), steps, strict=True):
        weight = tensor_called(fold(quantized), name)
        integers(weight, grid)
        assert int((grid.high - grid.low).max()) <= 2**bits - 1
        assert grid.step.numel() == count
        assert torch.equal(tensor_called(quantized, name), weight)
        assert torch.equal(tensor_called(quantized, name.replace("weight", "parametrizations.weight.original")), before[name])
        step, low, high = (grid.spread(each) for each in (grid.step, grid.low, grid.high))
        inside = (before[name] >= low * step) & (before[name] <= high * step)
        assert inside.float().mean() > 0.5
        assert ((weight - before[name]).abs() <= 0.5001 * step)[inside].all(), "the nearest"
    assert difference(quantized, model) < {2: 1.5, 3: 1, 4: 0.4, 8: 0.03, 12: 2e-3, 16: 2e-4}[bits]
    assert not constrained(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "the original is untouched"


def test_channels_of_transposed_convolutions_are_their_outputs() -> None:
    quantized = quantize_uniform(net(), EXAMPLE)
    shapes = {name: tuple(chain[0].step.shape) for name, chain in constrained(quantized).items()}
    assert shapes == {"conv.weight": (6, 1, 1, 1), "up.weight": (1, 5, 1, 1), "out.weight": (4, 1)}
    as_program = quantize_uniform(net(), EXAMPLE, options=UniformOptions(equalize=True))
    assert tuple(constraints_of(as_program, "up.weight")[0].step.shape) == (1, 5, 1, 1)


def test_groups_are_runs_of_inputs() -> None:
    """Four inputs in groups of three: each group has the grid it would have alone."""
    weight = torch.randn(5, 4, 2)
    options = UniformOptions(per="group", group=3, ranges="minmax")
    grid = choose_grid(weight, 4, options=options)
    parts = [choose_grid(part, 4, options=UniformOptions(ranges="minmax"))(part) for part in weight.split(3, 1)]
    torch.testing.assert_close(grid(weight), torch.cat(parts, 1))
    assert choose_grid(weight, 4, options=UniformOptions(per="group", group=9)).group is None


@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_chosen_by_name(name: str) -> None:
    weight = torch.cat([torch.randn(3, 500), torch.full((3, 1), 30.0)], 1)
    step = choose_grid(weight, 4, options=UniformOptions(ranges=name)).step
    assert ((step * 7 < 29) == (name != "minmax")).all() or name == "percentile"


def test_channels_of_one_weight_share_a_step() -> None:
    assert choose_grid(torch.randn(7, 1), 8).step.numel() == 1
    assert choose_grid(torch.randn(1, 7), 8, axis=1).step.numel() == 1


def test_bits_by_name_leave_the_rest() -> None:
    quantized = quantize_uniform(net(), EXAMPLE, weight_bits={"out.weight": 2, "conv.weight": 5}, exclude=["conv*"])
    assert list(constrained(quantized)) == ["out.weight"]
    grid = constraints_of(quantized, "out.weight")[0]
    assert (grid.low.unique().tolist(), grid.high.unique().tolist()) == ([-2], [1])


def test_masks_and_codebooks_stay_and_grids_are_replaced() -> None:
    model = prune_weights(net(), sparsity=0.5)
    zeros = {name: tensor_called(model, name) == 0 for name in constrained(model)}
    quantized = quantize_uniform(model, EXAMPLE, weight_bits=4)
    again = quantize_uniform(quantized, EXAMPLE, weight_bits=3)
    for found, bits in ((quantized, 4), (again, 3)):
        assert {name: [type(c) for c in chain] for name, chain in constrained(found).items()} == {
            name: [Mask, Grid] for name in zeros
        }
        optimizer = torch.optim.SGD(found.train().parameters(), lr=0.05)
        found(EXAMPLE).square().sum().backward()
        optimizer.step()
        for name, zero in zeros.items():
            assert (tensor_called(found, name)[zero] == 0).all()
            integers(tensor_called(found, name), constraints_of(found, name)[-1])
            assert int(constraints_of(found, name)[-1].high.max()) == 2 ** (bits - 1) - 1
    clustered = quantize_uniform(cluster_weights(net(), clusters=3), EXAMPLE, weight_bits=4)
    assert [type(c).__name__ for c in constraints_of(clustered, "out.weight")] == ["Codebook", "Grid"]
    assert len(fold(clustered).out.weight.unique()) <= 4


def test_learned_rounding_beats_the_nearest_on_its_data() -> None:
    model = Depthwise().eval()
    plain, learned = (
        quantize_uniform(model, EXAMPLE, weight_bits=3, calibrate=DATA, options=UniformOptions(rounding=name))
        for name in ("nearest", "gptq")
    )
    assert difference(learned, model) < difference(plain, model)
    for name, (grid,) in constrained(learned).items():
        integers(tensor_called(learned, name), grid)


def test_equalised_networks_are_better_per_tensor() -> None:
    """Channels of very different size, which one step for all cannot serve."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        scales = torch.logspace(-2, 2, 16)
        model[0].weight *= scales[:, None, None, None]
        model[0].bias *= scales
        model[2].weight /= scales[:, None, None]
    plain, equalized = (
        quantize_uniform(model, EXAMPLE, options=UniformOptions(per="tensor", equalize=equalize)) for equalize in (False, True)
    )
    assert isinstance(equalized, ProgramModule)
    assert difference(equalized, model) < 0.02 < 0.1 < difference(plain, model)


@pytest.mark.parametrize("calibrate", [None, DATA])
def test_corrected_biases_take_the_shift_off(calibrate: Any) -> None:
    """The layer after the norm: the mean of its outputs is the float network's."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 6, 1, bias=False)).eval()
    x = torch.randn(500, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model[0].bias.data.copy_(torch.tensor([0.5, 1.0, 2.0]))
    calibrate = calibrate and [(x, torch.zeros(500))]
    plain, corrected = (
        quantize_uniform(model, EXAMPLE, weight_bits=2, calibrate=calibrate, options=UniformOptions(correct_bias=correct))
        for correct in (False, True)
    )
    with torch.no_grad():
        shifts = [(q(x) - model(x)).mean((0, 2, 3)).abs() for q in (plain, corrected)]
    assert shifts[0].max() > 0.1
    assert shifts[1].max() < (0.01 if calibrate is None else 1e-5)
    assert torch.equal(fold(corrected).get_parameter("2.weight"), fold(plain)[2].weight)


def test_activations_make_a_program_without_norms() -> None:
    model = prune_weights(net(), sparsity=0.3).train()
    quantized = quantize_uniform(model, EXAMPLE, activation_bits=8, calibrate=DATA)
    assert isinstance(quantized, ProgramModule)
    assert quantized.training
    ops = [node.op for node in quantized.program.nodes]
    assert "batch_norm" not in ops
    assert ops.count("round") >= 3
    for name, chain in constrained(quantized).items():
        assert [type(c) for c in chain] == [Mask, Grid], name
        integers(tensor_called(quantized, name), chain[-1])
    assert difference(quantized.eval(), model.eval()) < 0.05
    quantized.train()(EXAMPLE).square().sum().backward()
    assert all(parameter.grad is not None for parameter in quantized.parameters())


def test_found_again_after_folding() -> None:
    folded = fold(quantize_uniform(net(), EXAMPLE, weight_bits=4))
    for weight, axis in ((folded.conv.weight, 0), (folded.up.weight, 1), (folded.out.weight, 0)):
        found = find_grid(weight, axis)
        assert found is not None
        assert int(found.integers.abs().max()) <= 8


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "bits": ({"weight_bits": 1}, RequestError, r"bits must be an integer in \[2, 16\], got 1"),
    "bits of one": ({"weight_bits": {"out.weight": 17}}, RequestError, r"bits must be an integer in \[2, 16\], got 17"),
    "name": ({"weight_bits": {"ou.weight": 4}}, RequestError, "got 'ou.weight'; near are out.weight"),
    "activation bits": ({"activation_bits": 9, "calibrate": DATA}, RequestError, r"in \[2, 8\], got 9"),
    "activations without data": ({"activation_bits": 8}, RequestError, "pass calibrate="),
    "rounding without data": ({"options": UniformOptions(rounding="gptq")}, RequestError, "needs data"),
    "empty": ({"calibrate": []}, DataError, "no batch"),
    "shape": ({"calibrate": [(torch.zeros(2, 3, 9, 9), torch.zeros(2))]}, DataError, r"\(3, 8, 8\).*got \(3, 9, 9\)"),
    "type": ({"calibrate": [(torch.zeros(2, 3, 8, 8).double(), torch.zeros(2))]}, DataError, "got .* of torch.float64"),
    "not finite": ({"calibrate": [(torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2))]}, DataError, "finite"),
    "patterns": ({"include": ["nothing"]}, RequestError, "which leave none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(case: str) -> None:
    options, kind, message = BAD[case]
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kind, match=message):
        quantize_uniform(model, EXAMPLE, **options)
    assert not constrained(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"per": "layer"}, "per must be one of tensor, channel, group, got 'layer'"),
        ({"group": 0}, "group must be"),
        ({"ranges": "max"}, "ranges must be one of"),
        ({"activation_ranges": "max"}, "ranges must be one of"),
        ({"rounding": "up"}, "rounding must be one of"),
    ],
)
def test_bad_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        UniformOptions(**option)


def test_weights_that_cannot_be_quantized() -> None:
    model = net()
    model.out.weight.data[1, 2] = torch.inf
    with pytest.raises(WeightsError, match=r"'out.weight' holds NaN or infinity"):
        quantize_uniform(model, EXAMPLE)
    quantize_uniform(model, EXAMPLE, exclude=["out*"])
    with pytest.raises(WeightsError, match=r"'conv.weight' is torch.bfloat16 and holds them up to 256 only, not 2048"):
        quantize_uniform(net().bfloat16(), EXAMPLE.bfloat16(), weight_bits=12)
    half = quantize_uniform(net().half(), EXAMPLE.half(), weight_bits=8)
    integers(tensor_called(half, "conv.weight"), constraints_of(half, "conv.weight")[0])


def test_a_network_of_programs_own_is_quantized_too() -> None:
    program = quantize_uniform(net(), EXAMPLE, options=UniformOptions(equalize=True))
    again = quantize_uniform(fold(program), EXAMPLE, weight_bits=4)
    assert isinstance(again, ProgramModule)
    assert tuple(constraints_of(again, "up.weight")[0].step.shape) == (1, 5, 1, 1)


def test_a_tensor_with_a_grid_of_its_own_trains() -> None:
    layer = nn.Linear(6, 3)
    constrain(layer, "weight", choose_grid(layer.weight, 4))
    layer(torch.randn(5, 6)).square().sum().backward()
    assert layer.parametrizations.weight[0].step.grad.shape == (3, 1)
