"""A dozen networks of torchvision and timm, as different as can be; benchmarks/coverage has all of them, and more checks."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import cross_entropy

import featherweight
from featherweight.graph.cutting import cut, mask, study
from featherweight.pruning.neurons import _Choice, _decide

NETWORKS = {
    "resnet18": "residuals",
    "squeezenet1_1": "fire modules, a convolution for a classifier",
    "mobilenet_v3_small": "depthwise convolutions, squeeze and excite",
    "convnext_zepto_rms": "RMS norms over channels, layer scale",
    "fasternet_t0": "convolutions of a part of the channels",
    "fastvit_t8": "re-parametrised branches, attention at the end",
    "edgenext_xx_small": "a softmax over channels, splits, sines for positions",
    "efficientvit_b0": "linear attention in single precision, grouped convolutions",
    "mobilevit_xxs": "patches folded into the batch",
    "starnet_s050": "branches that multiply each other",
    "vit_tiny_patch16_224": "attention, a class token, learned positions",
    "cs3darknet_focus_s": "space to depth, halves that part and meet",
}


@pytest.fixture(scope="module")
def zoo() -> Iterator[ModuleType]:
    """The benchmark's own helper: it makes torchvision importable where it has no build for the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "coverage")
        module = importlib.import_module("zoo")
        module.import_torchvision()
        yield module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_network_is_pruned_rightly(zoo: ModuleType, name: str) -> None:
    entry = next(entry for entry in zoo.entries("all") if entry.name == name)
    model = zoo.build(entry.source, name, fused=True).double().eval()
    x = zoo.example(entry, batch=3).double()
    network = study(model, x)
    plan = _decide(network, _Choice(0.5))
    smaller, masked = cut(network, plan.removed, model), mask(network, plan.removed)
    with torch.no_grad():
        expected, before, found = masked(x), model(x), smaller(x)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (expected - before).abs().max() > 1e-3 * before.abs().max()
    assert _count(smaller) < 0.7 * _count(model)
    optimizer = torch.optim.SGD(smaller.train().parameters(), lr=1e-3)
    loss = cross_entropy(smaller(x), torch.tensor([0, 1, 2]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    if name in ("squeezenet1_1", "starnet_s050"):
        _check_file(smaller.eval(), x)


def _check_file(smaller: torch.nn.Module, x: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "net.fw")
        featherweight.save(smaller, path, example=x)
        loaded = featherweight.load(path)
        torch.testing.assert_close(loaded(x[:2]), smaller(x[:2]))


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
