"""The controller on simulated traces: it keeps the limit, uses what it allows, and does not flutter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.dynamic.controller import Controller, Situation, limit_at
from featherweight.dynamic.cost import Cost, Limit
from featherweight.dynamic.widths import make_slimmable
from featherweight.errors import RequestError

COSTS = {"quarter": Cost(10, 1e-3), "half": Cost(20, 2e-3), "full": Cost(40, 4e-3)}
MS = 1e-3


def run(
    controller: Controller[str], limits: Sequence[float], load: Sequence[float] | None = None
) -> tuple[list[str], list[float]]:
    """What ran and how long it took, with limits in milliseconds, on a machine that is `load` times slower than the table."""
    situation = controller.start(Limit(seconds=limits[0] * MS))
    ran, took = [], []
    for limit, slow in zip(limits, load or [1.0] * len(limits), strict=True):
        seconds = took[-1] * MS if took else None
        situation = controller.follow(situation, Limit(seconds=limit * MS), seconds)
        ran.append(situation.choice)
        took.append((COSTS[situation.choice].seconds or 0) / MS * slow)
    return ran, took


def switches(ran: Sequence[str]) -> int:
    return sum(a != b for a, b in itertools.pairwise(ran))


def test_a_square_wave_is_followed_down_at_once_and_up_after_a_while() -> None:
    limits = ([5.0] * 20 + [1.5] * 20) * 3
    ran, took = run(Controller(COSTS, patience=5), limits)
    assert all(spent <= limit for spent, limit in zip(took, limits, strict=True))
    assert ran[:20] == ["full"] * 20
    assert ran[20:40] == ["quarter"] * 20
    assert ran[40:45] == ["quarter"] * 4 + ["full"]
    assert switches(ran) == 5  # one for each edge


def test_a_budget_that_trembles_about_a_cost_makes_no_flutter() -> None:
    generator = torch.Generator().manual_seed(0)
    limits = (4 + 0.3 * torch.randn(300, generator=generator)).tolist()
    eager, _ = run(Controller(COSTS, room=0, patience=1), limits)
    calm, _ = run(Controller(COSTS, room=0.1, patience=5), limits)
    assert switches(eager) > 60
    assert switches(calm) <= 4


def test_load_is_measured_and_followed() -> None:
    """The machine becomes three times slower, and recovers; the deadline stays."""
    load = [1.0] * 30 + [3.0] * 60 + [1.0] * 60
    ran, took = run(Controller(COSTS, patience=5, memory=0.5), [5.0] * 150, load)
    assert ran[29] == "full"
    assert ran[89] == "quarter"
    assert ran[149] == "full"
    missed = [i for i, spent in enumerate(took) if spent > 5]
    assert missed == [30, 31, 32]  # the slowness is believed to be 1, 2, 2.5, then 2.75
    assert switches(ran) <= 4


def test_nothing_fits_and_the_cheapest_runs(caplog: pytest.LogCaptureFixture) -> None:
    ran, _ = run(Controller(COSTS), [0.5] * 3)
    assert ran == ["quarter"] * 3
    assert "cheapest" in caplog.text


def test_following_is_a_function_of_its_inputs() -> None:
    controller = Controller(COSTS, patience=2)
    before = Situation("half", slowness=1.2, waited=1)
    once = controller.follow(before, Limit(seconds=1), 2e-3)
    assert controller.follow(before, Limit(seconds=1), 2e-3) == once == Situation("full", slowness=0.8 * 1.2 + 0.2 * 1.0)
    assert before == Situation("half", slowness=1.2, waited=1)


def test_a_choice_between_is_taken_where_only_that_has_room() -> None:
    controller = Controller(COSTS, patience=1, room=0.1)
    assert controller.follow(Situation("quarter"), Limit(seconds=4.1 * MS)).choice == "half"  # full fits, but without room
    assert controller.follow(Situation("quarter"), Limit(seconds=2.1 * MS)).choice == "quarter"


limits = st.lists(st.floats(0.1, 10), min_size=1, max_size=40)


@given(limits, st.integers(1, 6), st.floats(0, 0.9))
def test_what_runs_keeps_the_limit_or_is_the_cheapest(trace: list[float], patience: int, room: float) -> None:
    ran, took = run(Controller(COSTS, patience=patience, room=room), trace)
    assert all(
        spent <= limit * (1 + 1e-9) or choice == "quarter" for choice, spent, limit in zip(ran, took, trace, strict=True)
    )


@given(limits, st.integers(1, 6))
def test_going_up_waits_for_patience(trace: list[float], patience: int) -> None:
    ran, _ = run(Controller(COSTS, patience=patience), trace)
    order = list(COSTS)
    ups = [i for i in range(1, len(ran)) if order.index(ran[i]) > order.index(ran[i - 1])]
    assert all(second - first >= patience for first, second in itertools.pairwise(ups))


def test_limits_in_macs_and_a_battery() -> None:
    controller = Controller(COSTS, patience=1, room=0)
    levels = [1.0, 0.9, 0.5, 0.3, 0.0]
    situation, ran = controller.start(limit_at(COSTS, 1.0)), []
    for level in levels:
        situation = controller.follow(situation, limit_at(COSTS, level))
        ran.append(situation.choice)
    assert ran == ["full", "half", "half", "quarter", "quarter"]  # limits of 40, 37, 25, 19, 10 MACs


def test_it_steers_a_network() -> None:
    net = make_slimmable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    controller = Controller.of(net)
    situation = controller.start(Limit(macs=30))
    assert situation.choice == 0.5
    assert net.at_width(situation.choice)(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize("wrong", [{"room": 1.0}, {"patience": 0}, {"memory": 1.0}, {"room": float("nan")}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Controller(COSTS, **wrong)  # type: ignore[arg-type]


def test_measurements_and_levels_out_of_range() -> None:
    with pytest.raises(RequestError, match="seconds must be above 0"):
        Controller(COSTS).follow(Situation("full"), Limit(seconds=1), float("nan"))
    with pytest.raises(RequestError, match="level"):
        limit_at(COSTS, 1.5)
    with pytest.raises(RequestError, match="at least one"):
        Controller({})
