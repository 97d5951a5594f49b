"""Mixed precision: what a scan measures, and that the bits are the best there are."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

from featherweight.errors import DataError, RequestError
from featherweight.graph.constraint import fold
from featherweight.quantization import mixed as under_test
from featherweight.quantization.mixed import BitSensitivity, allocate_bits, divergence, scan_bits
from featherweight.quantization.uniform import quantize_uniform

BITS = (2, 3, 4, 8)


@st.composite
def scans(draw: st.DrawFn) -> BitSensitivity:
    tensors = draw(st.integers(1, 4))
    errors = st.tuples(*[st.integers(0, 30).map(float)] * len(BITS))
    names = [f"w{i}" for i in range(tensors)]
    sizes = {name: draw(st.integers(1, 40)) for name in names}
    return BitSensitivity(BITS, {name: draw(errors) for name in names}, sizes)


def total(scan: BitSensitivity, allocated: dict[str, int]) -> float:
    return sum(scan.errors[name][scan.bits.index(bits)] for name, bits in allocated.items())


def mean_bits(scan: BitSensitivity, allocated: dict[str, int]) -> float:
    return sum(scan.sizes[name] * bits for name, bits in allocated.items()) / sum(scan.sizes.values())


@settings(max_examples=60)
@given(scan=scans(), budget=st.floats(2, 9))
def test_bits_are_the_best_of_all_within_the_budget(scan: BitSensitivity, budget: float) -> None:
    allocated = scan.allocate(budget)
    assert list(allocated) == list(scan.errors)
    assert mean_bits(scan, allocated) <= budget
    ways = (dict(zip(scan.errors, way, strict=True)) for way in product(BITS, repeat=len(scan.errors)))
    assert total(scan, allocated) == min(total(scan, way) for way in ways if mean_bits(scan, way) <= budget)


@settings(max_examples=30)
@given(scan=scans(), budget=st.floats(2, 9))
def test_large_budgets_are_kept_and_used_but_for_a_cell_each(scan: BitSensitivity, budget: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "_CELLS", 16)
        coarse = scan.allocate(budget)
    assert mean_bits(scan, coarse) <= budget
    spare = (min(budget, 8) - 2) * sum(scan.sizes.values())
    lost = len(scan.sizes) * (spare / 16 + 1) / sum(scan.sizes.values())
    if budget - lost >= 2:
        assert total(scan, coarse) <= total(scan, scan.allocate(budget - lost))


def test_of_equals_the_fewest() -> None:
    scan = BitSensitivity((2, 4), {"a": (0.0, 0.0), "b": (1.0, 0.0)}, {"a": 5, "b": 5})
    assert scan.allocate(8) == {"a": 2, "b": 4}
    assert scan.allocate(2) == {"a": 2, "b": 2}
    assert BitSensitivity(**scan.to_dict()) == scan
    with pytest.raises(RequestError, match="at least 2"):
        scan.allocate(1.9)
    with pytest.raises(RequestError, match="mean_bits"):
        scan.allocate(math.nan)


def network() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return net.eval(), [(torch.randn(8, 1, 6, 6), torch.zeros(8).long()) for _ in range(3)]


def quantize(model: nn.Module, bits: int) -> nn.Module:
    return quantize_uniform(model, torch.zeros(2, 1, 6, 6), weight_bits=bits)


def test_a_scan_quantizes_one_tensor_at_a_time() -> None:
    net, data = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scan = scan_bits(net, data, quantize, bits=(2, 4))
    assert scan.sizes == {"0.weight": 36, "4.weight": 192}
    for name, found in scan.errors.items():
        for bits, error in zip((2, 4), found, strict=True):
            alone = fold(quantize_uniform(net, data[0][0], weight_bits={name: bits}))
            with torch.no_grad():
                pairs = [(net(x).softmax(1), alone(x).softmax(1)) for x, _ in data]
            expected = torch.cat([(p * (p / q).log()).sum(dim=1) for p, q in pairs]).mean()
            assert error == pytest.approx(float(expected), rel=1e-2, abs=1e-7)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_allocated_bits_quantize() -> None:
    net, data = network()
    allocated = allocate_bits(net, data[0][0], data, mean_bits=4, bits=BITS)
    assert (36 * allocated["0.weight"] + 192 * allocated["4.weight"]) / 228 <= 4
    quantized = quantize_uniform(net, data[0][0], weight_bits=allocated)
    for name, bits in allocated.items():
        rows = quantized.get_parameter(name.replace("weight", "parametrizations.weight.original"))
        grid = quantized.get_submodule(name.replace("weight", "parametrizations.weight.0"))
        assert (grid.low == -(2 ** (bits - 1))).all()
        assert rows.shape[0] == grid.low.shape[0]
    scan = scan_bits(net, data, quantize, bits=BITS)
    assert allocated == scan.allocate(4)


def test_another_error() -> None:
    net, data = network()
    scan = scan_bits(net, data, quantize, bits=(3,), error=mse_loss)
    alone = fold(quantize_uniform(net, data[0][0], weight_bits={"4.weight": 3}))
    with torch.no_grad():
        expected = torch.cat([(alone(x) - net(x)).square() for x, _ in data]).mean()
    assert scan.errors["4.weight"][0] == pytest.approx(float(expected), rel=1e-4)


def test_divergence_by_value() -> None:
    reference, outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    expected = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2
    assert divergence(outputs, reference).item() == pytest.approx(expected)


def test_bad_requests() -> None:
    net, data = network()
    for bits in ((), (4, 2), (1, 2), (8, 17)):
        with pytest.raises(RequestError, match="increasing"):
            scan_bits(net, data, quantize, bits=bits)
    with pytest.raises(DataError):
        scan_bits(net, [], quantize)
    with pytest.raises(RequestError, match="none that were quantized"):
        scan_bits(net, data, lambda model, bits: model)
    with pytest.raises(RequestError, match="error must be finite"):
        scan_bits(net, [(torch.full((8, 1, 6, 6), torch.nan), torch.zeros(8))], quantize)
