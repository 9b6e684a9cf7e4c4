"""What logs do whose clock can be set, and that drop exactly what is too much: ids, what is kept, gaps, and keys."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from log.worlds import KINDS, Clock, World, held, ids_of, world_of

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.hub import Hub
from tricast.log.base import IdempotencyKey, Slice

NewWorld = Callable[..., Awaitable[World]]


@pytest.fixture(params=KINDS)
async def new_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NewWorld]:
    """Makes worlds with a log of this kind, as many as are wanted."""
    async with trio.open_nursery() as nursery:
        made = 0

        async def make(**settings: Any) -> World:
            nonlocal made
            made += 1
            world: World = await nursery.start(held, world_of(request.param, tmp_path / f"{made}.db", **settings))
            return world

        yield make
        nursery.cancel_scope.cancel()


async def test_it_is_empty(new_world: NewWorld) -> None:
    log = (await new_world()).log
    assert log.last_id == EventId(1_000_000, 0)
    assert log.problem is None


@pytest.mark.parametrize(("kind", "waits"), list(zip(KINDS, (False, True, True), strict=True)))
async def test_the_hub_knows_whether_publishing_waits(kind: str, waits: bool, tmp_path: Path) -> None:
    async with world_of(kind, tmp_path / "log.db") as world:
        hub = Hub(world.log, max_topic_bytes=10, max_event_bytes=10, wake=lambda: None)
        assert hub.log_waits is waits


# Appending


async def test_ids_of_the_same_millisecond_count_up(new_world: NewWorld) -> None:
    assert await (await new_world()).append("a", "b", "a") == [EventId(1_000_000, counter) for counter in (1, 2, 3)]


async def test_a_new_millisecond_begins_at_zero(new_world: NewWorld) -> None:
    world = await new_world()
    await world.append("a")
    world.clock.seconds += 0.0015
    assert await world.append("a", "a") == [EventId(1_000_001, 0), EventId(1_000_001, 1)]


async def test_a_clock_that_steps_back_does_not_take_ids_back(new_world: NewWorld) -> None:
    world = await new_world()
    await world.wait(5)
    ids = await world.append("a")
    world.clock.seconds -= 4
    ids += await world.append("a")
    assert ids == [EventId(1_005_000, 0), EventId(1_005_000, 1)]
    assert world.log.last_id == ids[-1]


async def test_what_is_appended_is_handed_over_and_kept_as_it_was(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", "b", data=b'{"n":1}')
    assert world.committed == [Event(ids[0], "a", "message", b'{"n":1}'), Event(ids[1], "b", "message", b'{"n":1}')]
    assert (await world.read("a", "b")).events == world.committed


@pytest.mark.parametrize("kind", KINDS)
async def test_a_log_that_is_not_open_takes_nothing(kind: str, tmp_path: Path) -> None:
    async with world_of(kind, tmp_path / "log.db") as world:
        await world.append("a")
    with pytest.raises(LogUnavailable, match="not open"):
        await world.log.append([Draft("a", "message", b"1")])
    assert world.kept()[0] == 1


# Reading


async def test_an_empty_log(new_world: NewWorld) -> None:
    world = await new_world()
    assert await world.read("a") == Slice([], None, world.log.last_id, complete=True)


async def test_reading_merges_topics_in_order(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("b", "a", "c", "a", "b")
    assert await world.ids("a", "b") == [ids[0], ids[1], ids[3], ids[4]]
    assert await world.ids("a", "b", after=ids[1]) == ids[3:]
    assert await world.ids("nothing") == []


async def test_reading_by_wildcards(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a.b", "a.c", "b", "a.c.d")
    assert await world.ids("a.*") == ids[:2]
    assert await world.ids("a.>") == [ids[0], ids[1], ids[3]]
    assert await world.ids(">") == ids
    assert await world.ids("a.*", "b") == ids[:3]


async def test_a_slice_without_events_moves_on_to_the_end(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", "b")
    assert await world.read("a", after=ids[0]) == Slice([], None, ids[1], complete=True)


async def test_incomplete_slices(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", "b", "a", data=b"12345")
    (event,) = (await world.read("b")).events
    first = await world.read("a", "b", max_bytes=event.size + 1)
    assert (ids_of(first.events), first.upto, first.complete) == (ids[:2], ids[1], False)
    second = await world.read("a", "b", after=first.upto, max_bytes=event.size + 1)
    assert (ids_of(second.events), second.upto, second.complete) == (ids[2:], ids[2], True)


async def test_a_slice_has_an_event_however_long_it_is(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", "a", data=b"1" * 100)
    assert ids_of((await world.read("a", max_bytes=1)).events) == ids[:1]


# What is kept


async def test_each_topic_keeps_its_newest(new_world: NewWorld) -> None:
    world = await new_world(history=3)
    ids = await world.append("hot", "quiet", *["hot"] * 9)
    assert await world.ids("hot") == ids[-3:]
    assert await world.ids("quiet") == [ids[1]]
    assert world.kept()[0] == 4


async def test_old_events_go(new_world: NewWorld) -> None:
    world = await new_world(history_age=60)
    ids = await world.append("a", "b")
    await world.wait(59.9)
    ids += await world.append("a")
    assert await world.ids("a", "b") == ids
    await world.wait(0.2)
    assert await world.ids("a", "b") == ids[2:]
    await world.wait(60)
    assert await world.ids(">") == []
    assert world.kept() == (0, 0)


async def test_the_oldest_go_when_there_is_too_much(new_world: NewWorld) -> None:
    world = await new_world(history_size=10_000)
    ids = []
    for topic in "abcdefghijkl":
        ids += await world.append(topic, data=b"1" * 1000)
    kept = await world.ids(">")
    assert kept == ids[-len(kept) :]
    assert 0 < len(kept) < len(ids)
    assert len(kept) * 1000 < world.kept()[1] <= 10_000


async def test_an_event_that_is_too_large_to_be_kept_is_handed_over_all_the_same(new_world: NewWorld) -> None:
    world = await new_world(history_size=1000)
    ids = await world.append("a", data=b"1" * 1000)
    assert ids_of(world.committed) == ids
    assert world.kept() == (0, 0)


# Gaps


async def test_no_gap_where_nothing_was_dropped(new_world: NewWorld) -> None:
    world = await new_world(history=3)
    ids = await world.append(*["a"] * 5)
    assert (await world.read("a", after=ids[1])).gap is None


async def test_a_gap_where_something_was_dropped(new_world: NewWorld) -> None:
    world = await new_world(history=3)
    ids = await world.append(*["a"] * 5)
    found = await world.read("a", after=ids[0])
    assert found.gap == Gap(GapReason.EVICTED, ids[0], ids[1])
    assert ids_of(found.events) == ids[2:]


async def test_no_gap_for_who_asks_for_all_that_is_kept(new_world: NewWorld) -> None:
    world = await new_world(history=3)
    ids = await world.append(*["a"] * 5)
    found = await world.read("a", after=BEGINNING)
    assert found.gap is None
    assert ids_of(found.events) == ids[2:]


async def test_no_gap_for_topics_that_lost_nothing(new_world: NewWorld) -> None:
    world = await new_world(history=1)
    ids = await world.append("b", "a", "a", "a")
    assert (await world.read("b", after=ids[0])).gap is None
    assert (await world.read("a", "b", after=ids[0])).gap == Gap(GapReason.EVICTED, ids[0], ids[2])


async def test_what_other_topics_keep_below_the_end_of_a_gap_is_there(new_world: NewWorld) -> None:
    world = await new_world(history=2)
    ids = await world.append("a", "b", "a", "b", "a", "a")
    found = await world.read("a", "b", after=ids[0])
    assert found.gap == Gap(GapReason.EVICTED, ids[0], ids[2])
    assert ids_of(found.events) == [ids[1], ids[3], ids[4], ids[5]]


async def test_a_gap_ends_with_its_slice_and_goes_on_in_the_next(new_world: NewWorld) -> None:
    world = await new_world(history=2)
    ids = await world.append("a", "b", "b", "a", "a", "a")
    first = await world.read("a", "b", after=ids[0], max_bytes=1)
    assert first == Slice(first.events, Gap(GapReason.EVICTED, ids[0], ids[1]), ids[1], complete=False)
    second = await world.read("a", "b", after=first.upto)
    assert second.gap == Gap(GapReason.EVICTED, ids[1], ids[3])
    assert ids_of(second.events) == [ids[2], ids[4], ids[5]]


async def test_a_gap_in_a_topic_of_which_nothing_is_left(new_world: NewWorld) -> None:
    world = await new_world(history_age=60)
    ids = await world.append("a", "a")
    await world.wait(61)
    assert (await world.read("a", after=ids[0])).gap == Gap(GapReason.EVICTED, ids[0], ids[1])
    assert (await world.read("a", after=ids[1])).gap is None
    # And when it is there again.
    new = await world.append("a")
    found = await world.read("a", after=ids[0])
    assert found.gap == Gap(GapReason.EVICTED, ids[0], ids[1])
    assert ids_of(found.events) == new


async def test_what_is_forgotten_is_never_before_what_was_forgotten_already(new_world: NewWorld) -> None:
    world = await new_world(history=1, history_age=60)
    ids = await world.append("a", "b")
    await world.wait(61)
    ids += await world.append("a")
    assert (await world.read("b", after=ids[0])).gap == Gap(GapReason.EVICTED, ids[0], ids[1])


async def test_a_position_from_before_a_restart(new_world: NewWorld) -> None:
    before = await (await new_world()).append("a")
    world = await new_world(clock=Clock(1005.0), history=2)
    start = world.log.last_id
    assert await world.read("a", after=before[0]) == Slice(
        [], Gap(GapReason.RESTARTED, before[0], start), start, complete=True
    )
    ids = await world.append(*["a"] * 4)
    found = await world.read("a", after=before[0])
    assert found.gap == Gap(GapReason.RESTARTED, before[0], ids[1])
    assert ids_of(found.events) == ids[2:]
    assert (await world.read("b", after=before[0])).gap == Gap(GapReason.RESTARTED, before[0], start)


async def test_the_start_itself_is_a_known_position(new_world: NewWorld) -> None:
    world = await new_world()
    start = world.log.last_id
    ids = await world.append("a")
    found = await world.read("a", after=start)
    assert found.gap is None
    assert ids_of(found.events) == ids


async def test_a_position_that_never_was(new_world: NewWorld) -> None:
    world = await new_world()
    (last,) = await world.append("a")
    future = EventId(last.ms, last.counter + 1)
    assert await world.read("a", after=future) == Slice(
        (), Gap(GapReason.UNKNOWN_ID, future, last), last, complete=True
    )


# Patterns


async def test_a_read_for_a_pattern_looks_at_a_bounded_number_of_events(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast.log.window.MAX_SCAN", 3)
    world = await new_world()
    ids = await world.append("a.x", *["b.x"] * 5, "a.y")
    first = await world.read("a.*")
    assert (ids_of(first.events), first.upto, first.complete) == (ids[:1], ids[2], False)
    second = await world.read("a.*", after=first.upto)
    assert (ids_of(second.events), second.upto, second.complete) == ([], ids[5], False)
    third = await world.read("a.*", after=second.upto)
    assert (ids_of(third.events), third.upto, third.complete) == (ids[6:], ids[6], True)


async def test_a_pattern_finds_no_event_that_its_topic_dropped(new_world: NewWorld) -> None:
    world = await new_world(history=2)
    ids = await world.append("a.x", "b", "a.x", "a.x", "a.y")
    assert ids_of((await world.read("a.*")).events) == [ids[2], ids[3], ids[4]]
    assert ids_of((await world.read(">")).events) == ids[1:]


# Topics of which nothing is left


async def test_a_quiet_topic_has_no_gap_because_of_others(new_world: NewWorld) -> None:
    world = await new_world(history_age=60)
    seen = (await world.append("quiet", "other"))[0]
    await world.wait(61)
    await world.append("third")
    assert (await world.read("quiet", after=seen)).gap is None
    assert (await world.read("other", after=seen)).gap is not None
    assert (await world.read("*", after=seen)).gap is not None


async def test_a_topic_that_comes_back_remembers_what_it_dropped(new_world: NewWorld) -> None:
    world = await new_world(history_age=60)
    before = world.log.last_id
    await world.append("a")
    await world.wait(61)
    (again,) = await world.append("a")
    found = await world.read("a", after=before)
    assert found.gap is not None
    assert ids_of(found.events) == [again]
    assert (await world.read("a", after=found.gap.resumed_at)).gap is None


async def test_so_many_topics_are_remembered_one_by_one(new_world: NewWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.window.MAX_GONE", 2)
    monkeypatch.setattr("tricast.log.database.MAX_GONE", 2)
    world = await new_world(history_age=60)
    ids = await world.append("a", "b", "c", "d")
    await world.wait(61)
    await world.append("e")
    # Of a and b is only known that the newer one of them was dropped: whoever has not seen that may miss something.
    assert (await world.read("never", after=ids[0])).gap is not None
    assert (await world.read("never", after=ids[1])).gap is None
    assert (await world.read("d", after=ids[1])).gap is not None
    assert (await world.read("c", after=ids[2])).gap is None


# Keys


def key(name: bytes = b"k", content: bytes = b"1", *, window: float = 60.0, max_keys: int = 3) -> IdempotencyKey:
    return IdempotencyKey(name, content, window, max_keys)


async def test_a_key_that_is_known_appends_nothing(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", "b", "a", key=key())
    other = await world.append("a", key=key(b"other"))
    assert await world.append("a", "b", "a", key=key()) == ids
    assert await world.append("a", key=key(b"other")) == other
    assert ids_of(world.committed) == [*ids, *other]
    assert await world.ids(">") == [*ids, *other]


async def test_a_key_that_was_used_for_something_else(new_world: NewWorld) -> None:
    world = await new_world()
    ids = await world.append("a", key=key())
    with pytest.raises(RemoteProtocolError, match="another request") as caught:
        await world.append("a", key=key(content=b"2"))
    assert (caught.value.status, caught.value.code) == (422, "idempotency-key-reused")
    assert ids_of(world.committed) == ids
    assert await world.append("a", key=key()) == ids


async def test_a_key_is_forgotten_after_its_window(new_world: NewWorld) -> None:
    world = await new_world()
    first = await world.append("a", key=key())
    world.clock.seconds += 60
    assert await world.append("a", key=key()) == first
    world.clock.seconds += 0.1
    again = await world.append("a", key=key(content=b"2"))
    assert again > first
    assert await world.append("a", key=key(content=b"2")) == again


async def test_the_oldest_keys_are_forgotten_when_there_are_too_many(new_world: NewWorld) -> None:
    world = await new_world()
    ids = [await world.append("a", key=key(name)) for name in (b"a", b"b", b"c")]
    # Asking for one that is known needs no room, so it forgets none.
    assert [await world.append("a", key=key(name)) for name in (b"a", b"b", b"c")] == ids
    await world.append("a", key=key(b"d"))
    assert [await world.append("a", key=key(name)) for name in (b"b", b"c")] == ids[1:]
    assert await world.append("a", key=key(b"a")) > ids[2]


async def test_a_key_outlives_its_events(new_world: NewWorld) -> None:
    world = await new_world(history=1, history_age=10)
    ids = await world.append("a", key=key())
    await world.append("a")
    await world.wait(20)
    assert await world.ids(">") == []
    assert await world.append("a", key=key()) == ids


# Compared with the plainest log there could be


@settings(deadline=None, max_examples=30, derandomize="CI" in os.environ)
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "b.c"]), min_size=1, max_size=5), st.sampled_from([0, 1, 30_000])
        ),
        max_size=12,
    ),
    topics=st.sets(st.sampled_from(["a", "b", "b.*", ">"]), min_size=1),
    max_bytes=st.integers(1, 8),
)
@example(steps=[(["a"], 1)] * 3 + [(["a"], 30_000)] * 2, topics={"a"}, max_bytes=1)  # as old as may be, to the ms
@pytest.mark.parametrize("kind", KINDS)
async def test_reading_to_the_end(
    kind: str, steps: list[tuple[list[str], int]], topics: set[str], max_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        async with world_of(kind, Path(folder) / "log.db", history=3, history_age=60) as world:
            for names, wait_ms in steps:
                await world.append(*names)
                await world.wait(wait_ms / 1000)
            wanted = TopicSet(topics)
            oldest = EventId(int(world.clock.seconds * 1000) - 60_000, 0)
            kept = [
                event
                for index, event in enumerate(world.committed)
                if event.topic in wanted
                and event.id >= oldest
                and sum(later.topic == event.topic for later in world.committed[index + 1 :]) < 3
            ]
            every_id = {event.id for event in world.committed if event.topic in wanted}
            for after in [EventId(1_000_000, 0), *ids_of(world.committed)]:
                position, complete = after, False
                found: list[Event] = []
                excused: set[EventId] = set()
                while not complete:
                    events, gap, position, complete = await world.log.read(wanted, position, max_bytes=max_bytes)
                    found += events
                    if gap is not None:
                        excused |= {lost for lost in every_id if gap.after < lost <= gap.resumed_at}
                assert position == world.log.last_id
                assert found == [event for event in kept if event.id > after]
                assert {due for due in every_id if due > after} <= excused | set(ids_of(found))
