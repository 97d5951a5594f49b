"""How soft a teacher's answers should be, for a wide student and for a narrow one; and labels and logits in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from featherweight.distillation import RememberedTeacher, distill
from featherweight.experiments.drawing import Line, LinePanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.school import count_errors, perceptron, student_tuning, train_alone, train_teacher
from featherweight.experiments.summary import deviation, markdown_table, mean, spread
from featherweight.training import Data

__all__ = ["EXPERIMENT"]

_TEMPERATURES = (1, 2, 4, 8, 20)

_LESSONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{f"soft-{t}": (f"soft targets, T = {t}", {"temperature": float(t), "hard_weight": 0.0}) for t in _TEMPERATURES},
    "mixed": ("half soft targets, T = 4, half labels", {"temperature": 4.0, "hard_weight": 0.5}),
    "logits": ("logits regression", {"target": "logits", "hard_weight": 0.0}),
}
"""Lessons -> what they are called, and the options of `distill`."""

_TITLES = {"labels": "labels alone", **{name: title for name, (title, _) in _LESSONS.items()}}

_TEXT = """
A teacher with two hidden layers of 400 units learns 10 000 images of MNIST, with shifts of up to two pixels and dropout of
0.3, for 25 epochs. Students of three widths learn the images as they are for 15 epochs (Adam, 3e-3 with a cosine to zero,
batches of 128): from labels alone; from the teacher's answers alone, at five temperatures; from labels and answers by halves;
and by regression of the teacher's logits, which is what soft targets become at a high temperature. All students of a width
start from the same weights and see the same batches. The learning rate was chosen on validation data, in a short run with
students of 200 units; the test set was looked at once per network.

Theirs: with 300 or more units in each layer, "all temperatures above 8 gave fairly similar results"; with 30 units,
temperatures from 2.5 to 4 were clearly better than higher or lower ones (Hinton et al.).

What the full runs say: the paper is right for both. With 300 units, temperatures from 2 to 20 are as good as logits
regression, and T = 1 is hardly better than labels. With 30 units T = 2 is best, and from 8 upwards answers teach no more than
labels: as the paper explains it, a student too small to imitate all ten logits spends itself on those that do not matter. With
10 units high temperatures and logits are far worse than labels, and what low ones gain is within the spread. Half of each,
labels and answers at T = 4, has the fewest errors at every width, if never by more than the spread: the safe choice where
nothing is tried out.
"""


def _cells(quick: bool) -> list[Cell]:
    if quick:
        size = {"samples": 5000, "teacher": 300, "students": [100, 10], "teacher_epochs": 25, "epochs": 15}
        return [{**size, "seed": 0}]
    size = {"samples": 10_000, "teacher": 400, "students": [300, 30, 10], "teacher_epochs": 25, "epochs": 15}
    return [{**size, "seed": seed} for seed in range(3)]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """The test errors of students of each size, by lesson."""
    data = lab.data("mnist", samples=cell["samples"])
    teacher = train_teacher(cell, data, lab)
    result: dict[str, Any] = {"teacher": count_errors(teacher, data.test)}
    with TemporaryDirectory() as folder:
        remembered = RememberedTeacher(teacher, Path(folder) / "answers")  # all students see the same batches
        for hidden in cell["students"]:
            result[str(hidden)] = _teach(perceptron(hidden), remembered, data, cell, lab)
        remembered.close()
    return result


def _teach(student: nn.Module, teacher: nn.Module, data: Data, cell: Cell, lab: Lab) -> dict[str, int]:
    found = {"labels": count_errors(train_alone(student, data, cell, lab), data.test)}
    for name, (_, lesson) in _LESSONS.items():
        taught = distill(
            student, teacher, data.train, **lesson, tuning=student_tuning(cell), seed=cell["seed"], progress=lab.progress
        )  # fmt: skip
        found[name] = count_errors(taught, data.test)
    return found


def _errors(outcomes: Sequence[Outcome], hidden: int, lesson: str) -> list[float]:
    return [float(outcome.result[str(hidden)][lesson]) for outcome in outcomes]


def _table(outcomes: Sequence[Outcome]) -> str:
    students = outcomes[0].cell["students"]
    least = {hidden: min(_TITLES, key=lambda lesson: mean(_errors(outcomes, hidden, lesson))) for hidden in students}
    rows = []
    for lesson, title in _TITLES.items():
        spreads = [spread(_errors(outcomes, hidden, lesson), digits=0) for hidden in students]
        rows.append([title, *(f"**{s}**" if least[h] == lesson else s for h, s in zip(students, spreads, strict=True))])
    seeds = len(outcomes)
    teacher = spread([float(outcome.result["teacher"]) for outcome in outcomes], digits=0)
    note = (
        f"Errors on the 10 000 test images: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}; the fewest of each "
        f"column are bold. The teacher makes {teacher}."
    )
    return markdown_table(["learnt from", *(f"2 × {hidden} units" for hidden in students)], rows) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for hidden in outcomes[0].cell["students"]:
        values = [_errors(outcomes, hidden, f"soft-{t}") for t in _TEMPERATURES]
        lines = [Line("soft targets", _TEMPERATURES, [mean(v) for v in values], [deviation(v) for v in values])]
        for lesson in ("labels", "logits"):
            level = mean(_errors(outcomes, hidden, lesson))
            lines.append(Line(_TITLES[lesson], _TEMPERATURES, [level] * len(_TEMPERATURES)))
        panels.append(LinePanel(f"2 × {hidden} units", "temperature", "test errors of 10 000", lines, logarithmic=True))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="The temperature of a teacher's answers",
    source=(
        'Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531), section 3; '
        'Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014 (arXiv:1312.6184)'
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
