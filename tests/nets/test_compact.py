"""The compact networks: sizes as in the papers, outputs as those of torchvision and timm, and small images work too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import featherweight
from featherweight.errors import RequestError
from featherweight.exporting.onnx import open_session, translate
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.cost import count_macs
from featherweight.graph.cutting import cut, mask, study
from featherweight.nets import (
    NETS,
    Fire,
    GhostBottleneck,
    GhostModule,
    InvertedResidual,
    SeparableConv,
    ShuffleUnit,
    SplitUnit,
    SqueezeExcite,
    XceptionBlock,
    shuffle_channels,
)
from featherweight.nets.layers import classifier, conv_norm, round_channels
from featherweight.nets.shape import strides
from featherweight.pruning.neurons import _Choice, _decide
from tests.nets.small import COMPACT, SHAPE, captured, small


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Weights times output pixels of every convolution and linear layer: not the way the package counts."""
    total = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * output[0, 0].numel()

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape, device=next(model.parameters()).device))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(("incoming", "outgoing", "kernel"), [(2, 4, 3), (16, 32, 3), (8, 8, 5)])
def test_separable_convolution_has_the_stated_share_of_the_weights(incoming: int, outgoing: int, kernel: int) -> None:
    separable, plain = SeparableConv(incoming, outgoing, kernel), nn.Conv2d(incoming, outgoing, kernel, padding="same")
    share = count(separable) / plain.weight.numel()
    assert share == pytest.approx(1 / outgoing + 1 / kernel**2)
    assert macs(separable, (incoming, 7, 9)) / macs(plain, (incoming, 7, 9)) == pytest.approx(share)


def test_separable_convolution_is_a_convolution_of_rank_one() -> None:
    separable = SeparableConv(3, 5, stride=2)
    weight = separable.pointwise.weight * separable.depthwise.weight.transpose(0, 1)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(separable(x), nn.functional.conv2d(x, weight, stride=2, padding=1))


# What the docstrings say: weights, biases and norms by hand, and MACs on 6 x 6 pixels (3 x 3 after a stride).
BLOCKS: list[tuple[str, Callable[[], nn.Module], int, int, int, int]] = [
    ("fire", lambda: Fire(12, 4, 16), 12, 4 * (12 + 5 * 16) + 4 + 16, 4 * (12 + 5 * 16) * 36, 1),
    ("excite", lambda: SqueezeExcite(12, 4), 12, 2 * 48 + 16, 2 * 48, 1),
    ("inverted", lambda: InvertedResidual(12, 24, 12), 12, 288 + 216 + 288 + 2 * 60, (288 + 216 + 288) * 36, 1),
    ("narrow", lambda: InvertedResidual(12, 12, 8, 5), 12, 300 + 96 + 2 * 20, 396 * 36, 1),
    (
        "excited",
        lambda: InvertedResidual(12, 24, 20, 5, stride=2, squeezed=6),
        12,
        288 + 600 + 480 + 2 * 68 + 288 + 30,
        288 * 36 + (600 + 480) * 9 + 288,
        2,
    ),
    ("shuffle", lambda: ShuffleUnit(24, 24, groups=3), 24, 48 + 54 + 48 + 2 * 36, 150 * 36, 1),
    (
        "shuffle-down",
        lambda: ShuffleUnit(12, 24, groups=3, first_groups=1, stride=2),
        12,
        72 + 54 + 24 + 2 * 24,
        72 * 36 + 78 * 9,
        2,
    ),
    ("split", lambda: SplitUnit(24, 24), 24, 2 * 144 + 108 + 6 * 12, 396 * 36, 1),
    (
        "split-down",
        lambda: SplitUnit(8, 24, stride=2),
        8,
        96 + 108 + 144 + 72 + 96 + 8 * 12 + 2 * 8,
        96 * 36 + (108 + 144 + 72 + 96) * 9,
        2,
    ),
    ("xception", lambda: XceptionBlock([8, 16, 16]), 8, 72 + 128 + 144 + 256 + 128 + 96, 728 * 36, 1),
    ("xception-down", lambda: XceptionBlock([8, 8], stride=2), 8, 72 + 64 + 64 + 32, 136 * 36 + 64 * 9, 2),
    ("ghost", lambda: GhostModule(16, 32, 3), 16, (9 * 16 + 9) * 16 + 64, (9 * 16 + 9) * 16 * 36, 1),
    ("bottleneck", lambda: GhostBottleneck(8, 16, 8), 8, 17 * 8 + 25 * 4 + 2 * 24, 236 * 36, 1),
    (
        "bottleneck-down",
        lambda: GhostBottleneck(8, 16, 12, 5, stride=2, squeezed=4),
        8,
        136 + 150 + 400 + 128 + 20 + 200 + 96 + 2 * (16 + 12 + 16 + 8 + 12),
        136 * 36 + (150 + 400 + 200 + 96) * 9 + 128,
        2,
    ),
]


@pytest.mark.parametrize(
    ("make", "channels", "parameters", "work", "stride"), [b[1:] for b in BLOCKS], ids=[b[0] for b in BLOCKS]
)
def test_block_costs_what_its_docstring_says(
    make: Callable[[], nn.Module], channels: int, parameters: int, work: int, stride: int
) -> None:
    block = make()
    assert count(block) == parameters
    assert macs(block, (channels, 6, 6)) == work
    assert block(torch.zeros(2, channels, 7, 5)).shape[2:] == (-(-7 // stride), -(-5 // stride))


def test_shuffle_deals_and_deals_back() -> None:
    x = torch.arange(2 * 12 * 3).reshape(2, 12, 3, 1)
    shuffled = shuffle_channels(x, 3)
    assert shuffled[0, :, 0, 0].tolist() == [3 * c for c in (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)]
    assert torch.equal(shuffle_channels(shuffled, 4), x)


def test_half_the_channels_pass_a_split_unit() -> None:
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(SplitUnit(8, 8).eval()(x)[:, ::2], x[:, :4])


def test_half_the_channels_of_a_ghost_module_are_made_one_by_one() -> None:
    module = GhostModule(3, 8, activation=None).eval()
    x = torch.randn(1, 3, 4, 4)
    before = module(x)
    with torch.no_grad():
        module.primary.conv.weight[2] = 0
    changed = (module(x) != before).flatten(2).any(2).flatten().nonzero().flatten().tolist()
    assert changed == [2, 6]


@pytest.mark.parametrize(
    ("channels", "multiple", "rounded"),
    [(24, 8, 24), (20, 8, 24), (19.9, 8, 24), (35, 8, 32), (36, 8, 40), (0.1, 8, 8), (17, 4, 16)],
)
def test_channels_round_to_the_nearest_multiple_but_never_lose_a_tenth(channels: float, multiple: int, rounded: int) -> None:
    assert round_channels(channels, multiple) == rounded


@pytest.mark.parametrize(
    ("side", "kept"),
    [(299, 5), (224, 5), (112, 5), (111, 4), (64, 4), (56, 4), (32, 3), (28, 3), (27, 2), (16, 2), (8, 1), (6, 0)],
)
def test_first_strides_fall_away_on_small_images(side: int, kept: int) -> None:
    assert strides((1, side, side + 100), 5) == (1,) * (5 - kept) + (2,) * kept
    assert strides((1, side + 100, side), 2) == ((1, 1), (1, 2), (2, 2))[min(kept, 2)]


# Parameters, and the papers' millions of multiply-accumulates (of ShuffleNet V1 and V2, what their authors' code has).
PAPERS = [
    ("squeezenet", {"version": "1.0"}, 224, 1_248_424, 819),  # theirs are in torchvision's documents
    ("squeezenet", {"version": "1.1"}, 224, 1_235_496, 349),
    ("mobilenet-v1", {}, 224, 4_231_976, 569),  # Howard et al. (2017), tables 6 and 7
    ("mobilenet-v1", {"width": 0.75}, 224, 2_585_560, 325),
    ("mobilenet-v1", {"width": 0.5}, 224, 1_331_592, 149),
    ("mobilenet-v1", {"width": 0.25}, 224, 470_072, 41),
    ("mobilenet-v1", {}, 192, 4_231_976, 418),
    ("mobilenet-v1", {}, 160, 4_231_976, 290),
    ("mobilenet-v1", {}, 128, 4_231_976, 186),
    ("mobilenet-v2", {}, 224, 3_504_872, 300),
    ("mobilenet-v3-small", {}, 224, 2_542_856, 56),
    ("shufflenet-v1", {"groups": 1}, 224, 1_531_936, 143),  # Zhang et al. (2018), table 1
    ("shufflenet-v1", {}, 224, 1_865_728, 137),
    ("shufflenet-v1", {"groups": 8}, 224, 2_434_768, 138),
    ("shufflenet-v1", {"width": 0.5}, 224, 718_324, 38),
    ("shufflenet-v1", {"width": 0.5, "groups": 8}, 224, 1_011_448, 40),
    ("shufflenet-v1", {"width": 2.0}, 224, 5_450_776, 524),
    ("shufflenet-v1", {"width": 2.0, "groups": 8}, 224, 6_522_232, 522),
    ("shufflenet-v2", {"width": 1.5}, 224, 3_503_624, 296),
    ("shufflenet-v2", {"width": 2.0}, 224, 7_393_996, 583),
    ("xception", {}, 299, 22_855_952, 8357),
    ("ghostnet", {}, 224, 5_182_508, 141),
]


@pytest.mark.parametrize(("name", "options", "side", "parameters", "millions"), PAPERS)
def test_sizes_are_those_of_the_papers(name: str, options: dict[str, Any], side: int, parameters: int, millions: int) -> None:
    with torch.device("meta"):
        model = NETS[name](**options)
        assert count(model) == parameters
        assert macs(model, (3, side, side)) / 1e6 == pytest.approx(millions, abs=1)  # the papers round, or cut


THEIRS = [
    ("squeezenet", {"version": "1.0"}, "torchvision", "squeezenet1_0"),
    ("squeezenet", {}, "torchvision", "squeezenet1_1"),
    ("mobilenet-v1", {}, "timm", "mobilenetv1_100"),
    ("mobilenet-v2", {"width": 0.5}, "timm", "mobilenetv2_050"),
    ("mobilenet-v2", {}, "torchvision", "mobilenet_v2"),
    ("mobilenet-v3-small", {}, "torchvision", "mobilenet_v3_small"),
    ("shufflenet-v2", {"width": 0.5}, "torchvision", "shufflenet_v2_x0_5"),
    ("shufflenet-v2", {}, "torchvision", "shufflenet_v2_x1_0"),
    ("xception", {}, "timm", "legacy_xception"),
    ("ghostnet", {}, "timm", "ghostnet_100"),
    ("ghostnet", {"width": 0.5}, "timm", "ghostnet_050"),
]


@pytest.fixture(scope="module")
def zoo() -> Iterator[ModuleType]:
    """The coverage benchmark's helper: it makes torchvision importable, and draws weights that hide nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "coverage")
        yield importlib.import_module("zoo")


@pytest.mark.parametrize(("name", "options", "library", "theirs"), THEIRS)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_outputs_are_those_of_the_reference(
    zoo: ModuleType, name: str, options: dict[str, Any], library: str, theirs: str
) -> None:
    reference, ours = zoo.build(library, theirs), NETS[name](**options).eval()
    shape = (3, 112, 128)
    assert macs(ours, shape) == macs(reference, shape)
    state = ours.state_dict()
    pairs = zip(state.items(), reference.state_dict().values(), strict=True)  # in the same order, up to axes of size 1
    ours.load_state_dict({key: value.reshape(mine.shape) for (key, mine), value in pairs})
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


SIDES = {"squeezenet": (3, 3, 13), "xception": (3, 3, 7)}  # no padding in their first convolutions


@pytest.mark.parametrize("name", COMPACT)
def test_last_maps(name: str) -> None:
    """4 x 4 on 16 x 16 and 28 x 28 images, 7 x 7 on 224 x 224, but for what convolutions without padding take."""
    for side, expected in zip((16, 28, 224), SIDES.get(name, (4, 4, 7)), strict=True):
        with torch.device("meta"):
            model = small(name, input_shape=(1, side, side)).eval()
            sizes = []
            pools = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
            pools[-1].register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(inputs[0].shape[2:]))
            model(torch.zeros(1, 1, side, side))
        assert sizes == [(expected, expected)]


@pytest.mark.parametrize("name", COMPACT)
def test_macs_are_counted_as_by_hooks(name: str) -> None:
    model, net = captured(name)
    assert count_macs(net.program, tensors_of(net, net.program)) == macs(model, SHAPE)


PAIRS: dict[str, Callable[[], list[nn.Module]]] = {
    "separable": lambda: [SeparableConv(24, 48, stride=2), SeparableConv(48, 48)],
    "fire": lambda: [Fire(24, 8, 48), Fire(48, 8, 48)],
    "inverted": lambda: [InvertedResidual(24, 72, 48, stride=2, squeezed=8), InvertedResidual(48, 96, 48)],
    "shuffle": lambda: [ShuffleUnit(24, 48, groups=3, first_groups=1, stride=2), ShuffleUnit(48, 48, groups=3)],
    "split": lambda: [SplitUnit(24, 48, stride=2), SplitUnit(48, 48)],
    "xception": lambda: [XceptionBlock([24, 48, 48], stride=2), XceptionBlock([48, 48, 48])],
    "ghost": lambda: [GhostBottleneck(24, 48, 48, stride=2, squeezed=8), GhostBottleneck(48, 96, 48)],
}


@pytest.mark.parametrize("block", PAIRS)
def test_pruned_blocks_save_load_and_export(block: str, tmp_path: Path) -> None:
    x = torch.randn(3, *SHAPE)
    model = nn.Sequential(conv_norm(3, 24, 3), *PAIRS[block](), classifier(48, 5)).eval()
    network = study(model, x)
    removed = _decide(network, _Choice(0.5)).removed
    smaller, masked = to_module(cut(network, removed, model), x), mask(network, removed)
    assert count(smaller) < 0.6 * count(model)
    featherweight.save(smaller, tmp_path / "net.fw", example=x)
    loaded = featherweight.load(tmp_path / "net.fw")
    session = open_session(translate(smaller, x))
    with torch.no_grad():
        expected = masked(x)
        tolerance = {"rtol": 0.0, "atol": 1e-4 * float(expected.abs().max())}
        torch.testing.assert_close(smaller(x), expected, **tolerance)
        torch.testing.assert_close(loaded(x), smaller(x), rtol=0, atol=0)
    (output,) = session.run(None, {smaller.program.inputs[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, **tolerance)


@pytest.mark.parametrize("name", COMPACT)
@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_widths_are_errors(name: str, width: float) -> None:
    with pytest.raises(RequestError, match=f"width of {name} must be a finite number above 0, got"):
        NETS[name](width=width)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("squeezenet", {"version": "1.2"}, "version of squeezenet.*1.0, 1.1"),
        ("shufflenet-v1", {"groups": 5}, r"groups of shufflenet-v1 must be one of \[1, 2, 3, 4, 8\], got 5"),
        ("squeezenet", {"input_shape": (3, 15, 15)}, "at least 16x16"),
        ("ghostnet", {"input_shape": (1, 7, 28)}, "ghostnet needs images .* at least 8x8"),
    ],
)
def test_wrong_options_are_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        NETS[name](**options)
