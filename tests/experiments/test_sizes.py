"""Equal sizes and equal compute: exact where they can be, never more where they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.experiments.sizes import (
    conv_net,
    count_work,
    epochs_for_work,
    prune_neurons_to,
    restart,
    weight_sparsity_for,
)
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.cost import count_macs
from featherweight.measuring import count_nonzero, count_parameters
from featherweight.nets import lenet_300_100
from featherweight.pruning import prune_weights

IMAGES = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parameters", [24_170, 12_345, 1_000, 347])
def test_weights_are_pruned_to_just_so_many_parameters(parameters: int) -> None:
    net = conv_net()
    for module in net.modules():  # a parameter that happens to be zero would not count
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
    pruned = prune_weights(net, sparsity=weight_sparsity_for(net, parameters))
    assert count_nonzero(pruned) == parameters


@pytest.mark.parametrize("parameters", [0, 346, 24_171])
def test_impossible_numbers_of_parameters(parameters: int) -> None:
    with pytest.raises(RequestError, match=r"must be in \(346, 24170\]"):
        weight_sparsity_for(conv_net(), parameters)


@pytest.mark.parametrize("share", [0.7, 0.1])
def test_neurons_are_pruned_to_nearly_so_many_parameters(share: float) -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 2))
    most = round(share * 962)
    pruned = prune_neurons_to(net, torch.zeros(2, 20), most)
    first, second = (pruned.get_submodule(name).out_features for name in ("0", "2"))
    assert count_parameters(pruned) == 21 * first + (first + 1) * second + (second + 1) * 2 <= most
    assert 21 * (first + 1) + (first + 2) * (second + 1) + (second + 2) * 2 > most, "a neuron more in each layer is too many"
    assert first / 30 == pytest.approx(second / 10, abs=0.1), "the same share of both layers"


def test_too_few_parameters_for_neurons() -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    with pytest.raises(RequestError, match="must be at least 25"):
        prune_neurons_to(net, torch.zeros(2, 20), 24)


@pytest.mark.parametrize("net", [conv_net(), lenet_300_100()], ids=["conv", "lenet"])
def test_work_of_a_dense_network_is_its_macs(net: nn.Module) -> None:
    program = capture(net, IMAGES)
    assert count_work(net, IMAGES) == count_macs(program, tensors_of(net, program))


def test_work_skips_zeros() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    with torch.no_grad():
        net[0].weight[0] = 0
        net[2].weight[1:] = 0
    assert count_work(net, IMAGES) == 9 * 26 * 26 + 2 * 26 * 26


@pytest.mark.parametrize("lighter", [100, 73, 51, 50, 20, 1])
def test_scratch_b_never_computes_more_and_at_most_doubles(lighter: int) -> None:
    epochs = epochs_for_work(12, 100, lighter)
    assert 12 <= epochs <= 24
    assert epochs * lighter <= 12 * 100
    assert epochs == 24 or (epochs + 1) * lighter > 12 * 100, "one more would be too many"


def test_scratch_b_of_a_heavier_network_is_refused() -> None:
    with pytest.raises(RequestError, match="lighter"):
        epochs_for_work(12, 100, 101)


def test_restart_draws_everything_anew_and_leaves_no_mask() -> None:
    net = conv_net()
    with torch.no_grad():
        net.norm1.running_mean.fill_(5.0)
    pruned = prune_weights(net, sparsity=0.9)
    fresh, again, other = (restart(pruned, seed=seed) for seed in (1, 1, 2))
    assert count_nonzero(fresh) > 0.9 * count_parameters(net)
    assert bool((fresh.norm1.running_mean == 0).all())
    assert torch.equal(fresh.conv2.weight, again.conv2.weight)
    assert not torch.equal(fresh.conv2.weight, other.conv2.weight)
    assert not torch.equal(fresh.conv2.weight, net.conv2.weight)
    assert bool((net.norm1.running_mean == 5).all())
