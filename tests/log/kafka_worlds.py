"""A log in a topic of Kafka's with what stands around it, and other programs that write to Kafka."""

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from clocks import HANG_SECONDS
from confluent_kafka import Producer
from log.worlds import opened
from services import KafkaTopics
from serving import capturing_logger, open_descriptors, until
from structlog.testing import LogCapture

from tricast.config import Config
from tricast.event import BEGINNING, Draft, Event, Position, ShardedId, TopicSet
from tricast.log.base import IdempotencyKey, Log, Slice
from tricast.log.kafka import KafkaLog, kafka_log
from tricast.log_urls import KafkaUrl, parse_log_url

PLENTY = 2**20


def new_topic(kafka: KafkaTopics, partitions: int = 1, **config: str) -> str:
    """Makes a topic of Kafka's of a test's own."""
    topic = f"t-{uuid.uuid4()}"
    kafka.create_topic(topic, partitions, {name.replace("_", "."): value for name, value in config.items()})
    return topic


def kafka_config(server: KafkaTopics, topic: str, **settings: Any) -> Config:
    """A configuration with this log; settings of other sections are tables."""
    tables = {name: settings.pop(name) for name in ("events", "publish") if name in settings}
    return Config.model_validate({"log": {"url": server.topic_url(topic), "timeout": "60s", **settings}, **tables})


class KafkaWorld:
    """A log and what it has handed over.

    Attributes:
        log: it.
        committed: what it has handed over.
        skipped: what it has not.
        records: what it has logged.
        moved: set anew with each that is handed over or skipped.
    """

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.time) -> None:
        url = parse_log_url(config.log.url)
        assert isinstance(url, KafkaUrl)
        self.records = LogCapture()
        self.log: KafkaLog = kafka_log(config, url, logger=capturing_logger(self.records))
        self.log._clock = clock
        self.committed: list[Event] = []
        self.skipped: list[Position] = []
        self._moved = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["KafkaWorld"]:
        as_log: Log = self.log
        async with as_log.open(self._commit, self._skip):
            yield self

    def _commit(self, events: Sequence[Event]) -> None:
        self.committed.extend(events)
        self._moved.unpark_all()

    def _skip(self, position: Position) -> None:
        self.skipped.append(position)
        self._moved.unpark_all()

    @property
    def topics(self) -> list[str]:
        return [event.topic for event in self.committed]

    @property
    def data(self) -> list[bytes]:
        return [event.data for event in self.committed]

    @property
    def warnings(self) -> list[str]:
        return [
            f"{entry['event']}: {entry.get('why', '')}"
            for entry in self.records.entries
            if entry["log_level"] in ("warning", "error")
        ]

    async def handed_over(self, count: int) -> list[Event]:
        """So many events, once they were handed over."""
        while len(self.committed) < count:
            await self._moved.park()
        return self.committed

    async def has_skipped(self) -> Position:
        """The position up to which something was skipped, once it was."""
        while not self.skipped:
            await self._moved.park()
        return self.skipped[-1]

    async def append(self, *topics: str, data: bytes = b"1", key: IdempotencyKey | None = None) -> list[ShardedId]:
        return await self.log.append([Draft(topic, "message", data) for topic in topics], key)

    async def read(self, *topics: str, after: Position = BEGINNING, max_bytes: int = PLENTY) -> Slice:
        return await self.log.read(TopicSet(topics), after, max_bytes=max_bytes)

    async def read_all(self, *topics: str, after: Position = BEGINNING, max_bytes: int = PLENTY) -> list[Event]:
        """What is there in slices up to the end; there must be no gap."""
        events: list[Event] = []
        while True:
            found = await self.read(*topics, after=after, max_bytes=max_bytes)
            assert found.gap is None
            events.extend(found.events)
            after = found.upto
            if found.complete:
                return events


@asynccontextmanager
async def kafka_world(server: KafkaTopics, topic: str, **settings: Any) -> AsyncIterator[KafkaWorld]:
    """A log in this topic that is open; where the test sets a short timeout, perhaps not at the first try."""
    world = KafkaWorld(kafka_config(server, topic, **settings))
    async with opened(world.open) if "timeout" in settings else world.open():
        yield world


async def nothing_left(before: Counter[str]) -> None:
    """Returns when no descriptors are open that were not before. What librdkafka has, threads of its own close."""
    with trio.fail_after(HANG_SECONDS):
        await until(lambda: not open_descriptors() - before)


def idempotency_key(name: bytes = b"k", fingerprint: bytes = b"f") -> IdempotencyKey:
    return IdempotencyKey(name, fingerprint, 600.0, 100)


def write(
    kafka: KafkaTopics,
    topic: str,
    *records: tuple[bytes | None, bytes | None],
    partition: int = 0,
    headers: Mapping[str, bytes] | None = None,
    timestamp: int = 0,
) -> None:
    """Writes keys and values, as another program does."""
    producer = Producer({"bootstrap.servers": kafka.internal_address, "log_level": 0})
    for key, value in records:
        producer.produce(topic, value, key, partition, headers=dict(headers or {}), timestamp=timestamp)
    assert producer.flush(HANG_SECONDS) == 0
