"""The log in Redis streams: several processes on one Redis, what is kept, and what is told about what is not."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from log.redis_worlds import KEYS, Process, Processes, just_before
from log.worlds import ids_of
from services import RedisServer
from serving import until

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Event, EventId, Gap, GapReason, ShardedId, TopicSet
from tricast.log import redis as redis_module
from tricast.log import redis_appends, redis_history, redis_scripts, redis_stream
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.redis_servers import slot_of
from tricast.log.redis_stream import keys_of
from tricast.log.sharded import shard_of
from tricast.log.window import Window

KEY = IdempotencyKey(b"k", b"1", 600.0, 10)


@pytest.fixture
def scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply has one entry, so that everything happens with few events."""
    monkeypatch.setattr(redis_stream, "REPLY_BYTES", 1)
    monkeypatch.setattr(redis_module, "REPLY_BYTES", 1)


def one_entry_a_node(redis: RedisServer) -> None:
    redis.execute("CONFIG", "SET", "stream-node-max-entries", 1)


# Appending


async def test_it_is_empty_but_for_its_beginning(redis: RedisServer, process: Process) -> None:
    assert process.log.problem is None
    assert process.log.waits
    assert process.log.shards_of(TopicSet(["a"])) is None
    assert await process.read("a") == Slice([], None, process.log.last_id, complete=True)
    assert redis.execute("XLEN", KEYS.log) == 1


async def test_what_is_appended_comes_to_all_in_one_order(redis: RedisServer, processes: Processes) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]

    async def append(process: Process, name: str) -> None:
        for number in range(50):
            await process.append(f"a.{name}", data=b"%d" % number)

    async with trio.open_nursery() as nursery:
        for process, name in zip(both, "xy", strict=True):
            nursery.start_soon(append, process, name)
    for process in both:
        await until(lambda process=process: len(process.committed) == 100)  # type: ignore[misc]
    assert both[0].committed == both[1].committed
    ids = ids_of(both[0].committed)
    assert ids == sorted(set(ids))
    for name in "xy":
        found = [event.data for event in both[0].committed if event.topic == f"a.{name}"]
        assert found == [b"%d" % number for number in range(50)]


async def test_an_event_is_as_it_was_published(process: Process) -> None:
    (first,) = await process.append("a.ä", data='{"ö":"\\u0000 \n"}'.encode(), kind="kind of it")
    second, third = await process.append("b", "c", data=b"2")
    await process.came_to(third)
    assert process.committed == [
        Event(first, "a.ä", "kind of it", '{"ö":"\\u0000 \n"}'.encode()),
        Event(second, "b", "message", b"2"),
        Event(third, "c", "message", b"2"),
    ]


async def test_ids_of_a_batch_are_neighbours(process: Process) -> None:
    ids = await process.append(*["a"] * 700)
    assert ids == [EventId(ids[0].ms, ids[0].counter + number) for number in range(700)]
    await process.came_to(ids[-1])
    assert ids_of(process.committed) == ids


async def test_those_who_publish_at_the_same_time_share_a_step(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    scripts = 0
    append, run = redis_stream.append, redis_stream.APPEND.run

    async def counting(redis: Any, streams: Any, length: int, batches: Sequence[Any]) -> Any:
        steps.append(len(batches))
        return await append(redis, streams, length, batches)

    async def running(*arguments: Any) -> Any:
        nonlocal scripts
        scripts += 1
        return await run(*arguments)

    monkeypatch.setattr(redis_stream, "append", counting)
    monkeypatch.setattr(redis_stream.APPEND, "run", running)
    async with trio.open_nursery() as nursery:
        for _ in range(600):
            nursery.start_soon(process.append, "a")
        for _ in range(3):
            nursery.start_soon(lambda: process.append("a", data=b"1" * 2**19))
    await until(lambda: len(process.committed) == 603)
    assert sum(steps) == 603
    assert max(steps) <= 500
    assert 3 <= len(steps) == scripts <= 5


async def test_too_much_that_waits_is_refused(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MAX_WAITING", "_MAX_WAITING_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(redis_appends, name, 0)
            with pytest.raises(LogUnavailable, match="too many publishes"):
                await process.append("a")
    await process.append("a")


async def test_an_append_that_is_cancelled_leaves_all_as_it_was(process: Process) -> None:
    with trio.move_on_after(0):
        await process.append("a", data=b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.append, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    (last,) = await process.append("a", data=b"2")
    await process.came_to(last)
    assert process.committed[-1].data == b"2"
    assert not process.shard._appends._unanswered
    assert process.shard._appends._size == 0


async def test_a_log_that_is_not_open_takes_nothing(redis: RedisServer) -> None:
    process = Process(redis.url)
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="not open"):
            await process.append("a")
        async with process.open():
            await process.append("a")
    assert process.log.problem == "the log is not open"
    with pytest.raises(LogUnavailable, match="not open"):
        await process.append("a")


async def test_what_is_raised_in_its_scope_leaves_it_as_it_is(redis: RedisServer) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Process(redis.url).open():
            raise KeyError("mine")


async def test_it_needs_a_redis(redis: RedisServer) -> None:
    redis.kill()
    with pytest.raises(LogUnavailable, match="no connection to Redis"):
        async with Process(redis.url).open():
            raise AssertionError


# Idempotency keys


async def test_a_key_that_comes_again_gets_the_first_answer_everywhere(
    redis: RedisServer, processes: Processes
) -> None:
    first, second = [await processes.begin(redis.url) for _ in range(2)]
    ids = await first.append("a", "b", key=KEY)
    assert await second.append("a", "b", key=KEY) == ids
    assert len(await second.ids(">")) == 2


async def test_copies_at_the_same_time_are_appended_once(process: Process) -> None:
    found = []

    async def append() -> None:
        found.append(await process.append("a", key=KEY))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(append)
    assert found == [found[0]] * 10
    assert await process.ids("a") == found[0]


async def test_a_key_that_was_used_for_something_else(process: Process) -> None:
    await process.append("a", key=KEY)
    for fingerprint in (b"2", b""):
        with pytest.raises(RemoteProtocolError, match="used for another request"):
            await process.append("a", key=KEY._replace(fingerprint=fingerprint))
    assert len(await process.ids("a")) == 1


async def test_keys_are_forgotten_after_their_time(redis: RedisServer, process: Process) -> None:
    short = KEY._replace(window=0.05)
    first = await process.append("a", key=short)
    await until(lambda: now_ms(redis) > first[0].ms + 51)
    second = await process.append("a", key=short)
    assert second != first
    await until(lambda: now_ms(redis) > second[0].ms + 51)
    await process.append("a", key=short._replace(name=b"other"))
    assert redis.execute("HKEYS", KEYS.keys) == redis.execute("ZRANGE", KEYS.keyed, 0, -1) == [b"other"]


async def test_of_too_many_keys_the_oldest_are_forgotten(redis: RedisServer, process: Process) -> None:
    few = KEY._replace(max_keys=3)
    ids = []
    for number in range(5):
        (last,) = await process.append("a", key=few._replace(name=b"%d" % number))
        ids.append(last)
        await until(lambda last=last: now_ms(redis) > last.ms)  # type: ignore[misc]
    assert sorted(redis.execute("HKEYS", KEYS.keys)) == [b"2", b"3", b"4"]  # type: ignore[arg-type]
    assert await process.append("a", key=few._replace(name=b"4")) == ids[-1:]
    assert await process.append("a", key=few._replace(name=b"0")) != ids[:1]


def now_ms(redis: RedisServer) -> int:
    seconds, micros = redis.execute("TIME")  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


# Reading


async def test_memory_answers_without_redis(redis: RedisServer, process: Process) -> None:
    ids = await process.append("a", "b", "a", "a.b")
    await process.came_to(ids[-1])
    redis.kill()
    assert await process.ids("a") == [ids[0], ids[2]]
    assert await process.ids("a", "b", after=ids[0]) == [ids[1], ids[2]]
    assert await process.ids(">", after=ids[1]) == ids[2:]
    found = await process.read("a", after=EventId(1, 0))  # before it began
    start = process.shard._state.start
    assert found == Slice([], Gap(GapReason.RESTARTED, EventId(1, 0), start), start, complete=False)
    assert await process.ids("a", after=start) == [ids[0], ids[2]]


async def test_a_process_that_comes_later_has_what_was_before(redis: RedisServer, processes: Processes) -> None:
    first = await processes.begin(redis.url)
    ids = await first.append(*["a", "b"] * 100)
    second = await processes.begin(redis.url)
    assert second.committed == []
    assert second.log.last_id == ids[-1]
    redis.kill()
    assert await second.ids("a") == ids[::2]
    assert await second.ids("b", after=ids[100]) == ids[101::2]


@pytest.mark.usefixtures("scattered")
async def test_what_memory_does_not_hold_is_read_from_redis(redis: RedisServer, processes: Processes) -> None:
    first = await processes.begin(redis.url)
    ids = await first.append(*["a", "b", "c"] * 20)
    second = await processes.begin(redis.url, cache_size=5000)
    for process in (first, second):
        await process.came_to(ids[-1])
        assert await process.ids("a", "c") == [each for number, each in enumerate(ids) if number % 3 != 1]
        assert await process.ids(">", after=ids[10]) == ids[11:]
        assert await process.ids("b", after=ids[-2]) == []
        assert await process.ids("none") == []
        assert await process.ids("n.*") == []
    assert second.log.statistics.reads.sum > 0


@pytest.mark.usefixtures("scattered")
async def test_incomplete_slices_from_redis(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await processes.begin(redis.url, cache_size=1)
    ids = await process.append(*["a", "b"] * 5)
    await process.came_to(ids[-1])
    size = process.committed[0].size
    found = await process.read("a", after=ids[0], max_bytes=2 * size)
    assert (ids_of(found.events), found.gap, found.upto, found.complete) == ([ids[2], ids[4]], None, ids[4], False)
    found = await process.read("a", after=ids[0], max_bytes=1)
    assert (ids_of(found.events), found.upto) == ([ids[2]], ids[2])
    monkeypatch.setattr(redis_history, "MAX_SCAN", 3)
    found = await process.read("a", after=ids[0])
    assert (ids_of(found.events), found.upto, found.complete) == ([ids[2]], ids[3], False)
    monkeypatch.setattr(redis_history, "_MAX_SCAN_BYTES", 1)
    found = await process.read("a", after=ids[0])
    assert (found.events, found.upto, found.complete) == ([], ids[1], False)


async def test_a_position_of_another_log(process: Process) -> None:
    (last,) = await process.append("a")
    await process.came_to(last)
    for position in (EventId(last.ms + 10**9, 0), ShardedId({0: last})):
        assert await process.read("a", after=position) == Slice(
            (), Gap(GapReason.UNKNOWN_ID, position, last), last, complete=True
        )


async def test_a_position_that_was_told_by_a_process_that_is_further(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "_MOMENT", 0.0)
    first, second = [await processes.begin(redis.url) for _ in range(2)]
    for _ in range(20):
        (told,) = await first.append("a")
        assert await second.read("a", after=told) == Slice([], None, told, complete=True)


async def test_a_process_that_does_not_come_so_far(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await processes.begin(redis.url)
    (last,) = await process.append("a")
    await process.came_to(last)
    redis.execute("HSET", KEYS.meta, "last", f"{last.ms + 1}-0")  # as if it was there, and did not come
    with process.impatient(), pytest.raises(LogUnavailable, match="not come so far"):
        await process.read("a", after=EventId(last.ms + 1, 0))


# What is dropped


async def test_what_is_trimmed_is_a_gap_to_those_whom_it_concerns(redis: RedisServer, processes: Processes) -> None:
    one_entry_a_node(redis)
    first = await processes.begin(redis.url, length=10)
    (begin,) = await first.append("quiet")
    await until(lambda: now_ms(redis) > begin.ms)
    ids = await first.append(*["busy"] * 20)
    second = await processes.begin(redis.url, length=10)
    for topics in (["busy"], ["b*", "busy"], ["*"], ["quiet", "busy"]):
        found = await second.read(*topics, after=begin)
        assert found == Slice(
            found.events, Gap(GapReason.EVICTED, begin, just_before(ids[10])), ids[-1], complete=True
        ), topics
        assert ids_of(found.events) == ids[10:]
    # Not even where it stands exactly at its last event, and nothing of it is kept.
    for topics in (["quiet"], ["quiet.>"], ["none"]):
        assert await second.read(*topics, after=begin) == Slice([], None, ids[-1], complete=True)
    assert (await second.read("quiet", after=EventId(begin.ms, 10**18))).gap is None
    assert await second.ids("busy") == ids[10:]
    assert (await second.read("busy", after=ids[10])).gap is None
    assert (await second.read("quiet", after=EventId(begin.ms - 10**6, 0))).gap == Gap(
        GapReason.RESTARTED, EventId(begin.ms - 10**6, 0), just_before(ids[10])
    )


async def test_the_process_that_saw_it_has_more(redis: RedisServer, processes: Processes) -> None:
    one_entry_a_node(redis)
    process = await processes.begin(redis.url, length=10)
    ids = [*(await process.append(*["a", "b"] * 5)), *(await process.append(*["c"] * 9))]
    await process.came_to(ids[-1])
    found = await process.read("a", after=ids[0])
    assert (ids_of(found.events), found.gap) == (ids[2:10:2], None)


async def test_of_too_many_topics_some_are_forgotten(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_entry_a_node(redis)
    text = redis_scripts.APPEND._text.decode().replace("MAX_TOPICS, COUNTERS = 100000", "MAX_TOPICS, COUNTERS = 2")
    monkeypatch.setattr(redis_stream, "APPEND", redis_scripts.Script(text))
    first = await processes.begin(redis.url, length=2)
    ids = [(await first.append(name))[0] for name in ("a", "b", "c", "d", "e")]
    assert redis.execute("ZRANGE", KEYS.topics, 0, -1) == [b"d", b"e"]
    second = await processes.begin(redis.url, length=2, cache_size=1)
    # Whether there was one of it behind its last one is not known any more.
    assert (await second.read("a", after=ids[0])).gap == Gap(GapReason.EVICTED, ids[0], just_before(ids[3]))
    assert (await second.read("b", after=ids[2])).gap is None


async def test_a_pattern_in_a_log_of_many_topics(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_entry_a_node(redis)
    monkeypatch.setattr(redis_stream, "MAX_NEWER", 3)
    first = await processes.begin(redis.url, length=2)
    (begin,) = await first.append("z")
    await first.append("a", "b")
    ids = await first.append("c", "d", "e")
    second = await processes.begin(redis.url, length=2, cache_size=1)
    text = redis_scripts.LOOK._text.decode().replace("MAX_NEWER = 1000", "MAX_NEWER = 3")
    monkeypatch.setattr(redis_stream, "LOOK", redis_scripts.Script(text))
    assert (await second.read("z.*", after=begin)).gap == Gap(GapReason.EVICTED, begin, just_before(ids[1]))
    assert (await second.read("z.*", after=ids[0])).gap is None


async def test_old_events_go(redis: RedisServer, processes: Processes) -> None:
    first = await processes.begin(redis.url, events={"history_age": "200ms"})
    (old,) = await first.append("a")
    (quiet,) = await first.append("b")
    await until(lambda: redis.execute("XLEN", KEYS.log) == 0)
    for process in (first, await processes.begin(redis.url, cache_size=1)):
        assert process.log.last_id == quiet
        assert await process.read("a", "b") == Slice([], None, quiet, complete=True)
        assert (await process.read("a", after=quiet)).gap is None
        assert (await process.read("b", after=EventId(old.ms - 10**6, 0))).gap is not None
        assert (await process.read("b", after=old)).gap in (None, Gap(GapReason.EVICTED, old, quiet))
        assert (await process.read("a", after=old)).gap is None
    first.shard._age = 3600.0  # what is new is not old before it is read
    (new,) = await first.append("a")
    assert await first.ids("a") == [new]


# Shards


async def test_topics_are_spread_over_shards(redis: RedisServer, processes: Processes) -> None:
    both = [await processes.begin(redis.url, shards=4) for _ in range(2)]
    names = [f"a.{number}" for number in range(20)]
    for name in names:
        await both[0].append(name)
    for process in both:
        await until(lambda process=process: len(process.committed) == 20)  # type: ignore[misc]
        assert sorted(event.topic for event in process.committed) == sorted(names)
    lengths = [redis.execute("XLEN", keys_of("tricast", number, 4).log) for number in range(4)]
    assert sum(lengths) == 24  # type: ignore[arg-type]
    assert min(lengths) > 1  # type: ignore[type-var]
    found = await both[1].read("a.*")
    assert sorted(event.topic for event in found.events) == sorted(names)
    assert both[1].log.statistics is not both[0].log.statistics


async def test_a_batch_over_several_shards_is_one_step(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, shards=4)
    topics = [f"a.{number}" for number in range(20)]
    ids = await process.append(*topics, key=KEY)
    assert [next(iter(each.parts)) for each in ids] == [shard_of(topic, 4) for topic in topics]
    assert [str(each) for each in await process.append(*topics, key=KEY)] == [str(each) for each in ids]
    with pytest.raises(RemoteProtocolError, match="used for another request"):
        await process.append(*topics, key=KEY._replace(fingerprint=b"2"))
    await until(lambda: len(process.committed) == 20)
    assert sorted(event.topic for event in process.committed) == sorted(topics)
    redis.execute("DEL", keys_of("tricast", 3, 4).log)
    with pytest.raises(LogUnavailable, match="began anew"):
        await process.append(*topics)
    assert sum(redis.execute("XLEN", keys_of("tricast", number, 4).log) for number in range(3)) < 24  # type: ignore[misc]


def test_in_a_cluster_no_batch_is_over_several_shards() -> None:
    process = Process("redis+cluster://localhost:1", shards=4)
    assert process.log._log._append_all is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("shards", [1, 2, 3, 16, 256])
def test_the_keys_of_shards_are_spread_over_the_slots(shards: int) -> None:
    for number in range(shards):
        keys = keys_of("name", number, shards)
        (slot,) = {slot_of(key) for key in keys}
        assert slot * shards // 16384 == number
    assert keys_of("name", 0, 1).log.startswith(b"name:{1.0.")


@pytest.mark.parametrize(
    ("topic", "what"),
    [("a.b", "a.b"), ("a.{7}.b", "7"), ("a.{}.b", "a.{}.b"), ("a.{7", "a.{7"), ("{ä}.{b}", "ä"), ("}{x}", "x")],
)
def test_what_of_a_topic_says_which_shard_it_is_in(topic: str, what: str) -> None:
    assert {shard_of(topic, shards) - shard_of(what, shards) for shards in range(1, 50)} == {0}


async def test_redis_throws_away_what_it_knows_of_topics(redis: RedisServer, processes: Processes) -> None:
    one_entry_a_node(redis)
    first = await processes.begin(redis.url, length=10)
    ids = await first.append(*["a", "b"] * 10)
    second = await processes.begin(redis.url, length=10, cache_size=1)
    redis.execute("DEL", KEYS.topics)
    assert await second.ids("a", after=ids[11]) == ids[12::2]
    assert (await second.read("c", after=ids[0])).gap is not None
    (last,) = await first.append("b")
    await second.came_to(last)
    assert await second.ids("a", after=ids[11]) == ids[12::2]
    assert await second.ids("a") == ids[12::2]
    assert (await second.read("c", after=ids[0])).gap is not None
    assert (await second.read("c", after=ids[-1])).gap is None


def test_landmarks_and_what_a_window_holds() -> None:
    window = Window(start=EventId(0, 1), history=1000, max_size=10**9)
    assert list(window.landmarks()) == []
    assert not window.holds(EventId(1, 0))
    window.keep([Event(EventId(number, 0), "a", "message", b"1") for number in range(1, 301)], oldest=EventId(101, 0))
    marks = [position.ms for position in window.landmarks()]
    assert marks == [*range(300, 236, -1), *range(236, 108, -2), 108, 104]
    assert window.holds(EventId(101, 0))
    assert window.holds(EventId(300, 0))
    for position in (EventId(100, 0), EventId(200, 1), EventId(301, 0)):
        assert not window.holds(position)


async def test_large_events_behind_small_ones_are_read_few_at_a_time(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, cache_size=1)
    ids = await process.append(*["a"] * 100)
    for _ in range(4):
        ids += await process.append("a", data=b"1" * 2**18)
    reply, is_all = await redis_stream.entries_behind(*asked(process), BEGINNING)
    assert not is_all
    assert len(reply) == 1 + 100 + 1
    found = await process.read("a", max_bytes=2**30)
    assert ids_of(found.events) == ids
    assert found.complete
    late = await processes.begin(redis.url)
    assert late.log.last_id == ids[-1]


def asked(process: Process) -> tuple[Any, Any]:
    session = process.shard._session
    assert session is not None
    return session.asker, KEYS


async def test_a_process_that_is_behind_reads_on_until_it_is_there(redis: RedisServer, processes: Processes) -> None:
    first, second = [await processes.begin(redis.url) for _ in range(2)]
    ids = await first.append(*["a"] * 2000)
    await second.came_to(ids[-1])
    assert ids_of(second.committed) == ids
