"""What many connections want at the same time: periodic work, and work that has to be shared out over many turns.

Periodic work needs no timer for each connection: there is a wheel of deadlines, and one task that turns it.

A connection that was active in the meantime is not moved on the wheel at each activity, which would cost more than
the activity; it is looked at when its old deadline comes, and says then when to look again.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import trio


class Swept(Protocol):
    """Something that wants to be looked at at a certain time.

    Attributes:
        slot: where on the wheel it is; -1 to begin with. Only the wheel changes it.
    """

    slot: int

    def sweep(self, now: float) -> float | None:
        """Does what is due, without waiting, and returns when to look again; None for never. Must not raise."""
        ...


#: Items looked at between two yields: after a flush, thousands of keepalives fall due at the same moment.
ITEMS_PER_TURN = 200
#: For how long work goes on at most without a turn for others, however long theirs was.
LONGEST_SHARE_SECONDS = 0.02
#: An item that ends has woken a task, which writes an answer and closes: some 300 µs, as many as that many keepalives.
#: Thousands that sent half a head and nothing more end together.
ENDED_WEIGHT = 100


class Wheel:
    """Deadlines in slots of equal length.

    Args:
        tick: seconds a slot lasts. Deadlines are met up to this much late, never early.

    Attributes:
        now: ``trio.current_time()`` as of the last turn: cheap to read, up to a tick old.
    """

    def __init__(self, *, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, set[Swept]] = {}
        self.now = 0.0
        self._turned = -1

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, item: Swept, deadline: float) -> None:
        """Has the item looked at at the deadline (or at the next turn, if that has passed), and not before."""
        self.discard(item)
        item.slot = max(int(deadline // self._tick) + 1, self._turned + 1)
        self._slots.setdefault(item.slot, set()).add(item)

    def discard(self, item: Swept) -> None:
        """Takes the item off the wheel if it is on it."""
        if item.slot >= 0:
            items = self._slots[item.slot]
            items.discard(item)
            if not items:
                del self._slots[item.slot]
            item.slot = -1

    def turn(self, now: float) -> Iterator[None]:
        """Looks at everything that is due; yields where others should get a turn."""
        self.now = now
        weight = 0
        current = int(now // self._tick)
        for slot in range(self._turned + 1, current + 1) if self._slots else ():
            self._turned = slot
            # One by one: what one item does may take others off the wheel, which must then not be looked at.
            while due := self._slots.get(slot):
                item = due.pop()
                item.slot = -1
                deadline = item.sweep(now)
                if deadline is not None:
                    self.add(item, deadline)
                weight += 1 if deadline is not None else ENDED_WEIGHT
                if weight >= ITEMS_PER_TURN:
                    weight = 0
                    yield
            self._slots.pop(slot, None)
        self._turned = current

    async def run(self) -> None:
        """Turns until cancelled."""
        self._turned = int(trio.current_time() // self._tick) - 1
        while True:
            for _ in self.turn(trio.current_time()):
                await trio.lowlevel.checkpoint()
            # The product may be rounded down, to within the slot that was just turned; then this would turn in vain
            # until the clock has moved on, and a clock that only moves while all sleep never does.
            await trio.sleep_until(math.nextafter((self._turned + 1) * self._tick, math.inf))


async def share_out(work: Iterator[None], since: float) -> None:
    """Does work in turns, and takes as much of the time as all others together where they are busy.

    With the same little in each turn, turns that thousands of clients make long would be waited for again and again.
    Cancelling it leaves the rest undone.

    Args:
        work: yields where others should get a turn.
        since: when it was there to be done, by ``trio.current_time()``.
    """
    paused, resumed = since, trio.current_time()
    for _ in work:
        now = trio.current_time()
        if now - resumed >= min(resumed - paused, LONGEST_SHARE_SECONDS):
            paused = now
            await trio.lowlevel.checkpoint()
            resumed = trio.current_time()


class Turnstile:
    """Lets tasks through a few at a time, in the order in which they came, so that all others get their turns between.

    Trio runs whatever is ready in one go: hundreds that do half a millisecond's work hold up everybody else.

    Args:
        per_turn: how many at a time.
    """

    def __init__(self, *, per_turn: int) -> None:
        self._per_turn = per_turn
        self._waiting = trio.lowlevel.ParkingLot()
        self._passed = 0  # in this turn
        self._somebody = trio.Event()

    async def pass_through(self) -> None:
        """Returns when it is this task's turn, which is at once where nobody waits. Cancelling leaves the queue."""
        self._somebody.set()
        if self._passed < self._per_turn:
            self._passed += 1
            await trio.lowlevel.checkpoint()
        else:
            await self._waiting.park()

    async def run(self) -> None:
        """Lets them through until cancelled."""
        while True:
            await self._somebody.wait()
            self._somebody = trio.Event()
            while self._passed:
                await trio.lowlevel.checkpoint()
                self._passed = len(self._waiting.unpark(count=self._per_turn))
