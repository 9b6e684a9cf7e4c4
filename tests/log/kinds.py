"""Every kind of log there is, for the suite of what all of them do: one entry here is all that another one needs."""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from log.worlds import looked, sqlite_log
from services import KafkaTopics, RedisCluster, RedisServer
from serving import capturing_logger
from structlog.testing import LogCapture

import tricast
from tricast.log.base import Log
from tricast.log.memory import MemoryLog
from tricast.log.sharded import ShardedLog, shard_of
from tricast.log.sqlite import SqliteLog
from tricast.stores import log_of

#: Events are kept at least as long as a test takes.
AGE = 3600.0
SIZE = 2**28


async def _nothing(_: Log) -> None:
    pass


class Place(NamedTuple):
    """Where a log is, for one test.

    Attributes:
        log: makes what is a process's own view of the log there.
        drop: has a log do now what it does from time to time, with what is too old or too much.
    """

    log: Callable[[], Log]
    drop: Callable[[Log], Awaitable[None]] = _nothing


class Kind(NamedTuple):
    """One kind of log.

    Attributes:
        place: makes a place with about so many events kept (of a topic, or of all), and with what the test has.
        is_kept: whether what was appended is there for whoever opens the log later.
        is_shared: whether several processes can have it open.
        splits: whether a batch may be refused because its topics are not kept together.
    """

    place: Callable[[pytest.FixtureRequest, Path, int], Place]
    is_kept: bool = True
    is_shared: bool = True
    splits: bool = False


def _memory(keeps: int) -> MemoryLog:
    return MemoryLog(history=keeps, history_age=AGE, history_size=SIZE, clock=time.time)


def _in_memory(_: pytest.FixtureRequest, __: Path, keeps: int) -> Place:
    return Place(lambda: _memory(keeps))


def _in_memory_shards(_: pytest.FixtureRequest, __: Path, keeps: int) -> Place:
    return Place(
        lambda: ShardedLog({number: _memory(keeps) for number in range(4)}, shard_of=lambda topic: shard_of(topic, 4))
    )


def _in_a_file(cache_size: int) -> Callable[[pytest.FixtureRequest, Path, int], Place]:
    def place(_: pytest.FixtureRequest, folder: Path, keeps: int) -> Place:
        def log() -> Log:
            path = folder / "log.db"
            return sqlite_log(path, time.time, history=keeps, history_age=AGE, history_size=SIZE, cache_size=cache_size)

        async def drop(log: Log) -> None:
            assert isinstance(log, SqliteLog)
            await looked(log)

        return Place(log, drop)

    return place


def _configured(log: Mapping[str, Any], keeps: int) -> Place:
    events = {"history": keeps, "history_age": "1h"}
    section = {"length": keeps, "timeout": "60s", "reconnect": "10ms"} | dict(log)
    config = tricast.Config.model_validate(
        {"log": section, "events": events, "publish": {"max_event": "1MiB", "max_body": "2MiB"}}
    )
    return Place(lambda: log_of(config, capturing_logger(LogCapture())))


def _in_redis(**section: Any) -> Callable[[pytest.FixtureRequest, Path, int], Place]:
    def place(request: pytest.FixtureRequest, _: Path, keeps: int) -> Place:
        redis: RedisServer = request.getfixturevalue("redis")
        return _configured({"url": redis.url} | section, keeps)

    return place


def _in_a_redis_cluster(**section: Any) -> Callable[[pytest.FixtureRequest, Path, int], Place]:
    def place(request: pytest.FixtureRequest, _: Path, keeps: int) -> Place:
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        return _configured({"url": cluster.url, "namespace": uuid.uuid4().hex} | section, keeps)

    return place


def _in_kafka(request: pytest.FixtureRequest, _: Path, keeps: int) -> Place:
    kafka: KafkaTopics = request.getfixturevalue("kafka")
    topic = f"t-{uuid.uuid4()}"
    kafka.create_topic(topic, 3, {"max.message.bytes": "4194304"})
    return _configured({"url": kafka.topic_url(topic), "shards": 3}, keeps)


KINDS: Mapping[str, Kind] = {
    "memory": Kind(_in_memory, is_kept=False, is_shared=False),
    "memory in shards": Kind(_in_memory_shards, is_kept=False, is_shared=False, splits=True),
    "sqlite": Kind(_in_a_file(2**20)),
    "sqlite without cache": Kind(_in_a_file(1)),
    "redis": Kind(_in_redis()),
    "redis without cache": Kind(_in_redis(cache_size="1B")),
    "redis in shards": Kind(_in_redis(shards=4)),
    "redis-cluster": Kind(_in_a_redis_cluster(shards=4), splits=True),
    "redis pubsub": Kind(_in_redis(delivery="pubsub"), is_kept=False),
    "kafka": Kind(_in_kafka),
}
