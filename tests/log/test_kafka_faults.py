"""The log in Kafka when Kafka fails: what publishers are told, and that all who follow get everything, or are told."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing
from clocks import HANG_SECONDS
from confluent_kafka import KafkaError, KafkaException, Producer
from log.kafka_worlds import KafkaWorld, kafka_config, kafka_world, new_topic, nothing_left
from services import KafkaServer
from serving import open_descriptors

from engines.daemon import Port
from tricast.config import Config
from tricast.errors import LogUnavailable
from tricast.event import GapReason
from tricast.log.kafka_clients import Seen, Topic


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[KafkaServer]:
    """A Kafka of these tests' own; each leaves it whole."""
    with KafkaServer(config=["transaction.abort.timed.out.transaction.cleanup.interval.ms=500"]) as server:
        yield server


async def in_thread(function: object, *arguments: object) -> None:
    await trio.to_thread.run_sync(function, *arguments)  # type: ignore[arg-type]


async def refused(world: KafkaWorld) -> str:
    """Publishes until that fails, and then fails at once; returns why."""
    with suppress(LogUnavailable):
        while True:
            await world.append("a", data=b'"maybe"')
    with pytest.raises(LogUnavailable) as error:
        await world.append("a", data=b'"no"')
    assert world.log.problem == error.value.why
    return error.value.why


async def problem(world: KafkaWorld, text: str) -> None:
    """Returns when this is what is wrong."""
    while text not in (world.log.problem or ""):
        await world.log._changed.park()


async def recovered(world: KafkaWorld) -> None:
    """Returns when it can be published again."""
    while world.log.problem is not None:
        await world.log._changed.park()


async def test_a_broker_that_is_killed_and_comes_back(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with (
        kafka_world(own_kafka, topic, timeout="10s") as world,
        kafka_world(own_kafka, topic, timeout="10s") as other,
    ):
        acknowledged = [(await world.append("a", data=b"%d" % number))[0] for number in range(5)]
        await other.handed_over(5)
        await in_thread(own_kafka.kill)
        await refused(world)
        await problem(world, "refused")
        assert [event.id for event in (await other.read("a", after=acknowledged[1])).events] == acknowledged[2:]
        await in_thread(own_kafka.start)
        await recovered(world)
        await recovered(other)
        for number in range(5, 10):
            acknowledged += await world.append("a", data=b"%d" % number)
        while other.data[-1:] != [b"9"]:
            await other.handed_over(len(other.committed) + 1)
        ids = [event.id for event in other.committed]
        assert sorted(set(ids)) == ids  # in order, and each once
        assert set(ids) >= set(acknowledged)
        assert b'"no"' not in other.data
        assert other.skipped == []
        assert world.log.statistics.reconnects >= 1
        lines = [entry["event"] for entry in world.records.entries if entry["log_level"] != "debug"]
        assert lines[1:3] == ["the log is not available", "the log is available again"]


async def test_a_broker_that_stalls(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with kafka_world(own_kafka, topic, timeout="10s", cache_size=1) as world:
        (first,) = await world.append("a", data=b"0")
        await world.handed_over(1)
        own_kafka.pause()
        try:
            await refused(world)
            with pytest.raises(LogUnavailable):
                await world.read("a")
        finally:
            own_kafka.resume()
        await recovered(world)
        (last,) = await world.append("a", data=b"1")
        while world.data[-1:] != [b"1"]:
            await world.handed_over(len(world.committed) + 1)
        ids = [event.id for event in world.committed]
        assert sorted(set(ids)) == ids
        assert {first, last} <= set(ids)


async def test_a_batch_while_kafka_stalls(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with kafka_world(own_kafka, topic) as world:
        await world.append("a", "b")  # the first transaction of a Kafka takes its time
    async with kafka_world(own_kafka, topic, timeout="10s") as world:
        await world.append("a", "b")
        own_kafka.pause()
        try:
            with pytest.raises(LogUnavailable):
                await world.append("a", "b", data=b'"maybe"')
        finally:
            own_kafka.resume()
        await recovered(world)
        await world.append("a", "b", data=b"2")
        while world.data[-1:] != [b"2"]:
            await world.handed_over(len(world.committed) + 1)
        assert world.data.count(b'"maybe"') in (0, 2)
        assert world.data.count(b"2") == 2


async def test_another_broker_becomes_the_leader() -> None:
    with KafkaServer(brokers=3) as kafka:
        topic = new_topic(kafka, 1)
        async with kafka_world(kafka, topic, timeout="60s") as world, kafka_world(kafka, topic, timeout="60s") as other:
            acknowledged = []
            for number in range(30):
                acknowledged += await world.append("a", data=b"%d" % number)
                if number == 10:
                    await in_thread((await trio.to_thread.run_sync(kafka.leader_of, topic)).kill)
            await other.handed_over(30)
            assert [event.id for event in other.committed] == acknowledged
            assert other.data == [b"%d" % number for number in range(30)]
            assert world.log.problem is None
            assert (world.skipped, other.skipped) == ([], [])


async def test_retention_overtakes_who_reads_slowly(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    # Hardly anything is read ahead.
    slow = {"queued.max.messages.kbytes": "1", "queued.min.messages": "1", "max.partition.fetch.bytes": "1000"}
    async with kafka_world(own_kafka, topic) as world:
        settings = {"kafka": slow, "cache_size": 1}
        async with kafka_world(own_kafka, topic, **settings) as behind:
            (first,) = await world.append("a", data=b"0")
            await behind.handed_over(1)
            deliver, held = behind.log.deliver, []
            behind.log.deliver = held.append  # type: ignore[method-assign]
            ids = [(await world.append("a", data=b'"%s"' % (b"x" * 50_000)))[0] for _ in range(30)]
            await in_thread(own_kafka.delete_records, topic, 0, 25)
            behind.log.deliver = deliver  # type: ignore[method-assign]
            for found in held:
                deliver(found)
            await behind.has_skipped()
            await behind.log._own[0].reach(31)
            assert behind.committed[-1].id == ids[-1]
            handed_over = [event.id for event in behind.committed]
            assert sorted(set(handed_over)) == handed_over
            found = await behind.read("a", after=first)
            assert found.gap is not None
            assert (found.gap.reason, found.gap.resumed_at) == (GapReason.EVICTED, ids[23])
            assert [event.id for event in await behind.read_all("a", after=found.gap.resumed_at)] == ids[24:]
            assert any("dropped what was not read" in line for line in behind.warnings)


async def test_a_topic_that_is_made_anew(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with kafka_world(own_kafka, topic, timeout="10s") as world:
        ids = [(await world.append("a"))[0] for _ in range(5)]
        await world.handed_over(5)
        await in_thread(own_kafka.delete_topic, topic)
        await refused(world)
        await problem(world, "there is no topic")
        await in_thread(own_kafka.create_topic, topic)
        start = await world.has_skipped()
        await recovered(world)
        (new,) = await world.append("a", data=b"2")
        while world.data[-1:] != [b"2"]:
            await world.handed_over(len(world.committed) + 1)
        found = await world.read("a", after=ids[2])
        assert found.gap is not None
        assert (found.gap.reason, found.upto) == (GapReason.RESTARTED, start)
        assert [event.id for event in await world.read_all("a", after=found.upto)] == [new]


async def test_a_kafka_that_is_not_there() -> None:
    port = Port()
    world = KafkaWorld(Config.model_validate({"log": {"url": f"kafka://127.0.0.1:{port.number}/t", "timeout": "1s"}}))
    try:
        with pytest.raises(LogUnavailable, match=r"127.0.0.1"):
            async with world.open():
                pass
    finally:
        port.release()


async def test_a_process_that_is_gone_in_the_middle_of_a_batch(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with kafka_world(own_kafka, topic) as world:
        (first,) = await world.append("a", data=b"1")
        await world.handed_over(1)
        gone = Producer(
            {"bootstrap.servers": own_kafka.address, "transactional.id": "x", "transaction.timeout.ms": 3000}
        )
        await in_thread(gone.init_transactions, HANG_SECONDS)
        gone.begin_transaction()
        gone.produce(topic, b"2", b"a", 0)
        await in_thread(gone.flush, HANG_SECONDS)
        (second,) = await world.append("a", data=b"3")
        # It is acknowledged, and comes when Kafka has given up waiting for the other one.
        assert [event.id for event in await world.handed_over(2)] == [first, second]
        assert world.data == [b"1", b"3"]


async def test_kafka_has_lost_what_it_had(own_kafka: KafkaServer) -> None:
    topic = new_topic(own_kafka)
    async with kafka_world(own_kafka, topic) as world:
        ids = [(await world.append("a"))[0] for _ in range(5)]
        await world.handed_over(5)
        # As when a replica that was not in sync becomes the leader: a look finds less than was read.
        place = world.log._own[0].place
        world.log.lost(place, "")
        world.log.seen(Seen({topic: Topic(world.log._own[0].topic_id, 1)}, {place: (0, 3)}))
        start = await world.has_skipped()
        await world.append("a", data=b"2")
        while world.data[-1:] != [b"2"]:
            await world.handed_over(len(world.committed) + 1)
        found = await world.read("a", after=ids[1])
        assert found.gap is not None
        assert (found.gap.reason, found.upto) == (GapReason.RESTARTED, start)
        assert (await world.read_all("a", after=found.upto))[-1].data == b"2"


@pytest.mark.parametrize(
    ("thread", "error", "why"),
    [
        ("reader", KafkaException(KafkaError(KafkaError._FAIL, "out of luck")), "out of luck"),
        ("publisher", ValueError("out of luck"), "one of its threads has failed"),
    ],
)
async def test_a_thread_fails(
    thread: str, error: Exception, why: str, own_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = KafkaWorld(kafka_config(own_kafka, new_topic(own_kafka)))

    def fail() -> None:
        raise error

    async def follow() -> None:
        async with world.open():
            assert world.log._threads is not None
            monkeypatch.setattr(getattr(world.log._threads, thread), "_turn", fail)
            await trio.sleep_forever()

    with pytest.raises(LogUnavailable, match=why):
        await follow()
    assert f"the log has ended: {why}" in world.warnings


async def test_too_much_is_waiting(own_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.kafka._MAX_WAITING", 2)
    refusals = []

    async def append(world: KafkaWorld) -> None:
        try:
            await world.append("a")
        except LogUnavailable as error:
            refusals.append(error.why)

    async with kafka_world(own_kafka, new_topic(own_kafka), timeout="3s") as world:
        own_kafka.pause()
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(append, world)
        finally:
            own_kafka.resume()
        assert "too many publishes" in refusals[0]
        assert len(refusals) == 3
        await recovered(world)


async def test_opening_it_is_cancelled_while_kafka_stalls(own_kafka: KafkaServer) -> None:
    world = KafkaWorld(kafka_config(own_kafka, new_topic(own_kafka)))
    before = open_descriptors()
    own_kafka.pause()
    try:
        with trio.move_on_after(0.5) as scope:
            async with world.open():
                pass
        assert scope.cancelled_caught
    finally:
        own_kafka.resume()
    await nothing_left(before)
    async with world.open():  # and it can be used
        await world.append("a")
        await world.handed_over(1)


async def test_who_is_waiting_when_it_closes_is_told(own_kafka: KafkaServer) -> None:
    refusals = []

    async def append(world: KafkaWorld, *topics: str) -> None:
        try:
            await world.append(*topics)
        except LogUnavailable as error:
            refusals.append(error.why)

    async with trio.open_nursery() as nursery:
        async with kafka_world(own_kafka, new_topic(own_kafka), timeout="5s") as world:
            own_kafka.pause()
            nursery.start_soon(append, world, "a")
            nursery.start_soon(append, world, "a", "b")
            await trio.testing.wait_all_tasks_blocked()
        own_kafka.resume()
    assert refusals == ["the log is not open"] * 2
