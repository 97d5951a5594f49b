"""A network that may answer before its end: at an exit after each of its stages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.confidence import CONFIDENCES, LEARNED
from featherweight.dynamic.cost import Cost, Limit, choose_within, mean_cost
from featherweight.dynamic.views import Reader, WidthView
from featherweight.errors import FeatherweightError, RequestError, check, look_up
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example, on_device_of, to_module
from featherweight.graph.cost import node_macs
from featherweight.graph.program import Call, Program, ProgramModule, last_uses
from featherweight.graph.shapes import infer_shapes
from featherweight.graph.stages import Stage, split_stages
from featherweight.measuring.latency import time_in_turns
from featherweight.training.mode import in_mode

__all__ = ["ExitNetwork", "Timing"]

State = dict[int, torch.Tensor]
"""The values that later stages need, by their numbers in the whole program."""


@dataclass(frozen=True)
class Timing:
    """How long the exits take on this device: median seconds of a batch, for each exit.

    Attributes:
        batch: how many samples a batch had.
        straight: going straight to the exit; earlier heads are not run.
        asked: leaving at the exit, asked at all those before it.
    """

    batch: int
    straight: tuple[float, ...]
    asked: tuple[float, ...]


class ExitNetwork(nn.Module):
    """A network with several answers, from early to last, that computes no more than the answer it gives needs.

    In train mode it gives all answers, as a tuple, for a loss like `exit_loss`. In eval mode each sample leaves at the first
    exit whose confidence reaches its threshold (Teerapittayanon, McDanel and Kung, "BranchyNet", ICPR 2016); those that left
    are removed from the batch, so that it costs what its samples cost. At the start all thresholds are infinite: every sample
    gets the last answer, and the heads of earlier exits are not run.

    It is a view of one ordinary network, `network`, that gives all answers: prune or quantize that, and look at it as an
    `ExitNetwork` again. The weights are held once.

    Args:
        network: any that can be captured and gives two or more answers of equal shape (B, classes); a captured program is taken
            as it is, not copied. `add_exits` makes such networks.
        example: a batch of inputs to capture the network with; a `ProgramModule` needs none.
        confidence: a name in `CONFIDENCES`.

    Attributes:
        network: all of it, as a `ProgramModule` with the tensors' original names.
        stages: what each answer needs beyond those before it.
        classes: how many there are.
        judges: what says how sure each early exit is, where that was learned; see `learn_confidence`.
        timing: what `time` measured, None before.

    Raises:
        RequestError: there is no example, or the answers are not two or more of equal shape.
        CaptureError: the network cannot be captured.
        UnsupportedOpError: what an exit hands on has no sample for each of the batch on axis 0.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=[0.5]).eval()
        >>> net.thresholds = [0.0]
        >>> net(torch.zeros(5, 4)).shape, net.cost(0).macs, net.cost(1).macs
        (torch.Size([5, 3]), 56, 56)
    """

    def __init__(self, network: nn.Module, example: Example | None = None, *, confidence: str = "probability") -> None:
        super().__init__()
        if type(network) is not ProgramModule and not isinstance(network, WidthView):
            if example is None:
                message = f"capturing a {type(network).__name__} needs an example of its inputs: pass example=<one batch>"
                raise RequestError(message)
            network = to_module(network, example)
        self.network: ProgramModule | WidthView = network
        program, tensors = network.program, self.tensors()
        self.stages = split_stages(program, tensors)
        self._parts = [_Part(stage, network.reader([spec.name for spec in stage.program.tensors])) for stage in self.stages]
        self.classes = _classes(program, tensors)
        self._check_parts()
        macs = node_macs(program, tensors)
        self._macs = [_trunk_and_head(stage, macs) for stage in self.stages]
        self.timing: Timing | None = None
        self.judges = nn.ModuleList()
        self._thresholds = (math.inf,) * (len(self.stages) - 1)
        self.confidence = confidence
        self.train(self.network.training)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The confidence from which on a sample leaves, one for each exit but the last; infinite where none does."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        early = len(self.stages) - 1
        check("thresholds", tuple(values), f"{early} numbers, one for each exit but the last", len(values) == early)
        check("thresholds", tuple(values), "at least 0", all(value >= 0 for value in values))
        self._thresholds = tuple(float(value) for value in values)

    @property
    def confidence(self) -> str:
        """What decides whether a sample leaves: a name in `CONFIDENCES`, or "learned", see `learn_confidence`."""
        return self._confidence

    @confidence.setter
    def confidence(self, name: str) -> None:
        if name == LEARNED:
            check("confidence", name, "learnt first, see learn_confidence", len(self.judges) == len(self.stages) - 1)
        else:
            look_up(CONFIDENCES, name, "confidence")
        self._confidence = name

    def sure_of(self, exit: int, answers: Sequence[torch.Tensor]) -> torch.Tensor:
        """How sure an early exit is of its answer.

        Args:
            exit: which one.
            answers: logits (B, classes) of the exits that were asked so far, its own last.

        Returns:
            (B,) in [0, 1].
        """
        if self._confidence == LEARNED:
            return self.judges[exit](answers)  # type: ignore[no-any-return]
        return CONFIDENCES[self._confidence](answers)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the whole network computes with, by name, constraints applied; detached, not copied."""
        names = [spec.name for spec in self.network.program.tensors]
        found = self.network.reader(names)(self.network)
        return {name: tensor.detach() for name, tensor in zip(names, found, strict=True)}

    def forward(self, *inputs: Any, budget: Limit | None = None) -> Any:
        """The answers of all exits in train mode; in eval mode one answer for each sample.

        Args:
            *inputs: as the network takes them, (B, …).
            budget: if given, all samples leave at the deepest exit that keeps it, whatever the thresholds.

        Returns:
            Logits (B, classes), in the order of the samples; a tuple of them in train mode.
        """
        if budget is not None:
            return self.answer_at(self.choose(budget), *inputs)
        return self.network(*inputs) if self.training else self.answer_by(self._thresholds, *inputs)

    def answer_at(self, choice: int, *inputs: torch.Tensor) -> torch.Tensor:
        """The answer of one exit for all samples; no other exit's head is run, and nothing behind it.

        Args:
            choice: which exit, one of `choices()`.
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes).
        """
        self._check_choice(choice)
        state = self._start(inputs)
        for part in self._parts[:choice]:
            _, state = part.run(self.network, state, answering=False)
        answer, _ = self._parts[choice].run(self.network, state)
        return answer

    def step(self, *inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """The answers one after another, each computed when it is asked for, so that a caller can stop when time is up.

        Args:
            *inputs: as the network takes them, (B, …).

        Yields:
            Logits (B, classes) of each exit.
        """
        state = self._start(inputs)
        for part in self._parts:
            answer, state = part.run(self.network, state)
            yield answer

    def on_frozen_trunk(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All answers, where the heads of early exits alone are in train mode: see `fit_heads`.

        Args:
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes) of each exit.
        """
        state = self._start(inputs)
        answers = []
        for part in self._parts:
            answer, state = part.run(self.network, state, training=part is not self._parts[-1])
            answers.append(answer)
        return tuple(answers)

    def answer_by(self, thresholds: Sequence[float], *inputs: torch.Tensor) -> torch.Tensor:
        """The answer of an exit of its own for each sample: the first whose confidence reaches its threshold, or the last.

        Args:
            thresholds: one for each exit but the last; infinite where none leaves, and the head is not run.
            *inputs: as the network takes them, (B, …).

        Returns:
            Logits (B, classes), in the order of the samples.
        """
        state = self._start(inputs)
        asked: list[torch.Tensor] = []
        rows, result = None, _NO_ANSWER
        for exit, (part, threshold) in enumerate(zip(self._parts[:-1], thresholds, strict=True)):
            answer, state = part.run(self.network, state, answering=threshold < math.inf)
            if threshold == math.inf:
                continue
            asked.append(answer)
            leaving = self.sure_of(exit, asked) >= threshold
            count = int(leaving.sum())
            if not count:
                continue
            if rows is None:
                if count == len(answer):
                    return answer
                rows, result = torch.arange(len(answer), device=answer.device), torch.empty_like(answer)
            result[rows[leaving]] = answer[leaving]
            if count == len(answer):
                return result
            staying = (~leaving).nonzero()[:, 0]
            rows, asked = rows[staying], [earlier[staying] for earlier in asked]
            state = {index: value[staying] for index, value in state.items()}
        answer, _ = self._parts[-1].run(self.network, state)
        if rows is None:
            return answer
        result[rows] = answer
        return result

    def choices(self) -> tuple[int, ...]:
        """The exits, from the first to the last."""
        return tuple(range(len(self.stages)))

    def cost(self, choice: int) -> Cost:
        """What it costs to go straight to an exit, as `net(x, budget=…)` does; seconds where `time` measured them."""
        self._check_choice(choice)
        macs = sum(trunk for trunk, _ in self._macs[:choice]) + sum(self._macs[choice])
        return Cost(macs, self.timing.straight[choice] if self.timing else None)

    def cost_of_leaving(self, choice: int) -> Cost:
        """What a sample costs that leaves at an exit after it was asked at all those before it."""
        self._check_choice(choice)
        return Cost(sum(map(sum, self._macs[: choice + 1])), self.timing.asked[choice] if self.timing else None)

    def mean_cost(self, thresholds: Sequence[float], shares: Sequence[float]) -> Cost:
        """What a sample costs on average, if such shares of them leave at the exits by these thresholds."""
        straight = [self.cost(choice) for choice in self.choices()]
        return mean_cost(thresholds, shares, [self.cost_of_leaving(choice) for choice in self.choices()], straight)

    def choose(self, limit: Limit, *, strict: bool = False) -> int:
        """The deepest exit that keeps a limit; see `choose_within`."""
        return choose_within({choice: self.cost(choice) for choice in self.choices()}, limit, strict=strict)

    def time(self, example: Example, *, batch: int = 1, seconds: float = 0.5) -> None:
        """Measures how long each choice takes on this device, in PyTorch as the network runs here, and keeps it for `cost`.

        The exits take turns, so that what else the machine does falls on all of them alike; kept are medians.

        Args:
            example: a batch of inputs; its samples are repeated or cut to `batch`.
            batch: samples in a run, at least 1.
            seconds: how long to go on, for each exit and way to it.
        """
        check("batch", batch, "at least 1", batch >= 1)
        check("seconds", seconds, "above 0", seconds > 0)
        inputs = on_device_of(self.network, resize_batch(self.network.program, example, batch))
        with in_mode(self, training=False), torch.no_grad():
            self.keep_times(batch, [statistics.median(times) for times in time_in_turns(self.ways(inputs), seconds)])

    def ways(self, inputs: Sequence[torch.Tensor]) -> list[Callable[[], torch.Tensor]]:
        """What `time` measures: going straight to each exit, then leaving at each, asked at all those before it."""
        never = 2.0  # above every confidence, but finite: they are asked
        early = len(self.stages) - 1
        asked = [[never] * choice + [0.0] * (early - choice) for choice in self.choices()]
        ways = [partial(self.answer_at, choice, *inputs) for choice in self.choices()]
        return [*ways, *(partial(self.answer_by, thresholds, *inputs) for thresholds in asked)]

    def keep_times(self, batch: int, medians: Sequence[float]) -> None:
        """Keeps, IN PLACE, how long the `ways` took for a batch of so many samples, in seconds."""
        count = len(self.stages)
        self.timing = Timing(batch, tuple(medians[:count]), tuple(medians[count:]))

    def on(self, network: ProgramModule | WidthView) -> ExitNetwork:
        """The same exits, with all their settings, on another network that computes the same, of other tensors."""
        found = ExitNetwork(network)
        found.judges = self.judges
        found.confidence, found.thresholds, found.timing = self.confidence, self.thresholds, self.timing
        return found

    def _start(self, inputs: Sequence[torch.Tensor]) -> State:
        names = [spec.name for spec in self.network.program.inputs]
        if len(inputs) != len(names):
            raise RequestError(f"this network takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        return dict(enumerate(inputs))

    def _check_choice(self, choice: int) -> None:
        check("an exit", choice, f"one of 0 to {len(self.stages) - 1}", choice in self.choices())

    def _check_parts(self) -> None:
        """The stages together must compute what the network does, bit for bit."""
        inputs = on_device_of(self.network, self.network.program.example(batch=3, seed=1))
        with in_mode(self.network, training=False), torch.no_grad():
            wanted = self.network(*(x.clone() for x in inputs))
            found = list(self.step(*inputs))
        for number, (want, have) in enumerate(zip(wanted, found, strict=True)):
            if not torch.equal(want.nan_to_num(), have.nan_to_num()):
                raise FeatherweightError(
                    f"the stages of a network must answer as it does, but exit {number} does not: an operation that changes "
                    "its input in place stands beside the exit; put the exit elsewhere, and report this as a bug"
                )


class _Part:
    """Runs a stage on a network's own tensors."""

    def __init__(self, stage: Stage, tensors: Reader) -> None:
        self._stage, self._tensors = stage, tensors
        steps = zip(stage.program.nodes, last_uses(stage.program), strict=True)
        self._steps = [
            (stage.program.first_node + position, Call(node), position in stage.head, dead)
            for position, (node, dead) in enumerate(steps)
        ]
        self._trunk = [step for step in self._steps if not step[2]]

    def run(
        self, network: nn.Module, state: State, *, answering: bool = True, training: bool = False
    ) -> tuple[torch.Tensor, State]:
        """The answer (an empty tensor if none is asked for; its head is not run then), and what later stages need."""
        stage = self._stage
        # What no later stage needs is freed after its last use, so the state is used up.
        values: list[Any] = [state[i] if i in stage.alive else state.pop(i) for i in stage.takes]
        values += self._tensors(network)
        values += [None] * len(self._steps)
        for index, call, in_head, dead in self._steps if answering else self._trunk:
            values[index] = call(values, training and in_head)
            for number in dead:
                values[number] = None
        answer, *given = [values[ref.index] for ref in stage.program.output]
        known = {**state, **dict(zip(stage.gives, given, strict=True))}
        return answer if answering else _NO_ANSWER, {index: known[index] for index in stage.alive}


_NO_ANSWER = torch.empty(0)


def _classes(program: Program, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many classes the answers are about, which must be of one shape."""
    values = infer_shapes(program, tensors, batch=2)
    shapes = [tuple(values[answer.index].shape) for answer in program.output]
    if len(shapes[-1]) != 2 or shapes[-1][0] != 2 or len(set(shapes)) > 1:
        raise RequestError(f"the answers of all exits must be of one shape (B, classes), got {shapes} for a batch of 2")
    return int(shapes[-1][1])


def _trunk_and_head(stage: Stage, macs: Sequence[int]) -> tuple[int, int]:
    """The MACs of a stage that later ones build upon, and those of its answer alone."""
    own = [0 if position < 0 else macs[position] for position in stage.nodes]
    head = sum(count for position, count in enumerate(own) if position in stage.head)
    return sum(own) - head, head
