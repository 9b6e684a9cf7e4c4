"""Events that Redis only passes on, and does not keep: each process remembers what it saw since it began.

Each message says behind which position it comes, and which one it leads to. So a process sees whether it missed
something, and tells those who come from before that of a gap, as it does after its connection was lost.

All processes see the same ids, so a client may go from one of them to another.
"""

import random
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import trio
from coredis import Redis

from tricast.config import Config, EventsSection, LogSection
from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Position, TopicSet
from tricast.log.base import Committed, IdempotencyKey, Log, Skipped, Slice, ignore, key_reused
from tricast.log.redis_appends import Appends, Result
from tricast.log.redis_link import Link
from tricast.log.redis_scripts import FUNCTIONS, IDEMPOTENCE, Script
from tricast.log.redis_servers import Connection, Servers, connection_of
from tricast.log.redis_stream import Batch, tag_of
from tricast.log.sharded import ShardedLog, shard_of
from tricast.log.statistics import Statistics
from tricast.log.window import Window, ended_at_gap, unknown_position
from tricast.logs import Logger

_ANEW = "it began anew in Redis"
#: Positions that are remembered one by one before which something is missing.
_MAX_STARTS = 1000

#: Publishes where the log is, for all to compare. Where there is no log it begins one. Where it is behind what somebody
#: knows, or on another server than before, Redis may have lost something: it leaves a gap for everybody.
#: KEYS: the position. ARGV: what is known, how to publish, to which channel, and a word to know this message by.
_MARK = Script(
    FUNCTIONS
    + """
local known, command, channel, word = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local position, last_server = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+)$')
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '-'
if server ~= last_server or is_before(position, known) then
  local known_ms, known_count = parse(known)
  local ms, count = parse(position or '0-0')
  position = string.format('%.0f-%.0f', math.max(now_ms(), ms, known_ms + 1), math.max(count, known_count) + 1)
end
-- Also where it stays the same: so it is known that something can be written.
redis.call('SET', KEYS[1], position .. ' ' .. server)
redis.call(command, channel, position .. ' ' .. position .. ' 0\\n' .. word)
return position
"""
)

#: Publishes batches, in one message.
#: KEYS: the position, and those of the idempotency keys. ARGV: how to publish, and to which channel; then for each
#: batch its key (empty for none) with fingerprint, window in ms and greatest number of keys, how many events, and they
#: themselves, as in a message.
#: Returns 0 where there is no log. Else for each batch its first id, to which the others are neighbours; it is empty if
#: the key was used for something else.
_PUBLISH = Script(
    FUNCTIONS
    + """
local before, server = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+)$')
if not before then return 0 end
local keys, keyed = KEYS[2], KEYS[3]
local now = now_ms()
"""
    + IDEMPOTENCE
    + """
local ms, first = parse(before)
ms = math.max(ms, now)
local count = first
local answers, events, fresh = {}, {}, {}
for at = 3, #ARGV, 6 do
  local key, fingerprint = ARGV[at], ARGV[at + 1]
  local window, max_keys = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local known = key ~= '' and find(key, fingerprint, window)
  if fresh[key] then known = fresh[key][1] == fingerprint and fresh[key][4] or {} end
  local firsts = known or {string.format('%.0f-%.0f', ms, count + 1)}
  if not known then
    count = count + ARGV[at + 4]
    events[#events + 1] = ARGV[at + 5]
    if key ~= '' then fresh[key] = {fingerprint, window, max_keys, firsts} end
  end
  answers[#answers + 1] = firsts[1] or ''
end
if count > first then
  local after = string.format('%.0f-%.0f', ms, count)
  redis.call('SET', KEYS[1], after .. ' ' .. server)
  local head = string.format('%s %s %.0f', before, after, count - first)
  redis.call(ARGV[1], ARGV[2], head .. '\\n' .. table.concat(events))
end
-- Only what was published, or a repetition would be acknowledged that was not.
for key, what in pairs(fresh) do remember(key, unpack(what)) end
return answers
"""
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, str, bytes]]).decode
#: An array with a length of 32 bits, in msgpack.
_ARRAY = b"\xdd"


def channel_log(config: Config, servers: Servers, *, logger: Logger) -> Log:
    """The log that the configuration asks for; nothing is opened yet."""
    statistics = Statistics()
    count = config.log.shards
    shards = {
        number: ChannelShard(
            servers, config.log, events=config.events, logger=logger, number=number, statistics=statistics
        )
        for number in range(count)
    }
    if count == 1:
        return shards[0]
    return ShardedLog(shards, shard_of=lambda topic: shard_of(topic, count), statistics=statistics)


class Message(NamedTuple):
    """What comes from the channel.

    Attributes:
        before: the position that it follows upon.
        after: the one that it leads to.
        events: with the ids in between; none in a mark.
        word: of a mark, by which who sent it knows it.
    """

    before: EventId
    after: EventId
    events: Sequence[Event]
    word: bytes


class ChannelShard:
    """See ``Log``. One channel.

    Args:
        servers: where it is.
        config: how it is kept.
        events: how much each process remembers, but for the memory, which is ``config.cache_size``.
        logger: where to say that the log is unavailable, and that it is back.
        number: which one it is of all of the log's channels.
        clock: seconds since the epoch; only for what is in memory.
        chance: what spreads the attempts to connect again.
        statistics: what to count in.
    """

    def __init__(
        self,
        servers: Servers,
        config: LogSection,
        *,
        events: EventsSection,
        logger: Logger,
        number: int = 0,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        statistics: Statistics | None = None,
    ) -> None:
        self._servers = servers
        self._config = config
        self._events = events
        self._number = number
        self._clock = clock
        self._statistics = statistics or Statistics()
        label = {"shard": number} if config.shards > 1 else {}
        self._link = Link(config, label=label, logger=logger, chance=chance, statistics=self._statistics)
        self._appends: Appends[None] = Appends()
        channel = f"channel@{servers.database}" if servers.database else "channel"
        self._key, self._channel, *self._idempotence = (
            f"{config.namespace}:{{{tag_of(number, config.shards)}}}:{name}".encode()
            for name in ("position", channel, "keys", "keyed")
        )
        self._committed: Committed = ignore
        self._skipped: Skipped = ignore
        self._window: Window = self._new_window(BEGINNING)
        self._has_begun = False
        #: Positions before which something is missing.
        self._starts: deque[EventId] = deque(maxlen=_MAX_STARTS)
        #: The newest position that publishers were told of.
        self._acknowledged = BEGINNING
        #: The word of the mark that comes next, and whether this connection's first one has come.
        self._word = b""
        self._is_marked = False
        self._marked = trio.Event()
        self._look = _Look()

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``: the newest position that came in in this process."""
        return self._window.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``: for the network, and for Redis."""
        return True

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``."""
        return self._link.problem

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it is one itself."""

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``. When it is cancelled, it is open whether what is being appended is passed on.

        Raises:
            LogUnavailable: there is no Redis, or it cannot be used.
        """
        self._committed, self._skipped = committed, skipped or ignore
        try:
            async with self._link.open(self._work, self._appends.fail_all):
                yield
        finally:
            self._committed = self._skipped = ignore

    # The connection

    async def _work(self) -> None:
        """Connects, and works until the connection fails.

        Raises:
            LogUnavailable: always, with what failed.
        """
        async with self._servers.connect(self._key) as redis:
            connection = await connection_of(redis)
            # Where it is refused, the next command is answered with that; else with what is pushed.
            connection.send_command(b"SSUBSCRIBE" if self._servers.is_cluster else b"SUBSCRIBE", self._channel)
            self._is_marked = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, connection)
                await self._mark(redis)
                if self._link.is_back():
                    self._committed(())
                nursery.start_soon(self._append, redis)
                nursery.start_soon(self._watch, redis)
                nursery.start_soon(self._look_for_others, redis)

    @property
    def _publish_command(self) -> str:
        return "SPUBLISH" if self._servers.is_cluster else "PUBLISH"

    async def _mark(self, redis: Redis[bytes]) -> None:
        """Returns when everything has come in that was published so far.

        Raises:
            LogUnavailable: it does not.
        """
        self._word, self._marked = secrets.token_bytes(8), trio.Event()
        known = str(max(self.last_id, self._acknowledged))
        await _MARK.run(redis, [self._key], [known, self._publish_command, self._channel, self._word])
        with trio.move_on_after(self._config.timeout) as scope:
            await self._marked.wait()
        if scope.cancelled_caught:
            raise LogUnavailable("Redis does not pass on what is published")

    async def _watch(self, redis: Redis[bytes]) -> None:
        """Looks whether the connection lives, and how far behind this process is.

        Raises:
            LogUnavailable: what is published does not come in.
        """
        while True:
            position = await redis.get(self._key)
            if position is None:
                raise LogUnavailable(_ANEW)
            head = _id_of(position.partition(b" ")[0])
            self._statistics.lags[self._number] = max(head.counter - self.last_id.counter, 0)
            await trio.sleep(self._config.timeout / 2)
            if self.last_id < head:
                raise LogUnavailable("Redis does not pass on what is published")

    async def _look_for_others(self, redis: Redis[bytes]) -> None:
        while True:
            await self._look.wanted.wait()
            look, self._look = self._look, _Look()
            await self._mark(redis)
            look.done.set()

    # What comes in

    async def _receive(self, connection: Connection) -> None:
        """Hands over what is published, by whomever.

        Raises:
            LogUnavailable: nothing comes in any more.
        """
        while True:
            for kind, _, content in await connection.pushed():
                if kind in (b"message", b"smessage"):
                    message = _read(content)
                    if message is not None:
                        self._take(message)
                elif kind == b"sunsubscribe":
                    raise LogUnavailable("the shard has moved to another server of the cluster")

    def _take(self, message: Message) -> None:
        is_own = bool(message.word) and message.word == self._word
        if message.before != self.last_id and not self._leap(message.before, is_own):
            return
        if message.events:
            self._window.keep(message.events, oldest=self._oldest())
            self._committed(message.events)
        if is_own:
            self._is_marked = True
            self._marked.set()

    def _leap(self, position: EventId, is_own: bool) -> bool:
        """Goes on from a position before which something is missing; returns whether it may already."""
        if not self._is_marked and not is_own:
            return False  # the mark tells where to go on
        if position < self.last_id:
            raise LogUnavailable(_ANEW)
        if self._has_begun:
            if len(self._starts) == _MAX_STARTS:
                self._window.start = self._starts[0]
            self._starts.append(position)
            self._window.last_id = position
            self._skipped(position)
        else:
            self._window, self._has_begun = self._new_window(position), True
        return True

    def _new_window(self, start: EventId) -> Window:
        max_size = self._config.cache_size // self._config.shards
        return Window(start=start, history=self._events.history, max_size=max_size)

    def _oldest(self) -> EventId:
        return EventId(int(self._clock() * 1000) - int(self._events.history_age * 1000), 0)

    # Appending

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``. It is kept nowhere: Redis has passed it on to those who were connected."""
        if self._link.problem is not None:
            raise LogUnavailable(self._link.problem)
        with self._statistics.appends.timing():
            (ids,) = await self._appends.append(Batch([drafts], key), None)
            return ids

    async def _append(self, redis: Redis[bytes]) -> None:
        """Publishes what waits, a group at a time.

        Raises:
            LogUnavailable: the log is another one by now.
        """
        keys = [self._key, *self._idempotence]
        while True:
            await self._appends.wait()
            group = self._appends.take()
            arguments: list[bytes | str | int] = [self._publish_command, self._channel]
            for append in group:
                arguments += _arguments_of(append.batch)
            firsts = await _PUBLISH.run(redis, keys, arguments)
            if not firsts:
                raise LogUnavailable(_ANEW)
            results = [_result(first, append.batch) for first, append in zip(firsts, group, strict=True)]
            for ids in results:
                if isinstance(ids, list):
                    self._acknowledged = max(self._acknowledged, ids[0][-1])
            self._appends.answer(group, results)

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``. There is nothing but what is in memory."""
        if not isinstance(after, EventId):
            return unknown_position(after, self.last_id)
        if after > self.last_id:
            # Another process may have told it to a client before it came in here.
            await self._catch_up()
        self._window.trim(self._oldest())
        return ended_at_gap(self._window.read(topics, after, max_bytes=max_bytes), after, self._starts)

    async def _catch_up(self) -> None:
        look = self._look
        look.wanted.set()
        with trio.move_on_after(self._config.timeout) as scope:
            await look.done.wait()
        if scope.cancelled_caught:
            raise LogUnavailable(self._link.problem or "this server has not come so far yet")


class _Look:
    """A mark that others want, who all wait for the same one.

    Attributes:
        wanted: whether anybody does.
        done: set when it has come.
    """

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.done = trio.Event()


def _arguments_of(batch: Batch) -> list[bytes | str | int]:
    ((drafts,), key) = batch
    events = b"".join(_encode(tuple(draft)) for draft in drafts)
    if key is None:
        return [b"", b"", 0, 0, len(drafts), events]
    return [key.name, key.fingerprint.hex(), int(key.window * 1000), key.max_keys, len(drafts), events]


def _result(first: bytes, batch: Batch) -> Result:
    if not first:
        return key_reused()
    ms, counter = _id_of(first)
    return [[EventId(ms, counter + index) for index in range(len(batch.parts[0]))]]


def _read(content: Any) -> Message | None:
    """A message; None for what nobody of us has published."""
    try:
        head, _, body = content.partition(b"\n")
        before, after, count = head.split(b" ")
        behind, upto = _id_of(before), _id_of(after)
        if not int(count):
            return Message(behind, upto, (), body)
        drafts = _decode(_ARRAY + int(count).to_bytes(4, "big") + body)
    except (ValueError, OverflowError, msgspec.DecodeError):
        return None
    events = [Event(EventId(upto.ms, number), *draft) for number, draft in enumerate(drafts, behind.counter + 1)]
    return Message(behind, upto, events, b"")


def _id_of(text: bytes) -> EventId:
    ms, _, counter = text.partition(b"-")
    return EventId(int(ms), int(counter))
