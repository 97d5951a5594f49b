"""Weights from files: all of them, or an error that lists what does not fit, and nothing changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featherweight.errors import WeightsError
from featherweight.training.weights import check_finite, load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


SAVERS: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "a.safetensors": lambda state, path: save_file(state, path),
    "a.pt": lambda state, path: torch.save(state, path),
    "a.pth": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "b.pt": lambda state, path: torch.save({"model": state, "optimizer": {}}, path),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", SAVERS)
def test_loading_inverts_saving(tmp_path: Path, name: str) -> None:
    source, target = network(), network()
    source[1].running_mean += 5
    SAVERS[name](source.state_dict(), tmp_path / name)
    load_weights(target, tmp_path / name)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("name", SAVERS)
def test_misfits_are_listed_and_nothing_changes(tmp_path: Path, name: str) -> None:
    target = network()
    before = state(target)
    wrong = state(network())
    wrong["2.weight"] = torch.zeros(7, 4)
    wrong["extra"] = wrong.pop("0.bias")
    SAVERS[name](wrong, tmp_path / name)
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / name)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        *("  missing:", "    0.bias"),
        *("  unexpected:", "    extra"),
        *("  of another shape:", "    2.weight: (7, 4) in the file, (2, 4) in the network"),
    ]
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save({f"t{i:02}": torch.zeros(1) for i in range(13)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError) as caught:
        load_weights(nn.Sequential(), tmp_path / "a.pt")
    assert str(caught.value).splitlines()[-3:] == ["    t08", "    t09", "    and 3 more"]


def test_not_finite_weights_are_named_and_nothing_changes(tmp_path: Path) -> None:
    target = network()
    before = state(target)
    bad = state(network())
    bad["0.weight"][0, :2] = math.nan
    bad["1.running_var"][3] = -math.inf
    torch.save(bad, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"(?s)a\.pt holds NaN or infinity.*0\.weight: 2 of 12.*1\.running_var: 1 of 4"):
        load_weights(target, tmp_path / "a.pt")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_other_float_types_are_converted(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}, tmp_path / "a.pt")
    load_weights(target, tmp_path / "a.pt")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.half().float())


class Trap:
    """A pickle of it would run code."""

    def __reduce__(self) -> Any:
        return print, ("the file ran code",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.pt", None, "there is no file"),
        ("a.bin", b"", r"from \.safetensors, \.pt and \.pth files, got .*a\.bin"),
        ("a.pt", b"", "cannot be read as weights"),
        ("a.pt", b"garbage", "cannot be read as weights"),
        ("a.safetensors", b"garbage", "cannot be read as weights"),
        ("a.pt", {"w": Trap()}, "cannot be read as weights"),
        ("a.pt", [torch.zeros(1)], "must hold a state dict"),
        ("a.pt", {"w": 3}, "must hold a state dict"),
        ("a.pt", {"state_dict": {"w": "text"}}, "must hold a state dict"),
    ],
)
def test_unusable_files_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(WeightsError, match=message):
        load_weights(network(), tmp_path / name)
    assert capsys.readouterr().out == ""


def test_check_finite() -> None:
    model = network()
    check_finite(model)
    model[2].bias.data[1] = math.inf
    with pytest.raises(WeightsError, match=r"(?s)Sequential holds NaN or infinity.*2\.bias: 1 of 2"):
        check_finite(model)
