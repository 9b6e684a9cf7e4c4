"""A log seen from outside while servers use it, and what its servers tell of what was dropped by hand."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from log.worlds import Clock, World, ids_of, looked, sqlite_log, world_of

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, EventId, GapReason, Position, ShardedId, TopicSet
from tricast.log.inspection import Cut, Inspected, Kept
from tricast.log.sqlite import SqliteLog
from tricast.log.sqlite_inspection import SqliteInspection

ALL = TopicSet([">"])


def inspection_of(path: Path) -> SqliteInspection:
    return SqliteInspection(path, synchronous="off")


async def filled(world: World, *topics: str, seconds: float = 1.0) -> list[EventId]:
    """An event in each of the topics, one after the other."""
    ids = []
    for topic in topics:
        ids += await world.append(topic)
        world.clock.seconds += seconds
    return ids


def events_of(kept: Sequence[Kept]) -> list[Position]:
    return ids_of([each.event for each in kept])


async def test_what_a_log_holds(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite", path) as world:
        inspection = inspection_of(path)
        async with inspection.open():
            empty = await inspection.holding()
            assert (empty.first, empty.events, empty.topics, empty.size, empty.since) == (None, 0, 0, 0, None)
            assert empty.last == world.log.last_id
            ids = await filled(world, "a", "b", "a")
            held = await inspection.holding()
    assert (held.first, held.last, held.events, held.topics, held.since) == (ids[0], ids[2], 3, 2, ids[0].ms / 1000)
    assert held.size == world.kept()[1] > 0


async def test_the_newest_of_some_topics(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite", path) as world:
        ids = await filled(world, "a.x", "b", "a.y", "a.z", "b")
        inspection = inspection_of(path)
        async with inspection.open():
            assert events_of(await inspection.newest(ALL, 2)) == ids[3:]
            assert events_of(await inspection.newest(ALL, 0)) == []
            assert events_of(await inspection.newest(TopicSet(["a.*"]), 2)) == ids[2:4]
            found = await inspection.newest(TopicSet(["b"]), 9)
    assert [kept.at for kept in found] == [1001.0, 1004.0]
    assert events_of(found) == [ids[1], ids[4]]


@pytest.mark.parametrize(
    ("cut", "dropped"),
    [
        (Cut(keep=3), 2),
        (Cut(keep=5), 0),
        (Cut(keep=99), 0),
        (Cut(older_than=1002.0), 2),
        (Cut(older_than=1002.001), 3),
        (Cut(before=EventId(1003000, 0)), 3),
        (Cut(before=BEGINNING), 0),
        (Cut(before=EventId(2**60, 2**60)), 5),
    ],
    ids=str,
)
async def test_what_is_before_a_cut_is_dropped(tmp_path: Path, cut: Cut, dropped: int) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite without cache", path) as world:
        ids = await filled(world, "a", "b", "a", "b", "a")
        inspection = inspection_of(path)
        async with inspection.open():
            assert await inspection.drop(cut) == dropped
            assert await inspection.drop(cut) == 0
            held = await inspection.holding()
        assert held.events == len(ids) - dropped
        assert (held.events, held.size) == world.kept()
        assert held.last == ids[-1]
        assert await world.ids(">") == ids[dropped:]


async def test_more_than_one_transaction_drops(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite", path, history=2000) as world:
        ids = await world.append(*["a"] * 1201)
        inspection = inspection_of(path)
        async with inspection.open():
            assert await inspection.drop(Cut(keep=1)) == 1200
            assert events_of(await inspection.newest(ALL, 9)) == ids[-1:]


async def test_after_a_cut_those_who_were_there_go_on_and_those_who_come_are_told(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite", path) as running:
        ids = await filled(running, "a", "a", "b", "a")
        async with (inspection := inspection_of(path)).open():
            await inspection.drop(Cut(keep=1))
        ids += await filled(running, "a")
        assert isinstance(running.log, SqliteLog)
        await looked(running.log)
        assert ids_of(running.committed) == ids
        assert running.skipped == []
        # What it has in memory is as true as before.
        found = await running.read("a", after=ids[0])
        assert (ids_of(found.events), found.gap) == ([ids[1], ids[3], ids[4]], None)
        async with world_of("sqlite", path, clock=running.clock) as following:
            found = await following.read("a", after=ids[0])
            assert found.gap is not None
            assert (found.gap.reason, found.gap.resumed_at) == (GapReason.EVICTED, ids[1])
            assert ids_of(found.events) == ids[3:]
            assert (await following.read("a", after=ids[1])).gap is None


async def test_looking_drops_nothing_that_a_server_would_not(tmp_path: Path) -> None:
    path, clock = tmp_path / "log.db", Clock(10**9)  # long ago, by the clock of the machine
    log = sqlite_log(path, clock)
    async with log.open(lambda _: None):
        await log.append([Draft("a", "message", b"1")])
        async with (inspection := inspection_of(path)).open():
            assert (await inspection.holding()).events == 1
            assert await inspection.drop(Cut(keep=1)) == 0
            assert (await inspection.holding()).events == 1


async def test_where_there_is_no_log(tmp_path: Path) -> None:
    missing, other, empty = tmp_path / "missing.db", tmp_path / "other.db", tmp_path / "empty.db"
    other.write_text("something else" * 100)
    empty.touch()
    for path, why in (
        (missing, "there is no such file"),
        (other, "the file is not a database"),
        (empty, "the database file is empty"),
    ):
        with pytest.raises(LogUnavailable, match=f"{path.name}: {why}"):
            async with inspection_of(path).open():
                pytest.fail("it was opened")
    assert not missing.exists()
    assert empty.stat().st_size == 0


# Of several shards


async def test_of_several_shards_the_newest_are_those_by_time(tmp_path: Path) -> None:
    clock = Clock()
    async with AsyncExitStack() as scopes:
        worlds, shards = {}, {}
        for number in (0, 7):
            path = tmp_path / f"{number}.db"
            worlds[number] = await scopes.enter_async_context(world_of("sqlite", path, clock=clock))
            shards[number] = inspection_of(path)
            await scopes.enter_async_context(shards[number].open())
        ids = []
        for number in (0, 7, 7, 0, 7):
            ids += [ShardedId({number: (await filled(worlds[number], "a"))[0]})]
        inspected = Inspected(shards, is_sharded=True)
        found = await inspected.newest(ALL, 4)
        assert ids_of(found) == ids[1:]
        assert [str(event.id) for event in found] == list(map(str, ids[1:]))
        assert len(await inspected.newest(ALL, 99)) == 5
        assert await inspected.head() == ShardedId(ids[3].parts | ids[4].parts)
        alone = Inspected({0: shards[0]}, is_sharded=False)
        assert await alone.head() == ids[3].parts[0]
        assert ids_of(await alone.newest(ALL, 1)) == [ids[3].parts[0]]


def test_a_position_cuts_the_shards_that_it_tells_of() -> None:
    shards = {number: inspection_of(Path()) for number in (0, 1, 2)}
    many, one = Inspected(shards, is_sharded=True), Inspected({0: shards[0]}, is_sharded=False)
    plain, both = EventId(1, 2), ShardedId({0: EventId(1, 2), 2: EventId(3, 4)})
    assert one.cuts(plain) == {0: Cut(before=plain)}
    assert many.cuts(both) == {0: Cut(before=EventId(1, 2)), 2: Cut(before=EventId(3, 4))}
    for inspected, position in ((one, both), (many, plain), (many, ShardedId({3: plain}))):
        with pytest.raises(RemoteProtocolError, match="no position in this log"):
            inspected.cuts(position)


async def test_cancelling_leaves_a_log_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with world_of("sqlite", path, history=5000) as world:
        await world.append(*["a"] * 3000)
        inspection = inspection_of(path)
        async with inspection.open():
            with trio.CancelScope() as scope:
                scope.cancel()
                await inspection.drop(Cut(keep=1))
            assert scope.cancelled_caught
            held = await inspection.holding()
        assert (held.events, held.size) == world.kept()
