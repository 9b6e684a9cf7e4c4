"""What every log does: order, what can be read again, what is told of what cannot, batches, and keys.

One suite over all of them (see ``log.kinds``), with their own clocks and however exactly they drop what is too much.
What logs do whose clock can be set is in ``test_retention.py``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
from clocks import HANG_SECONDS
from log.kinds import KINDS, Kind, Place
from log.worlds import held
from serving import until

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import (
    BEGINNING,
    Draft,
    Event,
    EventId,
    Gap,
    GapReason,
    Position,
    ShardedId,
    TopicSet,
    own_id,
    parse_position,
    seen_in,
)
from tricast.log.base import IdempotencyKey, Slice

PLENTY = 2**26

Topics = Iterable[str]


class Read(NamedTuple):
    """All that was read from a position on, in slices."""

    events: list[Event]
    gaps: list[Gap]
    upto: Position


class Process:
    """A log that is open, and what it has handed over.

    Attributes:
        committed: the events, in the order they came in.
        came_to: ``last_id`` as it was at many moments, with how many events had been handed over by then.
    """

    def __init__(self, place: Place) -> None:
        self.log = place.log()
        self.committed: list[Event] = []
        self.came_to: list[tuple[Position, int]] = []
        self._drop = place.drop

    def take(self, events: Sequence[Event]) -> None:
        self.committed += events
        assert all(self.log.last_id >= event.id for event in events)
        self.look()

    def look(self) -> None:
        self.came_to.append((self.log.last_id, len(self.committed)))

    def skip(self, position: Position) -> None:
        raise AssertionError(f"skipped up to {position}")

    async def append(
        self, *topics: str, data: Sequence[bytes] = (), kind: str = "message", key: IdempotencyKey | None = None
    ) -> list[Position]:
        """Appends one batch, with a number as the data of each event unless that is given."""
        texts = data or [msgspec.json.encode(index) for index in range(len(topics))]
        drafts = [Draft(topic, kind, text) for topic, text in zip(topics, texts, strict=True)]
        ids = list(await self.log.append(drafts, key))
        assert len(ids) == len(topics)
        return ids

    async def append_one_by_one(self, *topics: str) -> list[Event]:
        """Appends as many batches, and returns what was handed over for them."""
        begin = len(self.committed)
        for index, topic in enumerate(topics):
            await self.append(topic, data=[msgspec.json.encode([begin + index, topic])])
        await self.has(begin + len(topics))
        return self.committed[begin:]

    async def has(self, count: int) -> None:
        """Returns when so many events have been handed over."""
        await until(lambda: len(self.committed) >= count)

    async def drop(self) -> None:
        """What is too much is dropped now, about."""
        await self._drop(self.log)

    async def read(self, *topics: str, after: Position = BEGINNING, max_bytes: int = PLENTY) -> Slice:
        found = await self.log.read(TopicSet(topics), after, max_bytes=max_bytes)
        assert self.log.last_id >= found.upto
        return found

    async def read_all(self, *topics: str, after: Position = BEGINNING, max_bytes: int = PLENTY) -> Read:
        """Reads on, from where a client would come back, until the end is reached."""
        wanted, position = TopicSet(topics), self.told(after, *topics)
        events: list[Event] = []
        gaps: list[Gap] = []
        while True:
            found = await self.read(*topics, after=position, max_bytes=max_bytes)
            assert all(event.topic in wanted for event in found.events)
            assert not any(position >= event.id for event in found.events)
            assert all(found.upto >= event.id for event in found.events)
            if found.gap is not None:
                assert position >= found.gap.after
                assert found.upto >= found.gap.resumed_at
                gaps.append(found.gap)
            events += found.events
            assert found.complete or found.upto != position, "it does not go on"
            position = found.upto
            if found.complete:
                return Read(events, gaps, position)

    def told(self, position: Position, *topics: str) -> Position:
        """The position as a client of these topics brings it back."""
        return parse_position(str(seen_in(position, self.log.shards_of(TopicSet(topics)))))


Open = Callable[[Place], Awaitable[Process]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def place(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where nothing is dropped."""
    return kind.place(request, tmp_path, 20_000)


@pytest.fixture
def small_place(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where hardly anything is kept."""
    return kind.place(request, tmp_path, 50)


@pytest.fixture
async def begin() -> AsyncIterator[Open]:
    """Opens a log as one more process, until the test is over."""
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:

            async def begin(place: Place) -> Process:
                process = Process(place)
                await nursery.start(partial(held, process.log.open(process.take, process.skip)))
                return process

            yield begin
            nursery.cancel_scope.cancel()


def texts(events: Iterable[Event]) -> list[tuple[str, str, bytes]]:
    return [(event.topic, event.type, event.data) for event in events]


def by_topic(events: Iterable[Event]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for event in events:
        found.setdefault(event.topic, []).append(event.data)
    return found


def written(positions: Iterable[Position]) -> list[str]:
    return [str(position) for position in positions]


def ahead_of(position: Position) -> Position:
    if isinstance(position, ShardedId):
        return ShardedId({number: EventId(ms, counter + 10**6) for number, (ms, counter) in position.parts.items()})
    return EventId(position.ms, position.counter + 10**6)


# Order


async def test_an_empty_log(begin: Open, place: Place) -> None:
    process = await begin(place)
    assert process.log.problem is None
    assert await process.read_all("a", ">") == Read([], [], process.log.last_id)
    here = process.log.last_id
    assert await process.read_all("a", after=here) == Read([], [], process.log.last_id)
    assert process.log.last_id >= here


async def test_what_is_appended_is_handed_over_and_kept_as_it_was(begin: Open, place: Place) -> None:
    process = await begin(place)
    data = [b'{"n":1}', '"Größe 🙂"'.encode(), b'""', b"[ 1,\r\n 2 ]", b"null"]
    topics = ["news.eu.Zürich", "日本", "a", "$SYS", "a-b_c:d/e,f"]
    for topic, text in zip(topics, data, strict=True):
        await process.append(topic, data=[text], kind="a kind: " + topic)
    await process.has(5)
    expected = [(topic, "a kind: " + topic, text) for topic, text in zip(topics, data, strict=True)]
    assert texts(process.committed) == expected
    for topic, kind, text in expected:
        assert texts((await process.read_all(topic)).events) == [(topic, kind, text)]
    await process.append("plain", data=[b"1"])
    await process.has(6)
    assert texts((await process.read_all("plain")).events) == [("plain", "message", b"1")]


async def test_ids_are_in_order_and_each_is_there_once(begin: Open, place: Place) -> None:
    process = await begin(place)
    given: dict[str, bytes] = {}

    async def publish(name: str) -> None:
        for batch in range(10):
            data = [msgspec.json.encode(f"{name} {batch} {index}") for index in range(3)]
            # Topics that are always kept together.
            ids = await process.append(*["a.{1}", "b.{1}", "a.{1}"], data=data)
            given.update(zip(written(ids), data, strict=True))
            process.look()

    async with trio.open_nursery() as nursery:
        for name in "vwxyz":
            nursery.start_soon(publish, name)
    await process.has(150)
    ids = [event.id for event in process.committed]
    assert all(before < after for before, after in pairwise(ids))
    assert {str(event.id): event.data for event in process.committed} == given
    assert len(given) == 150
    # The batches one after the other, each in its order.
    numbers = [event.data[1:-1].split() for event in process.committed]
    assert [last for _, _, last in numbers] == [b"0", b"1", b"2"] * 50
    assert all(numbers[index][:2] == numbers[index + 2][:2] for index in range(0, 150, 3))
    # Nobody is told a position before it is true.
    for position, count in process.came_to:
        assert not any(position >= event_id for event_id in ids[count:])


async def test_a_clients_id_is_the_publishers(begin: Open, place: Place) -> None:
    process = await begin(place)
    ids = [*await process.append("a"), *await process.append("b")]
    await process.has(2)
    assert written(event.id for event in process.committed) == written(ids)
    for topic, event_id in zip("ab", ids, strict=True):
        (event,) = (await process.read_all(topic)).events
        assert str(event.id) == str(event_id)


async def test_10_000_topics(begin: Open, place: Place) -> None:
    process = await begin(place)
    together: dict[object, list[str]] = {}
    for topic in [f"t.{number}" for number in range(10_000)]:
        together.setdefault(process.log.shards_of(TopicSet([topic])), []).append(topic)
    for topics in together.values():
        for first in range(0, len(topics), 500):
            await process.append(*topics[first : first + 500])
    await process.has(10_000)
    assert len({event.topic for event in process.committed}) == 10_000
    read = await process.read_all("t.*", max_bytes=2**16)
    assert not read.gaps
    assert sorted(texts(read.events)) == sorted(texts(process.committed))
    for topic in ("t.0", "t.4999", "t.9999"):
        read = await process.read_all(topic)
        assert [event.topic for event in read.events] == [topic]
        (position,) = await process.append(topic)
        await until(lambda: process.log.last_id >= position)  # noqa: B023
        read = await process.read_all(topic, after=read.upto)
        assert (written(event.id for event in read.events), read.gaps) == ([str(position)], [])


async def test_events_of_one_byte_to_a_mebibyte(begin: Open, place: Place) -> None:
    process = await begin(place)
    sizes = [1, 2, 1000, 2**16 - 1, 2**16, 2**20]
    data = [b'"' + b"x" * (size - 2) + b'"' if size > 1 else b"1" for size in sizes]
    for text in data:
        await process.append("a", data=[text])
    await process.has(len(sizes))
    assert [event.data for event in process.committed] == data
    for max_bytes in (1, 2**16, PLENTY):
        read = await process.read_all("a", max_bytes=max_bytes)
        assert [event.data for event in read.events] == data
        assert not read.gaps


# Reading


async def test_reading_several_topics(begin: Open, place: Place) -> None:
    process = await begin(place)
    events = await process.append_one_by_one("b", "a", "c", "a", "b", "a.b", "a.c", "a.c.d")
    for topics in (["a"], ["a", "b"], ["a.*"], ["a.>"], [">"], ["*"], ["a.*", "b"], ["nothing"], ["nothing.>"]):
        read = await process.read_all(*topics)
        assert by_topic(read.events) == by_topic(event for event in events if event.topic in TopicSet(topics))
        assert not read.gaps


async def test_from_every_position_there_is_what_is_behind_it(begin: Open, place: Place) -> None:
    process = await begin(place)
    start = process.log.last_id
    events = await process.append_one_by_one(*["a", "b", "a.1", "b", "a.2", "b.1", "a", "b"] * 3)
    for index, position in enumerate([start, *(seen_in(event.id, None) for event in events)]):
        for topics in (["a"], ["b", "a.1"], ["a.*", "b"], [">"]):
            expected = [event for event in events[index:] if event.topic in TopicSet(topics)]
            read = await process.read_all(*topics, after=position)
            assert by_topic(read.events) == by_topic(expected)
            assert not read.gaps


async def test_slices(begin: Open, place: Place) -> None:
    process = await begin(place)
    events = await process.append_one_by_one(*["a", "b", "c.1", "a", "c.2"] * 8)
    size = max(event.size for event in events)
    for topics in (["a"], ["a", "b", "c.1"], [">"]):
        expected = [event for event in events if event.topic in TopicSet(topics)]
        for max_bytes in (1, size + 1, 5 * size):
            read = await process.read_all(*topics, max_bytes=max_bytes)
            assert by_topic(read.events) == by_topic(expected)
            first = await process.read(*topics, max_bytes=max_bytes)
            assert 0 < sum(event.size for event in first.events[:-1]) + 1 <= max_bytes
            assert not first.complete
            # A client may come back at any event of a slice.
            for event in first.events:
                rest = await process.read_all(*topics, after=event.id, max_bytes=max_bytes)
                assert len(rest.events) == len(expected) - first.events.index(event) - 1


async def test_a_slice_without_events_moves_on_to_the_end(begin: Open, place: Place) -> None:
    process = await begin(place)
    (first, _) = await process.append_one_by_one("a", "b")
    found = await process.read("a", after=first.id)
    assert found == Slice([], None, process.log.last_id, complete=True)


# What is not kept


async def test_what_is_missing_behind_a_position_is_in_a_gap(begin: Open, small_place: Place) -> None:
    process = await begin(small_place)
    topics = ["a", "b", "a.1"]
    start = process.log.last_id
    events: list[Event] = []
    for _ in range(12):
        events += await process.append_one_by_one(*topics * 20)
    await process.drop()
    gaps = 0
    # Each of the first, and of the last that may or may not be there, and some in between.
    for index in [
        0,
        1,
        2,
        *range(3, len(events) - 150, 37),
        *range(len(events) - 150, len(events) + 1, 7),
        len(events),
    ]:
        position = seen_in(events[index - 1].id, None) if index else start
        for wanted in (["a"], ["a.*", "b"]):
            read = await process.read_all(*wanted, after=position, max_bytes=2**12)
            found = set(texts(read.events))
            assert len(found) == len(read.events)
            expected = [event for event in events[index:] if event.topic in TopicSet(wanted)]
            assert found <= set(texts(expected))
            missing = [event for event in expected if (event.topic, event.type, event.data) not in found]
            assert all(any(covers(gap, event.id) for gap in read.gaps) for event in missing)
            assert bool(missing) >= bool(read.gaps) or index < len(events) - 1
            gaps += bool(read.gaps)
    assert gaps > 0
    newest = await process.read_all("a", "b", "a.1", after=seen_in(events[-2].id, None))
    assert (texts(newest.events), newest.gaps) == (texts(events[-1:]), [])


def covers(gap: Gap, event_id: Position) -> bool:
    position = parse_position(str(event_id))  # in its own shard alone
    return not gap.after >= position and gap.resumed_at >= position


async def test_all_that_is_kept_has_no_gap(begin: Open, small_place: Place) -> None:
    process = await begin(small_place)
    for _ in range(5):
        await process.append_one_by_one(*["a", "b"] * 40)
    await process.drop()
    for topics in (["a"], [">"], ["nothing"]):
        assert not (await process.read_all(*topics, max_bytes=2**12)).gaps
    read = await process.read_all("a")
    assert 0 < len(read.events) <= 200
    assert [event.data for event in read.events] == [event.data for event in process.committed if event.topic == "a"][
        -len(read.events) :
    ]


async def test_a_position_ahead_of_the_log(begin: Open, place: Place) -> None:
    process = await begin(place)
    await process.append_one_by_one("a", "b", "c")
    future = ahead_of(process.log.last_id)
    found = await process.read("a", "b", "c", after=future)
    assert found.gap is not None
    assert found.gap.reason is GapReason.UNKNOWN_ID
    assert future >= found.gap.after
    assert not found.events
    read = await process.read_all("a", "b", "c", after=found.upto)
    assert read == Read([], [], process.log.last_id)


async def test_positions_of_other_logs(begin: Open, place: Place) -> None:
    process = await begin(place)
    await process.append_one_by_one("a", "b", "c")
    here = process.log.last_id
    strange: list[Position] = [ShardedId({9999: EventId(1, 0)}), ShardedId({0: EventId(1, 1), 9999: EventId(1, 1)})]
    if isinstance(here, ShardedId):
        strange += [ShardedId(dict.fromkeys(here.parts, EventId(1, 1))), EventId(1, 1), EventId(10**15, 0)]
    else:
        strange += [EventId(1, 1), EventId(10**15, 0), ShardedId({0: here})]
    for position in strange:
        read = await process.read_all("a", "b", "c", after=position)
        assert process.told(position, "a", "b", "c") >= read.gaps[0].after
        assert (await process.read_all("a", "b", "c", after=read.upto)).gaps == []


# Batches


async def test_a_batch_is_there_or_it_is_not(begin: Open, place: Place) -> None:
    """Also one whose publisher did not wait for the answer."""
    process = await begin(place)

    async def publish(name: int) -> None:
        data = [msgspec.json.encode([name, index]) for index in range(20)]
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope, name)
            await process.append(*["a.{1}", "b.{1}"] * 10, data=data)

    async def cancel(scope: trio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for name in range(30):
            nursery.start_soon(publish, name)
    (last,) = await process.append("a.{1}", data=[b'"last"'])
    await until(lambda: process.log.last_id >= last)
    assert (process.committed[-1].data, str(process.committed[-1].id)) == (b'"last"', str(last))
    numbers = [msgspec.json.decode(event.data) for event in process.committed[:-1]]
    assert len(numbers) % 20 == 0
    batches = [numbers[first : first + 20] for first in range(0, len(numbers), 20)]
    assert all(batch == [[batch[0][0], index] for index in range(20)] for batch in batches)
    assert len({batch[0][0] for batch in batches}) == len(batches)


async def test_a_batch_of_topics_that_are_not_together(begin: Open, place: Place, kind: Kind) -> None:
    process = await begin(place)
    topics = [f"t.{number}" for number in range(40)]
    if kind.splits:
        with pytest.raises(RemoteProtocolError, match="not kept together") as caught:
            await process.append(*topics)
        assert (caught.value.status, caught.value.code) == (422, "batch-across-shards")
        await process.append("a")
        await process.has(1)
        assert [event.topic for event in process.committed] == ["a"]
    else:
        ids = await process.append(*topics)
        await process.has(40)
        assert {event.topic: str(event.id) for event in process.committed} == dict(
            zip(topics, written(ids), strict=True)
        )
    assert len(await process.append("a.{x}", "b.{x}")) == 2


async def test_a_log_that_is_not_open_takes_nothing(place: Place) -> None:
    process = Process(place)
    with trio.fail_after(HANG_SECONDS):
        async with process.log.open(process.take, process.skip):
            await process.append("a")
            await process.has(1)
    with pytest.raises(LogUnavailable):
        await process.append("a")
    assert len(process.committed) == 1


# Keys


def key(name: bytes = b"k", content: bytes = b"1") -> IdempotencyKey:
    return IdempotencyKey(name, content, 600.0, 1000)


async def test_a_key_that_is_known_appends_nothing(begin: Open, place: Place) -> None:
    process = await begin(place)
    batch = ["a.{1}", "b.{1}", "a.{1}"]
    ids = await process.append(*batch, key=key())
    other = await process.append("a.{1}", key=key(b"other"))
    assert written(await process.append(*batch, key=key())) == written(ids)
    assert written(await process.append("a.{1}", key=key(b"other"))) == written(other)
    last = await process.append("a.{1}")
    await process.has(5)
    assert written(event.id for event in process.committed) == written([*ids, *other, *last])


async def test_a_key_that_was_used_for_something_else(begin: Open, place: Place) -> None:
    process = await begin(place)
    ids = await process.append("a", key=key())
    with pytest.raises(RemoteProtocolError, match="another request") as caught:
        await process.append("a", key=key(content=b"2"))
    assert (caught.value.status, caught.value.code) == (422, "idempotency-key-reused")
    assert written(await process.append("a", key=key())) == written(ids)
    await process.has(1)
    assert len((await process.read_all("a")).events) == 1


async def test_copies_at_the_same_time_are_one(begin: Open, place: Place, kind: Kind) -> None:
    processes = [await begin(place) for _ in range(2 if kind.is_shared else 1)]
    found: list[list[str]] = []

    async def publish(process: Process) -> None:
        found.append(written(await process.append("a.{1}", "b.{1}", key=key())))

    async with trio.open_nursery() as nursery:
        for process in processes * 5:
            nursery.start_soon(publish, process)
    assert found == [found[0]] * len(found)
    (last,) = await processes[0].append("a.{1}")
    for process in processes:
        await process.has(3)
        assert written(event.id for event in process.committed) == [*found[0], str(last)]


# Several processes, one after the other and at the same time

SHARED = [name for name, kind in KINDS.items() if kind.is_shared]
KEPT = [name for name, kind in KINDS.items() if kind.is_kept]


@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_every_process_hands_over_the_same(begin: Open, place: Place) -> None:
    processes = [await begin(place) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for process in processes:
            for topic in ("a", "b", "c"):
                nursery.start_soon(process.append, *[topic] * 5)
    for process in processes:
        await process.has(45)
    first, *others = processes
    for process in others:
        assert by_topic(process.committed) == by_topic(first.committed)
        assert sorted(str(e.id) for e in process.committed) == sorted(str(e.id) for e in first.committed)
        for topic in ("a", "b", "c"):
            mine, theirs = ([str(e.id) for e in each.committed if e.topic == topic] for each in (process, first))
            assert mine == theirs


@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_a_position_of_one_process_is_one_for_another_at_once(begin: Open, place: Place) -> None:
    one, other = await begin(place), await begin(place)
    for number in range(10):
        (position,) = await one.append("a", data=[msgspec.json.encode(number)])
        # It may not have been handed over there yet.
        read = await other.read_all("a", after=position)
        assert (read.events, read.gaps) == ([], [])
        (behind,) = await other.append("a")
        await until(lambda: one.log.last_id >= behind)  # noqa: B023
        read = await one.read_all("a", after=position)
        assert (written(event.id for event in read.events), read.gaps) == ([str(behind)], [])
        one, other = other, one


@pytest.mark.parametrize("kind", KEPT, indirect=True)
async def test_what_was_appended_before_is_there_for_who_comes_later(begin: Open, place: Place) -> None:
    first = Process(place)
    with trio.fail_after(HANG_SECONDS):
        async with first.log.open(first.take, first.skip):
            before = first.log.last_id
            events = await first.append_one_by_one(*["a", "b", "a.1"] * 5)
            ids = await first.append("a", key=key())
            await first.has(16)
    later = await begin(place)
    assert later.committed == []
    for position, missing in ((BEGINNING, 0), (before, 0), (seen_in(events[7].id, None), 8)):
        read = await later.read_all(">", after=position)
        assert not read.gaps
        assert by_topic(read.events) == by_topic(first.committed[missing:])
    assert written(await later.append("a", key=key())) == written(ids)
    (last,) = await later.append("a")
    await later.has(1)
    assert written(event.id for event in later.committed) == [str(last)]
    assert not (await later.read_all("a", after=first.committed[-1].id)).gaps


def test_an_event_of_a_log_without_shards_has_an_id_of_its_own() -> None:
    assert own_id(Event(EventId(1, 0), "a", "message", b"1")) == EventId(1, 0)
