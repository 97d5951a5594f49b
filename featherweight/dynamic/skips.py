"""Networks whose residual branches run for the samples that need them, and for no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from featherweight.dynamic.effort import EffortNetwork, Spent
from featherweight.dynamic.gating import GATINGS
from featherweight.errors import FeatherweightError, RequestError, check, look_up
from featherweight.exporting.gated import LOGITS, PartFile
from featherweight.graph.capture import Example, on_device_of, to_module
from featherweight.graph.cost import node_macs
from featherweight.graph.program import Call, Lookup, Program, ProgramModule, Ref, last_uses
from featherweight.graph.residuals import Residual, find_residuals
from featherweight.graph.rewrite import without_unneeded
from featherweight.graph.shapes import infer_shapes
from featherweight.graph.stages import Stage, split_stages
from featherweight.training.mode import in_mode

__all__ = ["Decide", "Path", "SkipNetwork", "Trial", "skippable"]

Decide = Callable[[int, torch.Tensor], torch.Tensor]
"""(a branch's number, its gate's logits (B,)) -> (B,): booleans, which samples take the branch; or numbers in [0, 1], what it
is multiplied by."""


@dataclass(frozen=True)
class Path:
    """What a network answered, and how the samples went through it.

    Attributes:
        answer: (B, …), in the order of the samples.
        decisions: of each branch, (B,): booleans, or numbers in [0, 1].
        said: of each gate the logits, (B,).
    """

    answer: torch.Tensor
    decisions: tuple[torch.Tensor, ...]
    said: tuple[torch.Tensor, ...]

    @property
    def taken(self) -> torch.Tensor:
        """What was decided: (B, branches)."""
        return torch.stack(self.decisions, 1)

    @property
    def logits(self) -> torch.Tensor:
        """What the gates said: (B, branches)."""
        return torch.stack(self.said, 1)


class Trial(NamedTuple):
    """What a network gives in train mode: the answers (B, …), and the share (B,) of the full network's MACs that they cost."""

    answer: torch.Tensor
    spent: torch.Tensor


class SkipNetwork(EffortNetwork):
    """A network in which each sample takes the residual branches that are worth it: see `add_gates` and `add_policy`.

    In eval mode a branch runs for the samples whose gate's logit exceeds the `price`: these are taken out of the batch
    together, computed, and put back, so that a batch costs what its members cost. What no sample takes is not executed.

    In train mode all branches run for all samples, and are multiplied by what their gates say, as `gating` turns it into
    numbers, so that gradients reach the gates; batch norms see all samples. It gives a `Trial`, for a loss like `skip_loss`.

    It is a view of one ordinary network, `network`, that gives what the gates say and then its answer. The weights are held
    once.

    Args:
        network: any that can be captured and gives (logits of gates, …, answer): logits are (B, 1) or (B, several), together
            one for each branch. A captured program is taken as it is, not copied.
        branches: the names of the branches with a gate, as `find_residuals` has them, in the order of the logits.
        example: a batch of inputs to capture the network with; a `ProgramModule` needs none.

    Attributes:
        network: all of it, as a `ProgramModule` with the tensors' original names.
        branches: the names.
        gate_tensors: the names of the tensors that gates alone read.
        branch_macs: multiply-accumulates of each branch, of one sample.
        gating: a name in `GATINGS`: what train mode makes of logits.
        temperature: that `gating` uses, above 0.

    Raises:
        RequestError: a branch is not there, the logits are not as many, or there is no example.
        CaptureError: the network cannot be captured.
        UnsupportedOpError: samples do not lie on axis 0 where a branch begins or ends.

    Example:
        >>> from featherweight.dynamic import add_gates
        >>> from featherweight.nets import vit
        >>> net = add_gates(vit(input_shape=(1, 8, 8), channels=8, depth=1, heads=2, patch=4), torch.zeros(1, 1, 8, 8)).eval()
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.spend(0.0, torch.zeros(5, 1, 8, 8)).taken.shape
        (torch.Size([5, 10]), torch.Size([5, 2]))
    """

    def __init__(self, network: nn.Module, branches: Sequence[str], example: Example | None = None) -> None:
        if example is None and type(network) is not ProgramModule:
            raise RequestError(f"capturing a {type(network).__name__} needs an example of its inputs: pass example=<one batch>")
        made = network if type(network) is ProgramModule else to_module(network, example)  # type: ignore[arg-type]
        program, tensors = made.program, made.state_dict()
        residuals = _found(program, tensors, branches)
        widths = _columns(program, tensors, len(residuals))
        answers, roles = _order(program, residuals, widths)
        stages = split_stages(replace(program, output=tuple(map(Ref, answers))), tensors) if len(answers) > 1 else ()
        whole = without_unneeded(replace(program, output=program.output[-1]))
        counts = node_macs(program, tensors)
        super().__init__(sum(node_macs(whole, tensors)))
        self.network = made
        self.branches = tuple(branches)
        self.gating, self.temperature = "straight-through", 1.0
        names = [spec.name for spec in program.tensors]
        numbers = {name: number for number, name in enumerate(names)}
        self._tensors = Lookup(names)
        self.gate_tensors = frozenset(names) - {spec.name for spec in whole.tensors}
        self._whole = _Part(replace(whole, output=(whole.output,)), numbers)
        self._sums = [(residual.skip.index, residual.total) for residual in residuals]
        self.output = program.output[-1].index
        steps = [_Step(stage, role, numbers) for stage, role in zip(stages, roles, strict=True)]
        self._steps = list(zip(steps, _dead(stages, len(program.inputs), self.output), strict=True))
        own = [step.macs(counts) for step in steps if isinstance(step.role, int)]
        self.branch_macs, self._fixed = tuple(own), sum(counts) - sum(own)
        self._check_steps()
        self.train(made.training)

    @property
    def program(self) -> Program:
        """Of the whole network, gates included."""
        return self.network.program

    @property
    def gating(self) -> str:
        """What train mode makes of the gates' logits: a name in `GATINGS`."""
        return self._gating

    @gating.setter
    def gating(self, name: str) -> None:
        look_up(GATINGS, name, "gating")
        self._gating = name

    def explore(self, *inputs: Any) -> Trial:
        """The answers in train mode, where branches are multiplied by what their gates say."""
        gate = GATINGS[self._gating]
        path = self.follow(inputs, lambda _, logits: gate(logits, self.temperature), training=True)
        return Trial(path.answer, self.share_of(path.taken))

    def answer_at(self, price: float, *inputs: torch.Tensor) -> torch.Tensor:
        """The answers at a price; at -∞ the gates are not asked."""
        if price == -math.inf:
            self._check_inputs(inputs)
            answer: torch.Tensor = self._whole(self._tensors(self.network), inputs, False)[0]
            return answer
        return self.follow(inputs, lambda _, logits: logits > price).answer

    def spend(self, price: float, *inputs: torch.Tensor) -> Spent:
        """The answers at a price, the MACs of each sample, and which branches it took."""
        if price == -math.inf:
            answer = self.answer_at(price, *inputs)
            taken = answer.new_ones(len(answer), len(self.branches), dtype=torch.bool)
            return Spent(answer, answer.new_full((len(answer),), self.cost(-math.inf).macs, dtype=torch.float64), taken)
        path = self.follow(inputs, lambda _, logits: logits > price)
        return Spent(path.answer, self.macs_of(path.taken), path.taken)

    def worth(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the gates say where everything runs: (B, branches)."""
        return self.follow(inputs, lambda _, logits: torch.ones_like(logits, dtype=torch.bool)).logits

    def macs_of(self, taken: torch.Tensor) -> torch.Tensor:
        """The MACs of samples that took these branches: (B, branches) -> (B,), gates included."""
        return self._fixed + taken.double() @ torch.tensor(self.branch_macs, dtype=torch.float64, device=taken.device)

    def share_of(self, taken: torch.Tensor) -> torch.Tensor:
        """`macs_of` as a share of the full network's without gates: (B, branches) -> (B,), with gradients."""
        return (self.macs_of(taken) / self._costs[-math.inf].macs).float()

    def follow(self, inputs: Sequence[torch.Tensor], decide: Decide, *, training: bool = False) -> Path:
        """The way through the network that is decided, branch by branch.

        Args:
            inputs: as the network takes them, (B, …).
            decide: gets each branch's number and its gate's logits (B,). Where it gives booleans, the branch runs for those
                samples alone; where it gives numbers, for all, and is multiplied by them.
            training: whether norms and dropout are in train mode.

        Returns:
            Answers, decisions and logits.
        """
        self._check_inputs(inputs)
        tensors = self._tensors(self.network)
        state: dict[int, Any] = dict(enumerate(inputs))
        said: list[torch.Tensor] = []
        taken: list[torch.Tensor] = []
        for step, dead in self._steps:
            read = [state[index] for index in step.takes]
            if isinstance(step.role, int):
                taken.append(decide(step.role, said[step.role]))
                skip, total = self._sums[step.role]
                state[total] = step.add(tensors, read, state[skip], taken[-1], training)
            else:
                answer, *given = step.run(tensors, read, training)
                state.update(zip(step.gives, given, strict=True))
                if step.role == "gates":
                    said += answer.unbind(1)
                elif step.role == "answer":
                    state[self.output] = answer
            for index in dead:
                del state[index]
        return Path(state[self.output], tuple(taken), tuple(said))

    def parts(self) -> Iterator[tuple[Program, PartFile]]:
        """The parts that `follow` runs, in order, each with how it goes together with the others (its file has no name yet)."""
        for step, dead in self._steps:
            answer, *given = step.program.output
            if isinstance(step.role, int):
                skip, total = self._sums[step.role]
                yield replace(step.program, output=(answer,)), PartFile("", step.takes, (total,), skip, tuple(dead))
                continue
            named = {"gates": LOGITS, "answer": self.output}
            gives = dict(zip(given, step.gives, strict=True))
            outputs = {answer: named[step.role], **gives} if step.role in named else gives
            yield (
                replace(step.program, output=tuple(outputs)),
                PartFile("", step.takes, tuple(outputs.values()), None, tuple(dead)),
            )

    def _check_inputs(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.program.inputs):
            names = ", ".join(spec.name for spec in self.program.inputs)
            raise RequestError(f"this network takes {len(self.program.inputs)} inputs ({names}), got {len(inputs)}")

    def _check_steps(self) -> None:
        """With all branches taken, all steps together must compute what the network does, bit for bit."""
        inputs = on_device_of(self.network, self.program.example(batch=3, seed=1))
        with in_mode(self.network, training=False), torch.no_grad():
            *_, wanted = self.network(*(x.clone() for x in inputs))
            plain = self.answer_at(-math.inf, *(x.clone() for x in inputs))
            found = self.follow(inputs, lambda _, logits: torch.ones_like(logits, dtype=torch.bool)).answer
        if not torch.equal(wanted.nan_to_num(), found.nan_to_num()) or not torch.equal(plain.nan_to_num(), found.nan_to_num()):
            raise FeatherweightError(
                "a network cut at its branches must answer as it does whole, but does not: an operation changes the input of a "
                "branch or of a gate in place; leave that branch out with at=, and report this as a bug"
            )


class _Part:
    """Runs a part of a network on the network's own tensors.

    Args:
        program: whose tensors are some of the network's.
        numbers: where the network's program has each of its tensors.
    """

    def __init__(self, program: Program, numbers: Mapping[str, int]) -> None:
        self._own = [numbers[spec.name] for spec in program.tensors]
        self._calls = list(zip(map(Call, program.nodes), last_uses(program), strict=True))
        self.output = [ref.index for ref in program.output]

    def __call__(self, tensors: Sequence[torch.Tensor], inputs: Sequence[Any], training: bool) -> list[Any]:
        values = [*inputs, *(tensors[number] for number in self._own)]
        for call, dead in self._calls:
            values.append(call(values, training))
            for index in dead:
                values[index] = None
        return [values[index] for index in self.output]


class _Step:
    """A stage of the network, and what its answer is: logits of "gates", the "skip" beside a branch, the "answer", or the sum
    that ends a branch, by the branch's number."""

    def __init__(self, stage: Stage, role: int | str, numbers: Mapping[str, int]) -> None:
        self.role = role
        self.program, self.nodes, self.takes, self.gives = stage.program, stage.nodes, stage.takes, stage.gives
        self.run = _Part(stage.program, numbers)

    def add(
        self, tensors: Sequence[torch.Tensor], inputs: Sequence[Any], skip: torch.Tensor, taken: torch.Tensor, training: bool
    ) -> torch.Tensor:
        """The sum of skip and branch for the samples that take it, and the skip alone for the others."""
        if taken.dtype != torch.bool:
            total: torch.Tensor = self.run(tensors, inputs, training)[0]
            share = taken.reshape(-1, *[1] * (skip.dim() - 1)).to(total.dtype)
            return share * total + (1 - share) * skip
        flags = taken.tolist()
        if all(flags):
            return self.run(tensors, inputs, training)[0]  # type: ignore[no-any-return]
        if not any(flags):
            return skip.clone()  # what follows may write into it
        rows = taken.nonzero()[:, 0]
        total = self.run(tensors, [value[rows] for value in inputs], training)[0]
        return skip.index_copy(0, rows, total.to(skip.dtype))

    def macs(self, counts: Sequence[int]) -> int:
        """Of one sample."""
        return sum(counts[position] for position in self.nodes if position >= 0)


def _dead(stages: Sequence[Stage], inputs: int, output: int) -> list[list[int]]:
    """For each stage the values that none after it needs, the network's output apart."""
    known, found = set(range(inputs)), []
    for stage in stages:
        known |= set(stage.gives)
        found.append(sorted(known - set(stage.alive) - {output}))
        known &= set(stage.alive) | {output}
    return found


def skippable(program: Program, tensors: Mapping[str, torch.Tensor]) -> tuple[Residual, ...]:
    """The residual branches that can get a gate: of nested ones those that hold no other.

    Args:
        program: a network.
        tensors: its tensors by name; only shapes are read.

    Returns:
        The branches, in the order they run; none where the network has none.
    """
    found = find_residuals(program, infer_shapes(program, tensors))
    own = [set(residual.tensors) for residual in found]
    return tuple(
        residual
        for number, residual in enumerate(found)
        if not any(other < own[number] for k, other in enumerate(own) if k != number)
    )


def _found(program: Program, tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[Residual]:
    by_name = {residual.name: residual for residual in find_residuals(program, infer_shapes(program, tensors))}
    check("branches", list(names), "at least one, none twice", len(names) > 0 and len(set(names)) == len(names))
    found = [look_up(by_name, name, "a branch") for name in names]
    totals = [residual.total for residual in found]
    check("branches", list(names), "in the order they run", totals == sorted(totals))
    return found


def _columns(program: Program, tensors: Mapping[str, torch.Tensor], branches: int) -> list[int]:
    """How many logits each of the outputs but the last has."""
    outputs = program.output if isinstance(program.output, tuple | list) else (program.output,)
    if len(outputs) < 2 or not all(isinstance(value, Ref) and value.index >= program.first_node for value in outputs):
        raise RequestError(f"a network with gates gives their logits and then its answer, got {len(outputs)} outputs")
    values = infer_shapes(program, tensors, batch=3)
    shapes = [tuple(values[value.index].shape) for value in outputs[:-1]]
    if any(len(shape) != 2 or shape[0] != 3 for shape in shapes) or sum(shape[1] for shape in shapes) != branches:
        raise RequestError(f"gates must give logits (B, 1) or (B, several), {branches} in all, got {shapes} for a batch of 3")
    return [shape[1] for shape in shapes]


def _order(program: Program, residuals: Sequence[Residual], widths: Sequence[int]) -> tuple[list[int], list[int | str]]:
    """The values at which the network is cut, in the order they are computed, and what each is.

    Before a branch come its gate and, unless something earlier needs it, the skip.
    """
    done: set[int] = set()
    answers: list[int] = []
    roles: list[int | str] = []

    def cut(index: int, role: int | str) -> None:
        answers.append(index)
        roles.append(role)
        waiting = [index]
        while waiting:
            index = waiting.pop()
            if index >= program.first_node and index not in done:
                done.add(index)
                waiting += [ref.index for ref in program.nodes[index - program.first_node].refs]

    gates = [ref for ref, width in zip(program.output, widths, strict=False) for _ in range(width)]
    for number, (residual, gate) in enumerate(zip(residuals, gates, strict=True)):
        if gate.index not in done:
            cut(gate.index, "gates")
        if residual.skip.index >= program.first_node and residual.skip.index not in done:
            cut(residual.skip.index, "skip")
        cut(residual.total, number)
    if program.output[-1].index not in done:
        cut(program.output[-1].index, "answer")
    return answers, roles
