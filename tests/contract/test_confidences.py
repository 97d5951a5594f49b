"""What every confidence keeps: a number in [0, 1] for each sample, whatever samples are beside it, larger where it is surer."""

from __future__ import annotations

import pytest
import torch

from featherweight.dynamic import CONFIDENCES


def answers(exits: int = 3, samples: int = 40, classes: int = 4) -> list[torch.Tensor]:
    return list(3 * torch.randn(exits, samples, classes))


@pytest.mark.parametrize("name", CONFIDENCES)
def test_one_number_for_each_sample_by_itself(name: str) -> None:
    given = answers()
    sure = CONFIDENCES[name](given)
    assert sure.shape == (40,)
    assert bool(((sure >= 0) & (sure <= 1)).all())
    for rows in (torch.tensor([7]), torch.tensor([31, 2, 3])):
        torch.testing.assert_close(CONFIDENCES[name]([answer[rows] for answer in given]), sure[rows])
    assert CONFIDENCES[name]([answer[:0] for answer in given]).shape == (0,)


@pytest.mark.parametrize("name", CONFIDENCES)
def test_surer_answers_are_more_confident(name: str) -> None:
    one, other = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    if name == "agreement":
        values = [CONFIDENCES[name](history).item() for history in ([other, one], [other, one, one], [one, one, one])]
        assert values == pytest.approx([0, 1 / 2, 2 / 3])
    else:
        values = [CONFIDENCES[name]([other, scale * one]).item() for scale in (0.0, 0.25, 1.0, 50.0)]
        assert values == sorted(set(values))
        assert values[-1] == pytest.approx(1.0)
        assert CONFIDENCES[name]([other, one]).item() == pytest.approx(CONFIDENCES[name]([one, other]).item())


def test_agreement_is_patience() -> None:
    """Against PABEE's counter, which an exit raises when it agrees with the one before, and else sets to 0."""
    given = answers(exits=7, samples=200, classes=3)
    for patience in (1, 2, 3):
        leaves = [-1] * 200
        counters, before = [0] * 200, [-1] * 200
        for number, answer in enumerate(given):
            for sample, said in enumerate(answer.argmax(1).tolist()):
                counters[sample] = counters[sample] + 1 if said == before[sample] else 0
                before[sample] = said
                if counters[sample] >= patience and leaves[sample] < 0:
                    leaves[sample] = number
        sure = torch.stack([CONFIDENCES["agreement"](given[: k + 1]) >= patience / (patience + 1) for k in range(7)])
        first = torch.where(sure.any(0), sure.int().argmax(0), -1)
        assert first.tolist() == leaves
        assert len(set(leaves)) > 3
