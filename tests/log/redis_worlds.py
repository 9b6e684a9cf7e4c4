"""Logs in a Redis, each as if in a process of its own, with what they handed over and what they said."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from log.worlds import PLENTY, held, ids_of
from serving import capturing_logger, pause, until
from structlog.testing import LogCapture

import tricast
from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, Position, TopicSet
from tricast.log.base import IdempotencyKey, Log, Slice
from tricast.log.redis import RedisShard, redis_log
from tricast.log.redis_layout import LaidOutLog
from tricast.log.redis_stream import Keys, keys_of
from tricast.log_urls import RedisUrl, parse_log_url

KEYS: Keys = keys_of("tricast", 0, 1)


def just_before(position: EventId) -> EventId:
    """The last position that is before another one."""
    ms, counter = position
    return EventId(ms, counter - 1) if counter else EventId(ms - 1, 2**63 - 1)


class Process:
    """A log, and what it has handed over."""

    def __init__(self, url: str, *, events: dict[str, Any] | None = None, **section: Any) -> None:
        section = {"timeout": "20s", "reconnect": "10ms", "reconnect_max": "100ms"} | section
        config = tricast.Config.model_validate({"log": {"url": url} | section, "events": events or {}})
        parsed = parse_log_url(url)
        assert isinstance(parsed, RedisUrl)
        self.records = LogCapture()
        self.log: Log = redis_log(config, parsed, logger=capturing_logger(self.records))
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


#: How often a log is opened at most.
_TRIES = 4


@asynccontextmanager
async def _opened(process: Process) -> AsyncIterator[None]:
    """Its log, open. Tried again where a test's short timeout is too short for a busy machine."""
    async with AsyncExitStack() as stack:
        for further in reversed(range(_TRIES)):
            try:
                await stack.enter_async_context(process.open())
            except LogUnavailable:
                if not further:
                    raise
                await pause()
            else:
                break
        yield


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
                await held(_opened(process), task_status)

        await self._nursery.start(hold)
        return scope


def data_of(events: Sequence[Event]) -> list[Any]:
    return [json.loads(event.data) for event in events]
