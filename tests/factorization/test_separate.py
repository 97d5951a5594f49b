"""A network of one's own with compact blocks in the place of its convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from featherweight.distillation import Lesson
from featherweight.errors import RequestError
from featherweight.factorization import factorize, separate_convolutions
from featherweight.factorization.blocks import make_fire, make_ghost
from featherweight.factorization.layers import Layer
from featherweight.training import Tuning
from featherweight.training.loaders import TensorLoader


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def loader() -> TensorLoader:
    inputs = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorLoader(inputs, network()(inputs).argmax(1), 32, shuffle=True)


@pytest.mark.parametrize("order", ["together", "in turns"])
def test_layers_learn_what_they_gave(order: str) -> None:
    model, data = network(), loader()
    x = data.inputs
    wanted = model(x).detach()
    start = factorize(model, x[:2], rank=1, method="separable", data=data)
    lesson, tuning = Lesson(hard_weight=0.0, target="logits"), Tuning(epochs=12, learning_rate=3e-3)
    compact = separate_convolutions(model, x[:2], data, order=order, lesson=lesson, tuning=tuning)
    shapes = [tuple(p.shape) for p in compact.parameters() if p.dim() == 4]
    assert shapes == [(12, 1, 3, 3), (12, 1, 3, 3), (16, 12, 1, 1), (16, 1, 3, 3), (16, 16, 1, 1)]
    errors = [(net(x) - wanted).norm().item() for net in (start, compact)]
    assert errors[1] < 0.9 * errors[0]
    assert torch.equal(model(x), wanted)


def test_a_multiplier_makes_it_nearer() -> None:
    model, data = network(), loader()
    wanted = model(data.inputs).detach()
    nearer = [
        (factorize(model, data.inputs[:2], rank=rank, method="separable")(data.inputs) - wanted).norm().item()
        for rank in (1, 3)
    ]
    assert nearer[1] < nearer[0]


def test_what_cannot_be_separated_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(RequestError, match=r"0\.weight: it has 2 groups; 1\.weight: its kernel has one entry"):
        separate_convolutions(model, torch.zeros(1, 4, 5, 5), [(torch.zeros(2, 4, 5, 5), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(RequestError, match=r"multiplier must be a whole number >= 1, got 0\.5"):
        separate_convolutions(network(), torch.zeros(1, 1, 8, 8), loader(), multiplier=0.5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="order must be one of together, in turns"):
        separate_convolutions(network(), torch.zeros(1, 1, 8, 8), loader(), order="backwards")
    with pytest.raises(RequestError, match="did you mean 'ghost'"):
        separate_convolutions(network(), torch.zeros(1, 1, 8, 8), loader(), block="gost")
    with pytest.raises(RequestError, match="multiplier must be 1 for ghost blocks, which have one size, got 2"):
        separate_convolutions(network(), torch.zeros(1, 1, 8, 8), loader(), block="ghost", multiplier=2)
    with pytest.raises(RequestError, match=r"4\.weight: it changes the size by its kernel"):
        separate_convolutions(network(), torch.zeros(1, 1, 8, 8), loader(), block="fire")
    odd = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(45, 2))
    with pytest.raises(RequestError, match="it has 5 outputs, which cannot be halved"):
        separate_convolutions(odd, torch.zeros(1, 4, 5, 5), [(torch.zeros(2, 4, 5, 5), torch.zeros(2).long())], block="ghost")


def test_a_layer_of_a_block_form_is_met_exactly() -> None:
    """Ghosts that are multiples, and a fire module's own product: what a block can be, it becomes."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.randn(4, 6, 3, 3, generator=generator)
    multiples = torch.cat([kept, kept * torch.tensor([2.0, -0.1, 0.5, -3.0])[:, None, None, None]])[torch.randperm(8)]
    squeeze = torch.randn(2, 6, generator=generator)
    expand = torch.randn(16, 2, 3, 3, generator=generator)
    expand[::2, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0  # every other output has but the centre
    product = torch.einsum("oskl,si->oikl", expand, squeeze)
    x = torch.randn(2, 6, 7, 7, generator=generator)
    for weight, made in (
        (multiples, make_ghost(Layer(multiples, padding=(1, 1)))),
        (product, make_fire(Layer(product, padding=(1, 1)), 1)),
    ):
        first = conv2d(x, made.first.weight, None, made.first.stride, made.first.padding)
        left = first if made.left is None else conv2d(first, made.left.weight)
        right = conv2d(first, made.right.weight, None, 1, made.right.padding, 1, made.right.groups)
        torch.testing.assert_close(
            torch.cat([left, right], 1)[:, made.order], conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4
        )
