"""Shards whose contents several processes share, and which each of them is handed in its own time."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from hub.fakes import Turn

from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Position, TopicSet, own_id
from tricast.log.base import Committed, IdempotencyKey, Skipped, Slice
from tricast.log.statistics import Statistics
from tricast.log.window import gap_between, take, unknown_position


class Marker(NamedTuple):
    """Stands in a shard where it began anew: of what was before nothing is left."""

    id: EventId


class Content:
    """What one shard holds, whoever appended it.

    Args:
        start: where it begins.
        history: events kept per topic.

    Attributes:
        entries: all there ever was, in order.
        kept: the events that can still be read.
        start: of what was before nothing is left.
        last_id: the newest position.
        dropped: the events of each topic that are not kept any more, since it last began anew.
    """

    def __init__(self, start: EventId, *, history: int) -> None:
        self.entries: list[Event | Marker] = []
        self.kept: list[Event] = []
        self.start = start
        self.last_id = start
        self.dropped: dict[str, list[EventId]] = {}
        self._history = history

    def append(self, drafts: Sequence[Draft]) -> list[EventId]:
        """Keeps the drafts, and drops what is too much then."""
        events = [Event(self._next(index), *draft) for index, draft in enumerate(drafts, start=1)]
        self.last_id = own_id(events[-1])
        self.entries += events
        self.kept += events
        for topic in {draft.topic for draft in drafts}:
            self.trim(topic, self._history)
        return [own_id(event) for event in events]

    def trim(self, topic: str, left: int) -> None:
        """Drops the oldest events of a topic, so that so many are left."""
        of_topic = [event for event in self.kept if event.topic == topic]
        for event in of_topic[: max(len(of_topic) - left, 0)]:
            self.kept.remove(event)
            self.dropped.setdefault(topic, []).append(own_id(event))

    def lose(self) -> None:
        """Loses everything, and begins anew."""
        self.start = self.last_id = self._next(100)
        self.entries.append(Marker(self.start))
        self.kept.clear()
        self.dropped.clear()

    def has_lost(self, topics: TopicSet, behind: EventId) -> bool:
        """Whether something of these topics is not kept any more that was behind a position."""
        dropped = (each for topic, ids in self.dropped.items() if topic in topics for each in ids)
        return behind < self.start or any(each > behind for each in dropped)

    def _next(self, steps: int) -> EventId:
        return EventId(self.last_id.ms, self.last_id.counter + steps)


class Shard:
    """The shard of one process: a ``Log`` that hands over what it is told to, and has done with a read when told to.

    Attributes:
        waiting: what was not handed over yet.
        waits: every read takes another turn.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._seen = len(content.entries)
        self.last_id = content.last_id
        self.statistics = Statistics()
        self.waits = True
        self.problem: str | None = None
        self._committed: Committed | None = None
        self._skipped: Skipped | None = None

    @property
    def waiting(self) -> int:
        return len(self._content.entries) - self._seen

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it is one."""

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``."""
        self._committed, self._skipped = committed, skipped
        try:
            yield
        finally:
            self._committed = self._skipped = None

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``; it is not handed over yet, in any process."""
        if self._committed is None:
            raise LogUnavailable("the log is not open")
        return self._content.append(drafts)

    def hand_over(self, count: int) -> None:
        """Hands over the next of what this process has not seen, or so many less as there are."""
        assert self._committed is not None
        assert self._skipped is not None
        entries = self._content.entries[self._seen : self._seen + count]
        self._seen += len(entries)
        events: list[Event] = []
        for entry in entries:
            self.last_id = entry.id if isinstance(entry, Marker) else own_id(entry)
            if isinstance(entry, Marker):
                self._commit(events)
                events = []
                self._skipped(entry.id)
            else:
                events.append(entry)
        self._commit(events)

    def _commit(self, events: list[Event]) -> None:
        # As another process would see it: an event object is not shared.
        if events and self._committed is not None:
            last_id, self.last_id = self.last_id, own_id(events[-1])
            self._committed([Event(event.id, event.topic, event.type, event.data) for event in events])
            self.last_id = max(last_id, self.last_id)

    def skip(self) -> None:
        """Hands over nothing of what this process has not seen."""
        assert self._skipped is not None
        self._seen = len(self._content.entries)
        self.last_id = self._content.last_id
        self._skipped(self.last_id)

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``."""
        assert isinstance(after, EventId)
        if self.waits:
            await Turn()
        if after > self.last_id:
            self.hand_over(self.waiting)
            if after > self.last_id:
                return unknown_position(after, self.last_id)
        content, end = self._content, self.last_id
        candidates = [event for event in content.kept if after < own_id(event) <= end]
        events, upto = take(
            candidates, after=after, end=end, max_bytes=max_bytes, is_wanted=lambda event: event.topic in topics
        )
        # What was dropped and is still to be handed over will be handed over.
        drops = [
            each for topic, dropped in content.dropped.items() if topic in topics for each in dropped if each <= end
        ]
        gap = gap_between(after, upto, start=min(content.start, end), forgotten=BEGINNING, drops=drops)
        return Slice(events, gap, upto, complete=upto == end)
