"""The log in Redis streams, seen from outside; see ``tricast.log.inspection``.

Beside what servers do, this takes the rights for ZCOUNT and XTRIM, and for MEMORY USAGE if sizes are to be told.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from coredis import Redis
from coredis.exceptions import AuthorizationError

from tricast.config import Config
from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, EventId, TopicSet, own_id
from tricast.log.inspection import Cut, Holding, Inspected, Kept
from tricast.log.redis_servers import Servers
from tricast.log.redis_stream import Keys, entries_before, entries_behind, keys_of, state_of
from tricast.log_urls import RedisUrl
from tricast.logs import Logger

#: Entries that are dropped in one step: while Redis does that, nobody else is served there.
_DROPPED_AT_ONCE = 10_000


@asynccontextmanager
async def inspecting(config: Config, url: RedisUrl, *, logger: Logger) -> AsyncIterator[Inspected]:  # noqa: ARG001
    """See ``tricast.stores.inspecting``.

    Raises:
        ConfigError: a file for TLS cannot be used.
        LogUnavailable: there is no log, or no connection to it.
    """
    log = config.log
    if log.delivery == "pubsub":
        raise LogUnavailable('with log.delivery = "pubsub" events are only passed on: there is nothing in Redis to see')
    servers = Servers(url, log)
    async with AsyncExitStack() as scopes:
        shards = {}
        for number in range(log.shards):
            keys = keys_of(log.namespace, number, log.shards)
            redis = await scopes.enter_async_context(servers.connect(keys.log))
            if not (await state_of(redis, keys)).log:
                names = f"log.shards = {log.shards} and log.namespace = {log.namespace!r}"
                raise LogUnavailable(f"there is none in Redis with {names}")
            shards[number] = RedisInspection(redis, keys)
        yield Inspected(shards, is_sharded=log.shards > 1)


class RedisInspection:
    """See ``Inspection``.

    Args:
        redis: a connection to the server that has the keys.
        keys: the shard's.
    """

    def __init__(self, redis: Redis[bytes], keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def holding(self) -> Holding:
        """See ``Inspection.holding``. Marks that stand between events are counted with them."""
        last = (await state_of(self._redis, self._keys)).last.id
        length = await self._redis.xlen(self._keys.log)
        first, marks = await self._first(last)
        size = None
        with suppress(AuthorizationError):
            size = await self._redis.memory_usage(self._keys.log)
        if first is None:
            return Holding(None, last, 0, 0, size, None)
        topics = await self._redis.zcount(self._keys.topics, first.ms, "+inf")
        return Holding(first, last, length - marks, topics, size, first.ms / 1000)

    async def _first(self, last: EventId) -> tuple[EventId | None, int]:
        """The oldest event, and how many marks stand before it."""
        marks, after, is_over = 0, BEGINNING, False
        while not is_over:
            entries, is_over = await entries_behind(self._redis, self._keys, after, last)
            for entry in entries:
                if entry.event is not None:
                    return entry.id, marks
                marks, after = marks + 1, entry.id
        return None, marks

    async def newest(self, topics: TopicSet, count: int) -> list[Kept]:
        """See ``Inspection.newest``."""
        last = (await state_of(self._redis, self._keys)).last.id
        found: list[Kept] = []
        before: EventId | None = None
        is_over = False
        while not is_over and len(found) < count:
            entries, is_over = await entries_before(self._redis, self._keys, before, last)
            events = (entry.event for entry in entries if entry.event is not None)
            found += [Kept(own_id(event).ms / 1000, event) for event in events if event.topic in topics]
            before = entries[-1].id if entries else before
        return found[:count][::-1]

    async def drop(self, cut: Cut) -> int:
        """See ``Inspection.drop``. A little at a time, so that servers can append in between; so is it cancelled."""
        _, marks = await self._first((await state_of(self._redis, self._keys)).last.id)
        if cut.keep is not None:
            dropped = await self._trim(b"MAXLEN", cut.keep)
        elif cut.before is not None:
            dropped = await self._trim(b"MINID", str(cut.before))
        else:
            assert cut.older_than is not None
            dropped = await self._trim(b"MINID", max(int(cut.older_than * 1000), 0))
        # The oldest go first, and these are no events.
        return max(dropped - marks, 0)

    async def _trim(self, strategy: bytes, threshold: int | str) -> int:
        # Whole nodes of the stream as long as there are any, then what remains.
        total = 0
        while dropped := await self._xtrim(strategy, b"~", threshold, b"LIMIT", _DROPPED_AT_ONCE):
            total += dropped
        return total + await self._xtrim(strategy, b"=", threshold)

    async def _xtrim(self, *arguments: bytes | str | int) -> int:
        dropped: int = await self._redis.create_request(b"XTRIM", self._keys.log, *arguments, callback=_as_it_is)
        return dropped


def _as_it_is(reply: Any, **_: object) -> Any:
    return reply
