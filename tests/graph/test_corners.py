"""Corners of the rules: each network here once gave a crash, or a smaller network that fitted one batch size only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featherweight.errors import CaptureError, UnsupportedOpError
from featherweight.graph.capture import capture, to_module
from featherweight.pruning.neurons import plan_neurons


class Between(nn.Module):
    """Runs `middle(self, x)` between two 1×1 convolutions."""

    def __init__(self, middle: Callable[[Between, torch.Tensor], torch.Tensor], outs: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Conv2d(3, 8, 1), nn.Conv2d(outs, 3, 1), middle
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self, self.first(x))).mean((2, 3))


def channels_in_batch(net: Between, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0] * 8, 16).softmax(-1).reshape(x.shape)


def batch_in_channels(net: Between, x: torch.Tensor) -> torch.Tensor:
    rows = x.transpose(0, 1).reshape(8 * x.shape[0], 16).softmax(-1)
    return rows.reshape(8, x.shape[0], *x.shape[2:]).transpose(0, 1)


def kernel_for_each_sample(net: Between, x: torch.Tensor) -> torch.Tensor:
    kernels = net.get_submodule("kernels")(x.mean((2, 3))).reshape(x.shape[0] * 8, 1, 3, 3)
    grouped = F.conv2d(x.reshape(1, x.shape[0] * 8, *x.shape[2:]), kernels, padding=1, groups=x.shape[0] * 8)
    return grouped.reshape(x.shape)


def one_unit(net: Between, x: torch.Tensor) -> torch.Tensor:
    return net.get_submodule("cell")(x.mean((2, 3)))[:, :, None, None] * x


def by_norm(net: Between, x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.ops.aten.norm.ScalarOpt_dim(x, 1, [-1], True))


NETS: dict[str, Callable[[], Between]] = {
    "channels in batch": lambda: Between(channels_in_batch),
    "batch in channels": lambda: Between(batch_in_channels),
    "kernel for each sample": lambda: Between(kernel_for_each_sample, kernels=nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 72))),
    "a number": lambda: Between(lambda net, x: F.prelu(x, net.last.bias[0].sum(0))),
    "norm": lambda: Between(by_norm),
    "std": lambda: Between(lambda _, x: x / (1 + x.std((2, 3), keepdim=True))),
    "two to one": lambda: Between(
        lambda net, x: net.get_submodule("up")(x), 4, up=nn.ConvTranspose2d(8, 4, 3, groups=4, padding=1)
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_masked_and_smaller_agree_at_every_batch_size(name: str) -> None:
    torch.manual_seed(0)
    model = to_module(NETS[name]().double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    plan = plan_neurons(model, torch.zeros(2, 3, 4, 4, dtype=torch.float64), sparsity=0.5, criterion="random")
    masked, smaller = plan.mask(model), plan.apply(model)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for batch in (1, 2, 3):
        x = torch.randn(batch, 3, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(smaller(x), masked(x))


def test_a_recurrent_cell_of_one_unit_stays() -> None:
    with pytest.raises(UnsupportedOpError, match="rnn_tanh_cell"):
        plan_neurons(Between(one_unit, cell=nn.RNNCell(8, 1)), torch.zeros(2, 3, 4, 4), sparsity=0.5)


class MaskedAttention(nn.Module):
    """Two heads, and a mask that has no axis of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.last = nn.Linear(6, 24), nn.Linear(8, 8), nn.Linear(8, 2)
        self.bias = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.last(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_heads_go_whole_beside_a_mask_of_two_axes() -> None:
    plan = plan_neurons(MaskedAttention(), torch.zeros(2, 5, 6), sparsity=0.5, granularity="head", include=["qkv.*"])
    gone = plan.removed["out.weight", 1]
    assert gone in ((0, 1, 2, 3), (4, 5, 6, 7))


class Two(nn.Module):
    """In train mode it computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return self.layer(x + self.token if self.training else x)


def test_a_parameter_used_in_train_mode_only_stays_out() -> None:
    model, x = Two().eval(), torch.randn(3, 4)
    torch.testing.assert_close(to_module(model, x)(x), model(x))


def test_autocast_inside_is_refused() -> None:
    class Cast(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    with pytest.raises(UnsupportedOpError, match="autocast"):
        capture(Cast(4, 2), torch.zeros(2, 4))


def test_writing_to_a_part_of_the_input_is_refused() -> None:
    class Writes(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, _ = x.chunk(2, dim=1)
            left.mul_(2)
            return super().forward(x)

    with pytest.raises(CaptureError, match="changes 'x'"):
        capture(Writes(4, 2), torch.zeros(2, 4))


class Stepping(nn.Module):
    """Three steps of a recurrent cell by hand; the first state is the input's own."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.cell, self.out = nn.Linear(4, 6), nn.GRUCell(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.start(x[:, :4])
        for _ in range(3):
            state = self.cell(x[:, 4:], state)
        return self.out(state)


def test_a_cell_knows_its_new_size() -> None:
    model = Stepping()
    smaller = plan_neurons(model, torch.zeros(2, 9), sparsity=0.5).apply(model)
    assert isinstance(smaller, Stepping)
    assert (smaller.cell.input_size, smaller.cell.hidden_size, smaller.start.out_features) == (5, 3, 3)
