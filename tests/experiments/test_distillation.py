"""The experiments on distillation: what they measure, and what their tables make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from featherweight.experiments import assistants, ensemble, hinton_mnist, temperature, unseen_digit
from featherweight.experiments.experiment import Experiment, Lab, Outcome
from featherweight.experiments.school import count_errors, perceptron, train_alone, train_teacher
from featherweight.experiments.unseen_digit import best_shift, without
from featherweight.training import TensorLoader

CELL = {"teacher": 20, "teacher_epochs": 2, "epochs": 1, "seed": 3}


def rows(experiment: Experiment, outcomes: list[Outcome]) -> dict[str, list[str]]:
    """The table's rows by their first column."""
    lines = [line.strip("| ").split(" | ") for line in experiment.table(outcomes).splitlines() if line.startswith("| ")]
    return {name: values for name, *values in lines[2:]}


def test_errors_are_counted_over_batches_of_different_sizes() -> None:
    logits, targets = torch.eye(10).repeat(7, 1), torch.arange(10).repeat(7)
    targets[[0, 13, 69]] = 5
    assert count_errors(torch.nn.Identity(), TensorLoader(logits, targets, batch_size=32)) == 3


def test_a_teacher_is_the_same_from_its_checkpoint(small_mnist: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, small_mnist)
    data = lab.data("mnist")
    teachers = []
    for _ in range(2):
        torch.manual_seed(3)
        teachers.append(train_teacher(CELL, data, lab))
    files = list(tmp_path.rglob("seed3"))
    assert len(files) == 1
    files[0].unlink()
    torch.manual_seed(3)
    teachers.append(train_teacher(CELL, data, lab))
    first, *others = (teacher.state_dict() for teacher in teachers)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_training_alone_leaves_the_student_as_it_is(small_mnist: Path, tmp_path: Path) -> None:
    lab, student = Lab(tmp_path, small_mnist), perceptron(5)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    taught = train_alone(student, lab.data("mnist"), CELL, lab)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert not torch.equal(taught.get_parameter("fc1.weight"), before["fc1.weight"])


def test_without_leaves_out_all_of_a_class_and_nothing_else() -> None:
    targets = torch.tensor([0, 3, 1, 8, 3, 2])
    left = without(TensorLoader(torch.arange(6.0), targets, batch_size=4, shuffle=True), [3, 8])
    assert left.inputs.tolist() == [0.0, 2.0, 5.0]
    assert left.targets.tolist() == [0, 1, 2]
    assert (left.batch_size, left.shuffle) == (4, True)


def test_best_shift_is_the_smallest_of_the_best() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 4) * 3, torch.randint(0, 4, (200,))
    logits[:, 2] -= 5
    found = best_shift(logits, targets, [2])
    right = []
    for number in range(201):
        raised = logits.clone()
        raised[:, 2] += number / 10
        right.append(int((raised.argmax(1) == targets).sum()))
    assert round(10 * found) == right.index(max(right)) > 0


def test_best_shift_raises_all_unseen_classes_alike() -> None:
    logits = torch.tensor([[5.0, 2.0, 1.0], [5.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    assert best_shift(logits, torch.tensor([1, 2, 0]), [1, 2]) == pytest.approx(3.1, abs=0.11)
    assert best_shift(logits, torch.tensor([0, 0, 0]), [1, 2]) == 0


def test_table_of_hinton_mnist() -> None:
    cell = {"teacher": 600, "student": 400}
    results = [{"teacher": 90 + 2 * seed, "alone": 150, "smoothed": 140, "distilled": 100 + seed} for seed in range(3)]
    outcomes = [Outcome({**cell, "seed": seed}, result, 1.0) for seed, result in enumerate(results)]
    found = rows(hinton_mnist.EXPERIMENT, outcomes)
    assert found["teacher, with shifts and dropout"] == ["2 × 600", "67", "**92.0 ± 2.0**"]
    assert found["student, labels alone"] == ["2 × 400", "146", "**150.0 ± 0.0**"]
    assert found["student, labels smoothed by 0.1"] == ["2 × 400", "–", "**140.0 ± 0.0**"]
    assert found["student, distilled at T = 20"] == ["2 × 400", "74", "**101.0 ± 1.0**"]
    assert "falls from 58 to 9;" in hinton_mnist.EXPERIMENT.table(outcomes)


def test_table_of_unseen_digit() -> None:
    def measured(images: int, *errors: tuple[int, int]) -> dict[str, Any]:
        names = ("plain", "corrected", "flattered")
        found = {name: {"errors": all_, "unseen": unseen} for name, (all_, unseen) in zip(names, errors, strict=True)}
        return {"shift": 2.5, "unseen_images": images, **found}

    result = {
        "teacher": 90,
        "no_three": measured(1010, (300, 200), (150, 30), (140, 20)),
        "seven_eight": measured(7998, (4000, 3900), (2000, 1800), (1900, 1700)),
    }
    found = rows(unseen_digit.EXPERIMENT, [Outcome({"seed": 0}, result, 1.0)])
    assert found["no 3"] == ["206 (133)", "**300** (200)", "2.5", "109 (14)", "**150** (30)", "**140** (20)"]
    assert found["only 7 and 8"] == ["4730", "**4000** (3900)", "2.5", "1320", "**2000** (1800)", "**1900** (1700)"]


def test_table_of_temperature_marks_the_fewest() -> None:
    lessons = ["labels", "soft-1", "soft-2", "soft-4", "soft-8", "soft-20", "mixed", "logits"]
    outcomes = []
    for seed in (0, 1):
        wide, narrow = ({lesson: 100 + 10 * abs(place - best) for place, lesson in enumerate(lessons)} for best in (5, 2))
        outcomes.append(Outcome({"students": [300, 30], "seed": seed}, {"teacher": 80, "300": wide, "30": narrow}, 1.0))
    found = rows(temperature.EXPERIMENT, outcomes)
    assert found["soft targets, T = 20"] == ["**100 ± 0**", "130 ± 0"]
    assert found["soft targets, T = 2"] == ["130 ± 0", "**100 ± 0**"]
    assert found["logits regression"] == ["120 ± 0", "150 ± 0"]
    assert sum(cell.startswith("**") for row in found.values() for cell in row) == 2


def test_table_of_ensemble_has_the_share_of_the_gain() -> None:
    def measured(shift: int, **together: tuple[int, int]) -> dict[str, Any]:
        found = {name: {"teacher": teacher, "student": student} for name, (teacher, student) in together.items()}
        return {"members": [90 + shift, 110 + shift], "one": {"teacher": 90, "student": 95}, **found}

    cell = {"members": 2, "hidden": 9, "seed": 0}
    plain = measured(0, outputs=(60, 70), logits=(50, 50), votes=(60, 110))
    shifted = measured(10, outputs=(60, 85), logits=(90, 90), votes=(110, 90))
    found = rows(ensemble.EXPERIMENT, [Outcome(cell, plain, 1.0), Outcome({**cell, "shift": 2}, shifted, 1.0)])
    assert found["labels alone"] == ["–", "**100**", "–", "–", "**110**", "–"]
    assert found["one of its kind"] == ["90", "**95**", "–", "90", "**95**", "–"]
    assert found["2 networks: the mean of the outputs"] == ["60", "**70**", "75%", "60", "**85**", "50%"]
    assert found["2 networks: the mean of the logits"] == ["50", "**50**", "100%", "90", "**90**", "100%"]
    assert found["2 networks: votes"] == ["60", "**110**", "-25%", "110", "**90**", "–"]


def test_table_of_assistants_compares_within_seeds() -> None:
    outcomes = []
    for seed, level in enumerate((1000, 2000)):
        found = {"labels": level + 50, "none": level, "30": level - 20 - 2 * seed, "100": level, "100-30": level - 10}
        outcomes.append(Outcome({"teacher": 400, "students": [8], "seed": seed}, {"teacher": 200, "8": found}, 1.0))
    found_rows = rows(assistants.EXPERIMENT, outcomes)
    assert found_rows["labels alone"] == ["**1550 ± 707**", "-50 ± 0"]
    assert found_rows["the teacher itself"] == ["**1500 ± 707**", "–"]
    assert found_rows["an assistant of 2 × 30"] == ["**1479 ± 706**", "21 ± 1"]
