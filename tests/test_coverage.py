"""benchmarks/coverage: the parts that a wrong count could hide in. They need neither timm nor Torch-Pruning."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parents[1] / "benchmarks" / "coverage"


Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Imports a module of the benchmark, whose modules import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module


class Filters(nn.Module):
    """Standardised filters (as in weight standardisation), then a softmax over channels in its own matrix, then a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, channels)
        self.second = nn.Linear(channels, 6)
        self.key, self.norm, self.last = nn.Linear(5, channels), nn.LayerNorm(channels), nn.Linear(channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(self.second.weight[None], None, None, training=True).view_as(self.second.weight)
        standardised = F.linear(self.first(x).relu(), weight)
        scores = self.key(x).transpose(1, 2) @ self.first(x)
        mixed = (self.first(x) @ scores.softmax(-1).transpose(1, 2)).relu()
        return standardised.mean(-1, keepdim=True) + self.last(self.norm(mixed))


def _smaller(net: Filters, channels: list[int]) -> Filters:
    """`net` with only these channels, cut by hand."""
    small = Filters(len(channels))
    state = {}
    for name, tensor in net.state_dict().items():
        if name.startswith(("first", "key", "norm")):
            tensor = tensor[channels]
        elif name in ("second.weight", "last.weight"):
            tensor = tensor[:, channels]
        state[name] = tensor
    small.load_state_dict(state)
    return small.double()


def _kept(channels: list[int]) -> dict[str, dict[int, list[int]]]:
    rows = ("first.weight", "first.bias", "key.weight", "key.bias", "norm.weight", "norm.bias")
    return {**{name: {0: channels} for name in rows}, **{name: {1: channels} for name in ("second.weight", "last.weight")}}


def test_a_hand_cut_network_is_what_the_independent_mask_gives(load: Load) -> None:
    torch.manual_seed(0)
    net, inputs = Filters(8), torch.randn(4, 7, 5).double()
    load("zoo").redraw(net, seed=1)
    right, wrong = (_smaller(net, channels)(inputs).detach() for channels in ([0, 2, 3, 7], [0, 2, 4, 7]))
    distance = load("masking").difference_from_masked
    assert distance(net, _kept([0, 2, 3, 7]), right, inputs, enough=1e-9) < 1e-9
    assert distance(net, _kept([0, 2, 3, 7]), wrong, inputs, enough=1e-9) > 1e-2


def test_nan_is_no_agreement(load: Load) -> None:
    checks = load("checks")
    assert checks.difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) != 0
    with pytest.raises(checks.Wrong, match="differ"):
        checks.check_same("a and b", float("nan"), 1e-3)


def test_redrawn_weights_hide_nothing(load: Load) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(4))
    scale, zeros = nn.Parameter(torch.full((8,), 1e-6)), nn.Parameter(torch.zeros(1, 4, 8))
    net[0].register_parameter("gamma", scale)
    net[0].register_parameter("position", zeros)
    nn.init.zeros_(net[1].weight)
    load("zoo").redraw(net, seed=0)
    for parameter in net.parameters():
        assert (parameter != parameter.flatten()[0]).any()
    for gain in (scale, net[1].weight, net[2].weight, net[1].running_var):
        assert gain.min() >= 0.5
    assert net[1].running_mean.abs().min() > 0


def test_a_record_says_how_far_it_came(load: Load, tmp_path: Path) -> None:
    module = load("record")
    record = module.Record(tmp_path / "net.json", name="net")
    with record.stage("plan", needed=True):
        pass

    def fail() -> None:
        with record.stage("apply", needed=True):
            assert json.loads(record.path.read_text())["verdict"] == "unfinished"
            raise ValueError("it does not fit")

    with pytest.raises(module.Stopped):
        fail()
    record.facts["stage"] = "end"
    record.write()
    written = json.loads(record.path.read_text())
    assert written["verdict"] == "apply_fail"
    assert written["failed"] == {"apply": "ValueError: it does not fit"}
    assert set(written["seconds"]) == {"plan", "apply"}
    assert module.verdict_of({**written, "failed": {}}) == "ok"
    assert module.verdict_of({**written, "killed": "time"}) == "timeout"


def test_the_page_counts_what_the_records_say(load: Load) -> None:
    report, zoo = load("report"), load("zoo")
    assert [len(zoo.entries(source)) for source in ("all", "timm", "torchvision")] == [178, 98, 80]
    times = {stage: {"wall": 4.0, "cpu": 2.0} for stage in ("plan", "apply", "graph", "prune")}
    good = {"verdict": "ok", "seconds": times, "gone": 0.7, "failed": {}, "returns": "program"}
    good |= {"difference": 1e-9, "independent_difference": 1e-9, "mask_changes": 0.9}
    bad = {"verdict": "prune_fail", "seconds": times, "failed": {"prune": "IndexError: a | b"}}
    names = ["torchvision/resnet18", "torchvision/vgg11"]
    text = report.page(
        {"versions": {"torch": ["2"]}, "ours": dict.fromkeys(names, good), "theirs": {names[0]: good, names[1]: bad}}
    )
    assert "| torchvision classification | featherweight | 2 of 80 | **2** | – |" in text
    assert "| torchvision classification | Torch-Pruning | 2 of 80 | **1** | 1 prune_fail |" in text
    assert "| featherweight | plan | 2.00 | 2.00 | 2.00 |" in text
    assert "- `torchvision/vgg11`: prune_fail; IndexError: a \\| b" in text
