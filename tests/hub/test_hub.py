"""The hub over the real log: feeds, live and behind, flushes in several turns, and what it counts."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hub.fakes import FORMS, DeafLog, FakeSubscriber, at_once

import tricast.hub
from tricast.errors import LimitExceeded, LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, EventId, Gap, GapReason, TopicSet
from tricast.hub import Hub, HubStatistics
from tricast.log.memory import MemoryLog


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


class Clock:
    """Stands still unless moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class World:
    """A hub with everything around it."""

    def __init__(self, *, history: int = 100, subscribers_per_topic: int = 0) -> None:
        self.clock = Clock()
        self.bell = Bell()
        self.log = MemoryLog(history=history, history_age=60, history_size=10**6, clock=self.clock)
        self.hub = Hub(
            self.log,
            max_topic_bytes=20,
            max_event_bytes=65536,
            max_topic_subscribers=subscribers_per_topic,
            wake=self.bell.ring,
        )

    def publish(self, *topics: str) -> list[EventId]:
        return at_once(self.hub.append([Draft(topic, "message", b"1") for topic in topics]))

    def flush(self) -> int:
        """Flushes, and returns how often others got a turn."""
        return sum(1 for _ in self.hub.flush())

    def join(self, *topics: str, form: int = 0, position: EventId | None = None) -> FakeSubscriber:
        """A new subscriber, from now on unless a position is given."""
        here = self.hub.last_id if position is None else position
        subscriber = FakeSubscriber(here, FORMS[form])
        subscriber.follow(self.hub, TopicSet(topics), here, is_given=position is not None)
        return subscriber

    def catch_up(self, subscriber: FakeSubscriber, *, max_bytes: int = 2**16) -> None:
        while subscriber.is_catching_up and not subscriber.tail:
            subscriber.catch_up(self.hub, max_bytes=max_bytes)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    scope = world.log.open(world.hub.committed)
    at_once(scope.__aenter__())
    yield world
    at_once(scope.__aexit__(None, None, None))


@pytest.fixture
def _one_send_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.hub, "SENDS_PER_TURN", 1)


# Publishing


async def test_published_data_becomes_json(world: World) -> None:
    event_id = await world.hub.publish("news", {"n": 1}, type="greeting")
    (event,) = (await world.log.read(TopicSet(["news"]), BEGINNING, max_bytes=1)).events
    assert (event.id, event.topic, event.type, event.data) == (event_id, "news", "greeting", b'{"n":1}')
    assert world.hub.last_id == event_id


@pytest.mark.parametrize(
    ("publish", "error"),
    [
        (lambda hub: hub.publish("", 1), RemoteProtocolError),
        (lambda hub: hub.publish("a.*", 1), RemoteProtocolError),
        (lambda hub: hub.publish("x" * 21, 1), LimitExceeded),
        (lambda hub: hub.publish("a", 1, type="tricast.gap"), RemoteProtocolError),
        (lambda hub: hub.publish("a", object()), TypeError),
    ],
)
async def test_what_may_not_be_published_is_refused(
    world: World, publish: Callable[[Hub], Awaitable[EventId]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await publish(world.hub)
    assert world.hub.statistics().published == 0


async def test_a_closed_log_takes_nothing() -> None:
    with pytest.raises(LogUnavailable):
        await World().hub.publish("news", 1)


def test_whoever_waits_for_the_log_is_told_that_it_has_recovered(world: World) -> None:
    told: list[None] = []
    world.hub.committed(())
    world.hub.recovered = lambda: told.append(None)
    world.publish("news")
    assert not told
    world.hub.committed(())
    assert len(told) == 1
    assert world.bell.rings == 0


def test_the_flush_is_woken_only_when_somebody_is_concerned(world: World) -> None:
    world.publish("news")
    assert world.bell.rings == 0
    world.join("news")
    world.publish("other")
    assert world.bell.rings == 0
    world.publish("news", "news")
    assert world.bell.rings == 1


# Subscribing


def test_live_from_now_on(world: World) -> None:
    world.publish("news")
    subscriber = world.join("news")
    assert subscriber.is_live
    ids = world.publish("news", "other", "news")
    assert world.flush() == 0
    assert subscriber.ids == [ids[0], ids[2]]
    assert subscriber.position == ids[2]
    assert len(subscriber.blocks) == 1


def test_one_block_for_all_of_a_form(world: World) -> None:
    same, too, other = world.join("news"), world.join("news"), world.join("news", form=1)
    world.publish("news")
    world.flush()
    assert same.blocks[0] is too.blocks[0]
    assert same.blocks[0] is not other.blocks[0]
    assert world.hub.statistics().feeds == 1


def test_a_subscriber_of_two_matching_names_gets_an_event_once(world: World) -> None:
    subscriber = world.join("a.b", "a.*", ">")
    (event_id,) = world.publish("a.b")
    world.flush()
    assert subscriber.ids == [event_id]


def test_behind_from_an_earlier_position_and_then_live(world: World) -> None:
    first, *rest = world.publish("news", "news", "news")
    subscriber = world.join("news", position=first)
    assert not subscriber.is_live
    world.catch_up(subscriber)
    assert subscriber.ids == rest
    assert subscriber.is_live
    assert world.hub.try_go_live(subscriber), "going live twice is no error"
    assert world.hub.statistics().behind == 0


def test_slices_until_the_end_is_reached(world: World) -> None:
    ids = world.publish(*["news"] * 5)
    subscriber = world.join("news", position=BEGINNING)
    subscriber.catch_up(world.hub, max_bytes=150)
    subscriber.catch_up(world.hub, max_bytes=150)
    assert subscriber.ids == ids[:2]
    assert not subscriber.is_live
    world.catch_up(subscriber, max_bytes=150)
    assert subscriber.ids == ids


def test_live_before_what_it_read_is_flushed_gets_nothing_twice(world: World) -> None:
    world.join("news")
    ids = world.publish("news", "news")
    subscriber = world.join("news", position=BEGINNING)
    world.catch_up(subscriber)
    assert subscriber.is_live
    ids += world.publish("news")
    world.flush()
    assert subscriber.ids == ids


def test_live_in_the_middle_of_a_block_gets_the_rest_of_it(world: World) -> None:
    other = world.join("news")
    (first,) = world.publish("news")
    subscriber = world.join("news", position=first)
    assert world.hub.try_go_live(subscriber)
    (second,) = world.publish("news")
    world.flush()
    assert subscriber.ids == [second]
    assert other.ids == [first, second]


def test_not_live_before_the_end_of_the_log(world: World) -> None:
    first, _ = world.publish("news", "other")
    subscriber = world.join("news", position=first)
    assert not world.hub.try_go_live(subscriber)
    world.catch_up(subscriber)
    assert subscriber.is_live


def test_not_live_while_something_that_was_flushed_is_missing(world: World) -> None:
    world.join("news")
    first, _ = world.publish("news", "news")
    subscriber = world.join("news", position=first)
    world.flush()
    assert not world.hub.try_go_live(subscriber)


def test_who_leaves_gets_no_more_and_takes_the_feed_along(world: World) -> None:
    subscriber = world.join("news")
    world.publish("news")
    world.hub.leave(subscriber)
    world.hub.leave(subscriber)
    assert world.flush() == 0
    assert subscriber.ids == []
    assert world.hub.statistics().feeds == 0
    world.publish("news")
    assert world.bell.rings == 1


def test_who_is_behind_leaves_as_well(world: World) -> None:
    subscriber = world.join("news", position=BEGINNING)
    world.hub.leave(subscriber)
    assert (world.hub.statistics().subscribers, world.hub.statistics().behind) == (0, 0)
    world.catch_up(subscriber)
    assert not subscriber.is_catching_up


def test_other_topics_from_the_same_position(world: World) -> None:
    subscriber = world.join("a")
    world.publish("a")
    world.flush()
    subscriber.switch(world.hub, TopicSet(["b"]))
    world.publish("a")
    (event_id,) = world.publish("b")
    world.flush()
    assert subscriber.ids[1:] == [event_id]


def test_a_gap_is_counted_once_it_is_handed_over(world: World) -> None:
    subscriber = world.join("news", position=EventId(5, 0))
    assert world.hub.statistics().gaps == 0
    world.catch_up(subscriber)
    (gap,) = subscriber.gaps
    assert gap.reason is GapReason.RESTARTED
    assert world.hub.statistics().gaps == 1


@pytest.mark.parametrize(("from_live", "reason"), [(True, GapReason.SLOW), (False, GapReason.EVICTED)])
def test_falling_behind_further_than_the_log_reaches(from_live: bool, reason: GapReason) -> None:
    world = World(history=2)
    scope = world.log.open(world.hub.committed)
    at_once(scope.__aenter__())
    ids = world.publish("news")
    subscriber = world.join("news", position=None if from_live else ids[0])
    subscriber.block(3)
    ids += world.publish(*["news"] * 5)
    world.flush()
    ids += world.publish(*["news"] * 5)
    subscriber.unblock()
    world.catch_up(subscriber)
    (gap,) = subscriber.gaps
    assert gap.reason is reason
    assert gap.resumed_at == ids[-3]
    assert subscriber.ids[-2:] == ids[-2:]


# Settled


def test_settled_is_the_end_when_the_feed_is_silent(world: World) -> None:
    subscriber = world.join("news")
    (event_id,) = world.publish("other")
    world.flush()
    assert subscriber.position < event_id
    assert world.hub.settled(subscriber) == event_id


def test_settled_is_the_position_while_events_wait(world: World) -> None:
    subscriber = world.join("news")
    before = subscriber.position
    (event_id,) = world.publish("news")
    assert world.hub.settled(subscriber) == before
    world.flush()
    assert world.hub.settled(subscriber) == event_id


@pytest.mark.usefixtures("_one_send_a_turn")
def test_settled_is_the_position_for_who_has_not_had_its_turn(world: World) -> None:
    first, second = world.join("news"), world.join("news")
    before = second.position
    (event_id,) = world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    assert world.hub.settled(first) == event_id
    assert world.hub.settled(second) == before


def test_a_topic_has_as_many_subscribers_as_it_may_have() -> None:
    world = World(subscribers_per_topic=2)
    first, second = world.join("a", "b"), world.join("a", "c")
    with pytest.raises(LimitExceeded) as refused:
        world.join("d", "a")
    assert (refused.value.reason, refused.value.status) == ("limits.subscribers_per_topic", 503)
    assert world.hub.statistics().feeds == 2
    for topics in (("b",), ("c",), ("d",), ("d",)):
        world.join(*topics)
    with pytest.raises(LimitExceeded):
        world.join("d")
    for _ in range(2):
        world.hub.leave(first)
    world.join("a")
    assert second.feed is not None


def test_a_pattern_is_counted_as_it_is_written() -> None:
    world = World(subscribers_per_topic=1)
    world.join("news.*")
    world.join("news.>")
    world.join("news.a")
    with pytest.raises(LimitExceeded):
        world.join("news.*")


def test_a_place_that_was_reserved_is_there() -> None:
    world = World(subscribers_per_topic=1)
    subscriber = world.join("a")
    world.hub.reserve(subscriber, TopicSet(("a", "b")))
    world.hub.pause(subscriber)
    for topic in "ab":
        with pytest.raises(LimitExceeded):
            world.join(topic)
    world.hub.join(subscriber, TopicSet(("a", "b")))
    world.hub.pause(subscriber)
    world.hub.join(subscriber, TopicSet("b"))
    world.join("a")
    world.hub.leave(subscriber)
    world.join("b")


def test_a_place_that_was_reserved_in_vain_is_given_back() -> None:
    world = World(subscribers_per_topic=1)
    taken, subscriber = world.join("a"), FakeSubscriber()
    with pytest.raises(LimitExceeded):
        world.hub.reserve(subscriber, TopicSet(("a", "b")))
    world.hub.reserve(subscriber, TopicSet("b"))
    world.hub.leave(subscriber)
    world.join("b")
    world.hub.leave(taken)
    world.hub.reserve(subscriber, TopicSet("a"))


# Flushing


@pytest.mark.usefixtures("_one_send_a_turn")
def test_a_flush_yields_between_sends(world: World) -> None:
    subscribers = [world.join("news") for _ in range(3)]
    world.publish("news")
    flushing = world.hub.flush()
    for done in range(3):
        next(flushing)
        assert [bool(subscriber.ids) for subscriber in subscribers] == [index <= done for index in range(3)]
    assert list(flushing) == []


def test_a_flush_yields_every_so_many_sends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.hub, "SENDS_PER_TURN", 2)
    subscribers = [world.join(topic) for topic in "abcde"]
    world.publish(*"abcde")
    assert world.flush() == 2
    assert all(subscriber.ids for subscriber in subscribers)


@pytest.mark.usefixtures("_one_send_a_turn")
def test_what_is_published_during_a_flush_comes_with_it(world: World) -> None:
    first, second = world.join("news"), world.join("news")
    ids = world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    ids += world.publish("news")
    assert len(list(flushing)) == 3
    assert first.ids == second.ids == ids
    assert world.hub.statistics().flushes == 2


@pytest.mark.usefixtures("_one_send_a_turn")
def test_a_feed_that_is_marked_again_before_its_turn_is_flushed_once(world: World) -> None:
    first, second = world.join("a"), world.join("b")
    ids = world.publish("a", "b")
    flushing = world.hub.flush()
    next(flushing)
    ids += world.publish("b")
    list(flushing)
    assert first.ids == ids[:1]
    assert second.ids == ids[1:]
    assert len(second.blocks) == 1


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_joins_during_a_flush_gets_nothing_twice(world: World) -> None:
    world.join("news")
    world.join("news")
    (event_id,) = world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    from_now, from_before = world.join("news"), world.join("news", position=BEGINNING)
    world.catch_up(from_before)
    list(flushing)
    assert from_now.ids == []
    assert from_before.ids == [event_id]
    assert from_now.is_live
    assert from_before.is_live


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_leaves_during_a_flush_gets_no_more(world: World) -> None:
    world.join("news")
    subscriber = world.join("news")
    world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    world.hub.leave(subscriber)
    list(flushing)
    assert subscriber.ids == []


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_moves_during_a_flush_gets_what_it_asked_for(world: World) -> None:
    world.join("a")
    subscriber = world.join("a")
    first, second = world.publish("a", "b")
    flushing = world.hub.flush()
    next(flushing)
    subscriber.switch(world.hub, TopicSet(["b"]))
    world.catch_up(subscriber)
    list(flushing)
    assert subscriber.ids == [second]
    assert first not in subscriber.ids


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_leaves_and_comes_back_during_a_flush_gets_it_once(world: World) -> None:
    world.join("news")
    subscriber = world.join("news")
    before = subscriber.position
    (event_id,) = world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    subscriber.follow(world.hub, TopicSet(["news"]), before, is_given=True)
    assert not subscriber.is_live
    world.catch_up(subscriber)
    list(flushing)
    assert subscriber.ids == [event_id]


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_moves_to_a_live_feed_during_a_flush_gets_nothing_of_the_old_one(world: World) -> None:
    world.join("b")
    world.join("a")
    subscriber = world.join("a")
    world.publish("a")
    flushing = world.hub.flush()
    next(flushing)
    subscriber.switch(world.hub, TopicSet(["b"]))
    world.catch_up(subscriber)
    assert subscriber.is_live
    list(flushing)
    assert subscriber.ids == []
    (event_id,) = world.publish("b")
    world.flush()
    assert subscriber.ids == [event_id]


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_comes_back_behind_during_a_flush_is_left_to_the_log(world: World) -> None:
    first, second = world.publish("news", "news")
    world.join("news")
    subscriber = world.join("news")
    (third,) = world.publish("news")
    flushing = world.hub.flush()
    next(flushing)
    subscriber.follow(world.hub, TopicSet(["news"]), first, is_given=True)
    list(flushing)
    assert subscriber.blocks == []
    world.catch_up(subscriber)
    assert subscriber.ids == [second, third]


@pytest.mark.usefixtures("_one_send_a_turn")
def test_a_whole_feed_that_leaves_during_a_flush(world: World) -> None:
    world.join("a")
    subscriber = world.join("b")
    world.publish("a", "b")
    flushing = world.hub.flush()
    next(flushing)
    world.hub.leave(subscriber)
    again = world.join("b")
    list(flushing)
    assert subscriber.ids == again.ids == []
    (event_id,) = world.publish("b")
    world.flush()
    assert again.ids == [event_id]


def test_who_takes_a_part_is_behind_and_reads_on_from_the_log(world: World) -> None:
    slow, quick = world.join("news"), world.join("news")
    slow.block(5)
    ids = world.publish("news")
    world.flush()
    assert not slow.is_live
    assert slow.is_catching_up
    assert slow.position == ids[0], "the rest is in its tail"
    ids += world.publish("news")
    world.flush()
    assert len(slow.blocks) == 1, "the flush skips it"
    assert quick.ids == ids
    slow.unblock()
    world.catch_up(slow)
    assert slow.ids == ids
    assert slow.is_live


def test_who_takes_nothing_is_behind_from_before_the_block(world: World) -> None:
    slow = world.join("news")
    before = slow.position
    slow.tail = b"\n"  # something else of its own waits already
    (event_id,) = world.publish("news")
    world.flush()
    assert not slow.is_live
    assert slow.position == before
    slow.tail = b""
    world.catch_up(slow)
    assert slow.ids == [event_id]


@pytest.mark.usefixtures("_one_send_a_turn")
def test_who_falls_behind_and_catches_up_during_a_flush(world: World) -> None:
    first, second = world.join("news"), world.join("news")
    ids = world.publish("news")
    first.block(4)
    flushing = world.hub.flush()
    next(flushing)
    ids += world.publish("news")
    first.unblock()
    world.catch_up(first)
    list(flushing)
    assert first.ids == second.ids == ids


def test_whose_push_raises_is_out_and_the_others_go_on(world: World) -> None:
    broken, fine = world.join("news"), world.join("news")
    broken.error = ConnectionError("reset")
    before = broken.position
    (event_id,) = world.publish("news")
    world.flush()
    assert broken.failures == [broken.error]
    assert broken.feed is None
    assert broken.position == before
    assert fine.ids == [event_id]
    assert world.hub.statistics().subscribers == 1


def test_who_leaves_from_within_its_push(world: World) -> None:
    leaving, fine = world.join("news"), world.join("news")
    leaving.pushed = lambda: world.hub.leave(leaving)
    (event_id,) = world.publish("news")
    world.flush()
    assert leaving.feed is None
    assert fine.ids == [event_id]
    assert world.hub.statistics().subscribers == 1


# The index from topics to feeds


def test_patterns_come_and_go(world: World) -> None:
    exact = world.join("a.b")
    ids = world.publish("a.b")  # before there was any pattern
    pattern = world.join("a.*")
    ids += world.publish("a.b", "a.c", "b")
    world.flush()
    assert exact.ids == ids[:2]
    assert pattern.ids == ids[1:3]
    late = world.join("a.c")  # when the feeds of a.c are remembered already
    rest = world.join("a.>")
    more = world.publish("a.c", "a.c.d", "a.c")
    world.flush()
    assert late.ids == [more[0], more[2]]
    assert rest.ids == more
    for subscriber in (late, rest, pattern):
        world.hub.leave(subscriber)
    ids += world.publish("a.b", "a.c")
    world.flush()
    assert pattern.ids[-1] == more[2]
    assert exact.ids[-1] == ids[-2]


def test_exact_feeds_that_share_a_topic_leave_one_by_one(world: World) -> None:
    first, second = world.join("a"), world.join("a", "b")
    world.hub.leave(first)
    (event_id,) = world.publish("a")
    world.flush()
    assert (first.ids, second.ids) == ([], [event_id])


def test_only_so_many_topics_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.hub, "_MAX_REMEMBERED_TOPICS", 2)
    subscriber = world.join(">")
    ids = world.publish("a", "b", "c", "a")
    assert len(world.hub._remembered) <= 2
    world.flush()
    assert subscriber.ids == ids


# What it counts


def test_statistics(world: World) -> None:
    live, slow = world.join("a"), world.join("a")
    world.join("b", position=BEGINNING)
    slow.block(1)
    world.publish("a", "b", "c")
    world.flush()
    assert live.is_live
    assert world.hub.statistics() == HubStatistics(
        feeds=2, subscribers=3, behind=2, published=3, committed=3, flushes=1, deliveries=2, fell_behind=1, gaps=0
    )


# Parts


def test_a_flush_hands_out_parts_of_bounded_size(world: World) -> None:
    subscriber = world.join("news")
    at_once(world.hub.append([Draft("news", "message", b'"%b"' % (b"x" * 30_000)) for _ in range(5)]))
    large = at_once(world.hub.append([Draft("news", "message", b'"%b"' % (b"y" * 65_000))]))
    world.publish("news")
    world.flush()
    assert len(subscriber.ids) == 7
    assert len(subscriber.blocks) == 4  # of two, two, one, and two events
    assert subscriber.ids[5] == large[0]


def test_who_cannot_take_a_part_gets_none_of_the_others(world: World) -> None:
    slow, quick = world.join("news"), world.join("news")
    slow.block(room=1)
    at_once(world.hub.append([Draft("news", "message", b'"%b"' % (b"x" * 40_000)) for _ in range(4)]))
    world.flush()
    assert (len(quick.blocks), len(slow.blocks)) == (4, 1)
    assert not slow.is_live
    slow.unblock()
    world.catch_up(slow)
    assert slow.ids == quick.ids


def test_an_event_that_is_too_long(world: World) -> None:
    with pytest.raises(LimitExceeded, match=r"publish\.max_event allows 65536, found 65537"):
        world.hub.check(Draft("news", "message", b"1" * 65537))
    assert world.hub.check(Draft("news", "message", b"1" * 65536))


def test_the_first_of_what_is_kept(world: World) -> None:
    assert at_once(world.hub.peek(TopicSet(["news"]), BEGINNING)).complete
    ids = world.publish("news", "other", "news")
    found = at_once(world.hub.peek(TopicSet(["news"]), BEGINNING))
    assert [event.id for event in found.events] == ids[:1]


# What is not handed over


@pytest.fixture
async def skipping() -> AsyncIterator[World]:
    world = World(history=3)
    log = world.log = DeafLog(history=3, history_age=60, history_size=10**6, clock=world.clock)
    world.hub = Hub(log, max_topic_bytes=20, max_event_bytes=65536, wake=world.bell.ring)
    async with world.hub.open():
        yield world


def skip(world: World, *topics: str) -> list[EventId]:
    assert isinstance(world.log, DeafLog)
    world.log.is_deaf = True
    ids = world.publish(*topics)
    world.log.is_deaf = False
    world.hub.skipped(ids[-1])
    return ids


async def test_who_is_live_reads_what_was_skipped_from_the_log(skipping: World) -> None:
    subscriber, other = skipping.join("a"), skipping.join("b", form=1)
    pending = skipping.publish("a", "b")
    ids = skip(skipping, "a", "a")
    assert skipping.hub.last_id == ids[-1]
    assert (subscriber.is_live, other.is_live) == (False, False)
    assert skipping.flush() == 0  # what was pending is read from the log as well
    for each in (subscriber, other):
        skipping.catch_up(each)
        assert each.is_live
    later = skipping.publish("a", "b")
    skipping.flush()
    assert subscriber.ids == [pending[0], *ids, later[0]]
    assert other.ids == [pending[1], later[1]]
    assert not subscriber.gaps


async def test_who_follows_a_quiet_topic_reads_on_from_where_all_were_and_not_from_its_last_event(
    skipping: World,
) -> None:
    quiet, busy = skipping.join("a"), skipping.join("b", form=1)
    skipping.publish("a", *["b"] * 9)
    skipping.flush()
    here = skipping.publish("c")[0]
    pending = skipping.publish("b")
    ids = skip(skipping, "a", "b")
    assert (quiet.position, busy.position) == (pending[0], here)
    skipping.flush()
    for each in (quiet, busy):
        skipping.catch_up(each)
    assert quiet.ids[1:] == ids[:1]
    assert busy.ids[9:] == [*pending, ids[1]]
    assert not quiet.gaps
    assert not busy.gaps


async def test_what_was_skipped_and_dropped_is_a_gap_that_is_not_the_clients_fault(skipping: World) -> None:
    subscriber = skipping.join("a")
    before = skipping.hub.last_id
    ids = skip(skipping, *["a"] * 5)
    skipping.flush()
    skipping.catch_up(subscriber)
    assert subscriber.gaps == [Gap(GapReason.EVICTED, before, ids[1])]
    assert subscriber.ids == ids[2:]


async def test_who_leaves_or_comes_anew_before_being_told_of_a_skip_is_not_told(skipping: World) -> None:
    gone, back = skipping.join("a"), skipping.join("a")
    skip(skipping, "a")
    for each in (gone, back):
        skipping.hub.leave(each)
    skipping.hub.join(back, TopicSet(["a"]))
    back.position = skipping.hub.last_id
    assert skipping.hub.try_go_live(back)
    skipping.flush()
    assert (gone.is_catching_up, back.is_catching_up) == (False, False)


async def test_others_have_their_turn_while_many_are_told_of_a_skip(skipping: World) -> None:
    subscribers = [skipping.join("a") for _ in range(120)]
    skip(skipping, "a")
    assert skipping.flush() == 2
    for each in subscribers:
        skipping.catch_up(each)
        assert each.is_live


async def test_who_read_before_something_was_skipped_reads_on(skipping: World) -> None:
    position = skipping.hub.last_id
    subscriber = skipping.join("a", position=position)
    subscriber.catch_up(skipping.hub, max_bytes=1000)  # has read to the end, and not yet gone live
    ids = skip(skipping, "a")
    assert not subscriber.is_live
    skipping.catch_up(subscriber)
    assert subscriber.is_live
    assert subscriber.ids == ids


async def test_a_hub_tells_what_is_wrong_with_its_log(skipping: World) -> None:
    assert skipping.hub.problem is None


# What is read from the log


def read_block(world: World, subscriber: FakeSubscriber) -> bytes:
    return world.hub.block(subscriber, at_once(world.hub.read(subscriber)))


def test_those_who_read_the_same_share_the_bytes(world: World) -> None:
    (start,) = world.publish("a")
    world.publish("a", "b", "a")
    first, second = (world.join("a", position=start) for _ in range(2))
    assert read_block(world, first) is read_block(world, second)
    others = [world.join("a", form=1, position=start), world.join("a", "b", position=start)]
    blocks = [read_block(world, other) for other in (first, *others)]
    assert len({id(block) for block in blocks}) == 3
    world.publish("a")
    assert read_block(world, second) not in blocks


def test_blocks_are_not_kept_for_ever(world: World) -> None:
    (start,) = world.publish("a")
    subscriber = world.join("a", position=start)
    world.publish("a")
    kept = read_block(world, subscriber)
    for _ in range(40):
        assert len(world.hub._blocks) <= 32
        world.publish("a")
        read_block(world, subscriber)
    assert all(block is not kept for block in world.hub._blocks.values())
