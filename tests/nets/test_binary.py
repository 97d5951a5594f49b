"""Binary activations: values, gradients, and the same of both when captured; and the networks made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.exporting import to_onnx
from featherweight.graph.capture import to_module
from featherweight.nets import BinaryActivation, binary_mlp, xnor_lenet5

BATCH = torch.tensor([-1e30, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 1e30])
SIGNS = [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_and_their_gradient(dtype: torch.dtype) -> None:
    """Hard tanh's: one inside [-1, 1], zero beyond."""
    inputs = BATCH.to(dtype).requires_grad_()
    outputs = BinaryActivation()(inputs)
    assert outputs.dtype == dtype
    assert outputs.tolist() == SIGNS
    (gradient,) = torch.autograd.grad(outputs, inputs, torch.arange(10, dtype=dtype))
    assert gradient.tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 0, 0]


def test_captured_it_trains_with_the_same_gradient() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), BinaryActivation(), nn.Linear(7, 3))
    program = to_module(net, torch.randn(2, 5))
    inputs = torch.randn(6, 5)
    for module in (net, program):
        module.train()(inputs).square().sum().backward()
    expected = dict(net.named_parameters())
    assert all(torch.equal(parameter.grad, expected[name].grad) for name, parameter in program.named_parameters())
    assert net[0].weight.grad.any()


def test_it_deploys(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), BinaryActivation(), nn.Linear(7, 3)).eval()
    inputs = torch.randn(4, 5)
    to_onnx(net, tmp_path / "net.onnx", example=inputs)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), net(inputs).detach())


def test_blocks_are_in_the_papers_order() -> None:
    kinds = [type(layer).__name__ for layer in xnor_lenet5()]
    assert kinds[2:6] == ["BatchNorm2d", "BinaryActivation", "Conv2d", "MaxPool2d"]
    assert kinds[6:10] == ["BatchNorm2d", "BinaryActivation", "Flatten", "Linear"]
    assert [type(layer).__name__ for layer in binary_mlp()][1:4] == ["Linear", "BatchNorm1d", "BinaryActivation"]
    assert [type(layer).__name__ for layer in binary_mlp(binary=False)].count("ReLU") == 3
    assert not any(isinstance(layer, BinaryActivation) for layer in xnor_lenet5(binary=False))


@pytest.mark.parametrize(("hidden", "count"), [(512, 933_908), (1024, 784 * 1024 + 2 * 1024**2 + 10 * 1024 + 6 * 1024 + 20)])
def test_parameters(hidden: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in binary_mlp(hidden=hidden).parameters()) == count


def test_parameters_of_xnor_lenet5() -> None:
    """LeNet-5's, less the biases of the three layers before norms, plus the norms."""
    assert sum(p.numel() for p in xnor_lenet5().parameters()) == 431_080 - 20 - 50 - 500 + 2 * (20 + 50 + 500)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: binary_mlp(hidden=0), "hidden must be at least 1, got 0"),
        (lambda: binary_mlp(classes=0), "binary-mlp needs at least 1 class"),
        (lambda: xnor_lenet5(input_shape=(1, 15, 28)), "xnor-lenet5 needs images .* at least 16x16"),
    ],
)
def test_wrong_sizes_are_errors(make: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()  # type: ignore[operator]
