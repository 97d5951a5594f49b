"""How gates learn what a branch is worth: with the network, by gradients through them; or by trial, from rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.dynamic.skips import SkipNetwork, Trial
from featherweight.errors import check, look_up
from featherweight.training.loaders import Loader
from featherweight.training.loop import AfterStep, Loss, Tuning, fit
from featherweight.training.progress import Progress, silent

__all__ = ["REWARDS", "Draw", "Reinforcement", "cool", "loss_reward", "policy_loss", "reinforce", "right_reward", "skip_loss"]


def skip_loss(*, cost: float = 0.1, loss: Loss = cross_entropy) -> Loss:
    """The loss of a network with gates in train mode, for `training.fit`: that of its answers, and the MACs that they cost.

    L = loss(answers, targets) + cost · mean share of the full network's MACs (Wang et al., ECCV 2018, equation 2, where a
    skipped layer is a reward; here MACs, since layers are of unequal size).

    Args:
        cost: what all of the network's MACs weigh beside the loss, at least 0.
        loss: (answers, targets) -> scalar.

    Returns:
        (what a `SkipNetwork` gives in train mode, targets) -> scalar.

    Raises:
        RequestError: the cost is below 0.

    Example:
        >>> trial = Trial(torch.zeros(2, 10), torch.tensor([1.0, 0.5]))
        >>> round(skip_loss(cost=0.4)(trial, torch.tensor([0, 1])).item(), 4)  # log 10 + 0.4 · 0.75
        2.6026
    """
    check("cost", cost, "at least 0", cost >= 0)

    def total(trial: Trial, targets: torch.Tensor) -> torch.Tensor:
        answer, spent = trial
        return loss(answer, targets) + cost * spent.mean()

    return total  # type: ignore[return-value]


def cool(start: float = 2.0, end: float = 0.5) -> AfterStep:
    """Lets the temperature of gates fall while they are trained, geometrically, for `training.fit`: from soft to hard.

    Jang, Gu and Poole (ICLR 2017, section 2.2) anneal the temperature of the Gumbel-softmax so.

    Args:
        start: the temperature after the first step, about, above 0.
        end: after the last one, above 0.

    Returns:
        (a `SkipNetwork`, the fraction of all steps done) -> nothing; its `temperature` is set.

    Raises:
        RequestError: a temperature is not above 0.

    Example:
        >>> net = nn.Module()
        >>> cool(4.0, 1.0)(net, 0.5)
        >>> net.temperature
        2.0
    """
    check("start and end", (start, end), "above 0", start > 0 and end > 0)

    def after_step(net: nn.Module, done: float) -> None:
        net.temperature = start * (end / start) ** done

    return after_step


Reward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Reinforcement"], torch.Tensor]
"""(answers (B, classes), shares of MACs (B,), targets (B,), settings) -> (B,)."""


def loss_reward(answer: torch.Tensor, spent: torch.Tensor, targets: torch.Tensor, how: Reinforcement) -> torch.Tensor:
    """R = -cross-entropy - cost · share of MACs (Wang et al., ECCV 2018, equation 4).

    Args:
        answer: (B, classes).
        spent: (B,).
        targets: (B,).
        how: gives the cost.

    Returns:
        (B,).

    Example:
        >>> how = Reinforcement(cost=0.5)
        >>> loss_reward(torch.tensor([[50.0, 0.0]]), torch.tensor([0.6]), torch.tensor([0]), how)
        tensor([-0.3000])
    """
    return -cross_entropy(answer, targets, reduction="none") - how.cost * spent


def right_reward(answer: torch.Tensor, spent: torch.Tensor, targets: torch.Tensor, how: Reinforcement) -> torch.Tensor:
    """R = 1 - share² where the answer is right, else -penalty (Wu et al., CVPR 2018, equation 3, of blocks; here of MACs).

    Args:
        answer: (B, classes).
        spent: (B,).
        targets: (B,).
        how: gives the penalty.

    Returns:
        (B,).

    Example:
        >>> answers = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> right_reward(answers, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), Reinforcement(penalty=2.0))
        tensor([ 0.7500, -2.0000])
    """
    return torch.where(answer.argmax(1) == targets, 1 - spent.square(), torch.full_like(spent, -how.penalty))


REWARDS: Mapping[str, Reward] = {"loss": loss_reward, "right": right_reward}
"""Rewards by name."""


@dataclass(frozen=True)
class Reinforcement:
    """How gates are rewarded.

    Args:
        reward: a name in `REWARDS`: "loss" as in SkipNet, "right" as in BlockDrop.
        cost: of "loss": what all of the network's MACs weigh beside the loss, at least 0.
        penalty: of "right": for a wrong answer, at least 0.
        curriculum: the share of the steps, in [0, 1], in which branches come under the gates' control, the last one first;
            the others run. 0 is no curriculum.
        joint: whether the network learns, too, from the loss of its answers (hybrid, as in SkipNet, and in BlockDrop's joint
            finetuning); otherwise it stays as it is, its norms' statistics too, and only what is executed is computed.
        bound: b, in (0.5, 1]: gates are followed with probability b, and their opposite is done with 1 - b, so that they do not
            settle too early (Wu et al., section 3.2: 0.8).

    Raises:
        RequestError: a value is out of range, or a name unknown.

    Example:
        >>> Reinforcement(reward="right", curriculum=0.7).penalty
        1.0
    """

    reward: str = "loss"
    cost: float = 0.1
    penalty: float = 1.0
    curriculum: float = 0.0
    joint: bool = False
    bound: float = 0.8

    def __post_init__(self) -> None:
        look_up(REWARDS, self.reward, "reward")
        check("cost", self.cost, "at least 0", self.cost >= 0)
        check("penalty", self.penalty, "at least 0", self.penalty >= 0)
        check("curriculum", self.curriculum, "in [0, 1]", 0 <= self.curriculum <= 1)
        check("bound", self.bound, "in (0.5, 1]", 0.5 < self.bound <= 1)


def reinforce(
    net: SkipNetwork,
    loader: Loader,
    tuning: Tuning,
    how: Reinforcement | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Trains gates IN PLACE by policy gradients: REINFORCE with what the gates would do by themselves as the baseline.

    For each sample the branches are drawn with the gates' probabilities p, and the loss is -(R - R̃) · Σ log p(draw), where R̃ is
    the reward of what is more probable at every gate (Wu et al., CVPR 2018, equations 5 and 6, self-critical; SkipNet, Wang et
    al., ECCV 2018, has no baseline, and credits each gate with what came after it alone).

    Args:
        net: with gates or a policy; its mode, price and gating do not matter.
        loader: batches of (inputs, targets (B,)).
        tuning: as for `fit`.
        how: rewards, curriculum, and what learns; `Reinforcement()` by default.
        seed: as for `fit`; the draws follow from it, too.
        progress: as for `fit`.

    Raises:
        RequestError: the gates have nothing to train.
        TrainingError, DataError: as `fit` says.

    Example:
        >>> from featherweight.dynamic import add_policy
        >>> from featherweight.nets import vit
        >>> net = add_policy(vit(input_shape=(1, 8, 8), channels=8, depth=1, heads=2, patch=4), torch.zeros(1, 1, 8, 8))
        >>> before = {name: tensor.clone() for name, tensor in net.network.state_dict().items()}
        >>> reinforce(net, [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))], Tuning(learning_rate=0.1))
        >>> changed = {name for name, tensor in net.network.state_dict().items() if not torch.equal(tensor, before[name])}
        >>> changed <= net.gate_tensors
        True
    """
    how = how or Reinforcement()
    rollout = _Rollout(net, how)
    trainable = {name: parameter.requires_grad for name, parameter in net.network.named_parameters()}
    try:
        for name, parameter in net.network.named_parameters():
            parameter.requires_grad_(trainable[name] and (how.joint or name in net.gate_tensors))
        fit(rollout, loader, tuning, loss=policy_loss(how), seed=seed, progress=progress, after_step=rollout.release)
    finally:
        for name, parameter in net.network.named_parameters():
            parameter.requires_grad_(trainable[name])


class Draw(NamedTuple):
    """What came of decisions drawn at random, and of those that are more probable at every gate.

    Attributes:
        answer: (B, classes), of those drawn.
        spent: (B,), the share of the full network's MACs.
        log_probability: (B,), of the draw.
        usual_answer: (B, classes), of the more probable ones.
        usual_spent: (B,).
    """

    answer: torch.Tensor
    spent: torch.Tensor
    log_probability: torch.Tensor
    usual_answer: torch.Tensor
    usual_spent: torch.Tensor


def policy_loss(how: Reinforcement) -> Loss:
    """The loss whose gradient is REINFORCE's, see `reinforce`; with the answers' own loss, where the network learns, too.

    Args:
        how: rewards.

    Returns:
        (draw, targets) -> scalar.

    Example:
        >>> answers, sure = torch.zeros(1, 2), torch.tensor([[50.0, 0.0]])
        >>> draw = Draw(sure, torch.tensor([0.5]), torch.tensor([-0.7]), answers, torch.tensor([1.0]))
        >>> round(policy_loss(Reinforcement(cost=0.2))(draw, torch.tensor([0])).item(), 4)  # 0.7 · (log 2 + 0.2 · 0.5)
        0.5552
    """
    reward = REWARDS[how.reward]

    def loss(draw: Draw, targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gained = reward(draw.answer, draw.spent, targets, how)
            advantage = gained - reward(draw.usual_answer, draw.usual_spent, targets, how)
        policy = -(advantage * draw.log_probability).mean()
        return policy + cross_entropy(draw.answer, targets) if how.joint else policy

    return loss  # type: ignore[return-value]


class _Rollout(nn.Module):
    """Goes through a network by decisions drawn at random, and once more by the more probable ones."""

    def __init__(self, net: SkipNetwork, how: Reinforcement) -> None:
        super().__init__()
        self.net, self.how = net, how
        self.free = 1 if how.curriculum else len(net.branches)

    def release(self, _: nn.Module, done: float) -> None:
        """Gives the gates control of more branches, from the last one on, as training goes on."""
        if self.how.curriculum:
            count = len(self.net.branches)
            self.free = min(count, 1 + int(done / self.how.curriculum * count))

    def forward(self, *inputs: torch.Tensor) -> Draw:
        fixed, bound, joint = len(self.net.branches) - self.free, self.how.bound, self.how.joint
        chances: list[torch.Tensor] = []

        def draw(number: int, logits: torch.Tensor) -> torch.Tensor:
            if number < fixed:
                return torch.ones_like(logits) if joint else torch.ones_like(logits, dtype=torch.bool)
            yes = logits.float().sigmoid()
            yes = bound * yes + (1 - bound) * (1 - yes)
            drawn = torch.rand_like(yes) < yes.detach()
            chances.append(torch.where(drawn, yes, 1 - yes).clamp_min(1e-12).log())
            return drawn.to(logits.dtype) if joint else drawn

        path = self.net.follow(inputs, draw, training=joint)
        with torch.no_grad():
            usual = self.net.follow(inputs, lambda number, logits: (logits > 0) | (number < fixed))
        return Draw(
            path.answer,
            self.net.share_of(path.taken),
            torch.stack(chances).sum(0),
            usual.answer,
            self.net.share_of(usual.taken),
        )
