"""Several networks as one teacher: ensembles, and the mean of their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import log_softmax, one_hot

from featherweight.errors import RequestError, check, look_up
from featherweight.graph.constraint import fold
from featherweight.graph.program import ProgramModule
from featherweight.training.loaders import Loader
from featherweight.training.mode import device_of

__all__ = ["COMBINATIONS", "Ensemble", "average_weights", "combine_logits", "combine_outputs", "combine_votes"]

Combination = Callable[[torch.Tensor], torch.Tensor]
"""Logits (members, B, classes) -> logits (B, classes)."""


def combine_logits(members: torch.Tensor) -> torch.Tensor:
    """The mean of the logits, so the geometric mean of the outputs (Hinton, Vinyals and Dean 2015, section 2).

    Args:
        members: logits (members, B, classes).

    Returns:
        Logits (B, classes).

    Example:
        >>> combine_logits(torch.tensor([[[1.0, 3.0]], [[3.0, 3.0]]])).tolist()
        [[2.0, 3.0]]
    """
    return members.mean(0)


def combine_outputs(members: torch.Tensor) -> torch.Tensor:
    """The mean of the outputs softmax(z), as logits: its logarithm.

    Args:
        members: logits (members, B, classes).

    Returns:
        Logits (B, classes), of which softmax gives the mean.

    Example:
        >>> members = torch.tensor([[[0.0, 100.0]], [[0.0, 0.0]]])
        >>> round(combine_outputs(members).softmax(-1)[0, 1].item(), 3)
        0.75
    """
    return log_softmax(members, -1).logsumexp(0) - torch.tensor(float(len(members))).log()


def combine_votes(members: torch.Tensor) -> torch.Tensor:
    """The shares of the votes, one of each member for its largest output, as logits.

    A class without a vote counts as one with a hundredth of a vote, so that logits stay finite.

    Args:
        members: logits (members, B, classes).

    Returns:
        Logits (B, classes), of which softmax gives the shares.

    Example:
        >>> members = torch.tensor([[[0.0, 9.0]], [[1.0, 2.0]], [[3.0, 0.0]]])
        >>> combine_votes(members).softmax(-1)[0, 1].item() > 0.66
        True
    """
    votes = one_hot(members.argmax(-1), members.shape[-1]).sum(0).to(members.dtype)
    return votes.clamp_min(0.01).log()


COMBINATIONS: dict[str, Combination] = {"logits": combine_logits, "outputs": combine_outputs, "votes": combine_votes}


class Ensemble(nn.Module):
    """Networks that answer together.

    Args:
        members: at least one, each (B, …) -> logits (B, classes); taken as they are, not copied.
        combine: a name in `COMBINATIONS`.

    Raises:
        RequestError: no member, or an unknown name.

    Example:
        >>> twice, half = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> Ensemble([twice, half])(torch.zeros(3, 1)).shape
        torch.Size([3, 2])
    """

    def __init__(self, members: Sequence[nn.Module], *, combine: str = "logits") -> None:
        super().__init__()
        check("members", len(members), "at least 1", len(members) >= 1)
        self.members = nn.ModuleList(members)
        self.combine = combine
        self._combine = look_up(COMBINATIONS, combine, "combine")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The members' common answer, logits (B, classes)."""
        return self._combine(torch.stack([member(x) for member in self.members]))

    def extra_repr(self) -> str:
        """How the members are combined, for `repr`."""
        return f"combine={self.combine!r}"


def average_weights(models: Sequence[nn.Module], *, data: Loader | None = None) -> nn.Module:
    """One network whose weights are the mean of several of the same kind.

    Stochastic weight averaging (Izmailov et al., UAI 2018) if these are snapshots of one training, a model soup (Wortsman et
    al., ICML 2022) if they were tuned apart from a common start; networks trained apart from the beginning have no useful mean.

    Args:
        models: at least one; their tensors must agree in names and shapes. They are not changed, constraints are folded.
        data: batches of (inputs, …) with which the statistics of batch norms are taken anew; without, they are the mean, too.

    Returns:
        A network like the first.

    Raises:
        RequestError: no model, tensors that do not agree, or data for the batch norms of captured programs.

    Example:
        >>> first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> mean = average_weights([first, second])
        >>> torch.equal(mean.weight, (first.weight + second.weight) / 2)
        True
    """
    check("models", len(models), "at least 1", len(models) >= 1)
    folded = [fold(model) for model in models]
    mean = copy.deepcopy(folded[0])
    states = [model.state_dict() for model in folded]
    for other in states[1:]:
        differ = sorted({*states[0]} ^ {*other}) or [k for k in other if other[k].shape != states[0][k].shape]
        if differ:
            raise RequestError(
                f"networks to average must agree in names and shapes, but they differ in {', '.join(differ[:3])}"
            )
    norms = any(node.op == "batch_norm" for node in mean.program.nodes) if isinstance(mean, ProgramModule) else False
    if data is not None and norms:
        raise RequestError(
            "statistics can be taken anew of batch norm modules, which a captured program has not; average the networks it "
            "was made from, or leave out data"
        )
    averaged = {
        name: torch.stack([state[name].to(first.device) for state in states]).mean(0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }
    mean.load_state_dict(averaged)
    if data is not None:
        torch.optim.swa_utils.update_bn(data, mean, device=device_of(mean))
    return mean
