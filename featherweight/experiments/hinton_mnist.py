"""Distillation on MNIST: a small network learns from labels alone, or from what a large one makes of every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherweight.distillation import distill, label_smoothing_loss
from featherweight.experiments.drawing import Bar, BarPanel, draw_panels
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.school import count_errors, mnist_lessons, perceptron, student_tuning, train_alone, train_teacher
from featherweight.experiments.summary import deviation, markdown_table, mean, spread

__all__ = ["EXPERIMENT"]

_TEMPERATURE = 20.0

_WAYS = {
    "teacher": ("teacher, with shifts and dropout", 67),
    "alone": ("student, labels alone", 146),
    "smoothed": ("student, labels smoothed by 0.1", None),
    "distilled": ("student, distilled at T = 20", 74),
}
"""Networks -> what they are called, and how many of the 10 000 test images the paper's get wrong."""

_TEXT = """
A teacher with two hidden layers of 600 units is trained on 54 000 images of MNIST that are shifted by up to two pixels each
way whenever they are seen, with dropout of 0.3, for 20 epochs. Its student, two layers of 400 units, sees the images as they
are, for 12 epochs: with labels alone, with labels of which a tenth is spread over all classes (a control: soft targets that
know nothing of the image), or with the teacher's answers at temperature 20, which count nine tenths, and the labels one tenth.
All three start from the same weights and see the same batches (Adam, 3e-3 with a cosine to zero, batches of 128; on validation
data, in a short run, this rate was better than 1e-3 both for labels and for a teacher's answers). The test set was looked at
once per network.

The paper's networks are larger (1200 and 800 units), and its teacher has stronger dropout and bounds on the weights. How it
weighs the labels it does not say.

What the full runs say: the paper is right, at a smaller size. The student never sees a shifted image and has no dropout, yet
gets most of what both did for its teacher, through the teacher's answers to images that the student could have learnt by
heart. Smoothed labels do next to nothing of the kind: what helps is not that targets are soft, but what the teacher knows of
each image.
"""


def _run(cell: Cell, lab: Lab) -> dict[str, Any]:
    """The test errors of a teacher, and of one student taught in every way."""
    data = lab.data("mnist", samples=cell["samples"])
    teacher, student = train_teacher(cell, data, lab), perceptron(cell["student"])
    nets = {
        "teacher": teacher,
        "alone": train_alone(student, data, cell, lab),
        "smoothed": train_alone(student, data, cell, lab, loss=label_smoothing_loss),
        "distilled": distill(
            student,
            teacher,
            data.train,
            temperature=_TEMPERATURE,
            tuning=student_tuning(cell),
            seed=cell["seed"],
            progress=lab.progress,
        ),
    }
    return {way: count_errors(net, data.test) for way, net in nets.items()}


def _errors(outcomes: Sequence[Outcome], way: str) -> list[float]:
    return [float(outcome.result[way]) for outcome in outcomes]


def _table(outcomes: Sequence[Outcome]) -> str:
    cell = outcomes[0].cell
    hidden = {way: cell["teacher" if way == "teacher" else "student"] for way in _WAYS}
    theirs = {way: "–" if paper is None else str(paper) for way, (_, paper) in _WAYS.items()}
    rows = [
        [title, f"2 × {hidden[way]}", theirs[way], f"**{spread(_errors(outcomes, way), digits=1)}**"]
        for way, (title, _) in _WAYS.items()
    ]
    gaps = {way: mean(_errors(outcomes, way)) - mean(_errors(outcomes, "teacher")) for way in ("alone", "distilled")}
    seeds = len(outcomes)
    note = (
        f"Errors on the 10 000 test images, ours: mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}. What the "
        f"student is behind its teacher falls from {gaps['alone']:.0f} to {gaps['distilled']:.0f}; in the paper from 79 to 7."
    )
    return markdown_table(["network", "hidden units", "paper's errors", "our errors"], rows) + f"\n\n{note}"


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    bars = [
        Bar(title, mean(_errors(outcomes, way)), deviation(_errors(outcomes, way)), paper)
        for way, (title, paper) in _WAYS.items()
    ]
    draw_panels([BarPanel("Perceptrons on MNIST", "test errors of 10 000", bars)], path)


EXPERIMENT = Experiment(
    title="What a teacher knows: distillation on MNIST",
    source='Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531), section 3',
    text=_TEXT,
    cells=mnist_lessons,
    run=_run,
    table=_table,
    draw=_draw,
)
