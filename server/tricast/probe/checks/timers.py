"""Measures timers: holds many connections at once, and waits for what becomes of them. P12, P13 and P14.

``cells`` says what is held and when enough is known, ``verdicts.timers`` what it means.
"""

from contextlib import suppress
from typing import NamedTuple

import trio

from tricast.client.failures import ClientError, Lost
from tricast.probe.asking import reports
from tricast.probe.cells import (
    POOL,
    Cell,
    Mode,
    Outcome,
    Plan,
    State,
    bracket,
    cut_after,
    is_decided,
    is_outdated,
    of,
    pointless,
)
from tricast.probe.checks.holding import Held, Paths, hold
from tricast.probe.target import Target, new_nonce
from tricast.wire.probe import Record

#: How often is looked at what has become of the cells.
_LOOK_SECONDS = 0.1
#: How often the server is asked at most, while cells are held.
_ASK_SECONDS = 1.0
#: Between two of the first connections, so that they do not hold up one another.
_STAGGER_SECONDS = 0.005
#: What an end needs to reach the server, before it is asked what it saw.
_SETTLE_SECONDS = 0.5
#: How often the server is asked at the end, while it does not tell: the way may just have no server to ask.
_TRIES = 4


class Bound(NamedTuple):
    """What is known so far of one transport.

    Attributes:
        transport: which.
        is_done: whether nothing more is waited for.
        seconds: how long it has been silent and alive, or was until it was cut; None where it was refused.
        open: how many of its cells are open.
    """

    transport: str
    is_done: bool
    seconds: float | None
    open: int


class Timers:
    """One run.

    Args:
        target: what is probed; with its token, where the server has companion endpoints.
        plan: what is held.
        paths: where something can be held, for a server that has none.

    Attributes:
        plan: what is held.
        outcomes: what has become of each cell so far.
    """

    def __init__(self, target: Target, plan: Plan, paths: Paths | None = None) -> None:
        self._target = target
        self._paths = paths or Paths()
        self._helds: list[Held] = []
        self._scopes: dict[int, trio.CancelScope] = {}
        self._refined: set[str] = set()
        self._is_alone = self._is_repeated = False
        self._began = 0.0
        self._deadline = 0.0
        self.plan = plan
        self.outcomes: list[Outcome] = []

    def be_alone(self) -> None:
        """Says that nothing else is asked on the way any more: what is kept from now on is kept for nobody else."""
        self._is_alone = True

    async def run(self) -> None:
        """Measures; ``outcomes`` is complete when it returns. Cancelling leaves what is known so far."""
        self._began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for cell in self.plan.cells():
                self._begin(nursery, cell)
                await trio.sleep(_STAGGER_SECONDS)
            asked_at = trio.current_time()
            self._deadline = asked_at + self.plan.horizon
            while not self._is_over():
                await trio.sleep(_LOOK_SECONDS)
                self._drop_pointless()
                self._refine(nursery)
                self._repeat(nursery)
                if trio.current_time() >= asked_at + max(_ASK_SECONDS, self.plan.interval):
                    await self._ask_server(self.plan.patience)
                    asked_at = trio.current_time()
            # What was ended just now is still on its way to the server; and what is open there must be told from what
            # is closed here below.
            await trio.sleep(_SETTLE_SECONDS)
            for _ in range(_TRIES):
                await self._ask_server(_SETTLE_SECONDS)
                if not any(map(is_outdated, self.outcomes)):
                    break
                await trio.sleep(_SETTLE_SECONDS)
            nursery.cancel_scope.cancel()

    def elapsed(self) -> float:
        """Seconds since it began, at the speed of what is measured."""
        return (trio.current_time() - self._began) * self.plan.speed if self._began else 0.0

    def bounds(self) -> list[Bound]:
        """What is known so far, for who watches: one for each transport. Times at the speed of what is measured."""
        found = []
        for transport in self.plan.transports:
            idle = of(self.outcomes, transport, Mode.IDLE)
            ages = [outcome.age for outcome in idle if outcome.state is not State.REFUSED]
            seconds = min(ages) * self.plan.speed if ages else None
            is_open = sum(outcome.state is State.OPEN for outcome in of(self.outcomes, transport))
            found.append(Bound(transport, is_decided(self.outcomes, transport, self.plan), seconds, is_open))
        return found

    # What is held

    def _begin(self, nursery: trio.Nursery, cell: Cell) -> None:
        outcome = Outcome(cell=cell, nonce=new_nonce())
        self.outcomes.append(outcome)
        nursery.start_soon(self._hold, outcome)

    async def _hold(self, outcome: Outcome) -> None:
        held = Held(outcome, self.plan, self._target, self._paths)
        self._helds.append(held)
        with trio.CancelScope() as scope:
            self._scopes[id(outcome)] = scope
            await hold(held)

    # What is known

    def _is_over(self) -> bool:
        for held in self._helds:
            if held.outcome.state is State.OPEN:
                held.look()
        if trio.current_time() >= self._deadline and not any(map(self._is_waited_for, self.outcomes)):
            return True
        transports = {outcome.cell.transport for outcome in self.outcomes} - {POOL} or {POOL}
        return all(is_decided(self.outcomes, transport, self.plan) for transport in transports)

    def _is_waited_for(self, outcome: Outcome) -> bool:
        """Whether something was just said on it that must be answered soon."""
        cell, patience = outcome.cell, self.plan.patience + _SETTLE_SECONDS
        return outcome.state is State.OPEN and cell.mode is Mode.RUNG and cell.gap <= outcome.age < cell.gap + patience

    def _drop(self, outcome: Outcome, state: State) -> None:
        outcome.state = state
        self._scopes[id(outcome)].cancel()

    def _drop_pointless(self) -> None:
        for transport in self.plan.transports:
            for outcome in pointless(self.outcomes, transport):
                self._drop(outcome, State.DROPPED)

    def _refine(self, nursery: trio.Nursery) -> None:
        """Begins the second round for a transport that is dropped in silence, once it is known between which rungs."""
        for transport in self.plan.transports:
            silent = bracket(self.outcomes, transport)
            rungs = of(self.outcomes, transport, Mode.RUNG)
            is_known = silent is not None and all(r.state is not State.OPEN for r in rungs if r.cell.gap < silent[1])
            if silent is None or not is_known or transport in self._refined or cut_after(self.outcomes, transport):
                continue
            self._refined.add(transport)
            for cell in self.plan.finer(transport, *silent):
                self._begin(nursery, cell)
            self._deadline = max(self._deadline, trio.current_time() + silent[1] + 2 * self.plan.patience)

    def _repeat(self, nursery: trio.Nursery) -> None:
        """Has more connections kept on the way: those from before may have been used by what was asked meanwhile."""
        if self._is_alone and not self._is_repeated:
            self._is_repeated = True
            for cell in self.plan.cells():
                if cell.transport == POOL:
                    self._begin(nursery, cell)

    async def _ask_server(self, patience: float) -> None:
        """Puts to each outcome what the server saw of it, which counts where its end alone is over.

        Args:
            patience: seconds that such an end may need to get here as well.
        """
        if self.plan.is_foreign:
            return
        asked = [o for o in self.outcomes if o.cell.transport != "keepalive" and o.state is not State.REFUSED]
        with suppress(Lost, ClientError), trio.move_on_after(self._target.settings.answer_timeout):
            seen = await reports(self._target, [o.nonce for o in asked if o.seen is None or o.seen.end is None])
            for outcome in asked:
                if (found := seen.get(outcome.nonce)) is not None:
                    outcome.seen, outcome.calls = found.record, found.calls
        for outcome in asked:
            if outcome.seen is not None:
                self._notice_half(outcome, outcome.seen, patience)

    def _notice_half(self, outcome: Outcome, record: Record, patience: float) -> None:
        if outcome.cell.transport == POOL and outcome.state is State.OPEN and record.ended is not None:
            outcome.age, outcome.how = record.ended, record.end or ""
            self._drop(outcome, State.CUT)
        if outcome.state is not State.OPEN or outcome.cell.mode is Mode.RUNG or record.ended is None:
            return
        if outcome.calls > 1:
            return  # who gave up here asks elsewhere, and has yet to answer
        if record.end != "own" and trio.current_time() - outcome.began > record.ended + patience:
            outcome.age = record.ended
            self._drop(outcome, State.HALF)
