"""A quantized network deploys as bytes that ONNX Runtime's int8 kernels compute with, and gives what the network gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from featherweight.errors import FeatherweightError
from featherweight.exporting import onnx as exporting
from featherweight.exporting.onnx import open_session, translate
from featherweight.graph.capture import to_module
from featherweight.quantization.activations import place_quantizers
from featherweight.quantization.uniform import quantize_uniform
from featherweight.training import Tuning, evaluate, fit, load_data


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.side = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4 * 12, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.first(image))), 2)
        x = torch.relu(x + nn.functional.relu6(self.second(x)))
        x = torch.cat([self.side(x), x], 1)
        return self.head(x.flatten(2).transpose(1, 2).flatten(1)[:, : 4 * 12])


def batches(*shape: int, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(8, *shape), torch.zeros(8)) for _ in range(count)]


def quantized(net: nn.Module, *shape: int, bits: int | None = 8) -> nn.Module:
    return quantize_uniform(net.eval(), torch.zeros(1, *shape), activation_bits=bits, calibrate=batches(*shape)).eval()


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, bytes]:
    """A quantized network and its translation, which takes seconds."""
    torch.manual_seed(0)
    net = quantized(Residual(), 3, 8, 8)
    return net, translate(net, torch.randn(2, 3, 8, 8))


def run(content: bytes, x: torch.Tensor) -> torch.Tensor:
    session = open_session(content)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def optimized(content: bytes, path: Path) -> Counter[str]:
    """The kernels that ONNX Runtime chooses."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def stored(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer}


def test_every_layer_of_a_residual_network_is_an_int8_kernel(residual: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    kernels = optimized(residual[1], tmp_path / "optimized.onnx")
    wanted = {"QLinearConv": 3, "QLinearAdd": 1, "QLinearConcat": 1, "QGemm": 1}
    assert {kind: kernels[kind] for kind in wanted} == wanted
    assert not kernels.keys() & {"Conv", "Gemm", "MatMul", "Add", "Concat", "Relu", "Clip", "Div", "Round"}
    assert kernels["QuantizeLinear"] == 1  # the input
    assert kernels["DequantizeLinear"] == 0


def test_bytes_are_what_the_network_multiplies_with(residual: tuple[nn.Module, bytes]) -> None:
    net, arrays = residual[0], stored(residual[1])
    for name in ("first", "second", "side", "head"):
        weight = net.get_submodule(name).weight.detach()
        integers, steps = arrays[f"{name}.weight_integers"], arrays[f"{name}.weight_steps"]
        assert integers.dtype == np.int8
        again = integers.astype(np.float32) * steps.reshape(-1, *[1] * (weight.dim() - 1))
        np.testing.assert_array_equal(again, weight.numpy())
    assert not any(a.dtype == np.float32 and a.ndim > 1 for a in arrays.values())
    biases = [a for name, a in arrays.items() if name.endswith("bias_integers")]
    assert [a.dtype for a in biases] == [np.int32] * 3


@pytest.mark.parametrize("bits", [8, 3])
def test_deployed_is_simulated_at_any_number_of_bits(bits: int) -> None:
    net = quantized(
        nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)), 2, 8, 8, bits=bits
    )
    x = torch.randn(64, 2, 8, 8)
    with torch.no_grad():
        want = net(x)
    got = run(translate(net, x[:4]), x)
    step = next(p for name, p in net.named_parameters() if name == "2.output_step").item()
    one_step = step * net.get_submodule("4").weight.detach().abs().max().item()
    differs = (got - want).abs()
    assert differs.median() < 1e-4 * want.abs().max()
    assert differs.max() <= 3 * one_step + 1e-4  # few values went to the neighbouring integer
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.95


def test_accuracy_deployed_is_accuracy_simulated() -> None:
    data = load_data("digits")
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10))
    fit(net, data.train, Tuning(epochs=12, learning_rate=0.01))
    example = next(iter(data.test))[0]
    net = quantize_uniform(net.eval(), example, activation_bits=8, calibrate=data.train)
    content = translate(net, example)
    right = sum(int((run(content, x).argmax(1) == y).sum()) for x, y in data.test)
    total = sum(len(y) for _, y in data.test)
    simulated = evaluate(net, data.test)
    assert simulated > 0.9
    assert abs(right / total - simulated) <= 0.001


def test_weights_alone_are_bytes_in_the_file_and_floats_in_memory(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 64))
    bare = quantized(net, 1, 8, 8, bits=None)
    x = torch.randn(3, 1, 8, 8)
    content = translate(bare, x)
    assert len(content) < 0.3 * len(translate(net, x))
    torch.testing.assert_close(run(content, x), bare(x).detach(), rtol=1e-5, atol=1e-5)
    kernels = optimized(content, tmp_path / "optimized.onnx")
    assert not kernels.keys() & {"DequantizeLinear", "Cast", "Mul"}  # done once, when the network was loaded


def test_a_matrix_product_over_three_axes() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(nn.functional.gelu(self.norm(self.first(x)))) + x

    net = quantized(Tokens(), 5, 8)
    x = torch.randn(4, 5, 8)
    content = translate(net, x)
    assert sorted(a.shape for a in stored(content).values() if a.dtype == np.int8 and a.ndim == 2) == [(8, 16), (16, 8)]
    assert (run(content, x) - net(x)).abs().mean() < 1e-3


def test_wider_grids_stay_in_floats() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.layer = nn.Parameter(torch.tensor(0.01)), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.clamp(torch.round(x / self.step), -200, 311) * self.step)

    content = translate(Wide(), torch.randn(2, 4))
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert {"Div", "Round", "Clip"} <= kinds
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_a_layer_without_a_grid_is_logged_and_stays_float(caplog: pytest.LogCaptureFixture) -> None:
    net = place_quantizers(to_module(nn.Linear(300, 2), torch.zeros(1, 300)), calibrate=batches(300))
    with caplog.at_level("INFO", logger="featherweight"):
        content = translate(net, torch.randn(2, 300))
    assert any("'weight' is on no grid of 8 bits" in record.message for record in caplog.records)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(content).graph.node}


@pytest.mark.parametrize("wrong", ["zero point", "steps"])
def test_a_wrong_translation_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exporting.write_integers

    def spoil(model: Any, bounds: Any) -> None:
        right(
            model, {step: (low - 100, high - 100) for step, (low, high) in bounds.items()} if wrong == "zero point" else bounds
        )
        for tensor in model.graph.initializer:
            if wrong == "steps" and tensor.name.endswith("_steps"):
                tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))

    net = quantized(nn.Linear(16, 16), 16)
    monkeypatch.setattr(exporting, "write_integers", spoil)
    with pytest.raises(FeatherweightError, match="differ by a root mean square of"):
        translate(net, torch.randn(8, 16))
