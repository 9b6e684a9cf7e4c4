"""One log made of several: where a position is in each, gaps in some of them, and what goes to which.

Over fake shards that hand over what they are told to. What holds for every log is in ``test_contract.py``; several
processes with clients that go from one to another are in ``hub/test_processes.py``.
"""

import gc
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from zlib import crc32

import pytest
from hub.fakes import FakeSubscriber, at_once
from hub.shards import Content, Shard

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import (
    BEGINNING,
    Draft,
    Event,
    EventId,
    Gap,
    GapReason,
    Position,
    ShardedEvent,
    ShardedId,
    TopicSet,
)
from tricast.hub import Hub
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.sharded import ShardedLog, shard_of
from tricast.log.statistics import Statistics

SHARD_OF = {"a": 0, "b": 1, "c": 2, "a2": 0}


def at(counter: int) -> EventId:
    return EventId(1, counter)


def place(*counters: int, **named: int) -> ShardedId:
    """Where one is in shard 0, 1 and so on; or in those that are named as in ``_2=5``."""
    parts = {number: at(counter) for number, counter in enumerate(counters)}
    return ShardedId(parts | {int(name[1:]): at(counter) for name, counter in named.items()})


class World:
    """A log of three shards; what was appended is handed over at once unless a test has it wait."""

    def __init__(self, *, history: int = 100) -> None:
        self.contents = [Content(at(0), history=history) for _ in range(3)]
        self.shards = [Shard(content) for content in self.contents]
        for shard in self.shards:
            shard.waits = False
        self.log = ShardedLog(dict(enumerate(self.shards)), shard_of=SHARD_OF.__getitem__)
        self.committed: list[Event] = []
        self.skipped: list[Position] = []

    def publish(self, *topics: str) -> None:
        """Each is handed over before the next is appended."""
        for topic in topics:
            self.hidden(topic)
            self.shards[SHARD_OF[topic]].hand_over(1)

    def hidden(self, *topics: str, size: int = 1) -> None:
        """Not handed over."""
        for topic in topics:
            self.contents[SHARD_OF[topic]].append([Draft(topic, "message", b"1" * size)])

    def read(self, *topics: str, after: Position, max_bytes: int = 10**6) -> Slice:
        return at_once(self.log.read(TopicSet(topics), after, max_bytes=max_bytes))


def opened(world: World) -> Iterator[World]:
    scope = world.log.open(world.committed.extend, world.skipped.append)
    at_once(scope.__aenter__())
    yield world
    at_once(scope.__aexit__(None, None, None))


@pytest.fixture
def world() -> Iterator[World]:
    yield from opened(World())


@pytest.fixture
def small() -> Iterator[World]:
    yield from opened(World(history=2))


def ids(events: Sequence[Event]) -> list[str]:
    return [str(event.id) for event in events]


# What it hands over


def test_an_event_is_where_its_process_is_in_all_shards(world: World) -> None:
    world.publish("a", "b", "a", "c")
    assert [event.id for event in world.committed] == [place(1, 0, 0), place(1, 1, 0), place(2, 1, 0), place(2, 1, 1)]
    assert ids(world.committed) == ["0.1-1", "1.1-1", "0.1-2", "2.1-1"]
    assert world.log.last_id == place(2, 1, 1)


def test_several_events_at_once_come_one_after_the_other(world: World) -> None:
    world.hidden("a", "a", "b")
    world.shards[0].hand_over(2)
    assert [event.id for event in world.committed] == [place(1, 0, 0), place(2, 0, 0)]


def test_the_same_event_for_others_is_made_once(world: World) -> None:
    world.publish("b")
    (event,) = world.committed
    assert event.seen_in((1,)) is event
    view = event.seen_in((0, 1))
    assert str(view.id) == "0.1-0_1.1-1"
    assert (view.id, view.topic, view.type, view.data) == (event.id, event.topic, event.type, event.data)
    assert event.seen_in((0, 1)) is view


def test_an_event_is_gone_when_nobody_has_it_any_more() -> None:
    gc.collect()
    gc.disable()
    try:
        event = ShardedEvent(ShardedId({0: at(1), 1: at(1)}, (0,)), "nobody.else", "message", b"1")
        event.seen_in((0, 1))
        del event
        events = [each for each in gc.get_objects() if isinstance(each, ShardedEvent)]
        assert not [event for event in events if event.topic == "nobody.else"]
    finally:
        gc.enable()


def test_what_one_shard_skips_is_told_with_where_the_others_are(world: World) -> None:
    world.publish("a")
    world.hidden("b", "b")
    world.shards[1].skip()
    assert world.skipped == [place(1, 2, 0)]


async def test_nobody_has_to_know_what_is_skipped() -> None:
    world = World()
    async with world.log.open(world.committed.extend):
        world.hidden("b")
        world.shards[1].skip()
    assert world.skipped == world.committed == []


# Which shards


@pytest.mark.parametrize(
    ("topics", "shards"),
    [(["a"], (0,)), (["c", "a", "a2"], (0, 2)), (["*"], (0, 1, 2)), (["a", "b.>"], (0, 1, 2)), ([], ())],
)
def test_the_shards_of_topics(world: World, topics: list[str], shards: tuple[int, ...]) -> None:
    assert world.log.shards_of(TopicSet(topics)) == shards


def test_shards_may_be_told_by_whoever_knows_better() -> None:
    log = ShardedLog({7: World().shards[0]}, shard_of=lambda _: 7, shards_of=lambda _: (7, 1000))
    assert log.shards_of(TopicSet(["a"])) == (7, 1000)


@pytest.mark.parametrize(
    ("topic", "same"),
    [
        ("orders.{7}.paid", "{7}"),
        ("orders.{7}.paid", "x{7}y{8}"),
        ("a{b{c}d", "{b{c}"),
    ],
)
def test_topics_with_the_same_word_in_braces_are_together(topic: str, same: str) -> None:
    assert all(shard_of(topic, shards) == shard_of(same, shards) for shards in range(1, 257))


@pytest.mark.parametrize("topic", ["a", "a{}b{c}", "a{b", "a}b{", "ü", "{}"])
def test_topics_without_one_go_by_their_whole_name(topic: str) -> None:
    assert all(shard_of(topic, shards) == crc32(topic.encode()) % shards for shards in range(1, 257))


def test_topics_are_spread() -> None:
    counts = [0] * 4
    for number in range(1000):
        counts[shard_of(f"topic.{number}", 4)] += 1
    assert min(counts) > 150


# Appending


async def test_a_batch_for_one_shard_is_its_own_affair(world: World) -> None:
    found = await world.log.append([Draft("a", "message", b"1"), Draft("a2", "message", b"2")])
    assert [str(each) for each in found] == ["0.1-1", "0.1-2"]


async def test_a_batch_for_several_is_refused_and_nothing_of_it_is_kept(world: World) -> None:
    with pytest.raises(RemoteProtocolError, match=r"put the same word in braces") as caught:
        await world.log.append([Draft("a", "message", b"1"), Draft("b", "message", b"2")])
    assert (caught.value.status, caught.value.code) == (422, "batch-across-shards")
    assert not any(content.entries for content in world.contents)


async def test_a_batch_for_several_where_that_is_possible() -> None:
    asked = []

    async def append_all(
        drafts: Mapping[int, Sequence[Draft]], key: IdempotencyKey | None
    ) -> Mapping[int, Sequence[EventId]]:
        asked.append(({number: [draft.topic for draft in each] for number, each in drafts.items()}, key))
        return {number: [at(10 * number + index) for index in range(len(each))] for number, each in drafts.items()}

    key = IdempotencyKey(b"k", b"f", 1.0, 1)
    log = ShardedLog(dict(enumerate(World().shards)), shard_of=SHARD_OF.__getitem__, append_all=append_all)
    found = await log.append([Draft(topic, "message", b"1") for topic in ("c", "a", "c", "a2", "b")], key)
    assert asked == [({2: ["c", "c"], 0: ["a", "a2"], 1: ["b"]}, key)]
    assert [str(each) for each in found] == ["2.1-20", "0.1-0", "2.1-21", "0.1-1", "1.1-10"]


async def test_a_log_that_is_not_open() -> None:
    with pytest.raises(LogUnavailable):
        await World().log.append([Draft("a", "message", b"1")])


# What it says of itself


def test_it_waits_and_has_problems_as_its_shards_have() -> None:
    world = World()
    assert not world.log.waits
    assert world.log.problem is None
    world.shards[1].waits = True
    world.shards[2].problem = "it is away"
    assert world.log.waits
    assert world.log.problem == "shard 2: it is away"


def test_its_statistics_are_what_its_shards_count_in() -> None:
    mine = Statistics()
    assert ShardedLog({}, shard_of=lambda _: 0, statistics=mine).statistics is mine
    assert World().log.statistics.reconnects == 0


async def test_a_shard_that_cannot_be_opened_closes_those_that_were() -> None:
    world = World()

    @asynccontextmanager
    async def fails(*_: object) -> AsyncIterator[None]:
        raise LogUnavailable("it is away")
        yield

    world.shards[1].open = fails  # type: ignore[method-assign]
    with pytest.raises(LogUnavailable, match="it is away"):
        async with world.log.open(world.committed.extend):
            raise AssertionError
    with pytest.raises(LogUnavailable, match="not open"):
        await world.shards[0].append([Draft("a", "message", b"1")])


# Reading


def test_events_of_several_shards_tell_where_one_is_in_each_of_these(world: World) -> None:
    world.publish("a", "b", "c", "b", "a")
    found = world.read("a", "b", after=place(0, 0, 0))
    assert ids(found.events) == ["0.1-1_1.1-0", "0.1-1_1.1-1", "0.1-2_1.1-1", "0.1-2_1.1-2"]
    assert (found.gap, found.upto, str(found.upto), found.complete) == (None, place(2, 2, 1), "0.1-2_1.1-2", True)


def test_all_that_is_kept(world: World) -> None:
    world.publish("a", "b")
    assert ids(world.read("a", "b", after=BEGINNING).events) == ["0.1-1_1.0-0", "0.1-1_1.1-1"]


def test_where_a_client_is_in_other_shards_does_not_matter(world: World) -> None:
    world.publish("a", "b")
    found = world.read("a", after=place(0, 99))
    assert (ids(found.events), found.gap, found.upto) == (["0.1-1"], None, place(1, 1, 0))


def test_a_position_of_another_process_is_waited_for(world: World) -> None:
    world.hidden("a", "a")
    world.publish("b")
    found = world.read("a", "b", after=place(1, 0))
    assert (ids(found.events), found.gap) == (["0.1-1_1.1-1", "0.1-2_1.1-1"], None)
    assert world.log.last_id == place(2, 1, 0)


def test_each_shard_has_its_share_of_a_slice(world: World) -> None:
    world.publish(*["a", "b"] * 5)
    size = world.committed[0].size
    found = world.read("a", "b", after=place(0, 0), max_bytes=4 * size)
    assert (len(found.events), found.upto, found.complete) == (4, place(2, 2, 0), False)
    found = world.read("a", "b", after=found.upto, max_bytes=100 * size)
    assert (len(found.events), found.upto, found.complete) == (6, place(5, 5, 0), True)


def test_one_large_event_is_enough_for_a_slice(world: World) -> None:
    world.hidden("a", "b", "c", size=1000)
    world.publish("a", "b", "c")
    found = world.read(">", after=place(0, 0, 0), max_bytes=900)
    assert (ids(found.events), found.upto, found.complete) == (["0.1-1_1.1-0_2.1-0"], place(1, 0, 0), False)
    found = world.read(">", after=found.upto, max_bytes=900)
    assert (ids(found.events), found.complete) == (["0.1-1_1.1-1_2.1-0"], False)


def test_a_slice_is_not_complete_before_every_shard_was_read(world: World) -> None:
    """The others may have a gap to tell of: here, a position that never was."""
    world.hidden("a", size=1000)
    world.shards[0].hand_over(1)
    found = world.read("a", "b", after=place(0, 99), max_bytes=1)
    assert (ids(found.events), found.complete) == (["0.1-1_1.1-99"], False)
    assert world.read("a", "b", after=found.upto).gap == Gap(GapReason.UNKNOWN_ID, place(1, 99), place(1, 0, 0))


def test_a_slice_is_not_complete_when_a_shard_went_on_meanwhile(world: World) -> None:
    world.publish("a", "b")
    world.shards[1].waits = True
    reading = world.log.read(TopicSet(["a", "b"]), place(0, 0), max_bytes=1000)
    reading.send(None)
    world.publish("a")
    with pytest.raises(StopIteration) as stopped:
        reading.send(None)
    found: Slice = stopped.value.value
    assert (found.upto, found.complete) == (place(1, 1, 0), False)
    world.shards[1].waits = False
    assert ids(world.read("a", "b", after=found.upto).events) == ["0.1-2_1.1-1"]


# Gaps


@pytest.mark.parametrize(
    "after",
    [EventId(1, 1), EventId(10**15, 0), place(0, 0, 0, _3=0), place(_9=1)],
)
def test_positions_of_other_logs(world: World, after: Position) -> None:
    world.publish("a", "b")
    found = world.read("a", after=after)
    assert found == Slice((), Gap(GapReason.UNKNOWN_ID, after, place(1, 1, 0)), place(1, 1, 0), complete=True)
    assert str(found.upto) == "0.1-1"


def test_a_shard_of_which_a_position_does_not_tell_begins_now(small: World) -> None:
    """Alone, so that no id tells of it before the gap does: a client might come back with that."""
    small.publish(*["a"] * 5, "b", "b", "c")
    after = place(0, _2=0)
    found = small.read("a", "b", after=after)
    assert found == Slice((), Gap(GapReason.UNKNOWN_ID, after, place(0, 2, 1)), place(0, 2, 1), complete=False)
    assert str(found.upto) == "0.1-0_1.1-2"
    found = small.read("a", "b", after=found.upto)
    assert found.gap == Gap(GapReason.EVICTED, place(0, 2), place(3, 2, 1))


def test_a_gap_in_one_shard_goes_before_all_of_the_others(small: World) -> None:
    small.publish("a", "a2", "b", *["a"] * 3)
    after = place(0, 0, 0)
    found = small.read("a", "a2", "b", after=after)
    # What topics of the same shard keep below the end of a gap is there.
    assert ids(found.events) == ["0.1-2_1.1-0"]
    assert found.gap == Gap(GapReason.EVICTED, place(0, 0), place(3, 0, 0))
    assert (found.upto, str(found.upto), found.complete) == (place(3, 0, 0), "0.1-3_1.1-0", False)
    found = small.read("a", "a2", "b", after=found.upto)
    assert ids(found.events) == ["0.1-3_1.1-1", "0.1-4_1.1-1", "0.1-5_1.1-1"]
    assert (found.gap, found.complete) == (None, True)


def test_gaps_in_several_shards_are_told_together(small: World) -> None:
    small.publish(*["a", "b"] * 4, "c")
    small.contents[1].lose()
    small.shards[1].hand_over(1)
    after = place(0, 0, 0)
    found = small.read(">", after=after)
    assert found == Slice([], Gap(GapReason.EVICTED, after, place(2, 104, 0)), place(2, 104, 0), complete=False)
    found = small.read(">", after=found.upto)
    assert ids(found.events) == ["0.1-2_1.1-104_2.1-1", "0.1-3_1.1-104_2.1-1", "0.1-4_1.1-104_2.1-1"]


def test_a_position_that_never_was_is_told_of_alone(small: World) -> None:
    """Before there is an event whose id goes back in its shard."""
    small.publish("a", "a2", *["a"] * 3)
    found = small.read("a", "a2", "b", after=place(0, 99))
    assert found == Slice([], Gap(GapReason.UNKNOWN_ID, place(0, 99), place(0, 0, 0)), place(0, 0, 0), complete=False)
    found = small.read("a", "a2", "b", after=found.upto)
    assert ids(found.events) == ["0.1-2_1.1-0"]
    assert found.gap == Gap(GapReason.EVICTED, place(0, 0), place(3, 0, 0))


def test_a_gap_may_begin_before_the_position(world: World) -> None:
    """A shard may know that more is missing than what is behind it."""

    async def read(*_: object, **__: object) -> Slice:
        return Slice((), Gap(GapReason.RESTARTED, at(1), at(5)), at(5), complete=True)

    world.publish("a", "b")
    world.shards[1].read = read  # type: ignore[method-assign]
    found = world.read("a", "b", after=place(1, 3))
    assert found.gap == Gap(GapReason.RESTARTED, place(1, 1), place(1, 5, 0))


# With the hub


def test_nobody_goes_live_between_positions_of_the_process() -> None:
    """As a poll would that has read, without an event, up to where its process never was."""
    world = World()
    hub = Hub(world.log, max_topic_bytes=10, max_event_bytes=100, wake=lambda: None)
    scope = hub.open()
    at_once(scope.__aenter__())
    world.publish("a", "b")
    subscriber = FakeSubscriber(place(0, 0, 0))
    hub.join(subscriber, TopicSet(["a", "b"]))
    for here in (place(1, 0, 0), place(0, 1, 0), place(1, 1), place(9, 0, 0)):
        subscriber.position = here
        assert not hub.try_go_live(subscriber)
    subscriber.position = place(1, 1, 0)
    assert hub.try_go_live(subscriber)
    at_once(scope.__aexit__(None, None, None))


def test_two_who_come_to_the_same_place_by_different_events_do_not_share_bytes() -> None:
    world = World()
    hub = Hub(world.log, max_topic_bytes=10, max_event_bytes=100, wake=lambda: None)
    scope = hub.open()
    at_once(scope.__aenter__())
    world.publish("a", "b", "a")
    one, other = FakeSubscriber(place(1, 0, 0)), FakeSubscriber(place(0, 1, 0))
    for subscriber in (one, other):
        hub.join(subscriber, TopicSet(["a", "b"]))
    blocks = [hub.block(each, at_once(hub.read(each))) for each in (one, other)]
    assert blocks == [
        b"event 0.1-1_1.1-1 b\nevent 0.1-2_1.1-1 a\n",
        b"event 0.1-1_1.1-1 a\nevent 0.1-2_1.1-1 a\n",
    ]
    at_once(scope.__aexit__(None, None, None))
