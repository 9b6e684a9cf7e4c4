"""What becomes of the log when Redis fails: away, stopped, restarted with its data or without, and set back."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from clocks import HANG_SECONDS
from log.redis_worlds import KEYS, Process, Processes, Swapped, just_before, parsed
from log.worlds import ids_of
from services import RedisServer
from serving import open_descriptors, until

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import EventId, Gap, GapReason
from tricast.log import redis as redis_module
from tricast.log import redis_stream as stream
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.redis_servers import ERRORS, Servers
from tricast.log.redis_stream import Known


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look all the time."""
    monkeypatch.setattr(redis_module, "_WATCH_SECONDS", 0.01)


@pytest.fixture
def heedless(monkeypatch: pytest.MonkeyPatch) -> None:
    """They never look by themselves."""
    monkeypatch.setattr(redis_module, "_WATCH_SECONDS", 2 * HANG_SECONDS)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has appended does not wait for what does not come in."""
    monkeypatch.setattr(redis_module, "_PATIENCE", 0.0)


def put_back(redis: RedisServer, saved: Path) -> None:
    """Restarts it as it was when the copy was made: what a failover to a replica that was behind comes to."""
    redis.kill()
    redis.wipe()
    shutil.copytree(saved, redis.folder / "appendonlydir")
    redis.start()


def save(redis: RedisServer, to: Path) -> Path:
    return Path(shutil.copytree(redis.folder / "appendonlydir", to))


async def gap_after(process: Process, position: EventId, *topics: str) -> Gap | None:
    return (await process.read(*topics or ("a",), after=position)).gap


# Away


async def test_while_it_is_away_nothing_is_taken_and_it_says_why(redis: RedisServer, process: Process) -> None:
    (last,) = await process.append("a")
    redis.kill()
    await process.is_away()
    with pytest.raises(LogUnavailable):
        await process.append("a")
    assert await process.ids("a") == [last]
    with pytest.raises(LogUnavailable):
        await process.read("a", after=EventId(last.ms + 1000, 0))
    await until(lambda: process.log.statistics.reconnects > 2)
    assert process.log.problem == f"{redis.address}: no connection to Redis: Connection refused"
    assert process.said() == ["the log is not available"]


async def test_what_is_being_appended_when_it_goes_away_is_not_said_to_be_kept(
    redis: RedisServer, process: Process
) -> None:
    redis.pause()
    errors: list[LogUnavailable] = []

    async def append() -> None:
        with pytest.raises(LogUnavailable) as caught:
            await process.append("a")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):  # one of them goes alone, the others wait for it
            nursery.start_soon(append)
            await trio.testing.wait_all_tasks_blocked()
        redis.kill()
    assert len(errors) == 3


async def test_a_redis_that_has_stopped_is_given_up_after_its_time(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, timeout="3s")
    (last,) = await process.appended("a")
    redis.pause()
    with pytest.raises(LogUnavailable, match="does not answer"):
        await process.append("a")
    assert process.log.problem is not None
    redis.resume()
    (new,) = await process.appended("a")
    await process.came_to(new)
    found = await process.read("a", after=last)
    assert found.gap is None
    # What was not acknowledged may have been kept.
    assert ids_of(found.events)[-1] == new
    assert [event.id for event in process.committed] == sorted({event.id for event in process.committed})


async def test_restarted_with_its_data_everything_goes_on_where_it_was(
    redis: RedisServer, processes: Processes
) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]
    ids = []
    for count in range(1, 4):
        ids += await both[0].append("a", "b")
        redis.restart()
        for process in both:
            await process.came_back(count)
    ids += await both[1].append("a")
    for process in both:
        await process.came_to(ids[-1])
        assert ids_of(process.committed) == ids
        assert process.skipped == []
        assert await gap_after(process, ids[0]) is None
        assert process.said() == ["the log is not available", "the log is available again"] * 3


async def test_a_read_that_takes_too_long_is_nobody_elses_business(
    redis: RedisServer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody but the reader asks for anything meanwhile.
    monkeypatch.setattr(redis_module, "_WATCH_SECONDS", 600.0)
    monkeypatch.setattr(redis_module, "_BLOCK_SECONDS", 600.0)
    process = await processes.begin(redis.url, cache_size=1)
    ids = [(await process.append(topic))[0] for topic in ("a", "b", "a")]
    assert await process.ids("a") == [ids[0], ids[2]]
    redis.pause()
    with pytest.raises(LogUnavailable, match="Redis does not answer"):
        await process.read("a", "b")
    redis.resume()
    # What it was answered comes first over the same connection, and is not taken for the answer to this.
    assert await process.ids("b") == [ids[1]]
    await process.append("b")
    assert process.log.problem is None
    assert process.log.statistics.reconnects == 0
    assert process.said() == []


async def test_connections_that_are_cut_are_made_again(redis: RedisServer, process: Process) -> None:
    ids = []
    for _ in range(5):
        redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        ids += await process.appended("a")
    await process.came_to(ids[-1])
    assert set(ids) <= set(ids_of(process.committed))
    assert process.skipped == []


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_each_of_its_connections_is_needed(redis: RedisServer, process: Process, which: int) -> None:
    (first,) = await process.append("a")
    clients = redis.execute("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(clients, bytes)
    numbers = [
        int(line.split()[0].removeprefix("id="))
        for line in clients.decode().splitlines()
        if "coredis" in line or "laddr=127" in line
    ]
    redis.execute("CLIENT", "KILL", "ID", sorted(numbers)[which])
    await process.came_back()
    (second,) = await process.append("a")
    await process.came_to(second)
    assert ids_of(process.committed) == [first, second]
    assert process.skipped == []


async def test_what_others_append_while_one_is_away_comes_in_order(redis: RedisServer, processes: Processes) -> None:
    servers = Swapped(redis.url)
    away = Process(redis.url)
    away.shard._servers = servers  # type: ignore[assignment]
    await processes.run(away)
    other = await processes.begin(redis.url)
    first = await other.append("a")
    await away.came_to(first[0])
    servers.is_cut = True
    redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await away.is_away()
    await other.came_back()
    ids = [(await other.append("a"))[0] for _ in range(300)]
    servers.is_cut = False
    await away.came_to(ids[-1])
    assert ids_of(away.committed) == first + ids
    assert away.skipped == []


@pytest.mark.usefixtures("watchful", "deaf")
async def test_a_reader_that_is_on_another_server_is_noticed(redis: RedisServer, processes: Processes) -> None:
    with RedisServer() as other:
        servers = Swapped(redis.url, other.url)
        process = Process(redis.url)
        process.shard._servers = servers  # type: ignore[assignment]
        await processes.run(process)
        ids = await process.append("a")
        assert process.committed == []
        await until(lambda: process.said() != [])
        assert process.records.entries[0]["why"] == "what is new in Redis does not come in"
        await until(lambda: process.log.statistics.lags == {0: 1})
        servers.elsewhere = None
        await process.came_to(ids[0])
        assert ids_of(process.committed) == ids


# What was lost


@pytest.mark.parametrize("quiet", [False, True])
async def test_restarted_without_its_data_it_begins_anew_behind_a_gap(
    redis: RedisServer, processes: Processes, quiet: bool
) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]
    old = await both[0].append("a", "b")
    await both[1].came_to(old[-1])
    redis.restart(keep_data=False)
    for process in both:
        await process.came_back()
    new = [] if quiet else await both[1].append("a")
    for process in both:
        await until(lambda process=process: process.log.last_id >= max([*new, old[-1]]) and process.skipped)  # type: ignore[misc]
        start = process.shard._state.start
        assert start > old[-1]
        assert start in process.skipped
        assert process.log.last_id > old[-1]
        for position in old:
            assert await gap_after(process, position) == Gap(GapReason.RESTARTED, position, start)
        assert await process.ids("a", "b") == new
        assert await gap_after(process, start) is None
        assert ids_of(process.committed) == old + new
    third = await processes.begin(redis.url)
    assert await third.ids("a", "b") == new
    assert (await gap_after(third, old[0])) == Gap(GapReason.RESTARTED, old[0], both[0].shard._state.start)


async def test_ids_go_on_where_the_clock_of_redis_is_behind(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url)
    ahead = now_ms(redis) + 10**6
    redis.execute("XADD", KEYS.log, f"{ahead}-5", "n", 2, "t", "a", "d", "1")
    redis.execute("HSET", KEYS.meta, "n", 2, "last", f"{ahead}-5")
    assert await process.append("a") == [EventId(ahead, 6)]
    redis.restart(keep_data=False)
    await process.came_back()
    (new,) = await process.append("a")
    assert new == EventId(ahead + 1, 1)
    assert process.skipped == [EventId(ahead + 1, 0)]
    assert await gap_after(process, EventId(ahead, 6)) == Gap(
        GapReason.RESTARTED, EventId(ahead, 6), EventId(ahead + 1, 0)
    )


def now_ms(redis: RedisServer) -> int:
    seconds, micros = redis.execute("TIME")  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


async def test_set_back_it_says_so_to_all(redis: RedisServer, processes: Processes, tmp_path: Path) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]
    kept = await both[0].append("a", "b")
    saved = save(redis, tmp_path / "saved")
    lost = await both[0].append("a", "b")
    await both[1].came_to(lost[-1])
    put_back(redis, saved)
    for process in both:
        await process.came_back()
    (new,) = await both[1].append("a")
    third = await processes.begin(redis.url)
    for process in (*both, third):
        await process.came_to(new)
        start = process.shard._state.start
        assert lost[-1] < start < new
        for position in kept:
            assert await gap_after(process, position) == Gap(GapReason.RESTARTED, position, start)
        for position in lost:  # to those who have it, what they miss begins where it was set back
            assert await gap_after(process, position) == Gap(GapReason.RESTARTED, kept[-1], start)
        assert await gap_after(process, start) is None
        assert (await process.ids("a"))[-2:] == [kept[0], new]
    for process in both:
        assert process.skipped[-1] == both[0].shard._state.start
        assert ids_of(process.committed) == [*kept, *lost, new]


async def test_only_one_of_them_knew_what_was_lost(redis: RedisServer, processes: Processes, tmp_path: Path) -> None:
    """The other one was cut off when it happened, and comes back when it is all the same again."""
    servers = Swapped(redis.url)
    behind = Process(redis.url)
    behind.shard._servers = servers  # type: ignore[assignment]
    await processes.run(behind)
    ahead = await processes.begin(redis.url)
    (kept,) = await ahead.append("a")
    await behind.came_to(kept)
    saved = save(redis, tmp_path / "saved")
    servers.is_cut = True
    redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await behind.is_away()
    await ahead.came_back()
    (lost,) = await ahead.append("a")
    put_back(redis, saved)
    await ahead.came_back(2)
    (new,) = await ahead.append("a")
    servers.is_cut = False
    await behind.came_to(new)
    start = behind.shard._state.start
    assert kept < lost < start < new
    assert behind.skipped[-1] >= start
    assert await gap_after(behind, kept) == Gap(GapReason.RESTARTED, kept, start)


async def test_of_what_is_lost_twice_each_time_is_told_before_what_follows(
    redis: RedisServer, processes: Processes
) -> None:
    """Who is cut off in between comes back for what follows upon the last event, and is told of no more than that."""
    process = await processes.begin(redis.url)
    (known,) = await process.append("a")
    redis.execute("FLUSHALL")
    await until(lambda: process.skipped != [])
    await process.came_back()
    (between,) = await process.append("a")
    process.shard._acknowledged = Known(EventId(between.ms, between.counter + 1), 99)
    await disconnect(process)
    await until(lambda: len(process.skipped) == 2)
    (last,) = await process.append("a")
    first, second = process.skipped
    assert isinstance(first, EventId)
    assert isinstance(second, EventId)
    for reader in (process, await processes.begin(redis.url), await processes.begin(redis.url, cache_size=1)):
        await reader.came_to(last)
        found = await reader.read("a", after=known)
        assert found == Slice([], Gap(GapReason.RESTARTED, known, first), first, complete=False)
        found = await reader.read("a", after=first)
        assert (ids_of(found.events), found.upto) == ([between], second)
        assert found.gap == Gap(GapReason.RESTARTED, first, second)
        found = await reader.read("a", after=second)
        assert (ids_of(found.events), found.gap, found.complete) == ([last], None, True)


async def test_one_that_was_still_there_learns_of_it_by_the_mark(redis: RedisServer, processes: Processes) -> None:
    first, second = [await processes.begin(redis.url) for _ in range(2)]
    (known,) = await first.append("a")
    await second.came_to(known)
    # As if the first had been told of one that is not there, and had to connect again.
    first.shard._acknowledged = Known(EventId(known.ms, known.counter + 1), 99)
    await disconnect(first)
    await until(lambda: second.skipped != [])
    assert second.said() == []
    (new,) = await second.append("a")
    for process in (first, second):
        await process.came_to(new)
        start = process.shard._state.start
        assert process.skipped == [start]
        found = await process.read("a", after=known)
        assert found == Slice([], Gap(GapReason.RESTARTED, known, start), start, complete=False)
        assert await process.ids("a", after=start) == [new]
        # Who asks for what is kept is told of no gap.
        assert await process.ids("a") == [known, new]
        assert ids_of(process.committed) == [known, new]


async def disconnect(process: Process) -> None:
    session = process.shard._session
    assert session is not None
    session.fail(LogUnavailable("the test wants it"))
    await process.is_away()
    await process.is_back()


@pytest.mark.usefixtures("deaf")
async def test_what_was_acknowledged_and_never_read(redis: RedisServer, processes: Processes, tmp_path: Path) -> None:
    with RedisServer() as other:
        servers = Swapped(redis.url, other.url)  # nothing is read
        process = Process(redis.url)
        process.shard._servers = servers  # type: ignore[assignment]
        await processes.run(process)
        before = process.log.last_id
        saved = save(redis, tmp_path / "saved")
        (lost,) = await process.append("a")
        assert process.committed == []
        put_back(redis, saved)
        await process.is_away()
        await process.is_back()
    assert process.log.last_id > lost
    assert await gap_after(process, before) == Gap(GapReason.RESTARTED, before, process.shard._state.start)


@pytest.mark.usefixtures("watchful")
async def test_its_data_is_deleted_under_it(redis: RedisServer, processes: Processes) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]
    old = await both[0].append("a")
    redis.execute("FLUSHALL")
    for process in both:
        await until(lambda process=process: process.skipped != [])  # type: ignore[misc]
        await process.is_back()
        assert process.said() == [] or "began anew" in process.records.entries[0]["why"]
    new = await both[0].append("a")
    for process in both:
        await process.came_to(new[0])
        assert await process.ids("a") == new
        assert (await gap_after(process, old[0])) == Gap(GapReason.RESTARTED, old[0], process.shard._state.start)


@pytest.mark.usefixtures("heedless")
async def test_its_data_is_deleted_and_somebody_publishes(redis: RedisServer, processes: Processes) -> None:
    both = [await processes.begin(redis.url) for _ in range(2)]
    await both[0].append("a")
    redis.execute("FLUSHALL")
    with pytest.raises(LogUnavailable, match="began anew"):
        await both[0].append("a")
    await both[0].is_back()
    new = await both[0].append("a")
    await both[1].came_to(new[0])
    for process in both:
        assert process.skipped == [process.shard._state.start]
        assert await process.ids("a") == new
    assert both[1].said() == []  # it reads on, and that is all


@pytest.mark.usefixtures("heedless")
async def test_its_data_is_deleted_and_somebody_reads(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, cache_size=1)
    (old,) = await process.append("a")
    redis.execute("FLUSHALL")
    with pytest.raises(LogUnavailable, match="began anew"):
        await process.read("a")
    assert old == process.log.last_id


ENTRIES = """
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[1], '*', 'n', ARGV[2], 't', 'a', 'd', '1')
local last = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[1], '*', 'n', ARGV[3], 't', 'b', 'd', '2')
redis.call('HSET', KEYS[2], 'n', ARGV[3], 'last', last)
local ms, counter = string.match(last, '^(%d+)-(%d+)$')
local score = string.format('%.17g', ms + counter / 1024)
redis.call('ZADD', KEYS[3], score, 'a', score, 'b')
return last
"""


async def test_entries_that_were_trimmed_before_they_were_read(redis: RedisServer, process: Process) -> None:
    (known,) = await process.append("c")
    last = as_id(redis.execute("EVAL", ENTRIES, 3, KEYS.log, KEYS.meta, KEYS.topics, 1, 3, 4))
    await until(lambda: process.skipped != [])
    assert process.skipped == [last]
    assert process.log.last_id == last
    assert await gap_after(process, known, "a") == Gap(GapReason.EVICTED, known, just_before(last))
    assert await gap_after(process, known, "c") is None
    assert await process.ids("b") == [last]
    (new,) = await process.append("a")
    await process.came_to(new)
    assert ids_of(process.committed) == [known, new]


async def test_entries_that_were_taken_out_of_the_middle(redis: RedisServer, process: Process) -> None:
    (known,) = await process.append("c")
    last = as_id(redis.execute("EVAL", ENTRIES, 3, KEYS.log, KEYS.meta, KEYS.topics, 100, 4, 5))
    await until(lambda: process.skipped != [])
    assert process.skipped == [last]
    for topic in ("a", "c"):
        assert await gap_after(process, known, topic) == Gap(GapReason.RESTARTED, known, last)
    assert await process.ids("b") == [last]


async def test_the_log_is_gone_when_something_is_missing(redis: RedisServer, process: Process) -> None:
    (known,) = await process.append("c")
    text = "redis.call('DEL', KEYS[2]); " + ENTRIES.replace("redis.call('HSET'", "-- redis.call('HSET'")
    redis.execute("EVAL", text, 3, KEYS.log, KEYS.meta, KEYS.topics, 100, 7, 8)
    await until(lambda: process.skipped != [])
    assert process.records.entries[0]["why"] == "it began anew in Redis"
    assert (await gap_after(process, known)) == Gap(GapReason.RESTARTED, known, process.shard._state.start)


async def test_what_somebody_else_has_put_there_is_passed_over(redis: RedisServer, process: Process) -> None:
    foreign = [("x", "1"), ("n", "x", "t", "a", "d", "1"), ("n", "3", "t", b"\xff", "d", "1")]
    (first,) = await process.append("a")
    for fields in foreign:
        last = as_id(redis.execute("XADD", KEYS.log, "*", *fields))
    await process.came_to(last)
    (second,) = await process.append("a")
    await process.came_to(second)
    assert ids_of(process.committed) == [first, second]
    assert process.skipped == []
    redis.restart()
    await process.came_back()
    assert process.skipped == []


async def test_too_long_away(redis: RedisServer, processes: Processes) -> None:
    redis.execute("CONFIG", "SET", "stream-node-max-entries", 1)
    servers = Swapped(redis.url)
    away = Process(redis.url, length=5)
    away.shard._servers = servers  # type: ignore[assignment]
    await processes.run(away)
    other = await processes.begin(redis.url, length=5)
    (known,) = await other.append("a")
    await away.came_to(known)
    servers.is_cut = True
    redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await away.is_away()
    await other.came_back()
    ids = await other.append(*["b", "a"] * 10)
    servers.is_cut = False
    await away.came_to(ids[-1])
    assert away.skipped == ids[-1:]
    found = await away.read("a", after=known)
    assert (ids_of(found.events), found.gap) == (ids[-5::2], Gap(GapReason.EVICTED, known, just_before(ids[-5])))
    assert (await away.read("c", after=known)).gap is None


def as_id(reply: object) -> EventId:
    assert isinstance(reply, bytes)
    return EventId.parse(reply.decode())


# Redis that does not want to


@pytest.mark.usefixtures("watchful")
async def test_a_redis_that_is_full(redis: RedisServer, process: Process) -> None:
    (first,) = await process.append("a")
    redis.execute("CONFIG", "SET", "maxmemory", 1)
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="OOM"):
            await process.append("a", "b")
    assert "OOM" in (process.log.problem or "")
    assert process.said() == ["the log takes no events"]
    assert await process.ids("a") == [first]
    redis.execute("CONFIG", "SET", "maxmemory", 0)
    await process.is_back()
    (second,) = await process.append("a")
    await process.came_to(second)
    assert process.said() == ["the log takes no events", "the log takes events again"]
    assert ids_of(process.committed) == [first, second]


async def test_somebody_tries_before_it_is_looked_at(redis: RedisServer, process: Process) -> None:
    redis.execute("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(LogUnavailable, match="OOM"):
        await process.append("a")
    redis.execute("CONFIG", "SET", "maxmemory", 0)
    await process.append("a")
    assert process.log.problem is None


async def test_a_user_without_the_right_to_read(redis: RedisServer, processes: Processes) -> None:
    rules = ["reset", "on", ">secret", "~*", "+@all"]
    redis.execute("ACL", "SETUSER", "app", *rules)
    process = await processes.begin(redis.url.replace("//", "//app:secret@"), cache_size=1)
    await process.append("a")
    redis.execute("ACL", "SETUSER", "app", "-xrange")
    with pytest.raises(LogUnavailable, match="lacks a right"):
        await process.ids("a")
    assert process.log.problem is None
    redis.execute("ACL", "SETUSER", "app", "+xrange")
    assert len(await process.ids("a")) == 1


async def test_a_read_that_finds_the_connection_dead(redis: RedisServer, processes: Processes) -> None:
    process = await processes.begin(redis.url, cache_size=1, timeout="20s")
    (last,) = await process.append("a")
    redis.pause()

    async def read() -> None:
        with pytest.raises(LogUnavailable, match="connection"):
            await process.ids("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        redis.kill()
    redis.start()
    await process.came_back()
    assert await process.ids("a") == [last]


# Replicas


async def test_without_the_replicas_that_are_wanted_nothing_is_acknowledged(
    redis: RedisServer, processes: Processes
) -> None:
    process = await processes.begin(redis.url, replicas=1)
    with process.impatient(), pytest.raises(LogUnavailable, match="only 0 of 1 replicas"):
        await process.append("a")
    await until(lambda: len(process.committed) == 1)  # it is there nevertheless
    assert process.log.problem is None


async def test_with_the_replicas_that_are_wanted(redis: RedisServer, processes: Processes) -> None:
    with RedisServer(config=[f"replicaof 127.0.0.1 {redis.port}"]) as replica:
        process = await processes.begin(redis.url, replicas=1)
        await until(lambda: b"state=online" in redis.execute("INFO", "replication"))  # type: ignore[operator]
        (event,) = await process.append("a")
        assert replica.execute("XRANGE", KEYS.log, str(event), str(event))


# Cancellation and the end


async def test_when_it_is_closed_nothing_is_left(redis: RedisServer) -> None:
    before = open_descriptors()
    process = Process(redis.url)
    for _ in range(2):
        async with process.open():
            (last,) = await process.append("a")
            redis.pause()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.append, "a")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        redis.resume()
        assert not open_descriptors() - before
        assert not process.shard._appends._unanswered
    async with process.open():
        assert process.log.last_id >= last


async def test_it_is_cancelled_at_any_time(redis: RedisServer) -> None:
    """Whatever it is at, cancelling it leaves no connections, nor a log that somebody else cannot use."""
    before = open_descriptors()
    other = Process(redis.url)
    async with other.open():
        for milliseconds in range(40):
            process = Process(redis.url)
            with trio.move_on_after(milliseconds / 2000):
                async with process.open():
                    while True:
                        await process.append("a")
        (last,) = await other.append("a")
        await other.came_to(last)
    assert not open_descriptors() - before
    ids = ids_of(other.committed)
    assert ids == sorted(set(ids))
    assert other.skipped == []


# Failover


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_replica_takes_over(redis: RedisServer, processes: Processes, replicas: int) -> None:
    """Who comes to it first need not be who was told of what it lacks."""
    with RedisServer(config=[f"replicaof 127.0.0.1 {redis.port}"]) as replica:
        await until(lambda: b"state=online" in redis.execute("INFO", "replication"))  # type: ignore[operator]
        process = await processes.begin(redis.url, replicas=replicas)
        (known,) = await process.append("a")
        await until(lambda: replica.execute("XLEN", KEYS.log) == 2)
        await process.came_to(known)
        redis.kill()
        replica.execute("REPLICAOF", "NO", "ONE")
        servers = process.shard._servers  # type: ignore[assignment]
        servers._url = servers._url._replace(nodes=parsed(replica.url).nodes)
        await process.came_back()
        start = process.shard._state.start
        if replicas:
            assert await gap_after(process, known) is None
            assert start < known
        else:
            assert await gap_after(process, known) == Gap(GapReason.RESTARTED, known, start)
            assert process.skipped == [start]
            ids = await process.append("b")
            await disconnect(process)  # it is said once
            await process.came_to(ids[0])
            assert process.shard._state.start == start


async def test_a_server_whose_place_was_taken_went_on_for_a_while(redis: RedisServer, processes: Processes) -> None:
    """What it took in the meantime is lost, and who comes from there has a gap that begins where the two parted."""
    with RedisServer(config=[f"replicaof 127.0.0.1 {redis.port}"]) as replica:
        await until(lambda: b"state=online" in redis.execute("INFO", "replication"))  # type: ignore[operator]
        old = await processes.begin(redis.url)
        (common,) = await old.append("a")
        await until(lambda: replica.execute("XLEN", KEYS.log) == 2)
        replica.execute("REPLICAOF", "NO", "ONE")
        new, cold = await processes.begin(replica.url), await processes.begin(replica.url, cache_size=1)
        kept, lost = [], []
        for _ in range(3):
            for process, ids in ((new, kept), (old, lost)):
                (last,) = await process.append("a")
                ids.append(last)
                await until(lambda last=last: now_ms(redis) > last.ms)  # type: ignore[misc]
        assert (await new.read("a", after=lost[-1])).gap == Gap(GapReason.UNKNOWN_ID, common, kept[-1])
        for process in (new, cold):
            await process.came_to(kept[-1])
            for position, rest in ((lost[0], kept[1:]), (lost[1], kept[2:])):
                for _ in range(2):  # asked, and remembered
                    found = await process.read("a", after=position)
                    # Before all that is left: who had one of these would be told of nothing any more.
                    assert found == Slice((), Gap(GapReason.UNKNOWN_ID, common, rest[0]), rest[0], complete=False)
                    assert await process.ids("a", after=rest[0]) == rest[1:]
            assert (await process.read("a", after=kept[0])).gap is None
            assert (await gap_after(process, common)) == Gap(GapReason.RESTARTED, common, process.shard._state.start)
        # Who was on it finds that the newest of what it knows is missing.
        servers = old.shard._servers  # type: ignore[assignment]
        servers._url = servers._url._replace(nodes=parsed(replica.url).nodes)
        await disconnect(old)
        (last,) = await old.append("b")
        for process in (old, new, cold):
            await process.came_to(last)
            start = process.shard._state.start
            assert kept[-1] < start < last
            assert process.skipped == [start]
            for position in (*lost, *kept):
                gap = await gap_after(process, position)
                assert gap is not None
                # Also who was on the one that went on has not got what was lost from there on.
                assert gap.after == common
                while gap.resumed_at < start:
                    gap = await gap_after(process, gap.resumed_at)
                    assert gap is not None
                    assert gap.after == common


async def test_positions_are_remembered_only_so_long(
    redis: RedisServer, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "_MAX_ENTRIES", 2)
    ids = await process.append("a", "a")
    await process.came_to(ids[-1])
    for counter in range(2, 7):
        position = EventId(ids[0].ms - 1, counter)
        assert (await process.read("a", after=position)).gap is not None
    process.shard._behind = EventId(0, 2)
    for counter in range(5):
        position = EventId(ids[0].ms - 1, counter)
        await process.read("a", after=position)
    assert len(process.shard._entries) <= 2


@pytest.mark.usefixtures("watchful")
async def test_it_goes_on_to_have_no_room(redis: RedisServer, process: Process) -> None:
    redis.execute("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(LogUnavailable, match="OOM"):
        await process.append("a")
    redis.execute("CONFIG", "RESETSTAT")
    await until(lambda: re.search(rb"cmdstat_hset:calls=0,.*?rejected_calls=([2-9]|\d\d)", stats(redis)) is not None)
    assert process.log.problem is not None
    async with Servers(parsed(redis.url), process.shard._config).connect(KEYS.log) as connection:
        redis.kill()
        with pytest.raises(ERRORS):
            await process.shard._probe(connection)


def stats(redis: RedisServer) -> bytes:
    found = redis.execute("INFO", "commandstats")
    assert isinstance(found, bytes)
    return found


async def test_what_was_acknowledged_of_a_log_that_is_another_one_by_now(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, append = process.shard, redis_module.stream.append

    async def append_and_begin_anew(*arguments: Any) -> Any:
        found = await append(*arguments)
        shard._state = shard._state._replace(log=b"another")
        return found

    monkeypatch.setattr(redis_module.stream, "append", append_and_begin_anew)
    before = shard._acknowledged
    await process.append("a")
    assert shard._acknowledged == before


async def test_a_log_that_begins_anew_while_it_is_read(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out of the position before is not taken for true of the new one."""
    shard, is_entry = process.shard, redis_module.stream.is_entry
    (last,) = await process.append("a")
    await process.came_to(last)
    asked: list[EventId] = []

    async def begin_anew(redis: Any, keys: Any, position: EventId) -> bool:
        asked.append(position)
        if len(asked) == 1:
            shard._entries = {}
            shard._state = shard._state._replace(start=last)
            return True
        return await is_entry(redis, keys, position)

    monkeypatch.setattr(redis_module.stream, "is_entry", begin_anew)
    position = EventId(last.ms - 1, 10**6)
    shard._marks = {EventId(1, 0): EventId(0, 5)}
    assert (await process.read("a", after=position)).gap == Gap(GapReason.RESTARTED, EventId(0, 5), last)
    assert asked == [position, position]


@pytest.mark.parametrize("program", ["redis", "valkey"])
async def test_a_repetition_is_not_acknowledged_either_without_the_replicas(processes: Processes, program: str) -> None:
    with (
        RedisServer(program=program) as primary,
        RedisServer(program=program, config=[f"replicaof 127.0.0.1 {primary.port}"]) as replica,
    ):
        await until(lambda: b"master_link_status:up" in replica.execute("INFO", "replication"))  # type: ignore[operator]
        both = [await processes.begin(primary.url, replicas=1) for _ in range(2)]
        await both[0].append("a")
        replica.pause()
        key = IdempotencyKey(b"k", b"1", 600.0, 10)
        for process in both:
            with process.impatient(), pytest.raises(LogUnavailable, match="only 0 of 1"):
                await process.append("a", key=key)
        replica.resume()
        assert await both[1].append("a", key=key) == [both[0].committed[-1].id]


async def test_a_server_that_does_not_tell_which_one_it_is(process: Process) -> None:
    class Reticent:
        async def create_request(self, *_: object, **__: object) -> bytes:
            return b"# Server\r\nredis_version:7.0\r\n"

    reticent: Any = Reticent()
    assert await stream._server(reticent) == (b"", False)


async def test_a_primary_that_is_one_again_may_lack_what_its_successor_had(
    redis: RedisServer, processes: Processes
) -> None:
    """Sentinel may have had another one in the meantime, and nothing on this one tells."""
    process = Process(redis.url)
    process.shard._servers = Returned(redis.url)  # type: ignore[assignment]
    await processes.run(process)
    (last,) = await process.append("a")
    await process.came_to(last)
    redis.restart()
    await process.came_back()
    assert await gap_after(process, last) == Gap(GapReason.RESTARTED, last, process.shard._state.start)
    start = process.shard._state.start
    await disconnect(process)
    assert process.shard._state.start == start


class Returned(Swapped):
    """One server, of which nobody knows whether it has all."""

    may_return = True


async def test_a_script_that_fails_behind_what_it_appended(redis: RedisServer, processes: Processes) -> None:
    """What is there is handed over, once, though nobody is told that it is kept."""
    redis.execute("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "+@all", "-zadd")
    process = await processes.begin(redis.url.replace("//", "//app:secret@"))
    with pytest.raises(LogUnavailable):
        await process.append("a")
    redis.execute("ACL", "SETUSER", "app", "+zadd")
    await process.is_back()
    (last,) = await process.append("a")
    await process.came_to(last)
    assert len(process.committed) == 2
    assert process.skipped == []


async def test_what_somebody_else_has_put_there_with_a_number(redis: RedisServer, process: Process) -> None:
    (known,) = await process.append("a")
    await process.came_to(known)
    stray = as_id(redis.execute("XADD", KEYS.log, "*", "n", 7, "t", "a", "d", "1"))
    await process.came_to(stray)
    (last,) = await process.append("a")
    await process.came_to(last)
    assert ids_of(process.committed) == [known, last]
    assert process.skipped == []


async def test_a_single_server_that_is_a_cluster(redis: RedisServer, processes: Processes) -> None:
    with RedisServer(config=["cluster-enabled yes"]) as node:
        node.execute("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: b"cluster_state:ok" in node.execute("CLUSTER", "INFO"))  # type: ignore[operator]
        process = await processes.begin(node.url, shards=2)
        with pytest.raises(RemoteProtocolError, match="not kept together"):
            await process.append("a", "b", "c", "d")
        await process.append("a")
        assert process.said() == []


async def test_who_follows_what_won_is_told_of_what_was_lost_meanwhile(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    process = await Processes(nursery).begin(redis.url)
    (common,), (later,) = await process.append("news"), await process.append("news")
    # As by somebody who knew of another server, that went on from there as well for a while.
    log, number = redis.execute("HMGET", KEYS.meta, "id", "n")
    number = str(int(number) + 1)
    mark = redis.execute("XADD", KEYS.log, f"{later.ms + 1}-0", "n", number, "m", log, "f", str(common))
    redis.execute("HSET", KEYS.meta, "start", mark, "n", number, "last", mark)
    await process.came_to(EventId(later.ms + 1, 0))
    found = await process.read("news", after=later)
    assert found.gap == Gap(GapReason.RESTARTED, common, process.log.last_id)
    assert not found.events
