"""Transformers: one block, and two networks made of it, for images and for texts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from featherweight.errors import check
from featherweight.nets.shape import check_image

__all__ = ["Attention", "TransformerBlock", "text_encoder", "vit"]

_MOST_PIXELS, _FEWEST_PATCHES = 16, 7  # a side, of a patch and of an image


class Attention(nn.Module):
    """Self-attention: every position takes what it needs from all others, in several heads side by side.

    Cost: 4·C·C weights and 4·C biases; 4·L·C·C + 2·L·L·C MACs on L positions. Shape: (B, L, C) -> (B, L, C). Vaswani et al.
    (2017), section 3.2. Each head's query and key, and value, may have any size: the module runs with fewer features too.

    Args:
        channels: C.
        heads: divides C.

    Example:
        >>> Attention(16, 4)(torch.zeros(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with GELU between them, each added to what it got, and layer norms.

    Cost: 4·C·C + 2·C·H weights, 9·C + H biases and parameters of the norms; each weight is one MAC for every position, and
    attention adds 2·L·L·C. Shape: (B, L, C) -> (B, L, C). The norms stand after the sums as in Vaswani et al. (2017) and BERT
    (Devlin et al. 2019), or before the layers (Xiong et al. 2020), which trains more easily.

    Args:
        channels: C.
        heads: of the attention; divides C.
        hidden: H, the width between the linear layers.
        norm_first: whether norms stand before the layers.
        eps: of the norms.

    Example:
        >>> sum(parameter.numel() for parameter in TransformerBlock(8, 2, 32).parameters())  # 256 + 512 + 72 + 32
        872
    """

    def __init__(self, channels: int, heads: int, hidden: int, *, norm_first: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps)
        self.fc1 = nn.Linear(channels, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.fc2(self.gelu(self.fc1(x))))  # type: ignore[no-any-return]


def vit(
    *,
    input_shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    channels: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int | None = None,
) -> nn.Module:
    """A vision transformer: Dosovitskiy et al. (2021), with pre-norm blocks, a class token, and 4 times wider hidden layers.

    The sizes they name, on 224 x 224 pixels, are (channels, depth, heads) = (768, 12, 12) for ViT-B/16; (384, 12, 6) and
    (192, 12, 3) are the small and the tiny one of Touvron et al. (2021).

    Args:
        input_shape: (channels, rows, columns), at least 7 rows and columns.
        classes: number of outputs, at least 1.
        channels: of every position, at least 1.
        depth: number of blocks, at least 1.
        heads: of each attention; divides the channels.
        patch: side of the square patches in pixels, at least 1. By default the largest power of two, up to 16, that leaves 7
            patches a side: 16 from 112 pixels on, 8 from 56, 4 from 28. Images are padded with zeros, right and below, to
            whole patches.

    Returns:
        The network: (B, *input_shape) -> (B, classes). 205,066 parameters; 5,717,416 as the tiny one for 1000 classes.

    Raises:
        RequestError: the input is no image or too small, or a size is out of range.

    Example:
        >>> sum(parameter.numel() for parameter in vit().parameters())
        205066
    """
    check_image("vit", input_shape, classes, _FEWEST_PATCHES)
    _check_sizes("vit", channels, depth, heads)
    if patch is None:
        patch = _MOST_PIXELS
        while min(input_shape[1:]) / patch < _FEWEST_PATCHES:
            patch //= 2
    check("patch of vit", patch, "a whole number of at least 1", isinstance(patch, int) and patch >= 1)
    return _ViT(input_shape, classes, channels, depth, heads, patch)


class _ViT(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], classes: int, channels: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        colours, rows, columns = input_shape
        below, right = -rows % patch, -columns % patch
        self.pad = nn.ZeroPad2d((0, right, 0, below)) if below or right else nn.Identity()
        self.patches = nn.Conv2d(colours, channels, patch, patch)
        count = 1 + (rows + below) // patch * ((columns + right) // patch)
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, channels), std=0.02))
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, 4 * channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, 1e-6)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(self.pad(images)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


def text_encoder(
    *,
    vocabulary: int = 30522,
    length: int = 512,
    channels: int = 384,
    depth: int = 6,
    heads: int = 12,
    norm_first: bool = False,
) -> nn.Module:
    """A network that makes one vector of a text: BERT's encoder (Devlin et al. 2019), and the mean over the tokens.

    Token 0 is padding, as in BERT's vocabulary: no token takes anything from it, and the mean leaves it out. There are no
    segments, for a text is one; the vector of a pretrained network's first segment belongs into the positions. Hidden layers
    are 4 times as wide. The default sizes are MiniLM's (Wang et al. 2020) with 6 layers; the pooling is that of Reimers and
    Gurevych ("Sentence-BERT", 2019). Dropout is left out.

    Args:
        vocabulary: number of different tokens, at least 2.
        length: most tokens of a text, at least 1.
        channels: of every token, and of the result, at least 1.
        depth: number of blocks, at least 1.
        heads: of each attention; divides the channels.
        norm_first: whether the norms stand before the layers, and one at the end, rather than after the sums, and one at the
            start, as in BERT.

    Returns:
        The network: tokens (B, L), whole numbers below the vocabulary, L up to `length`, -> (B, channels). A text of padding
        only gives zeros. 22,564,608 parameters.

    Raises:
        RequestError: a size is out of range.

    Example:
        >>> encoder = text_encoder(vocabulary=100, length=16, channels=32, depth=2, heads=4)
        >>> encoder(torch.tensor([[5, 7, 9, 0], [5, 0, 0, 0]])).shape
        torch.Size([2, 32])
    """
    _check_sizes("text_encoder", channels, depth, heads)
    check("vocabulary of text_encoder", vocabulary, "a whole number of at least 2", _is_whole(vocabulary, 2))
    check("length of text_encoder", length, "a whole number of at least 1", _is_whole(length, 1))
    return _TextEncoder(vocabulary, length, channels, depth, heads, norm_first)


class _TextEncoder(nn.Module):
    def __init__(self, vocabulary: int, length: int, channels: int, depth: int, heads: int, norm_first: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, channels)
        self.positions = nn.Embedding(length, channels)
        norm, eps = nn.LayerNorm(channels, 1e-12), 1e-12  # BERT's
        self.first_norm: nn.Module = nn.Identity() if norm_first else norm
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, 4 * channels, norm_first=norm_first, eps=eps) for _ in range(depth)
        )
        self.last_norm: nn.Module = norm if norm_first else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        given = tokens != 0
        x = self.first_norm(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        # Added to the scores. Minus infinity would make a text of padding only, of which all scores are, no number.
        mask = (given.to(x.dtype) - 1)[:, None, None, :] * 1e4
        for block in self.blocks:
            x = block(x, mask)
        weights = given.to(x.dtype)[:, :, None]
        return (self.last_norm(x) * weights).sum(1) / weights.sum(1).clamp_min(1)  # type: ignore[no-any-return]


def _check_sizes(net: str, channels: int, depth: int, heads: int) -> None:
    for name, value in (("channels", channels), ("depth", depth), ("heads", heads)):
        check(f"{name} of {net}", value, "a whole number of at least 1", _is_whole(value, 1))
    check(f"heads of {net}", heads, f"a divisor of its {channels} channels", channels % heads == 0)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
