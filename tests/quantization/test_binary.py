"""Binary weights: the values and gradients the papers write down, on chains with masks, through surgery and training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import RequestError, WeightsError
from featherweight.graph.constraint import constrain, constrained, constraints_of, fold
from featherweight.nets import binary_mlp, xnor_lenet5
from featherweight.packaging import load, save, save_tensors
from featherweight.pruning import plan_neurons, prune_weights
from featherweight.quantization import Binary, binarize_weights, clip_weights, real_weights
from featherweight.quantization.binary import SCALES, magnitude
from featherweight.training import TensorLoader, Tuning, evaluate, fit


def test_values_by_hand() -> None:
    weight = torch.tensor([[0.5, -1.5], [0.25, 0.0]])
    expected = {
        "none": [[1.0, -1.0], [1.0, 0.0]],
        "tensor": [[0.75, -0.75], [0.75, 0.0]],  # (0.5 + 1.5 + 0.25) / 3
        "channel": [[1.0, -1.0], [0.25, 0.0]],
    }
    assert {scale: Binary(scale=scale)(weight).tolist() for scale in SCALES} == expected


def test_the_scale_is_the_best_one() -> None:
    """XNOR-Net, section 3.1: no other factor of the signs comes nearer to the weight."""
    weight = torch.randn(4, 30, dtype=torch.float64)
    best = (weight - Binary()(weight)).square().sum(dim=1)
    for factor in (0.99, 1.01):
        assert ((weight - factor * Binary()(weight)).square().sum(dim=1) > best).all()


@given(st.floats(2**-100, 2**100, width=32), st.integers(1, 3000), st.sampled_from(SCALES))
def test_a_binary_weight_stays_what_it_is(value: float, count: int, scale: str) -> None:
    """Bit for bit: folded and constrained again, or without some of its inputs, a weight keeps its factor."""
    signs = torch.randn(2, count, generator=torch.Generator().manual_seed(count)).sign()
    weight = signs * (1.0 if scale == "none" else torch.tensor(value))
    constraint = Binary(scale=scale)
    assert torch.equal(constraint(constraint.right_inverse(weight)), weight)


def test_gradients() -> None:
    """Without a scale the identity; with one the product rule: α · g + sign(w) / n · Σ g · sign(w), per channel."""
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 5, dtype=torch.float64)
    (plain,) = torch.autograd.grad(Binary(scale="none")(weight), weight, upstream)
    assert torch.equal(plain, upstream)
    (scaled,) = torch.autograd.grad(Binary()(weight), weight, upstream)
    signs = weight.detach().sign()
    alpha = weight.detach().abs().mean(dim=1, keepdim=True)
    expected = alpha * upstream + signs / 5 * (upstream * signs).sum(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, expected)


def test_stochastic_signs_are_drawn_in_training_only() -> None:
    constraint = Binary(scale="none", stochastic=True)
    weight = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).repeat(4000, 1).requires_grad_()
    torch.manual_seed(0)
    drawn = constraint(weight).detach()
    assert drawn.unique().tolist() == [-1, 0, 1]
    assert (drawn[:, 2] == 0).all()
    shares = (drawn == 1).double().mean(dim=0)
    assert shares[[0, 4]].tolist() == [0, 1]
    assert shares[[1, 3]].tolist() == pytest.approx([0.25, 0.75], abs=0.03)  # four standard deviations
    with torch.no_grad():
        assert torch.equal(constraint(weight), weight.sign())
    assert torch.equal(constraint.eval()(weight), weight.sign())
    (gradient,) = torch.autograd.grad(constraint.train()(weight).sum(), weight)
    assert (gradient == 1).all()


def test_masks_survive() -> None:
    net = prune_weights(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)), sparsity=0.5)
    zeros = net[0].weight == 0
    for scale, stochastic in (("none", True), ("none", False), ("channel", False)):
        binary = binarize_weights(net, scale=scale, stochastic=stochastic)
        assert [type(c).__name__ for c in constraints_of(binary, "0.weight")] == ["Mask", "Binary"]
        fit(binary, [(torch.randn(8, 20), torch.arange(8) % 5)], Tuning(epochs=3), after_step=clip_weights)
        assert torch.equal(binary[0].weight == 0, zeros)
    kept = net[0].weight[0][~zeros[0]]
    assert float(binarize_weights(net)[0].weight[0].detach().abs().max()) == pytest.approx(float(kept.detach().abs().mean()))


def test_the_model_itself_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    binary = binarize_weights(model, exclude=["1.*"])
    assert list(constrained(binary)) == ["0.weight"]
    assert not constrained(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(binary[1].weight, model[1].weight)


def test_real_weights_fill_the_range_without_a_scale_and_stay_with_one() -> None:
    layer = nn.Linear(50, 4)
    real = real_weights(binarize_weights(layer, scale="none", stochastic=True))
    torch.testing.assert_close(real.weight, layer.weight / layer.weight.abs().max())
    assert torch.equal(real_weights(binarize_weights(layer)).weight, layer.weight)
    masked = prune_weights(layer, sparsity=0.5)
    again = real_weights(binarize_weights(masked))
    assert torch.equal(again.weight, masked.weight)
    assert [type(c).__name__ for c in constraints_of(again, "weight")] == ["Mask"]
    assert not real_weights(binarize_weights(nn.Linear(2, 2).requires_grad_(True), scale="none")).weight.isnan().any()


def test_weights_of_zeros_stay_zeros() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    for scale in SCALES:
        assert (binarize_weights(layer, scale=scale).weight == 0).all()


def test_clipping_keeps_weights_turnable() -> None:
    """A weight pushed one way for long turns after a push back over [-1, 1], not one as long as all before it."""
    net = binarize_weights(nn.Linear(1, 1, bias=False), scale="none")
    with torch.no_grad():
        net.parametrizations.weight.original.fill_(0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    turned = []
    for push in [-1.0] * 50 + [1.0] * 5:
        optimizer.zero_grad()
        (push * net.weight).sum().backward()
        optimizer.step()
        clip_weights(net)
        turned.append(net.weight.item())
    assert turned == [1.0] * 50 + [1.0] * 3 + [-1.0] * 2


def test_surgery_slices() -> None:
    net = binarize_weights(xnor_lenet5(input_shape=(1, 16, 16)), exclude=["conv1.*", "fc2.*"]).eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer += torch.randn_like(buffer)  # else sums that are zero have the sign of their rounding
    example = torch.randn(4, 1, 16, 16)
    plan = plan_neurons(net, example, sparsity=0.5, allocation="uniform")
    smaller = plan.apply(net)
    torch.testing.assert_close(smaller(example), plan.mask(net)(example), rtol=1e-4, atol=1e-5)
    assert smaller.conv2.weight.shape == (25, 10, 5, 5)
    assert [type(c) for c in constraints_of(smaller, "conv2.weight")] == [Binary]
    assert all(len(channel.unique()) == 2 for channel in smaller.conv2.weight)


@pytest.mark.parametrize("stochastic", [False, True])
def test_training_learns(stochastic: bool) -> None:
    """A task on which no network of random signs does well: which half of the inputs is larger, by sums of a half of them."""
    torch.manual_seed(3)
    inputs = torch.randn(512, 16)
    targets = (inputs[:, :8].sum(dim=1) > inputs[:, 8:].sum(dim=1)).long()
    net = binarize_weights(binary_mlp(input_shape=(16,), classes=2, hidden=32), scale="none", stochastic=stochastic)
    loader = TensorLoader(inputs, targets, 64, shuffle=True)
    fit(net, loader, Tuning(epochs=30, learning_rate=0.03), after_step=clip_weights)
    assert evaluate(net, loader) > (0.85 if stochastic else 0.95)
    assert all(weight.abs().unique().tolist() == [1.0] for weight in (net.fc1.weight, net.fc4.weight))
    assert all(p.abs().max() <= 1 for name, p in net.named_parameters() if name.endswith("original"))


@pytest.mark.parametrize("scale", SCALES)
def test_a_file_takes_a_bit_for_each_weight(scale: str, tmp_path: Path) -> None:
    """Scales included: a channel of 784 or 256 weights has one float32, 0.04 to 0.13 bits a weight before it is coded."""
    net = binarize_weights(binary_mlp(hidden=256), scale=scale).eval()
    weights = {name: weight for name, weight in fold(net).named_parameters() if weight.dim() == 2}
    bits = 8 * save_tensors(weights, tmp_path / "weights.fw") / sum(weight.numel() for weight in weights.values())
    assert 1 <= bits <= 1.1
    example = torch.randn(3, 1, 28, 28)
    save(net, tmp_path / "net.fw", example=example)
    assert torch.equal(load(tmp_path / "net.fw").eval()(example), net(example))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Binary(scale="row"), "scale must be one of none, tensor, channel, got 'row'"),
        (lambda: binarize_weights(nn.Linear(2, 2), stochastic=True), "scale must be 'none' where signs are stochastic"),
        (lambda: binarize_weights(nn.Linear(2, 2), include=["fc*"]), "must leave a weight"),
    ],
)
def test_wrong_requests(call: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()  # type: ignore[operator]


def test_magnitude_of_nothing_is_zero() -> None:
    assert magnitude(torch.zeros(2, 3), "channel").tolist() == [[0], [0]]
    layer = nn.Linear(2, 1)
    constrain(layer, "weight", Binary())
    assert torch.equal(layer.weight.abs().unique(), magnitude(layer.parametrizations.weight.original.detach(), "tensor")[0])


def test_weights_must_be_finite() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 1] = torch.nan
    with pytest.raises(WeightsError, match=r"weight"):
        binarize_weights(layer)
