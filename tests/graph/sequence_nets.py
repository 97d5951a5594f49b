"""Networks on sequences (12 positions of 10 features): attention of every kind, recurrent cells, mixers, odd operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ATTENTION", "SEQUENCE", "SEQUENCES"]

SEQUENCE = (12, 10)


class Block(nn.Module):
    """Embeds, mixes in a residual branch that a subclass gives, and classifies the mean over positions."""

    width, heads = 16, 4

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(10, self.width), nn.LayerNorm(self.width), nn.Linear(self.width, 4)
        self.hidden, self.out = nn.Linear(self.width, 24), nn.Linear(24, self.width)
        self.build()

    def build(self) -> None:
        """The layers of the branch."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.mix(self.norm(x))
        x = x + self.out(F.gelu(self.hidden(x)))
        return self.head(x.mean(1))


class FusedAttention(Block):
    """Query, key and value in one matrix, scaled by a number that stands for the old size, with layer scale."""

    def build(self) -> None:
        self.qkv, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        batch, positions, width = x.shape
        qkv = self.qkv(x).reshape(batch, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        mixed = scores.softmax(-1) @ v
        return self.gamma * self.project(mixed.transpose(1, 2).reshape(batch, positions, width))


class SeparateAttention(Block):
    """Three matrices, torch's attention with its own scale, a bias for each head and pair of positions."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(23, self.heads))
        self.register_buffer("distance", torch.arange(12)[:, None] - torch.arange(12)[None] + 11)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias[self.distance.view(-1)].view(12, 12, -1).permute(2, 0, 1).unsqueeze(0)
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(x.shape[0], -1, -1, -1))
        return self.project(mixed.transpose(1, 2).flatten(2))


class NormalisedAttention(SeparateAttention):
    """Queries and keys go through a norm that all heads share."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.q_norm, self.k_norm = nn.LayerNorm(4), nn.RMSNorm(4)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_norm(self.split(self.q(x))), self.k_norm(self.split(self.k(x))), self.split(self.v(x))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GroupedQuery(SeparateAttention):
    """Two heads of queries for each of keys and values, by torch or by repeating them."""

    by_torch = True

    def build(self) -> None:
        self.q, self.k, self.v, self.project = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q = self.split(self.q(x))
        k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.k, self.v))
        if not self.by_torch:
            k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(q.shape) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.by_torch)
        return self.project(mixed.transpose(1, 2).flatten(2))


class RepeatedQuery(GroupedQuery):
    by_torch = False


class TorchAttention(Block):
    """torch's own encoder layer."""

    def build(self) -> None:
        self.layer = nn.TransformerEncoderLayer(16, self.heads, 20, dropout=0.0, batch_first=True)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Windows(SeparateAttention):
    """Attention within windows of four positions, shifted by two (Swin)."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        batch, positions, width = x.shape
        windows = x.roll(-2, 1).view(batch * positions // 4, 4, width)
        q, k, v = (self.split(layer(windows)) for layer in (self.q, self.k, self.v))
        mixed = self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, width))
        return mixed.view(batch, positions, width).roll(2, 1)


class Rotated(SeparateAttention):
    """Rotary positions: features go in pairs."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("cos", torch.rand(12, 4))
        self.register_buffer("sin", torch.rand(12, 4))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.rotate(self.split(self.q(x))), self.rotate(self.split(self.k(x))), self.split(self.v(x))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ChannelAttention(SeparateAttention):
    """A softmax over features (XCiT): those that are gone must not take part."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.temperature = nn.Parameter(torch.rand(self.heads, 1, 1) + 0.5)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)).transpose(-2, -1) for layer in (self.q, self.k, self.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project((scores.softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))


class LinearAttention(SeparateAttention):
    """A softmax of the queries over features and of the keys over positions, by einsum."""

    def build(self) -> None:
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        context = torch.einsum("bhnd,bhne->bhde", k.softmax(2), v)
        return self.project(torch.einsum("bhde,bhnd->bhne", context, q.softmax(-1)).transpose(1, 2).flatten(2))


class Mixer(Block):
    """Mixes positions: the hidden positions are neurons, too."""

    def build(self) -> None:
        self.up, self.down = nn.Linear(12, 9), nn.Linear(9, 12)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Gated(Block):
    """Halves that multiply each other, a norm on one of them, and an addition of a learned position."""

    def build(self) -> None:
        self.up, self.down, self.gate = nn.Linear(16, 20), nn.Linear(10, 16), nn.LayerNorm(10)
        self.positions, self.first = nn.Parameter(torch.randn(1, 13, 16)), nn.Parameter(torch.randn(1, 1, 16))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * self.gate(gate))[:, 1:]


class LongShortTerm(Block):
    """Two layers of LSTM in both directions."""

    def build(self) -> None:
        self.cells, self.project = nn.LSTM(16, 5, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(10, 16)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.cells(x)[0])


class GatedRecurrent(Block):
    """One GRU, and the plain cell after it; the last state counts, too."""

    def build(self) -> None:
        self.gru, self.rnn = nn.GRU(16, 7, batch_first=True), nn.RNN(7, 16, batch_first=True)
        self.state = nn.Linear(7, 16)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        outputs, last = self.gru(x)
        return self.rnn(outputs)[0] + self.state(last[0])[:, None]


class Cells(Block):
    """Cells that the network steps through by itself."""

    def build(self) -> None:
        self.lstm, self.gru, self.start = nn.LSTMCell(16, 6), nn.GRUCell(6, 16), nn.Linear(16, 6)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        h = c = self.start(x[:, 0])
        out = x[:, 0]
        for step in range(3):
            h, c = self.lstm(x[:, step], (h, c))
            out = self.gru(h, out)
        return out[:, None]


class Filled(Block):
    """Values made of nothing (zeros, a mask), where, addcmul, a maximum and a norm over features."""

    def build(self) -> None:
        self.scale = nn.Linear(16, 16)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(1, 12, 16, dtype=x.dtype)
        x = torch.where(x > 0, self.scale(x), zeros)
        x = torch.addcmul(x, x, x.amax(-1, keepdim=True))
        return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6) - x.var(-1, correction=0, keepdim=True)


ATTENTION = {
    "fused-attention": FusedAttention,
    "separate-attention": SeparateAttention,
    "normalised-attention": NormalisedAttention,
    "grouped-query": GroupedQuery,
    "repeated-query": RepeatedQuery,
    "torch-attention": TorchAttention,
    "windows": Windows,
    "rotated": Rotated,
    "channel-attention": ChannelAttention,
    "linear-attention": LinearAttention,
}

SEQUENCES = {
    **ATTENTION,
    "mixer": Mixer,
    "gated-halves": Gated,
    "long-short-term": LongShortTerm,
    "gated-recurrent": GatedRecurrent,
    "cells": Cells,
    "filled": Filled,
}
