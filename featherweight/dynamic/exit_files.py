"""Networks with exits as files: what a .fw holds beside their weights, and one ONNX file for each stage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from featherweight.dynamic.confidence import CONFIDENCES, LEARNED, Judge
from featherweight.dynamic.exits import ExitNetwork, Timing
from featherweight.dynamic.settings import below
from featherweight.errors import RequestError
from featherweight.exporting.onnx import resize_batch
from featherweight.exporting.staged import StageFile, write_stages
from featherweight.graph.capture import Example, capture, on_device_of, tensors_of
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.rewrite import graft

__all__ = ["exit_settings", "export_exits", "pack_exits", "set_exits", "unpack_exits"]

_JUDGE = "exit_settings.judge."  # a name that no network has for its own


def pack_exits(net: ExitNetwork) -> tuple[ProgramModule, dict[str, torch.Tensor]]:
    """What a file holds of a network with exits; see `files.Kind`."""
    return ProgramModule(net.network.program, net.tensors()), exit_settings(net)


def unpack_exits(network: ProgramModule, extras: Mapping[str, torch.Tensor]) -> ExitNetwork:
    """The network with exits that `pack_exits` was given; see `files.Kind`."""
    net = ExitNetwork(network)
    set_exits(net, extras)
    return net


def exit_settings(net: ExitNetwork) -> dict[str, torch.Tensor]:
    """All that is set of a network with exits, as tensors by name.

    Args:
        net: it is not changed.

    Returns:
        Thresholds, confidence with its judges, if it is learned, and times, if they were measured.
    """
    settings = {
        "thresholds": torch.tensor(net.thresholds, dtype=torch.float64),
        "confidence": torch.tensor(list(net.confidence.encode()), dtype=torch.uint8),
    }
    if net.timing is not None:
        settings["batch"] = torch.tensor(net.timing.batch)
        settings["seconds"] = torch.tensor([net.timing.straight, net.timing.asked], dtype=torch.float64)
    return settings | {f"judges.{name}": tensor for name, tensor in net.judges.state_dict().items()}


def set_exits(net: ExitNetwork, settings: Mapping[str, torch.Tensor]) -> None:
    """Sets, IN PLACE, what `exit_settings` gave.

    Args:
        net: with exits as it was.
        settings: tensors by name.

    Raises:
        KeyError, ValueError, RuntimeError, RequestError: they do not fit the network.
    """
    judges = below("judges.", settings)
    if judges:
        net.judges.extend(Judge(net.classes).requires_grad_(False).eval() for _ in net.thresholds)
        net.judges.load_state_dict(judges)
    net.confidence = bytes(settings["confidence"].tolist()).decode()
    net.thresholds = settings["thresholds"].tolist()
    if "seconds" in settings:
        straight, asked = settings["seconds"].tolist()
        if not len(straight) == len(asked) == len(net.stages):
            raise ValueError(f"{len(straight)} times for {len(net.stages)} exits")
        net.timing = Timing(int(settings["batch"]), tuple(straight), tuple(asked))


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
    tensors = net.tensors()
    stages = []
    for number, stage in enumerate(net.stages):
        batch = tuple(state[index] for index in stage.takes)
        last = number == len(net.stages) - 1
        program, own = stage.program, tensors
        if not last:
            program, judge = _with_confidence(net, number, program)
            own = tensors | judge
        module = ProgramModule(program, {spec.name: own[spec.name] for spec in program.tensors}).eval()
        with torch.no_grad():
            _, *rest = module(*batch)
        state |= dict(zip(stage.gives, rest[1:], strict=True))
        stages.append((module, batch, StageFile(f"stage_{number}.onnx", stage.takes, stage.gives, stage.alive)))
    return write_stages(stages, net.thresholds, folder)


def _with_confidence(net: ExitNetwork, exit: int, program: Program) -> tuple[Program, dict[str, torch.Tensor]]:
    """The stage that also gives how sure its answer is, right after it, and the tensors it has more."""
    sure = _Sure(net, exit)
    addition = capture(sure, torch.zeros(2, net.classes))
    tensors = {_JUDGE + name: tensor for name, tensor in tensors_of(sure, addition).items()}
    whole, said = graft(program, len(program.nodes) - 1, program.output[0], addition, prefix=_JUDGE)
    answer, *given = whole.output  # numbered anew
    return replace(whole, output=(answer, said, *given)), tensors


class _Sure(nn.Module):
    """How sure an answer is."""

    def __init__(self, net: ExitNetwork, exit: int) -> None:
        super().__init__()
        self.judge = net.judges[exit] if net.confidence == LEARNED else None
        self._confidence = net.confidence

    def forward(self, answer: torch.Tensor) -> torch.Tensor:
        if self.judge is not None:
            return self.judge([answer])  # type: ignore[no-any-return]
        return CONFIDENCES[self._confidence]([answer])
