"""How exits learn: the loss spelled out, who learns from whom, and what stays as it is."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.dynamic import (
    ExitNetwork,
    add_exits,
    calibrate,
    exit_loss,
    export_exits,
    fit_heads,
    learn_confidence,
    load_dynamic,
    record_exits,
    save_dynamic,
)
from featherweight.errors import DataError, RequestError
from featherweight.exporting import StagedSession
from featherweight.training import TensorLoader, Tuning, evaluate, fit
from tests.dynamic.exit_nets import CLASSES, NETS, samples


def test_loss_is_the_weighted_sum_of_cross_entropies() -> None:
    sure, even = torch.tensor([[log(3.0), 0.0]]), torch.zeros(1, 2)
    targets = torch.tensor([0])
    assert exit_loss()((even, sure), targets).item() == pytest.approx(log(2) + log(4 / 3))
    assert exit_loss(weights=[0.5, 2])((even, sure), targets).item() == pytest.approx(0.5 * log(2) + 2 * log(4 / 3))


def test_early_exits_learn_from_the_last_and_it_from_none() -> None:
    early, last = torch.zeros(1, 2, requires_grad=True), torch.tensor([[2.0, 0.0]], requires_grad=True)
    loss = exit_loss(weights=[1, 0], distillation=1.0, temperature=2.0)((early, last), torch.tensor([1]))
    share = 1 / (1 + exp(-1.0))  # softmax of the last answer at temperature 2
    wanted = 4 * (share * log(share * 2) + (1 - share) * log((1 - share) * 2))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert last.grad is not None
    assert not last.grad.any()
    assert early.grad is not None
    assert early.grad[0, 0] < 0 < early.grad[0, 1]  # towards the last answer, not the target


def test_wrong_weights() -> None:
    answers, targets = (torch.zeros(1, 2), torch.zeros(1, 2)), torch.tensor([0])
    with pytest.raises(RequestError, match="2 numbers, one for each exit"):
        exit_loss(weights=[1, 1, 1])(answers, targets)
    for options in ({"weights": []}, {"weights": [0, 0]}, {"weights": [-1, 2]}, {"distillation": 1.1}, {"temperature": 0}):
        with pytest.raises(RequestError, match=next(iter(options))):
            exit_loss(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["chain", "transformer"])
def test_heads_learn_alone(name: str) -> None:
    make, at = NETS[name]
    net = add_exits(make(), samples(2), at=at)
    frozen = net.network.get_parameter(next(n for n, _ in net.network.named_parameters() if "exits" not in n))
    frozen.requires_grad_(False)
    before = {n: tensor.clone() for n, tensor in net.network.state_dict().items()}
    answer = net.eval()(samples(3))
    data = [(samples(8, seed), torch.arange(8) % CLASSES) for seed in range(3)]
    fit_heads(net, data, Tuning(epochs=2, learning_rate=0.1))
    for n, tensor in net.network.state_dict().items():
        assert torch.equal(tensor, before[n]) == (not n.startswith("exits."))
    assert torch.equal(net(samples(3)), answer)
    assert [p.requires_grad for p in net.network.parameters()].count(False) == 1
    assert not frozen.requires_grad


def test_all_learn_together() -> None:
    centres = torch.eye(4) * 3
    targets = torch.arange(64) % 4
    data = [(centres[targets] + 0.3 * torch.randn(64, 4), targets)]
    net = add_exits(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), data[0][0])
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    fit(net, data, Tuning(epochs=60, learning_rate=0.02), loss=exit_loss(distillation=0.3))
    assert [name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])] == []
    for answer in net.step(data[0][0]):
        assert (answer.argmax(1) == targets).float().mean() > 0.95


class Overconfident(nn.Module):
    """Its first answer names the class of the first input, always as sure; it is wrong where that is class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :3] * self.scale, x[:, 3:] * self.scale


def said_and_true(count: int, seed: int) -> TensorLoader:
    generator = torch.Generator().manual_seed(seed)
    said = torch.randint(3, (count,), generator=generator)
    true = torch.where(said == 2, torch.randint(2, (count,), generator=generator), said)
    inputs = torch.cat([torch.eye(3)[said], torch.eye(3)[true]], 1) + 0.01 * torch.randn(count, 6, generator=generator)
    return TensorLoader(inputs, true, batch_size=64)


@pytest.fixture(scope="module")
def judged() -> ExitNetwork:
    net = ExitNetwork(Overconfident().eval(), torch.zeros(2, 6))
    learn_confidence(net, said_and_true(600, 0))
    return net


def test_judges_learn_which_answers_are_right(judged: ExitNetwork) -> None:
    record = record_exits(judged, said_and_true(300, 1))
    sure, right = record.confidences[0], record.right[0]
    assert 0.5 < right.float().mean() < 0.8
    assert sure[right].min() > 0.9
    assert sure[~right].max() < 0.1
    found = calibrate(record, accuracy=1.0)
    assert found.shares[0] == pytest.approx(right.float().mean().item())  # no probability could part them: all are as sure
    judged.thresholds = found.thresholds
    assert evaluate(judged, said_and_true(300, 2)) == 1.0


def test_judges_are_learnt_again_saved_and_no_part_of_training(judged: ExitNetwork, tmp_path: Path) -> None:
    data = said_and_true(64, 3)
    assert not any(parameter.requires_grad for parameter in judged.judges.parameters())
    save_dynamic(judged, tmp_path / "net.fw")
    again = load_dynamic(tmp_path / "net.fw")
    assert isinstance(again, ExitNetwork)
    assert again.confidence == "learned"
    assert torch.equal(record_exits(again, data).confidences, record_exits(judged, data).confidences)
    network = again.network.state_dict()["scale"].clone()
    learn_confidence(again, said_and_true(64, 4), Tuning(epochs=1), seed=1)
    assert len(again.judges) == 1
    assert torch.equal(again.network.state_dict()["scale"], network)
    assert not torch.equal(record_exits(again, data).confidences, record_exits(judged, data).confidences)
    with pytest.raises(DataError):
        learn_confidence(again, [])
    with pytest.raises(RequestError, match="learnt first"):
        ExitNetwork(judged.network, confidence="learned")


def test_judges_go_with_their_stages(judged: ExitNetwork, tmp_path: Path) -> None:
    x = torch.cat([inputs for inputs, _ in said_and_true(50, 5)])
    session = StagedSession(export_exits(judged, tmp_path, x))
    session.thresholds = [0.5]
    early, last = judged.step(x)
    wanted = torch.where((judged.judges[0]([early]) >= 0.5)[:, None], early, last)
    assert 0 < int((wanted == early).all(1).sum()) < 50
    np.testing.assert_allclose(session.run(x.numpy()), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
