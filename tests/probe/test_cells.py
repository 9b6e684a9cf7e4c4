"""What is held, and when enough is known."""

import pytest
from probe.outcomes import PLAN, alive, idle_cut, outcome

from tricast.probe.cells import (
    LADDER,
    POOL,
    Mode,
    Outcome,
    State,
    bracket,
    cut_after,
    is_decided,
    plan_of,
    pointless,
)


def rungs(transport: str, *lost: float, answered: tuple[float, ...] = ()) -> list[Outcome]:
    return [
        *(outcome(transport, Mode.RUNG, State.LOST, gap + 5, gap=gap) for gap in lost),
        *(outcome(transport, Mode.RUNG, State.ANSWERED, gap, gap=gap) for gap in answered),
    ]


def test_a_plan_finds_every_timer_up_to_its_horizon() -> None:
    plan = plan_of(130)
    cells = plan.cells()
    assert max(plan.ladder) == 130
    assert len([cell for cell in cells if cell.mode is Mode.IDLE and cell.transport == "ws"]) == 3
    assert {cell.mode for cell in cells if cell.transport == "ws"} == set(Mode)
    assert len(cells) == len(set(cells))
    assert plan.hold > plan.horizon
    assert plan_of(3700).ladder == LADDER
    assert plan_of(3700).hold <= 7200


def test_what_is_dropped_in_silence_shows_as_late_in_polls_as_in_streams() -> None:
    for horizon in (300, 420, 3700):
        plan = plan_of(horizon)
        assert max(plan.poll_ladder) == max(plan.ladder)


def test_speed_divides_every_time_on_the_wire_but_not_the_patience_for_a_round_trip() -> None:
    plan, fast = plan_of(130), plan_of(130, speed=20)
    assert fast.horizon == plan.horizon / 20
    assert fast.ladder == tuple(gap / 20 for gap in plan.ladder)
    assert (fast.interval, fast.ping) == (0.25, 0.75)
    assert fast.patience >= 1


def test_a_foreign_server_is_asked_only_what_any_server_can_do() -> None:
    cells = plan_of(130, is_foreign=True).cells()
    assert {cell.transport for cell in cells} == {"ws", "sse", "keepalive"}
    assert Mode.SERVER not in {cell.mode for cell in cells}
    assert not [cell for cell in cells if cell.transport == "sse" and cell.mode is Mode.RUNG]


def test_only_what_was_asked_for_is_held() -> None:
    assert {cell.transport for cell in plan_of(130, transports=["sse"]).cells()} == {"sse", POOL}


def test_the_second_round_divides_the_bracket() -> None:
    gaps = [cell.gap for cell in PLAN.finer("ws", 57, 65)]
    assert len(gaps) == 16
    assert 57 < gaps[0] < gaps[-1] < 65
    assert gaps[1] - gaps[0] == pytest.approx(8 / 17)


def test_brackets_come_from_what_was_lost_without_a_word() -> None:
    assert bracket(rungs("ws", answered=(20, 35)), "ws") is None
    found = rungs("ws", 65, 95, answered=(20, 57, 115))
    assert bracket(found, "ws") == (57, 65)
    assert bracket(found, "sse") is None
    finer = [outcome("ws", Mode.RUNG, State.LOST, 61, gap=61), outcome("ws", Mode.RUNG, State.ANSWERED, 60, gap=60)]
    finer = [Outcome(cell=each.cell._replace(is_refining=True), state=each.state) for each in finer]
    assert bracket([*found, *finer], "ws") == (57, 65)
    assert bracket([*found, *finer], "ws", is_refined=True) == (60, 61)
    assert bracket(rungs("ws", 20), "ws") == (0, 20)


def test_enough_is_known_when_what_is_pinged_has_outlived_what_is_silent() -> None:
    assert not is_decided(alive("ws", list(Mode), 100), "ws", PLAN)
    assert not is_decided(idle_cut("ws", [60, 60], 89), "ws", PLAN)
    assert is_decided(idle_cut("ws", [60, 60], 90), "ws", PLAN)
    still_idle = [*idle_cut("ws", [60, 60], 125), *alive("ws", [Mode.IDLE], 125)]
    assert not is_decided(still_idle, "ws", PLAN)
    assert is_decided([outcome("ws", Mode.IDLE, State.REFUSED, 0)], "ws", PLAN)
    assert cut_after(idle_cut("ws", [60, 62, 64], 90), "ws") == 62


def test_enough_is_known_of_what_is_lost_in_silence_after_the_second_round() -> None:
    first = [*alive("ws", [Mode.IDLE, Mode.PINGED], 115), *rungs("ws", 65, answered=(57,))]
    assert not is_decided(first, "ws", PLAN)
    second = [Outcome(cell=cell, state=State.OPEN) for cell in PLAN.finer("ws", 57, 65)]
    assert not is_decided([*first, *second], "ws", PLAN)
    for each in second:
        each.state = State.ANSWERED
    assert is_decided([*first, *second], "ws", PLAN)
    assert not is_decided([*alive("ws", [Mode.IDLE, Mode.PINGED], 80), *first[2:], *second], "ws", PLAN)


def test_rungs_above_what_is_known_are_pointless() -> None:
    waiting = [outcome("ws", Mode.RUNG, State.OPEN, 70, gap=gap) for gap in (95.0, 115.0)]
    assert pointless([*alive("ws", [Mode.IDLE], 70), *waiting], "ws") == []
    assert pointless([*idle_cut("ws", [60], 70), *waiting], "ws") == waiting
    silent = [*alive("ws", [Mode.IDLE], 70), *rungs("ws", 65, answered=(57,)), *waiting]
    assert pointless(silent, "ws") == waiting
    refining = Outcome(cell=PLAN.finer("ws", 57, 65)[0])
    assert refining not in pointless([*silent, refining], "ws")
