"""Networks that spend on each sample what it needs: one number, the price of work, sets how much that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.errors import DataError, check
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example, on_device_of
from featherweight.graph.program import Program
from featherweight.measuring.latency import time_in_turns
from featherweight.training.loaders import Loader
from featherweight.training.mode import device_of, in_mode

__all__ = ["Effort", "EffortNetwork", "Spent", "calibrate_effort"]


@dataclass(frozen=True)
class Spent:
    """What a network answered, and what it did for each sample.

    Attributes:
        answer: (B, …), in the order of the samples.
        macs: (B,), multiply-accumulates really executed, those of gates included.
        taken: (B, parts), which of its parts ran.
    """

    answer: torch.Tensor
    macs: torch.Tensor
    taken: torch.Tensor


class EffortNetwork(nn.Module):
    """A network in which a gate decides for each sample what is computed: `SkipNetwork` and `RoutedNetwork`.

    A gate says what a part of the network is worth to a sample, and the part runs where that exceeds the `price`. A price of
    -∞ runs everything, and does not ask the gates; 0 is what they were trained for; a higher one saves more.

    The prices one may choose from are those whose cost is known: -∞, and what `calibrate_effort` finds on data.
    """

    def __init__(self, full_macs: int) -> None:
        super().__init__()
        self._price = 0.0
        self._costs: dict[float, Cost] = {-math.inf: Cost(full_macs)}

    @property
    def price(self) -> float:
        """What a part must be worth to run, in eval mode."""
        return self._price

    @price.setter
    def price(self, value: float) -> None:
        check("a price", value, "a number, or infinite", not math.isnan(value))
        self._price = float(value)

    @property
    def program(self) -> Program:
        """Of the network, for its inputs."""
        raise NotImplementedError

    def forward(self, *inputs: Any, budget: Limit | None = None) -> Any:
        """The answers; in train mode what `explore` gives.

        Args:
            *inputs: as the network takes them, (B, …).
            budget: if given, the price is the choice that keeps it.

        Returns:
            Answers (B, …), in the order of the samples.
        """
        if budget is not None:
            return self.answer_at(self.choose(budget), *inputs)
        if not self.training:
            return self.answer_at(self._price, *inputs)
        return self.explore(*inputs)

    def explore(self, *inputs: Any) -> Any:
        """What train mode gives: something that a loss can teach gates by.

        Args:
            *inputs: as the network takes them, (B, …).
        """
        raise NotImplementedError

    def spend(self, price: float, *inputs: torch.Tensor) -> Spent:
        """The answers at a price, in eval mode, with what was done for them.

        Args:
            price: any number, or infinite.
            *inputs: as the network takes them, (B, …).

        Returns:
            Answers, MACs, and parts taken.
        """
        raise NotImplementedError

    def worth(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The prices at which a part of a sample's computation begins to be left out: (B, parts).

        Args:
            *inputs: as the network takes them, (B, …).
        """
        raise NotImplementedError

    def answer_at(self, price: float, *inputs: torch.Tensor) -> torch.Tensor:
        """The answers at a price, in eval mode.

        Args:
            price: any number, or infinite.
            *inputs: as the network takes them, (B, …).

        Returns:
            (B, …), in the order of the samples.
        """
        return self.spend(price, *inputs).answer

    def choices(self) -> tuple[float, ...]:
        """The prices whose cost is known, from the lightest to -∞, where everything runs."""
        return tuple(sorted(self._costs, key=lambda price: (price == -math.inf, self._costs[price].macs)))

    def cost(self, choice: float) -> Cost:
        """A sample's mean cost at a price, on the data it was calibrated on; seconds of a batch where `time` measured them."""
        check("a price", choice, f"one of {', '.join(map(str, self.choices()))}", choice in self._costs)
        return self._costs[choice]

    def set_costs(self, costs: Mapping[float, Cost]) -> None:
        """Sets what prices cost, IN PLACE, and so which there are to choose from; that of -∞ stays where it is not given."""
        for price in costs:
            check("a price", price, "a number, or infinite", not math.isnan(price))
        self._costs = {-math.inf: self._costs[-math.inf], **costs}

    def choose(self, limit: Limit, *, strict: bool = False) -> float:
        """The last of `choices()` that keeps a limit; see `choose_within`."""
        return choose_within({choice: self.cost(choice) for choice in self.choices()}, limit, strict=strict)

    def time(self, example: Example, *, batch: int = 1, seconds: float = 0.5) -> None:
        """Measures how long a batch takes at each price on this device, in PyTorch, and keeps it for `cost`.

        How long depends on the samples: kept is the mean over the example's, cut into batches, of a median pass. The prices
        take turns, so that what else the machine does falls on all of them alike.

        Args:
            example: samples like those to come, at least `batch`: fewer are repeated, a rest is left out.
            batch: samples in a run, at least 1.
            seconds: how long to go on, for each price.
        """
        check("batch", batch, "a whole number >= 1", isinstance(batch, int) and batch >= 1)
        check("seconds", seconds, "above 0", seconds > 0)
        first = example if isinstance(example, torch.Tensor) else example[0]
        runs = max(1, len(first) // batch)
        inputs = on_device_of(self, resize_batch(self.program, example, runs * batch))
        chunks = list(zip(*(x.split(batch) for x in inputs), strict=True))
        passes = [partial(self._pass, choice, chunks) for choice in self.choices()]
        with in_mode(self, training=False), torch.no_grad():
            medians = [statistics.median(times) for times in time_in_turns(passes, seconds)]
        for choice, median in zip(self.choices(), medians, strict=True):
            self._costs[choice] = replace(self._costs[choice], seconds=median / runs)

    def _pass(self, price: float, chunks: Sequence[Sequence[Any]]) -> None:
        for inputs in chunks:
            answer = self.answer_at(price, *inputs)
        if answer.is_cuda:
            torch.cuda.synchronize(answer.device)


@dataclass(frozen=True)
class Effort:
    """A price, and what came of it on some data.

    Attributes:
        price: what a part must be worth to run.
        accuracy: in [0, 1].
        shares: of the samples, for each part of the network, that ran it.
        cost: the mean of a sample's.
    """

    price: float
    accuracy: float
    shares: tuple[float, ...]
    cost: Cost


def calibrate_effort(
    net: EffortNetwork, loader: Loader, *, prices: Sequence[float] | None = None, points: int = 9
) -> tuple[Effort, ...]:
    """Finds what prices cost and how often the network is right at each, and makes the good ones its choices, IN PLACE.

    Each price is tried: at a higher one samples take other ways, on which gates say other things, so that nothing can be
    inferred. A price that costs more than another one and is right no more often becomes no choice; -∞ always is one.

    Args:
        net: only its choices change.
        loader: batches of (inputs, targets): validation data.
        prices: which to try; by default 0, and quantiles of what the gates say when everything runs.
        points: how many quantiles, at least 1.

    Returns:
        All that was tried, from the lightest to the full.

    Raises:
        DataError: the loader is empty.
        RequestError: a price is no number, or `points` is below 1.

    Example:
        >>> from featherweight.dynamic import add_gates
        >>> from featherweight.nets import vit
        >>> net = add_gates(vit(input_shape=(1, 8, 8), channels=8, depth=1, heads=2, patch=4), torch.zeros(1, 1, 8, 8))
        >>> found = calibrate_effort(net, [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))], prices=[9.0])
        >>> [(effort.price, effort.shares[0]) for effort in found]
        [(9.0, 0.0), (-inf, 1.0)]
    """
    check("points", points, "a whole number >= 1", isinstance(points, int) and points >= 1)
    if len(loader) == 0:
        raise DataError("a loader must hold at least one batch, got none")
    device = device_of(net)
    with in_mode(net, training=False), torch.no_grad():
        if prices is None:
            said = torch.cat([net.worth(inputs.to(device)).flatten().cpu() for inputs, _ in loader])
            order = said.sort().values
            chosen = (torch.arange(1, points + 1) * len(order) / (points + 1)).long()
            prices = [0.0, *order[chosen].tolist()]
        found = [_try(net, loader, price, device) for price in {-math.inf, *prices}]
    found.sort(key=lambda effort: (effort.price == -math.inf, effort.cost.macs, -effort.accuracy))
    full, kept, best = found[-1], {}, -1.0
    for effort in found[:-1]:
        if effort.accuracy > best and effort.cost.macs < full.cost.macs:
            kept[effort.price], best = effort.cost, effort.accuracy
    net.set_costs(kept)
    return tuple(found)


def _try(net: EffortNetwork, loader: Loader, price: float, device: torch.device) -> Effort:
    right, macs, taken, samples = 0, 0.0, torch.zeros(()), 0
    for inputs, targets in loader:
        spent = net.spend(price, inputs.to(device))
        right += int((spent.answer.argmax(1).cpu() == targets.cpu()).sum())
        macs += float(spent.macs.double().sum())
        taken = taken + spent.taken.double().sum(0).cpu()
        samples += len(targets)
    return Effort(price, right / samples, tuple((taken / samples).tolist()), Cost(macs / samples))
