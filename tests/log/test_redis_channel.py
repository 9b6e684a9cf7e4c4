"""Events that Redis only passes on: what each process remembers of them, and what it tells of what it missed."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from log.worlds import PLENTY, Clock, held
from services import RedisCluster, RedisServer
from serving import capturing_logger, until
from structlog.testing import LogCapture

from tricast.config import EventsSection, LogSection
from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, Event, EventId, GapReason, Position, TopicSet
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.redis_channel import ChannelShard
from tricast.log.redis_servers import Servers
from tricast.log_urls import RedisUrl, parse_log_url

KEY = IdempotencyKey(b"k", b"1", 60.0, 10)
TOPICS = TopicSet(["a", "b"])


class Process:
    """A process that shares the channel with others, as one of its own.

    Attributes:
        log: its side of it.
        events: what was handed over.
        skipped: the positions up to which it was told that something is missing.
        records: what it logged.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        found = parse_log_url(url)
        assert isinstance(found, RedisUrl)
        config = LogSection(
            url=url, delivery="pubsub", **{"timeout": "2s", "reconnect": "10ms", "reconnect_max": "100ms", **settings}
        )
        self.records = LogCapture()
        self.log = ChannelShard(
            Servers(found, config),
            config,
            events=EventsSection(history=1000),
            logger=capturing_logger(self.records),
        )
        self.events: list[Event] = []
        self.skipped: list[Position] = []

    async def publish(self, *data: str, topic: str = "a", key: IdempotencyKey | None = None) -> Sequence[EventId]:
        return await self.log.append([Draft(topic, "message", text.encode()) for text in data], key)

    async def read(self, after: Position) -> Slice:
        return await self.log.read(TOPICS, after, max_bytes=PLENTY)

    def data(self) -> list[str]:
        return [event.data.decode() for event in self.events]

    def said(self) -> list[str]:
        return [entry["event"] for entry in self.records.entries]

    async def gets(self, *data: str) -> None:
        await until(lambda: self.data()[-len(data) :] == list(data))


class Processes:
    """Those of a test, which end with it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def begin(self, url: str, **settings: Any) -> Process:
        process = Process(url, **settings)
        await self._nursery.start(held, process.log.open(process.events.extend, process.skipped.append))
        return process


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield Processes(nursery)
            nursery.cancel_scope.cancel()


async def test_what_one_publishes_all_get(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    first = await one.publish("1", "2")
    second = await other.publish("3", topic="b")
    for process in (one, other):
        await process.gets("1", "2", "3")
        assert [event.id for event in process.events] == [*first, *second]
        assert process.skipped == []
