"""A student far smaller than its teacher: does it learn more from one in between?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from featherweight.distillation import RememberedTeacher, distill
from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.school import count_errors, perceptron, student_tuning, train_alone, train_teacher
from featherweight.experiments.summary import deviation, markdown_table, mean, spread

__all__ = ["EXPERIMENT"]

_TEMPERATURE = 2.0  # on validation data better for such small students than 1, 4 and 8

_CHAINS: Mapping[str, Sequence[int]] = {"none": (), "30": (30,), "100": (100,), "100-30": (100, 30)}
"""Chains of assistants by name -> their hidden units, from large to small."""

_TITLES = {
    "labels": "labels alone",
    "none": "the teacher itself",
    "30": "an assistant of 2 × 30",
    "100": "an assistant of 2 × 100",
    "100-30": "two assistants, 2 × 100 and 2 × 30",
}

_TEXT = """
A teacher with two hidden layers of 400 units, trained with shifts and dropout as in `temperature` on 10 000 images of MNIST,
teaches students with two hidden layers of 8 or 5 units, about a hundredth of its parameters; or it teaches an assistant in
between, and that one the student. Assistants start from weights of their own, and learn as students do: 15 epochs (Adam, 3e-3
with a cosine to zero, batches of 128), soft targets at temperature 2 that count nine tenths, and labels one tenth. The
temperature is the best of 1, 2, 4 and 8 for direct distillation on validation data, in a short run. The test set was looked at
once per network.

Theirs, in % right: plain convolutional networks of 2, 4 and 10 layers on CIFAR-10 from 70.16 alone by 72.57 distilled to 73.51
with an assistant, on CIFAR-100 from 41.09 by 44.57 to 44.92; ResNets of 8, 20 and 110 layers on CIFAR-10 from 88.52 by 88.65
to 88.98. Each of theirs is the best of 120 settings.

What the full runs say: nothing that could be measured. With assistants students make 4 more to 29 fewer errors than without,
in pairs with the same first weights, which is about what such differences vary by from seed to seed; and from the teacher
itself such small students learn no more than from labels either. The paper's gains, three to nine tenths of a point, would be
30 to 90 errors here: three seeds could have shown the largest of them, not the smallest.
"""


def _cells(quick: bool) -> list[Cell]:
    if quick:
        return [{"samples": 5000, "teacher": 300, "students": [8], "teacher_epochs": 25, "epochs": 15, "seed": 0}]
    size = {"samples": 10_000, "teacher": 400, "students": [8, 5], "teacher_epochs": 25, "epochs": 15}
    return [{**size, "seed": seed} for seed in range(3)]


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """The test errors of tiny students: from labels, from their teacher, and from assistants."""
    data = lab.data("mnist", samples=cell["samples"])
    teacher = train_teacher(cell, data, lab)
    result: dict[str, Any] = {"teacher": count_errors(teacher, data.test)}
    with TemporaryDirectory() as folder:
        remembered = RememberedTeacher(teacher, Path(folder) / "answers")  # all who ask it see the same batches
        for hidden in cell["students"]:
            student = perceptron(hidden)
            found = {"labels": count_errors(train_alone(student, data, cell, lab), data.test)}
            for name, chain in _CHAINS.items():
                taught = distill(
                    student,
                    remembered,
                    data.train,
                    temperature=_TEMPERATURE,
                    assistants=[perceptron(width) for width in chain],
                    tuning=student_tuning(cell),
                    seed=cell["seed"],
                    progress=lab.progress,
                )
                found[name] = count_errors(taught, data.test)
            result[str(hidden)] = found
        remembered.close()
    return result


def _errors(outcomes: Sequence[Outcome], hidden: int, way: str) -> list[float]:
    return [float(outcome.result[str(hidden)][way]) for outcome in outcomes]


def _gains(outcomes: Sequence[Outcome], hidden: int, way: str) -> list[float]:
    """By how many errors a way is ahead of learning from the teacher itself, seed by seed."""
    pairs = zip(_errors(outcomes, hidden, "none"), _errors(outcomes, hidden, way), strict=True)
    return [direct - found for direct, found in pairs]


def _table(outcomes: Sequence[Outcome]) -> str:
    students, rows = outcomes[0].cell["students"], []
    for way, title in _TITLES.items():
        row = [title]
        for hidden in students:
            gain = "–" if way == "none" else spread(_gains(outcomes, hidden, way), digits=0)
            row += [f"**{spread(_errors(outcomes, hidden, way), digits=0)}**", gain]
        rows.append(row)
    header = ["learnt from", *(title for hidden in students for title in (f"2 × {hidden} units", "fewer than directly"))]
    cell, seeds = outcomes[0].cell, len(outcomes)
    teacher = spread([float(outcome.result["teacher"]) for outcome in outcomes], digits=0)
    note = (
        "Errors on the 10 000 test images, and how many fewer they are than with the teacher itself, seed by seed: mean ± "
        f"standard deviation over {seeds} seed{'s' * (seeds > 1)}. The teacher, 2 × {cell['teacher']} units, makes {teacher}."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    panels = []
    for hidden in outcomes[0].cell["students"]:
        bars = []
        for way, title in _TITLES.items():
            errors = _errors(outcomes, hidden, way)
            bars.append(Bar(title, mean(errors), deviation(errors)))
        panels.append(BarPanel(f"student: 2 × {hidden} units", "test errors of 10 000", bars))
    draw_panels(panels, path)


EXPERIMENT = Experiment(
    title="Teacher assistants",
    source=(
        'Mirzadeh, Farajtabar, Li, Levine, Matsukawa and Ghasemzadeh, "Improved Knowledge Distillation via Teacher Assistant", '
        "AAAI 2020 (arXiv:1902.03393)"
    ),
    text=_TEXT,
    cells=_cells,
    run=_run,
    table=_table,
    draw=_draw,
)
