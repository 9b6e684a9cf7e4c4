"""The log in a file: several processes on it, restarts, and everything that can be wrong with a file.

A process is a log of its own on the same file here; ``tests/e2e/test_sqlite_log.py`` has real ones.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from select import select
from typing import Any

import pytest
import trio
import trio.testing
from clocks import HANG_SECONDS
from log.worlds import Clock, World, held, ids_of, looked, no_descriptors, sqlite_log
from serving import open_descriptors, until
from structlog.testing import LogCapture

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.database import Behind, Database, decode, encode
from tricast.log.sqlite import SqliteLog
from tricast.log.sqlite_file import APPLICATION_ID, SqliteFile
from tricast.log.wake import Wake
from tricast.log.writer import Writer

KEY = IdempotencyKey(b"k", b"1", 60.0, 10)


class Processes:
    """Worlds on one file, each as if in a process of its own.

    Attributes:
        path: the file.
        clock: they all have the same.
        records: what they logged.
    """

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.clock = Clock()
        self.records = LogCapture()
        self._nursery = nursery

    async def begin(self, **settings: Any) -> World:
        world = self.prepare(**settings)
        await self._nursery.start(held, world.log.open(world.committed.extend, world.skipped.append))
        await looked(log_of(world))  # as it does at first; what comes next is the test's
        return world

    def prepare(self, **settings: Any) -> World:
        return World(sqlite_log(self.path, self.clock, records=self.records, **settings), self.path, self.clock)

    def said(self) -> list[str]:
        return [entry["event"] for entry in self.records.entries]


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            yield Processes(tmp_path / "log.db", nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
def unwoken(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """They cannot wake each other, and hardly ever look by themselves."""
    processes.path.with_name("log.db.wake").write_text("in the way")
    monkeypatch.setattr("tricast.log.writer.LOOK_SECONDS", 1000.0)
    return processes


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look by themselves all the time."""
    monkeypatch.setattr("tricast.log.writer.LOOK_SECONDS", 0.01)


def log_of(world: World) -> SqliteLog:
    assert isinstance(world.log, SqliteLog)
    return world.log


@contextmanager
def other_program(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


# Ids


@pytest.mark.parametrize(
    ("position", "number"),
    [
        (EventId(0, 0), 0),
        (EventId(1, 2), (1 << 20) + 2),
        (EventId(1, 2**20 - 1), (2 << 20) - 1),
        (EventId(2**43 - 1, 2**20 - 1), 2**63 - 1),
    ],
)
def test_an_id_as_one_number(position: EventId, number: int) -> None:
    assert encode(position) == number
    assert decode(number) == position


@pytest.mark.parametrize(
    ("position", "before"),
    [
        (EventId(1, 2**20), EventId(1, 2**20 - 1)),
        (EventId(1, 10**19 - 1), EventId(1, 2**20 - 1)),
        (EventId(2**43, 0), EventId(2**43 - 1, 2**20 - 1)),
        (EventId(10**19 - 1, 10**19 - 1), EventId(2**43 - 1, 2**20 - 1)),
    ],
)
def test_a_position_that_no_event_can_have(position: EventId, before: EventId) -> None:
    assert decode(encode(position)) == before


async def test_reading_from_positions_that_no_event_can_have(processes: Processes) -> None:
    world = await processes.begin(cache_size=1)
    ids = await world.append("a", "a")
    world.clock.seconds += 1
    ids += await world.append("a")
    assert await world.ids("a", after=EventId(ids[0].ms, 2**40)) == ids[2:]
    far = EventId(10**19 - 1, 0)
    assert (await world.read("a", after=far)).gap == Gap(GapReason.UNKNOWN_ID, far, ids[2])


# Several processes


async def test_all_hand_over_the_same_in_one_order(processes: Processes) -> None:
    worlds = [await processes.begin(history=1000) for _ in range(3)]
    ids: list[EventId] = []

    async def publish(world: World, topic: str) -> None:
        for n in range(30):
            ids.extend(await world.append(*[topic] * (n % 3 + 1)))

    async with trio.open_nursery() as nursery:
        for world in worlds:
            for topic in "ab":
                nursery.start_soon(publish, world, topic)
    for world in worlds:
        await until(lambda world=world: len(world.committed) == len(ids))  # type: ignore[misc]
        assert ids_of(world.committed) == sorted(ids)
        assert world.committed == worlds[0].committed
        assert world.skipped == []
        assert world.log.last_id == max(ids)
    assert (await worlds[1].read(">")).events == worlds[0].committed


async def test_one_wakes_the_others(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.writer.LOOK_SECONDS", 1000.0)
    first, second = await processes.begin(), await processes.begin()
    ids = await first.append("a", "b")
    await until(lambda: ids_of(second.committed) == ids)
    ids += await second.append("a")
    await until(lambda: ids_of(first.committed) == ids)
    assert processes.said() == []


async def test_who_is_woken_while_it_waits_for_a_lock_looks(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast.log.writer.LOOK_SECONDS", 1000.0)
    world = await processes.begin()
    looked_behind: list[int] = []
    behind = Database.behind

    def look(self: Database, known: int) -> Behind:
        looked_behind.append(known)
        return behind(self, known)

    monkeypatch.setattr(Database, "behind", look)
    writer = log_of(world)._writer
    assert writer is not None
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.append, "a")
            await until(lambda: len(log_of(world)._jobs) == 1 and not writer._appends)
            assert writer._wake is not None
            another = Wake(processes.path.with_name("log.db.wake"))
            another.wake_others()
            another.close()
            await until(lambda: not select([writer._wake], [], [], 0)[0])
            database.execute("ROLLBACK")
    await until(lambda: looked_behind == [encode(world.committed[0].id)])


@pytest.mark.usefixtures("watchful")
async def test_those_who_cannot_be_woken_look_by_themselves(processes: Processes) -> None:
    processes.path.with_name("log.db.wake").write_text("in the way")
    first, second = await processes.begin(), await processes.begin()
    ids = await first.append("a", "b")
    await until(lambda: ids_of(second.committed) == ids)
    assert processes.said() == ["other processes cannot wake this one"] * 2


async def test_who_appends_hands_over_first_what_was_before(unwoken: Processes) -> None:
    first, second = await unwoken.begin(), await unwoken.begin()
    ids = await first.append("a") + await second.append("b") + await first.append("a", "b") + await second.append("a")
    assert ids_of(second.committed) == ids
    assert (await second.read("a", "b", after=ids[0])).events == second.committed[1:]


async def test_a_position_of_another_process_is_not_unknown(unwoken: Processes) -> None:
    first, second = await unwoken.begin(), await unwoken.begin()
    ids = await first.append("a", "b")
    assert second.committed == []
    found = await second.read("a", after=ids[0])
    assert (found.events, found.gap, found.upto) == ([], None, ids[1])
    assert ids_of(second.committed) == ids
    future = EventId(ids[1].ms + 1, 0)
    assert (await second.read("a", after=future)).gap == Gap(GapReason.UNKNOWN_ID, future, ids[1])


async def test_what_others_committed_comes_in_parts(unwoken: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.database._CATCH_UP_BYTES", 300)
    first, second = await unwoken.begin(), await unwoken.begin()
    parts = []
    log_of(second)._committed = lambda events: parts.append(ids_of(events))
    ids = await first.append(*["a"] * 10)
    assert (await second.read("a", after=ids[-1])).complete
    assert len(parts) > 2
    assert [each for part in parts for each in part] == ids


async def test_what_was_dropped_before_it_was_handed_over_is_skipped(unwoken: Processes) -> None:
    first, second = await unwoken.begin(history=3), await unwoken.begin(history=3)
    ids = await first.append(*["a"] * 10, "b")
    await looked(log_of(second))
    assert second.skipped == [ids[6]]
    assert ids_of(second.committed) == ids[7:]
    assert (await second.read("a", after=ids[0])).gap == Gap(GapReason.EVICTED, ids[0], ids[6])
    more = await first.append(*["a"] * 5)
    more += await second.append("b")
    assert second.skipped == [ids[6], more[1]]
    assert ids_of(second.committed) == [*ids[7:], *more[2:]]


async def test_too_much_to_be_handed_over_with_an_append(unwoken: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.database._MISSED_BYTES", 300)
    first, second = await unwoken.begin(), await unwoken.begin()
    ids = await first.append(*["a"] * 10)
    ids += await second.append("b")
    assert second.skipped == [ids[-2]]
    assert ids_of(second.committed) == ids[-1:]
    assert await second.ids("a", after=ids[0]) == ids[1:-1]


async def test_a_moment_of_grace_for_the_others(unwoken: Processes) -> None:
    first, second = await unwoken.begin(history=3, grace=10.0), await unwoken.begin(history=3, grace=10.0)
    ids = await first.append(*["a"] * 30)
    await looked(log_of(second))
    assert (second.skipped, ids_of(second.committed)) == ([], ids)
    await first.wait(11)
    assert await first.ids("a") == ids[-3:]
    # What is over all topics too old or too much has to wait as well.
    await first.append("b")
    first.clock.seconds += 61
    ids = await first.append("c")
    await looked(log_of(first))
    assert await first.ids(">") == ids


async def test_a_clock_that_was_ahead_does_not_keep_everything(processes: Processes) -> None:
    world = await processes.begin(history=10, grace=10.0, history_size=5000)
    world.clock.seconds += 1000
    await world.append("a")
    world.clock.seconds -= 1000
    for _ in range(10):
        ids = await world.append(*["a"] * 10)
    assert await world.ids("a") == ids
    for n in range(20):
        await world.append(f"large-{n}", data=b"1" * 1000)
    assert world.kept()[1] <= 5000


async def test_a_key_holds_for_all(processes: Processes) -> None:
    first, second = await processes.begin(), await processes.begin()
    ids = await first.append("a", "b", key=KEY)
    assert await second.append("a", "b", key=KEY) == ids
    with pytest.raises(RemoteProtocolError, match="another request"):
        await second.append("a", key=KEY._replace(fingerprint=b"2"))


async def test_the_same_key_twice_at_once(processes: Processes) -> None:
    worlds = [await processes.begin(), await processes.begin()]
    answers = []

    async def publish(world: World) -> None:
        answers.append(await world.append("a", key=KEY))

    async with trio.open_nursery() as nursery:
        for world in worlds * 5:
            nursery.start_soon(publish, world)
    assert len({tuple(ids) for ids in answers}) == 1
    assert worlds[0].kept()[0] == 1


async def test_many_that_begin_at_once_on_no_file_yet(processes: Processes) -> None:
    worlds = [processes.prepare() for _ in range(6)]
    begun = 0

    async def use(world: World) -> None:
        nonlocal begun
        async with world.log.open(world.committed.extend):
            begun += 1
            await until(lambda: begun == len(worlds))
            await world.append("a")
            await until(lambda: len(world.committed) == len(worlds))

    async with trio.open_nursery() as nursery:
        for world in worlds:
            nursery.start_soon(use, world)
    assert all(world.committed == worlds[0].committed for world in worlds)


# Restarts


async def test_a_restart_keeps_everything(processes: Processes) -> None:
    before = processes.prepare()
    async with before.log.open(before.committed.extend):
        ids = await before.append("a", "b", key=KEY)
    processes.clock.seconds -= 100  # the clock was wrong
    after = await processes.begin()
    assert after.log.last_id == ids[-1]
    assert after.committed == []
    assert (await after.read("a", "b", after=ids[0])).events == before.committed[1:]
    assert (await after.read(">")).events == before.committed
    assert await after.append("a", "b", key=KEY) == ids
    ids += await after.append("a")
    assert ids == sorted(ids)
    assert (await after.read("a", after=EventId(999_000, 0))).gap == Gap(
        GapReason.RESTARTED, EventId(999_000, 0), EventId(1_000_000, 0)
    )


async def test_the_newest_are_in_memory_after_a_restart(processes: Processes) -> None:
    before = processes.prepare(history=3)
    async with before.log.open(before.committed.extend):
        ids = await before.append("b", *["a"] * 5, "b")
    after = await processes.begin(history=3)
    log = log_of(after)
    assert await after.ids("a", "b", after=ids[2]) == ids[3:]
    assert log._idle_readers == []
    # Whether something is missing before that, only the file knows.
    assert (await after.read("a", after=ids[1])).gap == Gap(GapReason.EVICTED, ids[1], ids[2])
    assert (await after.read("b", after=ids[0])).gap is None
    assert len(log._idle_readers) == 1


async def test_only_so_much_is_taken_into_memory(processes: Processes) -> None:
    before = processes.prepare()
    async with before.log.open(before.committed.extend):
        ids = await before.append(*["a"] * 20)
    after = await processes.begin(cache_size=10_000)
    window = log_of(after)._window
    assert 0 < window.kept < 20
    assert window.start == ids[-window.kept - 1]
    assert await after.ids("a", after=ids[0]) == ids[1:]


async def test_the_last_one_leaves_nothing_but_the_file(processes: Processes) -> None:
    descriptors = open_descriptors()
    for _ in range(2):
        first, second = processes.prepare(cache_size=1), processes.prepare(cache_size=1)
        async with first.log.open(first.committed.extend), second.log.open(second.committed.extend):
            await first.append("a")
            await second.ids("a")
            await first.ids("a")
    assert sorted(path.name for path in processes.path.parent.iterdir()) == ["log.db", "log.db.wake"]
    assert list(processes.path.with_name("log.db.wake").iterdir()) == []
    assert not open_descriptors() - descriptors


# Dropping


async def test_a_shorter_history_is_reached_in_steps(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.database._MAX_DROPS", 20)
    before = processes.prepare(history=1000)
    async with before.log.open(before.committed.extend):
        ids = await before.append(*["a"] * 500)
    after = await processes.begin(history=10)
    ids += await after.append("a")
    assert after.kept()[0] > 100
    await looked(log_of(after))
    await until(lambda: after.kept()[0] <= 11)
    assert await after.ids("a") == ids[-after.kept()[0] :]


async def test_who_appends_does_not_wait_for_old_events_to_go(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast.log.database._MAX_DROPS", 2)
    monkeypatch.setattr("tricast.log.database._MAX_DROPS_WITH_APPEND", 1)
    world = await processes.begin(history=1000)
    await world.append(*["a"] * 300)
    log = log_of(world)
    kept_at_append: list[int] = []
    trim = Database.trim

    def trim_and_append(self: Database) -> bool:
        result = trim(self)
        if not kept_at_append:
            kept_at_append.append(world.kept()[0])
            trio.from_thread.run_sync(start_append, trio_token=token)
        return result

    def start_append() -> None:
        nursery.start_soon(world.append, "b")

    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr(Database, "trim", trim_and_append)
    world.clock.seconds += 61
    async with trio.open_nursery() as nursery:
        await looked(log)
    assert kept_at_append == [298]
    await until(lambda: world.kept()[0] == 1)


async def test_a_topic_that_is_forgotten_before_it_is_shortened(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast.log.database.MAX_GONE", 0)
    first, second = await processes.begin(history=1, grace=1.0), await processes.begin(history=1)
    await first.append("a", "a", "a")
    first.clock.seconds += 61
    await looked(log_of(second))
    await looked(log_of(first))
    assert first.kept() == (0, 0)


# What may be wrong with a file at the beginning


async def refusal(world: World) -> str:
    with pytest.raises(LogUnavailable) as caught:
        async with world.log.open(world.committed.extend):
            raise AssertionError("it was opened")
    assert str(world.path) in caught.value.why
    assert caught.value.detail == f"the log is not available: {caught.value.why}"
    return caught.value.why.removeprefix(f"{world.path}: ")


async def test_no_folder(tmp_path: Path) -> None:
    world = World(sqlite_log(tmp_path / "no" / "log.db", Clock()), tmp_path / "no" / "log.db", Clock())
    assert await refusal(world) == "its folder does not exist"
    path = tmp_path / ("x" * 300) / "log.db"
    world = World(sqlite_log(path, Clock()), path, Clock())
    assert await refusal(world) == "the database file cannot be used: file name too long"


async def test_a_folder_in_which_nothing_can_be_made() -> None:
    path = Path("/proc/self/log.db")
    assert await refusal(World(sqlite_log(path, Clock()), path, Clock())) == (
        "the database file cannot be opened, nor made"
    )


async def test_a_file_that_is_no_database(processes: Processes) -> None:
    processes.path.write_bytes(b"Dear diary, " * 1000)
    assert await refusal(processes.prepare()) == "the file is not a database"
    assert processes.path.read_bytes() == b"Dear diary, " * 1000


async def test_the_database_of_another_program(processes: Processes) -> None:
    with other_program(processes.path) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    before = processes.path.read_bytes()
    assert await refusal(processes.prepare()) == "the file is a SQLite database of another program"
    assert processes.path.read_bytes() == before


async def test_a_log_of_a_later_version(processes: Processes) -> None:
    with other_program(processes.path) as database:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 2")
    assert await refusal(processes.prepare()) == "the log has version 2, and only version 1 is known here"


async def test_the_file_is_for_its_owner_alone(processes: Processes) -> None:
    umask = os.umask(0)
    try:
        world = await processes.begin()
        await world.append("a")
    finally:
        os.umask(umask)
    files = [path for path in processes.path.parent.iterdir() if path.is_file()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == dict.fromkeys(
        ("log.db", "log.db-wal", "log.db-shm"), 0o600
    )


async def test_a_file_that_is_there_keeps_its_mode(processes: Processes) -> None:
    processes.path.touch()
    processes.path.chmod(0o660)
    await (await processes.begin()).append("a")
    assert stat.S_IMODE(processes.path.stat().st_mode) == 0o660


async def test_a_link_to_where_the_file_will_be(processes: Processes) -> None:
    elsewhere = processes.path.with_name("elsewhere.db")
    processes.path.symlink_to(elsewhere)
    await (await processes.begin()).append("a")
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600


async def test_an_empty_file_is_a_new_log(processes: Processes) -> None:
    processes.path.touch()
    assert await (await processes.begin()).append("a")


async def test_a_database_that_another_program_locks(processes: Processes) -> None:
    world = processes.prepare(patience=0.05)
    async with world.log.open(world.committed.extend):
        await world.append("a")
    with other_program(processes.path) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        assert await refusal(world) == "the database is locked by another program"
    async with world.log.open(world.committed.extend):
        await world.append("a")


async def test_a_damaged_database(processes: Processes) -> None:
    world = processes.prepare()
    async with world.log.open(world.committed.extend):
        await world.append(*["a"] * 100, data=b"1" * 1000)
    with processes.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (processes.path.stat().st_size - 4096))
    assert await refusal(world) == "the database is damaged"


async def test_a_database_without_its_beginning(processes: Processes) -> None:
    world = processes.prepare()
    async with world.log.open(world.committed.extend):
        await world.append("a")
    with other_program(processes.path) as database:
        database.execute("DELETE FROM log")
    assert await refusal(world) == "the database has lost its beginning"


def test_two_that_make_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.touch()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def be_quicker(seconds: float) -> None:
        other.execute("CREATE TABLE log (n)")
        other.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        other.execute("PRAGMA user_version = 1")
        other.execute("COMMIT")
        other.close()

    file = SqliteFile(path, synchronous="off", patience=10.0, tables="CREATE TABLE log (n)", pause=be_quicker)
    assert file.run("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    file.close()


def test_tables_are_made_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        SqliteFile(
            tmp_path / "log.db", synchronous="off", patience=1.0, tables="CREATE TABLE a (n);nonsense", pause=print
        )
    with other_program(tmp_path / "log.db") as database:
        assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


# What may go wrong later


async def unavailable(world: World, *, data: bytes = b"1") -> str:
    with pytest.raises(LogUnavailable) as caught:
        await world.append("a", data=data)
    return caught.value.why


@pytest.mark.usefixtures("watchful")
async def test_a_lock_that_lasts(processes: Processes) -> None:
    world = await processes.begin(patience=0.05)
    (first,) = await world.append("a")
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            assert await unavailable(world) == "the database is locked by another program"
        assert world.log.problem == "the database is locked by another program"
        # Reading goes on.
        assert await world.ids("a") == [first]
    await until(lambda: world.log.problem is None)
    (second,) = await world.append("a")
    assert await world.ids("a") == [first, second]
    assert processes.said() == ["the log is not available", "the log is available again"]
    assert processes.records.entries[0]["why"] == "the database is locked by another program"


async def test_a_lock_while_old_events_have_to_go(processes: Processes) -> None:
    world = await processes.begin(patience=0.05)
    await world.append("a")
    world.clock.seconds += 61
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        writer = log_of(world)._writer
        assert writer is not None
        writer._trim_at = 0.0
        writer.look_again()
        await until(lambda: world.log.problem is not None)
        assert world.kept()[0] == 1
    await until(lambda: world.log.problem is None)
    await looked(log_of(world))
    assert world.kept() == (0, 0)


async def test_a_lock_that_is_let_go_in_time(processes: Processes) -> None:
    world = await processes.begin()
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.append, "a")
            await until(lambda: len(log_of(world)._jobs) == 3)
            database.execute("ROLLBACK")
    assert len(world.committed) == 3
    assert processes.said() == []


def limit_pages(world: World, count: int) -> None:
    writer = log_of(world)._writer
    assert writer is not None
    assert writer._database is not None
    writer._database._run(f"PRAGMA max_page_count = {count}")


@pytest.mark.usefixtures("watchful")
async def test_a_database_that_is_full(processes: Processes) -> None:
    world = await processes.begin()
    await world.append("a")
    limit_pages(world, 1)  # as small as it is now
    assert await unavailable(world, data=b"1" * 100_000) == "the disk is full"
    assert world.log.problem == "the disk is full"
    assert await unavailable(world, data=b"1" * 100_000) == "the disk is full"
    assert len(world.committed) == 1
    limit_pages(world, 10**6)
    await until(lambda: world.log.problem is None)
    await world.append("a", data=b"1" * 100_000)
    assert processes.said() == ["the log is not available", "the log is available again"]


async def test_what_does_not_fit_fails_alone(processes: Processes) -> None:
    world = await processes.begin()
    await world.append("a")
    limit_pages(world, 40)
    outcomes: dict[str, object] = {}

    async def publish(topic: str, size: int) -> None:
        try:
            outcomes[topic] = await world.append(topic, data=b"1" * size)
        except LogUnavailable as error:
            outcomes[topic] = error.why

    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")  # so that they come together
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, "before", 1)
            await until(lambda: len(log_of(world)._jobs) == 1)
            for topic, size in (("small", 1), ("large", 10**6), ("also-small", 1)):
                nursery.start_soon(publish, topic, size)
            await until(lambda: len(log_of(world)._jobs) == 4)
            database.execute("ROLLBACK")
    assert outcomes.pop("large") == "the disk is full"
    assert sorted(outcomes) == ["also-small", "before", "small"]
    assert all(isinstance(outcome, list) for outcome in outcomes.values())
    assert [event.topic for event in world.committed if event.topic == "large"] == []


@pytest.mark.usefixtures("watchful")
async def test_a_database_that_may_not_be_written(processes: Processes) -> None:
    world = await processes.begin()
    writer = log_of(world)._writer
    assert writer is not None
    assert writer._database is not None
    writer._database._run("PRAGMA query_only = 1")
    assert await unavailable(world) == "the database cannot be written, it is read-only"
    # It was opened again.
    await until(lambda: world.log.problem is None)
    assert await world.append("a")


@pytest.mark.usefixtures("watchful")
async def test_a_file_that_is_taken_away_and_put_back(processes: Processes) -> None:
    world = await processes.begin(cache_size=1)
    ids = await world.append("a")
    assert await world.ids("a") == ids
    names = ["log.db", "log.db-wal", "log.db-shm"]
    for name in names:
        processes.path.with_name(name).rename(processes.path.with_name(f"away-{name}"))
    await until(lambda: world.log.problem is not None)
    assert await unavailable(world) == "the database file cannot be opened, nor made"
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await world.read("a")
    processes.path.touch()
    await until(lambda: world.log.problem == "the database file is empty")
    processes.path.unlink()
    for name in reversed(names):  # without the others, the database itself would be one that has lost its newest
        processes.path.with_name(f"away-{name}").rename(processes.path.with_name(name))
    await until(lambda: world.log.problem is None)
    assert await world.ids("a") == ids
    assert await world.append("a")
    said = processes.said()
    assert said.count("the log is not available") == said.count("the log is available again") == 1
    assert said.count("the log cannot be read") == said.count("the log can be read again") == 1


async def test_another_log_in_the_place_of_the_file(processes: Processes) -> None:
    world = await processes.begin()
    world.clock.seconds += 100
    ids = await world.append("a")
    for path in processes.path.parent.glob("log.db*"):
        if path.is_file():
            path.unlink()
    world.clock.seconds -= 50
    other = sqlite_log(processes.path, processes.clock)
    async with other.open(lambda _: None):
        await other.append([Draft("b", "message", b"1")])
    # Woken by the other one, it has seen that already.
    await until(lambda: world.log.problem is not None)
    assert processes.records.entries[0]["why"] == "the database file was removed or replaced"
    ids += await world.append("a")
    assert ids == sorted(ids)


async def test_too_many_that_wait(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.sqlite._MAX_WAITING", 2)
    world = await processes.begin()
    far = EventId(2**40, 0)
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(world.append, "a")
            await until(lambda: len(log_of(world)._jobs) == 2)
            assert await unavailable(world) == "too many publishes are waiting for the disk"
            # Those who come back take no room away from them, however many they are, nor the other way round.
            for _ in range(50):
                nursery.start_soon(partial(world.read, "a", after=far))
            await until(lambda: len(log_of(world)._jobs) == 3)
            database.execute("ROLLBACK")
    assert await world.append("a")
    assert log_of(world)._jobs == {}


async def test_who_comes_back_is_not_answered_by_an_earlier_look(
    unwoken: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await unwoken.begin(), await unwoken.begin()
    behind = Database.behind
    begun, go_on = threading.Event(), threading.Event()

    def look(self: Database, known: int) -> Behind:
        found = behind(self, known)
        begun.set()
        go_on.wait(HANG_SECONDS)
        return found

    monkeypatch.setattr(Database, "behind", look)
    ids = await first.append("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(looked, log_of(second))
        await until(begun.is_set)
        # Only now is it committed, behind what that look has seen.
        ids += await first.append("a", "a")
        nursery.start_soon(partial(second.read, "a", after=ids[1]))
        nursery.start_soon(partial(second.read, "a", after=ids[1]))
        await until(lambda: len(log_of(second)._jobs) == 2)
        found: list[EventId] = []

        async def come_back() -> None:
            found.extend(await second.ids("a", after=ids[1]))

        nursery.start_soon(come_back)
        await trio.testing.wait_all_tasks_blocked()
        assert len(log_of(second)._jobs) == 2
        go_on.set()
    assert found == ids[2:]


async def test_looks_end_with_the_thread(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs: list[threading.ExceptHookArgs] = []
    world = processes.prepare()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async def use() -> None:
        async with world.log.open(world.committed.extend):
            monkeypatch.setattr(Database, "behind", fail)
            with trio.CancelScope(shield=True):
                for why in ("its thread has failed", "the log is not open"):
                    with pytest.raises(LogUnavailable, match=why):
                        await world.read("a", after=EventId(2**40, 0))
            await trio.sleep_forever()

    monkeypatch.setattr(threading, "excepthook", bugs.append)
    monkeypatch.setattr("tricast.log.writer.LOOK_SECONDS", 1000.0)
    with pytest.raises(LogUnavailable):
        await use()
    await until(lambda: bool(bugs))


async def test_small_events_that_wait_take_memory_too(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.sqlite._MAX_WAITING_BYTES", 1000)
    world = await processes.begin()
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.append, *["a"] * 5, data=b""))
            await until(lambda: len(log_of(world)._jobs) == 1)
            assert await unavailable(world) == "too many publishes are waiting for the disk"
            database.execute("ROLLBACK")
    assert await world.append("a")


async def test_a_large_crowd_is_committed_in_groups(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.writer._MAX_GROUP_DRAFTS", 7)
    world = await processes.begin()
    groups: list[int] = []

    def commit(events: Sequence[Event]) -> None:
        groups.append(len(events))
        world.committed.extend(events)

    log_of(world)._committed = commit
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(world.append, "a", "b", "c")
        nursery.start_soon(world.append, *["a"] * 10)
    assert len(world.committed) == 160
    assert ids_of(world.committed) == sorted(set(ids_of(world.committed)))
    # One that is larger is alone.
    assert set(groups) <= {3, 6, 10}


async def test_a_turn_of_who_takes_what_is_new_is_short(unwoken: Processes) -> None:
    first, second = await unwoken.begin(history=5000), await unwoken.begin(history=5000)
    turns: list[int] = []
    log_of(second)._committed = lambda events: turns.append(len(events))
    await first.append(*["a"] * 5000)
    await looked(log_of(second))
    assert sum(turns) == 5000
    assert max(turns) <= 1000
    turns.clear()
    with other_program(unwoken.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(second.append, *["a"] * 10)
            await until(lambda: len(log_of(second)._jobs) == 300)
            database.execute("ROLLBACK")
    assert sum(turns) == 3000
    assert max(turns) <= 500


async def test_who_is_cancelled_may_have_appended(processes: Processes) -> None:
    world = await processes.begin()
    with other_program(processes.path) as database:
        database.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.append, "a")
            await until(lambda: len(log_of(world)._jobs) == 1)
            nursery.cancel_scope.cancel()
    ids = await world.append("b")
    assert ids_of(world.committed)[-1:] == ids
    assert log_of(world)._jobs == {}


async def test_leaving_while_somebody_waits(processes: Processes) -> None:
    world = processes.prepare(patience=5.0)  # in which both come to it
    outcomes = []

    async def publish() -> None:
        outcomes.append(await unavailable(world))

    with other_program(processes.path) as database:
        async with trio.open_nursery() as nursery, world.log.open(world.committed.extend):
            database.execute("BEGIN IMMEDIATE")
            log = log_of(world)
            for count in (1, 2):
                nursery.start_soon(publish)
                await until(lambda count=count: len(log._jobs) == count)  # type: ignore[misc]
                # The first one is in the thread's hands, the second one in its queue.
                await until(lambda count=count: log._writer is not None and len(log._writer._appends) == count - 1)  # type: ignore[misc]
    assert sorted(outcomes) == ["the database is locked by another program", "the log is not open"]


async def test_without_a_free_descriptor_it_goes_on(unwoken: Processes) -> None:
    unwoken.path.with_name("log.db.wake").unlink()
    first, second = await unwoken.begin(), await unwoken.begin()
    ids = await first.append("a")
    with no_descriptors():
        ids += await first.append("a")
    ids += await first.append("a")
    await until(lambda: ids_of(second.committed) == ids)
    assert unwoken.said() == []


@pytest.mark.parametrize("fails", [(Database, "append"), (Wake, "wake_others")])
async def test_a_bug_in_the_thread_ends_all(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, fails: tuple[type, str]
) -> None:
    world = processes.prepare()
    bugs: list[threading.ExceptHookArgs] = []

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(threading, "excepthook", bugs.append)
    monkeypatch.setattr(*fails, fail)

    async def use() -> None:
        async with world.log.open(world.committed.extend):
            with trio.CancelScope(shield=True), suppress(LogUnavailable):  # it may have been committed
                await world.append("a")
                await log_of(world)._ended.wait()
            assert world.log.problem == "its thread has failed"
            assert await unavailable(world) == "the log is not open"
            await trio.sleep_forever()

    with pytest.raises(LogUnavailable) as caught:
        await use()
    assert caught.value.why == f"{processes.path}: its thread has failed"
    assert processes.said() == ["the log has ended"]
    await until(lambda: bool(bugs))


def test_a_thread_that_is_late_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs: list[threading.ExceptHookArgs] = []
    threads = []
    monkeypatch.setattr(threading, "excepthook", bugs.append)
    monkeypatch.setattr("tricast.log.sqlite._LAST_COMMIT_SECONDS", 0.0)
    log = sqlite_log(tmp_path / "log.db", Clock(), patience=HANG_SECONDS)

    async def leave_too_early() -> None:
        with trio.fail_after(HANG_SECONDS):
            async with log.open(lambda _: None), trio.open_nursery() as nursery:
                database.execute("BEGIN IMMEDIATE")
                nursery.start_soon(log.append, [Draft("a", "message", b"1")])
                await until(lambda: log._writer is not None and len(log._jobs) == 1 and not log._writer._appends)
                threads.extend(each for each in threading.enumerate() if each.name == "tricast log")
                writers.append(log._writer)
                nursery.cancel_scope.cancel()

    writers: list[Writer | None] = []
    (tmp_path / "log.db").touch()
    with other_program(tmp_path / "log.db") as database:
        trio.run(leave_too_early)
        database.execute("ROLLBACK")
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
    (writer,) = writers
    assert writer is not None
    writer.close()
    assert bugs == []


async def test_opening_that_is_cancelled(processes: Processes) -> None:
    world = processes.prepare()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with world.log.open(world.committed.extend):
            raise AssertionError("it was opened")
    assert scope.cancelled_caught
    async with world.log.open(world.committed.extend):
        assert await world.append("a")


async def test_a_thousand_who_come_back_do_not_hold_up_who_publishes(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await processes.begin(cache_size=1, history=1000)
    ids = await world.append(*["a"] * 500)
    done = 0
    read, go_on = Database.read, threading.Event()

    def read_late(*arguments: Any, **more: Any) -> Slice:
        go_on.wait(HANG_SECONDS)
        return read(*arguments, **more)

    monkeypatch.setattr(Database, "read", read_late)

    async def come_back() -> None:
        nonlocal done
        found = await world.log.read(TopicSet(["a"]), ids[0], max_bytes=2000)
        assert found.events
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(come_back)
        await trio.lowlevel.checkpoint()
        try:
            await world.append("a")
            assert done == 0
        finally:
            go_on.set()
    assert done == 1000


async def test_who_reads_and_is_cancelled_gives_the_reader_back(processes: Processes) -> None:
    world = await processes.begin(cache_size=1)
    await world.append("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.read("a", after=BEGINNING)
    assert await world.ids("a")
    assert log_of(world)._reading.borrowed_tokens == 0
