"""A network of one's own as a compact one: its convolutions become depthwise separable, and learn from what they were."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from featherweight.distillation import Features, Lesson, teach
from featherweight.errors import RequestError, check
from featherweight.factorization.factorize import FactorPlan, plan_factors
from featherweight.graph.capture import Example
from featherweight.graph.program import ProgramModule
from featherweight.training.loaders import Loader
from featherweight.training.loop import Tuning
from featherweight.training.progress import Progress, silent

__all__ = ["separate_convolutions"]

_log = logging.getLogger(__name__)

_ORDERS = ("together", "in turns")


def separate_convolutions(
    model: nn.Module,
    example: Example,
    data: Loader,
    *,
    multiplier: int = 1,
    order: str = "together",
    lesson: Lesson | None = None,
    tuning: Tuning | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Replaces convolutions by depthwise separable ones (Howard et al., "MobileNets", 2017), and distils them from the network.

    Each starts as the best fit of its form to the old weight on the data (`factor_separable`), then learns to give what the old
    layer gave (a hint for each layer, Romero et al. 2015), and in the end all learn together to answer as the network did.
    Convolutions with groups or 1 × 1 kernels, and those that would not become cheaper, stay.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        data: batches of (inputs, targets).
        multiplier: kernels for each input channel, at least 1.
        order: "together" replaces all layers, then trains; "in turns" replaces and trains one after the other, first to last,
            which costs a training each and is gentler.
        lesson: what is learnt of the outputs, `Lesson()` by default.
        tuning: of each training, `Tuning(epochs=5)` by default.
        include: shell-style patterns of weight names; only these, if given.
        exclude: patterns of names to leave alone.
        seed: of the training, in [0, 2**32).
        progress: told about every batch.

    Returns:
        The compact network. A captured program, if the user's own class cannot have other layers; it then learns from the
        outputs alone, and the log says so.

    Raises:
        RequestError: no convolution can be separated (each is named with its reason), or an option out of range.
        CaptureError, UnsupportedOpError: as `capture` says.
        TrainingError: as `fit` says.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 2))
        >>> data = [(torch.randn(8, 3, 5, 5), torch.zeros(8, dtype=torch.int64))]
        >>> compact = separate_convolutions(net, torch.zeros(1, 3, 5, 5), data, tuning=Tuning(epochs=1))
        >>> [tuple(layer.weight.shape) for layer in compact[2]]
        [(8, 1, 3, 3), (8, 8, 1, 1)]
    """
    whole = isinstance(multiplier, int) and not isinstance(multiplier, bool) and multiplier >= 1
    check("multiplier", multiplier, "a whole number >= 1", whole)
    check("order", order, f"one of {', '.join(_ORDERS)}", order in _ORDERS)
    plan = plan_factors(model, example, rank=multiplier, method="separable", data=data, include=include, exclude=exclude)
    if not plan.factorings:
        reasons = "; ".join(f"{name}: {why}" for name, why in plan.skipped.items()) or "it has none"
        raise RequestError(f"no convolution of {type(model).__name__} can become depthwise separable: {reasons}")
    lesson, tuning = lesson or Lesson(), tuning or Tuning(epochs=5)
    rounds = [plan.factorings] if order == "together" else [(line,) for line in plan.factorings]
    student = model
    for lines in rounds:
        student = FactorPlan(plan.method, lines, {}, plan.inputs).apply(student, data=data)
        if isinstance(student, ProgramModule):
            _log.warning("layers of a captured program cannot learn from those of the network: its outputs alone teach it")
            continue
        paths = [line.name.rpartition(".")[0] for line in lines]
        hints = replace(lesson, features=Features({path: path for path in paths}))
        teach(student, model, data, tuning, lesson=hints, seed=seed, progress=progress)
    teach(student, model, data, tuning, lesson=lesson, seed=seed, progress=progress)
    return student
