"""Slimmable networks as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.dynamic.files import load_dynamic, save_dynamic
from featherweight.dynamic.sandwich import recalibrate, tune_widths
from featherweight.dynamic.width_files import export_widths
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable
from featherweight.errors import FormatError
from featherweight.exporting.onnx import open_session
from featherweight.graph.capture import tensors_of
from featherweight.graph.program import ProgramModule
from featherweight.nets import vit
from featherweight.packaging import load, save
from featherweight.training import Tuning

EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["switchable", "universal", "heads"])
def net(request: pytest.FixtureRequest) -> SlimmableNetwork:
    torch.manual_seed(0)
    data = [(EXAMPLE, torch.arange(4) % 3)]
    if request.param == "heads":
        model = vit(input_shape=(1, 8, 8), classes=3, channels=16, depth=1, heads=2, patch=4)
        return make_slimmable(model, EXAMPLE, widths=(0.5,), granularity="head").eval()
    made = make_slimmable(network(), EXAMPLE, widths=(0.5,), switchable=request.param == "switchable")
    tune_widths(made, data, Tuning())
    recalibrate(made, data)
    made.add("tall", (3, 32))
    made.time(EXAMPLE, seconds=0.001)
    return made.eval()


def test_a_file_gives_the_network_back_bit_for_bit(net: SlimmableNetwork, tmp_path: Path) -> None:
    assert save_dynamic(net, tmp_path / "net.fw") == (tmp_path / "net.fw").stat().st_size
    loaded = load_dynamic(tmp_path / "net.fw")
    assert loaded.choices() == net.choices()
    assert [loaded.cost(choice) for choice in net.choices()] == [net.cost(choice) for choice in net.choices()]
    assert (loaded.switchable, loaded.unit, loaded.training) == (net.switchable, net.unit, False)
    state = loaded.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        for choice in net.choices():
            assert torch.equal(loaded.at_width(choice)(EXAMPLE), net.at_width(choice)(EXAMPLE))
    save_dynamic(loaded, tmp_path / "again.fw")
    assert (tmp_path / "again.fw").read_bytes() == (tmp_path / "net.fw").read_bytes()


def test_any_reader_has_the_full_network(net: SlimmableNetwork, tmp_path: Path) -> None:
    save_dynamic(net, tmp_path / "net.fw")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.fw")(EXAMPLE), net(EXAMPLE))


def test_shared_weights_are_in_the_file_once(tmp_path: Path) -> None:
    net = make_slimmable(network(), EXAMPLE)
    one, all_four = save(net.full, tmp_path / "full.fw"), save_dynamic(net, tmp_path / "net.fw")
    norms = sum(4 * t.numel() for name, t in net.state_dict().items() if name.startswith("own."))
    assert one < all_four < one + norms + 1500


def test_each_width_s_onnx_answers_as_it_does(tmp_path: Path) -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.5,)).eval()
    files = export_widths(net, tmp_path / "onnx")
    assert tuple(files) == net.choices()
    assert files[0.5].name == "width-0.5.onnx"
    for choice, path in files.items():
        session = open_session(path.read_bytes())
        (answer,) = session.run(None, {session.get_inputs()[0].name: EXAMPLE.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(answer), net.at_width(choice)(EXAMPLE), rtol=1e-4, atol=1e-5)


def test_a_file_without_widths_is_named(tmp_path: Path) -> None:
    save(network(), tmp_path / "net.fw", example=EXAMPLE)
    with pytest.raises(FormatError, match="not dynamic"):
        load_dynamic(tmp_path / "net.fw")


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 2},
        {"unit": "finger"},
        {"choices": [[0.5, [99, 16], None]]},
        {"choices": [[0.5, [0, 16], None]]},
        {"choices": [[0.5, [16], None]]},
        {"choices": [[0.5, "ab", None]]},
        {"choices": [[[0.5], [8, 8], None]]},
        {"choices": [[7.5, [16, 16], None]]},
        {"choices": [[0.5, [8, 16], None], [0.5, [8, 16], None]]},
        {"choices": [[0.5, [8, 8], "fast"]]},
        {"choices": [[0.25, [8, 8], None], [1.0, [32, 32], None]]},
        {"choices": 5},
        {"choices": None},
    ],
)
def test_a_damaged_table_is_said(change: dict[str, Any], tmp_path: Path) -> None:
    net = make_slimmable(network(), EXAMPLE, widths=(0.5,))
    save_dynamic(net, tmp_path / "net.fw")
    file = load(tmp_path / "net.fw")
    tensors = tensors_of(file, file.program)
    table = json.loads(bytes(tensors["_widths.table"].tolist())) | change
    tensors["_widths.table"] = torch.tensor(list(json.dumps(table).encode()), dtype=torch.uint8)
    save(ProgramModule(file.program, tensors), tmp_path / "bad.fw")
    with pytest.raises(FormatError):
        load_dynamic(tmp_path / "bad.fw")
