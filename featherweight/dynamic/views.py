"""A slimmable network at one of its widths: a view of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featherweight.graph.program import Input, Lookup, Program, ProgramModule

if TYPE_CHECKING:
    from featherweight.dynamic.widths import SlimmableNetwork

__all__ = ["Reader", "WidthView"]

Reader = Callable[[nn.Module], list[torch.Tensor]]
"""Reads certain tensors of a module."""


class WidthView(nn.Module):
    """A slimmable network at one width: it owns nothing, and slices the shared weights each time it runs.

    Where the channels of a line are one run, as they are but for attention and concatenations, a slice is a view. Train and
    eval mode are its own; its parameters are the whole network's.

    Attributes:
        network: whose weights these are.
        program: what it computes.
    """

    def __init__(
        self, network: SlimmableNetwork, program: Program, places: Mapping[str, str], cuts: Mapping[str, _Cuts]
    ) -> None:
        super().__init__()
        self.network = network
        self.program = program
        self._places, self._cuts = places, cuts
        self._slices = self.reader([spec.name for spec in program.tensors])
        # The same numbers in the same order, only that the tensors are inputs: so a step of training reaches the shared ones.
        passed = tuple(Input(spec.name, (), torch.float32) for spec in program.tensors)
        self._run = ProgramModule(replace(program, inputs=program.inputs + passed, tensors=(), constants={}), {})

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The network's answer at this width."""
        return self._run(*inputs, *self._slices(self))

    def train(self, mode: bool = True) -> WidthView:
        """Sets its own mode; the whole network's stays."""
        self.training = self._run.training = mode
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors it computes with, by name."""
        return dict(zip((spec.name for spec in self.program.tensors), self._slices(self), strict=True))

    def reader(self, names: Sequence[str]) -> Reader:
        """A function that reads some of its tensors, again and again, of this view or a copy of it."""
        return _Slices(Lookup(self._places[name] for name in names), [self._cuts.get(name, ()) for name in names])


_Cuts = tuple[tuple[int, tuple[int, int] | torch.Tensor], ...]
"""What a narrow network has of a tensor: along some axes a run (start, length), or indices."""


class _Slices:
    """Reads the tensors of a view: where they are, and what of them.

    To slice a tensor takes longer than a small layer computes, so without gradients a slice that is a view is kept for as long
    as what it is a view of stays where it is.
    """

    def __init__(self, whole: Lookup, cuts: Sequence[_Cuts]) -> None:
        self._whole = whole
        self._cuts = [(place, cut) for place, cut in enumerate(cuts) if cut]
        self._kept: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def __call__(self, view: Any) -> list[torch.Tensor]:
        tensors = self._whole(view.network)
        if torch.is_grad_enabled():
            self._kept.clear()
        for place, cuts in self._cuts:
            whole = tensors[place]
            kept = self._kept.get(place)
            if kept is not None and kept[0] is whole and kept[1] == whole.data_ptr():
                tensors[place] = kept[2]
                continue
            tensors[place] = _slice(whole, cuts)
            if type(whole) in _PLAIN and not torch.is_grad_enabled() and all(isinstance(run, tuple) for _, run in cuts):
                self._kept[place] = (whole, whole.data_ptr(), tensors[place])
        return tensors


_PLAIN = (nn.Parameter, torch.Tensor)


def _slice(tensor: torch.Tensor, cuts: _Cuts) -> torch.Tensor:
    for axis, kept in cuts:
        if isinstance(kept, torch.Tensor):
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        else:
            tensor = tensor.narrow(axis, *kept)
    return tensor
