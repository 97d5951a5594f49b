"""The format does not change by accident: known models give known bytes, and known bytes give known models."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from featherweight.packaging import inspect, load, load_tensors
from featherweight.packaging.coders import CODERS
from featherweight.packaging.tensors import bits_of

FOLDER = Path(__file__).parent
MAKE: dict[str, Any] = runpy.run_path(str(FOLDER / "make.py"))


@pytest.mark.parametrize("name", MAKE["FILES"])
def test_known_models_give_known_bytes(name: str) -> None:
    assert MAKE["FILES"][name]().hex(" ", -16) == (FOLDER / name).read_bytes().hex(" ", -16)


@pytest.mark.parametrize(("name", "last"), [("tensors.fw", 1), ("tensors-2.fw", 2), ("tensors-3.fw", 3)])
def test_known_bytes_give_known_tensors(name: str, last: int) -> None:
    parts = [MAKE[part]() for part in ("tensors", "newer_tensors", "newest_tensors")[:last]]
    expected = {name: tensor for part in parts for name, tensor in part.items()}
    found = load_tensors(FOLDER / name)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        raw = [bits_of(t).tolist() for t in (found[name], tensor)]
        assert raw[0] == raw[1], name


@pytest.mark.parametrize("name", ["network.fw", "network-2.fw", "network-3.fw"])
def test_known_bytes_give_a_known_network(name: str) -> None:
    program, tensors = MAKE["network"]()
    loaded = load(FOLDER / name)
    assert loaded.program == program
    image = MAKE["counting"](2, 1, 8, 8) / 60
    with torch.no_grad():
        output = loaded(image)
        features = torch.conv2d(image, tensors["conv.weight"], tensors["conv.bias"], 1, 1).relu()
        expected = torch.max_pool2d(features, 2, 2).flatten(1) @ tensors["head.weight"].t() * 2 + 0
    torch.testing.assert_close(output["logits"], expected)
    assert output["precise"][0].dtype == torch.float64
    assert output["precise"][1:] == (0.5, None, "done", -300)


def test_the_golden_files_use_every_coder() -> None:
    used = {tensor.coder for name in [*MAKE["OLD"], *MAKE["FILES"]] for tensor in inspect(FOLDER / name).tensors}
    assert used == set(CODERS)
