"""What the experiments on distillation share: perceptrons, their training, and a teacher worth learning from."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.experiments.experiment import Cell, Lab
from featherweight.experiments.shifts import with_shifts
from featherweight.graph.constraint import duplicate
from featherweight.training import Data, Loader, Tuning, evaluate, fit
from featherweight.training.loop import Loss

__all__ = ["count_errors", "mnist_lessons", "perceptron", "student_tuning", "train_alone", "train_teacher"]

_PIXELS, _CLASSES = 28 * 28, 10
_DROPOUT = 0.3  # of a teacher's hidden units
_SHIFT = 2  # pixels, as in the paper
_RATE = 3e-3  # of students, alone or taught: better for both than 1e-3 on validation data


def perceptron(hidden: int, *, dropout: float = 0.0) -> nn.Module:
    """Two hidden layers of the same width with ReLU, for images of digits.

    Args:
        hidden: units in each, at least 1.
        dropout: of the hidden units in training, in [0, 1).

    Returns:
        The network: (B, 1, 28, 28) -> (B, 10).

    Example:
        >>> sum(parameter.numel() for parameter in perceptron(30).parameters())
        24790
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten(1)}
    for number, width in ((1, _PIXELS), (2, hidden)):
        layers[f"fc{number}"] = nn.Linear(width, hidden)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
    layers["fc3"] = nn.Linear(hidden, _CLASSES)
    return nn.Sequential(OrderedDict(layers))


def mnist_lessons(quick: bool) -> list[Cell]:
    """A teacher with two hidden layers of 600 units and a student of 400, on all of MNIST, two seeds.

    Args:
        quick: smaller ones on 10,000 images, one seed.

    Returns:
        The cells.

    Example:
        >>> [cell["student"] for cell in mnist_lessons(quick=False)]
        [400, 400]
    """
    if quick:
        return [{"samples": 10_000, "teacher": 400, "student": 200, "teacher_epochs": 20, "epochs": 12, "seed": 0}]
    size = {"samples": 54_000, "teacher": 600, "student": 400, "teacher_epochs": 20, "epochs": 12}
    return [{**size, "seed": seed} for seed in range(2)]


def train_teacher(cell: Cell, data: Data, lab: Lab) -> nn.Module:
    """A large perceptron, trained with dropout on shifted images; an interrupted training goes on from its last epoch.

    Args:
        cell: its "teacher" is the width, "teacher_epochs" how long it learns, "seed" of the training.
        data: with the training images as they are.
        lab: in whose folder the checkpoint is kept.

    Returns:
        The teacher. Its first weights come from torch's global generator.
    """
    teacher = perceptron(cell["teacher"], dropout=_DROPOUT)
    fit(
        teacher,
        with_shifts(data, pixels=_SHIFT).train,
        Tuning(epochs=cell["teacher_epochs"]),
        seed=cell["seed"],
        progress=lab.progress,
        checkpoint=lab.out / "teachers.checkpoint" / f"seed{cell['seed']}",
    )
    return teacher


def train_alone(student: nn.Module, data: Data, cell: Cell, lab: Lab, *, loss: Loss = cross_entropy) -> nn.Module:
    """A copy of the student that has learnt from labels alone, for as long as others learn from a teacher.

    Args:
        student: with its first weights; not changed.
        data: its training part.
        cell: its "epochs" and "seed".
        lab: told how far it is.
        loss: (logits, targets) -> a scalar.

    Returns:
        The trained copy.
    """
    net = duplicate(student)
    fit(net, data.train, student_tuning(cell), loss=loss, seed=cell["seed"], progress=lab.progress)
    return net


def student_tuning(cell: Cell) -> Tuning:
    """How every student is trained, whoever teaches it, for the cell's "epochs".

    Example:
        >>> student_tuning({"epochs": 3, "seed": 0}).epochs
        3
    """
    return Tuning(epochs=cell["epochs"], learning_rate=_RATE)


def count_errors(net: nn.Module, loader: Loader) -> int:
    """How many samples a classifier gets wrong.

    Example:
        >>> import torch
        >>> count_errors(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
        1
    """
    total = sum(len(targets) for _, targets in loader)
    return total - round(total * evaluate(net, loader))
