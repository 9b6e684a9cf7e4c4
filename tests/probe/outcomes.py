"""Outcomes of cells, made up: for tests of what they mean."""

from collections.abc import Iterable
from typing import Any

from tricast.probe.cells import Cell, Mode, Outcome, Plan, State, plan_of
from tricast.probe.link import End
from tricast.wire.probe import Record

PLAN = plan_of(130)


def record(**values: Any) -> Record:
    return Record(**({"nonce": "n", "kind": "ws", "conn": 1, "number": 1, "peer": "p", "last_sent": 0.0} | values))


def outcome(transport: str, mode: Mode, state: State, age: float, *, gap: float = 0.0, **values: Any) -> Outcome:
    return Outcome(cell=Cell(transport, mode, gap=gap), state=state, age=age, **values)


def cut(transport: str, mode: Mode, age: float, *, at_server: str | None = "fin", **values: Any) -> Outcome:
    seen = record(end=at_server, ended=None if at_server is None else age)
    return outcome(transport, mode, State.CUT, age, **({"how": End.FIN, "seen": seen} | values))


def alive(transport: str, modes: Iterable[Mode], age: float) -> list[Outcome]:
    return [outcome(transport, mode, State.OPEN, age, seen=record(age=age)) for mode in modes]


def idle_cut(transport: str, ages: Iterable[float], rest: float, plan: Plan = PLAN, **values: Any) -> list[Outcome]:
    """Idle cells that were cut, and all others that live."""
    others = [Mode.SERVER, Mode.BOTH, Mode.PINGED] + ([Mode.CLIENT] if transport == "ws" else [])
    return [
        *(cut(transport, Mode.IDLE, age, **values) for age in ages),
        *alive(transport, others, rest),
        *(cut(transport, Mode.KEEPALIVE, age) for age in ages),
    ]
