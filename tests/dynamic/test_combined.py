"""Exits and widths together: every choice is the plain network that it stands for, and what is calibrated cannot be beaten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.dynamic import (
    Controller,
    ExitNetwork,
    Limit,
    Sandwich,
    SlimmableExitNetwork,
    add_exits,
    add_widths,
    exit_loss,
    export_combined,
    load_dynamic,
    recalibrate,
    save_dynamic,
    tune_widths,
)
from featherweight.dynamic.combined import Choice
from featherweight.errors import FormatError, RequestError
from featherweight.exporting import StagedSession
from featherweight.graph.capture import tensors_of
from featherweight.graph.program import ProgramModule
from featherweight.packaging import load, save
from featherweight.training import TensorLoader, Tuning, evaluate
from tests.dynamic.exit_nets import CLASSES, NETS, chain, samples

WIDTHS = (0.5, 0.75, 1.0)
_MADE: dict[str, SlimmableExitNetwork] = {}


def made(name: str) -> SlimmableExitNetwork:
    if name not in _MADE:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            make, at = NETS[name]
            exits = add_exits(make(), samples(2), at=at)
            exits.train()(samples(8))  # statistics that are not those of the start
            _MADE[name] = add_widths(exits.eval(), widths=WIDTHS).eval()
    return _MADE[name]


@pytest.mark.parametrize("name", NETS)
def test_every_pair_answers_as_the_plain_network_of_that_width(name: str) -> None:
    net, x = made(name), samples(7)
    assert {width for width, _ in net.choices()} == set(WIDTHS)
    assert len(net.choices()) == 9
    with torch.no_grad():
        for width in WIDTHS:
            answers = net.slimmable.extract(width).eval()(x)
            for exit in range(3):
                assert torch.equal(net.answer_at((width, exit), x), answers[exit])
            sure = [answer.softmax(1).amax(1) for answer in answers]
            thresholds = tuple(row.median().item() for row in sure[:2])
            wanted = [next(answers[k][i] for k in range(3) if k == 2 or sure[k][i] >= thresholds[k]) for i in range(7)]
            torch.testing.assert_close(net.answer_at((width, thresholds), x), torch.stack(wanted), rtol=1e-5, atol=1e-6)
        assert torch.equal(net(x), net.slimmable(x)[-1])
        assert [answer.shape for answer in net.train()(x)] == [(7, CLASSES)] * 3
    net.eval()


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def small(confidence: str = "probability", widths: tuple[float, ...] = (0.25, 0.5)) -> SlimmableExitNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return add_widths(add_exits(layers(), torch.zeros(1, 4), at=["0"], confidence=confidence), widths=widths)


def test_cost_of_a_pair_and_the_best_within_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    net = small()
    counted = {
        (0.25, 0): 4 * 2 + 2 * 3,
        (0.25, 1): 4 * 2 + 2 * 2 + 2 * 3,
        (0.5, 0): 4 * 4 + 4 * 3,
        (0.5, 1): 4 * 4 + 4 * 4 + 4 * 3,
        (1.0, 0): 4 * 8 + 8 * 3,
        (1.0, 1): 4 * 8 + 8 * 8 + 8 * 3,
    }
    assert {choice: net.cost(choice).macs for choice in net.choices()} == counted
    assert list(net.choices()) == sorted(counted, key=lambda choice: counted[choice])
    assert net.choose(Limit(macs=45)) == (0.5, 1)
    x = torch.randn(5, 4)
    assert torch.equal(net(x, budget=Limit(macs=45)), net.answer_at((0.5, 1), x))
    with pytest.raises(RequestError, match="no choice keeps"):
        net.choose(Limit(macs=10), strict=True)
    assert net.choose(Limit(macs=10)) == (0.25, 0)
    assert "is taken" in caplog.text
    controller = Controller.of(net)
    assert controller.start(Limit(macs=1e9)).choice == (1.0, 1)
    net.choice = (0.25, 1)
    assert torch.equal(net(x), net.answer_at((0.25, 1), x))


def test_times_of_all_widths() -> None:
    net = small()
    net.time(torch.zeros(1, 4), batch=3, seconds=1e-3)
    for width in (0.25, 0.5, 1.0):
        timing = net.at_width(width).timing
        assert timing is not None
        assert timing.batch == 3
        assert net.cost((width, 1)).seconds == timing.straight[1] > 0


def blobs(count: int, seed: int) -> TensorLoader:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
    return TensorLoader(centres[targets] + 0.45 * torch.randn(count, 4, generator=generator), targets, batch_size=32)


@pytest.fixture(scope="module")
def trained() -> SlimmableExitNetwork:
    net = small()
    tune_widths(net.slimmable, blobs(512, 0), Tuning(epochs=12, learning_rate=1e-2), loss=exit_loss())
    return net


def test_training_reaches_every_pair(trained: SlimmableExitNetwork) -> None:
    test = blobs(300, 9)
    for choice in trained.choices():
        right = [(trained.answer_at(choice, x).argmax(1) == y).float().mean().item() for x, y in test]
        assert sum(right) / len(right) > (0.85 if choice[0] == 1.0 else 0.55), choice  # chance is a third


def test_narrow_widths_learn_from_the_last_exit_of_the_full_one() -> None:
    from featherweight.dynamic.sandwich import _Lesson

    full, narrow = [torch.randn(4, 3) for _ in range(2)], [torch.randn(4, 3) for _ in range(2)]
    targets = torch.tensor([0, 1, 2, 0])
    lesson = _Lesson(small().slimmable, Sandwich(), exit_loss())
    teacher = full[1].softmax(1)
    wanted = exit_loss()(full, targets)
    for answer in narrow:
        wanted += (teacher * (teacher.log() - answer.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(lesson.loss([full, narrow], targets), wanted)


def test_calibrated_choices_cannot_be_beaten(trained: SlimmableExitNetwork) -> None:
    net, data = small(), blobs(200, 5)
    net.load_state_dict(trained.state_dict())
    found = net.calibrate(data, points=5)
    assert net.choices() == tuple(found)
    assert 2 <= len(found) <= 5
    costs = [net.cost(choice).macs for choice in found]
    assert costs == sorted(set(costs))
    assert list(found.values()) == sorted(set(found.values()))
    for choice, accuracy in found.items():
        net.choice = choice
        assert evaluate(net, data) == pytest.approx(accuracy)
    full = net.calibrate(data, points=500)
    for width in (0.25, 0.5, 1.0):
        for exit, answers in enumerate(zip(*(net.at_width(width).step(x) for x, _ in data), strict=True)):
            right = sum(int((answer.argmax(1) == y).sum()) for answer, (_, y) in zip(answers, data, strict=True))
            no_dearer = [accuracy for c, accuracy in full.items() if net.cost(c).macs <= net.cost((width, exit)).macs]
            assert max(no_dearer) >= right / 200
    with pytest.raises(RequestError, match="calibrate first"):
        net.cost((0.5, (0.123,)))
    with pytest.raises(RequestError, match="points must be"):
        net.calibrate(data, points=1)
    with pytest.raises(RequestError, match="policy"):
        net.calibrate(data, policy="lucky")


def test_statistics_found_later_are_seen() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exits = add_exits(chain(), samples(2), at=["0"])
        net = add_widths(exits, widths=(0.5,), switchable=False).eval()
    net.at_width(0.5).thresholds = [0.25]
    before = net.answer_at((0.5, 1), samples(4))
    recalibrate(net.slimmable, [(3 + samples(32), torch.zeros(32))])
    after = net.answer_at((0.5, 1), samples(4))
    assert not torch.allclose(before, after)
    assert torch.equal(after, net.slimmable.extract(0.5).eval()(samples(4))[1])
    assert net.at_width(0.5).thresholds == (0.25,)


def test_a_file_keeps_every_choice(trained: SlimmableExitNetwork, tmp_path: Path) -> None:
    net = small("margin")
    net.load_state_dict(trained.state_dict())
    net.time(torch.zeros(1, 4), seconds=1e-3)
    net.calibrate(blobs(200, 5), points=4)
    net.choice = net.choices()[1]
    net.at_width(0.5).thresholds = [0.5]
    size = save_dynamic(net, tmp_path / "net.fw")
    again = load_dynamic(tmp_path / "net.fw")
    assert isinstance(again, SlimmableExitNetwork)
    assert (again.choices(), again.choice, again.training) == (net.choices(), net.choice, False)
    assert [again.cost(choice) for choice in again.choices()] == [net.cost(choice) for choice in net.choices()]
    assert (again.at_width(0.5).thresholds, again.at_width(0.5).confidence) == ((0.5,), "margin")
    x = torch.randn(6, 4)
    pairs: list[Choice] = [(width, exit) for width in (0.25, 0.5, 1.0) for exit in (0, 1)]
    for choice in (*net.choices(), *pairs):
        assert torch.equal(again.answer_at(choice, x), net.answer_at(choice, x))
    save_dynamic(again, tmp_path / "again.fw")
    assert (tmp_path / "again.fw").read_bytes() == (tmp_path / "net.fw").read_bytes()
    assert size < save(net.slimmable.full, tmp_path / "full.fw") + 1200  # three widths, each weight once
    plain = load(tmp_path / "net.fw")
    assert all(torch.equal(a, b) for a, b in zip(plain(x), net.slimmable(x), strict=True))


def test_damaged_files(tmp_path: Path) -> None:
    save_dynamic(small(), tmp_path / "net.fw")
    file = load(tmp_path / "net.fw")
    tensors = tensors_of(file, file.program)
    for name, value in (
        ("_exits_at_widths.table", torch.tensor([123], dtype=torch.uint8)),
        ("_exits_at_widths.widths.table", torch.tensor(list(b"{}"), dtype=torch.uint8)),
        ("_exits_at_widths.exits.0.thresholds", torch.zeros(3)),
    ):
        save(ProgramModule(file.program, tensors | {name: value}), tmp_path / "bad.fw")
        with pytest.raises(FormatError, match="is damaged"):
            load_dynamic(tmp_path / "bad.fw")
    with pytest.raises(RequestError, match="must be one of"):
        save_dynamic(nn.Linear(2, 2), tmp_path / "plain.fw")


def test_onnx_runtime_runs_every_stage_of_every_width(tmp_path: Path) -> None:
    net = small(widths=(0.5,)).eval()
    net.at_width(0.5).thresholds = [0.35]
    x = torch.cat([inputs for inputs, _ in blobs(24, 3)])
    folders = export_combined(net, tmp_path, x)
    with torch.no_grad():
        for width, folder in folders.items():
            session, exits = StagedSession(folder), net.at_width(width)
            assert session.thresholds == list(exits.thresholds)
            np.testing.assert_allclose(session.run(x.numpy()), exits(x).numpy(), rtol=1e-4, atol=1e-5)
            for exit in (0, 1):
                wanted = net.answer_at((width, exit), x).numpy()
                np.testing.assert_allclose(session.run_to(exit, x.numpy()), wanted, rtol=1e-4, atol=1e-5)


def test_what_has_no_exits_gets_no_widths_here() -> None:
    with pytest.raises(RequestError, match="use make_slimmable"):
        add_widths(layers(), widths=(0.5,))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="confidence"):
        small().at_width(0.5).confidence = "learned"
    assert isinstance(small().at_width(1.0), ExitNetwork)
