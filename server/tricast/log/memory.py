"""The log in this process's memory: fast, private to the process, and gone with it.

Each topic keeps its newest events; over all topics, events go when they are too old or too many. What was dropped is
remembered as one id per topic, which is all that is needed to tell a client about a gap.
"""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.log.base import Committed, Slice
from tricast.wire.form import event_id

#: What an event costs beside its text: the object, its id, its place in two sequences and the encoded copies' headers,
#: measured with tracemalloc. The texts count three times: as published and in about two wire forms.
_OVERHEAD_BYTES = 700


class MemoryLog:
    """See ``Log``.

    Args:
        history: events kept per topic.
        history_age: seconds after which an event is dropped.
        history_size: bytes of memory for all kept events, about; the oldest go first.
        clock: seconds since the epoch; only moves ids forward, so it may jump.
    """

    def __init__(self, *, history: int, history_age: float, history_size: int, clock: Callable[[], float]) -> None:
        self._history = history
        self._age_ms = int(history_age * 1000)
        self._max_size = history_size
        self._clock = clock
        self._committed: Committed | None = None
        #: Positions before this one are from an earlier log, of which nothing is known.
        self._start = EventId(self._now_ms(), 0)
        self._last_id = self._start
        self._topics: dict[str, _Topic] = {}
        #: All kept events in order, and some that their topics have dropped already (see ``_compact``).
        self._order: deque[Event] = deque()
        self._kept = 0
        self._size = 0
        #: The newest event dropped from a topic of which nothing is left.
        self._forgotten = BEGINNING

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``."""
        return self._last_id

    @property
    def kept(self) -> int:
        """How many events are kept."""
        return self._kept

    @property
    def size(self) -> int:
        """Bytes of memory that they take, about."""
        return self._size

    @asynccontextmanager
    async def open(self, committed: Committed) -> AsyncIterator[None]:
        """See ``Log.open``. Everything is appended in this process, so there is nobody to listen to."""
        self._committed = committed
        try:
            yield
        finally:
            self._committed = None

    async def append(self, drafts: Sequence[Draft]) -> list[EventId]:
        """See ``Log.append``. Does not yield, so drafts of one call get neighbouring ids."""
        if self._committed is None:
            raise LogUnavailable("the log is not open")
        events = [Event(self._next_id(), *draft) for draft in drafts]
        for event in events:
            self._keep(event)
        self._trim()
        self._committed(events)
        return [event.id for event in events]

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        """See ``Log.read``."""
        self._trim()
        if after > self._last_id:
            return Slice((), Gap(GapReason.UNKNOWN_ID, after, self._last_id), self._last_id, complete=True)
        matching = list(self._matching(topics))
        events: list[Event] = []
        size = 0
        complete = True
        for event in heapq.merge(*(topic.after(after) for topic in matching), key=event_id):
            if size >= max_bytes:
                complete = False
                break
            events.append(event)
            size += len(event.data)
        upto = self._last_id if complete else events[-1].id
        return Slice(events, self._gap(matching, after, upto), upto, complete)

    def _gap(self, matching: Sequence["_Topic"], after: EventId, upto: EventId) -> Gap | None:
        if after == BEGINNING:
            return None
        dropped = max((topic.dropped for topic in matching), default=BEGINNING)
        resumed_at = max(dropped, self._forgotten)
        reason = GapReason.EVICTED
        if after < self._start:
            resumed_at = max(resumed_at, self._start)
            reason = GapReason.RESTARTED
        # What lies behind this slice is found again when reading on from its end.
        return Gap(reason, after, min(resumed_at, upto)) if after < resumed_at else None

    def _matching(self, topics: TopicSet) -> Iterator["_Topic"]:
        names: Iterable[str] = filter(topics.__contains__, self._topics) if topics.has_patterns else topics.exact
        return (self._topics[name] for name in names if name in self._topics)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _next_id(self) -> EventId:
        ms, counter = self._last_id
        now = self._now_ms()
        self._last_id = EventId(now, 0) if now > ms else EventId(ms, counter + 1)
        return self._last_id

    def _keep(self, event: Event) -> None:
        topic = self._topics.get(event.topic)
        if topic is None:
            topic = self._topics[event.topic] = _Topic()
        topic.append(event)
        self._order.append(event)
        self._kept += 1
        self._size += _cost(event)
        if len(topic) > self._history:
            self._drop_oldest(topic)

    def _trim(self) -> None:
        oldest = EventId(self._now_ms() - self._age_ms, 0)
        while self._order and (self._order[0].id < oldest or self._size > self._max_size):
            event = self._order.popleft()
            topic = self._topics[event.topic]
            if event.id > topic.dropped:  # else its topic has dropped it already
                self._drop_oldest(topic)
                if not len(topic):
                    del self._topics[event.topic]
                    self._forgotten = max(self._forgotten, topic.dropped)
        if len(self._order) > 2 * self._kept + 1000:
            self._compact()

    def _drop_oldest(self, topic: "_Topic") -> None:
        self._size -= _cost(topic.drop_oldest())
        self._kept -= 1

    def _compact(self) -> None:
        """Takes out what its topics have dropped: behind one old event of a quiet topic it would pile up for ever."""
        self._order = deque(event for event in self._order if event.id > self._topics[event.topic].dropped)


class _Topic:
    """The newest events of one topic, in order, with the newest one that was dropped."""

    __slots__ = ("_events", "_first", "dropped")

    def __init__(self) -> None:
        # A list with a moving start: appending and dropping are cheap, and unlike a deque it can be searched.
        self._events: list[Event] = []
        self._first = 0
        self.dropped = BEGINNING

    def __len__(self) -> int:
        return len(self._events) - self._first

    def append(self, event: Event) -> None:
        self._events.append(event)

    def drop_oldest(self) -> Event:
        event = self._events[self._first]
        self.dropped = event.id
        self._first += 1
        if self._first * 2 > len(self._events):
            del self._events[: self._first]
            self._first = 0
        return event

    def after(self, position: EventId) -> Iterator[Event]:
        events = self._events
        for index in range(bisect_right(events, position, lo=self._first, key=event_id), len(events)):
            yield events[index]


def _cost(event: Event) -> int:
    return _OVERHEAD_BYTES + 3 * len(event.data)
