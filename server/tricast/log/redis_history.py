"""Reading a shard's stream: what is older than what is in memory, and the newest, to begin with."""

from collections.abc import Sequence
from typing import NamedTuple

from coredis import Redis

from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Event, EventId, Gap, GapReason, TopicSet, own_id
from tricast.log.base import Slice
from tricast.log.redis_stream import Entry, Keys, Look, State, entries_before, entries_behind, look
from tricast.log.window import MAX_SCAN, cost_of, gap_between

#: One read looks at no more than that, wanted or not.
_MAX_SCAN_BYTES = 4 * 2**20
#: No id has a greater one.
_MAX_COUNTER = 2**63 - 1


class Newest(NamedTuple):
    """The newest events, between which nothing is missing.

    Attributes:
        events: in id order.
        marks: what stands between them.
        behind: they are all that there is behind this position.
        is_all: whether they are all that is kept.
    """

    events: list[Event]
    marks: list[Entry]
    behind: EventId
    is_all: bool


async def newest(redis: Redis[bytes], keys: Keys, state: State, *, max_cost: int) -> Newest:
    """The newest events up to where the stream was.

    Args:
        redis: the connection.
        keys: the shard's.
        state: how the stream was.
        max_cost: the memory that they may take; see ``cost_of``.
    """
    events: list[Event] = []
    marks: list[Entry] = []
    cost = 0
    oldest: Entry | None = None
    is_over = False
    while not is_over:
        entries, is_over = await entries_before(redis, keys, oldest and oldest.id, state.last.id)
        for entry in entries:
            oldest = entry
            if entry.event is None:
                marks.append(entry)
                continue
            cost += cost_of(entry.event)
            if cost > max_cost:
                return Newest(events[::-1], marks[::-1], entry.id, is_all=False)
            events.append(entry.event)
    # What was before the oldest was dropped, unless it is the first of all.
    behind = state.last.id if oldest is None else BEGINNING if oldest.number == 1 else oldest.id
    return Newest(events[::-1], marks[::-1], behind, is_all=True)


async def read_stream(
    redis: Redis[bytes],
    keys: Keys,
    state: State,
    topics: TopicSet,
    after: EventId,
    *,
    max_bytes: int,
) -> Slice:
    """See ``Log.read``.

    Args:
        redis: the connection.
        keys: the shard's.
        state: the log as far as this process has come; what is behind that is not looked at.
        topics: names and patterns.
        after: the position.
        max_bytes: about how much.

    Raises:
        LogUnavailable: the log is another one by now.
    """
    log, start, (end, _) = state
    scan = _Scan(topics, after, end, max_bytes)
    reply = await entries_behind(redis, keys, after, end)
    # Looked at afterwards: when what is first then is not behind the position, nothing was dropped in the meantime.
    found = await _look(redis, keys, log, topics, after)
    if not found.is_newer:
        scan.upto = end
    elif not scan.take(*reply):
        while not scan.take(*await entries_behind(redis, keys, scan.upto, end)):
            pass
        found = await _look(redis, keys, log, topics, after)
    return scan.slice(after, start=max(start, found.state.start), dropped=_dropped(found, end))


class _Scan:
    """Takes what is wanted of entries, up to a limit.

    Attributes:
        events: what was wanted.
        upto: the position behind what was looked at.
        mark: the one at which it ended: what is behind it is for who was told of that.
    """

    def __init__(self, topics: TopicSet, after: EventId, end: EventId, max_bytes: int) -> None:
        self.events: list[Event] = []
        self.upto = after
        self.mark: Entry | None = None
        self._is_all = after == BEGINNING
        self._topics = topics
        self._end = end
        self._max_bytes = max_bytes
        self._size = self._scanned = self._scanned_bytes = 0

    def take(self, entries: Sequence[Entry], is_end: bool) -> bool:
        """Takes the next entries, and whether they are the last; returns whether that is all."""
        for entry in entries:
            if self._is_full:
                return True
            self._take(entry)
        if is_end and self.mark is None:
            self.upto = self._end
        return is_end or self._is_full

    @property
    def _is_full(self) -> bool:
        is_much = self._size >= self._max_bytes or self._scanned >= MAX_SCAN or self._scanned_bytes >= _MAX_SCAN_BYTES
        return is_much or self.mark is not None

    def slice(self, after: EventId, *, start: EventId, dropped: EventId) -> Slice:
        """What was taken behind a position, up to the end of the first gap.

        Who is cut off between an event and a gap that is told behind it comes back for what follows upon the event.

        Args:
            after: the position.
            start: of what was before, events may be missing.
            dropped: the same.
        """
        if self.mark is None:
            start = BEGINNING if after < dropped and start > self.upto else start
        elif after < dropped and self.events:
            start, self.upto = BEGINNING, own_id(self.events[-1])  # the mark is for the next one
        upto = self.upto
        gap = gap_between(after, upto, start=start, forgotten=BEGINNING, drops=(dropped,))
        if self.mark is not None and upto == self.mark.id:
            gap = Gap(GapReason.RESTARTED, min(after, self.mark.fork), upto)
        return Slice(self.events, gap, upto, complete=upto == self._end)

    def _take(self, entry: Entry) -> None:
        self.upto = entry.id
        self._scanned += 1
        event = entry.event
        if event is not None:
            self._scanned_bytes += event.size
            if event.topic in self._topics:
                self.events.append(event)
                self._size += event.size
        elif entry.log and not self._is_all:
            self.mark = entry


async def _look(redis: Redis[bytes], keys: Keys, log: bytes, topics: TopicSet, after: EventId) -> Look:
    found = await look(redis, keys, topics, after)
    if found.state.log != log:
        raise LogUnavailable("it began anew in Redis")
    return found


def _dropped(found: Look, end: EventId) -> EventId:
    """The last position before what is kept, where something may have been dropped that is wanted."""
    if not found.is_newer:
        return BEGINNING
    if found.first is None:
        return end
    ms, counter = found.first
    return min(EventId(ms, counter - 1) if counter else EventId(ms - 1, _MAX_COUNTER), end)
