"""Networks with exits as files: one .fw that holds the weights once, or one ONNX file for each stage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.confidence import CONFIDENCES
from featherweight.dynamic.exits import ExitNetwork, Timing
from featherweight.errors import FormatError, RequestError
from featherweight.exporting.onnx import resize_batch
from featherweight.exporting.staged import StageFile, write_stages
from featherweight.graph.capture import Example, capture, on_device_of, tensors_of
from featherweight.graph.constraint import duplicate
from featherweight.graph.program import Program, ProgramModule, Ref, TensorSpec, map_refs
from featherweight.graph.rewrite import graft, without_unused
from featherweight.packaging import load, save

__all__ = ["export_exits", "load_exits", "save_exits"]

_SETTINGS = "exit_settings"


def save_exits(net: ExitNetwork, path: str | os.PathLike[str]) -> int:
    """Packs a network with exits into one .fw file, losslessly, with its thresholds, its confidence and its times.

    `packaging.load` reads it too, as the plain network that gives all answers.

    Args:
        net: with exits; not changed.
        path: of the file, usually ending in ".fw".

    Returns:
        The size of the file in bytes.

    Raises:
        RequestError: as `packaging.save` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> chain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> save_exits(add_exits(chain, torch.zeros(1, 4), at=["0"]), "exits.fw") < 1000
        True
    """
    settings = {
        "thresholds": torch.tensor(net.thresholds, dtype=torch.float64),
        "confidence": torch.tensor(list(net.confidence.encode()), dtype=torch.uint8),
    }
    if net.timing is not None:
        settings["batch"] = torch.tensor(net.timing.batch)
        settings["seconds"] = torch.tensor([net.timing.straight, net.timing.asked], dtype=torch.float64)
    program = net.network.program
    # Nothing reads them, so they are numbered last, and every node by so much more.
    first, more = program.first_node, len(settings)
    nodes = tuple(
        replace(node, args=_shifted(node.args, first, more), kwargs=_shifted(node.kwargs, first, more))
        for node in program.nodes
    )
    specs = tuple(TensorSpec(f"{_SETTINGS}.{name}", "buffer") for name in settings)
    whole = replace(program, tensors=(*program.tensors, *specs), nodes=nodes, output=_shifted(program.output, first, more))
    tensors = tensors_of(net.network, program) | {f"{_SETTINGS}.{name}": tensor for name, tensor in settings.items()}
    return save(ProgramModule(whole, tensors), path)


def load_exits(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> ExitNetwork:
    """Reads a network with exits, ready to run in eval mode.

    Args:
        path: a file that `save_exits` wrote, or any .fw file of a network with several answers.
        max_bytes: as for `packaging.load`.

    Returns:
        The network, with the weights, thresholds, confidence and times that were saved.

    Raises:
        FormatError: as `packaging.load` says, or the settings of the exits are damaged.
        RequestError: the file cannot be opened, or holds a network that has one answer only.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=["0"])
        >>> net.thresholds = [0.75]
        >>> _ = save_exits(net, "exits.fw")
        >>> load_exits("exits.fw").thresholds
        (0.75,)
    """
    whole = load(path, max_bytes=max_bytes)
    tensors = whole.state_dict(keep_vars=True)
    program = without_unused(whole.program)
    net = ExitNetwork(ProgramModule(program, tensors).eval())
    settings = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{_SETTINGS}.")}
    try:
        if "confidence" in settings:
            net.confidence = bytes(settings["confidence"].tolist()).decode()
            net.thresholds = settings["thresholds"].tolist()
        if "seconds" in settings:
            straight, asked = settings["seconds"].tolist()
            if not len(straight) == len(asked) == len(net.stages):
                raise ValueError(f"{len(straight)} times for {len(net.stages)} exits")
            net.timing = Timing(int(settings["batch"]), tuple(straight), tuple(asked))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{os.fspath(path)!r} is damaged: its exits' settings do not fit its network: {error}") from error
    return net


def _shifted(value: Any, first: int, more: int) -> Any:
    return map_refs(value, lambda ref: Ref(ref.index + more) if ref.index >= first else ref)


def export_exits(net: ExitNetwork, folder: str | os.PathLike[str], example: Example) -> Path:
    """Writes one ONNX file for each stage, and "stages.json", which says how they follow one another.

    Each file gives an answer, how sure it is, and what the next ones need: `exporting.StagedSession` runs them in ONNX Runtime,
    which cannot leave a session early. Every file has been compared with the stage it was made from.

    Args:
        net: with exits, whose confidence looks at the latest answer only; not changed.
        folder: where to; made if it is not there.
        example: a batch of inputs.

    Returns:
        The folder.

    Raises:
        RequestError: the confidence looks back at earlier answers, or the folder cannot be written.
        FeatherweightError: as `exporting.to_onnx` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> chain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = add_exits(chain, torch.zeros(1, 4), at=["0"])
        >>> sorted(file.name for file in export_exits(net, "onnx", torch.zeros(1, 4)).iterdir())
        ['stage_0.onnx', 'stage_1.onnx', 'stages.json']
    """
    if net.confidence == "agreement":
        raise RequestError(
            "a stage in ONNX knows its own answer only, so a confidence of 'agreement' cannot be exported; choose another"
        )
    inputs = resize_batch(net.network.program, example, 2)
    state = dict(enumerate(on_device_of(net.network, inputs)))
    with torch.no_grad():
        classes = net.answer_at(0, *state.values()).shape[1]
    network = duplicate(net.network).eval()
    stages = []
    for number, stage in enumerate(net.stages):
        batch = tuple(state[index] for index in stage.takes)
        last = number == len(net.stages) - 1
        program = stage.program if last else _with_confidence(stage.program, net.confidence, classes)
        module = ProgramModule(program, tensors_of(network, program)).eval()
        with torch.no_grad():
            _, *rest = module(*batch)
        state |= dict(zip(stage.gives, rest[1:], strict=True))
        stages.append((module, batch, StageFile(f"stage_{number}.onnx", stage.takes, stage.gives, stage.alive)))
    return write_stages(stages, net.thresholds, folder)


def _with_confidence(program: Program, confidence: str, classes: int) -> Program:
    """The stage that also gives how sure its answer is, right after it."""
    answer, *given = program.output
    whole, sure = graft(program, len(program.nodes) - 1, answer, capture(_Sure(confidence), torch.zeros(2, classes)))
    return replace(whole, output=(answer, sure, *given))


class _Sure(nn.Module):
    """How sure an answer is."""

    def __init__(self, confidence: str) -> None:
        super().__init__()
        self._confidence = confidence

    def forward(self, answer: torch.Tensor) -> torch.Tensor:
        return CONFIDENCES[self._confidence]([answer])
