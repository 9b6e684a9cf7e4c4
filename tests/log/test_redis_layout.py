"""Servers that share a log in Redis have to be configured alike for it: those that are not find out, and do no harm."""

import re
from typing import Any

import pytest
import trio
from log.redis_worlds import Process, Processes
from log.worlds import ids_of
from services import RedisCluster, RedisServer
from serving import until

from tricast.errors import ConfigError, LogUnavailable
from tricast.event import TopicSet
from tricast.log import redis_layout

KEY = "tricast:layout"
STREAM: dict[str, Any] = {"shards": 2}
PUBSUB: dict[str, Any] = {"shards": 2, "delivery": "pubsub"}


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look all the time."""
    monkeypatch.setattr(redis_layout, "_WATCH_SECONDS", 0.01)


async def is_refused(url: str, *sentences: str, **section: Any) -> None:
    with pytest.raises(ConfigError) as info:
        async with Process(url, **section).open():
            pytest.fail("it was opened")
    said = [str(problem) for problem in info.value.problems]
    assert len(said) == len(sentences)
    for line, sentence in zip(said, sentences, strict=True):
        assert line.startswith(f"configuration: {sentence}")
        assert line.endswith("for how to change it on all of them, see docs/logs.md")


def written(redis: RedisServer) -> dict[str, str]:
    found: list[bytes] = redis.execute("HGETALL", KEY)
    texts = [each.decode() for each in found]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def wrote(redis: RedisServer, shards: int, delivery: str, since: int) -> None:
    redis.execute("HSET", KEY, "shards", shards, "delivery", delivery, "since", since)


async def test_other_settings_than_the_log_has(redis: RedisServer, processes: Processes) -> None:
    await processes.begin(redis.url, **STREAM)
    keys = redis.execute("KEYS", "*")
    shards = 'log.shards: expected 2, as on the servers that share this log in Redis (log.namespace = "tricast")'
    delivery = shards.replace("shards", "delivery").replace("2", '"stream"')
    await is_refused(redis.url, f"{shards}, found 3;", shards=3)
    await is_refused(redis.url, f'{delivery}, found "pubsub";', **PUBSUB)
    await is_refused(redis.url, f"{shards}, found 1;", f'{delivery}, found "pubsub";', delivery="pubsub")
    assert sorted(redis.execute("KEYS", "*")) == sorted(keys)  # type: ignore[arg-type]


async def test_the_same_settings_and_other_namespaces(redis: RedisServer, processes: Processes) -> None:
    for section in (STREAM, STREAM, {"namespace": "other"}, {"namespace": "third", **PUBSUB}):
        process = await processes.begin(redis.url, **section)
        await process.append("a")
    before = written(redis)
    await processes.begin(redis.url, **STREAM)
    assert written(redis) == before
    assert {key: before[key] for key in ("shards", "delivery")} == {"shards": "2", "delivery": "stream"}


async def test_in_another_database_there_is_another_log(redis: RedisServer, processes: Processes) -> None:
    await processes.begin(redis.url, **STREAM)
    await processes.begin(f"{redis.url}/1", **PUBSUB)


async def test_of_those_that_begin_at_the_same_time_one_is_right(redis: RedisServer) -> None:
    begun: list[int] = []
    refused: list[int] = []
    is_over = trio.Event()

    async def begin(shards: int) -> None:
        try:
            async with Process(redis.url, shards=shards, timeout="20s").open():
                began(begun, shards)
                await is_over.wait()
        except ConfigError:
            began(refused, shards)

    def began(where: list[int], shards: int) -> None:
        where.append(shards)
        if len(begun) + len(refused) == 9:
            is_over.set()

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(begin, number % 3 + 1)
    assert len(begun) == 3
    assert begun == [int(written(redis)["shards"])] * 3


@pytest.mark.parametrize("section", [STREAM, PUBSUB], ids=["stream", "pubsub"])
async def test_in_a_cluster(redis_cluster: RedisCluster, processes: Processes, section: dict[str, Any]) -> None:
    shared = {"namespace": f"layout-{section.get('delivery')}"}
    await processes.begin(redis_cluster.url, **shared, **section)
    process = await processes.begin(redis_cluster.url, **shared, **section)
    await process.append("a")
    await is_refused(redis_cluster.url, "log.shards: expected 2, ", **shared, **section | {"shards": 3})


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("section", [STREAM, PUBSUB], ids=["stream", "pubsub"])
async def test_a_redis_without_its_data(redis: RedisServer, processes: Processes, section: dict[str, Any]) -> None:
    process = await processes.begin(redis.url, **section)
    before = written(redis)
    redis.restart(keep_data=False)
    await process.came_back(2)
    await until(lambda: written(redis) == before)
    await process.append("a")
    await is_refused(redis.url, "log.shards: expected 2, ", **section | {"shards": 3})


@pytest.mark.usefixtures("watchful")
async def test_who_was_there_first_is_right(redis: RedisServer, processes: Processes) -> None:
    """One that is configured wrongly, and is started again and again, is quicker than those who lost their Redis."""
    old = await processes.begin(redis.url, **STREAM)
    since = int(written(redis)["since"])
    redis.execute("DEL", KEY)
    wrote(redis, 3, "stream", since + 1000)
    await until(lambda: written(redis) == {"shards": "2", "delivery": "stream", "since": str(since)})
    assert old.log.problem is None
    assert old.said() == []


@pytest.mark.usefixtures("watchful")
async def test_who_was_not_there_first_takes_nothing(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, **STREAM)
    (first,) = await process.append("a")
    since = int(written(redis)["since"])
    wrote(redis, 3, "pubsub", since - 1)
    await process.is_away()
    why = re.compile(r'log.shards: expected 3, .*; log.delivery: expected "pubsub", .* found "stream"')
    assert why.match(process.log.problem or "")
    with pytest.raises(LogUnavailable, match=why.pattern):
        await process.append("a")
    with pytest.raises(LogUnavailable, match=why.pattern):
        await process.log.read(TopicSet(["a"]), first, max_bytes=1)
    wrote(redis, 2, "stream", since - 1)
    await process.is_back()
    (second,) = await process.append("a")
    await process.came_to(second)
    assert [str(each) for each in ids_of(process.committed)] == [str(first), str(second)]
    assert process.said() == ["the log is not available", "the log is available again"]


async def test_how_it_is_changed_for_all(redis: RedisServer, processes: Processes) -> None:
    old = Process(redis.url, **STREAM)
    async with old.open():
        (before,) = await old.append("a")
    redis.execute("DEL", *redis.execute("KEYS", "tricast:*"))  # type: ignore[misc]
    new = await processes.begin(redis.url, shards=3)
    found = await new.read("a", after=before)
    assert found.gap is not None
    (after,) = await new.append("a")
    assert await new.ids("a", after=found.upto) == [after]


async def test_what_is_no_layout(redis: RedisServer) -> None:
    redis.execute("SET", KEY, "mine")
    with pytest.raises(LogUnavailable, match="the wrong kind of value"):
        async with Process(redis.url).open():
            pytest.fail("it was opened")


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("spoil", [("HDEL", KEY, "shards"), ("HSET", KEY, "shards", "many"), ("HDEL", KEY, "since")])
async def test_half_a_layout_is_written_anew(redis: RedisServer, processes: Processes, spoil: tuple[str, ...]) -> None:
    process = await processes.begin(redis.url, **STREAM)
    before = written(redis)
    redis.execute(*spoil)
    await until(lambda: written(redis) == before)
    await process.append("a")
    assert process.log.problem is None
