"""Stages: every operation once, batch sizes read anew, and what cannot lose samples refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.program import ProgramModule
from featherweight.graph.stages import Stage, split_stages


class Branching(nn.Module):
    """Parts of a list that different answers need, a size of a multiple of the batch, a constant, and work for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, last = self.layer(x).split(3, dim=1)
        _ = last.exp()
        early = first + self.bias.tanh()
        twice = torch.cat([last, last])
        wide = twice.new_zeros(twice.shape[0], 3) + self.bias.tanh()
        return early, (twice.view(wide.shape) + wide).reshape(2, x.shape[0], 3).mean(0)


def stages_of(model: nn.Module, x: torch.Tensor) -> tuple[Stage, ...]:
    program = capture(model, x)
    return split_stages(program, tensors_of(model, program))


def test_stages_take_fewer_samples_and_run_everything_once() -> None:
    model = Branching().eval()
    x = torch.randn(5, 6)
    program = capture(model, x)
    first, last = split_stages(program, tensors_of(model, program))
    ops = [program.nodes[position].op for stage in (first, last) for position in stage.nodes if position >= 0]
    assert ops.count("linear") == 1
    assert ops.count("tanh") == 2  # depends on no input: made where it is needed
    assert "exp" not in ops
    assert -1 in last.nodes
    run = [ProgramModule(stage.program, tensors_of(model, stage.program)) for stage in (first, last)]
    early, handed_on = run[0](x)
    (late,) = run[1](handed_on[1:3])
    wanted = model(x)
    assert torch.equal(early, wanted[0])
    torch.testing.assert_close(late, wanted[1][1:3])
    assert first.alive == first.gives == last.takes
    assert [first.program.nodes[position].op for position in sorted(first.head)] == ["py.getitem", "tanh", "add.Tensor"]


def test_what_cannot_be_cut() -> None:
    class One(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    class Nested(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.relu().tanh(), x.relu()

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.relu()
            return y.tanh(), y

    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            turned = x.t()
            return turned.sum(0), turned.exp().t()

    x = torch.randn(2, 4)
    with pytest.raises(RequestError, match="two or more"):
        stages_of(One(), x)
    assert len(stages_of(Nested(), x)) == 2
    with pytest.raises(RequestError, match="answer 1 of the network must be a value of its own"):
        stages_of(Same(), x)
    with pytest.raises(UnsupportedOpError, match=r"gives \(4, 2\) for a batch of 2"):
        stages_of(Turned(), x)
