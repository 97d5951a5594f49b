"""The sparsity after each round."""

from __future__ import annotations

from itertools import pairwise

import pytest

from featherweight.errors import RequestError
from featherweight.pruning.schedule import sparsities


def test_each_round_removes_the_same_share_of_what_is_left() -> None:
    reached = [0.2, *sparsities(0.2, 0.9, 5)]
    shares = [(b - a) / (1 - a) for a, b in pairwise(reached)]
    assert shares == pytest.approx([1 - (0.1 / 0.8) ** 0.2] * 5)
    assert reached[-1] == 0.9


def test_lottery_tickets_of_lenet() -> None:
    """Frankle and Carbin's LeNet: a fifth in each round leaves 51.2 % after three, 21 % after seven, 3.5 % after fifteen."""
    for rounds, left in ((3, 0.512), (7, 0.20971520), (15, 0.035184372)):
        assert sparsities(0.0, 1 - 0.8**rounds, rounds)[0] == pytest.approx(0.2)
        assert sparsities(0.0, 1 - 0.8**rounds, rounds)[-1] == pytest.approx(1 - left)


def test_other_schedules() -> None:
    assert sparsities(0.0, 0.8, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert sparsities(0.0, 0.8, 2, "once") == [0.8, 0.8]
    assert sparsities(0.5, 0.5, 2) == [0.5, 0.5]


@pytest.mark.parametrize("arguments", [(-0.1, 0.5, 1), (0.5, 0.4, 1), (0.0, 1.0, 1), (0.0, 0.5, 0), (0.0, 0.5, 1, "suddenly")])
def test_wrong_requests(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(RequestError):
        sparsities(*arguments)
