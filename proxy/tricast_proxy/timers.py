"""Deadlines that are put off all the time, for many exchanges at once, by one task.

A tunnel's idle timer is put off by every byte. That only notes the time; when the deadline as it was before comes, it
is worked out anew. So traffic costs next to nothing, and there is no task for each timer.
"""

import heapq
import itertools
import math
from typing import NamedTuple, Protocol

import trio

#: Where traffic comes from.
UPSTREAM, CLIENT = 0, 1
#: Deadlines of what has ended are kept, up to so many and half of all.
_MOST_FORGOTTEN = 1000
#: When a deadline is looked at so late, this process was held up, and catches up for as long before it goes by it.
_HELD_UP_SECONDS = 0.1


class Rule(NamedTuple):
    """One timer of an exchange.

    Attributes:
        name: what has run out when it has run out.
        seconds: how long it runs; infinity for ever.
        by_upstream: whether bytes of the server put it off.
        by_client: whether bytes of the client do.
        since: when it began; None for when the rules that it is among began to hold.
        when_awaited: whether it stands still while nobody waits for the server.
    """

    name: str
    seconds: float
    by_upstream: bool = False
    by_client: bool = False
    since: float | None = None
    when_awaited: bool = False


class Watch:
    """The timers of one exchange.

    Args:
        timers: the task that keeps the time.

    Attributes:
        scope: what is cancelled when one runs out.
        expired: the name of the one that ran out; empty while none has.
        last: when the last byte came from the server, and from the client.
        began: when the rules that hold now began to.
        is_awaited: whether somebody waits for the server.
        pending: the earliest deadline that is waited for; infinity for none.
    """

    __slots__ = ("_rules", "_stood_since", "_timers", "began", "expired", "is_awaited", "last", "pending", "scope")

    def __init__(self, timers: "Timers") -> None:
        self._timers = timers
        self._rules: tuple[Rule, ...] = ()
        self.scope = trio.CancelScope()
        self.expired = ""
        self.began = trio.current_time()
        self.last = [self.began, self.began]
        self.pending = math.inf
        self.is_awaited = False
        self._stood_since = self.began

    def obey(self, *rules: Rule) -> None:
        """Holds to these rules from now on, and to no others."""
        self._rules = tuple(rule for rule in rules if rule.seconds < math.inf)
        self.began = trio.current_time()
        self.last = [self.began, self.began]
        self._look()

    def touch(self, side: int) -> None:
        """Notes that a byte came from a side."""
        self.last[side] = trio.current_time()

    def await_server(self) -> None:
        """Notes that the server is waited for again: its silence is as long as it was when that ended."""
        now = trio.current_time()
        self.last[UPSTREAM] = min(now, self.last[UPSTREAM] + now - self._stood_since)
        self.is_awaited = True

    def stand_still(self) -> None:
        """Notes that nobody waits for the server."""
        self._stood_since = trio.current_time()
        self.is_awaited = False

    def _look(self) -> None:
        deadline, _ = self._deadline(trio.current_time())
        if deadline < self.pending:
            self.pending = deadline
            self._timers.add(deadline, self)

    def due(self, now: float) -> None:
        """Called when a deadline has come that was waited for, which may have been put off meanwhile."""
        if now < self.pending:
            return  # an earlier one has taken its place
        self.pending = math.inf
        deadline, name = self._deadline(now)
        if deadline > now:
            self._look()
        elif not self.expired:
            self.expired = name
            self.scope.cancel()

    def _deadline(self, now: float) -> tuple[float, str]:
        upstream, client = self.last
        deadline, name = math.inf, ""
        for rule in self._rules:
            since = self.began if rule.since is None else rule.since
            if rule.by_upstream and upstream > since:
                since = upstream
            if rule.by_client and client > since:
                since = client
            if rule.when_awaited and not self.is_awaited:
                since = now
            if since + rule.seconds < deadline:
                deadline, name = since + rule.seconds, rule.name
        return deadline, name

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._rules

    def end(self) -> None:
        """Forgets all rules."""
        self._rules = ()
        if self.pending < math.inf:
            self._timers.forget_one()


class Waits(Protocol):
    """Something that has a deadline.

    Attributes:
        has_ended: whether it has none any more.
    """

    @property
    def has_ended(self) -> bool: ...  # noqa: D102 - see above

    def due(self, now: float) -> None:
        """Called when a deadline has come, at ``now``. Must not raise."""
        ...


class Timers:
    """Deadlines in order, and the task that waits for the first of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waits]] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, waits: Waits) -> None:
        """Has ``waits.due`` called at the deadline."""
        heapq.heappush(self._heap, (deadline, next(self._numbers), waits))
        self._sleep.deadline = min(self._sleep.deadline, deadline)

    def forget_one(self) -> None:
        """Says that one more of those that are waited for has ended: most do, long before their deadline."""
        self._forgotten += 1
        if self._forgotten > _MOST_FORGOTTEN and self._forgotten > len(self._heap) // 2:
            self._forgotten = 0
            self._heap = [entry for entry in self._heap if not entry[2].has_ended]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Calls what is due until cancelled."""
        while True:
            # What came while this process had no time to look at it is heard before anybody is blamed for silence.
            await trio.lowlevel.checkpoint()
            if self._heap and trio.current_time() - self._heap[0][0] > _HELD_UP_SECONDS:
                await trio.sleep(_HELD_UP_SECONDS)  # it may take some turns of several tasks
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2].due(now)
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf) as self._sleep:
                await trio.sleep_forever()
