"""The plan of a round: the same from the same seed, and nothing that happens to one thing twice at a time."""

import pytest
from faults.logs import LOGS, SERVER_KINDS, SERVERS, log_named
from faults.plan import Fault, Kind, plan_of

KINDS = (
    *SERVER_KINDS,
    Kind("pause", "log", 1, 2, 0.2, 5),
    Kind("hole", "relay", SERVERS, 2, 0.2, 6),
    Kind("hole", "relay", SERVERS, 2, 0.2, 6, is_for_all=True),
)


def test_a_seed_makes_one_plan() -> None:
    assert plan_of(7, 600, KINDS) == plan_of(7, 600, KINDS)
    assert plan_of(7, 600, KINDS) != plan_of(8, 600, KINDS)


def test_a_short_round_is_the_beginning_of_a_long_one() -> None:
    short, long = plan_of(7, 60, KINDS), plan_of(7, 600, KINDS)
    assert [fault._replace(seconds=0) for fault in short] == [fault._replace(seconds=0) for fault in long[: len(short)]]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_planned(seed: int) -> None:
    plan = plan_of(seed, 300, KINDS)
    assert {(fault.what, len(fault.targets)) for fault in plan} == {
        ("kill", 1), ("stop", 1), ("pause", 1), ("hole", 1), ("hole", SERVERS),
    }  # fmt: skip
    assert plan == sorted(plan, key=lambda fault: fault.at)
    assert all(fault.at + fault.seconds <= 300.01 for fault in plan)
    busy: dict[tuple[str, int], Fault] = {}
    for fault in plan:
        for target in fault.targets:
            before = busy.get((fault.lane, target))
            assert before is None or before.at + before.seconds < fault.at
            busy[fault.lane, target] = fault


@pytest.mark.parametrize("name", LOGS)
def test_what_can_happen_to_each_log_is_planned(name: str) -> None:
    with log_named(name, loses=True, more={}) as log:
        kinds = (*SERVER_KINDS, *log.kinds)
    planned = {(fault.what, fault.lane) for fault in plan_of(1, 600, kinds)}
    assert planned == {(kind.what, kind.lane) for kind in kinds}
