"""Binary arithmetic gives, bit for bit, what integer and float arithmetic give on the same signs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError
from featherweight.nets import BinaryActivation, binary_mlp, xnor_lenet5
from featherweight.pruning import prune_weights
from featherweight.quantization import binarize_weights, compare_with_bits, ternarize_weights, xnor
from featherweight.quantization.xnor import pack_signs, unpack_signs, xnor_conv2d, xnor_linear


def signs(seed: int, *shape: int, zeros: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(-1, 2, shape) if zeros else generator.choice([-1, 1], shape)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=200))
def test_packing_round_trip(values: list[int]) -> None:
    packed = pack_signs(np.array([values, values[::-1]]))
    words = -(-len(values) // 64)
    assert packed.positive.shape == packed.there.shape == (2, words)
    assert unpack_signs(packed).tolist() == [values, values[::-1]]
    number = sum(1 << place for place, value in enumerate(values) if value == 1)
    assert packed.positive[0].tolist() == [number >> 64 * word & (1 << 64) - 1 for word in range(words)]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 200), st.booleans())
def test_linear_is_the_product_of_matrices(count: int, outputs: int, length: int, zeros: bool) -> None:
    inputs, weight = signs(length, count, length, zeros=zeros), signs(length + 1, outputs, length, zeros=zeros)
    assert np.array_equal(xnor_linear(pack_signs(inputs), pack_signs(weight)), inputs @ weight.T)


def test_linear_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xnor, "_MOST_WORDS", 100)
    inputs, weight = signs(0, 70, 130), signs(1, 9, 130)
    assert np.array_equal(xnor_linear(pack_signs(inputs), pack_signs(weight)), inputs @ weight.T)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1)},
        {"padding": (1, 2)},
        {"dilation": (2, 3)},
        {"stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)},
    ],
)
def test_convolution_is_torchs(options: dict[str, tuple[int, int]]) -> None:
    inputs, weight = signs(0, 3, 5, 11, 12), signs(1, 7, 5, 3, 2, zeros=True)
    expected = nn.functional.conv2d(torch.from_numpy(inputs).double(), torch.from_numpy(weight).double(), **options)
    got = xnor_conv2d(inputs, weight, **options)
    assert got.dtype == np.int64
    assert np.array_equal(got, expected.numpy())


class Everything(nn.Module):
    """Layers with signs for inputs: with bias, padding, stride and three axes; and layers without, which stay floats."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = BinaryActivation()
        self.first = nn.Conv2d(2, 6, 3)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.third = nn.Linear(4, 5)
        self.last = nn.Linear(8 * 4 * 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.second(self.sign(self.first(images)))
        features = self.third(self.sign(self.grouped(self.sign(features))))
        return self.last(features.flatten(1))


def powers_of_two(net: nn.Module) -> nn.Module:
    """With ± powers of two for weights and no biases, float sums are exact in any order."""
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.zeros_like(parameter) if name.endswith("bias") else parameter.sign() / 4)
    return net


def test_layers_are_found_and_exact() -> None:
    torch.manual_seed(0)
    net = binarize_weights(powers_of_two(Everything()), scale="tensor")
    compared = compare_with_bits(net, torch.randn(4, 2, 10, 10))
    assert compared.sums == {"second.weight": 4 * 8 * 4 * 4, "third.weight": 4 * 8 * 4 * 5}
    assert set(compared.wrong.values()) == {0}
    assert torch.equal(compared.outputs, compared.simulated)


def test_scales_biases_ternary_weights_and_masks() -> None:
    torch.manual_seed(0)
    for net in (
        binarize_weights(Everything()),
        ternarize_weights(Everything(), scale="channel"),
        binarize_weights(prune_weights(Everything(), sparsity=0.5)),
    ):
        compared = compare_with_bits(net, torch.randn(4, 2, 10, 10))
        assert list(compared.sums) == ["second.weight", "third.weight"]
        assert set(compared.wrong.values()) == {0}
        torch.testing.assert_close(compared.outputs, compared.simulated, rtol=1e-4, atol=1e-5)


def test_wrong_sums_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = xnor.xnor_linear
    monkeypatch.setattr(xnor, "xnor_linear", lambda inputs, weight: right(inputs, weight) + np.eye(3, 5, dtype=np.int64))
    net = nn.Sequential(BinaryActivation(), binarize_weights(nn.Linear(9, 5)))
    assert compare_with_bits(net, torch.randn(3, 9)).wrong == {"1.weight": 3}


def test_networks_of_the_zoo() -> None:
    torch.manual_seed(0)
    mlp = compare_with_bits(binarize_weights(binary_mlp(hidden=65), scale="none"), torch.randn(5, 1, 28, 28))
    assert mlp.sums == {"fc2.weight": 5 * 65, "fc3.weight": 5 * 65, "fc4.weight": 5 * 10}
    assert torch.equal(mlp.outputs, mlp.simulated)
    lenet = compare_with_bits(binarize_weights(xnor_lenet5(), include=["conv2.*", "fc1.*"]), torch.randn(2, 1, 28, 28))
    assert lenet.sums == {"conv2.weight": 2 * 50 * 8 * 8, "fc1.weight": 2 * 500}
    assert {*mlp.wrong.values(), *lenet.wrong.values()} == {0}


def test_without_binary_layers_nothing_is_counted() -> None:
    net = xnor_lenet5(binary=False)
    compared = compare_with_bits(net, torch.randn(2, 1, 28, 28))
    assert compared.sums == compared.wrong == {}
    assert torch.equal(compared.outputs, compared.simulated)


def test_wrong_requests() -> None:
    for values in (np.array([0.5, 1.0]), np.array(1), np.array([np.nan])):
        with pytest.raises(RequestError, match="signs must be -1, 0 or \\+1"):
            pack_signs(values)
    with pytest.raises(RequestError, match="vectors of the same length, got 3 and 4"):
        xnor_linear(pack_signs(np.ones((1, 3))), pack_signs(np.ones((1, 4))))
