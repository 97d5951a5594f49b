"""What every gating and every reward keeps."""

from __future__ import annotations

import pytest
import torch

from featherweight.dynamic import GATINGS, REWARDS, Reinforcement


@pytest.mark.parametrize("name", GATINGS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_gating_is_a_share_that_rises_with_its_logit(name: str, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-60, 60, 601, requires_grad=True)
    share = GATINGS[name](logits, temperature)
    assert share.shape == logits.shape
    assert ((share >= 0) & (share <= 1)).all()
    assert share[0].item() == pytest.approx(0, abs=1e-5)
    assert share[-1].item() == pytest.approx(1, abs=1e-5)
    share.sum().backward()
    assert logits.grad is not None
    assert (logits.grad >= 0).all()
    assert logits.grad[250:351].sum() > 0
    assert GATINGS[name](logits[:0], temperature).shape == (0,)


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_for_right_answers_and_for_work_saved(name: str) -> None:
    how, targets = Reinforcement(cost=0.5, penalty=0.5), torch.tensor([0, 0, 0, 0])
    answers = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    spent = torch.tensor([0.2, 0.9, 0.2, 0.9])
    right_cheap, right_dear, wrong_cheap, wrong_dear = REWARDS[name](answers, spent, targets, how).tolist()
    assert right_cheap > right_dear > wrong_cheap >= wrong_dear
