"""Events that Redis only passes on: what each process remembers of them, and what it tells of what it missed."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from clocks import HANG_SECONDS
from log.redis_worlds import Swapped, parsed
from log.worlds import PLENTY, held
from services import PATIENT_MS, RedisCluster, RedisServer
from serving import capturing_logger, until
from structlog.testing import LogCapture

from tricast.config import Config, EventsSection, LogSection
from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, Position, ShardedId, TopicSet
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.redis_channel import ChannelShard
from tricast.log.redis_servers import Connection, Servers
from tricast.stores import log_of

KEY = IdempotencyKey(b"k", b"1", 600.0, 10)
TOPICS = TopicSet(["a", "b"])


class Process:
    """A process that shares the channel with others, as one of its own.

    Attributes:
        log: its side of it.
        events: what was handed over.
        skipped: the positions up to which it was told that something is missing.
        records: what it logged.
    """

    def __init__(self, url: str, *, answers_within: float = 20.0, **settings: Any) -> None:
        config = LogSection(
            url=url, delivery="pubsub", **{"timeout": "20s", "reconnect": "10ms", "reconnect_max": "100ms", **settings}
        )
        # A short timeout is for what Redis does not pass on.
        waiting = config.model_copy(update={"timeout": answers_within})
        self.records = LogCapture()
        self.log = ChannelShard(
            Servers(parsed(url), waiting),
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
    with trio.fail_after(HANG_SECONDS):
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
        assert process.log.waits


async def test_what_is_read_again_is_in_memory(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    start = process.log.last_id
    ids = await process.publish("1", "2", "3")
    await process.gets("3")
    found = await process.read(ids[0])
    assert [event.id for event in found.events] == ids[1:]
    assert (found.gap, found.complete) == (None, True)
    assert len((await process.read(BEGINNING)).events) == len((await process.read(start)).events) == 3


async def test_who_comes_from_before_the_process_began(redis: RedisServer, processes: Processes) -> None:
    first = await processes.begin(redis.url)
    (old,) = await first.publish("1")
    (seen,) = await first.publish("2")
    second = await processes.begin(redis.url)
    assert (await second.read(seen)).gap is None
    found = await second.read(old)
    assert found.gap is not None
    assert (found.gap.reason, found.gap.resumed_at) == (GapReason.RESTARTED, seen)
    await first.publish("3")
    await second.gets("3")
    assert second.data() == ["3"]


async def test_who_comes_from_a_process_that_is_ahead(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    for number in range(20):
        (told,) = await one.publish(str(number))
        found = await other.read(told)
        assert (found.gap, found.upto) == (None, told)
    assert other.data() == [str(number) for number in range(20)]


async def test_positions_that_never_were(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    for position in (EventId(9 * 10**12, 0), ShardedId({0: BEGINNING})):
        found = await process.read(position)
        assert found.gap is not None
        assert found.gap.reason == GapReason.UNKNOWN_ID


async def test_what_was_published_before_is_not_published_again(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    ids = await one.publish("1", "2", key=KEY)
    assert await other.publish("1", "2", key=KEY) == ids
    with pytest.raises(RemoteProtocolError, match="another request"):
        await other.publish("1", "2", key=KEY._replace(fingerprint=b"2"))
    await other.publish("3", key=KEY._replace(name=b"l"))
    await one.gets("1", "2", "3")
    assert one.data() == ["1", "2", "3"]


async def test_the_same_key_several_times_at_once(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    answers: list[object] = []

    async def publish(key: IdempotencyKey) -> None:
        try:
            answers.append(tuple(await process.publish("1", key=key)))
        except RemoteProtocolError as error:
            answers.append(error.code)

    async with trio.open_nursery() as nursery:
        for key in (KEY, KEY, KEY._replace(fingerprint=b"2"), KEY._replace(name=b"l")):
            nursery.start_soon(publish, key)
    await until(lambda: len(process.events) >= 2)
    assert len(process.events) == 2
    assert len(answers) == 4
    assert answers.count("idempotency-key-reused") in (1, 2)  # as they come, one of the two contents is the first


async def test_databases_have_channels_of_their_own(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(f"{redis.url}/1")
    await one.publish("1")
    await other.publish("2")
    await one.publish("3")
    await one.gets("1", "3")
    await other.gets("2")
    assert one.said() == other.said() == []


async def test_events_are_what_they_were(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    drafts = [Draft("ü", "of mine", b'"\xc3\xbc"'), Draft("a", "message", b"1" * 2**20), Draft("a.b", "x", b"0")]
    ids = await one.log.append(drafts)
    await until(lambda: len(other.events) == 3)
    assert other.events == [Event(event_id, *draft) for event_id, draft in zip(ids, drafts, strict=True)]


async def test_thousands_at_once(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    async with trio.open_nursery() as nursery:
        for number in range(3000):
            nursery.start_soon(one.publish, str(number))
    await until(lambda: len(other.events) == 3000)
    assert one.events == other.events
    assert sorted(event.id for event in other.events) == [event.id for event in other.events]
    assert other.skipped == []


@pytest.mark.parametrize("shards", [1, 3])
async def test_the_log_that_a_configuration_asks_for(redis: RedisServer, shards: int) -> None:
    section = {"url": redis.url, "delivery": "pubsub", "shards": shards}
    log = log_of(Config(log=LogSection(**section)), capturing_logger(LogCapture()))
    events: list[Event] = []
    with trio.fail_after(HANG_SECONDS):
        async with log.open(events.extend):
            assert (log.shards_of(TOPICS) is None) is (shards == 1)
            for number in range(9):
                await log.append([Draft(f"t{number}", "message", b"1")])
            await until(lambda: len(events) == 9)
            assert len({tuple(log.shards_of(TopicSet([f"t{number}"])) or ()) for number in range(9)}) == shards
            assert (await log.read(TOPICS, log.last_id, max_bytes=PLENTY)).gap is None
            if shards > 1:
                with pytest.raises(RemoteProtocolError, match="kept together"):
                    await log.append([Draft(f"t{number}", "message", b"1") for number in range(9)])


async def test_more_than_may_wait(redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.redis_appends._MAX_WAITING", 3)
    process = await processes.begin(redis.url)
    refused = []

    async def publish() -> None:
        try:
            await process.publish("1")
        except LogUnavailable as error:
            refused.append(error.why)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(publish)
    assert refused == ["too many publishes are waiting for Redis"] * 2


async def test_what_others_publish_there(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    for text in ("", "hello", "1-1 1-2 1\nx", f"1-1 1-2 {2**40}\n", f"{process.log.last_id} 1-9 x\n"):
        redis.execute("PUBLISH", channel(redis), text)
    await process.publish("1")
    await process.gets("1")
    assert len(process.events) == 1


def channel(redis: RedisServer) -> bytes:
    (found,) = redis.execute("PUBSUB", "CHANNELS")
    assert isinstance(found, bytes)
    return found


# When it fails


async def away_and_back(process: Process) -> None:
    await until(lambda: "the log is available again" in process.said())
    assert process.said() == ["the log is not available", "the log is available again"]
    process.records.entries.clear()
    assert process.log.problem is None


async def test_a_lost_connection_with_nothing_missed(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    (told,) = await process.publish("1")
    await process.gets("1")
    redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
    await away_and_back(process)
    await process.publish("2")
    await process.gets("1", "2")
    assert process.skipped == []
    assert (await process.read(told)).gap is None
    assert process.log.statistics.reconnects > 0


async def test_what_was_published_while_the_connection_was_lost(redis: RedisServer, processes: Processes) -> None:
    one = await processes.begin(redis.url)
    other = await processes.begin(redis.url)
    servers = other.log._servers = Swapped(redis.url)
    told, missed = await one.publish("1"), []
    await other.gets("1")
    for number in range(3):
        servers.is_cut = True
        redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: other.log.problem is not None)
        await away_and_back(one)
        missed += await one.publish("missed")
        assert other.log.problem is not None
        servers.is_cut = False
        await away_and_back(other)
        told += await one.publish(f"told {number}")
        await other.gets(f"told {number}")
        assert other.skipped == missed
    # Each gap comes before what follows upon it.
    for after, upto, behind in zip(told, missed, told[1:], strict=False):
        assert await other.read(after) == Slice([], Gap(GapReason.RESTARTED, after, upto), upto, complete=False)
        found = await other.read(upto)
        assert found.events[0].id == behind
    assert (found.gap, found.complete) == (None, True)
    assert one.skipped == []


async def test_not_all_losses_of_a_connection_are_remembered(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast.log.redis_channel._MAX_STARTS", 2)
    process = await processes.begin(redis.url)
    positions = [process.log.last_id]
    for _ in range(4):
        process.log._leap(EventId(positions[-1].ms, positions[-1].counter + 1), is_own=True)
        positions.append(process.log.last_id)
    assert list(process.log._starts) == positions[-2:]
    for after in positions[:-1]:
        found = await process.read(after)
        assert found.gap is not None
        assert found.gap.resumed_at in positions[2:]


async def test_redis_is_restarted_with_what_it_has_of_its_data(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    await one.publish("1")
    await other.gets("1")
    redis.kill()
    await until(lambda: one.log.problem is not None and other.log.problem is not None)
    with pytest.raises(LogUnavailable):
        await one.publish("lost")
    redis.start()
    await away_and_back(one)
    await away_and_back(other)
    await one.publish("2")
    await other.gets("1", "2")
    assert one.skipped
    assert other.skipped


async def test_redis_that_lost_its_data(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    (told,) = await one.publish("1")
    await other.gets("1")
    redis.restart(keep_data=False)
    await away_and_back(one)
    await away_and_back(other)
    (after,) = await one.publish("2")
    assert after > told
    for process in (one, other):
        await process.gets("1", "2")
        assert len(process.skipped) >= 1
        found = await process.read(told)
        assert found.gap is not None
        assert found.gap.reason == GapReason.RESTARTED


async def test_data_that_are_deleted_while_all_are_connected(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url, timeout="60s"), await processes.begin(redis.url, timeout="60s")
    await one.publish("1")
    await other.gets("1")
    redis.execute("FLUSHALL")
    with pytest.raises(LogUnavailable, match="anew"):
        await one.publish("2")
    await away_and_back(one)
    await one.publish("3")
    await other.gets("1", "3")
    assert len(one.skipped) == len(other.skipped) == 1
    assert other.said() == []


async def test_deleted_data_are_noticed_by_who_only_listens(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, timeout="2s")
    redis.execute("FLUSHALL")
    await away_and_back(process)
    assert len(process.skipped) == 1


async def test_a_failover_that_lost_what_was_acknowledged(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url), await processes.begin(redis.url)
    (key,) = redis.execute("KEYS", "*:position")
    await one.publish("1")
    before = redis.execute("GET", key)
    (acknowledged,) = await one.publish("2")
    await other.gets("1", "2")
    redis.execute("SET", key, before)
    redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
    await away_and_back(one)
    await away_and_back(other)
    (after,) = await other.publish("3")
    assert after > acknowledged
    await one.gets("1", "2", "3")
    assert one.skipped
    assert other.skipped


async def test_positions_that_go_back_while_all_are_connected(redis: RedisServer, processes: Processes) -> None:
    one, other = await processes.begin(redis.url, timeout="60s"), await processes.begin(redis.url, timeout="60s")
    (key,) = redis.execute("KEYS", "*:position")
    before = redis.execute("GET", key)
    (told,) = await one.publish("1")
    await other.gets("1")
    redis.execute("SET", key, before)
    position, _ = before.split()
    redis.execute("PUBLISH", channel(redis), position + b" " + position + b" 0\nmark")
    await away_and_back(one)
    await away_and_back(other)
    (after,) = await one.publish("2")
    await other.gets("1", "2")
    assert after > told


async def test_what_does_not_come_in(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, timeout="2s")
    (key,) = redis.execute("KEYS", "*:position")
    _, server = redis.execute("GET", key).split()
    redis.execute("SET", key, b"9000000000000-7 " + server)
    await away_and_back(process)
    assert process.skipped == [EventId(9000000000000, 7)]
    assert process.log.last_id == EventId(9000000000000, 7)


async def test_redis_that_stands_still(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, answers_within=10.0, timeout="10s")
    (told,) = await process.publish("1")
    redis.pause()
    with pytest.raises(LogUnavailable):
        await process.publish("2")
    with pytest.raises(LogUnavailable):
        await process.publish("3")
    with pytest.raises(LogUnavailable):
        await process.read(EventId(9 * 10**12, 0))
    assert [event.data for event in (await process.read(BEGINNING)).events] == [b"1"]
    redis.resume()
    await until(lambda: process.log.problem is None)
    (after,) = await process.publish("4")
    await process.gets("4")
    found = await process.read(told)
    # What stood still may have been passed on in the end, to nobody.
    assert found.gap is not None or [event.id for event in found.events] == [after]


async def test_redis_that_has_no_room(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    redis.execute("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(LogUnavailable, match="maxmemory"):
        await process.publish("1")
    await until(lambda: "maxmemory" in (process.log.problem or ""))
    redis.execute("CONFIG", "SET", "maxmemory", 0)
    await away_and_back(process)
    await process.publish("2")
    await process.gets("2")
    assert process.skipped == []


async def test_no_redis_at_the_start() -> None:
    process = Process("redis://127.0.0.1:1")
    with pytest.raises(LogUnavailable, match="Connection refused"):
        async with process.log.open(process.events.extend):
            pass
    with pytest.raises(LogUnavailable, match="not open"):
        await process.publish("1")


async def test_a_subscription_to_which_nothing_comes(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "send_command", lambda *_: None)
    process = Process(redis.url, timeout="2s")
    with trio.fail_after(HANG_SECONDS), pytest.raises(LogUnavailable, match="does not pass on"):
        async with process.log.open(process.events.extend):
            pass


async def test_nobody_has_to_listen_to_what_is_skipped(redis: RedisServer) -> None:
    process = Process(redis.url)
    with trio.fail_after(HANG_SECONDS):
        async with process.log.open(process.events.extend):
            redis.restart(keep_data=False)
            await away_and_back(process)


async def test_a_test_of_it_that_fails(redis: RedisServer) -> None:
    process = Process(redis.url)
    with pytest.raises(KeyError, match="mine"):
        async with process.log.open(process.events.extend):
            raise KeyError("mine")


# Several servers


@pytest.fixture(scope="module")
def cluster() -> Any:
    with RedisCluster(replicas=1, node_timeout_ms=PATIENT_MS) as service:
        yield service


async def test_in_a_cluster_it_is_sharded_pub_sub(cluster: RedisCluster, processes: Processes) -> None:
    one, other = await processes.begin(cluster.url), await processes.begin(cluster.url)
    await one.publish("1", key=KEY)
    await other.gets("1")
    assert [len(node.execute("PUBSUB", "SHARDCHANNELS")) for node in cluster.masters].count(1) == 1


async def test_a_cluster_that_fails_over(cluster: RedisCluster, processes: Processes) -> None:
    one, other = await processes.begin(cluster.url), await processes.begin(cluster.url)
    await one.publish("1")
    await other.gets("1")
    owner = next(node for node in cluster.masters if node.execute("PUBSUB", "SHARDCHANNELS"))
    (replica,) = cluster.replicas_of(owner)
    await trio.to_thread.run_sync(cluster.promote, replica)
    await until(lambda: one.log.problem is None and other.log.problem is None)
    await until(lambda: "the log is available again" in one.said() and "the log is available again" in other.said())
    await one.publish("2")
    await other.gets("1", "2")
    assert one.skipped
    assert other.skipped
