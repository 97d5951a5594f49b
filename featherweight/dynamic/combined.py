"""Exits and widths together: how far a sample goes, and how much of each layer it meets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.dynamic.exits import ExitNetwork
from featherweight.dynamic.policy import POLICIES, Calibration, record_exits, simulate
from featherweight.dynamic.widths import SlimmableNetwork, Width, make_slimmable
from featherweight.errors import RequestError, check, look_up
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example, on_device_of
from featherweight.measuring.latency import time_in_turns
from featherweight.training.loaders import Loader
from featherweight.training.mode import in_mode

__all__ = ["Choice", "SlimmableExitNetwork", "add_widths"]

Choice = tuple[Width, int | tuple[float, ...]]
"""A width, and the exit that all samples go straight to, or the thresholds by which each leaves at one of its own."""


class SlimmableExitNetwork(nn.Module):
    """A network with exits that runs at several widths.

    At each width it is an `ExitNetwork` on slices of the same weights. At first the choices are all pairs of a width and an
    exit; `calibrate` replaces them by those pairs of a width and thresholds that no cheaper one beats on validation data, and
    so decides what no rule of thumb does: whether it is better to be narrow or to stop early.

    Args:
        slimmable: of a network with several answers of equal shape (B, classes), from the first to the last; `add_widths` makes
            such networks.
        confidence: what decides whether a sample leaves, a name in `CONFIDENCES`, at every width.

    Attributes:
        slimmable: where the weights are; `tune_widths` trains it, `recalibrate` finds its statistics.
        choice: by which it answers where no budget is given; the full width's last exit, before it is set.
        shares: of the samples that leave at each exit, by each choice that `calibrate` found.

    Raises:
        RequestError: the network has one answer only, or answers of different shapes.
        UnsupportedOpError: it cannot be cut into stages, see `ExitNetwork`.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        >>> net = add_widths(add_exits(nn.Sequential(*layers), torch.zeros(1, 4), at=["0"]), widths=(0.5,)).eval()
        >>> [(choice, net.cost(choice).macs) for choice in net.choices()]
        [((0.5, 0), 28), ((0.5, 1), 44), ((1.0, 0), 56), ((1.0, 1), 120)]
        >>> net(torch.zeros(5, 4), budget=Limit(macs=50)).shape
        torch.Size([5, 3])
    """

    def __init__(self, slimmable: SlimmableNetwork, *, confidence: str = "probability") -> None:
        super().__init__()
        self.slimmable = slimmable
        self.judges = nn.ModuleDict()  # of the exits at each width, so that they move and are saved with the rest
        self._exits: dict[Width, ExitNetwork] = {}
        self._confidence = confidence
        self.shares: dict[Choice, tuple[float, ...]] = {}
        self.train(slimmable.training)
        self.choice: Choice = (1.0, len(self.at_width(1.0).stages) - 1)

    def at_width(self, width: Width) -> ExitNetwork:
        """The network with exits at one width, in this network's mode: all weights are shared, thresholds are its own."""
        view = self.slimmable.at_width(width)
        exits = self._exits.get(width)
        if exits is None or exits.network is not view:  # a width gets another view when it gets tensors of its own
            exits = ExitNetwork(view, confidence=self._confidence) if exits is None else exits.on(view)
            self._exits[width] = exits
            self.judges[str(width).replace(".", "_")] = exits.judges
        return exits if exits.training == self.training else exits.train(self.training)

    def forward(self, *inputs: torch.Tensor, budget: Limit | None = None) -> Any:
        """The answers of all exits of the full width in train mode; in eval mode one answer for each sample.

        Args:
            *inputs: as the network takes them, (B, …).
            budget: if given, the best choice that keeps it answers, else `choice`.

        Returns:
            Logits (B, classes), in the order of the samples; a tuple of them in train mode.
        """
        if self.training and budget is None:
            return self.at_width(1.0)(*inputs)
        return self.answer_at(self.choice if budget is None else self.choose(budget), *inputs)

    def answer_at(self, choice: Choice, *inputs: torch.Tensor) -> torch.Tensor:
        """The answers by one choice: a width, and an exit or thresholds, whether it is one of `choices()` or not.

        Args:
            choice: see there.
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes).
        """
        width, way = choice
        exits = self.at_width(width)
        return exits.answer_at(way, *inputs) if isinstance(way, int) else exits.answer_by(way, *inputs)

    def choices(self) -> tuple[Choice, ...]:
        """What there is to choose from, from the lightest to the full one, or, once calibrated, to the most accurate."""
        if self.shares:
            return tuple(self.shares)
        pairs: list[Choice] = [(width, exit) for width in self.slimmable.choices() for exit in self.at_width(width).choices()]
        return tuple(sorted(pairs, key=lambda choice: self.cost(choice).macs))

    def cost(self, choice: Choice) -> Cost:
        """What a choice costs: of going straight to an exit, or of a mean sample of the data it was calibrated on."""
        width, way = choice
        if isinstance(way, int):
            return self.at_width(width).cost(way)
        if choice not in self.shares:
            raise RequestError(
                f"what thresholds cost follows from data: calibrate first, and take one of choices(), got {choice}"
            )
        return self.at_width(width).mean_cost(way, self.shares[choice])

    def choose(self, limit: Limit, *, strict: bool = False) -> Choice:
        """The last choice that keeps a limit; see `choose_within`."""
        return choose_within({choice: self.cost(choice) for choice in self.choices()}, limit, strict=strict)

    def time(self, example: Example, *, batch: int = 1, seconds: float = 0.2) -> None:
        """Measures how long the exits take at each width on this device, and keeps it for `cost`; all take turns.

        Args:
            example: a batch of inputs; its samples are repeated or cut to `batch`.
            batch: samples in a run, at least 1.
            seconds: how long to go on, for each exit and way to it.
        """
        check("batch", batch, "at least 1", batch >= 1)
        check("seconds", seconds, "above 0", seconds > 0)
        inputs = on_device_of(self.slimmable, resize_batch(self.slimmable.full.program, example, batch))
        with in_mode(self, training=False), torch.no_grad():
            nets = [self.at_width(width) for width in self.slimmable.choices()]
            ways = [net.ways(inputs) for net in nets]
            medians = [statistics.median(times) for times in time_in_turns([way for own in ways for way in own], seconds)]
        for number, net in enumerate(nets):
            net.keep_times(batch, medians[number * len(ways[0]) :][: len(ways[0])])

    def calibrate(self, loader: Loader, *, policy: str = "equal", points: int = 16) -> dict[Choice, float]:
        """Makes the best ways to run the network its choices, IN PLACE.

        Every width is asked about every sample. Of all pairs of a width and thresholds of the policy those stay that no pair is
        cheaper than and as accurate as; in seconds if they were measured, else in MACs.

        Args:
            loader: batches of (inputs, targets): validation data, not what the network learnt from.
            policy: a name in `POLICIES`.
            points: the most choices to keep, at least 2: the cheapest, the most accurate, and some between.

        Returns:
            The accuracy of each choice on these data, from the cheapest to the most accurate.

        Raises:
            RequestError: an option is out of range, or an unknown policy.
            DataError: the loader is empty.
        """
        check("points", points, "a whole number >= 2", isinstance(points, int) and points >= 2)
        family = look_up(POLICIES, policy, "policy")
        found: dict[Choice, Calibration] = {}
        with in_mode(self, training=False):
            for width in self.slimmable.choices():
                record = record_exits(self.at_width(width), loader)
                found |= {(width, thresholds): simulate(record, thresholds) for thresholds in family(record)}
        kept = _thinned(_front(found), points)
        self.shares = {choice: found[choice].shares for choice in kept}
        return {choice: found[choice].accuracy for choice in kept}


def add_widths(net: ExitNetwork, **options: Any) -> SlimmableExitNetwork:
    """Makes a network with exits run at several widths, too; see `make_slimmable` and `SlimmableExitNetwork`.

    Train it by `tune_widths(net.slimmable, …, loss=exit_loss())`.

    Args:
        net: with exits; it is not changed.
        **options: as for `make_slimmable`.

    Returns:
        The network, with the confidence of the one with exits, in its mode; its thresholds are to be found anew.

    Raises:
        RequestError, UnsupportedOpError: as `make_slimmable` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=["0"])
        >>> add_widths(net, widths=(0.5, 1.0)).at_width(0.5).train()(torch.zeros(2, 4))[0].shape
        torch.Size([2, 3])
    """
    if not isinstance(net, ExitNetwork):
        raise RequestError(f"widths are added to a network with exits, got a {type(net).__name__}: use make_slimmable")
    slimmable = make_slimmable(net.network, net.network.program.example(), **options)
    return SlimmableExitNetwork(slimmable, confidence=net.confidence)


def _front(found: Mapping[Choice, Calibration]) -> list[Choice]:
    """Those that no cheaper or equally cheap one is as accurate as, from the cheapest on."""
    front: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (found[choice].cost.spent, -found[choice].accuracy)):
        if not front or found[choice].accuracy > found[front[-1]].accuracy:
            front.append(choice)
    return front


def _thinned(choices: Sequence[Choice], points: int) -> list[Choice]:
    """At most so many, the first and the last among them."""
    last = len(choices) - 1
    return [choices[i] for i in sorted({round(last * step / (points - 1)) for step in range(points)})]
