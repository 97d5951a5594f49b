"""What a search keeps on disk: networks come back exactly, and a folder is taken up only by the run it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.factorization import factorize
from featherweight.graph import to_module
from featherweight.graph.constraint import constrain, constrained, duplicate
from featherweight.pruning import plan_neurons, prune_weights
from featherweight.quantization import Grid, binarize_weights, cluster_weights, quantize_uniform
from featherweight.search.journal import Journal, Network

REQUEST = {"recipe": {"seed": 0, "shares": (0.5, 0.7)}, "data": "digits"}


def start() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)).eval()


def scrambled(net: nn.Module) -> nn.Module:
    """As after training: every number is another, buffers of batch norm too."""
    for name, parameter in net.named_parameters():
        parameter.data += torch.rand_like(parameter) if "step" in name else torch.randn_like(parameter)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer += torch.randn_like(buffer)
    return net


def gridded(net: nn.Module) -> nn.Module:
    """Its linear layer on a grid with a step for each output and group of inputs, its convolution on one with one step."""
    group = torch.arange(net[4].in_features) % 3
    constrain(net, "4.weight", Grid(torch.rand(10, 3) + 0.1, -8, 7, group))
    constrain(net, "0.weight", Grid(torch.tensor(0.3), -8, torch.tensor(3)))
    return net


def captured(net: nn.Module, example: torch.Tensor) -> nn.Module:
    """With weights and activations on grids, one of them frozen."""
    data = [(example, torch.zeros(2, dtype=torch.int64))]
    quantized = quantize_uniform(net, example, weight_bits=4, activation_bits=8, calibrate=data)
    quantized.get_parameter("4.bias").requires_grad_(False)
    return scrambled(quantized)


def networks() -> dict[str, Network]:
    example = torch.randn(2, 1, 8, 8)
    net = scrambled(duplicate(start()))
    plan = plan_neurons(net, example, sparsity=0.3)
    smaller = plan.apply(net)
    masked = prune_weights(smaller, sparsity=0.6)
    clustered = cluster_weights(masked, clusters=5)
    again = plan_neurons(clustered, example, sparsity=0.3)
    return {
        "plain": Network(net),
        "smaller": Network(smaller, (plan,)),
        "masked": Network(scrambled(masked), (plan,)),
        "clustered": Network(scrambled(clustered), (plan,)),
        "clustered then smaller": Network(scrambled(again.apply(clustered)), (plan, again)),
        "clustered then masked": Network(prune_weights(clustered, sparsity=0.8), (plan,)),
        "captured, activations quantized": Network(captured(net, example)),
        "captured, thin and binary": Network(binarize_weights(factorize(to_module(net, example), example, rank=2)), (plan,)),
        "masked then on a grid": Network(gridded(duplicate(masked)), (plan,)),
        "on a grid then smaller": Network(again.apply(gridded(duplicate(clustered))), (plan, again)),
    }


@pytest.mark.parametrize("kind", list(networks()))
def test_networks_come_back_exactly(tmp_path: Path, kind: str) -> None:
    network = networks()[kind]
    Journal.open(tmp_path / "run", REQUEST, resume=False).record({"step": 0}, {"current": network})
    taken_up = Journal.open(tmp_path / "run", REQUEST, resume=True)
    assert taken_up.entries == [{"step": 0}]
    back = taken_up.network("current", start())
    assert back is not None
    assert back.plans == network.plans
    expected, got = network.model.state_dict(), back.model.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[name]) and value.dtype == got[name].dtype for name, value in expected.items())
    chains = [{name: [type(c) for c in chain] for name, chain in constrained(n.model).items()} for n in (network, back)]
    assert chains[0] == chains[1]
    trained = [{name for name, p in n.model.named_parameters() if p.requires_grad} for n in (network, back)]
    assert trained[0] == trained[1]
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(network.model(inputs), back.model(inputs))


def test_an_empty_slot_is_none(tmp_path: Path) -> None:
    assert Journal.open(tmp_path / "run", REQUEST, resume=False).network("current", start()) is None


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal.open(None, REQUEST, resume=False)
    journal.record({"step": 0}, {"current": Network(start())})
    journal.close()
    assert journal.entries == [{"step": 0}]
    assert journal.epoch_checkpoint is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_networks_in_use_are_kept(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run", REQUEST, resume=False)
    journal.record(None, {"trained": Network(start())})
    for step in range(3):
        assert journal.epoch_checkpoint is not None
        journal.epoch_checkpoint.write_bytes(b"of this attempt")
        journal.record({"step": step}, {"base": Network(start()), "current": Network(start())})
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "base-3.pt", "current-3.pt", "journal.json", "trained-0.pt",
    ]  # fmt: skip
    journal.close()
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no run to resume"):
        Journal.open(tmp_path / "run", REQUEST, resume=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"request": {}, "entries": []}'])
def test_damaged_journals_are_refused(tmp_path: Path, content: str) -> None:
    Journal.open(tmp_path / "run", REQUEST, resume=False)
    (tmp_path / "run" / "journal.json").write_text(content)
    with pytest.raises(RequestError, match="no run to resume"):
        Journal.open(tmp_path / "run", REQUEST, resume=True)


def test_another_request_is_refused_by_name(tmp_path: Path) -> None:
    Journal.open(tmp_path / "run", REQUEST, resume=False)
    with pytest.raises(RequestError, match=r"something else \(data\)"):
        Journal.open(tmp_path / "run", {**REQUEST, "data": "mnist"}, resume=True)


@pytest.mark.parametrize("damage", ["missing", "cut short", "another network"])
def test_networks_that_do_not_come_back_are_refused(tmp_path: Path, damage: str) -> None:
    Journal.open(tmp_path / "run", REQUEST, resume=False).record(None, {"trained": Network(start())})
    file = tmp_path / "run" / "trained-0.pt"
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:100])
    other = nn.Linear(2, 2) if damage == "another network" else start()
    with pytest.raises(RequestError, match="start without --resume"):
        Journal.open(tmp_path / "run", REQUEST, resume=True).network("trained", other)


def test_a_new_run_clears_the_old_one(tmp_path: Path) -> None:
    Journal.open(tmp_path / "run", REQUEST, resume=False).record({"step": 0}, {"current": Network(start())})
    Journal.open(tmp_path / "run", REQUEST, resume=False)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["journal.json"]
    assert json.loads((tmp_path / "run" / "journal.json").read_text())["entries"] == []


def test_a_folder_that_is_no_checkpoint_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match=r"thesis\.txt"):
        Journal.open(tmp_path / "run", REQUEST, resume=False)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RequestError, match="checkpoint must be writable"):
        Journal.open(tmp_path / "run", REQUEST, resume=False)
