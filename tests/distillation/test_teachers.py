"""Several teachers, their mean, and a teacher's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from featherweight.distillation.memory import RememberedTeacher
from featherweight.distillation.teachers import COMBINATIONS, Ensemble, average_weights
from featherweight.errors import RequestError
from featherweight.graph import ProgramModule, to_module


class Saying(nn.Module):
    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("logits").expand(len(x), -1)


MEMBERS = [Saying(0.0, 1.0, 5.0), Saying(2.0, 0.0, 1.0), Saying(3.0, 3.5, 0.0), Saying(0.0, 4.0, 1.0)]


def test_how_members_answer_together() -> None:
    x = torch.zeros(2, 1)
    answers = {name: Ensemble(MEMBERS, combine=name)(x).softmax(-1)[1].tolist() for name in COMBINATIONS}
    outputs = torch.stack([member(x)[0].softmax(-1) for member in MEMBERS])
    assert answers["outputs"] == pytest.approx(outputs.mean(0).tolist())
    geometric = outputs.log().mean(0).exp()
    assert answers["logits"] == pytest.approx((geometric / geometric.sum()).tolist())
    assert answers["votes"] == pytest.approx([0.25, 0.5, 0.25])


def test_an_ensemble_has_members() -> None:
    with pytest.raises(RequestError, match="members must be at least 1"):
        Ensemble([])
    with pytest.raises(RequestError, match="did you mean 'votes'"):
        Ensemble(MEMBERS, combine="vote")


def norm_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net(torch.randn(50, 3) * seed)
    return net


def test_weights_are_averaged_and_statistics_taken_anew() -> None:
    nets = [norm_net(seed) for seed in (1, 2, 3)]
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    mean = average_weights(nets)
    for name in ("0.weight", "1.running_var", "2.bias"):
        torch.testing.assert_close(mean.state_dict()[name], sum(state[name] for state in before) / 3)
    x = torch.randn(64, 3)
    fresh = average_weights(nets, data=[(x[:32], x[:32]), (x[32:], x[32:])])
    hidden = fresh[0](x)
    torch.testing.assert_close(fresh[1].running_mean, hidden.mean(0))
    assert all(torch.equal(net.state_dict()[k], v) for net, state in zip(nets, before, strict=True) for k, v in state.items())


def test_networks_that_do_not_agree() -> None:
    with pytest.raises(RequestError, match="differ in bias"):
        average_weights([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)])
    with pytest.raises(RequestError, match="differ in weight"):
        average_weights([nn.Linear(2, 2), nn.Linear(3, 2)])
    captured = to_module(norm_net(1), torch.zeros(2, 3))
    assert isinstance(average_weights([captured]), ProgramModule)
    with pytest.raises(RequestError, match="which a captured program has not"):
        average_weights([captured], data=[(torch.zeros(2, 3), torch.zeros(2))])


def test_memory_answers_for_the_teacher(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Dropout(), nn.Linear(3, 2)).train()
    x = torch.randn(4, 3)
    remembered = RememberedTeacher(teacher, tmp_path / "answers.db")
    first = remembered(x)
    remembered(x.double().float().clone())
    remembered(x.flip(0))
    assert remembered.asked == 2
    assert teacher.training
    remembered.close()
    again = RememberedTeacher(teacher, tmp_path / "answers.db")
    assert torch.equal(again(x), first)
    assert torch.equal(first, teacher[1](x))
    assert again.asked == 0
    again.close()


def test_memory_is_of_one_teacher(tmp_path: Path) -> None:
    teacher = nn.Linear(3, 2)
    RememberedTeacher(teacher, tmp_path / "answers.db").close()
    with torch.no_grad():
        teacher.weight[0, 0] += 1
    with pytest.raises(RequestError, match="answers of another teacher"):
        RememberedTeacher(teacher, tmp_path / "answers.db")
    members = [teacher, nn.Linear(3, 2)]
    RememberedTeacher(Ensemble(members, combine="votes"), tmp_path / "several.db").close()
    with pytest.raises(RequestError, match="answers of another teacher"):
        RememberedTeacher(Ensemble(members, combine="logits"), tmp_path / "several.db")
    (tmp_path / "text.db").write_text("these are no answers, and they are long enough to be looked at" * 20)
    with pytest.raises(RequestError, match="must be an SQLite file"):
        RememberedTeacher(teacher, tmp_path / "text.db")
    with pytest.raises(RequestError, match="must be an SQLite file"):
        RememberedTeacher(teacher, tmp_path / "missing" / "answers.db")
