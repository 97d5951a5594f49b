"""Quantization for coded bits: the error is kept, the bits are few, the weights lie on grids, and the rest is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.errors import RequestError, WeightsError
from featherweight.graph.constraint import constrain, constraints_of, fold
from featherweight.pruning import Mask
from featherweight.quantization import Grid, find_grid, plan_entropy, quantize_entropy
from featherweight.quantization.entropy import round_significant
from featherweight.quantization.trellis import follows, parities, quantizers


def weights(*, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Tensors as networks have them: long-tailed, rows of different scales, of all shapes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(300, 1, generator=generator) + 0.5
    heavy = torch.randn(300, 200, generator=generator) * torch.randn(300, 200, generator=generator).abs() * rows
    return {
        "linear": heavy * scale,
        "conv": torch.randn(64, 8, 3, 3, generator=generator) * scale * 2,
        "depthwise": torch.randn(50, 1, 3, 3, generator=generator) * scale * 4,
        "bias": torch.randn(300, generator=generator),
        "variance": torch.logspace(-6, 3, 64),
        "count": torch.tensor(7),
    }


def error_of(coarse: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], names: list[str]) -> float:
    wrong = torch.cat([(coarse[n] - exact[n]).double().flatten() for n in names])
    return float(wrong.norm() / torch.cat([exact[n].double().flatten() for n in names]).norm())


def coded_bits(tensor: torch.Tensor, step: float, *, trellis: bool) -> float:
    """The entropy of the integers, given the quantizer of each, of order 0."""
    integers = np.rint(tensor.double().numpy().ravel() / step).astype(np.int16)
    sides = quantizers(parities(integers)) if trellis else np.zeros(len(integers), np.uint8)
    total = 0.0
    for side in np.unique(sides):
        counts = np.unique(integers[sides == side], return_counts=True)[1]
        total += float((counts * np.log2(counts.sum() / counts)).sum())
    return total


NAMES = ["linear", "conv", "depthwise"]


@pytest.mark.parametrize("trellis", [True, False])
@pytest.mark.parametrize("target", [0.01, 0.1, 0.4])
def test_error_is_kept_and_used_up(target: float, trellis: bool) -> None:
    exact = weights()
    coarse = quantize_entropy(exact, relative_error=target, trellis=trellis)
    assert 0.985 * target < error_of(coarse, exact, NAMES) <= target


def test_trellis_saves_bits_and_is_followed() -> None:
    exact, spent = weights(), {}
    for trellis in (True, False):
        coarse = quantize_entropy(exact, relative_error=0.1, trellis=trellis)
        step = plan_entropy(exact, relative_error=0.1, trellis=trellis).steps["linear"]
        grid = find_grid(coarse["linear"])
        assert grid is not None
        assert float(grid.steps) == pytest.approx(step, rel=0.02)
        assert follows(grid.integers.numpy().ravel()) is trellis
        spent[trellis] = sum(coded_bits(coarse[n], float(grid.steps), trellis=trellis) for n in NAMES)
    assert 0.94 < spent[True] / spent[False] < 0.98


def test_rates_save_bits_against_rounding() -> None:
    """At the same error, rounding to the nearest with a step of its own takes more bits."""
    exact = weights()
    plan = plan_entropy(exact, relative_error=0.4, trellis=False)
    coarse = plan.quantize(exact)
    spent = sum(coded_bits(coarse[n], plan.steps[n], trellis=False) for n in NAMES)
    low, high = 1e-4, 1.0
    for _ in range(40):
        step = (low * high) ** 0.5
        nearest = {n: (exact[n] / step).round() * step for n in NAMES}
        low, high = (step, high) if error_of(nearest, exact, NAMES) < error_of(coarse, exact, NAMES) else (low, step)
    assert spent < 0.97 * sum(coded_bits(nearest[n], step, trellis=False) for n in NAMES)


@pytest.mark.parametrize("bits", [0.7, 2.0, 5.0])
def test_bits_are_spent(bits: float) -> None:
    exact = weights()
    plan = plan_entropy(exact, bits=bits)
    coarse = plan.quantize(exact)
    spent = sum(coded_bits(coarse[n], float(np.float32(plan.steps[n])), trellis=True) for n in NAMES)
    assert spent / sum(exact[n].numel() for n in NAMES) == pytest.approx(bits, rel=0.03)


def test_importance_is_heeded() -> None:
    exact = weights()
    generator = torch.Generator().manual_seed(1)
    importance = {n: torch.rand(exact[n].shape, generator=generator) ** 4 for n in NAMES}
    importance["conv"] *= 100
    heeding = plan_entropy(exact, bits=3, importance=importance)
    assert heeding.steps["conv"] == pytest.approx(heeding.steps["linear"] / 10, rel=0.1)

    def harm(coarse: dict[str, torch.Tensor]) -> float:
        return sum(float(((coarse[n] - exact[n]) ** 2 * importance[n]).sum()) for n in NAMES)

    assert harm(heeding.quantize(exact, importance=importance)) < 0.7 * harm(plan_entropy(exact, bits=3).quantize(exact))


def test_other_tensors_stay_precise() -> None:
    exact = weights()
    coarse = quantize_entropy(exact, relative_error=0.1)
    assert torch.equal(coarse["count"], exact["count"])
    for name in ("bias", "variance"):
        assert float(((coarse[name] - exact[name]) / exact[name]).abs().max()) <= 0.1 / 8
        assert not torch.equal(coarse[name], exact[name])


def test_plan_goes_one_tensor_at_a_time() -> None:
    exact = weights()
    plan = plan_entropy(exact, relative_error=0.1)
    together = plan.quantize(exact)
    assert list(together) == list(exact)
    for name, tensor in exact.items():
        assert torch.equal(plan.quantize({name: tensor})[name], together[name])


def test_large_tensors_go_in_batches() -> None:
    exact = {name: torch.randn(600, 1000) * 0.1 for name in "abc"}
    plan = plan_entropy(exact, relative_error=0.2)
    assert torch.equal(plan.quantize(exact)["b"], plan.quantize({"b": exact["b"]})["b"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    exact = {"w": weights()["linear"].to(dtype)}
    coarse = quantize_entropy(exact, relative_error=0.1)["w"]
    assert coarse.dtype == dtype
    assert error_of({"w": coarse}, exact, ["w"]) <= 0.1


def test_module_keeps_its_class_and_trains_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 10))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    coarse = quantize_entropy(net, relative_error=0.1, exclude=["3.bias"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert isinstance(coarse, nn.Sequential)
    grid = constraints_of(coarse, "3.weight")[0]
    assert isinstance(grid, Grid)
    assert not grid.step.requires_grad
    folded = fold(coarse).state_dict()
    assert torch.equal(folded["3.weight"], (folded["3.weight"] / grid.step).round() * grid.step)
    assert torch.equal(folded["3.bias"], before["3.bias"])
    coarse(torch.randn(2, 1, 4, 4)).sum().backward()
    assert constraints_of(net, "3.weight") == []


def test_zeros_of_a_mask_stay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(200, 100)
    kept = torch.rand(100, 200) < 0.3
    constrain(layer, "weight", Mask(kept))
    coarse = quantize_entropy(layer, relative_error=0.3)
    assert [type(constraint) for constraint in constraints_of(coarse, "weight")] == [Mask, Grid]
    assert not fold(coarse).weight[~kept].any()
    assert int(fold(coarse).weight.count_nonzero()) > 0.5 * int(kept.sum())


def test_all_zero_and_empty_tensors() -> None:
    exact = {"zero": torch.zeros(10, 10), "none": torch.zeros(0, 4), "w": torch.randn(20, 20)}
    coarse = quantize_entropy(exact, relative_error=0.1)
    assert torch.equal(coarse["zero"], exact["zero"])
    assert coarse["none"].shape == (0, 4)
    assert torch.equal(quantize_entropy({"zero": torch.zeros(4, 4)}, bits=1)["zero"], torch.zeros(4, 4))


def test_round_significant() -> None:
    numbers = torch.cat([torch.randn(1000) * 10.0 ** torch.randint(-20, 20, (1000,)), torch.tensor([0.0, 1e-40, -1.5])])
    rounded = round_significant(numbers, bits=5)
    assert float(((rounded - numbers).abs() - numbers.abs() * 2**-5).max()) <= 0
    assert int((rounded[:1000].view(torch.int32) & (1 << 19) - 1).count_nonzero()) == 0  # 23 - (5 - 1) bits are free
    assert torch.equal(round_significant(numbers, bits=24)[:1000], numbers[:1000])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either relative_error or bits"),
        ({"relative_error": 0.1, "bits": 3}, "either relative_error or bits"),
        ({"relative_error": 1.0}, "relative_error must be in"),
        ({"relative_error": 1e-4}, "relative_error must be in"),
        ({"bits": 0}, "bits must be in"),
        ({"bits": 13.0}, "bits must be in"),
        ({"bits": float("nan")}, "bits must be in"),
        ({"bits": 3, "importance": {}}, "importance must have a value for each entry of 'w'"),
        ({"bits": 3, "importance": {"w": torch.ones(3)}}, "importance must have a value for each entry of 'w'"),
        ({"bits": 3, "importance": {"w": -torch.ones(8, 8)}}, "at least 0"),
        ({"bits": 3, "importance": {"w": torch.zeros(8, 8)}}, "not 0 everywhere"),
        ({"bits": 3, "exclude": ["w"]}, "there is none"),
    ],
)
def test_bad_requests(options: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        quantize_entropy({"w": torch.randn(8, 8), "b": torch.randn(8)}, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["w", "b"])
def test_weights_must_be_finite(name: str, value: float) -> None:
    tensors = {"w": torch.randn(8, 8), "b": torch.randn(8)}
    tensors[name].view(-1)[3] = value
    with pytest.raises(WeightsError, match=f"'{name}' holds NaN or infinity"):
        quantize_entropy(tensors, bits=3)


def test_module_without_weights() -> None:
    with pytest.raises(RequestError, match="there is none"):
        quantize_entropy(nn.BatchNorm1d(3), bits=3)
