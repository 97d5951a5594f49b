"""Ternary weights: the values and gradients the papers write down, on chains with masks, through surgery and training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError, WeightsError
from featherweight.graph.constraint import constraints_of, fold
from featherweight.packaging import save_tensors
from featherweight.pruning import plan_neurons, prune_weights
from featherweight.quantization import Ternary, TrainedTernary, binarize_weights, ternarize_weights
from featherweight.quantization.binary import SCALES
from featherweight.training import Tuning, fit
from tests.graph.conv_net import ConvNet


def test_values_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.25, 0.75], [4.0, -4.0, 4.0, 0.0]])
    expected = {
        "none": [[0.0, -1.0, 0.0, 0.0], [1.0, -1.0, 1.0, 0.0]],  # 0.7 · 16 / 7 = 1.6
        "tensor": [[0.0, -3.5, 0.0, 0.0], [3.5, -3.5, 3.5, 0.0]],  # (2 + 4 + 4 + 4) / 4
        "channel": [[1.25, -1.25, 0.0, 1.25], [4.0, -4.0, 4.0, 0.0]],  # 0.7 · 1 and (1 + 2 + 0.75) / 3; 0.7 · 4 and 4
    }
    assert {scale: Ternary(scale=scale)(weight).tolist() for scale in SCALES} == expected


def test_nearly_the_best_ternary_weight() -> None:
    """Li et al. solve for Δ and α jointly: of all thresholds, 0.7 of the mean comes within 1 % of the least error."""
    weight = torch.randn(1, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(threshold: float) -> float:
        return float((weight - Ternary(threshold=threshold)(weight)).square().sum())

    assert error(0.7) <= 1.01 * min(error(step / 50) for step in range(1, 50))
    assert error(0.7) < 0.6 * float((weight - binarize_weights(_layer(weight)).weight.detach()).square().sum())


def _layer(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data = weight.clone()
    return layer


@pytest.mark.parametrize("scale", SCALES)
def test_a_ternary_weight_stays_what_it_is(scale: str) -> None:
    weight = Ternary(scale=scale)(torch.randn(7, 333))
    constraint = Ternary(scale=scale)
    assert torch.equal(constraint(constraint.right_inverse(weight)), weight)
    assert torch.equal(constraint(weight[:, ::3]), weight[:, ::3])


def test_gradients() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.25, 0.75]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 5.0]], dtype=torch.float64)
    (plain,) = torch.autograd.grad(Ternary(scale="none", threshold=0.7)(weight), weight, upstream)
    assert torch.equal(plain, upstream)
    (scaled,) = torch.autograd.grad(Ternary()(weight), weight, upstream)
    through_alpha = (1 - 2 + 5) / 3 * torch.tensor([[1.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(scaled, 1.25 * upstream + through_alpha)


def test_trained_factors() -> None:
    """Zhu et al., section 4: sums of gradients for both factors, gradients scaled by p, 1 and n for the weights."""
    weight = torch.tensor([3.0, 1.0, -0.5, 0.01], requires_grad=True)
    constraint = TrainedTernary(weight)
    upstream = torch.tensor([1.0, 2.0, 3.0, 5.0])
    positive, negative, real = torch.autograd.grad(
        constraint(weight), [constraint.positive, constraint.negative, weight], upstream
    )
    assert (positive.item(), negative.item()) == (3.0, -3.0)
    assert real.tolist() == [2.0, 4.0, 1.5, 5.0]


def test_trained_factors_move_apart() -> None:
    """The target's weights are 2, 0 and -0.5; one factor for both sides, or fixed ones, would stay far from it."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 30)
    targets = inputs @ torch.tensor([2.0, -0.5, 0.0] * 10)
    net = ternarize_weights(nn.Linear(30, 1, bias=False), trained=True)
    batches = [(inputs, targets[:, None])]
    fit(net, batches, Tuning(epochs=300, learning_rate=0.03), loss=nn.functional.mse_loss)
    assert net.weight.unique().tolist() == pytest.approx([-0.5, 0.0, 2.0], abs=0.05)


@pytest.mark.parametrize("trained", [False, True])
def test_masks_survive(trained: bool) -> None:
    net = prune_weights(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)), sparsity=0.5)
    zeros = net[0].weight == 0
    ternary = ternarize_weights(net, trained=trained)
    fit(ternary, [(torch.randn(8, 20), torch.arange(8) % 5)], Tuning(epochs=3))
    assert (ternary[0].weight[zeros] == 0).all()
    assert len(ternary[0].weight.unique()) == 3


@pytest.mark.parametrize(("scale", "trained"), [("channel", False), ("tensor", False), ("tensor", True)])
def test_surgery_slices(scale: str, trained: bool) -> None:
    net = ternarize_weights(ConvNet().double(), scale=scale, trained=trained).eval()
    example = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    plan = plan_neurons(net, example, sparsity=0.4)
    smaller = plan.apply(net)
    torch.testing.assert_close(smaller(example), plan.mask(net)(example))
    kinds = {type(c) for c in constraints_of(smaller, "stem.weight")}
    assert kinds == {TrainedTernary if trained else Ternary}


def test_a_file_takes_less_than_two_bits_for_each_weight(tmp_path: Path) -> None:
    weights = {"w": fold(ternarize_weights(nn.Linear(300, 200))).weight}
    weight = weights["w"]
    bits = 8 * save_tensors(weights, tmp_path / "weights.fw") / weight.numel()
    shares = [float((weight == value).double().mean()) for value in weight.unique()]
    entropy = -sum(share * torch.tensor(share).log2().item() for share in shares)
    assert 0.99 * entropy <= bits <= 1.02 * entropy + 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ternary(scale="row"), "scale must be one of none, tensor, channel"),
        (lambda: Ternary(threshold=1.0), r"threshold must be in \(0, 1\), got 1.0"),
        (lambda: TrainedTernary(torch.ones(2), threshold=0.0), r"threshold must be in \(0, 1\), got 0.0"),
        (lambda: ternarize_weights(nn.Linear(2, 2), scale="channel", trained=True), "'tensor' where factors are trained"),
    ],
)
def test_wrong_requests(call: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()  # type: ignore[operator]


def test_weights_must_be_finite() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 1] = torch.nan
    with pytest.raises(WeightsError, match=r"weight"):
        ternarize_weights(layer)
