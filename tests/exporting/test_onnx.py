"""An exported network gives what the network gives, quietly, and appears whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from featherweight.errors import CaptureError, FeatherweightError, RequestError
from featherweight.exporting import onnx as exporting
from featherweight.exporting.onnx import open_session, resize_batch, to_onnx, translate
from featherweight.graph.capture import capture, to_module
from featherweight.graph.constraint import Constraint, constrain


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        x = x + self.second(x)
        return self.head(self.drop(x.mean(dim=(2, 3))))


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
        total = self.layer(left) + right
        return {"total": total, "best": (total.argmax(1),)}


class Half(Constraint):
    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original * torch.tensor([0.0, 1.0, 0.0, 1.0])

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def residual() -> Residual:
    """A network in training mode whose batch norm has seen data, so that training and eval mode differ."""
    net = Residual()
    for _ in range(3):
        net(torch.randn(8, 3, 6, 6) * 3 + 1)
    return net


def run(content: bytes, **feeds: torch.Tensor) -> list[np.ndarray]:
    return open_session(content).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.mark.parametrize("form", [lambda net, x: net, to_module], ids=["module", "program"])
def test_outputs_agree_at_any_batch_size(form: Callable[[nn.Module, torch.Tensor], nn.Module], tmp_path: Path) -> None:
    net = residual()
    path = to_onnx(form(net, torch.randn(2, 3, 6, 6)), tmp_path / "net.onnx", torch.randn(2, 3, 6, 6))
    net.eval()
    for batch in (1, 5):
        image = torch.randn(batch, 3, 6, 6)
        np.testing.assert_allclose(run(path.read_bytes(), image=image)[0], net(image).detach(), rtol=1e-4, atol=1e-5)


def test_file_is_valid_named_and_self_contained(tmp_path: Path) -> None:
    path = to_onnx(residual(), tmp_path / "net.onnx", torch.randn(1, 3, 6, 6))
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_several_inputs_and_outputs() -> None:
    net = TwoInTwoOut()
    content = translate(net, (torch.randn(2, 4), torch.randn(2, 3)))
    graph = onnx.load_from_string(content).graph
    assert [value.name for value in graph.input] == ["left", "right"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]
    left, right = torch.randn(6, 4), torch.randn(6, 3)
    total, best = run(content, left=left, right=right)
    np.testing.assert_allclose(total, net(left, right)["total"].detach(), rtol=1e-5, atol=1e-6)
    assert best.tolist() == net(left, right)["best"][0].tolist()


def test_constraints_are_folded_and_the_model_stays_as_it_was() -> None:
    net = nn.Linear(4, 2)
    constrain(net, "weight", Half())
    names, training = list(net.state_dict()), net.training
    content = translate(net, torch.ones(1, 4))
    x = torch.randn(3, 4)
    np.testing.assert_allclose(run(content, input=x)[0], net(x).detach(), rtol=1e-5, atol=1e-6)
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer if len(t.dims) == 2]
    assert [np.count_nonzero(weight) for weight in stored] == [4]
    assert (list(net.state_dict()), net.training) == (names, training)


def test_export_is_silent(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    level = logging.getLogger("torch.onnx").level
    translate(residual(), torch.randn(2, 3, 6, 6))
    captured = capfd.readouterr()
    logged = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert (captured.out, captured.err, logged, list(recwarn)) == ("", "", [], [])
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.parametrize("where", ["missing/net.onnx", ""])
def test_unwritable_path_is_found_before_the_export(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "translate", lambda *_: pytest.fail("exported before looking at the path"))
    with pytest.raises(RequestError, match="must be writable"):
        to_onnx(nn.Linear(4, 2), tmp_path / where, torch.zeros(1, 4))
    assert list(tmp_path.iterdir()) == []


def test_whoever_reads_the_old_file_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(exporting, "translate", lambda *_: b"new")
    with path.open("rb") as reader:
        to_onnx(nn.Linear(4, 2), path, torch.zeros(1, 4))
        assert (reader.read(), path.read_bytes()) == (b"old", b"new")


def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(exporting, "translate", lambda *_: b"content")
    with pytest.raises(RequestError, match="No space left on device"):
        to_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", torch.zeros(1, 4))
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    other = translate(nn.Linear(4, 2), torch.zeros(1, 4))
    monkeypatch.setattr(exporting, "_export", lambda net: other)  # another network's file: what a wrong export would be
    with pytest.raises(FeatherweightError, match=r"for 'output' at batch size 1 they differ by up to [0-9.]+"):
        to_onnx(nn.Linear(4, 2), path, torch.randn(1, 4))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.onnx", b"old")]


def test_check_finds_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = translate(nn.Linear(4, 3), torch.zeros(1, 4))
    monkeypatch.setattr(exporting, "_export", lambda net: other)
    with pytest.raises(FeatherweightError, match=r"it gives \(1, 3\) torch.float32 and the network \(1, 2\)"):
        translate(nn.Linear(4, 2), torch.randn(1, 4))


@pytest.mark.parametrize(
    ("got", "want", "agree"),
    [
        ([1.0, 1000.0], [1.3, 1000.0], True),  # √ε · 1000 = 0.345
        ([1.0, 1000.0], [1.4, 1000.0], False),
        ([float("nan"), 1.0], [float("nan"), 1.0], True),
        ([float("nan"), 1.0], [1.0, 1.0], False),
        ([5.0, float("inf")], [1.0, float("inf")], False),
        ([float("inf")], [float("inf")], True),
        ([0.0], [1e-30], False),
    ],
)
def test_tolerance(got: list[float], want: list[float], agree: bool) -> None:
    if agree:
        exporting._compare(torch.tensor(got), torch.tensor(want), "here")
    else:
        with pytest.raises(FeatherweightError, match="here"):
            exporting._compare(torch.tensor(got), torch.tensor(want), "here")


def test_integers_must_be_equal() -> None:
    with pytest.raises(FeatherweightError, match="differ by up to 1 "):
        exporting._compare(torch.tensor([1_000_000]), torch.tensor([1_000_001]), "here")


def test_a_network_beyond_two_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_LARGEST", 4 * 10 - 1)
    with pytest.raises(RequestError, match="must fit in 2 GB, got 40 bytes"):
        translate(nn.Linear(4, 2), torch.zeros(1, 4))


def test_a_network_that_cannot_be_captured() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError):
        translate(Branch(), torch.ones(1, 2))


def test_resize_batch_repeats_and_cuts() -> None:
    program = capture(nn.Flatten(), torch.zeros(1, 1, 1))
    x = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
    assert resize_batch(program, x, 5)[0].flatten().tolist() == [1, 2, 3, 1, 2]
    assert resize_batch(program, x, 2)[0].flatten().tolist() == [1, 2]


def test_threads_below_one() -> None:
    with pytest.raises(RequestError, match="threads must be at least 1, got 0"):
        open_session(b"", threads=0)


def test_content_that_is_no_network() -> None:
    with pytest.raises(FeatherweightError, match="cannot run this network"):
        open_session(b"nonsense")


class Windowed(nn.Module):
    """Attention over five axes (within windows), or three; what it gives is transposed and viewed."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes, self.project = axes, nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        if self.axes == 3:
            q, k, v = self.project(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        q, k, v = self.project(x).view(batch, 3, 4, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril())
        return mixed.transpose(2, 3).reshape(batch, 12, 8)


@pytest.mark.parametrize("axes", [3, 5])
def test_attention_of_any_number_of_axes(axes: int) -> None:
    net, x = Windowed(axes), torch.randn(2, 12, 8)
    content = translate(net, x)
    with torch.no_grad():
        expected = net(x)
    (found,) = open_session(content).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected)
