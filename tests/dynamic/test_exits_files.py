"""Networks with exits as files: nothing is lost, weights are stored once, and ONNX Runtime leaves early too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.dynamic import ExitNetwork, add_exits, export_exits, load_dynamic, save_dynamic
from featherweight.errors import FormatError, RequestError
from featherweight.exporting import StagedSession
from featherweight.graph.program import ProgramModule
from featherweight.packaging import inspect, load, save, save_tensors
from tests.dynamic.exit_nets import NETS, samples


@pytest.fixture(scope="module")
def net() -> ExitNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        return add_exits(chain.eval(), torch.zeros(1, 6), at=["0"])


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    make, at = NETS["chain"]
    net = add_exits(make().eval(), samples(2), at=at, confidence="margin")
    net.thresholds = (0.3, math.inf)
    net.time(samples(1), batch=2, seconds=1e-3)
    size = save_dynamic(net, tmp_path / "exits.fw")
    again = load_dynamic(tmp_path / "exits.fw")
    assert again.thresholds == net.thresholds
    assert again.confidence == "margin"
    assert again.timing == net.timing
    assert not again.training
    for name, tensor in net.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    x = samples(9)
    assert torch.equal(again(x), net(x))
    assert all(torch.equal(a, b) for a, b in zip(load(tmp_path / "exits.fw")(x), net.network(x), strict=True))
    assert size < save(net.network, tmp_path / "plain.fw") + 350
    assert size == (tmp_path / "exits.fw").stat().st_size == inspect(tmp_path / "exits.fw").total_bytes


def test_a_network_of_several_answers_needs_no_settings(net: ExitNetwork, tmp_path: Path) -> None:
    save(net.network, tmp_path / "answers.fw")
    again = load_dynamic(tmp_path / "answers.fw")
    assert again.thresholds == (math.inf,)
    assert again.timing is None
    save(nn.Linear(3, 2), tmp_path / "one.fw", example=torch.zeros(1, 3))
    with pytest.raises(FormatError, match="not dynamic"):
        load_dynamic(tmp_path / "one.fw")
    save_tensors({"a": torch.zeros(1)}, tmp_path / "none.fw")
    with pytest.raises(FormatError, match="no network"):
        load_dynamic(tmp_path / "none.fw")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", torch.tensor([255], dtype=torch.uint8)),
        ("confidence", torch.tensor([97], dtype=torch.uint8)),
        ("confidence", torch.tensor([1e9])),
        ("thresholds", torch.zeros(2)),
        ("thresholds", torch.tensor(0.5)),
        ("thresholds", torch.tensor([-1.0])),
        ("seconds", torch.zeros(2, 3)),
        ("seconds", torch.zeros(3, 2)),
        ("batch", torch.zeros(2)),
    ],
)
def test_damaged_settings(net: ExitNetwork, tmp_path: Path, name: str, value: torch.Tensor) -> None:
    timed = load_exits_of(net, tmp_path)
    tensors = timed.state_dict() | {f"exit_settings.{name}": value}
    save(ProgramModule(timed.program, tensors), tmp_path / "damaged.fw")
    with pytest.raises(FormatError, match=r"damaged\.fw' is damaged: its settings"):
        load_dynamic(tmp_path / "damaged.fw")


def load_exits_of(net: ExitNetwork, folder: Path) -> ProgramModule:
    """What the file of the network holds, times included."""
    copy = ExitNetwork(net.network)
    copy.time(torch.zeros(1, 6), seconds=1e-4)
    save_dynamic(copy, folder / "whole.fw")
    return load(folder / "whole.fw")


@pytest.fixture(scope="module")
def exported(net: ExitNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_exits(net, tmp_path_factory.mktemp("stages") / "net", torch.zeros(1, 6))


def test_onnx_runtime_leaves_where_the_network_does(net: ExitNetwork, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = StagedSession(exported)
    assert session.thresholds == [math.inf]
    ran: list[tuple[int, int]] = []
    step = StagedSession._step

    def counting(self: StagedSession, number: int, state: Any) -> Any:
        ran.append((number, len(next(iter(state.values())))))
        return step(self, number, state)

    monkeypatch.setattr(StagedSession, "_step", counting)
    x = torch.randn(9, 6)
    answers = [answer.detach() for answer in net.network(x)]
    sure = answers[0].softmax(1).amax(1)
    for threshold, staying in ((0.0, 0), (math.inf, 9), (2.0, 9), (sure.sort().values[3:5].mean().item(), 4)):
        session.thresholds = [threshold]
        wanted = torch.where((sure >= threshold)[:, None], *answers)
        ran.clear()
        np.testing.assert_allclose(session.run(x.numpy()), wanted.numpy(), rtol=1e-5, atol=1e-6)
        assert ran == [(0, 9)] + [(1, staying)] * (staying > 0)
    for choice in net.choices():
        ran.clear()
        np.testing.assert_allclose(session.run_to(choice, x.numpy()), answers[choice].numpy(), rtol=1e-5, atol=1e-6)
        assert [number for number, _ in ran] == list(range(choice + 1))
    with pytest.raises(RequestError, match="one of 0 to 1"):
        session.run_to(2, x.numpy())
    session.thresholds = []
    with pytest.raises(RequestError, match="thresholds must be 1 numbers"):
        session.run(x.numpy())


def test_folders_that_hold_no_stages(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="must hold the stages"):
        StagedSession(tmp_path)
    plan = json.loads((exported / "stages.json").read_text())
    for wrong in (
        {},
        {"stages": 3},
        {**plan, "thresholds": ["x"]},
        {**plan, "stages": [{**plan["stages"][0], "file": "../a"}]},
    ):
        (tmp_path / "stages.json").write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match="is damaged"):
            StagedSession(tmp_path)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        StagedSession(tmp_path)


def test_confidences_that_look_back_are_not_exported(net: ExitNetwork, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'agreement' cannot be exported"):
        export_exits(ExitNetwork(net.network, confidence="agreement"), tmp_path / "net", torch.zeros(1, 6))
    assert not (tmp_path / "net").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="must go into a folder"):
        export_exits(net, tmp_path / "file", torch.zeros(1, 6))
