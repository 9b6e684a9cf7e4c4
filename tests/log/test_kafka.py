"""The log in Kafka: order, history, batches, keys and sources, with a real broker."""

import time
from collections.abc import Sequence
from functools import partial

import pytest
import trio
import trio.testing
from log.kafka_worlds import KafkaWorld, idempotency_key, kafka_config, kafka_world, new_topic, nothing_left, write
from services import KafkaTopics
from serving import open_descriptors

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import Draft, Event, EventId, GapReason, ShardedId, TopicSet
from tricast.hub import Hub
from tricast.log.base import Log
from tricast.log.kafka_clients import Seen, Topic
from tricast.log.kafka_threads import Job, Place
from tricast.log.sharded import shard_of


def ids_of(events: Sequence[Event]) -> list[str]:
    """What their publishers were told: an id tells of its own shard."""
    return [str(event.id) for event in events]


async def test_two_processes_hand_over_the_same_in_the_same_order(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as one, kafka_world(kafka, topic) as other:
        for number in range(10):
            await (one, other)[number % 2].append("a", data=b"%d" % number)
        assert await one.handed_over(10) == await other.handed_over(10)
        assert one.data == [b"%d" % number for number in range(10)]
        assert all(before.id < behind.id for before, behind in zip(one.committed, one.committed[1:], strict=False))


async def test_what_is_acknowledged_is_handed_over_as_it_was(kafka: KafkaTopics) -> None:
    async with kafka_world(kafka, new_topic(kafka)) as world:
        (given,) = await world.log.append([Draft("a.b", "order", b'{"n": 1}')])
        (event,) = await world.handed_over(1)
        assert (event.id, event.topic, event.type, event.data) == (given, "a.b", "order", b'{"n": 1}')
        assert (await world.read("a.*")).events == [event]
        assert world.log.last_id == given


async def test_topics_are_spread_over_partitions(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, 3)
    async with kafka_world(kafka, topic, shards=2) as world:
        names = [f"t.{number}" for number in range(20)]
        for name in names:
            await world.append(name)
        await world.handed_over(20)
        shards = [event.id.shown for event in world.committed]
        assert {shard for shown in shards for shard in shown} == {0, 1}
        assert sorted(event.topic for event in await world.read_all("t.*")) == sorted(names)
        for name in names:
            assert [event.topic for event in await world.read_all(name)] == [name]
        assert "of Kafka's topic only some partitions are used: " in world.warnings


# History


async def test_who_comes_later_finds_what_is_kept(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world:
        ids = [(await world.append("a", data=b"%d" % number))[0] for number in range(5)]
    async with kafka_world(kafka, topic) as world:
        assert [event.id for event in await world.read_all("a")] == ids
        assert [event.id for event in await world.read_all("a", after=ids[2])] == ids[3:]
        assert world.committed == []


async def test_what_is_not_in_memory_is_read_from_kafka(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic, cache_size=1) as world:
        given = await world.append(*["a", "b"] * 50)
        await world.handed_over(100)
        assert [event.id for event in await world.read_all("a", "b")] == given
        assert [event.id for event in await world.read_all("a", after=given[50])] == given[52::2]
        assert [event.id for event in await world.read_all(">", after=given[50], max_bytes=500)] == given[51:]
        assert sum(world.log.statistics.reads.counts) > 3
        assert await world.read_all("none") == []


async def test_a_history_is_so_many_records_long(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic, length=10, cache_size=1) as world:
        ids = [(await world.append("a"))[0] for _ in range(30)]
        await world.handed_over(30)
        assert [event.id for event in await world.read_all("a")] == ids[-10:]
        found = await world.read("a", after=ids[3])
        assert found.gap is not None
        assert (found.gap.reason, found.gap.resumed_at) == (GapReason.EVICTED, ids[19])
        assert [event.id for event in await world.read_all("a", after=found.gap.resumed_at)] == ids[-10:]
    async with kafka_world(kafka, topic, length=10) as world:
        assert [event.id for event in await world.read_all("a")] == ids[-10:]
        found = await world.read("a", after=ids[3])
        assert found.gap is not None
        assert found.gap.resumed_at == ids[19]


async def test_old_records_do_not_count(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    now_ms = int(time.time() * 1000)
    write(kafka, topic, (b"a", b"1"), (b"a", b"2"), timestamp=now_ms - 3_700_000)
    write(kafka, topic, (b"a", b"3"), timestamp=now_ms)
    async with kafka_world(kafka, topic, events={"history_age": "1h"}) as world:
        (event,) = await world.read_all("a")
        assert event.data == b"3"
    topic = new_topic(kafka)
    write(kafka, topic, (b"a", b"1"), timestamp=now_ms - 3_700_000)
    async with kafka_world(kafka, topic, events={"history_age": "1h"}) as world:
        assert await world.read_all("a") == []


async def test_what_kafka_has_dropped_is_a_gap(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic, cache_size=1) as world:
        ids = [(await world.append("a"))[0] for _ in range(10)]
        await world.handed_over(10)
        await trio.to_thread.run_sync(kafka.delete_records, topic, 0, 6)
        assert [event.id for event in await world.read_all("a")] == ids[6:]
        found = await world.read("a", after=ids[2])
        assert found.gap is not None
        assert (found.gap.reason, found.gap.resumed_at) == (GapReason.EVICTED, ids[5])
        assert (await world.read("a", after=ids[5])).gap is None
        await trio.to_thread.run_sync(kafka.delete_records, topic, 0, 10)
        assert await world.read_all("a") == []
        (new,) = await world.append("a")
        await world.handed_over(11)
        assert [event.id for event in await world.read_all("a", after=ids[9])] == [new]


async def test_a_position_in_another_topic_is_from_before_a_restart(kafka: KafkaTopics) -> None:
    async with kafka_world(kafka, new_topic(kafka)) as world:
        (before,) = await world.append("a")
    async with kafka_world(kafka, new_topic(kafka)) as world:
        (event_id,) = await world.append("a")
        await world.handed_over(1)
        found = await world.read("a", after=before)
        assert found.gap is not None
        assert found.gap.reason is GapReason.RESTARTED
        assert [event.id for event in await world.read_all("a", after=found.upto)] == [event_id]


async def test_a_position_of_another_kind_of_log_is_unknown(kafka: KafkaTopics) -> None:
    async with kafka_world(kafka, new_topic(kafka)) as world:
        found = await world.read("a", after=EventId(5, 5))
        assert found.gap is not None
        assert found.gap.reason is GapReason.UNKNOWN_ID


async def test_a_position_ahead_is_waited_for_if_kafka_has_it(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world:
        (last,) = await world.append("a")
        # It is acknowledged, and may not have been read yet.
        found = await world.read("a", after=last)
        assert (found.gap, found.events, found.upto) == (None, [], last)
        ((number, part),) = last.parts.items()
        future = ShardedId({number: EventId(part.ms, part.counter + 1)})
        found = await world.read("a", after=future)
        assert found.gap is not None
        assert found.gap.reason is GapReason.UNKNOWN_ID


# Batches


async def test_a_batch_is_in_one_transaction(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, 2)
    async with kafka_world(kafka, topic, shards=2) as world, kafka_world(kafka, topic, shards=2) as other:
        names = [f"t.{number}" for number in range(10)]
        given = await world.append(*names)
        await world.handed_over(10)
        await other.handed_over(10)
        ids = dict(zip(names, map(str, given), strict=True))
        for each in (world, other):
            assert {event.topic: str(event.id) for event in each.committed} == ids
        again = await world.append("t.1", "t.1")
        assert again[0] < again[1]
        await world.handed_over(12)
        assert ids_of(await world.read_all("t.1", after=given[1])) == list(map(str, again))


async def test_batches_at_the_same_time_share_transactions(kafka: KafkaTopics) -> None:
    async with kafka_world(kafka, new_topic(kafka)) as world:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(world.append, f"t.{number}", f"t.{number}")
        await world.handed_over(40)
        assert sorted(world.topics) == sorted(2 * [f"t.{number}" for number in range(20)])


async def test_many_small_events_where_kafka_takes_only_small_records(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, max_message_bytes="2000")
    async with kafka_world(kafka, topic, kafka={"batch.size": "2000"}) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(partial(world.append, "a", data=b"1" * 300))
        await world.append(*["a"] * 50, data=b"1" * 300)
        await world.handed_over(100)


async def test_a_record_that_kafka_does_not_take_is_refused_with_its_batch_alone(kafka: KafkaTopics) -> None:
    async with kafka_world(kafka, new_topic(kafka, max_message_bytes="2000")) as world:
        with pytest.raises(RemoteProtocolError, match="larger") as refused:
            await world.append("a", data=b"1" * 3000)
        assert refused.value.status == 413
        errors = []

        async def append(data: bytes) -> None:
            try:
                await world.append("a", "b", data=data)
            except RemoteProtocolError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for data in (b"1", b"2" * 3000, b"3"):
                nursery.start_soon(append, data)
        assert [error.status for error in errors] == [413]
        await world.handed_over(4)
        assert sorted(world.data) == [b"1", b"1", b"3", b"3"]


# Idempotency keys


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
async def test_a_key_that_comes_again_publishes_nothing(kafka: KafkaTopics, names: tuple[str, ...]) -> None:
    topic = new_topic(kafka, 2)
    key = idempotency_key()
    async with kafka_world(kafka, topic, shards=2) as one, kafka_world(kafka, topic, shards=2) as other:
        given = await one.append(*names, key=key)
        assert await one.append(*names, key=key) == given
        await other.handed_over(len(names))
        assert await other.append(*names, key=key) == given
        with pytest.raises(RemoteProtocolError, match="used for another request"):
            await other.append("z", key=idempotency_key(fingerprint=b"other"))
        await one.append("end{0}")
        await other.handed_over(len(names) + 1)
        assert sorted(other.topics) == sorted([*names, "end{0}"])
    async with kafka_world(kafka, topic, shards=2) as late:
        assert await late.append(*names, key=key) == given


async def test_who_uses_a_key_at_the_same_time_gets_the_same_answer(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic, cache_size=1) as one, kafka_world(kafka, topic) as other:
        answers = []

        async def append(world: KafkaWorld) -> None:
            answers.append(await world.append("a", key=idempotency_key()))

        async with trio.open_nursery() as nursery:
            for world in (one, other, one, other):
                nursery.start_soon(append, world)
        (end,) = await one.append("b")
        await other.handed_over(2)
        assert answers == [answers[0]] * 4
        assert other.topics == ["a", "b"]
        assert [event.id for event in await one.read_all("a", "b")] == [*answers[0], end]


# Sources


async def test_topics_of_other_programs_are_pushed(kafka: KafkaTopics) -> None:
    topic, orders, prices = new_topic(kafka), new_topic(kafka, 2), new_topic(kafka)
    write(kafka, orders, (b"before", b"0"))
    source = [
        {"kafka_topic": orders, "topic": "orders.{key}", "type": "order"},
        {"kafka_topic": prices, "topic": "prices.{key}", "header": "symbol", "type_header": "kind"},
    ]
    async with kafka_world(kafka, topic, source=source) as world:
        write(kafka, orders, (b"7", b'{"n":1}'), partition=1)
        await world.handed_over(1)
        write(kafka, prices, (None, b"up 3%"), headers={"symbol": b"X", "kind": b"quote"})
        await world.handed_over(2)
        await world.append("news")
        await world.handed_over(3)
        assert [(event.topic, event.type, event.data) for event in world.committed] == [
            ("orders.7", "order", b'{"n":1}'),
            ("prices.X", "quote", b'"up 3%"'),
            ("news", "message", b"1"),
        ]
        assert [event.data for event in await world.read_all("orders.before")] == [b"0"]
        assert [event.topic for event in await world.read_all("orders.*")] == ["orders.before", "orders.7"]
        assert world.log.shards_of(TopicSet(["news"])) == (0,)
        assert world.log.shards_of(TopicSet(["prices.Y", "news"])) == (0, 2000)
        assert world.log.shards_of(TopicSet([">"])) == (0, 1000, 1001, 2000)


async def test_records_that_hold_no_event_are_left_out(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    write(kafka, topic, (None, b"1"), (b"not a topic", b"1"), (b"a", b"\xff"), (b"a", b"2"), (b"a", None))
    async with kafka_world(kafka, topic, cache_size=1) as world:
        assert [event.data for event in await world.read_all("a")] == [b"2", b"null"]
        write(kafka, topic, (None, b"1"), (b"a", b"3"))
        await world.handed_over(1)
        assert world.log.statistics.left_out == 4
        assert [line for line in world.warnings if "left out" in line] == [
            "records of Kafka's are left out: data must be UTF-8: invalid start byte at byte 0"
        ]


async def test_what_other_programs_write_is_left_out_where_it_is_too_long(kafka: KafkaTopics) -> None:
    topic, source = new_topic(kafka), new_topic(kafka)
    records = (b"a", b"1"), (b"a", b"9" * 1025), (b"a", b"2"), (b"a", b"x" * 10**5), (b"a", b"3")
    write(kafka, source, *records)
    settings = {"source": [{"kafka_topic": source, "topic": "s.{key}"}], "publish": {"max_event": "1KiB"}}
    async with kafka_world(kafka, topic, cache_size=1, **settings) as world:
        write(kafka, source, *records)
        await world.handed_over(3)
        assert world.data == [b"1", b"2", b"3"]
        assert [event.data for event in await world.read_all("s.a")] == [b"1", b"2", b"3"] * 2
        assert world.log.statistics.left_out == 4
        assert [line for line in world.warnings if "left out" in line] == [
            "records of Kafka's are left out: its data is longer than publish.max_event, 1024 bytes"
        ]


async def test_a_source_that_is_gone_is_no_reason_to_take_nothing(kafka: KafkaTopics) -> None:
    topic, source = new_topic(kafka), new_topic(kafka)
    async with kafka_world(kafka, topic, source=[{"kafka_topic": source, "topic": "s.{key}"}]) as world:
        write(kafka, source, (b"a", b"1"))
        await world.handed_over(1)
        await trio.to_thread.run_sync(kafka.delete_topic, source)
        world.log.lost(Place(source, 0), "words")
        assert "a topic of other programs cannot be read: words" in world.warnings
        looked = world.log._statistics.reconnects
        world.log.failed("words")
        while world.log.statistics.reconnects == looked:
            await world.log._changed.park()
        await world.append("a", data=b"2")
        await world.handed_over(2)
        await trio.to_thread.run_sync(kafka.create_topic, source)
        write(kafka, source, (b"a", b"3"))
        await world.handed_over(3)
        assert world.data == [b"1", b"2", b"3"]
        assert world.log.problem is None


async def test_what_is_in_the_partition_of_other_topics_is_left_out(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka, 2)
    right = shard_of("a", 2)
    async with kafka_world(kafka, topic, shards=2) as world:
        write(kafka, topic, (b"a", b"1"), partition=1 - right)
        while not world.log.statistics.left_out:
            await world.log._changed.park()
        write(kafka, topic, (b"a", b"2"), partition=right)
        await world.handed_over(1)
        for events in (world.committed, await world.read_all("a"), await world.read_all(">")):
            assert [event.data for event in events] == [b"2"]


async def test_a_key_whose_window_ends_by_our_clock_alone(kafka: KafkaTopics) -> None:
    ahead = 0.0
    topic = new_topic(kafka, message_timestamp_type="LogAppendTime")
    config = kafka_config(kafka, topic, publish={"idempotency_window": "600s"})
    async with KafkaWorld(config, clock=lambda: time.time() + ahead).open() as world:
        first = await world.append("a", data=b"1", key=idempotency_key())
        ahead = 601.0
        assert await world.append("a", data=b"1", key=idempotency_key()) == first
        with pytest.raises(RemoteProtocolError, match="another request"):
            await world.append("a", data=b"2", key=idempotency_key(fingerprint=b"other"))
        assert world.data == [b"1"]


async def test_a_source_that_is_not_there(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, new_topic(kafka), source=[{"kafka_topic": "missing"}]))
    with pytest.raises(LogUnavailable, match=r"there is no topic missing$"):
        async with world.open():
            pass


# Opening


async def test_a_topic_that_is_not_there(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, "missing", shards=3))
    expected = "there is no topic missing: kafka-topics.sh --create --topic missing --partitions 3"
    before = open_descriptors()
    with pytest.raises(LogUnavailable, match=expected):
        async with world.open():
            pass
    await nothing_left(before)


async def test_too_few_partitions(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, new_topic(kafka, 2), shards=3))
    with pytest.raises(LogUnavailable, match=r"has 2 partitions, and log.shards is 3"):
        async with world.open():
            pass


async def test_settings_that_librdkafka_does_not_know(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, "any", kafka={"no.such": "thing"}))
    with pytest.raises(LogUnavailable, match=r'log.kafka: No such configuration property: "no.such"'):
        async with world.open():
            pass


async def test_it_is_a_log_before_it_is_open(kafka: KafkaTopics) -> None:
    log: Log = KafkaWorld(kafka_config(kafka, "any", shards=2)).log
    assert log.last_id == ShardedId({0: EventId(0, 0), 1: EventId(0, 0)})
    assert log.waits
    assert log.problem is None
    assert log.statistics.lags == {}
    with pytest.raises(LogUnavailable, match="not open"):
        await log.append([Draft("a", "message", b"1")])


async def test_it_opens_again(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, new_topic(kafka)))
    async with world.open():
        await world.append("a")
        await world.handed_over(1)
    async with world.open():
        await world.append("b")
        await world.handed_over(2)
        assert [event.topic for event in await world.read_all("a", "b")] == ["a", "b"]
        assert world.log.statistics.lags == {0: 0}


async def test_when_it_is_closed_nothing_is_left(kafka: KafkaTopics) -> None:
    world = KafkaWorld(kafka_config(kafka, new_topic(kafka)))
    before = open_descriptors()
    for _ in range(2):
        async with world.open():
            await world.append("a")
            await world.append("b", "c")
            await world.handed_over(3)
            await world.read_all("a", "b")
        await nothing_left(before)
        world.committed.clear()


async def test_a_look_that_finds_nothing_wrong_changes_nothing(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world:
        await world.append("a", data=b"1")
        await world.handed_over(1)
        place, topic_id = world.log._own[0].place, world.log._own[0].topic_id
        world.log.lost(place, "")
        world.log.seen(Seen({topic: Topic(topic_id, 1)}, {place: (0, 1)}))
        await world.append("a", data=b"2")
        await world.handed_over(2)
        # It is another topic, it seems; but who looks at it closely finds that it is not.
        world.log.seen(Seen({topic: Topic("another", 1)}, {}))
        await world.append("a", data=b"3")
        await world.handed_over(3)
        # It began before the others came.
        world.log.seen(Seen({topic: Topic(topic_id, 1)}, {place: (0, 1)}))
        await world.append("a", data=b"4")
        await world.handed_over(4)
        assert world.data == [b"1", b"2", b"3", b"4"]
        assert world.skipped == []


@pytest.mark.parametrize("is_seen", [False, True])
async def test_what_fails_late_tells_nothing_of_kafka_that_is_there_again(kafka: KafkaTopics, *, is_seen: bool) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world:
        threads = world.log._threads
        assert threads is not None
        jobs: list[Job] = []
        threads.publisher.submit = jobs.append  # type: ignore[method-assign]
        threads.watcher.look = lambda _=(): None  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                with pytest.raises(LogUnavailable, match="late"):
                    await world.append("a")

            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            if is_seen:
                world.log.seen(Seen({topic: Topic(world.log._own[0].topic_id, 1)}, {}))
            jobs[0].resolve(LogUnavailable("late"))
        assert world.log.problem == (None if is_seen else "late")


@pytest.mark.parametrize(("before", "behind"), [(10, 20), (20, 10)])
async def test_who_follows_a_log_that_began_anew_comes_to_its_end(
    before: int, behind: int, kafka: KafkaTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic(kafka)
    world = KafkaWorld(kafka_config(kafka, topic))
    hub = Hub(world.log, max_topic_bytes=10, max_event_bytes=10, wake=lambda: None)
    monkeypatch.setattr("tricast.log.kafka.incarnation_of", lambda *_: before)
    async with hub.open():
        (event_id,) = await world.append("a")
        while hub.last_id != event_id:
            await world.log._changed.park()
        place, topic_id = world.log._own[0].place, world.log._own[0].topic_id
        monkeypatch.setattr("tricast.log.kafka.incarnation_of", lambda *_: behind)
        world.log.lost(place, "")
        world.log.seen(Seen({topic: Topic(topic_id, 1)}, {place: (0, 0)}))
        found = await world.read("a", after=event_id)
        assert found.gap is not None
        while not found.complete:
            found = await world.read("a", after=found.upto)
        assert found.upto == hub.last_id == world.log.last_id


async def test_it_opens_while_others_write(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as other, trio.open_nursery() as nursery:

        async def write_on() -> None:
            while True:
                await other.append("a")

        for _ in range(10):
            nursery.start_soon(write_on)
        await other.handed_over(100)
        async with kafka_world(kafka, topic) as world:
            await world.handed_over(100)
        nursery.cancel_scope.cancel()


async def test_nothing_is_heard_after_it_is_closed(kafka: KafkaTopics) -> None:
    topic = new_topic(kafka)
    async with kafka_world(kafka, topic) as world:
        place = world.log._own[0].place
        event_id = await world.append("a", key=idempotency_key())
    world.log.seen(Seen({}, {}))
    world.log.lost(place, "")
    world.log.doubted("")
    world.log.ended("")
    world.log.deliver({})
    assert world.log.problem is None
    with pytest.raises(LogUnavailable, match="not open"):
        await world.append("a", key=idempotency_key())
    assert event_id
