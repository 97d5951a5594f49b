"""Training all widths of a slimmable network at once, and finding the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.distillation.losses import soft_loss
from featherweight.dynamic.views import WidthView
from featherweight.dynamic.widths import SlimmableNetwork, Width
from featherweight.errors import DataError, RequestError, check
from featherweight.graph.program import Node, ProgramModule
from featherweight.training.loaders import Batch, Loader
from featherweight.training.loop import Loss, Tuning, fit
from featherweight.training.mode import device_of
from featherweight.training.progress import Progress, silent

__all__ = ["Sandwich", "batch_statistics", "recalibrate", "tune_widths", "with_batch_statistics"]


@dataclass(frozen=True)
class Sandwich:
    """Which widths a step of training runs besides the full and the lightest, and what narrow ones learn from.

    Args:
        between: how many others a step runs, at least 0.
        uniform: whether all groups of channels of those have the same width; else each has one of its own, which only networks
            whose batch norms are not switchable can run at.
        distil: whether narrow widths learn from the full one (its probabilities, at temperature 1); else from the targets.

    Raises:
        RequestError: a setting is out of range.

    Example:
        >>> Sandwich(between=1).distil
        True
    """

    between: int = 2
    uniform: bool = True
    distil: bool = True

    def __post_init__(self) -> None:
        check("between", self.between, "a whole number >= 0", isinstance(self.between, int) and self.between >= 0)


_TWO_BETWEEN = Sandwich()


def tune_widths(
    network: SlimmableNetwork,
    loader: Loader,
    tuning: Tuning,
    *,
    sandwich: Sandwich = _TWO_BETWEEN,
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> None:
    """Trains a slimmable network IN PLACE: `fit` with the sandwich rule and in-place distillation (Yu and Huang, ICCV 2019).

    Each step runs the full width, which learns from the targets; the lightest; and some between, which learn what the full
    width answers in the same step. The losses are summed. With switchable batch norms those between are choices, none twice;
    without, any width from the lightest up, in hundredths; their statistics are then to be found by `recalibrate`. What
    `find_shape` compares are networks whose layers have widths of their own: `Sandwich(uniform=False)` trains those (AutoSlim,
    Yu and Huang, 2019). Of a network with exits, narrow widths learn at each exit what the full width answers at its last.

    Args:
        network: trained in place, all widths.
        loader: batches of (inputs, targets).
        tuning: as for `fit`.
        sandwich: which widths a step runs, and what narrow ones learn from.
        loss: (outputs, targets) -> scalar.
        seed: as for `fit`; the widths follow from it, too.
        progress: as for `fit`.
        checkpoint: as for `fit`.

    Raises:
        RequestError: layers are to have widths of their own in a network with switchable batch norms.
        TrainingError, DataError: as `fit` says.

    Example:
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> net = make_slimmable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> tune_widths(net, [(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))], Tuning(epochs=20, learning_rate=0.1))
        >>> [net.at_width(width)(torch.ones(1, 4)).argmax().item() for width in net.choices()]
        [0, 0, 0, 0]
    """
    if not sandwich.uniform and network.switchable:
        raise RequestError(
            "each layer can have a width of its own only where all widths share their batch norms: "
            "make the network with switchable=False"
        )
    lesson = _Lesson(network, sandwich, loss)
    fit(lesson, loader, tuning, loss=lesson.loss, seed=seed, progress=progress, checkpoint=checkpoint)


class _Lesson(nn.Module):
    """The network at several widths, so that the one training loop sees all of their answers to a batch."""

    def __init__(self, network: SlimmableNetwork, sandwich: Sandwich, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self._sandwich, self._loss = sandwich, loss

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        return [view(*inputs) for view in self._views()]

    def _views(self) -> list[WidthView]:
        """The full width, the lightest, and those between that this step draws."""
        network, between = self.network, self._sandwich.between
        *narrow, full = network.choices()
        if not narrow:
            return [network.at_width(full)]
        lightest, *others = narrow
        if network.switchable:
            order = torch.randperm(len(others))[:between].tolist()
            return [network.at_width(choice) for choice in (full, lightest, *(others[i] for i in order))]
        lowest = min((width for width in narrow if not isinstance(width, str)), default=1.0)
        drawn = [self._drawn(float(lowest)) for _ in range(between)]
        return [network.at_width(full), network.at_width(lightest), *drawn]

    def _drawn(self, lowest: float) -> WidthView:
        if self._sandwich.uniform:
            return self.network.at_width(round(lowest + (1 - lowest) * torch.rand(()).item(), 2))
        sizes = self.network.shape(1.0)
        shares = lowest + (1 - lowest) * torch.rand(len(sizes))
        shape = [max(1, round(share * size)) for share, size in zip(shares.tolist(), sizes, strict=True)]
        return self.network.view(shape).train(self.network.training)

    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """The sum over the widths; the first is the full one."""
        full, *narrow = outputs
        total = self._loss(full, targets)
        for answer in narrow:
            total = total + (_distilled(answer, full) if self._sandwich.distil else self._loss(answer, targets))
        return total


def _distilled(answer: Any, full: Any) -> torch.Tensor:
    """The loss of a narrow width's answer against the full one's; of several, of exits, each against the full one's last."""
    if isinstance(answer, torch.Tensor):
        return soft_loss(answer, full.detach(), temperature=1.0)
    return torch.stack([_distilled(early, full[-1]) for early in answer]).sum()


def recalibrate(network: SlimmableNetwork, data: Iterable[Batch], *, choices: Sequence[Width] | None = None) -> None:
    """Finds the running statistics of batch norms anew, IN PLACE, for each width by itself (Yu and Huang 2019, section 3.3).

    They become the mean over all samples of what each batch has; the weights stay. A width that is no choice yet becomes one.

    Args:
        network: its statistics are changed.
        data: batches of (inputs, targets), of which only the inputs count; as often as one asks.
        choices: which widths; all by default.

    Raises:
        DataError: there is no batch.
        RequestError: a width is out of range.

    Example:
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> net = make_slimmable(model, torch.zeros(2, 1), widths=(0.5,), switchable=False)
        >>> recalibrate(net, [(torch.randn(64, 1), torch.zeros(64))], choices=[0.5, 0.25])
        >>> net.choices()
        (0.25, 0.5, 1.0)
    """
    wanted = network.choices() if choices is None else tuple(choices)
    for choice in wanted:
        if choice not in network.choices():
            network.add(choice)
    batches = list(data) if not hasattr(data, "__len__") else data
    for choice in wanted:
        found = batch_statistics(network.at_width(choice), batches)
        if choice == 1.0:
            for name, value in found.items():
                network.full.get_buffer(name).copy_(value)
        elif found:
            own = network.own_tensors(choice)
            before = {} if own is None else dict(own.state_dict())
            network.set_own(choice, {**before, **found})


@torch.no_grad()
def batch_statistics(view: WidthView, data: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """The running means and variances that the batch norms of a narrow network should have, by name; nothing is changed.

    Args:
        view: the network at some width.
        data: batches of (inputs, targets).

    Returns:
        For each statistic the mean over all samples of what each batch has.

    Raises:
        DataError: there is no batch.
    """
    net, names = with_batch_statistics(view)
    if not names:
        return {}
    sums = {name: torch.zeros_like(net.get_buffer(name), dtype=torch.float64) for name in names}
    samples = 0
    for inputs, _ in data:
        net(inputs.to(device_of(net)))
        samples += len(inputs)
        for name, total in sums.items():
            total.add_(net.get_buffer(name), alpha=len(inputs))
    if samples == 0:
        raise DataError("statistics of batch norms need data, got no batch; an iterator that was used up starts no new pass")
    return {name: (total / samples).to(net.get_buffer(name).dtype) for name, total in sums.items()}


def with_batch_statistics(view: WidthView) -> tuple[ProgramModule, list[str]]:
    """A narrow network whose batch norms take each batch's statistics, and keep those of the last; all else is in eval mode.

    Args:
        view: the network at some width; it is not changed.

    Returns:
        The network, on copies of its statistics, and the names of these.
    """
    program = replace(view.program, nodes=tuple(map(_awake, view.program.nodes)))
    norms = [node for node in program.nodes if node.op == "batch_norm"]
    names = [name for node in norms for value in node.args[3:5] if (name := program.tensor_name(value)) is not None]
    tensors: Mapping[str, torch.Tensor] = {
        name: tensor.detach().clone() if name in names else tensor for name, tensor in view.tensors().items()
    }
    return ProgramModule(program, tensors).eval(), list(dict.fromkeys(names))


def _awake(node: Node) -> Node:
    """batch_norm(input, weight, bias, mean, variance, training, momentum, …): training, and the last batch counts alone."""
    if node.op != "batch_norm":
        return node
    return replace(node, args=(*node.args[:5], True, 1.0, *node.args[7:]))
