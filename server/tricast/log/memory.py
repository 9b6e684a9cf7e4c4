"""The log in this process's memory: fast, private to the process, and gone with it."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from tricast.errors import LogUnavailable
from tricast.event import Draft, Event, EventId, Position, TopicSet
from tricast.log.base import Committed, IdempotencyKey, Skipped, Slice, key_reused
from tricast.log.statistics import Statistics
from tricast.log.window import Window, unknown_position


class MemoryLog:
    """See ``Log``.

    Args:
        history: events kept per topic.
        history_age: seconds after which an event is dropped.
        history_size: bytes of memory for all kept events, about; the oldest go first.
        clock: seconds since the epoch; only moves ids forward, so it may jump.
    """

    def __init__(self, *, history: int, history_age: float, history_size: int, clock: Callable[[], float]) -> None:
        self._age_ms = int(history_age * 1000)
        self._clock = clock
        self._committed: Committed | None = None
        # Positions before the start are from an earlier log, of which nothing is known.
        self._window = Window(start=EventId(self._now_ms(), 0), history=history, max_size=history_size)
        self._keys = _Keys()
        self._statistics = Statistics()

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``."""
        return self._window.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``: nothing here takes any time."""
        return False

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``: memory is always there."""
        return None

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it has none."""

    @property
    def kept(self) -> int:
        """How many events are kept."""
        return self._window.kept

    @property
    def size(self) -> int:
        """Bytes of memory that they take, about."""
        return self._window.size

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:  # noqa: ARG002
        """See ``Log.open``. Everything is appended in this process: nobody to listen to, and nothing to be skipped."""
        self._committed = committed
        try:
            yield
        finally:
            self._committed = None

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``. Does not yield, so drafts of one call get neighbouring ids."""
        if self._committed is None:
            raise LogUnavailable("the log is not open")
        now_ms = self._now_ms()
        if key is not None:
            known = self._keys.find(key, now_ms)
            if known is not None:
                return list(known)
        last_ms, counter = self.last_id
        first = EventId(now_ms, 0) if now_ms > last_ms else EventId(last_ms, counter + 1)
        ids = [EventId(first.ms, first.counter + index) for index in range(len(drafts))]
        events = [Event(event_id, *draft) for event_id, draft in zip(ids, drafts, strict=True)]
        if key is not None:
            self._keys.remember(key, ids)
        self._window.keep(events, oldest=self._oldest())
        self._committed(events)
        return ids

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``."""
        if not isinstance(after, EventId):
            return unknown_position(after, self.last_id)
        self._window.trim(self._oldest())
        return self._window.read(topics, after, max_bytes=max_bytes)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _oldest(self) -> EventId:
        return EventId(self._now_ms() - self._age_ms, 0)


class _Used(NamedTuple):
    fingerprint: bytes
    first: EventId
    size: int


class _Keys:
    """The keys that were used, the oldest first."""

    def __init__(self) -> None:
        self._used: OrderedDict[bytes, _Used] = OrderedDict()

    def find(self, key: IdempotencyKey, now_ms: int) -> Sequence[EventId] | None:
        oldest_ms = now_ms - int(key.window * 1000)
        while self._used and next(iter(self._used.values())).first.ms < oldest_ms:
            self._used.popitem(last=False)
        used = self._used.get(key.name)
        if used is None:
            return None
        if used.fingerprint != key.fingerprint:
            raise key_reused()
        return [EventId(used.first.ms, used.first.counter + index) for index in range(used.size)]

    def remember(self, key: IdempotencyKey, ids: Sequence[EventId]) -> None:
        # The ids of one append are neighbours, so a large batch takes no more than a single event.
        self._used[key.name] = _Used(key.fingerprint, ids[0], len(ids))
        while len(self._used) > key.max_keys:
            self._used.popitem(last=False)
