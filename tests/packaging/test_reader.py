"""Reading: networks and tensors come back bit for bit, and `inspect` accounts for every byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import FormatError, RequestError
from featherweight.graph.capture import to_module
from featherweight.packaging import inspect, load, load_tensors, save, save_tensors
from featherweight.packaging.tensors import DTYPES, bits_of


class Small(nn.Module):
    """Batch norm, a residual, tied weights, a buffer, an unused layer: what a network may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)
        self.tied = nn.Linear(4 * 16, 5)
        self.tied.weight = self.head.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.norm(self.conv(image))) + image
        flat = features.flatten(1)
        return {"first": self.head(flat) * self.scale, "second": self.tied(flat)}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    raw = [bits_of(t) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(*raw)


def test_a_network_comes_back_without_its_class(tmp_path: Path) -> None:
    model = Small()
    model(torch.randn(8, 1, 4, 4))
    save(model, tmp_path / "a.fw", example=torch.zeros(2, 1, 4, 4))
    loaded = load(tmp_path / "a.fw")
    assert not loaded.training
    image = torch.randn(3, 1, 4, 4)
    expected = model.eval()(image)
    found = loaded(image)
    assert {k: torch.equal(v, found[k]) for k, v in expected.items()} == {"first": True, "second": True}
    state = loaded.state_dict()
    assert not any(name.startswith("unused") for name in state)
    assert all(same_bits(tensor, dict(model.state_dict())[name]) for name, tensor in state.items())
    assert loaded.program == to_module(model, torch.zeros(2, 1, 4, 4)).program


def test_a_loaded_network_trains(tmp_path: Path) -> None:
    save(nn.Linear(3, 2), tmp_path / "a.fw", example=torch.zeros(2, 3))
    loaded = load(tmp_path / "a.fw")
    loaded(torch.ones(2, 3)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())
    with torch.no_grad():
        loaded.weight.add_(1)  # the memory is ours to write to


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@settings(max_examples=80)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.tuples(
            st.sampled_from([*DTYPES]), st.lists(st.integers(0, 6), max_size=4), st.integers(0, 3), st.integers(0, 2**32 - 1)
        ),
        max_size=5,
    )
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, tuple[torch.dtype, list[int], int, int]]
) -> None:
    tensors = {}
    for name, (dtype, shape, pattern, seed) in spec.items():
        raw = np.random.default_rng(seed).integers(0, 256, (math.prod(shape), dtype.itemsize)).astype(np.uint8)
        raw %= 2 if dtype is torch.bool else [255, 2, 1, 4][pattern]
        tensors[name] = torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "any.fw"
    size = save_tensors(tensors, path)
    found = load_tensors(path)
    assert list(found) == sorted(tensors)
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    assert inspect(path).total_bytes == size


def test_every_value_of_16_bits_comes_back(tmp_path: Path) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    tensors = {str(dtype): every.view(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int16, torch.uint16)}
    save_tensors(tensors, tmp_path / "a.fw")
    assert all(same_bits(tensor, tensors[name]) for name, tensor in load_tensors(tmp_path / "a.fw").items())


def test_nan_payloads_infinities_and_negative_zeros_come_back(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001, 0x7F800000, -0x800000, -0x80000000, 0, 1], dtype=torch.int64)
    tensors = {"odd": bits.to(torch.int32).view(torch.float32), "mostly zero": torch.zeros(1000)}
    tensors["mostly zero"][::50] = -0.0
    save_tensors(tensors, tmp_path / "a.fw")
    assert all(same_bits(tensor, tensors[name]) for name, tensor in load_tensors(tmp_path / "a.fw").items())


def test_inspect_accounts_for_every_byte(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    with torch.no_grad():
        model[0].weight[torch.rand(100, 300) < 0.95] = 0
        model[2].weight.copy_(torch.randint(4, (10, 100)))
        model[2].bias.zero_()
    size = save(model, tmp_path / "a.fw", example=torch.zeros(2, 300))
    contents = inspect(tmp_path / "a.fw")
    assert contents.total_bytes == size
    assert contents.has_network
    assert {t.name: (t.shape, t.coder) for t in contents.tensors} == {
        "0.weight": ((100, 300), "sparse_ans"),
        "0.bias": ((100,), "exponent_ans"),
        "2.weight": ((10, 100), "palette"),
        "2.bias": ((10,), "palette_ans"),
    }
    last = contents.tensors[-1]
    assert (last.name, last.size_bytes, last.bits_per_weight) == ("2.bias", 1 + 1 + 1, 2.4)
    assert contents.header_bytes == 4 + 1 + 1 + 4
    save_tensors({}, tmp_path / "b.fw")
    assert inspect(tmp_path / "b.fw").tensors == ()


def test_a_pruned_and_clustered_lenet_is_close_to_its_entropy(tmp_path: Path) -> None:
    """1.5 % of the weights left, on 8 shared values for each layer: within 3 % of the entropy."""
    generator = torch.Generator().manual_seed(0)
    entropy_bits = 0.0
    tensors = {}
    for name, shape in {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}.items():
        count = math.prod(shape)
        kept = round(0.015 * count)
        weight = torch.zeros(count)
        places = torch.randperm(count, generator=generator)[:kept]
        weight[places] = torch.randn(8, generator=generator)[torch.randint(8, (kept,), generator=generator)]
        tensors[name] = weight.reshape(shape)
        p = kept / count
        entropy_bits += count * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) + 3 * kept
    save_tensors(tensors, tmp_path / "a.fw")
    contents = inspect(tmp_path / "a.fw")
    assert {t.coder for t in contents.tensors} == {"sparse_ans"}
    assert 8 * sum(t.size_bytes for t in contents.tensors) < 1.03 * entropy_bits
    assert all(same_bits(tensor, tensors[name]) for name, tensor in load_tensors(tmp_path / "a.fw").items())


def test_small_dense_tensors_cost_a_few_bytes_more_than_their_weights(tmp_path: Path) -> None:
    tensors = {f"bias{n}": torch.randn(n) for n in (1, 10, 100, 500)}
    save_tensors(tensors, tmp_path / "a.fw")
    assert all(t.size_bytes <= 4 * t.shape[0] + 7 for t in inspect(tmp_path / "a.fw").tensors)


def test_a_bomb_is_refused_unless_asked_for(tmp_path: Path) -> None:
    save_tensors({"zeros": torch.zeros(5000, 5000)}, tmp_path / "a.fw")
    with pytest.raises(FormatError, match="pass max_bytes="):
        load_tensors(tmp_path / "a.fw")
    assert load_tensors(tmp_path / "a.fw", max_bytes=100_000_000)["zeros"].shape == (5000, 5000)
    save_tensors({"zeros": torch.zeros(4096, 4095)}, tmp_path / "b.fw")
    assert not load_tensors(tmp_path / "b.fw")["zeros"].any()
    with pytest.raises(FormatError, match="may expand to 10,"):
        load_tensors(tmp_path / "b.fw", max_bytes=10)


def test_one_weight_in_a_thousand_loads_by_default(tmp_path: Path) -> None:
    weight = torch.zeros(20_000_000)
    weight[torch.randperm(len(weight))[:20_000]] = 0.25
    size = save_tensors({"weight": weight}, tmp_path / "a.fw")
    assert 4 * len(weight) / size > 2500
    assert torch.equal(load_tensors(tmp_path / "a.fw")["weight"], weight)


def test_tensors_alone_are_no_network(tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.fw")
    with pytest.raises(FormatError, match="load_tensors"):
        load(tmp_path / "a.fw")


@pytest.mark.parametrize("read", [load, load_tensors, inspect])
def test_a_file_that_cannot_be_opened_is_a_request_error(tmp_path: Path, read: object) -> None:
    assert callable(read)
    for path in (tmp_path / "missing.fw", tmp_path):
        with pytest.raises(RequestError, match="must exist and be readable"):
            read(path)
