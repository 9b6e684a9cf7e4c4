"""The log in this process's memory: fast, private to the process, and gone with it.

Each topic keeps its newest events; over all topics, events go when they are too old or too many. What was dropped is
remembered as one id per topic, which is all that is needed to tell a client about a gap.
"""

import heapq
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain

from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.log.base import Committed, Slice
from tricast.wire.form import event_id

#: What an event costs beside its text: the object, its id, its place in two sequences and the encoded copies' headers,
#: measured with tracemalloc. The text counts five times: as published, and in each of the four wire forms.
_OVERHEAD_BYTES = 1000
_COPIES = 5
#: Events that one read looks at; for patterns these are all behind the position, wanted or not.
_MAX_SCAN = 5000
#: Topics of which nothing is left, and whose last drop is remembered one by one.
_MAX_GONE = 10_000


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
        #: Topics of which nothing is left, with the newest event that each dropped; and the newest of still others.
        self._gone: dict[str, EventId] = {}
        self._forgotten = BEGINNING
        #: All kept events in order, and some that their topics have dropped already (see ``_compact``).
        self._order = _Run()
        self._kept = 0
        self._size = 0

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
        events: list[Event] = []
        size = 0
        upto = after
        for scanned, event in enumerate(self._candidates(topics, after)):
            if size >= max_bytes or scanned == _MAX_SCAN:
                break
            upto = event.id
            if event.topic in topics and self._is_kept(event):
                events.append(event)
                size += event.size
        else:
            upto = self._last_id
        return Slice(events, self._gap(topics, after, upto), upto, complete=upto == self._last_id)

    def _candidates(self, topics: TopicSet, after: EventId) -> Iterator[Event]:
        if topics.has_patterns:
            return self._order.after(after)
        named = (self._topics[name].after(after) for name in topics.exact if name in self._topics)
        return heapq.merge(*named, key=event_id)

    def _is_kept(self, event: Event) -> bool:
        topic = self._topics.get(event.topic)
        return topic is not None and event.id > topic.dropped

    def _gap(self, topics: TopicSet, after: EventId, upto: EventId) -> Gap | None:
        if after == BEGINNING:
            return None
        reason = GapReason.EVICTED
        resumed_at = max(after, self._forgotten)
        if after < self._start:
            reason = GapReason.RESTARTED
            resumed_at = max(resumed_at, self._start)
        for name, dropped in self._dropped(topics):
            if dropped > resumed_at and name in topics:
                resumed_at = dropped
        # What lies behind this slice is found again when reading on from its end.
        return Gap(reason, after, min(resumed_at, upto)) if resumed_at > after else None

    def _dropped(self, topics: TopicSet) -> Iterator[tuple[str, EventId]]:
        """The newest drop of each topic that may be in the set."""
        names: Iterable[str] = chain(self._topics, self._gone) if topics.has_patterns else topics.exact
        for name in names:
            topic = self._topics.get(name)
            yield name, self._gone.get(name, BEGINNING) if topic is None else topic.dropped

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
            topic = self._topics[event.topic] = _Topic(self._gone.pop(event.topic, BEGINNING))
        topic.append(event)
        self._order.append(event)
        self._kept += 1
        self._size += _cost(event)
        if len(topic) > self._history:
            self._drop_oldest(topic)

    def _trim(self) -> None:
        oldest = EventId(self._now_ms() - self._age_ms, 0)
        while self._order and (self._order.oldest.id < oldest or self._size > self._max_size):
            event = self._order.drop_oldest()
            if self._is_kept(event):
                topic = self._topics[event.topic]
                self._drop_oldest(topic)
                if not topic:
                    self._forget(event.topic)
        if len(self._order) > 2 * self._kept + 1000:
            self._compact()

    def _drop_oldest(self, topic: "_Topic") -> None:
        event = topic.drop_oldest()
        topic.dropped = event.id
        self._size -= _cost(event)
        self._kept -= 1

    def _forget(self, name: str) -> None:
        """Lets go of a topic of which nothing is left, but for its last drop."""
        self._gone[name] = self._topics.pop(name).dropped
        if len(self._gone) > _MAX_GONE:
            longest_gone = self._gone.pop(next(iter(self._gone)))
            self._forgotten = max(self._forgotten, longest_gone)

    def _compact(self) -> None:
        """Takes out what its topics have dropped: behind one old event of a quiet topic it would pile up for ever."""
        self._order = _Run(filter(self._is_kept, self._order.after(BEGINNING)))


class _Run:
    """Events in order: appended at one end, dropped at the other, and found by their id."""

    __slots__ = ("_events", "_first")

    def __init__(self, events: Iterable[Event] = ()) -> None:
        # A list with a moving start: appending and dropping are cheap, and unlike a deque it can be searched.
        self._events = list(events)
        self._first = 0

    def __len__(self) -> int:
        return len(self._events) - self._first

    @property
    def oldest(self) -> Event:
        return self._events[self._first]

    def append(self, event: Event) -> None:
        self._events.append(event)

    def drop_oldest(self) -> Event:
        event = self._events[self._first]
        self._first += 1
        if self._first * 2 > len(self._events):
            del self._events[: self._first]
            self._first = 0
        return event

    def after(self, position: EventId) -> Iterator[Event]:
        events = self._events
        for index in range(bisect_right(events, position, lo=self._first, key=event_id), len(events)):
            yield events[index]


class _Topic(_Run):
    """The newest events of one topic, with the newest one that was dropped."""

    __slots__ = ("dropped",)

    def __init__(self, dropped: EventId) -> None:
        super().__init__()
        self.dropped = dropped


def _cost(event: Event) -> int:
    return _OVERHEAD_BYTES + _COPIES * event.size
