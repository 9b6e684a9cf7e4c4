"""The log in Kafka seen from outside, beside a server's log in the same topic."""

import time

import pytest
from log.kafka_worlds import kafka_config, kafka_world, new_topic, write
from services import KafkaTopics
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.config import Config
from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import EventId, GapReason, ShardedId, TopicSet
from tricast.log.inspection import Cut
from tricast.stores import inspecting

ALL = TopicSet([">"])


def inspected_log(config: Config):
    return inspecting(config, capturing_logger(LogCapture()))


def plain(position: ShardedId) -> EventId:
    (part,) = position.parts.values()
    return part


async def test_what_a_log_holds(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, 2)
    async with kafka_world(kafka, topic, shards=2) as world, inspected_log(kafka_config(kafka, topic, shards=2)) as log:
        assert log.is_sharded
        empty = await log.shards[0].holding()
        assert (empty.first, empty.events, empty.since, empty.size, empty.topics) == (None, 0, None, None, None)
        assert await log.head() == world.log.last_id
        ids = [(await world.append(f"topic.{number}"))[0] for number in range(20)]
        held = [await shard.holding() for shard in log.shards.values()]
        assert sum(each.events for each in held) == 20
        for number, each in enumerate(held):
            mine = [position.parts[number] for position in ids if number in position.parts]
            assert (each.first, each.last) == (mine[0], mine[-1])
            assert each.since is not None
            assert each.since <= time.time()
        await world.handed_over(20)
        assert await log.head() == world.log.last_id
        newest = await log.newest(ALL, 20)
        assert sorted(str(event.id) for event in newest) == sorted(map(str, ids))


async def test_the_newest_of_some_topics(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    write(kafka, topic, *[(b"a", b"1")] * 2, (b"b", b"2"), (None, b"no event"), *[(b"c", b"3")] * 250)
    async with inspected_log(kafka_config(kafka, topic)) as log:
        for topics, count, expected in (
            (ALL, 3, ["c"] * 3),
            (ALL, 0, []),
            (ALL, 251, ["b"] + ["c"] * 250),
            (ALL, 999, ["a", "a", "b"] + ["c"] * 250),
            (TopicSet(["a"]), 1, ["a"]),
            (TopicSet(["b", "a"]), 9, ["a", "a", "b"]),
        ):
            assert [event.topic for event in await log.newest(topics, count)] == expected


@pytest.mark.parametrize("kind", ["keep", "before", "older than"])
async def test_what_is_before_a_cut_is_dropped(kafka: KafkaTopics, kind: str) -> None:
    topic = new_topic(kafka)
    now_ms = int(time.time() * 1000)
    for number in range(5):
        write(kafka, topic, (b"a", b"%d" % number), timestamp=now_ms - 60_000 + number)
    config = kafka_config(kafka, topic)
    async with kafka_world(kafka, topic) as world:
        before = world.log.last_id
        events = await world.read_all("a")
        assert len(events) == 5
        fourth = plain(events[3].id)  # type: ignore[arg-type]
        cuts = {
            "keep": Cut(keep=2),
            "before": Cut(before=fourth),
            "older than": Cut(older_than=(now_ms - 59_997) / 1000),
        }
        async with inspected_log(config) as log:
            assert await log.shards[0].drop(cuts[kind]) == 3
            assert await log.shards[0].drop(cuts[kind]) == 0
            held = await log.shards[0].holding()
            assert (held.first, held.events) == (fourth, 2)
            assert await log.head() == before
        # Whoever is there goes on.
        assert await world.read_all("a") == events
        await world.append("a")
    async with kafka_world(kafka, topic) as world:
        found = await world.read("a", after=events[0].id)
        assert found.gap is not None
        assert found.gap.reason in (GapReason.EVICTED, GapReason.RESTARTED)
        assert [event.data for event in found.events][:2] in ([], [b"3", b"4"])


async def test_so_many_events_are_kept_whatever_is_between_them(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world, inspected_log(kafka_config(kafka, topic)) as log:
        shard = log.shards[0]
        ids = [plain(position) for _ in range(3) for position in await world.append("a", "b")]
        # Behind each batch there is a record that ends the transaction.
        held = await shard.holding()
        assert (held.first, held.events, held.is_counted) == (ids[0], 9, False)
        for keep, dropped in ((7, 0), (6, 0), (3, 4), (3, 0)):
            assert await shard.drop(Cut(keep=keep)) == dropped
        assert [event.id for event in await log.newest(ALL, 9)] == [ShardedId({0: each}, (0,)) for each in ids[3:]]
        assert (await shard.holding()).events == 5


async def test_all_of_it_can_be_dropped(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    write(kafka, topic, *[(b"a", b"1")] * 5)
    async with inspected_log(kafka_config(kafka, topic)) as log:
        last = (await log.shards[0].holding()).last
        assert await log.shards[0].drop(Cut(before=EventId(last.ms, 10**9))) == 5
        assert await log.shards[0].holding() == (None, last, 0, None, None, None, False)
        with pytest.raises(RemoteProtocolError, match="no position in this log"):
            await log.shards[0].drop(Cut(before=EventId(last.ms + 1, 1)))


async def test_kafka_does_not_drop_from_every_topic(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, cleanup_policy="compact")
    write(kafka, topic, *[(b"a", b"1")] * 5)
    async with inspected_log(kafka_config(kafka, topic)) as log:
        with pytest.raises(LogUnavailable, match="olicy"):
            await log.shards[0].drop(Cut(keep=1))
        assert (await log.shards[0].holding()).events == 5


async def test_what_other_programs_write_is_seen_and_stays(kafka: KafkaTopics) -> None:
    topic, orders = new_topic(kafka), new_topic(kafka)
    write(kafka, topic, (b"a", b"1"))
    write(kafka, orders, (b"7", b"2"), (b"8", b"3"))
    config = kafka_config(kafka, topic, source=[{"kafka_topic": orders, "topic": "orders.{key}"}])
    async with inspected_log(config) as log:
        assert list(log.shards) == [0, 1000]
        assert [event.topic for event in await log.newest(TopicSet(["orders.*"]), 9)] == ["orders.7", "orders.8"]
        assert await log.shards[1000].drop(Cut(keep=1)) == 0
        assert (await log.shards[1000].holding()).events == 2


async def test_where_there_is_no_log(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    for config, why in (
        (kafka_config(kafka, "nothing"), "there is no topic nothing"),
        (kafka_config(kafka, topic, shards=2), "has 1 partitions, and log.shards is 2"),
    ):
        with pytest.raises(LogUnavailable, match=why):
            async with inspected_log(config):
                pytest.fail("it was opened")
