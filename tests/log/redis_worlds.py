"""Logs in a Redis, each as if in a process of its own, with what they handed over and what they said."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import trio
from coredis import Redis
from log.worlds import PLENTY, held, ids_of, opened
from serving import capturing_logger, pause, until
from structlog.testing import LogCapture

import tricast
from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Position, TopicSet
from tricast.log.base import IdempotencyKey, Log, Slice
from tricast.log.redis import RedisShard, redis_log
from tricast.log.redis_layout import LaidOutLog
from tricast.log.redis_servers import Servers
from tricast.log.redis_stream import Keys, keys_of
from tricast.log_urls import RedisUrl, parse_log_url

KEYS: Keys = keys_of("tricast", 0, 1)


def just_before(position: EventId) -> EventId:
    """The last position that is before another one."""
    ms, counter = position
    return EventId(ms, counter - 1) if counter else EventId(ms - 1, 2**63 - 1)


def parsed(url: str) -> RedisUrl:
    found = parse_log_url(url)
    assert isinstance(found, RedisUrl)
    return found


class Process:
    """A log, and what it has handed over."""

    def __init__(self, url: str, *, events: dict[str, Any] | None = None, **section: Any) -> None:
        section = {"timeout": "20s", "reconnect": "10ms", "reconnect_max": "100ms"} | section
        config = tricast.Config.model_validate({"log": {"url": url} | section, "events": events or {}})
        self.records = LogCapture()
        self.log: Log = redis_log(config, parsed(url), logger=capturing_logger(self.records))
        self.committed: list[Event] = []
        self.skipped: list[Position] = []

    def open(self) -> AbstractAsyncContextManager[None]:
        return self.log.open(self.committed.extend, self.skipped.append)

    async def append(
        self, *topics: str, data: bytes = b"1", kind: str = "message", key: IdempotencyKey | None = None
    ) -> Sequence[Any]:
        return await self.log.append([Draft(topic, kind, data) for topic in topics], key)

    async def read(self, *topics: str, after: Position = BEGINNING, max_bytes: int = PLENTY) -> Slice:
        return await self.log.read(TopicSet(topics), after, max_bytes=max_bytes)

    async def ids(self, *topics: str, after: Position = BEGINNING) -> list[Any]:
        return ids_of((await self.read(*topics, after=after)).events)

    async def came_to(self, position: Position) -> None:
        """Returns when everything up to the position is handed over."""
        await until(lambda: self.log.last_id >= position)

    async def appended(self, *topics: str) -> Sequence[Any]:
        """What is appended in the end, where a test's short timeout is too short for a busy machine."""
        while True:
            try:
                return await self.append(*topics)
            except LogUnavailable:
                await pause()

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """It waits hardly for what Redis is not there with, but for Redis itself as long as ever."""
        shard = self.shard
        config, shard._config = shard._config, shard._config.model_copy(update={"timeout": 0.2})
        try:
            yield
        finally:
            shard._config = config

    async def is_away(self) -> None:
        await until(lambda: self.log.problem is not None)

    async def is_back(self) -> None:
        await until(lambda: self.log.problem is None)

    async def came_back(self, times: int = 1) -> None:
        """Returns when it has said so often that it is available again."""
        await until(lambda: self.said().count("the log is available again") >= times)

    def said(self) -> list[str]:
        return [entry["event"] for entry in self.records.entries]

    @property
    def shard(self) -> RedisShard:
        log = self.log
        assert isinstance(log, LaidOutLog)
        assert isinstance(log._log, RedisShard)
        return log._log


class Processes:
    """Makes them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def begin(self, url: str, **settings: Any) -> Process:
        process = Process(url, **settings)
        await self.run(process)
        return process

    async def run(self, process: Process) -> trio.CancelScope:
        """Opens its log; cancelling the scope is its end."""
        scope = trio.CancelScope()

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await held(opened(process.open), task_status)

        await self._nursery.start(hold)
        return scope


class Swapped(Servers):
    """Servers of which some connections lead elsewhere, or nowhere.

    Attributes:
        is_cut: whether there is no way to them.
        elsewhere: where the first connection of each session leads.
    """

    def __init__(self, url: str, elsewhere: str = "", **section: Any) -> None:
        self._section = tricast.Config.model_validate({"log": {"url": url, "timeout": "20s"} | section}).log
        super().__init__(parsed(url), self._section)
        self.is_cut = False
        self.elsewhere = Servers(parsed(elsewhere), self._section) if elsewhere else None

    @asynccontextmanager
    async def connect(self, key: bytes, *, block: float = 0.0) -> AsyncIterator[Redis[bytes]]:
        if self.is_cut:
            raise LogUnavailable("it is cut off")
        if self.elsewhere is not None and block:
            async with self.elsewhere.connect(key, block=block) as redis:
                yield redis
        else:
            async with super().connect(key, block=block) as redis:
                yield redis


def data_of(events: Sequence[Event]) -> list[Any]:
    return [json.loads(event.data) for event in events]
