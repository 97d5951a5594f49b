"""Where networks come from: the zoo, the user's own functions, exported programs, packed files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.errors import CaptureError, FeatherweightError, RequestError, WeightsError
from featherweight.packaging import save
from featherweight.search.source import has_weights, load_model


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.fc(x.view(x.shape[0], -1))  # type: ignore[no-any-return]


def exported(path: Path, net: nn.Module, *, batch: int = 2, dynamic: bool = True) -> str:
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic else {}
    torch.export.save(torch.export.export(net, (torch.randn(batch, 1, 8, 8),), **shapes), path)  # type: ignore[arg-type]
    return str(path)


def test_seed_decides_the_weights_and_nothing_else() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load_model("zoo:mlp", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_zoo_nets_are_made_for_the_data() -> None:
    net = load_model("zoo:mlp", input_shape=(3, 5), classes=4)
    assert net(torch.zeros(2, 3, 5)).shape == (2, 4)
    assert not net.training


def test_users_function_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owned_source.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Linear(3, 2).train()\n"
        "def none(): return None\n"
        "def broken(): raise OSError('no file')\n"
        "def wants(size): return size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = load_model("owned_source:net")
    assert net(torch.zeros(1, 3)).shape == (1, 2)
    assert not net.training
    with pytest.raises(RequestError, match=r"must return a torch\.nn\.Module, got NoneType"):
        load_model("owned_source:none")
    with pytest.raises(RequestError, match="no file"):
        load_model("owned_source:broken")
    with pytest.raises(RequestError, match="without arguments"):
        load_model("owned_source:wants")
    with pytest.raises(RequestError, match="no function 'nett'"):
        load_model("owned_source:nett")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("zoo:lenet", "did you mean"),
        ("lenet5", "must be zoo:NAME"),
        ("", "must be zoo:NAME"),
        ("no_such_package:net", "no_such_package"),
        ("missing.fw", "missing.fw"),
        ("missing.pt2", "missing.pt2"),
    ],
)
def test_unknown_models_are_refused(spec: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=complaint):
        load_model(spec)


def test_exported_program_computes_the_same(tmp_path: Path) -> None:
    net, inputs = Small().eval(), torch.randn(5, 1, 8, 8)
    loaded = load_model(exported(tmp_path / "net.pt2", net))
    assert torch.equal(loaded(inputs), net(inputs))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("batch", [1, 4])
def test_program_for_one_batch_size_is_refused(tmp_path: Path, batch: int) -> None:
    spec = exported(tmp_path / "net.pt2", Small().eval(), batch=batch, dynamic=False)
    with pytest.raises(RequestError, match=rf"batches of any size.*x \({batch}, 1, 8, 8\).*dynamic_shapes"):
        load_model(spec)


def test_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"call \.eval\(\)"):
        load_model(exported(tmp_path / "net.pt2", Small().train()))
    with pytest.raises(RequestError, match="has dropout on"):
        load_model(exported(tmp_path / "net.pt2", nn.Sequential(nn.Dropout(), nn.Flatten(1), nn.Linear(64, 2)).train()))


@pytest.mark.parametrize("name", ["net.pt2", "net.fw"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no network")
    with pytest.raises(FeatherweightError, match=r"wrote|magic"):
        load_model(str(tmp_path / name))


def test_packed_file_computes_the_same(tmp_path: Path) -> None:
    net, inputs = Small().eval(), torch.randn(5, 1, 8, 8)
    save(net, tmp_path / "net.fw", example=inputs)
    assert torch.equal(load_model(str(tmp_path / "net.fw"))(inputs), net(inputs))


def test_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    net = load_model("zoo:mlp", input_shape=(4,), seed=1)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    loaded = load_model("zoo:mlp", weights=tmp_path / "weights.pt", input_shape=(4,), seed=2)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(WeightsError, match=r"fc1.weight: \(64, 4\) in the file, \(64, 5\) in the network"):
        load_model("zoo:mlp", weights=tmp_path / "weights.pt", input_shape=(5,))


@pytest.mark.parametrize(
    ("spec", "has"), [("net.pt2", True), ("a/b.fw", True), ("zoo:lenet5", False), ("package.module:net", False)]
)
def test_files_bring_their_weights(spec: str, has: bool) -> None:
    assert has_weights(spec) is has
