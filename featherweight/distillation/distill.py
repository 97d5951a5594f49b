"""Knowledge distillation: a student learns to answer as its teacher does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.distillation.features import FEATURE_LOSSES, NEEDS_EQUAL_WIDTH, Features, channels_last
from featherweight.distillation.losses import TARGET_LOSSES
from featherweight.distillation.memory import RememberedTeacher
from featherweight.distillation.shrink import shrink
from featherweight.distillation.teachers import Ensemble
from featherweight.errors import DataError, RequestError, check, look_up
from featherweight.graph.constraint import duplicate
from featherweight.training.loaders import Batch, Loader
from featherweight.training.loop import AfterStep, Tuning, fit
from featherweight.training.mode import device_of, in_mode
from featherweight.training.progress import Progress, silent

__all__ = ["Lesson", "distill", "teach"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn: the loss is (1 - hard_weight) · target + hard_weight · cross-entropy + weight · features.

    Args:
        temperature: T, above 0; Hinton, Vinyals and Dean (2015) use 2 to 20.
        hard_weight: of the cross-entropy with the data's own targets, in [0, 1]; 0 needs no targets at all.
        target: how outputs are compared, a name in `TARGET_LOSSES`.
        features: which layers learn from which, if any.

    Raises:
        RequestError: a value is out of range, or a name unknown.

    Example:
        >>> Lesson(temperature=20, hard_weight=0).target
        'soft'
    """

    temperature: float = 4.0
    hard_weight: float = 0.1
    target: str = "soft"
    features: Features | None = None

    def __post_init__(self) -> None:
        check("temperature", self.temperature, "above 0 and finite", 0 < self.temperature < float("inf"))
        check("hard_weight", self.hard_weight, "in [0, 1]", 0 <= self.hard_weight <= 1)
        look_up(TARGET_LOSSES, self.target, "target")
        check("features", self.features, "Features, or None", self.features is None or isinstance(self.features, Features))


def distill(
    student: nn.Module,
    teachers: nn.Module | Sequence[nn.Module],
    data: Loader,
    *,
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    target: str = "soft",
    combine: str = "logits",
    features: Features | Mapping[str, str] | None = None,
    assistants: Sequence[nn.Module | float] = (),
    tuning: Tuning | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Trains a copy of the student to answer as the teachers do (Hinton, Vinyals and Dean, 2015).

    With assistants (Mirzadeh et al., AAAI 2020) the first learns from the teachers, each next one from the one before, and the
    student from the last: for a student that is too far from its teacher.

    Args:
        student: (B, …) -> logits (B, classes); it is not changed. Constraints (masks, codebooks, grids) are kept.
        teachers: one network, or several that answer together; asked in eval mode, not changed.
        data: batches of (inputs, targets); or of inputs alone, where `hard_weight` is 0 and `target` is not "decoupled".
        temperature: T, above 0.
        hard_weight: of the cross-entropy with the data's own targets, in [0, 1].
        target: how outputs are compared, a name in `TARGET_LOSSES`.
        combine: how several teachers answer together, a name in `COMBINATIONS`.
        features: names of the student's submodules with those of the teacher's that they learn from; needs a single teacher.
        assistants: networks between teacher and student, from large to small; a number in (0, 1) stands for the teacher with so
            much of its widths (`shrink`).
        tuning: how each is trained; `Tuning(epochs=10)` by default.
        seed: of the training, in [0, 2**32).
        progress: told about every batch.

    Returns:
        The trained student.

    Raises:
        RequestError: a setting is out of range, a submodule is missing, or teacher and student answer in different shapes.
        DataError: targets are needed and missing, or the loader is empty.
        TrainingError: as `fit` says.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> teacher, student = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> inputs = [torch.randn(64, 2)]
        >>> taught = distill(student, teacher, inputs, hard_weight=0, tuning=Tuning(epochs=300, learning_rate=0.05))
        >>> bool((taught(inputs[0]).argmax(1) == teacher(inputs[0]).argmax(1)).float().mean() > 0.95)
        True
    """
    layers = features if isinstance(features, Features) or features is None else Features(features)
    lesson = Lesson(temperature, hard_weight, target, layers)
    several = not isinstance(teachers, nn.Module)
    if several and layers is not None:
        raise RequestError("features are learnt from a single teacher, got several; pass the one whose layers are meant")
    teacher: nn.Module = Ensemble(list(teachers), combine=combine) if several else teachers  # type: ignore[arg-type,assignment]
    chain = [*_networks(assistants, teacher, data), student]
    for number, pupil in enumerate(chain, start=1):
        last = number == len(chain)
        taught = duplicate(pupil)
        plain = lesson if last else Lesson(temperature, hard_weight, target)
        teach(taught, teacher, data, tuning or Tuning(epochs=10), lesson=plain, seed=seed, progress=progress)
        teacher = taught
    return teacher


def teach(
    student: nn.Module,
    teacher: nn.Module,
    loader: Loader,
    tuning: Tuning,
    *,
    lesson: Lesson | None = None,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
) -> None:
    """Trains a student IN PLACE by a teacher: `fit` with the loss of a `Lesson`.

    Args:
        student: (B, …) -> logits (B, classes).
        teacher: the same; asked in eval mode, not changed.
        loader: batches of (inputs, targets), or of inputs alone.
        tuning: as for `fit`.
        lesson: `Lesson()` by default.
        seed: as for `fit`.
        progress: as for `fit`.
        checkpoint: as for `fit`.
        after_step: as for `fit`; called with the student.

    Raises:
        RequestError: nothing in the student is trainable, a submodule is missing, or teacher and student answer in different
            shapes.
        DataError: targets are needed and missing, or the loader is empty.
        TrainingError: as `fit` says.

    Example:
        >>> student = nn.Linear(2, 3)
        >>> teach(student, nn.Linear(2, 3), [(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64))], Tuning())
    """
    lesson = lesson or Lesson()
    labelled = lesson.hard_weight > 0 or lesson.target == "decoupled"
    batches = _Batches(loader, labelled)
    if len(batches) == 0:
        raise DataError("a loader must hold at least one batch, got none")
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise RequestError(f"a student needs a parameter that requires grad, but {type(student).__name__} has none")
    pupil = _Pupil(student, teacher, lesson)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pupil.prepare(next(iter(batches))[0].to(device_of(student)))
    follow = None if after_step is None else (lambda module, done: after_step(module.student, done))
    fit(
        pupil, batches, tuning, loss=pupil.loss, seed=seed, progress=progress, checkpoint=checkpoint, after_step=follow,
    )  # fmt: skip


class _Batches:
    """A loader whose batches may be inputs alone; their targets are then of no meaning."""

    def __init__(self, loader: Loader, labelled: bool) -> None:
        self._loader, self._labelled = loader, labelled

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            inputs, *targets = (batch,) if isinstance(batch, torch.Tensor) else batch
            if not isinstance(inputs, torch.Tensor):
                raise DataError(
                    f"data must be batches of inputs, one tensor, with or without targets, got a {type(batch).__name__}"
                )
            if self._labelled and not targets:
                raise DataError("data without targets need hard_weight=0 and a target other than 'decoupled'")
            yield inputs, targets[0] if self._labelled else torch.zeros(len(inputs), dtype=torch.int64)


class _Pupil(nn.Module):
    """The student beside its teacher, so that the one training loop sees what both make of a batch."""

    def __init__(self, student: nn.Module, teacher: nn.Module, lesson: Lesson) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList()
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: not trained, not saved
        self._lesson = lesson
        pairs = lesson.features.layers if lesson.features else {}
        self._watched = [(_submodule(student, s, "student"), _submodule(teacher, t, "teacher")) for s, t in pairs.items()]
        self._names = list(pairs.items())

    def prepare(self, inputs: torch.Tensor) -> None:
        """Runs one batch: finds what does not fit, and makes the projections."""
        with in_mode(self.student, training=False), torch.no_grad():
            answer, wanted, features = self(inputs)
        if not isinstance(answer, torch.Tensor) or not isinstance(wanted, torch.Tensor) or answer.shape != wanted.shape:
            raise RequestError(
                f"a student must answer in its teacher's shape, got {_shape(answer)} and {_shape(wanted)} for a batch of "
                f"{len(inputs)}; give it as many outputs, or put a module around the teacher that picks those to learn"
            )
        if self._lesson.features is None or self._lesson.features.loss not in NEEDS_EQUAL_WIDTH:
            return
        for own, theirs in features:
            width, wide = channels_last(own).shape[-1], channels_last(theirs).shape[-1]
            self.projections.append(nn.Identity() if width == wide else nn.Linear(width, wide).to(own))

    def forward(self, x: torch.Tensor) -> tuple[Any, Any, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The student's answer, the teacher's, and the features of each pair."""
        (teacher,) = self._teacher
        own: dict[int, torch.Tensor] = {}
        theirs: dict[int, torch.Tensor] = {}
        hooks = [module.register_forward_hook(_keep(own, i)) for i, (module, _) in enumerate(self._watched)]
        hooks += [module.register_forward_hook(_keep(theirs, i)) for i, (_, module) in enumerate(self._watched)]
        try:
            answer = self.student(x)
            with in_mode(teacher, training=False), torch.no_grad():
                wanted = teacher(x)
        finally:
            for hook in hooks:
                hook.remove()
        for i, (student_name, teacher_name) in enumerate(self._names):
            for found, whose, name in ((own, "student", student_name), (theirs, "teacher", teacher_name)):
                if i not in found:
                    raise RequestError(
                        f"a mapped layer must give a tensor when the network runs, but the {whose}'s {name!r} gives none "
                        "(a captured program calls no submodules: map the layers of the network it was made from)"
                    )
        return answer, wanted, [(own[i], theirs[i]) for i in range(len(self._watched))]

    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """The loss of the lesson, of what `forward` gives."""
        (answer, wanted, features), lesson = outputs, self._lesson
        compare = TARGET_LOSSES[lesson.target]
        total = (1 - lesson.hard_weight) * compare(answer, wanted, targets, temperature=lesson.temperature)
        if lesson.hard_weight > 0:
            total = total + lesson.hard_weight * cross_entropy(answer, targets)
        if lesson.features is not None:
            differ = FEATURE_LOSSES[lesson.features.loss]
            found = [differ(self._projected(i, own), theirs) for i, (own, theirs) in enumerate(features)]
            total = total + lesson.features.weight * torch.stack(found).mean()
        return total

    def _projected(self, number: int, feature: torch.Tensor) -> torch.Tensor:
        """The student's feature in the teacher's width: a trained linear map of the channels, at each position."""
        if not len(self.projections):
            return feature
        moved: torch.Tensor = self.projections[number](channels_last(feature))
        return moved.movedim(-1, 1) if feature.dim() == 4 else moved


def _keep(found: dict[int, torch.Tensor], number: int) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, torch.Tensor):
            found[number] = first.clone()  # an activation after it may work in place

    return keep


def _submodule(model: nn.Module, name: str, whose: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known or not name:
        close = get_close_matches(name, known, n=3, cutoff=0.4) or [key for key in known if key][:8]
        raise RequestError(f"a mapped layer must be a submodule of the {whose}, got {name!r}; there are {', '.join(close)}, …")
    found: nn.Module = known[name]
    return found


def _networks(assistants: Sequence[nn.Module | float], teacher: nn.Module, data: Loader) -> list[nn.Module]:
    """The assistants as networks, those given by size made from the teacher."""
    made = []
    for assistant in assistants:
        if isinstance(assistant, nn.Module):
            made.append(assistant)
            continue
        check("an assistant's size", assistant, "a network or a number in (0, 1)", 0 < assistant < 1)
        if isinstance(teacher, Ensemble):
            raise RequestError("assistants by size are made from a single teacher, got several; pass networks")
        with torch.random.fork_rng(devices=[]):  # a loader draws its order
            first = next(iter(data))
        inputs = first if isinstance(first, torch.Tensor) else first[0]
        whole = teacher.teacher if isinstance(teacher, RememberedTeacher) else teacher
        made.append(shrink(whole, inputs[:1], widths=float(assistant)))
    return made


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
