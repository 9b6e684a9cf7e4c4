"""The newest events in memory: appended at one end, dropped at the other, and read from any position. Without I/O.

Each topic keeps its newest events; over all topics, events go when they are too old or too many. What was dropped is
remembered as one id per topic, which is all that is needed to tell a client about a gap. Where the ids come from, and
whether the events are kept anywhere else, is the business of the log that uses this.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from tricast.event import BEGINNING, Event, EventId, Gap, GapReason, Position, TopicSet, own_id
from tricast.log.base import Slice

#: What an event costs beside its text: the object, its id, its place in two sequences and the encoded copies' headers,
#: measured with tracemalloc. The text counts five times: as published, and in each of the four wire forms.
_OVERHEAD_BYTES = 1000
_COPIES = 5
#: Events that one read looks at; for patterns these are all behind the position, wanted or not.
MAX_SCAN = 5000
#: Topics of which nothing is left, and whose last drop is remembered one by one.
MAX_GONE = 10_000
#: Landmarks at the same distance.
_LANDMARKS = 64


class Window:
    """The newest events behind a position.

    Args:
        start: everything behind it is handed to ``keep``; of what was before it nothing is known.
        history: events kept per topic.
        max_size: bytes of memory for all kept events, about; the oldest go first.

    Attributes:
        start: see above.
        last_id: the newest position.
    """

    def __init__(self, *, start: EventId, history: int, max_size: int) -> None:
        self.start = start
        self.last_id = start
        self._history = history
        self._max_size = max_size
        self._topics: dict[str, _Topic] = {}
        #: Topics of which nothing is left, with the newest event that each dropped; and the newest of still others.
        self._gone: dict[str, EventId] = {}
        self._forgotten = BEGINNING
        #: All kept events in order, and some that their topics have dropped already (see ``_compact``).
        self._order = _Run()
        self._kept = 0
        self._size = 0

    @property
    def kept(self) -> int:
        """How many events are kept."""
        return self._kept

    @property
    def size(self) -> int:
        """Bytes of memory that they take, about."""
        return self._size

    def keep(self, events: Sequence[Event], *, oldest: EventId) -> None:
        """Takes the next events, in order, and drops what is too much then, or before the oldest that may stay."""
        for event in events:
            self._keep(event)
        self.trim(oldest)

    def trim(self, oldest: EventId) -> None:
        """Drops what is before the oldest event that may stay, and what is too much."""
        while self._order and (own_id(self._order.oldest) < oldest or self._size > self._max_size):
            event = self._order.drop_oldest()
            if self._is_kept(event):
                topic = self._topics[event.topic]
                self._drop_oldest(topic)
                if not topic:
                    self._forget(event.topic)
        if len(self._order) > 2 * self._kept + 1000:
            self._compact()

    def holds(self, position: EventId) -> bool:
        """Whether there is an event at a position that is kept, or was a moment ago."""
        return self._order.holds(position)

    def landmarks(self) -> Iterator[EventId]:
        """Where events are: the last ones, and then fewer and fewer, the newest first."""
        return self._order.landmarks()

    def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        """What is kept for the topics behind a position; see ``Log.read``."""
        if after > self.last_id:
            return unknown_position(after, self.last_id)
        events, upto = take(
            self._candidates(topics, after),
            after=after,
            end=self.last_id,
            max_bytes=max_bytes,
            is_wanted=lambda event: event.topic in topics and self._is_kept(event),
        )
        drops = self._drops(topics)
        gap = gap_between(after, upto, start=self.start, forgotten=self._forgotten, drops=drops)
        return Slice(events, gap, upto, complete=upto == self.last_id)

    def _candidates(self, topics: TopicSet, after: EventId) -> Iterator[Event]:
        if topics.has_patterns:
            return self._order.after(after)
        named = (self._topics[name].after(after) for name in topics.exact if name in self._topics)
        return heapq.merge(*named, key=own_id)

    def _is_kept(self, event: Event) -> bool:
        topic = self._topics.get(event.topic)
        return topic is not None and own_id(event) > topic.dropped

    def _drops(self, topics: TopicSet) -> Iterator[EventId]:
        """The newest drop of each topic in the set."""
        names: Iterable[str] = itertools.chain(self._topics, self._gone) if topics.has_patterns else topics.exact
        for name in names:
            if name in topics:
                topic = self._topics.get(name)
                yield self._gone.get(name, BEGINNING) if topic is None else topic.dropped

    def _keep(self, event: Event) -> None:
        topic = self._topics.get(event.topic)
        if topic is None:
            topic = self._topics[event.topic] = _Topic(self._gone.pop(event.topic, BEGINNING))
        topic.append(event)
        self._order.append(event)
        self.last_id = own_id(event)
        self._kept += 1
        self._size += cost_of(event)
        if len(topic) > self._history:
            self._drop_oldest(topic)

    def _drop_oldest(self, topic: "_Topic") -> None:
        event = topic.drop_oldest()
        topic.dropped = own_id(event)
        self._size -= cost_of(event)
        self._kept -= 1

    def _forget(self, name: str) -> None:
        """Lets go of a topic of which nothing is left, but for its last drop."""
        self._gone[name] = self._topics.pop(name).dropped
        if len(self._gone) > MAX_GONE:
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

    def holds(self, position: EventId) -> bool:
        index = bisect_left(self._events, position, lo=self._first, key=own_id)
        return index < len(self._events) and own_id(self._events[index]) == position

    def landmarks(self) -> Iterator[EventId]:
        step, index, count = 1, len(self._events) - 1, 0
        while index >= self._first:
            yield own_id(self._events[index])
            index -= step
            count += 1
            step += step * (count % _LANDMARKS == 0)

    def after(self, position: EventId) -> Iterator[Event]:
        events = self._events
        for index in range(bisect_right(events, position, lo=self._first, key=own_id), len(events)):
            yield events[index]


class _Topic(_Run):
    """The newest events of one topic, with the newest one that was dropped."""

    __slots__ = ("dropped",)

    def __init__(self, dropped: EventId) -> None:
        super().__init__()
        self.dropped = dropped


# What every log does in the same way, wherever its events are


def cost_of(event: Event) -> int:
    """Bytes of memory that a kept event takes, about."""
    return _OVERHEAD_BYTES + _COPIES * event.size


def take(
    candidates: Iterable[Event], *, after: EventId, end: EventId, max_bytes: int, is_wanted: Callable[[Event], bool]
) -> tuple[list[Event], EventId]:
    """The wanted ones among the candidates, about as many bytes as were asked for, and the position behind them.

    Args:
        candidates: in id order, all behind ``after``.
        after: the position before them.
        end: the position behind all of them.
        max_bytes: as for ``Log.read``.
        is_wanted: which ones to return.
    """
    events: list[Event] = []
    size = 0
    upto = after
    for scanned, event in enumerate(candidates):
        if size >= max_bytes or scanned == MAX_SCAN:
            return events, upto
        upto = own_id(event)
        if is_wanted(event):
            events.append(event)
            size += event.size
    return events, end


def gap_between(
    after: EventId, upto: EventId, *, start: EventId, forgotten: EventId, drops: Iterable[EventId]
) -> Gap | None:
    """What is missing between two positions, if anything.

    Args:
        after: the position that was asked for.
        upto: the end of what is answered.
        start: where the log began.
        forgotten: the newest drop of those topics whose drops are not known one by one any more.
        drops: the newest drop of each topic that was asked for.
    """
    if after == BEGINNING:
        return None
    reason = GapReason.EVICTED
    resumed_at = max(after, forgotten)
    if after < start:
        reason = GapReason.RESTARTED
        resumed_at = max(resumed_at, start)
    resumed_at = max((resumed_at, *drops))
    # What lies behind this slice is found again when reading on from its end.
    return Gap(reason, after, min(resumed_at, upto)) if resumed_at > after else None


def ended_at_gap(found: Slice, after: EventId, starts: Iterable[EventId]) -> Slice:
    """What was read behind a position, up to the first place before which something may be missing.

    What is behind that is for the next read: who is cut off between an event and a gap that is told behind it comes
    back for what follows upon the event, and is told of nothing before it.

    Args:
        found: what was read.
        after: the position.
        starts: the places.
    """
    start = min((start for start in starts if start > after), default=BEGINNING)
    if BEGINNING in (after, start):
        return found
    if found.upto > start:
        found = Slice(found.events[: bisect_right(found.events, start, key=own_id)], None, start, complete=False)
    return found._replace(gap=Gap(GapReason.RESTARTED, after, found.upto))


def unknown_position(after: Position, last_id: Position) -> Slice:
    """The answer to a position that the log never came to."""
    return Slice((), Gap(GapReason.UNKNOWN_ID, after, last_id), last_id, complete=True)
