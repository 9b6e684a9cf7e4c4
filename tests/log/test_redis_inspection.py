"""The log in Redis seen from outside, beside a server's log on the same streams."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from services import RedisServer
from serving import capturing_logger, until
from structlog.testing import LogCapture

from tricast.config import Config
from tricast.errors import LogUnavailable
from tricast.event import Draft, EventId, GapReason, Position, ShardedId, TopicSet, own_id
from tricast.log.base import Log
from tricast.log.inspection import Cut, Inspected
from tricast.log.redis_stream import keys_of
from tricast.stores import inspecting, log_of

ALL = TopicSet([">"])


def config_of(url: str, **log: Any) -> Config:
    return Config.model_validate({"log": {"url": url, **log}})


def inspected_log(config: Config) -> Any:
    return inspecting(config, capturing_logger(LogCapture()))


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Log]:
    """The log of a server."""
    log = log_of(config, capturing_logger(LogCapture()))
    async with log.open(lambda _: None):
        yield log


async def filled(log: Log, *topics: str) -> list[Position]:
    ids: list[Position] = []
    for number, topic in enumerate(topics):
        ids += await log.append([Draft(topic, "message", b"%d" % number)])
    return ids


async def test_what_a_log_holds(redis: RedisServer) -> None:
    config = config_of(redis.url)
    async with opened(config) as log:
        async with inspected_log(config) as inspected:
            assert not inspected.is_sharded
            (shard,) = inspected.shards.values()
            empty = await shard.holding()
            assert (empty.first, empty.events, empty.topics, empty.since) == (None, 0, 0, None)
            assert empty.last == log.last_id
            ids = await filled(log, "a", "b", "a")
            held = await shard.holding()
        assert (held.first, held.last, held.events, held.topics) == (ids[0], ids[2], 3, 2)
        assert isinstance(ids[0], EventId)
        assert held.since == ids[0].ms / 1000
        assert held.size == redis.execute("MEMORY", "USAGE", keys_of("tricast", 0, 1).log)


async def test_who_may_not_ask_for_the_size_is_told_the_rest(redis: RedisServer) -> None:
    async with opened(config_of(redis.url)) as log:
        await filled(log, "a")
        redis.execute("ACL", "SETUSER", "somebody", "on", ">secret", "~*", "&*", "+@all", "-memory")
        async with inspected_log(config_of(redis.url.replace("//", "//somebody:secret@"))) as inspected:
            held = await inspected.shards[0].holding()
    assert (held.events, held.size) == (1, None)


async def test_the_newest_of_some_topics(redis: RedisServer) -> None:
    config = config_of(redis.url)
    async with opened(config) as log:
        ids = await filled(log, "a.x", "b", "a.y", "a.z", "b")
        ids += await log.append([Draft("c", "message", b"1")] * 200)
        async with inspected_log(config) as inspected:
            for topics, count, expected in (
                (ALL, 2, ids[-2:]),
                (ALL, 0, []),
                (ALL, 150, ids[-150:]),
                (ALL, 999, ids),
                (TopicSet(["a.*"]), 2, ids[2:4]),
                (TopicSet(["b"]), 9, [ids[1], ids[4]]),
            ):
                assert [event.id for event in await inspected.newest(topics, count)] == expected
            (kept,) = await inspected.shards[0].newest(TopicSet(["a.x"]), 1)
            assert kept.at == own_id(kept.event).ms / 1000


@pytest.mark.parametrize("kind", ["keep", "before", "older than"])
async def test_what_is_before_a_cut_is_dropped(redis: RedisServer, kind: str) -> None:
    config = config_of(redis.url)
    async with opened(config) as log:
        ids = await log.append([Draft("a", "message", b"1")] * 1234)
        ids = [*ids, *await filled(log, "b")]
        while (last := (await filled(log, "c"))[0]).ms == ids[-1].ms:  # type: ignore[union-attr]
            ids.append(last)
        ids.append(last)
        assert isinstance(last, EventId)
        await until(lambda: log.last_id >= last)
        async with inspected_log(config) as inspected:
            shard = inspected.shards[0]
            cut = {"keep": Cut(keep=1), "before": Cut(before=last), "older than": Cut(older_than=last.ms / 1000)}[kind]
            assert await shard.drop(cut) >= len(ids) - 1  # and the mark at the beginning
            assert await shard.drop(cut) == 0
            held = await shard.holding()
            assert (held.first, held.last, held.events, held.topics) == (last, last, 1, 1)
        # Whoever is there goes on; whoever comes is told.
        behind = await log.read(ALL, ids[-2], max_bytes=1000)
        assert ([event.id for event in behind.events], behind.gap) == ([last], None)
    async with opened(config) as following:
        found = await following.read(TopicSet(["b"]), ids[0], max_bytes=1000)
        assert found.gap is not None
        assert found.gap.reason == GapReason.EVICTED
        assert found.gap.resumed_at >= ids[-2]


async def test_a_log_of_which_all_was_dropped_goes_on(redis: RedisServer) -> None:
    config = config_of(redis.url)
    async with opened(config) as log:
        ids = await filled(log, "a", "a")
        async with inspected_log(config) as inspected:
            await inspected.shards[0].drop(Cut(before=EventId(2**50, 0)))
            held = await inspected.shards[0].holding()
            assert (held.first, held.last, held.events) == (None, ids[1], 0)
        async with opened(config) as other:
            found = await other.read(ALL, ids[0], max_bytes=1000)
            assert found.gap is not None
            assert found.gap.reason == GapReason.EVICTED
            assert (await other.read(ALL, ids[1], max_bytes=1000)).gap is None
            following = await filled(other, "a")
            assert following[0] > ids[1]
        await until(lambda: log.last_id >= following[0])
        assert [event.id for event in (await log.read(ALL, ids[1], max_bytes=1000)).events] == following


async def test_of_several_shards(redis: RedisServer) -> None:
    config = config_of(redis.url, shards=3)
    topics = [f"topic.{number}" for number in range(30)]
    async with opened(config) as log:
        ids = await filled(log, *topics)
        async with inspected_log(config) as inspected:
            assert list(inspected.shards) == [0, 1, 2]
            assert inspected.is_sharded
            newest = await inspected.newest(ALL, 10)
            assert sorted(str(event.id) for event in newest) == sorted(map(str, ids[-10:]))
            events, count = await _held(inspected)
            assert (events, count) == (30, 30)
            at = ids[15]
            assert isinstance(at, ShardedId)
            ((number, cut),) = inspected.cuts(at).items()
            before = sum(number in each.parts and each.parts[number] < at.parts[number] for each in ids)  # type: ignore[union-attr]
            await inspected.shards[number].drop(cut)
            assert (await _held(inspected))[0] == 30 - before


async def _held(inspected: Inspected) -> tuple[int, int]:
    holdings = [await shard.holding() for shard in inspected.shards.values()]
    return sum(held.events for held in holdings), sum(held.topics or 0 for held in holdings)


async def test_where_there_is_no_log(redis: RedisServer) -> None:
    async with opened(config_of(redis.url)):
        pass
    before = redis.execute("KEYS", "*")
    for section, why in (
        ({"namespace": "other"}, "there is none in Redis with log.shards = 1 and log.namespace = 'other'"),
        ({"shards": 2}, "there is none in Redis with log.shards = 2"),
        ({"delivery": "pubsub"}, "events are only passed on"),
    ):
        with pytest.raises(LogUnavailable, match=why):
            async with inspected_log(config_of(redis.url, **section)):
                pytest.fail("it was opened")
    assert redis.execute("KEYS", "*") == before
    url = redis.url
    redis.stop()
    with pytest.raises(LogUnavailable, match="no connection to Redis"):
        async with inspected_log(config_of(url)):
            pytest.fail("it was opened")


async def test_the_rights_that_are_documented_are_enough(redis: RedisServer) -> None:
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    (rule,) = re.findall(r"(?m)^user tricast on >password (.*\+xadd.*)$", text)
    (further,) = re.findall(r"(?m)^\| `tricast log` \| (.*) \|$", text)
    rights = re.findall(r"`(\+[^`]+)`", further.replace("\\|", "|"))
    async with opened(config_of(redis.url)) as log:
        await filled(log, "a", "a")
        redis.execute("ACL", "SETUSER", "tricast", "on", ">password", *rule.split(), *rights)
        async with inspected_log(config_of(redis.url.replace("//", "//tricast:password@"))) as inspected:
            held = await inspected.shards[0].holding()
            assert (held.events, held.topics) == (2, 1)
            assert held.size is not None
            assert len(await inspected.newest(ALL, 9)) == 2
            assert await inspected.shards[0].drop(Cut(keep=1)) == 1
