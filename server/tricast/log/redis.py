"""The log in Redis streams: for servers on several machines, and as safe as Redis keeps it.

Every process appends to the streams, and hands over what any of them appended, in the order of the stream. The newest
events are kept in memory as well, so that most of those who come back are answered without Redis.

A process has three connections for a shard: one that waits for what is new, one that appends, one group of what waits
at a time, and one for everything else. When one of them fails, all are made anew; then a script finds out whether the
stream is still the one that was known. Where it is not, what was before is in doubt, which is said in the stream
itself, so that each process gets to know, and tells those who come from there of a gap.
"""

import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio
from coredis import Redis
from coredis.exceptions import AuthorizationError, ClusterCrossSlotError, ResponseError

from tricast.config import Config, LogSection
from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, Position, TopicSet
from tricast.log import redis_stream as stream
from tricast.log.base import Committed, IdempotencyKey, Log, Skipped, Slice, ignore
from tricast.log.redis_appends import Append, Appends, Result
from tricast.log.redis_channel import channel_log
from tricast.log.redis_history import newest, read_stream
from tricast.log.redis_layout import LaidOutLog
from tricast.log.redis_link import Link
from tricast.log.redis_servers import ERRORS, Servers, unavailable
from tricast.log.redis_stream import REPLY_BYTES, Batch, Entry, Keys, Known, State, keys_of
from tricast.log.sharded import ShardedLog, across_shards, shard_of
from tricast.log.statistics import Statistics
from tricast.log.window import Window, ended_at_gap, unknown_position
from tricast.log_urls import RedisUrl
from tricast.logs import Logger

#: How long Redis is asked to wait for something new. A connection that is dead is noticed so much later.
_BLOCK_SECONDS = 2.0
#: How often it is looked whether the log is still the same, and how far behind this process is.
_WATCH_SECONDS = 2.0
#: Reads of Redis for subscribers at the same time.
_READERS = 2
#: What another process has told a client is mostly here a moment later.
_MOMENT = 0.05
#: How long who has published waits for it to come here, too.
_PATIENCE = 1.0
#: Old events are dropped when they are this much older than they may be, but no more often than each minute.
_TRIM_SHARE = 0.05
_TRIM_SECONDS = (1.0, 60.0)
#: Before every event, but not "all that is kept".
_BEFORE_ALL = EventId(0, 1)
#: Positions that are remembered to be in the stream, or not.
_MAX_ENTRIES = 1000
#: Events that go into memory in one turn.
_KEPT_A_TURN = 250
_LOST = "the connection to Redis was lost"
_ANEW = "it began anew in Redis"


def redis_log(config: Config, url: RedisUrl, *, logger: Logger) -> Log:
    """The log that the configuration asks for; nothing is opened yet.

    Raises:
        ConfigError: a file for TLS cannot be used.
    """
    servers = Servers(url, config.log)
    made = channel_log if config.log.delivery == "pubsub" else _stream_log
    return LaidOutLog(made(config, servers, logger=logger), servers, config.log, logger=logger)


def _stream_log(config: Config, servers: Servers, *, logger: Logger) -> Log:
    statistics = Statistics()
    count = config.log.shards
    shards = {
        number: RedisShard(
            servers,
            config.log,
            history_age=config.events.history_age,
            logger=logger,
            number=number,
            statistics=statistics,
        )
        for number in range(count)
    }
    if count == 1:
        return shards[0]

    async def append_all(
        by_shard: Mapping[int, Sequence[Draft]], key: IdempotencyKey | None
    ) -> dict[int, list[EventId]]:
        numbers = sorted(by_shard)
        several = [shards[number] for number in numbers]
        batch = Batch([by_shard[number] for number in numbers], key)
        found = dict(zip(numbers, await several[0].append_together(several, batch), strict=True))
        for number, ids in found.items():
            await shards[number].arrived(ids[-1])
        return found

    return ShardedLog(
        shards,
        shard_of=lambda topic: shard_of(topic, count),
        # In a cluster they are on different servers.
        append_all=None if servers.is_cluster else append_all,
        statistics=statistics,
    )


class RedisShard:
    """See ``Log``. One stream.

    Args:
        servers: where it is.
        config: how it is kept.
        history_age: seconds after which an event is dropped.
        logger: where to say that the log is unavailable, and that it is back.
        number: which one it is of all of the log's streams.
        clock: seconds since the epoch; only for what is in memory.
        chance: what spreads the attempts to connect again.
        statistics: what to count in.
    """

    def __init__(
        self,
        servers: Servers,
        config: LogSection,
        *,
        history_age: float,
        logger: Logger,
        number: int = 0,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        statistics: Statistics | None = None,
    ) -> None:
        self._servers = servers
        self._config = config
        self._keys: Keys = keys_of(config.namespace, number, config.shards)
        self._age = history_age
        self._logger = logger
        self._number = number
        self._clock = clock
        self._statistics = statistics or Statistics()
        self._committed: Committed = ignore
        self._skipped: Skipped = ignore
        self._label = label = {"shard": number} if config.shards > 1 else {}
        self._link = Link(config, label=label, logger=logger, chance=chance, statistics=self._statistics)
        self._appends: Appends[Sequence[RedisShard]] = Appends()
        self._refusal: str | None = None
        self._session: _Session | None = None
        #: The log as it was last known; ``start`` and ``last`` are what was handed over.
        self._state = State(b"", BEGINNING, stream.NOTHING)
        #: The newest entry that publishers were told of.
        self._acknowledged = stream.NOTHING
        self._window = self._new_window(BEGINNING)
        #: Where the window begins, and whether that is all that is kept.
        self._behind = BEGINNING
        self._is_all = False
        #: The marks behind that, each with the entry up to which it leaves no doubt.
        self._marks: dict[EventId, EventId] = {}
        #: Other positions that were asked for, and whether they are in the stream.
        self._entries: dict[EventId, bool] = {}
        self._arrived = trio.lowlevel.ParkingLot()
        self._reading = trio.CapacityLimiter(_READERS)

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``: the newest position that was handed over in this process."""
        return self._window.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``: for the network, and for Redis."""
        return True

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``."""
        return self._link.problem or self._refusal

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it is one itself."""

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``. When it is cancelled, it is open whether what is being appended is kept.

        Raises:
            LogUnavailable: there is no Redis, or it cannot be used.
        """
        self._committed, self._skipped = committed, skipped or ignore
        try:
            async with self._link.open(self._work, self._fail):
                yield
        finally:
            self._committed = self._skipped = ignore

    def _fail(self, why: str) -> None:
        self._refusal = None
        self._appends.fail_all(why)

    # The connections

    async def _work(self) -> None:
        """Connects, and works until a connection fails.

        Raises:
            LogUnavailable: always, with what failed.
        """
        key, config = self._keys.log, self._config
        async with (
            self._servers.connect(key, block=_BLOCK_SECONDS) as reader,
            self._servers.connect(key, block=config.timeout * bool(config.replicas)) as appender,
            self._servers.connect(key) as asker,
        ):
            await self._begin(asker)
            failure: LogUnavailable | None = None
            try:
                async with trio.open_nursery() as nursery:
                    session = self._session = _Session(asker, nursery.cancel_scope)
                    if self._link.is_back():
                        self._committed(())
                    nursery.start_soon(self._follow, reader)
                    nursery.start_soon(self._append, appender)
                    nursery.start_soon(self._watch, asker)
                failure = session.failure
            finally:
                self._session = None
            raise failure or LogUnavailable(_LOST)

    async def _begin(self, redis: Redis[bytes]) -> None:
        """Finds out whether the log is the one that was known, and begins anew where it is not."""
        known = self._state._replace(last=max(self._state.last, self._acknowledged))
        fresh = secrets.token_hex(8).encode()
        state, is_known = await stream.begin(
            redis,
            self._keys,
            fresh,
            known,
            self._window.landmarks(),
            may_return=self._servers.may_return,
            is_replicated=self._config.replicas > 0,
        )
        if not is_known:
            await self._start_over(redis, state)

    async def _start_over(self, redis: Redis[bytes], state: State) -> None:
        """Fills the memory with the newest events, and sends all who are live to read what they have not got."""
        state = state._replace(start=max(state.start, self._state.start))
        found = await newest(redis, self._keys, state, max_cost=self._cache_size)
        window = self._new_window(state.last.id)
        for begin in range(0, len(found.events), _KEPT_A_TURN):
            window.keep(found.events[begin : begin + _KEPT_A_TURN], oldest=self._oldest())
            await trio.lowlevel.checkpoint()
        window.last_id = state.last.id
        self._window, self._behind, self._is_all = window, found.behind, found.is_all
        self._marks = {mark.id: mark.fork for mark in found.marks}
        self._entries = {}
        is_first, is_same = not self._state.log, state.log == self._state.log
        self._state = state
        self._acknowledged = max(self._acknowledged, state.last) if is_same else state.last
        if not is_first:
            self._skipped(state.last.id)
        self._arrived.unpark_all()

    @property
    def _cache_size(self) -> int:
        return self._config.cache_size // self._config.shards

    def _new_window(self, last: EventId) -> Window:
        # What was before it is told by Redis: to the window it is all there is.
        window = Window(start=_BEFORE_ALL, history=self._config.length, max_size=self._cache_size)
        window.last_id = last
        return window

    def _oldest(self) -> EventId:
        return EventId(int(self._clock() * 1000) - int(self._age * 1000), 0)

    # What is new

    async def _follow(self, redis: Redis[bytes]) -> None:
        """Hands over what is appended, by whomever."""
        is_all = True
        while True:
            if is_all:
                entries, is_all = await stream.wait_for_entries(redis, self._keys, self.last_id, block=_BLOCK_SECONDS)
            else:
                entries, is_all = await stream.entries_behind(redis, self._keys, self.last_id)
            stray = await self._take(entries)
            if stray is not None:
                await self._jump(redis, stray)

    async def _take(self, entries: Sequence[Entry]) -> Entry | None:
        """Takes entries as far as they follow upon each other; returns the first that does not."""
        events: list[Event] = []
        size = 0
        for entry in entries:
            log, start, last = self._state
            if entry.event is None:
                self._hand_over(events)
                events, size = [], 0
            if entry.number and (entry.number != last.number + 1 or entry.log not in (b"", log)):
                self._hand_over(events)
                return entry
            if entry.event is not None:
                self._state = State(log, start, Known(entry.id, entry.number))
                events.append(entry.event)
                size += entry.event.size
                if size >= REPLY_BYTES:
                    self._hand_over(events)
                    events, size = [], 0
                    await trio.lowlevel.checkpoint()
            elif entry.log:
                self._state = State(log, entry.id, Known(entry.id, entry.number))
                self._window.last_id = entry.id
                self._marks[entry.id] = entry.fork
                self._skipped(entry.id)
                self._arrived.unpark_all()
            else:
                self._window.last_id = entry.id
        self._hand_over(events)
        return None

    def _hand_over(self, events: Sequence[Event]) -> None:
        if events:
            self._window.keep(events, oldest=self._oldest())
            self._committed(events)
            self._arrived.unpark_all()

    async def _jump(self, redis: Redis[bytes], stray: Entry) -> None:
        """Goes on from the end of the stream: before this entry something is missing.

        Raises:
            LogUnavailable: there is no stream any more.
        """
        state = await stream.state_of(redis, self._keys)
        if not state.log:
            raise LogUnavailable(_ANEW)
        if state.last.id < stray.id:  # somebody else has put it there
            self._window.last_id = stray.id
            return
        if state.log == self._state.log:
            oldest = await stream.first(redis, self._keys)
            if oldest is not None and oldest <= self._state.last.id:
                # Not what is trimmed, which reading tells: somebody has taken it out of the middle.
                state = state._replace(start=state.last.id)
        await self._start_over(redis, state)

    async def _watch(self, redis: Redis[bytes]) -> None:
        """Looks whether the log is still the same, and drops what is too old.

        Raises:
            LogUnavailable: it began anew, or what is new does not come in.
        """
        trim_period = min(max(self._age * _TRIM_SHARE, _TRIM_SECONDS[0]), _TRIM_SECONDS[1])
        trim_at = trio.current_time()
        handed_over = head = 0
        while True:
            if trio.current_time() >= trim_at:
                await stream.trim(redis, self._keys, self._age)
                trim_at = trio.current_time() + trim_period
            if self._refusal is not None:
                await self._probe(redis)
            await trio.sleep(_WATCH_SECONDS)
            state = await stream.state_of(redis, self._keys)
            if state.log != self._state.log:
                raise LogUnavailable(_ANEW)
            newest = self._state.last.number
            if newest == handed_over < head:
                raise LogUnavailable("what is new in Redis does not come in")
            handed_over, head = newest, state.last.number
            self._statistics.lags[self._number] = max(head - newest, 0)

    # Appending

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``."""
        (ids,) = await self.append_together((self,), Batch((drafts,), key))
        await self.arrived(ids[-1])
        return ids

    async def arrived(self, position: EventId) -> None:
        """Returns when this process has come to a position, so that who published finds it here; or a while later."""
        if self.last_id < position:
            with trio.move_on_after(_PATIENCE):
                await self._come_to(position)

    async def append_together(self, shards: Sequence["RedisShard"], batch: Batch) -> list[list[EventId]]:
        """Appends a batch to several shards, over the connection of this one, which has to be one of them.

        Args:
            shards: they are all on one server.
            batch: its parts are for these shards.

        Raises:
            LogUnavailable: see ``Log.append``.
            RemoteProtocolError: the key was used for something else.
        """
        if self._session is None:
            raise LogUnavailable(self._link.problem or _LOST)
        with self._statistics.appends.timing():
            return await self._appends.append(batch, shards)

    async def _append(self, redis: Redis[bytes]) -> None:
        """Appends what waits, a group at a time.

        Raises:
            LogUnavailable: the log is another one by now.
        """
        while True:
            while not await self._appends.wait(_WATCH_SECONDS):
                # Rather than the next publisher, let this find out that the connection is dead.
                await stream.state_of(redis, self._keys)
            group = self._appends.take()
            try:
                answers = await self._append_group(redis, group)
            except ERRORS as error:
                answers = [self._refused(error) for _ in group]
            else:
                self._refusal = None
            self._appends.answer(group, answers)

    async def _append_group(
        self, redis: Redis[bytes], group: Sequence[Append[Sequence["RedisShard"]]]
    ) -> Sequence[Result]:
        config, shards = self._config, group[0].target
        streams = [(shard._keys, shard._state.log) for shard in shards]  # noqa: SLF001 - of its own kind
        appended = await stream.append(redis, streams, config.length, [append.batch for append in group])
        if appended is None:
            raise LogUnavailable(_ANEW)
        for shard, (_, log), head in zip(shards, streams, appended.heads, strict=True):
            if shard._state.log == log:  # noqa: SLF001
                shard._acknowledged = max(shard._acknowledged, head)  # noqa: SLF001
        if config.replicas:
            found = await stream.wait_for_replicas(redis, config.replicas, patience=config.timeout)
            if found < config.replicas:
                why = f"only {found} of {config.replicas} replicas have it"
                return [LogUnavailable(why) for _ in group]
        return appended.answers

    def _refused(self, error: Exception) -> Result:
        """What is told of an append that failed; raises the error again unless Redis is there, and does not want to."""
        if isinstance(error, ClusterCrossSlotError):
            return across_shards()  # one server, but it is a cluster by itself
        if not _is_refusal(error):
            raise error
        why = (unavailable(error) or LogUnavailable(_LOST)).why
        if self._refusal is None:
            self._logger.error("the log takes no events", why=why, **self._label)
        self._refusal = why
        return LogUnavailable(why)

    async def _probe(self, redis: Redis[bytes]) -> None:
        """Finds out whether Redis takes events again: nobody may try until it is said that it does."""
        try:
            await stream.probe(redis, self._keys)
        except ERRORS as error:
            if not _is_refusal(error):
                raise
            return
        self._refusal = None
        self._logger.info("the log takes events again", **self._label)

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``. Waits only where memory does not reach back so far."""
        if not isinstance(after, EventId):
            return unknown_position(after, self.last_id)
        if after > self.last_id:
            # Another process may have told it to a client before it came to be known here.
            await self._catch_up(after)
            if after > self.last_id:
                return _from_fork(unknown_position(after, self.last_id), self._fork_of(after))
        while True:
            start = self._state.start
            is_ours = after == BEGINNING or await self._is_entry(after)
            found = await self._read(topics, after, max_bytes=max_bytes)
            if start == self._state.start:  # or it may be about another stream than it was
                if not is_ours:
                    return _from_fork(_emptied(found), self._fork_of(after))
                return found if found.gap is None else _from_fork(found, self._parted_before(after))

    async def _read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        self._window.trim(self._oldest())
        if after >= self._behind or (after == BEGINNING and self._is_all):
            found = self._window.read(topics, max(after, _BEFORE_ALL), max_bytes=max_bytes)
            if found.gap is None:
                return ended_at_gap(found, after, (*self._marks, self._state.start))
        state = self._state._replace(last=Known(self.last_id, 0))
        with self._statistics.reads.timing():
            async with self._asking() as redis:
                return await read_stream(redis, self._keys, state, topics, after, max_bytes=max_bytes)

    async def _is_entry(self, position: EventId) -> bool:
        """Whether a position is one of this stream: all that are told are those of entries.

        Another one comes from a server that went on for a while when its place was taken already: from what was lost.
        """
        if position == self.last_id or position in self._marks or self._window.holds(position):
            return True
        if self._behind == BEGINNING and position < next(iter(self._marks), BEGINNING):
            return True  # from before the log began, which reading tells
        entries = self._entries
        if position not in entries:
            async with self._asking() as redis:
                if position not in entries:  # others may have asked the same
                    if len(entries) >= _MAX_ENTRIES:
                        del entries[next(iter(entries))]
                    entries[position] = await stream.is_entry(redis, self._keys, position)
        return entries[position]

    def _parted_before(self, position: EventId) -> EventId:
        """Where a stream parted from this one that was given up later: its events had ids from there on, too."""
        return min((fork for mark, fork in self._marks.items() if fork < position < mark), default=position)

    def _fork_of(self, position: EventId) -> EventId:
        """Up to where one who has come to a position that is not of this stream has what is here."""
        # Where a log began, nothing is known of what was lost.
        forks = {mark: fork for mark, fork in self._marks.items() if fork < position and fork != mark}
        return min(
            (fork for mark, fork in forks.items() if position < mark), default=max(forks.values(), default=position)
        )

    async def _catch_up(self, position: EventId) -> None:
        """Returns when everything is handed over that is at or before a position.

        Raises:
            LogUnavailable: it takes too long.
        """
        with trio.move_on_after(_MOMENT):
            await self._come_to(position)
        if self.last_id < position:
            async with self._asking() as redis:
                state = await stream.state_of(redis, self._keys)
            with trio.move_on_after(self._config.timeout) as scope:
                await self._come_to(min(position, state.last.id))
            if scope.cancelled_caught:
                raise LogUnavailable("this server has not come so far yet")

    async def _come_to(self, position: EventId) -> None:
        while self.last_id < position:
            await self._arrived.park()

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Redis[bytes]]:
        """The connection for what subscribers want to know, for a few of them at a time."""
        async with self._reading:
            session = self._session
            if session is None:
                raise LogUnavailable(self._link.problem or _LOST)
            try:
                yield session.asker
            except ERRORS as error:
                failure = unavailable(error) or LogUnavailable(_LOST)
                # An answer that is late is taken off the connection when it comes, and is nobody else's: it may be a
                # long one, and whether Redis is there is for those to find out who watch it and append.
                if not _is_refusal(error) and not isinstance(error, TimeoutError):
                    session.fail(failure)
                raise failure from None


class _Session:
    """The connections of a shard, for as long as all of them hold.

    Attributes:
        asker: the one for all but what is new and what is appended.
        failure: what was noticed by somebody who is none of their own tasks.
    """

    def __init__(self, asker: Redis[bytes], scope: trio.CancelScope) -> None:
        self.asker = asker
        self.failure: LogUnavailable | None = None
        self._scope = scope

    def fail(self, failure: LogUnavailable) -> None:
        """Ends it."""
        self.failure = failure
        self._scope.cancel()


def _from_fork(found: Slice, fork: EventId) -> Slice:
    """What was read behind a position that is none: the gap begins before it."""
    gap = found.gap or Gap(GapReason.UNKNOWN_ID, fork, found.upto)
    return found._replace(gap=gap._replace(after=min(gap.after, fork)))


def _emptied(found: Slice) -> Slice:
    """What was read behind a position that is none, up to the first event.

    That is within the gap: who has it has a position of this stream, and would not be told of what is before it.
    """
    if not found.events:
        return found
    upto = found.events[0].id
    gap = found.gap and found.gap._replace(resumed_at=upto)
    return Slice((), gap, upto, complete=False)


def _is_refusal(error: Exception) -> bool:
    """Whether Redis is there, and answered that it does not want to: it has no room, or there is no right to it."""
    return type(error) is ResponseError or isinstance(error, AuthorizationError)
