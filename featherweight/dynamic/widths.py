"""Slimmable networks: one set of weights that runs at several widths, each of them really narrow."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.dynamic.views import WidthView
from featherweight.errors import UnsupportedOpError, check, look_up
from featherweight.exporting.onnx import resize_batch
from featherweight.graph.capture import Example, on_device_of, tensors_of, twin_of
from featherweight.graph.cost import count_macs
from featherweight.graph.cutting import Anatomy, cut, resize, study
from featherweight.graph.groups import Axis, Coupling, Unit
from featherweight.graph.own_class import difference, tolerance
from featherweight.graph.program import Program, ProgramModule, TensorSpec, tensor_called
from featherweight.measuring.latency import time_in_turns
from featherweight.pruning.neuron_criteria import NEURON_CRITERIA
from featherweight.pruning.neurons import make_plan, select_groups
from featherweight.training.loaders import Batch
from featherweight.training.mode import in_mode
from featherweight.training.statistics import Evidence

__all__ = ["SlimmableNetwork", "Width", "make_slimmable", "norm_tensors"]

Width = float | str
"""A choice of a slimmable network: the fraction of every group's channels that stays, or the name of a shape of its own."""


class SlimmableNetwork(nn.Module):
    """One network that answers at several widths, see `make_slimmable`.

    Attributes:
        full: the whole network; its weights are the shared ones.
        own: for each choice the tensors that it shares with no other, under their names: batch norms, or their statistics.
        switchable: whether each choice has batch norms of its own.
        coupling: the groups of channels, sorted by importance in `full`.
    """

    def __init__(self, full: ProgramModule, coupling: Coupling, *, unit: Unit = "neuron", switchable: bool = True) -> None:
        super().__init__()
        self.full = full
        self.own = nn.ModuleDict()
        self.coupling, self.unit, self.switchable = coupling, unit, switchable
        self._shapes: dict[Width, tuple[int, ...]] = {}
        self._macs: dict[Width, int] = {}
        self.seconds: dict[Width, float] = {}
        self._views: dict[Width, WidthView] = {}
        self.add(1.0)

    def forward(self, *inputs: torch.Tensor, budget: Limit | None = None) -> Any:
        """The whole network's answer; with a budget that of the widest choice that keeps it."""
        return self.at_width(1.0 if budget is None else self.choose(budget))(*inputs)

    def choices(self) -> tuple[Width, ...]:
        """The widths, from the lightest to the full one."""
        return tuple(sorted(self._shapes, key=lambda choice: (self._macs[choice], choice == 1.0)))

    def cost(self, choice: Width) -> Cost:
        """What a choice costs: MACs of a sample, and the seconds that `time` measured, if it was asked to."""
        self._known(choice)
        return Cost(self._macs[choice], self.seconds.get(choice))

    def choose(self, limit: Limit, *, strict: bool = False) -> Width:
        """The widest choice that keeps a limit, see `choose_within`."""
        return choose_within({choice: self.cost(choice) for choice in self.choices()}, limit, strict=strict)

    def shape(self, choice: Width) -> tuple[int, ...]:
        """How many channels of each group stay, in the order of `coupling.groups`; without batch norms of their own, networks
        have a shape for any width in (0, 1], in hundredths."""
        if choice in self._shapes:
            return self._shapes[choice]
        if self.switchable or isinstance(choice, str):
            self._known(choice)
        return self._uniform(round(float(choice), 2))

    def at_width(self, choice: Width) -> WidthView:
        """The network at one width, in this network's mode: it shares all weights, and what is cut away is not computed."""
        if choice not in self._shapes and not self.switchable and not isinstance(choice, str):
            choice = round(float(choice), 2)
        if choice not in self._views:
            self._views[choice] = self.view(self.shape(choice), choice)
        view = self._views[choice]
        return view if view.training == self.training else view.train(self.training)

    def view(self, shape: Sequence[int], choice: Width | None = None) -> WidthView:
        """The network with the first channels of each group, as many as `shape` says, with a choice's own tensors or none."""
        removed = self._removed(shape)
        program = resize(self._anatomy(), removed)
        own = None if choice is None else self.own_tensors(choice)
        owned = set() if own is None else {spec.name for spec in own.program.tensors}
        places, cuts = {}, {}
        for name, tensor in ((spec.name, tensor_called(self.full, spec.name)) for spec in program.tensors):
            places[name] = f"own.{_key(choice)}.{name}" if choice is not None and name in owned else f"full.{name}"
            if name not in owned:
                axes = [axis for axis in range(tensor.dim()) if (name, axis) in removed]
                cuts[name] = tuple((axis, _run_of(tensor.shape[axis], removed[name, axis])) for axis in axes)
        return WidthView(self, program, places, cuts)

    def extract(self, choice: Width) -> ProgramModule:
        """A plain network of that width, with weights of its own, which gives the same outputs, bit for bit."""
        view = self.at_width(choice)
        tensors = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in view.tensors().items()
        }
        return twin_of(self.full, view.program, tensors)

    def add(self, choice: Width, shape: Sequence[int] | None = None) -> None:
        """Adds a choice, IN PLACE: a width in (0, 1], or a name with the number of channels that stay of each group.

        Where norms are switchable it begins with copies of the full width's; `recalibrate` finds its statistics.

        Raises:
            RequestError: the choice is there already, is out of range or no name, or the shape does not fit the groups.
        """
        check("a choice", choice, f"a new one, besides {', '.join(map(str, self._shapes))}", choice not in self._shapes)
        if isinstance(choice, str):
            check("the name of a choice", choice, "letters, digits and _, not a digit first", choice.isidentifier())
        if shape is None or not isinstance(choice, str):
            check("a width", choice, "in (0, 1]; a shape of its own needs its numbers of channels", _is_width(choice))
        kept = self._uniform(choice) if shape is None else self._fitting(shape)
        cut(self._anatomy(), self._removed(kept), self.full)  # checks that it computes what the masked network does
        view = self.view(kept)
        if self.switchable and choice != 1.0:
            names = set(norm_tensors(view.program))
            self.set_own(choice, {name: tensor for name, tensor in view.tensors().items() if name in names})
        self._shapes[choice] = kept
        self._macs[choice] = count_macs(view.program, view.tensors())
        self._views.pop(choice, None)

    def own_tensors(self, choice: Width) -> ProgramModule | None:
        """The module that holds what a choice shares with no other; None if it shares all."""
        found = self.own._modules.get(_key(choice))
        return found if isinstance(found, ProgramModule) else None

    def set_own(self, choice: Width, tensors: Mapping[str, torch.Tensor]) -> None:
        """Gives a choice tensors that it shares with no other, by name, IN PLACE; they are copied."""
        kinds = {spec.name: spec for spec in self.full.program.tensors}
        specs = tuple(TensorSpec(name, kinds[name].kind) for name in tensors)
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.own[_key(choice)] = ProgramModule(Program((), specs, (), None), copies)
        self._views.pop(choice, None)

    def time(self, example: Example, *, batch: int = 1, seconds: float = 0.2) -> None:
        """Measures how long each choice takes on this device, in PyTorch as the network runs here, and keeps it for `cost`.

        The choices take turns, so that what else the machine does falls on all of them alike; kept are medians.

        Args:
            example: a batch of inputs; its samples are repeated or cut to `batch`.
            batch: samples in a run, at least 1.
            seconds: how long to go on, for each choice.
        """
        check("batch", batch, "a whole number >= 1", isinstance(batch, int) and batch >= 1)
        check("seconds", seconds, "above 0", seconds > 0)
        inputs = on_device_of(self.full, resize_batch(self.full.program, example, batch))
        with in_mode(self, training=False), torch.no_grad():
            runs = [partial(self._answer, choice, inputs) for choice in self.choices()]
            medians = [statistics.median(times) for times in time_in_turns(runs, seconds)]
        self.seconds = dict(zip(self.choices(), medians, strict=True))

    def _answer(self, choice: Width, inputs: Sequence[torch.Tensor]) -> Any:
        answer = self.at_width(choice)(*inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize(inputs[0].device)
        return answer

    def _anatomy(self) -> Anatomy:
        program = self.full.program
        return Anatomy(self.full, program, tensors_of(self.full, program), self.coupling, self.unit)

    def _removed(self, shape: Sequence[int]) -> Mapping[Axis, tuple[int, ...]]:
        pairs = [(group, torch.arange(kept, group.size)) for group, kept in zip(self.coupling.groups, shape, strict=True)]
        return make_plan(self.full.program, self.coupling, pairs, unit=self.unit).removed

    def _uniform(self, width: Width) -> tuple[int, ...]:
        check("a width", width, "in (0, 1]", _is_width(width))
        return tuple(max(1, round(float(width) * group.size)) for group in self.coupling.groups)

    def _fitting(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = [group.size for group in self.coupling.groups]
        fits = len(shape) == len(sizes) and all(1 <= kept <= size for kept, size in zip(shape, sizes, strict=True))
        check("a shape", list(shape), f"for each group from 1 to as many channels as it has, {sizes}", fits)
        return tuple(int(kept) for kept in shape)

    def _known(self, choice: Width) -> None:
        check("a width", choice, f"one of {', '.join(map(str, self.choices()))}", choice in self._shapes)


def make_slimmable(
    model: nn.Module,
    example: Example,
    *,
    widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    switchable: bool = True,
    criterion: str = "magnitude",
    granularity: Unit = "neuron",
    data: Iterable[Batch] | None = None,
    seed: int = 0,
) -> SlimmableNetwork:
    """Makes a network that runs at several widths out of any that can be pruned: slimmable networks (Yu et al., ICLR 2019).

    The channels of each group are sorted by importance first (Cai et al., ICLR 2020, do so for their elastic widths), which
    leaves the outputs as they are; a narrow network then has the first channels of each. The full width answers as before. The
    narrow ones must be trained, see `tune_widths`.

    Args:
        model: any module that `torch.export` captures; it is not changed. Constraints are folded.
        example: a batch of inputs.
        widths: fractions in (0, 1]; each group keeps round(width · size) of its channels, at least 1. The full width, 1, is
            always there.
        switchable: whether each width has batch norms of its own, as in the paper. Without, all share one, any width runs, and
            `recalibrate` gives those that are wanted their statistics (universally slimmable, Yu and Huang, ICCV 2019).
        criterion: which channels come first, a name in `pruning.NEURON_CRITERIA`.
        granularity: what attention loses, "neuron" or "head".
        data: batches of (inputs, targets), for criteria that look at data.
        seed: for criteria that draw random numbers, and the order of data that are shuffled.

    Returns:
        The slimmable network, in the model's mode.

    Raises:
        RequestError: a width is out of range or there is none, an unknown criterion, or data that are needed and not given.
        UnsupportedOpError: nothing may shrink, or the channels cannot change places.
        CaptureError: as `capture` says.

    Example:
        >>> net = make_slimmable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> [(width, net.cost(width).macs) for width in net.choices()]
        [(0.25, 12), (0.5, 24), (0.75, 36), (1.0, 48)]
        >>> net.extract(0.5)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """
    check("widths", list(widths), "fractions in (0, 1], at least one", len(widths) > 0 and all(map(_is_width, widths)))
    score = look_up(NEURON_CRITERIA, criterion, "criterion")
    network = study(model, example, unit=granularity)
    groups = select_groups(network)
    twin = ProgramModule(network.program, network.tensors).eval()
    evidence = Evidence(twin, data, generator=torch.Generator().manual_seed(seed), purpose=f"the criterion {criterion!r}")
    scores = score(groups, network, evidence)
    orders = [
        torch.arange(g.size) if s is None else s.cpu().argsort(descending=True, stable=True)
        for g, s in zip(groups, scores, strict=True)
    ]
    full = twin_of(network.model, network.program, _sorted(network, orders))
    _check_sorted(twin, full)
    net = SlimmableNetwork(full, network.coupling, unit=granularity, switchable=switchable).train(model.training)
    for width in sorted({float(width) for width in widths} - {1.0}):
        net.add(width)
    return net


def norm_tensors(program: Program) -> list[str]:
    """The names of what batch norms compute with: weights, biases and running statistics.

    Args:
        program: any.

    Returns:
        The names of the program's tensors that are such, in its order.
    """
    read = {program.tensor_name(value) for node in program.nodes if node.op == "batch_norm" for value in node.args[1:5]}
    return [spec.name for spec in program.tensors if spec.name in read]


def _sorted(network: Anatomy, orders: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors with each group's channels in a new order."""
    places: dict[Axis, torch.Tensor] = {}
    for group, order in zip(network.coupling.groups, orders, strict=True):
        for (name, axis), indices in group.members.items():
            place = places.setdefault((name, axis), torch.arange(network.tensors[name].shape[axis]))
            place[indices] = indices[order]
    found = {name: tensor.clone() for name, tensor in network.tensors.items()}
    for (name, axis), place in places.items():
        found[name] = found[name].index_select(axis, place.to(found[name].device))
    return found


def _check_sorted(before: ProgramModule, after: ProgramModule) -> None:
    inputs = on_device_of(before, before.program.example(batch=2, seed=1))
    with in_mode(after, training=False), torch.no_grad():
        distance = difference(after(*inputs), before(*inputs))
    if distance > tolerance(before):
        raise UnsupportedOpError(
            f"channels in another order must leave the outputs as they are, but they differ by {distance:.2g} of the largest: "
            "some operation tells channels apart by their place; report it"
        )


def _run_of(size: int, removed: tuple[int, ...]) -> tuple[int, int] | torch.Tensor:
    """What stays of an axis: (start, length) where that is one run, else the indices."""
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(removed)] = False
    kept = stays.nonzero().flatten()
    start, length = int(kept[0]), len(kept)
    return (start, length) if int(kept[-1]) == start + length - 1 else kept


def _is_width(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


def _key(choice: Width) -> str:
    """A choice as the name of a submodule, which may hold no dot; no identifier is like that of a number."""
    return str(choice).replace(".", "_")
