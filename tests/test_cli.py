"""The command: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from featherweight.cli import app
from featherweight.nets import mlp
from featherweight.packaging import inspect, load, save
from featherweight.training import load_data
from tests.search.conftest import no_export  # noqa: F401

DONE, FAILED, WRONG, NOT_MET, INTERRUPTED = 0, 1, 2, 3, 130

QUICK = """
training = { epochs = 2, learning_rate = 1e-2 }
[[step]]
kind = "prune-neurons"
sparsity = 0.3
rounds = 1
tuning = { epochs = 1 }
[[step]]
kind = "cluster-weights"
clusters = [8]
tuning = { epochs = 1 }
"""

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise, self.fc = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6 * 16, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.fc((x + self.depthwise(x)).flatten(1))


def loader(batches=2, classes=3, size=4):
    torch.manual_seed(0)
    inputs = torch.randn(batches * 32, 1, size, size)
    targets = inputs.flatten(1)[:, :classes].argmax(1)
    return list(zip(inputs.split(32), targets.split(32)))


def data():
    return loader(6), loader(2), loader(2)


def four_classes():
    return loader(6), loader(2, classes=4), loader(2)


def breaks_later():
    class Loader(list):
        def __iter__(self):
            self.passes = getattr(self, "passes", 0) + 1
            if self.passes > 2:
                raise OverflowError("the disk is gone")
            return super().__iter__()
    return loader(6), Loader(loader(2)), loader(2)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own, with a recipe, the user's own module, and a list of what was there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.toml").write_text(QUICK)
    (tmp_path / "owned_by_user.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "owned_by_user", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.output
    return result


def compress(*arguments: str, model: str = "zoo:mlp", data: str = "digits") -> Result:
    return run("compress", model, "--data", data, "--recipe", "quick.toml", "--out", "net.fw", *arguments)


def test_a_network_of_the_zoo_from_start_to_end(folder: Path) -> None:
    """Compress, measure, inspect and export, with nothing replaced: the numbers agree with each other and with the file."""
    result = compress("--budget", "accuracy_drop=90pp")
    assert result.exit_code == DONE, result.output
    assert "zoo:mlp has no weights: it is trained first, for 2 epochs" in result.stderr
    assert "before" in result.stdout
    assert "smaller" in result.stdout
    report = json.loads((folder / "net.report.json").read_text())
    size = (folder / "net.fw").stat().st_size
    assert report["after"]["size_bytes"] == size < report["before"]["size_bytes"]
    assert f"net.fw: {size} bytes; the report is net.report.json" in result.stdout

    measured = json.loads(run("measure", "net.fw", "--data", "digits", "--json").stdout)
    same = ("accuracy", "size_bytes", "parameters", "nonzero_parameters", "macs")
    assert {name: measured[name] for name in same} == {name: report["after"][name] for name in same}
    assert measured["latency_s"] > 0

    assert f"{size:,}" in run("inspect", "net.fw").stdout
    assert inspect("net.fw").total_bytes == size

    result = run("export", "net.fw", "--to", "onnx", "net.onnx")
    assert result.stdout == f"net.onnx: {(folder / 'net.onnx').stat().st_size} bytes\n"
    import onnxruntime

    inputs = load_data("digits").example
    (outputs,) = onnxruntime.InferenceSession("net.onnx").run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(outputs, load("net.fw")(inputs).detach().numpy(), atol=1e-4)


@pytest.mark.usefixtures("no_export")
def test_the_users_own_net_and_data() -> None:
    result = compress("--budget", "accuracy_drop=90pp", model="owned_by_user:Net", data="owned_by_user:data")
    assert result.exit_code == DONE, result.output
    assert load("net.fw")(torch.zeros(5, 1, 4, 4)).shape == (5, 3)


@pytest.mark.usefixtures("no_export")
def test_exported_program_is_not_trained_first() -> None:
    net = mlp(input_shape=(1, 8, 8)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), "net.pt2")
    result = compress("--budget", "accuracy_drop=90pp", model="net.pt2")
    assert result.exit_code == DONE, result.output
    assert "trained first" not in result.stderr


@pytest.mark.usefixtures("no_export")
def test_weights_are_taken_as_they_are(folder: Path) -> None:
    net = mlp(input_shape=(1, 8, 8))
    torch.save(net.state_dict(), "weights.pt")
    (folder / "quick.toml").write_text("step = []\n" + QUICK.partition("[[")[0])
    result = compress("--weights", "weights.pt")
    assert result.exit_code == DONE, result.output
    assert "trained first" not in result.stderr
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(load("net.fw")(inputs), net(inputs))


@pytest.mark.usefixtures("no_export")
def test_a_budget_that_cannot_be_met(folder: Path) -> None:
    result = compress("--budget", "size=10B")
    assert result.exit_code == NOT_MET
    size = (folder / "net.fw").stat().st_size
    assert "the budget could not be met" in result.stderr
    assert f"size is {size} bytes, {size - 10} over the limit of 10" in result.stderr
    assert "accuracy may fall by 0.5 pp unless the budget names accuracy_drop" in result.stderr
    assert json.loads((folder / "net.report.json").read_text())["unmet"]


def infinite_weights() -> None:
    state = mlp(input_shape=(1, 8, 8)).state_dict()
    state["fc2.bias"][3] = torch.nan
    torch.save(state, "weights.pt")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["compress", "zoo:mlpp", "--data", "digits", "--out", "net.fw"], "did you mean 'mlp'"),
        (["compress", "zoo:mlp", "--data", "digit", "--out", "net.fw"], "data must be one of digits"),
        (["compress", "zoo:lenet5", "--data", "digits", "--out", "net.fw"], "at least"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.bin"], "must end in .fw"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "quick.toml/net.fw"], "writable"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "missing/net.fw"], "writable"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--budget", "bytes=1"], "got 'bytes'"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--budget", "size=1,size=2"], "contradicts itself"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--budget", "size=1e999"], "finite"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--recipe", "missing.toml"], "missing.toml"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--weights", "missing.pt"], "missing.pt"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--weights", "weights.pt"], "fc2.bias"),
        (["compress", "zoo:resnet20", "--data", "digits", "--out", "net.fw", "--weights", "weights.pt"], "fc2.bias"),
        (["compress", "zoo:mlp", "--data", "digits", "--out", "net.fw", "--resume"], "no run to resume"),
        (["compress", "owned_by_user:Net", "--data", "digits", "--out", "net.fw"], "does not fit Net"),
        (["compress", "owned_by_user:Net", "--data", "owned_by_user:four_classes", "--out", "net.fw"], "at least 4"),
        (["compress", "owned_by_user:loader", "--data", "digits", "--out", "net.fw"], "torch.nn.Module"),
        (["compress", "zoo:mlp", "--data", "digits"], "--out"),
        (["measure", "missing.fw", "--data", "digits"], "missing.fw"),
        (["measure", "zoo:mlp", "--data", "digits", "--threads", "0"], "threads"),
        (["inspect", "missing.fw"], "missing.fw"),
        (["inspect", "quick.toml"], ".fw file"),
        (["export", "net.fw", "--to", "onyx", "net.onnx"], "did you mean 'onnx'"),
        (["export", "missing.fw", "net.onnx"], "missing.fw"),
    ],
)  # fmt: skip
def test_wrong_requests(folder: Path, arguments: list[str], complaint: str) -> None:
    infinite_weights()
    before = sorted(folder.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == WRONG, result.output
    assert complaint in result.stderr
    assert sorted(folder.rglob("*")) == before, "nothing half-written"


@pytest.mark.usefixtures("no_export")
def test_training_that_breaks_at_once(folder: Path) -> None:
    (folder / "quick.toml").write_text("training = { epochs = 2, learning_rate = 1e30 }")
    before = sorted(folder.rglob("*"))
    result = compress()
    assert result.exit_code == WRONG
    assert "finite" in result.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("no_export")
def test_a_fault_in_the_users_code_is_named_with_its_line() -> None:
    result = compress(model="owned_by_user:Net", data="owned_by_user:breaks_later")
    assert result.exit_code == FAILED
    assert "OverflowError" in result.stderr
    assert "owned_by_user.py:" in result.stderr
    assert "the disk is gone" in result.stderr


def test_unwritable_export(folder: Path) -> None:
    save(nn.Linear(2, 2), "net.fw", example=torch.zeros(1, 2))
    (folder / "taken").mkdir()
    assert run("export", "net.fw", "taken").exit_code == WRONG
    assert run("export", "net.fw", "missing/net.onnx").exit_code == WRONG
    assert not (folder / "missing").exists()


@pytest.mark.usefixtures("no_export")
def test_interrupted_and_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.reporting.progress import RichProgress

    show = RichProgress.__call__

    def interrupt(self: RichProgress, task: str, done: int, total: int, note: str = "") -> None:
        if task.startswith("cluster-weights"):
            raise KeyboardInterrupt
        show(self, task, done, total, note)

    with monkeypatch.context() as patch:
        patch.setattr(RichProgress, "__call__", interrupt)
        result = compress("--budget", "accuracy_drop=90pp")
    assert result.exit_code == INTERRUPTED
    assert "--resume goes on" in result.stderr
    assert (folder / "net.fw.checkpoint").is_dir()
    assert not (folder / "net.fw").exists()
    assert compress("--budget", "accuracy_drop=90pp", "--resume").exit_code == DONE
    assert not (folder / "net.fw.checkpoint").exists()


def test_interrupted_where_there_is_nothing_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featherweight.packaging.inspect", interrupt)
    result = run("inspect", "net.fw")
    assert result.exit_code == INTERRUPTED
    assert "resume" not in result.stderr


@pytest.mark.usefixtures("no_export")
def test_real_signals(folder: Path) -> None:
    """Ctrl-C in the training, then SIGKILL after some more of it; resumed, the file is that of a run without either."""
    (folder / "quick.toml").write_text(QUICK.replace("epochs = 2", "epochs = 100"))
    request = ["compress", "zoo:mlp", "--data", "digits", "--recipe", "quick.toml", "--budget", "accuracy_drop=90pp"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    checkpoint = folder / "killed.fw.checkpoint" / "epoch.pt"

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "featherweight.cli", *request, "--out", "killed.fw", *arguments]
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        # A suite that runs in the background ignores Ctrl-C, and its children would inherit that.
        listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, env=environment, preexec_fn=listen, **pipes)

    process = start()
    wait_for_change(checkpoint, 0.0, process)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].endswith("--resume goes on\n")
    assert process.returncode == INTERRUPTED

    process = start("--resume")
    wait_for_change(checkpoint, checkpoint.stat().st_mtime, process)
    process.kill()
    process.communicate()
    assert not (folder / "killed.fw").exists()

    assert run(*request, "--out", "killed.fw", "--resume").exit_code == DONE
    assert run(*request, "--out", "whole.fw").exit_code == DONE
    assert (folder / "killed.fw").read_bytes() == (folder / "whole.fw").read_bytes()


def wait_for_change(file: Path, earlier: float, process: subprocess.Popen[str]) -> None:
    """Waits until a file is newer; fails if the process ends before."""
    while not (file.exists() and file.stat().st_mtime > earlier):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
