"""A partition as a log, without a Kafka: what it takes from a reader, and what it asks of the history."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from log.worlds import Clock

from tricast.errors import LogUnavailable
from tricast.event import Event, EventId, Gap, GapReason, Position, ShardedId, TopicSet
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.kafka_records import OwnRecords, Record, headers_of, marks_of
from tricast.log.kafka_shard import Keeping, Reading, Shard
from tricast.log.kafka_threads import Found, Place
from tricast.log.statistics import Statistics

PLACE = Place("events", 0)
TOPICS = TopicSet(["a"])


class FakeHistory:
    """Has these records, and gives them all."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.low = 0

    def end(self, place: Place) -> int:
        return self.records[-1].offset + 1 if self.records else 0

    def read(self, place: Place, begin: int, end: int, use: Callable[[int, Iterator[Record]], Any]) -> Any:
        first = max(begin, self.low)
        return use(first, iter([each for each in self.records if first <= each.offset < end]))


class ShardWorld:
    """A shard with what it hands over."""

    def __init__(self, length: int = 100, cache_size: int = 10**6) -> None:
        self.clock = Clock()
        self.history = FakeHistory()
        self.shard = Shard(PLACE, OwnRecords(50), Keeping(length, 60.0, cache_size, 60.0, 10), self._append)
        self.shard.begin(self._reading(), 5, 0, 0)
        self.committed: list[Event] = []
        self.skipped: list[Position] = []

    def _reading(self) -> Reading:
        limiter = trio.CapacityLimiter(1)
        return Reading(self.history, limiter, 5.0, self.clock, Statistics())  # type: ignore[arg-type]

    async def _append(self, drafts: object, key: object) -> list[EventId]:
        return [EventId(5, 1)]

    def take(self, *offsets: int, end: int | None = None, marks: Sequence[Any] = (), incarnation: int = 5) -> None:
        """Has the shard take records with these offsets, and come to its end at one behind them."""
        found = Found(incarnation, self.shard.next_offset)
        for index, offset in enumerate(offsets):
            mark = marks[index] if marks else None
            headers = dict(headers_of(OwnRecords(50).read(Record(0, 0, b"a", b"1", {})), mark))
            record = Record(offset, int(self.clock.seconds * 1000), b"a", b"%d" % offset, headers)
            self.history.records.append(record)
            found.take(record, OwnRecords(50))
        if end is not None:
            found.next_offset = end
        found.is_at_end = True
        self.shard.deliver(found)

    async def read(self, after: Position) -> Slice:
        return await self.shard.read(TOPICS, after, max_bytes=10**6)


def offsets(found: Slice) -> list[int]:
    return [int(event.data) for event in found.events]


async def test_what_was_read_before_it_opens_is_kept_and_not_handed_over() -> None:
    world = ShardWorld()
    world.take(0, 1)
    async with world.shard.open(world.committed.extend, world.skipped.append):
        world.take(2)
        assert [event.data for event in world.committed] == [b"2"]
    world.take(3)
    assert len(world.committed) == 1
    assert offsets(await world.read(EventId(0, 0))) == [0, 1, 2, 3]
    assert world.shard.has_come_to_end


async def test_it_is_a_log() -> None:
    shard = ShardWorld().shard
    assert shard.waits
    assert shard.problem is None
    assert shard.shards_of(TOPICS) is None
    assert shard.statistics.lags == {}
    assert await shard.append([]) == [EventId(5, 1)]


async def test_offsets_may_be_missing() -> None:
    world = ShardWorld()
    world.take(0, 3, end=6)
    world.take(6)
    assert world.shard.last_id == EventId(5, 7)
    assert offsets(await world.read(EventId(5, 1))) == [3, 6]
    assert offsets(await world.read(EventId(5, 5))) == [6]


async def test_what_was_read_before_it_went_elsewhere_is_not_taken() -> None:
    world = ShardWorld()
    world.take(0)
    async with world.shard.open(world.committed.extend, world.skipped.append):
        assert world.shard.restart(6, 10) == EventId(6, 10)
        assert world.skipped == [EventId(6, 10)]
        stale = Found(5, 1)
        stale.take(Record(1, 0, b"a", b"1", {}), OwnRecords(50))
        world.shard.deliver(stale)
        world.take(10, incarnation=6)
        assert [event.id for event in world.committed] == [EventId(6, 11)]


async def test_what_is_read_twice_is_taken_once() -> None:
    world = ShardWorld()
    async with world.shard.open(world.committed.extend, world.skipped.append):
        world.take(0, 1)
        again = Found(5, 1)
        for offset in (1, 2):
            again.take(Record(offset, 0, b"a", b"%d" % offset, {}), OwnRecords(50))
        world.shard.deliver(again)
        world.take(3)
        assert [event.data for event in world.committed] == [b"0", b"1", b"2", b"3"]


async def test_while_others_write_it_comes_to_the_end_there_was() -> None:
    world = ShardWorld()
    assert world.shard.begin(world._reading(), 5, 0, 2) == EventId(5, 0)
    for offset in range(3):
        assert world.shard.has_come_to_end is (offset == 2)
        found = Found(5, offset)
        found.take(Record(offset, 0, b"a", b"1", {}), OwnRecords(50))
        world.shard.deliver(found)


async def test_positions_of_another_kind_and_ahead() -> None:
    world = ShardWorld()
    world.take(0)
    for position in (ShardedId({0: EventId(5, 1)}), EventId(5, 3)):
        found = await world.read(position)
        assert found.gap is not None
        assert found.gap.reason is GapReason.UNKNOWN_ID


async def test_positions_of_another_incarnation() -> None:
    world = ShardWorld()
    world.take(0, 1)
    for before in (EventId(4, 1), EventId(6, 1)):
        found = await world.read(before)
        assert found.gap == Gap(GapReason.RESTARTED, before, EventId(5, 0))
        assert offsets(found) == [0, 1]


async def test_a_position_that_is_read_soon_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    world = ShardWorld()
    world.take(0)
    world.history.records.append(Record(1, 0, b"a", b"1", {}))
    found: list[Slice] = []

    async def read() -> None:
        found.append(await world.read(EventId(5, 2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        world.history.records.pop()
        world.take(1)
    assert (found[0].gap, found[0].upto) == (None, EventId(5, 2))
    world.history.records.append(Record(2, 0, b"a", b"1", {}))
    with pytest.raises(LogUnavailable, match="does not give back"):
        await world.read(EventId(5, 3))


@pytest.mark.parametrize("incarnation", [4, 6])
async def test_a_position_that_is_waited_for_and_lost(incarnation: int, autojump_clock: trio.testing.MockClock) -> None:
    world = ShardWorld()
    world.take(0)
    world.history.records.append(Record(1, 0, b"a", b"1", {}))
    found: list[Slice] = []

    async def read() -> None:
        found.append(await world.read(EventId(5, 2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        world.shard.restart(incarnation, 0)
        world.take(0, 1, 2, incarnation=incarnation)
    assert found[0].gap is not None
    assert found[0].gap.reason is GapReason.UNKNOWN_ID


async def test_repetitions_are_left_out_of_the_history_too() -> None:
    world = ShardWorld(length=3, cache_size=1)
    first, second = (marks_of(b"k", b"f", attempt, 1)[0] for attempt in (b"1", b"2"))
    world.take(0, 1, marks=[first, second])
    assert offsets(await world.read(EventId(0, 0))) == [0]
    used = world.shard.used(IdempotencyKey(b"k", b"f", 60.0, 10))
    assert used is not None
    assert used.ids == [EventId(5, 1)]
    world.history.records.append(Record(2, 0, None, b"1", {}))  # no event
    world.take(3, 4)
    assert offsets(await world.read(EventId(0, 0))) == [3, 4]
    assert world.shard._left_out == set()


async def test_it_goes_elsewhere_while_what_is_older_is_read() -> None:
    world = ShardWorld(cache_size=1)
    world.take(0, 1, 2)
    read = world.history.read

    def read_late(*arguments: Any) -> Any:
        found = read(*arguments)
        world.history.read = read  # type: ignore[method-assign]
        trio.from_thread.run_sync(world.shard.restart, 6, 1)
        return found

    world.history.read = read_late  # type: ignore[method-assign]
    found = await world.read(EventId(5, 1))
    assert found.gap == Gap(GapReason.RESTARTED, EventId(5, 1), EventId(6, 1))
    assert found.events == []


async def test_kafka_may_drop_more_than_was_read() -> None:
    world = ShardWorld(cache_size=1)
    world.take(0, 1, 2)
    world.history.low = 10
    found = await world.read(EventId(5, 1))
    assert found == Slice([], Gap(GapReason.EVICTED, EventId(5, 1), EventId(5, 3)), EventId(5, 3), complete=True)
