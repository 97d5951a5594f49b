"""featherweight's side: plan at sparsity 0.5 with the default options, apply, and everything one does with a network then."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from checks import (
    TOLERANCE,
    check_backward,
    check_gone,
    check_same,
    check_shape,
    check_step,
    difference,
    run,
    run_precisely,
)
from masking import Kept, difference_from_masked
from record import Record
from torch import nn
from zoo import Entry, example

import featherweight
from featherweight.exporting import to_onnx
from featherweight.graph.program import ProgramModule
from featherweight.graph.surgery import Plan
from featherweight.pruning import plan_neurons, prune_neurons

__all__ = ["examine", "warm_up"]

FILE_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-3


def examine(entry: Entry, dense: nn.Module, record: Record, *, quick: bool) -> None:
    """Fills the record; the dense network is known to run."""
    facts = record.facts
    with record.stage("plan", needed=True):
        plan = plan_neurons(dense, example(entry), sparsity=0.5)
    facts["locked"] = len(plan.locked)
    facts["locked_first"] = [f"{name}: {reason}" for name, reason in list(plan.locked.items())[:3]]
    with record.stage("apply", needed=True):
        smaller = plan.apply(dense)
    with record.stage("prune"):  # both with one capture, which is what the other side does
        prune_neurons(dense, example(entry), sparsity=0.5)
    smaller.eval()
    facts["returns"] = "program" if isinstance(smaller, ProgramModule) else "own class"
    facts["gone"] = round(_share_gone(dense, smaller), 4)
    with record.stage("gone"):
        check_gone(facts["gone"])
    with record.stage("equal"):
        _check_equal(entry, dense, plan, smaller, record)
    with record.stage("batch"):
        check_shape(smaller, dense, entry)
    with record.stage("backward"):
        facts["without_gradient"] = len(check_backward(smaller, entry))
    with record.stage("step"):
        check_step(smaller, entry)
    if not quick:
        with record.stage("file"):
            _check_file(entry, smaller)
        with record.stage("onnx"):
            _check_onnx(entry, smaller)


def warm_up() -> None:
    """Imports what torch imports when a network is captured for the first time, once for all processes."""
    prune_neurons(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.zeros(1, 2), sparsity=0.5)


def _share_gone(dense: nn.Module, smaller: nn.Module) -> float:
    """Of the parameters that it still has by name: a program leaves out what the network never reads, which is no merit."""
    left = dict(smaller.named_parameters(remove_duplicate=False))
    used = {id(p): p for name, p in dense.named_parameters(remove_duplicate=False) if name in left}
    return 1 - sum({id(p): p.numel() for p in left.values()}.values()) / sum(p.numel() for p in used.values())


def _check_equal(entry: Entry, dense: nn.Module, plan: Plan, smaller: nn.Module, record: Record) -> None:
    """The applied network agrees with the plan's own masked one. How far it is from one masked without the library's help, and
    what the mask changes at all, is recorded beside it."""
    facts = record.facts
    inputs, (found, expected, before) = run_precisely(entry, lambda: smaller, lambda: plan.mask(dense).eval(), lambda: dense)
    allowed = TOLERANCE[inputs.dtype]
    facts["equal_in"] = str(inputs.dtype).removeprefix("torch.")
    facts["difference"] = difference(found, expected)
    facts["mask_changes"] = difference(expected, before)
    check_same("the masked and the smaller network", facts["difference"], allowed)
    try:
        facts["independent_difference"] = difference_from_masked(dense, _kept(dense, plan), found, inputs, enough=allowed)
    except RuntimeError as error:
        facts["independent_error"] = str(error)[:300]


def _kept(dense: nn.Module, plan: Plan) -> Kept:
    """What the plan leaves of each tensor."""
    tensors = {**dict(dense.named_parameters(remove_duplicate=False)), **dict(dense.named_buffers(remove_duplicate=False))}
    kept: dict[str, dict[int, list[int]]] = {}
    for (name, axis), gone in plan.removed.items():
        if name in tensors:
            kept.setdefault(name, {})[axis] = sorted({*range(tensors[name].shape[axis])} - {*gone})
    return kept


def _check_file(entry: Entry, smaller: nn.Module) -> None:
    inputs = example(entry, batch=3, seed=12)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.fw")
        featherweight.save(smaller, path, example=example(entry))
        loaded = featherweight.load(path)
    check_same("the saved and the loaded network", difference(run(loaded, inputs), run(smaller, inputs)), FILE_TOLERANCE)


def _check_onnx(entry: Entry, smaller: nn.Module) -> None:
    import onnxruntime

    inputs = example(entry, batch=3, seed=13)
    with tempfile.TemporaryDirectory() as folder:
        path = to_onnx(smaller, Path(folder, "net.onnx"), example(entry))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    found = [torch.from_numpy(output) for output in outputs]
    check_same("the network and its ONNX file", difference(found, run(smaller, inputs)), ONNX_TOLERANCE)
