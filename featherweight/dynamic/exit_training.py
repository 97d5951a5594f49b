"""How exits learn: all together, from the last one, or alone on a network that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featherweight.distillation.losses import TARGET_LOSSES
from featherweight.dynamic.confidence import LEARNED, Judge
from featherweight.dynamic.exits import ExitNetwork
from featherweight.errors import DataError, check
from featherweight.training.loaders import Loader, TensorLoader
from featherweight.training.loop import Loss, Tuning, fit
from featherweight.training.mode import device_of, in_mode
from featherweight.training.progress import Progress, silent

__all__ = ["exit_loss", "fit_heads", "learn_confidence"]

_JUDGING = Tuning(min_steps=400, learning_rate=3e-3)
_JUDGED_AT_ONCE = 256


def exit_loss(*, weights: Sequence[float] | None = None, distillation: float = 0.0, temperature: float = 3.0) -> Loss:
    """The loss of all exits together, for `training.fit`: the weighted sum of their cross-entropies.

    Huang et al. (MSDNet, ICLR 2018) add them with equal weights. With distillation, early exits learn from the last one's
    answer as well (Phuong and Lampert, ICCV 2019): their part is (1 - d) · cross-entropy + d · T² · KL(last || early), no
    gradient of which reaches the last.

    Args:
        weights: of each exit, at least 0, not all 0; all 1 by default.
        distillation: d, in [0, 1].
        temperature: T, above 0.

    Returns:
        (answers of all exits, targets) -> scalar.

    Raises:
        RequestError: a value is out of range; when the loss is computed, also if the number of weights is wrong.

    Example:
        >>> even = torch.zeros(4, 2)
        >>> round(exit_loss(weights=[0.5, 1])((even, even), torch.tensor([0, 1, 0, 1])).item(), 4)  # 1.5 · log 2
        1.0397
    """
    if weights is not None:
        holds = len(weights) > 0 and all(weight >= 0 for weight in weights) and any(weights)
        check("weights", tuple(weights), "at least 0, one of them above", holds)
    check("distillation", distillation, "in [0, 1]", 0 <= distillation <= 1)
    check("temperature", temperature, "above 0", temperature > 0)

    def loss(answers: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        factors = weights or (1.0,) * len(answers)
        check("weights", tuple(factors), f"{len(answers)} numbers, one for each exit", len(factors) == len(answers))
        last = answers[-1].detach()
        total = factors[-1] * cross_entropy(answers[-1], targets)
        for factor, answer in zip(factors[:-1], answers[:-1], strict=True):
            part = (1 - distillation) * cross_entropy(answer, targets)
            if distillation:
                part = part + distillation * TARGET_LOSSES["soft"](answer, last, targets, temperature=temperature)
            total = total + factor * part
        return total

    return loss  # type: ignore[return-value]


def fit_heads(
    net: ExitNetwork,
    loader: Loader,
    tuning: Tuning,
    *,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Trains the heads of early exits IN PLACE; the network they stand on, its norms' statistics too, stays as it is.

    Args:
        net: with exits.
        loader: batches of (inputs, targets).
        tuning: as for `fit`.
        loss: of all answers; `exit_loss()` by default. The last answer is a constant.
        seed: as for `fit`.
        progress: as for `fit`.

    Raises:
        TrainingError, RequestError, DataError: as `fit` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=["0"])
        >>> before = net.network.get_parameter("2.weight").clone()
        >>> fit_heads(net, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))], Tuning())
        >>> torch.equal(net.network.get_parameter("2.weight"), before)
        True
    """
    heads = _head_tensors(net)
    trainable = {name: parameter.requires_grad for name, parameter in net.network.named_parameters()}
    try:
        for name, parameter in net.network.named_parameters():
            parameter.requires_grad_(trainable[name] and name in heads)
        fit(_OnFrozenTrunk(net), loader, tuning, loss=loss or exit_loss(), seed=seed, progress=progress)
    finally:
        for name, parameter in net.network.named_parameters():
            parameter.requires_grad_(trainable[name])


def learn_confidence(
    net: ExitNetwork, loader: Loader, tuning: Tuning = _JUDGING, *, seed: int = 0, progress: Progress = silent
) -> None:
    """Trains judges of each early exit's answers IN PLACE, and makes what they say the network's confidence, "learned".

    A judge learns whether an answer is right, by logistic regression (Xin et al., "BERxiT", EACL 2021, section 3.2, by least
    squares there); the network stays as it is. A network is right about what it was trained on, so its judges learn from other
    data; thresholds are best calibrated on yet others.

    Args:
        net: with exits, trained.
        loader: batches of (inputs, targets) that the network did not learn from.
        tuning: as for `fit`.
        seed: of the judges' first weights, and as for `fit`.
        progress: as for `fit`.

    Raises:
        TrainingError, RequestError, DataError: as `fit` says.

    Example:
        >>> from featherweight.dynamic import add_exits
        >>> net = add_exits(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4), at=["0"])
        >>> learn_confidence(net, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))])
        >>> net.confidence
        'learned'
    """
    answers, right = _early_answers(net, loader)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judges = nn.ModuleList(Judge(net.classes) for _ in net.thresholds).to(answers.device)
    batches = TensorLoader(answers, right, batch_size=_JUDGED_AT_ONCE, shuffle=True)
    fit(_Judges(judges), batches, tuning, loss=binary_cross_entropy_with_logits, seed=seed, progress=progress)
    for judge in judges:
        judge.requires_grad_(False).eval()  # they are no part of what `fit` trains later
    del net.judges[:]
    net.judges.extend(judges)
    net.confidence = LEARNED


def _early_answers(net: ExitNetwork, loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    """What each exit but the last answers, (N, exits - 1, classes), and whether it is right, (N, exits - 1) of 0 and 1."""
    device, said, right = device_of(net), [], []
    with in_mode(net, training=False), torch.no_grad():
        for inputs, targets in loader:
            *early, _ = net.step(inputs.to(device))
            said.append(torch.stack(early, 1))
            right.append((said[-1].argmax(2) == targets.to(device)[:, None]).float())
    if not said:
        raise DataError("judges learn from data, got no batch")
    return torch.cat(said), torch.cat(right)


class _Judges(nn.Module):
    def __init__(self, judges: nn.ModuleList) -> None:
        super().__init__()
        self.judges = judges

    def forward(self, answers: torch.Tensor) -> torch.Tensor:
        return torch.stack([judge.score(answers[:, k]) for k, judge in enumerate(self.judges)], 1)  # type: ignore[operator]


class _OnFrozenTrunk(nn.Module):
    def __init__(self, net: ExitNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.net.on_frozen_trunk(*inputs)


def _head_tensors(net: ExitNetwork) -> set[str]:
    """The names of the tensors that heads of early exits alone read, constraints of theirs included."""
    own: dict[bool, set[str]] = {True: set(), False: set()}
    for stage in net.stages:
        for position, node in enumerate(stage.program.nodes):
            in_head = position in stage.head and stage is not net.stages[-1]
            names = map(stage.program.tensor_name, node.refs)
            own[in_head] |= {name for name in names if name is not None}
    alone = own[True] - own[False]
    constrained = {n: n.replace("parametrizations.", "") for n, _ in net.network.named_parameters() if "parametrizations." in n}
    return alone | {name for name, plain in constrained.items() if any(plain.startswith(f"{head}.") for head in alone)}
