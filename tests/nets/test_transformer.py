"""The transformers: what they compute, by torch's own layers; and every family runs on them, from capture to ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import featherweight
from featherweight.distillation import Features, distill, map_evenly
from featherweight.errors import RequestError
from featherweight.exporting.onnx import open_session, to_onnx
from featherweight.factorization import factorize
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.constraint import fold
from featherweight.graph.cost import count_macs
from featherweight.graph.program import ProgramModule
from featherweight.nets import TransformerBlock, text_encoder, vit
from featherweight.pruning import plan_layers, plan_neurons
from featherweight.quantization import cluster_weights, quantize_uniform
from featherweight.training.loop import Tuning


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("channels", "depth", "heads", "parameters"),
    [(192, 12, 3, 5_717_416), (384, 12, 6, 22_050_664), (768, 12, 12, 86_567_656)],  # those of DeiT-Ti, DeiT-S and ViT-B/16
)
def test_sizes_are_those_of_the_papers(channels: int, depth: int, heads: int, parameters: int) -> None:
    with torch.device("meta"):
        model = vit(input_shape=(3, 224, 224), classes=1000, channels=channels, depth=depth, heads=heads)
        assert count(model) == parameters


def test_text_encoder_has_as_many_parameters_as_minilm() -> None:
    with torch.device("meta"):
        segments, pooler = 2 * 384, 384 * 384 + 384  # which it does not have
        assert count(text_encoder()) == 22_713_216 - segments - pooler


@pytest.mark.parametrize(
    ("shape", "patch", "patches"),
    [
        ((1, 28, 28), 4, 7 * 7),
        ((3, 32, 32), 4, 8 * 8),
        ((3, 56, 64), 8, 7 * 8),
        ((3, 112, 112), 16, 7 * 7),
        ((3, 224, 224), 16, 14 * 14),
        ((1, 7, 9), 1, 7 * 9),
        ((2, 29, 30), 4, 8 * 8),  # padded to 32 x 32
    ],
)
def test_patches(shape: tuple[int, ...], patch: int, patches: int) -> None:
    model = vit(input_shape=shape, channels=4, depth=1, heads=1)
    assert model.patches.kernel_size == model.patches.stride == (patch, patch)
    assert model.positions.shape == (1, 1 + patches, 4)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def torchs(block: TransformerBlock) -> nn.Module:
    """torch's own layer with a block's weights."""
    channels, hidden = block.fc1.in_features, block.fc1.out_features
    theirs = nn.TransformerEncoderLayer(
        channels, block.attention.heads, hidden, 0.0, "gelu", block.norm1.eps, batch_first=True, norm_first=block.norm_first
    )
    names = {"self_attn.out_proj": "attention.out", "linear1": "fc1", "linear2": "fc2", "norm1": "norm1", "norm2": "norm2"}
    state = block.state_dict()
    for old, new in names.items():
        theirs.get_submodule(old).load_state_dict({leaf: state[f"{new}.{leaf}"] for leaf in ("weight", "bias")})
    for leaf in ("weight", "bias"):
        parts = [state[f"attention.{part}.{leaf}"] for part in ("query", "key", "value")]
        getattr(theirs.self_attn, f"in_proj_{leaf}").data = torch.cat(parts)
    return theirs.train()  # its fast path in eval mode computes the same, but only without gradients


def randomise_norms(model: nn.Module) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_()
    return model.eval()


def test_vit_is_torchs_layers_on_patches_and_a_token() -> None:
    model = randomise_norms(vit(input_shape=(3, 14, 15), classes=5, channels=16, depth=2, heads=4))
    model.token.data.normal_()
    images = torch.randn(3, 3, 14, 15)
    padded = torch.cat([images, torch.zeros(3, 3, 14, 1)], dim=3)
    cells = padded.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (3, 7 · 8, 3 · 2 · 2)
    x = cells @ model.patches.weight.flatten(1).T + model.patches.bias
    x = torch.stack([torch.cat([model.token[0], each]) + model.positions[0] for each in x])
    for block in model.blocks:
        x = torchs(block)(x)
    torch.testing.assert_close(model(images), model.head(model.norm(x[:, 0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_text_encoder_is_torchs_layers_and_a_mean(norm_first: bool) -> None:
    options = {"vocabulary": 30, "length": 8, "channels": 16, "depth": 2, "heads": 4}
    model = randomise_norms(text_encoder(**options, norm_first=norm_first))
    tokens = torch.tensor([[3, 9, 4, 0, 0], [29, 1, 5, 5, 2]])
    x = model.tokens.weight[tokens] + model.positions.weight[:5]
    x = x if norm_first else model.first_norm(x)
    for block in model.blocks:
        x = torchs(block)(x, src_key_padding_mask=tokens == 0)
    x = model.last_norm(x) if norm_first else x
    torch.testing.assert_close(model(tokens), torch.stack([x[0, :3].mean(0), x[1].mean(0)]), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_and_alone_gives_zeros() -> None:
    model = randomise_norms(text_encoder(vocabulary=30, length=8, channels=16, depth=2, heads=4))
    tokens = torch.tensor([[3, 9, 4]])
    longer = torch.tensor([[3, 9, 4, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(model(longer), torch.cat([model(tokens), torch.zeros(1, 16)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vit(input_shape=(1, 6, 28)), "vit needs images .* at least 7x7"),
        (lambda: vit(channels=64, heads=5), "heads of vit must be a divisor of its 64 channels, got 5"),
        (lambda: vit(depth=0), "depth of vit must be a whole number of at least 1, got 0"),
        (lambda: vit(patch=0), "patch of vit must be a whole number of at least 1, got 0"),
        (lambda: text_encoder(vocabulary=1), "vocabulary of text_encoder must be a whole number of at least 2, got 1"),
        (lambda: text_encoder(length=0), "length of text_encoder must be"),
        (lambda: text_encoder(channels=2.5), "channels of text_encoder must be a whole number"),
    ],
)
def test_wrong_sizes_are_errors(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


ENCODER = {"vocabulary": 50, "length": 9, "channels": 16, "heads": 4}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vit": lambda depth: vit(input_shape=(1, 14, 14), classes=5, channels=16, depth=depth, heads=4),
    "text": lambda depth: text_encoder(**ENCODER, depth=depth),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network whose norms are not trivial, and inputs; of texts, one has padding and one nothing else."""
    torch.manual_seed(0)
    model = randomise_norms(NETWORKS[name](2))
    if name == "vit":
        return model, torch.randn(6, 1, 14, 14)
    tokens = torch.randint(1, 50, (6, 9))
    tokens[1, 4:] = tokens[2] = 0
    return model, tokens


def labelled(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, torch.zeros(len(x), dtype=torch.int64))]


@every_network
def test_captured_for_any_batch(name: str) -> None:
    model, x = network(name)
    twin = to_module(model, x)
    for batch in (x[:1], x):
        torch.testing.assert_close(twin(batch), model(batch))
    positions = 50 if name == "vit" else 9
    macs = 2 * positions * (12 * 16 * 16 + 2 * positions * 16)
    if name == "vit":
        macs += 49 * 4 * 16 + 16 * 5
    assert count_macs(twin.program, tensors_of(twin, twin.program)) == pytest.approx(macs, rel=0.01)


@every_network
@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_features_and_heads_go(name: str, unit: Any) -> None:
    model, x = network(name)
    plan = plan_neurons(model, x, sparsity=0.5, allocation="uniform", granularity=unit, exclude=["positions*"])
    smaller = plan.apply(model).eval()
    own_class = unit == "neuron"  # which code of the module's, with its number of heads, can run
    assert isinstance(smaller, ProgramModule) != own_class
    tensors = smaller.state_dict()
    assert tensors["blocks.0.fc1.weight"].shape[0] == 32
    assert tensors["blocks.1.attention.query.weight"].shape[0] == tensors["blocks.1.attention.out.weight"].shape[1] == 8
    torch.testing.assert_close(smaller(x), plan.mask(model).eval()(x), rtol=1e-4, atol=1e-5)


@every_network
def test_layers_go(name: str) -> None:
    model, x = network(name)
    plan = plan_layers(model, x, sparsity=0.25, criterion="influence", include=["*fc2", "*out"], data=labelled(x))
    assert set(plan.scores) <= {f"blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("attention.out", "fc2")}
    smaller = plan.apply(model).eval()
    assert count(smaller) < count(model) - 1000  # attention has 1088 parameters, the other branch 2128
    torch.testing.assert_close(smaller(x), plan.mask(model).eval()(x), rtol=1e-4, atol=1e-5)


@every_network
def test_low_rank(name: str) -> None:
    model, x = network(name)
    thin = factorize(model, x, rank=3, data=labelled(x), include=["blocks.*"])
    assert type(thin) is type(model)
    assert [tuple(layer.weight.shape) for layer in thin.blocks[1].fc1] == [(3, 16), (64, 3)]
    features = model.blocks[0].fc1(torch.eye(16)) - model.blocks[0].fc1(torch.zeros(1, 16))
    kept = thin.blocks[0].fc1(torch.eye(16)) - thin.blocks[0].fc1(torch.zeros(1, 16))
    assert torch.linalg.matrix_rank(kept) == 3 < torch.linalg.matrix_rank(features)


@every_network
def test_few_values_save_and_load(name: str, tmp_path: Path) -> None:
    model, x = network(name)
    clustered = cluster_weights(model, clusters=8, min_dim=2)
    folded = fold(clustered)
    assert max(len(p.unique()) for p in folded.parameters() if p.dim() > 1) <= 9
    featherweight.save(model, tmp_path / "whole.fw", example=x)
    featherweight.save(clustered, tmp_path / "few.fw", example=x)
    assert (tmp_path / "few.fw").stat().st_size < 0.4 * (tmp_path / "whole.fw").stat().st_size
    torch.testing.assert_close(featherweight.load(tmp_path / "few.fw")(x), folded(x))


@every_network
def test_a_shallower_student_learns(name: str) -> None:
    teacher, x = network(name)
    student = NETWORKS[name](1).eval()
    pairs = map_evenly(["blocks.0"], ["blocks.0", "blocks.1"])
    assert pairs == {"blocks.0": "blocks.1"}
    tuning = Tuning(epochs=60, learning_rate=1e-2)
    taught = distill(student, teacher, [x], hard_weight=0, target="logits", features=Features(pairs), tuning=tuning).eval()
    wanted = teacher(x)
    assert (taught(x) - wanted).norm() < 0.5 * (student(x) - wanted).norm()


@every_network
def test_pruned_quantized_saved_and_exported(name: str, tmp_path: Path) -> None:
    model, x = network(name)
    narrow = plan_neurons(model, x, sparsity=0.25, granularity="head", include=["*attention*"]).apply(model).eval()
    quantized = quantize_uniform(narrow, x, activation_bits=8, calibrate=labelled(x)).eval()
    assert "round" in {node.op for node in quantized.program.nodes}
    featherweight.save(quantized, tmp_path / "net.fw", example=x)
    loaded = featherweight.load(tmp_path / "net.fw")
    torch.testing.assert_close(loaded(x), quantized(x))
    to_onnx(loaded, tmp_path / "net.onnx", x)
    session = open_session((tmp_path / "net.onnx").read_bytes())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(found) - narrow(x)).norm() < 0.05 * narrow(x).norm()
