"""What flows into layers: their squared outputs for any other weights must follow from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.pruning import prune_weights
from featherweight.training import inputs as under_test
from featherweight.training.inputs import input_hessians, input_moments
from featherweight.training.statistics import Evidence

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "linear over positions": (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, (3, 2), bias=False), (5, 4, 7, 6)),
    "padded": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2), bias=False), (5, 4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2), bias=False), (5, 4, 7, 6)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False), (5, 4, 7, 6)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (5, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (5, 4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (5, 4, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (5, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=(0, 1, 0), dilation=(2, 1, 1), bias=False), (5, 2, 5, 6, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("at_once", [2**24, 1])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_squared_outputs_follow(kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_ELEMENTS_AT_ONCE", at_once)
    make, shape = LAYERS[kind]
    layer, inputs = make().double(), torch.randn(shape, dtype=torch.float64)
    data = [(inputs[:3], torch.zeros(3)), (inputs[3:], torch.zeros(2))]
    hessian = input_hessians(Evidence(layer, data), ["weight"])["weight"]
    moments = input_moments(Evidence(layer, data), ["weight"])["weight"]
    other = torch.randn_like(layer.weight)
    outputs = functional_call(layer, {"weight": other}, (inputs,))
    rows = other.flatten(1).reshape(len(hessian), -1, hessian.shape[1])
    total = torch.einsum("gri,gij,grj->gr", rows, hessian, rows).flatten()  # one number for each output channel
    axis = -1 if kind.startswith("linear") else 1
    expected = outputs.movedim(axis, 0).flatten(1).square().sum(dim=1) / len(inputs)
    torch.testing.assert_close(total, expected)
    assert moments.shape == layer.weight.shape
    first, last = [0] * (other.dim() - 1), [size - 1 for size in other.shape[1:]]
    for index in [(0, *first), (1, *last), (len(other) - 1, *last)]:
        single = torch.zeros_like(other)
        single[index] = 1
        lone = functional_call(layer, {"weight": single}, (inputs,)).square().sum() / len(inputs)
        torch.testing.assert_close(moments[index], lone)


class Attending(nn.Module):
    """The projections of `nn.MultiheadAttention` are no calls of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        return self.attention(y, y, y)[0].mean(dim=1)


def test_attention() -> None:
    model, inputs = Attending().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    names = ["attention.in_proj_weight", "attention.out_proj.weight"]
    found = input_hessians(Evidence(model, [(inputs, torch.zeros(4))]), names)
    tokens = model.embed(inputs).flatten(0, 1).detach()
    torch.testing.assert_close(found["attention.in_proj_weight"][0], tokens.T @ tokens / 4)
    assert found["attention.out_proj.weight"].shape == (1, 4, 4)


def test_tied_weights_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    model, x = Twice(), torch.randn(7, 3)
    y = model.layer(x).detach()
    found = input_hessians(Evidence(model, [(x, torch.zeros(7))]), ["layer.weight"])["layer.weight"][0]
    torch.testing.assert_close(found, (x.T @ x + y.T @ y) / 7)


def test_constraints_are_folded() -> None:
    model = prune_weights(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), sparsity=0.5)
    x = torch.randn(6, 3)
    hidden = fold(model)[:2](x).detach()
    found = input_hessians(Evidence(model, [(x, torch.zeros(6))]), ["2.weight"])["2.weight"][0]
    torch.testing.assert_close(found, hidden.T @ hidden / 6)


def test_other_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (4, 1)), nn.PReLU(4), nn.ConvTranspose1d(4, 2, 3))
    evidence = Evidence(model, [(torch.zeros(2, 3), torch.zeros(2))], purpose="the criterion 'wanda'")
    assert set(input_moments(evidence, ["0.weight"])) == {"0.weight"}
    with pytest.raises(RequestError, match=r"'wanda'.*got 3\.weight, 2\.weight; exclude"):
        input_moments(evidence, ["3.weight", "0.weight", "2.weight"])
