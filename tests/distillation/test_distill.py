"""A student and its teacher: what is learnt, what stays as it was, and what does not fit."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.distillation import Features, Lesson, RememberedTeacher, distill, shrink, teach
from featherweight.errors import DataError, RequestError
from featherweight.graph import to_module
from featherweight.pruning import apply_masks
from featherweight.training import Tuning, fit
from featherweight.training.loaders import TensorLoader


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loader(seed: int = 3, *, samples: int = 256) -> TensorLoader:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=generator)
    return TensorLoader(inputs, torch.randint(0, 3, (samples,), generator=generator), 64, shuffle=True)


TUNING = Tuning(epochs=20, learning_rate=0.01)


def agreement(a: nn.Module, b: nn.Module) -> float:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((a(x).argmax(1) == b(x).argmax(1)).float().mean())


@pytest.mark.parametrize("target", ["soft", "logits", "decoupled", "dist"])
def test_the_student_comes_to_agree_with_its_teacher(target: str) -> None:
    teacher, student = mlp(4, 16, 3, seed=1), mlp(4, 12, 3)
    before = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    taught = distill(student, teacher, loader(), hard_weight=0.0, target=target, tuning=TUNING)
    assert agreement(taught, teacher) > max(0.85, agreement(student, teacher) + 0.2)
    for model, state in zip((student, teacher), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_only_hard_targets_is_plain_training() -> None:
    teacher, student = mlp(4, 16, 3, seed=1), mlp(4, 6, 3)
    taught = distill(student, teacher, loader(), hard_weight=1.0, tuning=Tuning(epochs=2), seed=5)
    fit(student, loader(), Tuning(epochs=2), seed=5)
    assert all(torch.equal(value, taught.state_dict()[name]) for name, value in student.state_dict().items())


def test_the_teacher_is_asked_in_eval_mode_and_keeps_its_own() -> None:
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    modes: list[bool] = []
    teacher[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    distill(mlp(4, 5, 3), teacher, loader(), tuning=Tuning(epochs=1))
    assert set(modes) == {False}
    assert teacher.training
    assert teacher[1].training
    assert all(p.grad is None for p in teacher.parameters())


def test_data_without_targets() -> None:
    inputs = [x for x, _ in loader()]
    teacher = mlp(4, 16, 3, seed=1)
    for batches in (inputs, [(x,) for x in inputs], [[x, None] for x in inputs]):
        taught = distill(mlp(4, 12, 3), teacher, batches, hard_weight=0.0, tuning=Tuning(epochs=1))  # type: ignore[arg-type]
        assert agreement(taught, teacher) > 0
    with pytest.raises(DataError, match="need hard_weight=0"):
        distill(mlp(4, 12, 3), teacher, inputs, tuning=Tuning(epochs=1))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="need hard_weight=0"):
        distill(mlp(4, 12, 3), teacher, inputs, hard_weight=0.0, target="decoupled")  # type: ignore[arg-type]


def test_several_teachers_and_their_memory(tmp_path: Path) -> None:
    teachers = [mlp(4, 16, 3, seed=seed) for seed in (1, 2, 3)]
    together = distill(mlp(4, 12, 3), teachers, loader(), hard_weight=0.0, combine="votes", tuning=Tuning(epochs=1))
    assert together[0].weight.shape == (12, 4)
    teacher = RememberedTeacher(teachers[0], tmp_path / "answers.db")
    plain = distill(mlp(4, 12, 3), teachers[0], loader(), tuning=Tuning(epochs=2))
    first = distill(mlp(4, 12, 3), teacher, loader(), tuning=Tuning(epochs=2))
    asked = teacher.asked
    second = distill(mlp(4, 12, 3), teacher, loader(), tuning=Tuning(epochs=2))
    assert (asked, teacher.asked) == (8, 8)  # 2 epochs of 4 batches
    teacher.close()
    for other in (first, second):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("loss", ["hint", "relational", "similarity", "contrastive"])
def test_features_are_learnt(loss: str) -> None:
    teacher, student = mlp(4, 16, 3, seed=1), mlp(4, 6, 3)
    lessons = {
        weight: distill(student, teacher, loader(), features=Features({"1": "1"}, loss, weight), tuning=TUNING)
        for weight in (1e-9, 100.0)
    }
    x = loader().inputs

    def alike(net: nn.Sequential) -> float:
        """How well the teacher's hidden features follow linearly from the student's."""
        own, theirs = net[:2](x).detach(), teacher[:2](x).detach()
        own = torch.cat([own, torch.ones(len(x), 1)], 1)
        return -float((own @ torch.linalg.lstsq(own, theirs).solution - theirs).square().mean())

    assert alike(lessons[100.0]) > alike(lessons[1e-9])  # type: ignore[arg-type]


def test_attention_maps_of_images_of_other_sizes() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3))
    student = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(2 * 9, 3))
    data = [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,)))]
    for loss in ("attention", "hint"):
        taught = distill(student, teacher, data, features=Features({"0": "0"}, loss), tuning=Tuning(epochs=2))
        assert set(taught.state_dict()) == set(student.state_dict())


def test_constraints_are_kept() -> None:
    student = mlp(4, 12, 3)
    mask = student[0].weight > 0
    taught = distill(apply_masks(student, {"0.weight": mask}), mlp(4, 16, 3, seed=1), loader(), tuning=Tuning(epochs=2))
    assert bool((taught[0].weight[~mask] == 0).all())
    assert not torch.equal(taught[0].weight, student[0].weight)


def test_after_step_gets_the_student() -> None:
    student, seen = mlp(4, 6, 3), []
    teach(student, mlp(4, 8, 3, seed=1), loader(), Tuning(epochs=1), after_step=lambda net, done: seen.append((net, done)))
    assert [done for _, done in seen] == [0.25, 0.5, 0.75, 1.0]
    assert all(net is student for net, _ in seen)


def test_a_lesson_broken_off_goes_on(tmp_path: Path) -> None:
    lesson, teacher = Lesson(features=Features({"1": "1"})), mlp(4, 16, 3, seed=1)
    whole, half = mlp(4, 6, 3), mlp(4, 6, 3)
    tuning = Tuning(epochs=4, schedule="constant")
    teach(whole, teacher, loader(), tuning, lesson=lesson, seed=2)

    class Stop(Exception):
        pass

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if done == 10:
            raise Stop

    with pytest.raises(Stop):
        teach(half, teacher, loader(), tuning, lesson=lesson, seed=2, checkpoint=tmp_path / "c", progress=stop)
    resumed = mlp(4, 6, 3)
    teach(resumed, teacher, loader(), tuning, lesson=lesson, seed=2, checkpoint=tmp_path / "c")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_assistants_stand_between() -> None:
    teacher, seen = mlp(4, 32, 3, seed=1), []
    assistant = mlp(4, 16, 3, seed=2)
    handle = assistant.register_forward_hook(lambda *_: seen.append("never"))
    taught = distill(mlp(4, 4, 3), teacher, loader(), assistants=[0.75, assistant], tuning=Tuning(epochs=1))
    handle.remove()
    assert taught[0].weight.shape == (4, 4)
    assert seen  # the copy has the hook, too: it was trained, and then asked


def test_an_assistant_by_size_of_a_teacher_with_a_memory(tmp_path: Path) -> None:
    teacher, student, data = RememberedTeacher(mlp(4, 32, 3, seed=1), tmp_path / "answers.db"), mlp(4, 4, 3), loader()
    before = torch.get_rng_state()
    taught = distill(student, teacher, data, assistants=[0.5], tuning=Tuning(epochs=1))
    teacher.close()
    assert taught[0].weight.shape == (4, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_feature_is_what_the_layer_gave_whatever_is_made_of_it(whose: str) -> None:
    """An activation that works in place makes no difference."""
    taught = []
    for in_place in (False, True):
        student, teacher = mlp(4, 6, 3), mlp(4, 8, 3, seed=1)
        {"student": student, "teacher": teacher}[whose][1] = nn.ReLU(inplace=in_place)
        taught.append(distill(student, teacher, loader(), features={"0": "0"}, tuning=Tuning()))
    assert torch.equal(taught[0][0].weight, taught[1][0].weight)


def test_what_does_not_fit() -> None:
    teacher, student = mlp(4, 16, 3), mlp(4, 6, 3)
    with pytest.raises(RequestError, match=r"in its teacher's shape, got \(64, 2\) and \(64, 3\)"):
        distill(mlp(4, 6, 2), teacher, loader())
    with pytest.raises(RequestError, match="submodule of the student, got '7'"):
        distill(student, teacher, loader(), features={"7": "1"})
    with pytest.raises(RequestError, match="submodule of the teacher, got '9'"):
        distill(student, teacher, loader(), features={"1": "9"})
    with pytest.raises(RequestError, match="the teacher's '0' gives none"):
        distill(student, to_module(teacher, torch.zeros(1, 4)), loader(), features={"0": "0"})
    with pytest.raises(RequestError, match="single teacher"):
        distill(student, [teacher], loader(), features={"1": "1"})
    with pytest.raises(RequestError, match="temperature must be above 0"):
        distill(student, teacher, loader(), temperature=0)
    with pytest.raises(RequestError, match=r"hard_weight must be in \[0, 1\]"):
        distill(student, teacher, loader(), hard_weight=1.5)
    with pytest.raises(RequestError, match="target must be one of"):
        distill(student, teacher, loader(), target="hard")
    with pytest.raises(RequestError, match=r"number in \(0, 1\), got 2"):
        distill(student, teacher, loader(), assistants=[2])
    with pytest.raises(RequestError, match="a student needs a parameter that requires grad, but Sequential has none"):
        distill(mlp(4, 6, 3).requires_grad_(False), teacher, loader(), features={"0": "0"})
    with pytest.raises(DataError, match="one tensor, with or without targets, got a dict"):
        distill(student, teacher, [{"x": torch.zeros(2, 4)}], hard_weight=0)  # type: ignore[list-item]
    with pytest.raises(DataError, match="at least one batch"):
        distill(student, teacher, [])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


def test_a_shrunken_student_has_the_best_of_its_teacher() -> None:
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(4, 6), Block(), Block(), Block(), Block(), nn.Linear(6, 3)), torch.zeros(1, 4)
    thin = shrink(teacher, x, widths=0.5)
    assert [thin[0].weight.shape, thin[1].up.weight.shape] == [(3, 4), (5, 3)]
    assert bool(torch.isin(thin[1].up.weight, teacher[1].up.weight).all())
    shallow = shrink(teacher, x, depths=0.5)
    assert sum(p.numel() for p in shallow.parameters()) == sum(
        p.numel() for part in (teacher[0], teacher[1], teacher[2], teacher[5]) for p in part.parameters()
    )
    both = shrink(teacher, x, widths={"*up*": 0.4}, depths=0.25)
    assert sorted(tuple(p.shape) for p in both.parameters() if p.dim() == 2) == [(3, 6), (4, 6), (6, 4), (6, 4)]
    with pytest.raises(RequestError, match=r"widths and depths must be in \(0, 1\], got 0"):
        shrink(teacher, x, widths=0)
