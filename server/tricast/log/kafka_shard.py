"""A partition as a log: the newest events in memory, what is older in Kafka. How records get here is not known here."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, Position, TopicSet, own_id
from tricast.log.base import Committed, IdempotencyKey, Skipped, Slice, ignore
from tricast.log.kafka_history import Bounds
from tricast.log.kafka_keys import Keys, Used
from tricast.log.kafka_records import Record, entry_of, position
from tricast.log.kafka_threads import Found, History, Place, Translator
from tricast.log.statistics import Statistics
from tricast.log.window import Window, take, unknown_position

Result = TypeVar("Result")
#: Appends drafts to one partition.
Append = Callable[[Sequence[Draft], IdempotencyKey | None], Awaitable[list[EventId]]]


class Keeping(NamedTuple):
    """How much of a partition is kept.

    Attributes:
        length: records.
        age: seconds.
        cache_size: bytes of memory for the newest of them, about.
        key_window: seconds for which idempotency keys are remembered.
        max_keys: how many of those.
    """

    length: int
    age: float
    cache_size: int
    key_window: float
    max_keys: int


class Reading(NamedTuple):
    """What all partitions need to read what is older.

    Attributes:
        history: reads it, in a thread.
        limiter: how many threads may do that at the same time.
        timeout: seconds for an answer of Kafka's.
        clock: seconds since the epoch.
        statistics: where to count.
    """

    history: History
    limiter: trio.CapacityLimiter
    timeout: float
    clock: Callable[[], float]
    statistics: Statistics


class Shard:
    """See ``Log``.

    Args:
        place: the partition.
        translator: reads its records.
        keeping: how much is kept.
        append: appends to it.

    Attributes:
        place: see above.
        incarnation: what the ids of its events begin with.
        next_offset: behind the last record that was read.
        has_come_to_end: whether everything was read once that was there.
        topic_id: what Kafka gave to the topic when it was made.
    """

    def __init__(self, place: Place, translator: Translator, keeping: Keeping, append: Append) -> None:
        self.place = place
        self.topic_id = ""
        self._translator = translator
        self._keeping = keeping
        self._append = append
        self._reading: Reading
        self._first_end = 0
        self._committed: Committed | None = None
        self._skipped: Skipped = ignore
        self._moved = trio.lowlevel.ParkingLot()
        self._reset(0, 0)

    def _reset(self, incarnation: int, offset: int) -> None:
        keeping = self._keeping
        self.incarnation = incarnation
        self.next_offset = offset
        self.has_come_to_end = False
        start = position(incarnation, offset)
        # How much a single topic keeps does not matter: over all of them it is so much.
        self._window = Window(start=start, history=keeping.length, max_size=keeping.cache_size)
        self._bounds = Bounds(offset, length=keeping.length, age=keeping.age)
        self._keys = Keys(keeping.key_window, keeping.max_keys)
        #: Offsets of repetitions.
        self._left_out: set[int] = set()

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``."""
        return self._window.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``."""
        return True

    @property
    def problem(self) -> None:
        """See ``Log.problem``: the whole log has one, or none has."""

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._reading.statistics

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it is one."""

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``. What was read before is not handed over."""
        self._committed, self._skipped = committed, skipped or ignore
        try:
            yield
        finally:
            self._committed, self._skipped = None, ignore

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``."""
        return await self._append(drafts, key)

    # What is read

    def begin(self, reading: Reading, incarnation: int, offset: int, end: int) -> EventId:
        """Begins to read what is there up to an offset, and then what comes; returns the position from which on."""
        self._reading = reading
        self._reset(incarnation, offset)
        self._first_end = end
        return self.last_id

    def restart(self, incarnation: int, offset: int) -> EventId:
        """Goes on elsewhere, because what would come next is not there; returns the position."""
        self._reset(incarnation, offset)
        self._first_end = offset
        self._skipped(self.last_id)
        return self.last_id

    def deliver(self, found: Found) -> None:
        """Takes what comes next."""
        if found.incarnation != self.incarnation or not found.first <= self.next_offset <= found.next_offset:
            return  # from before it was moved
        events = []
        for event, ms, mark in found.entries:
            offset = own_id(event).counter - 1
            if offset < self.next_offset:
                continue  # read twice
            self._bounds.note(offset, ms)
            if mark is None or self._keys.admit(mark, own_id(event), ms):
                events.append(event)
            else:
                self._left_out.add(offset)
        self.next_offset = found.next_offset
        # While others write, Kafka hardly ever says that there is nothing more.
        self.has_come_to_end |= found.is_at_end or self.next_offset >= self._first_end
        self._window.keep(events, oldest=position(self.incarnation, self._start()))
        # There may be more than events: records that end a transaction, and such as are left out.
        self._window.last_id = position(self.incarnation, self.next_offset)
        if events and self._committed is not None:
            self._committed(events)
        self._moved.unpark_all()

    def _start(self) -> int:
        """The offset of the first record that is kept."""
        start = self._bounds.start(self.next_offset, int(self._reading.clock() * 1000))
        if self._left_out and min(self._left_out) < start:
            self._left_out = {offset for offset in self._left_out if offset >= start}
        return start

    async def reach(self, offset: int) -> None:
        """Returns when everything before this offset was read.

        Raises:
            LogUnavailable: it took too long.
        """
        incarnation = self.incarnation
        with trio.move_on_after(self._reading.timeout):
            while self.next_offset < offset and self.incarnation == incarnation:
                await self._moved.park()
            return
        raise LogUnavailable("Kafka does not give back what it has taken")

    def used(self, key: IdempotencyKey) -> Used | None:
        """Who used a key in this partition."""
        return self._keys.find(key, int(self._reading.clock() * 1000))

    def counted(self, key: IdempotencyKey) -> Used | None:
        """Whose records with a key count that was just read: by their own times, whatever the time is here."""
        return self._keys.find(key, 0)

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``. Waits only where memory does not reach back so far."""
        if not isinstance(after, EventId):
            return unknown_position(after, self.last_id)
        start = position(self.incarnation, self._start())
        self._window.trim(start)
        if after == BEGINNING:
            return (await self._read(topics, start, max_bytes))._replace(gap=None)
        if after.ms != self.incarnation:
            found = await self._read(topics, start, max_bytes)
            return found._replace(gap=Gap(GapReason.RESTARTED, after, min(start, _plain(found.upto))))
        if after > self.last_id and not await self._comes_to(after):
            return unknown_position(after, self.last_id)
        return await self._read(topics, after, max_bytes)

    async def _comes_to(self, asked: EventId) -> bool:
        """Whether a position is one of this partition that is still to be read here; returns when that is done."""
        history = self._reading.history
        end = await self._in_thread(history.end, self.place)
        if asked.counter > end:
            return False
        await self.reach(asked.counter)
        return asked.ms == self.incarnation and asked <= self.last_id

    async def _read(self, topics: TopicSet, since: EventId, max_bytes: int) -> Slice:
        if since >= self._window.start:
            found = self._window.read(topics, since, max_bytes=max_bytes)
            if found.gap is None:
                return found
        with self._reading.statistics.reads.timing():
            return await self._read_older(topics, since, max_bytes)

    async def _read_older(self, topics: TopicSet, since: EventId, max_bytes: int) -> Slice:
        last_id = self.last_id
        begin = max(since.counter, self._start())

        def use(first: int, records: Iterator[Record]) -> tuple[EventId, list[Event], EventId]:
            there = position(since.ms, min(first, last_id.counter))
            is_wanted = partial(_is_in, topics)
            events = take(
                self._events(records, since.ms), after=there, end=last_id, max_bytes=max_bytes, is_wanted=is_wanted
            )
            return there, *events

        there, events, upto = await self._in_thread(self._reading.history.read, self.place, begin, last_id.counter, use)
        if self.incarnation != since.ms:
            return await self.read(topics, since, max_bytes=max_bytes)
        gap = Gap(GapReason.EVICTED, since, there) if there > since else None
        return Slice(events, gap, upto, complete=upto == self.last_id)

    def _events(self, records: Iterator[Record], incarnation: int) -> Iterator[Event]:
        for record in records:
            if record.offset not in self._left_out:
                try:
                    draft = self._translator.read(record)
                except RemoteProtocolError:
                    continue
                yield entry_of(record, draft, incarnation).event

    async def _in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await trio.to_thread.run_sync(
            function, *arguments, limiter=self._reading.limiter, abandon_on_cancel=True
        )


def _is_in(topics: TopicSet, event: Event) -> bool:
    return event.topic in topics


def _plain(position: Position) -> EventId:
    assert isinstance(position, EventId)
    return position
