"""Quantization-aware training: what an update of a step is, and what the trained network still keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize

from featherweight.errors import RequestError
from featherweight.graph.capture import to_module
from featherweight.graph.constraint import constrain, fold
from featherweight.graph.program import ProgramModule
from featherweight.pruning import prune_weights
from featherweight.quantization.activations import find_quantizers, place_quantizers
from featherweight.quantization.aware import tune_quantized
from featherweight.quantization.grid import Grid, find_grid
from featherweight.quantization.uniform import UniformOptions, quantize_uniform
from featherweight.training import TensorLoader, Tuning, evaluate
from featherweight.training.loop import fit


def blobs() -> TensorLoader:
    """Four classes of points in the plane, of which a straight line tells no two pairs apart."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(400) % 4
    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return TensorLoader(centres[targets] + 0.3 * torch.randn(400, 2, generator=draw), targets, batch_size=40)


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
    fit(net, blobs(), Tuning(epochs=10, learning_rate=1e-2))
    return net


def on_grids(net: nn.Module) -> nn.Module:
    """Two bits, with steps so large that few weights are not zero."""
    quantized = fold(net)
    for name in ("0.weight", "2.weight"):
        weight = quantized.get_parameter(name).detach()
        constrain(quantized, name, Grid(1.5 * weight.abs().amax(dim=1, keepdim=True), -2, 1))
    return quantized


def grid_of(net: nn.Module, name: str = "0") -> Grid:
    return net.get_submodule(name).parametrizations.weight[0]  # type: ignore[union-attr, index, return-value]


def test_a_step_of_sgd_is_that_of_lsq() -> None:
    """By hand: LSQ's update is -rate · gradient / √(n · high); the small step here is the same to first order."""
    layer, data = nn.Linear(4, 2), [(torch.randn(5, 4), torch.randn(5, 2))]
    constrain(layer, "weight", Grid(torch.tensor([[0.2], [0.05]]), -2, 1))
    grid = layer.parametrizations.weight[0]
    mse_loss(layer(data[0][0]), data[0][1]).backward()
    expected = -grid.step.grad / (4 * 1) ** 0.5  # a row of four weights shares a step
    rate = 1e-4
    tuned = tune_quantized(layer, data, Tuning(optimizer="sgd", learning_rate=rate, schedule="constant"), loss=mse_loss)
    moved = (tuned.parametrizations.weight[0].step - grid.step).detach() / (rate * 1.9)  # Nesterov's first step is 1.9 rates
    torch.testing.assert_close(moved, expected, rtol=0.02, atol=2e-3)


def test_the_steps_of_activations_move_like_lsq_too() -> None:
    net = to_module(nn.Linear(3, 2), torch.zeros(1, 3))
    data = [(torch.rand(6, 3) * 2, torch.randn(6, 2))]
    quantized = place_quantizers(net, calibrate=data, bits=2).train()
    name = find_quantizers(quantized.program)[0].step
    high = find_quantizers(quantized.program)[0].high
    mse_loss(quantized(data[0][0]), data[0][1]).backward()
    step = quantized.get_parameter(name)
    expected = -step.grad / (3 * high) ** 0.5
    rate = 1e-4
    tuned = tune_quantized(quantized, data, Tuning(optimizer="sgd", learning_rate=rate, schedule="constant"), loss=mse_loss)
    moved = (tuned.get_parameter(name) - step).detach() / (rate * 1.9)
    torch.testing.assert_close(moved, expected, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_steps_stay_positive(optimizer: str) -> None:
    quantized = on_grids(network())
    tuning = Tuning(epochs=3, learning_rate=0.3, optimizer=optimizer, weight_decay=0.1)
    tuned = tune_quantized(quantized, blobs(), tuning)
    assert (grid_of(tuned).step > 0).all()
    assert not torch.equal(grid_of(tuned).step, grid_of(quantized).step)


def test_an_update_of_adam_is_relative() -> None:
    """Steps of very different sizes move by the same share."""
    layer, data = nn.Linear(4, 2), [(torch.randn(5, 4), torch.randn(5, 2))]
    with torch.no_grad():
        layer.weight[1] /= 100
    constrain(layer, "weight", Grid(torch.tensor([[0.2], [0.002]]), -2, 1))
    tuned = tune_quantized(layer, data, Tuning(learning_rate=0.01, schedule="constant"), loss=mse_loss)
    share = (tuned.parametrizations.weight[0].step / layer.parametrizations.weight[0].step).log().abs()
    torch.testing.assert_close(share.detach(), torch.full((2, 1), 0.01), rtol=1e-3, atol=0)


def test_training_wins_back_what_two_bits_cost() -> None:
    net = network()
    quantized = on_grids(net)
    tuned = tune_quantized(quantized, blobs(), Tuning(epochs=20, learning_rate=1e-2))
    before, after = (evaluate(each, blobs()) for each in (quantized, tuned))
    assert before < 0.9
    assert after > 0.97
    assert find_grid(fold(tuned).get_parameter("0.weight").detach(), 0) is not None
    integers = find_grid(fold(tuned).get_parameter("2.weight").detach(), 0).integers  # type: ignore[union-attr]
    assert integers.abs().max() <= 2


def test_weights_and_activations_learn_together() -> None:
    data, two_bits = blobs(), UniformOptions(ranges="minmax", activation_ranges="minmax")
    quantized = quantize_uniform(network(), data.inputs[:4], weight_bits=2, activation_bits=2, calibrate=data, options=two_bits)
    tuned = tune_quantized(quantized, data, Tuning(epochs=20, learning_rate=1e-2))
    assert evaluate(quantized, data) < 0.95
    assert evaluate(tuned, data) > 0.97
    assert isinstance(tuned, ProgramModule)
    steps = [quantizer.step for quantizer in find_quantizers(tuned.program)]
    assert steps
    assert all(not torch.equal(tuned.get_parameter(step), quantized.get_parameter(step)) for step in steps)
    assert torch.equal(fold(tuned).eval()(data.inputs), tuned.eval()(data.inputs)), "what is deployed is what was trained"


def test_masks_and_the_model_stay_as_they_were() -> None:
    pruned = prune_weights(network(), sparsity=0.5)
    step = torch.tensor(0.1)
    constrain(pruned, "0.weight", Grid(step, -8, 7))
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    tuned = tune_quantized(pruned, blobs(), Tuning(epochs=2))
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())
    assert list(tuned.state_dict()) == list(before), "its steps are plain parameters again"
    assert not parametrize.is_parametrized(tuned.get_submodule("0.parametrizations.weight.1"))
    assert not fold(tuned).get_parameter("0.weight")[fold(pruned).get_parameter("0.weight") == 0].any()


def test_without_epochs_nothing_changes() -> None:
    quantized = on_grids(network())
    tuned = tune_quantized(quantized, blobs(), Tuning(epochs=0))
    assert all(torch.equal(tensor, tuned.state_dict()[name]) for name, tensor in quantized.state_dict().items())


def test_a_step_that_is_not_trained_stays() -> None:
    quantized = on_grids(network())
    grid_of(quantized).step.requires_grad_(False)
    tuned = tune_quantized(quantized, blobs(), Tuning(epochs=1))
    assert torch.equal(grid_of(tuned).step, grid_of(quantized).step)
    assert not torch.equal(grid_of(tuned, "2").step, grid_of(quantized, "2").step)


def test_a_network_that_is_not_quantized() -> None:
    with pytest.raises(RequestError, match="neither grids nor quantizers"):
        tune_quantized(network(), blobs(), Tuning())
