"""Product quantization: rows made of few codewords, chosen by what the layer's outputs lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError, WeightsError
from featherweight.graph.capture import capture
from featherweight.graph.constraint import constrained, fold
from featherweight.graph.surgery import Plan
from featherweight.quantization import product_quantize
from featherweight.training.inputs import input_moments
from featherweight.training.statistics import Evidence


def vectors_of(weight: torch.Tensor, block: int) -> torch.Tensor:
    return weight.detach().reshape(-1, block)


def plain(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def test_sub_vectors_are_the_means_of_those_nearest_to_them() -> None:
    layer = plain(torch.randn(40, 24, dtype=torch.float64))
    quantized = product_quantize(layer, codewords=7, block=3)
    old, new = vectors_of(layer.weight, 3), vectors_of(quantized.weight, 3)
    words, codes = new.unique(dim=0, return_inverse=True)
    assert len(words) == 7
    assert torch.equal(codes, torch.cdist(old, words).argmin(1)), "each is as near as can be"
    means = torch.stack([old[codes == k].mean(0) for k in range(7)])
    torch.testing.assert_close(words, means, rtol=1e-6, atol=1e-9)


def test_codewords_that_are_there_are_found() -> None:
    words = 3 * torch.randn(5, 4)
    codes = torch.randint(5, (30, 6))  # far apart for the noise below
    weight = words[codes].reshape(30, 24)
    assert torch.equal(product_quantize(plain(weight), codewords=5, block=4).weight, weight)
    noisy = product_quantize(plain(weight + 0.01 * torch.randn_like(weight)), codewords=5, block=4).weight.detach()
    assert float((noisy - weight).abs().max()) < 0.02


def test_blocks_by_shape() -> None:
    model = nn.Sequential(nn.Conv2d(4, 40, 3), nn.Flatten(), nn.Conv2d(8, 40, 1), nn.Linear(8, 40))
    quantized = product_quantize(model, codewords=6)
    for position, block in ((0, 9), (2, 4), (3, 4)):
        assert len(vectors_of(quantized[position].weight, block).unique(dim=0)) == 6
    assert set(constrained(quantized)) == {"0.weight", "2.weight", "3.weight"}
    assert quantized[0].weight.shape == (40, 4, 3, 3)


def test_small_layers_have_fewer_codewords() -> None:
    quantized = product_quantize(nn.Linear(8, 10), codewords=256, block=4)
    assert len(vectors_of(quantized.weight, 4).unique(dim=0)) == 5, "a quarter of 20 sub-vectors"


def test_what_is_trained_is_the_codewords() -> None:
    layer = plain(torch.randn(30, 8, dtype=torch.float64))
    quantized = product_quantize(layer, codewords=3, block=4)
    dense, x = fold(quantized), torch.randn(5, 8, dtype=torch.float64)
    for model in (quantized, dense):
        model(x).square().sum().backward()
    (parameter,) = quantized.parameters()
    assert parameter.shape == (12,)
    words = parameter.detach().reshape(3, 4)
    codes = (vectors_of(quantized.weight, 4)[:, None] == words).all(2).int().argmax(1)
    gradient = dense.weight.grad.reshape(-1, 4)
    sums = torch.stack([gradient[codes == k].sum(0) for k in range(3)])
    torch.testing.assert_close(parameter.grad.reshape(3, 4), sums)
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.01)
    optimizer.step()
    assert len(vectors_of(quantized.weight, 4).unique(dim=0)) == 3


def test_zero_sub_vectors_stay_zero() -> None:
    weight = torch.randn(32, 12)
    weight.reshape(-1, 4)[::3] = 0
    quantized = product_quantize(plain(weight), codewords=4, block=4)
    zero = vectors_of(weight, 4).eq(0).all(1)
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.5)
    quantized(torch.randn(3, 12)).square().sum().backward()
    optimizer.step()
    assert torch.equal(vectors_of(quantized.weight, 4).eq(0).all(1), zero)
    assert not product_quantize(plain(torch.zeros(8, 4)), codewords=4, block=2).weight.any()


def test_importance_weighs_each_entry() -> None:
    """With one codeword it is the weighted mean; inputs that are never there do not matter."""
    weight, counts = torch.randn(10, 6, dtype=torch.float64), torch.rand(10, 6, dtype=torch.float64) + 0.1
    one = product_quantize(plain(weight), codewords=1, block=3, importance={"weight": counts}).weight.detach()
    w, c = vectors_of(weight, 3), vectors_of(counts, 3)
    torch.testing.assert_close(vectors_of(one, 3)[0], (w * c).sum(0) / c.sum(0), rtol=1e-4, atol=1e-6)


def test_data_make_the_error_of_the_outputs_small() -> None:
    torch.manual_seed(3)
    layer = plain(torch.randn(64, 32))
    data = [(torch.randn(500, 32) * torch.logspace(-2, 0, 32)[torch.randperm(32)], torch.zeros(500))]
    moments = input_moments(Evidence(layer, data), ["weight"])
    errors = {}
    for name, importance in (("none", None), ("data", data), ("moments", moments)):
        quantized = product_quantize(layer, codewords=24, block=4, importance=importance)
        with torch.no_grad():
            errors[name] = float((quantized(data[0][0]) - layer(data[0][0])).square().mean())
    assert errors["data"] == errors["moments"]
    assert errors["data"] < 0.7 * errors["none"]


def test_no_cluster_stays_empty() -> None:
    """Starts that coincide with nothing lose their members; they go where the error is greatest."""
    weight = torch.cat([0.01 * torch.randn(60, 4), 100 + torch.randn(4, 4)])
    for seed in range(5):
        quantized = product_quantize(plain(weight), codewords=8, block=4, seed=seed)
        assert len(vectors_of(quantized.weight, 4).unique(dim=0)) == 8


def test_surgery_cuts_rows_and_inputs() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 16))
    quantized = product_quantize(model, codewords=5, block=4)
    removed = {("0.weight", 0): (1, 4), ("0.bias", 0): (1, 4), ("2.weight", 1): (1, 4)}
    smaller = Plan(removed, inputs=capture(model, torch.zeros(2, 8)).inputs).apply(quantized)
    kept = torch.tensor([0, 2, 3, 5, 6, 7, 8, 9, 10, 11])
    torch.testing.assert_close(smaller[0].weight, quantized[0].weight[kept])
    torch.testing.assert_close(smaller[2].weight, quantized[2].weight[:, kept])
    assert set(constrained(smaller)) == {"0.weight", "2.weight"}


def test_the_seed_alone_decides_and_the_original_is_untouched() -> None:
    layer = nn.Linear(40, 40)
    before = layer.weight.detach().clone()
    weights = [product_quantize(layer, codewords=9, seed=seed).weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(layer.weight, before)
    assert not constrained(layer)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codewords": 0}, RequestError, "codewords must be"),
        ({"iterations": 0}, RequestError, "iterations must be"),
        ({"block": 0}, RequestError, "block must be"),
        ({"block": 5}, RequestError, r"got 5 for 'weight', whose rows have 8 entries"),
        ({"block": 8, "include": ["weight"]}, RequestError, r"at least 4 sub-vectors, but 'weight' of shape \(3, 8\) has 3"),
        ({"importance": {"weight": torch.ones(8, 3)}}, RequestError, "the weight's shape"),
        ({"importance": []}, DataError, "no batch"),
    ],
)
def test_wrong_requests(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        product_quantize(nn.Linear(8, 3), **options)  # type: ignore[arg-type]


def test_weights_that_are_not_finite() -> None:
    weight = torch.ones(8, 8)
    weight[2, 3] = torch.nan
    with pytest.raises(WeightsError, match="'weight' holds NaN"):
        product_quantize(plain(weight))
