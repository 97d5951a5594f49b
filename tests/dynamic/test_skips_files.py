"""Networks with gates and routers as files, and in ONNX Runtime."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight.dynamic import (
    Cost,
    SkipNetwork,
    add_gates,
    add_policy,
    add_router,
    export_skips,
    load_dynamic,
    make_slimmable,
    save_dynamic,
)
from featherweight.dynamic.effort import EffortNetwork
from featherweight.errors import FormatError, RequestError
from featherweight.exporting import GatedSession
from featherweight.exporting.gated import write_parts
from featherweight.graph.capture import tensors_of
from featherweight.graph.program import ProgramModule
from featherweight.packaging import load, save
from tests.dynamic.exit_nets import Residual, samples


@functools.cache
def network(kind: str) -> EffortNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "routes":
            layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(600, 5)]
            net: EffortNetwork = add_router(make_slimmable(nn.Sequential(*layers), samples(2), widths=(0.5,)))
        else:
            net = (add_gates if kind == "gates" else add_policy)(Residual(), samples(2))
            for name in net.gate_tensors:
                nn.init.normal_(net.network.get_parameter(name))
            net.gating, net.temperature = "gumbel", 0.25
    net.price = 0.1
    net.set_costs({0.1: Cost(12.5, 1e-3), math.inf: Cost(3.0)})
    return net.eval()


@pytest.mark.parametrize("kind", ["gates", "policy", "routes"])
def test_a_file_gives_the_network_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    assert save_dynamic(net, tmp_path / "net.fw") == (tmp_path / "net.fw").stat().st_size
    loaded = load_dynamic(tmp_path / "net.fw")
    assert isinstance(loaded, EffortNetwork)
    assert type(loaded) is type(net)
    assert loaded.price == 0.1
    assert {price: loaded.cost(price) for price in loaded.choices()} == {price: net.cost(price) for price in net.choices()}
    x = samples(9)
    with torch.no_grad():
        for price in (0.1, 0.0, math.inf, -math.inf):
            before, after = net.spend(price, x), loaded.spend(price, x)
            assert torch.equal(before.answer, after.answer)
            assert torch.equal(before.taken, after.taken)
            assert torch.equal(before.macs, after.macs)
        *_, answer = load(tmp_path / "net.fw")(x)
        assert torch.equal(answer, net.answer_at(-math.inf, x))
    if isinstance(net, SkipNetwork) and isinstance(loaded, SkipNetwork):
        assert (loaded.branches, loaded.gating, loaded.temperature) == (net.branches, "gumbel", 0.25)
    save_dynamic(loaded, tmp_path / "again.fw")
    assert (tmp_path / "again.fw").read_bytes() == (tmp_path / "net.fw").read_bytes()


def test_gates_are_all_that_is_added(tmp_path: Path) -> None:
    plain = save(Residual(), tmp_path / "plain.fw", example=samples(2))
    assert save_dynamic(network("gates"), tmp_path / "net.fw") < plain + 1500


@pytest.mark.parametrize(
    "change",
    [
        {"branches": ["first.1.conv"]},
        {"branches": ["first.1.conv", "third"]},
        {"branches": 5},
        {"gating": "hard"},
        {"temperature": None},
        {"price": "low"},
        {"price": math.nan},
        {"costs": []},
        {"costs": [[1.0, 2.0]]},
        {"costs": [[-math.inf, 7, None]]},
    ],
)
def test_damaged_settings_are_said(change: dict[str, Any], tmp_path: Path) -> None:
    save_dynamic(network("gates"), tmp_path / "net.fw")
    file = load(tmp_path / "net.fw")
    tensors = tensors_of(file, file.program)
    settings = json.loads(bytes(tensors["_skips.effort"].tolist())) | change
    tensors["_skips.effort"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    save(ProgramModule(file.program, tensors), tmp_path / "bad.fw")
    with pytest.raises(FormatError, match="damaged"):
        load_dynamic(tmp_path / "bad.fw")


class Own(Residual):
    """One gate, in the middle of the network, for both branches: of all kinds of parts there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x = self.stem(x)
        logits = self.gate(x.mean((2, 3)))
        for one, two in (self.first, self.second):
            x = (two(one(x)) + x).relu()
        return logits, self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[SkipNetwork, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SkipNetwork(Own().eval(), ["first.1.conv", "second.1.conv"], samples(2))
    net.price = 0.1
    return net, export_skips(net, tmp_path_factory.mktemp("onnx") / "parts", samples(2))


def test_onnx_answers_as_the_network_does_at_every_price(exported: tuple[SkipNetwork, Path]) -> None:
    net, folder = exported
    session, x = GatedSession(folder), samples(9)
    assert session.price == 0.1
    mixed = 0
    with torch.no_grad():
        for price in (0.1, math.inf, -math.inf, *net.worth(x).median(0).values.tolist()):
            session.price = price
            spent = net.spend(price, x)
            mixed += int((spent.taken.any(0) & ~spent.taken.all(0)).any())
            torch.testing.assert_close(torch.from_numpy(session.run(x.numpy())), spent.answer, rtol=1e-4, atol=1e-5)
    assert mixed


def test_onnx_runs_no_branch_that_no_sample_takes(exported: tuple[SkipNetwork, Path]) -> None:
    session = GatedSession(exported[1])
    branches = [number for number, part in enumerate(session.parts) if part.skip is not None]
    assert len(branches) == 2
    for number in branches:
        session._runners[number] = None  # type: ignore[call-overload]
    session.price = math.inf
    assert session.run(samples(3).numpy()).shape == (3, 5)
    session.price = -math.inf
    with pytest.raises(TypeError):
        session.run(samples(3).numpy())


def test_damaged_parts_are_said(exported: tuple[SkipNetwork, Path], tmp_path: Path) -> None:
    _, folder = exported
    with pytest.raises(RequestError, match="must hold the parts"):
        GatedSession(tmp_path)
    plan = json.loads((folder / "parts.json").read_text())
    for wrong in ({"price": "low"}, {"parts": 5}, {"parts": [plan["parts"][0] | {"file": "../part_0.onnx"}]}):
        (tmp_path / "parts.json").write_text(json.dumps(plan | wrong))
        with pytest.raises(FormatError, match="damaged"):
            GatedSession(tmp_path)
    with pytest.raises(RequestError, match="can be written"):
        write_parts([], 0, 0.0, tmp_path / "parts.json")
