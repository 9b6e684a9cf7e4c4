"""What Tricast promises: the ids that a client receives are contiguous, or a gap was announced.

The real hub over the real log; clients that join, block, fall behind, leave, come back, and change their minds, at any
moment, also in the middle of a flush.
"""

from collections.abc import Iterator, Sequence

import pytest
from hub.fakes import FORMS, STATES, FakeSubscriber, Got, Switched, at_once
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import tricast.hub
from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.hub import Hub
from tricast.log.memory import MemoryLog

TOPICS = ("a.1", "a.2", "b")
#: Few, so that clients often share a feed.
TOPIC_SETS = tuple(map(TopicSet, (["a.1"], ["b"], ["a.1", "b"], ["a.*", "a.2"], [">"])))
EVERYTHING = TopicSet([">"])
HISTORY = 4
#: So little is read from the log at a time that it often takes several slices.
SLICE_BYTES = 40
CLIENTS = 3

clients = st.integers(0, CLIENTS - 1)
topic_sets = st.sampled_from(TOPIC_SETS)


class Client:
    """One client over all its connections, and what it may expect.

    Its *leg* is what it has followed without a break: the same topics, from a position on, perhaps over several
    connections, each resumed from the last id received.
    """

    def __init__(self, index: int) -> None:
        self.subscriber = FakeSubscriber(form=FORMS[index // 2])
        self.is_online = False
        self.begin(BEGINNING, TOPIC_SETS[0])

    def begin(self, start: EventId, topics: TopicSet) -> None:
        """Begins a new leg."""
        self.start = start
        self.resume = start
        self.topics = topics
        self.received: list[EventId] = []
        self.gaps: list[Gap] = []
        #: What "all that is kept" does not include.
        self.excused: frozenset[EventId] = frozenset()

    def take(self, published: list[Got]) -> None:
        """Looks at what has arrived, any of which may be the last that does on this connection."""
        items, self.subscriber.items = self.subscriber.items, []
        for item in items:
            if isinstance(item, Switched):
                self.check(item.position, published)
                excused = self.excused if item.position == BEGINNING else frozenset()
                self.begin(item.position, item.topics)
                self.excused = excused
            elif isinstance(item, Gap):
                self.take_gap(item)
            else:
                assert item.topic in self.topics
                assert item.id > (self.received[-1] if self.received else self.start), "twice, or out of order"
                self.received.append(item.id)
                self.resume = item.id
            self.check(self.resume, published)

    def take_gap(self, gap: Gap) -> None:
        if gap.reason is GapReason.UNKNOWN_ID:
            # It named a position that never was, so it was told one that is.
            assert gap.after == self.resume > gap.resumed_at
            self.begin(gap.resumed_at, self.topics)
        else:
            assert gap.resumed_at > gap.after
            self.gaps.append(gap)
            self.resume = gap.resumed_at

    def check(self, upto: EventId, published: list[Got]) -> None:
        """Everything up to a position has arrived, or is in a gap that has."""
        expected = {event.id for event in published if self.start < event.id <= upto and event.topic in self.topics}
        missing = expected - set(self.received) - self.excused
        unannounced = {lost for lost in missing if not any(gap.after < lost <= gap.resumed_at for gap in self.gaps)}
        assert not unannounced, f"lost in silence: {sorted(unannounced)}; gaps {self.gaps}"


class Contiguity(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self.published: list[Got] = []
        self.clients = [Client(index) for index in range(CLIENTS)]
        self.open()

    def open(self) -> None:
        self.log = MemoryLog(history=HISTORY, history_age=10, history_size=9_000, clock=self.clock)
        self.hub = Hub(self.log, max_topic_bytes=255, max_event_bytes=65536, wake=lambda: None)
        self.is_deaf = False
        self.scope = self.log.open(self.committed)
        at_once(self.scope.__aenter__())
        self.flushing: Iterator[None] | None = None

    def committed(self, events: Sequence[Event]) -> None:
        if not self.is_deaf:
            self.hub.committed(events)

    def clock(self) -> float:
        return (self.now_ms + 0.5) / 1000  # in the middle, so that no rounding makes it another millisecond

    def teardown(self) -> None:
        for client in self.clients:
            client.subscriber.unblock()
        self.settle()
        self.everything_arrived()
        for client in self.clients:
            self.hub.leave(client.subscriber)
        assert self.hub.statistics().feeds == self.hub.statistics().subscribers == self.hub.statistics().behind == 0
        assert not self.hub._by_topic
        assert not self.hub._by_pattern
        at_once(self.scope.__aexit__(None, None, None))

    def settle(self) -> None:
        for _ in range(2):  # what fell behind before the last flush needs one more
            self.catch_up_all()
            self.flush(1000)
        self.catch_up_all()
        for client in self.clients:
            assert client.subscriber.is_live == client.is_online

    def catch_up_all(self) -> None:
        for index, client in enumerate(self.clients):
            while client.subscriber.is_catching_up:
                self.catch_up(index, 1)

    @initialize(topics=topic_sets)
    def everybody_connects(self, topics: TopicSet) -> None:
        for client in self.clients:
            self.connect(client, self.hub.last_id, topics, is_given=False)

    # What publishers do

    @rule(topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=4), size=st.sampled_from([2, 2, 2, 600]))
    def publish(self, topics: list[str], size: int) -> None:
        drafts = [Draft(topic, "message", b'"' + b"x" * (size - 2) + b'"') for topic in topics]
        ids = at_once(self.hub.append(drafts))
        assert sorted(set(ids)) == ids
        assert not self.published or ids[0] > self.published[-1].id
        self.published += map(Got, ids, topics)

    # What the server does

    @rule(steps=st.sampled_from([1, 1, 1, 2, 3, 1000]))
    def flush(self, steps: int) -> None:
        """Flushes a little, and leaves off in the middle; or to the end."""
        if self.flushing is None:
            self.flushing = self.hub.flush()
        for _ in range(steps):
            try:
                next(self.flushing)
            except StopIteration:
                self.flushing = None
                break
        self.look()

    @rule(index=clients, steps=st.sampled_from([1, 1, 2, 20]))
    def catch_up(self, index: int, steps: int) -> None:
        client = self.clients[index]
        subscriber = client.subscriber
        for _ in range(steps):
            had_read = subscriber.has_read
            subscriber.catch_up(self.hub, max_bytes=SLICE_BYTES)
            if subscriber.has_read and not had_read and subscriber.position == BEGINNING:
                kept = {event.id for event in at_once(self.log.read(EVERYTHING, BEGINNING, max_bytes=10**9)).events}
                client.excused |= {event.id for event in self.published if event.id not in kept}
        self.look()

    # What clients do

    @rule(
        index=clients,
        topics=topic_sets,
        start=st.sampled_from(["now", "now", "resume", "earlier", "earlier", "beginning", "future"]),
        back=st.integers(1, 12),
    )
    def connect_anew(self, index: int, topics: TopicSet, start: str, back: int) -> None:
        client = self.clients[index]
        if start == "now":
            self.connect(client, self.hub.last_id, topics, is_given=False)
        elif start == "resume":
            self.connect(client, client.resume, topics)
        elif start == "earlier" and self.published:
            self.connect(client, self.published[-min(back, len(self.published))].id, topics)
        elif start == "beginning":
            self.connect(client, BEGINNING, topics)
        elif start == "future":
            self.connect(client, EventId(self.log.last_id.ms + 20, 3), topics)

    @rule(index=clients)
    def reconnect(self, index: int) -> None:
        client = self.clients[index]
        self.disconnect(client)
        client.subscriber.follow(self.hub, client.topics, client.resume, is_given=True)
        client.is_online = True

    @rule(index=clients, topics=topic_sets)
    def change_topics(self, index: int, topics: TopicSet) -> None:
        client = self.clients[index]
        if client.is_online:
            client.subscriber.switch(self.hub, topics)
        self.look()

    @rule(index=clients, room=st.integers(0, 90))
    def block(self, index: int, room: int) -> None:
        self.clients[index].subscriber.block(room)

    @rule(index=clients)
    def unblock(self, index: int) -> None:
        self.clients[index].subscriber.unblock()
        self.look()

    def connect(self, client: Client, start: EventId, topics: TopicSet, *, is_given: bool = True) -> None:
        self.disconnect(client)
        client.begin(start, topics)
        client.subscriber.follow(self.hub, topics, start, is_given=is_given)
        client.is_online = True

    def disconnect(self, client: Client) -> None:
        self.hub.leave(client.subscriber)
        client.subscriber.cut()
        client.is_online = False

    # What happens now and then

    @rule(
        what=st.sampled_from(["evict", "leave", "break", "wait", "step back", "grow old", "restart", "skip"]),
        index=clients,
    )
    def disturb(self, what: str, index: int) -> None:
        if what == "evict":
            self.publish(list(TOPICS[: index + 1]) * (HISTORY + 1), 2)
        elif what == "leave":
            self.disconnect(self.clients[index])
        elif what == "break":
            self.clients[index].subscriber.error = ConnectionError("reset")
        elif what == "restart":
            self.restart()
        elif what == "skip":
            self.skip(TOPICS[index])
        else:
            self.now_ms += {"wait": 40, "step back": -500, "grow old": 11_000}[what]

    def skip(self, topic: str) -> None:
        """What another process had committed is not handed over."""
        self.is_deaf = True
        self.publish([topic] * 2, 2)
        self.is_deaf = False
        self.hub.skipped(self.log.last_id)

    def restart(self) -> None:
        for client in self.clients:
            self.disconnect(client)
        self.now_ms = max(self.now_ms, self.log.last_id.ms) + 1
        self.open()

    # What must hold

    def look(self) -> None:
        for client in self.clients:
            client.take(self.published)
            if client.subscriber.failures:
                client.subscriber.failures.clear()
                assert client.subscriber.feed is None
                self.disconnect(client)

    @invariant()
    def nothing_is_lost_in_silence(self) -> None:
        for client in self.clients:
            subscriber = client.subscriber
            if client.is_online and not subscriber.tail and subscriber.position <= self.hub.last_id:
                here = self.hub.settled(subscriber) if subscriber.is_live else subscriber.position
                client.check(here, self.published)

    @invariant()
    def everything_arrived(self) -> None:
        if self.flushing is None and not self.hub._dirty:
            for client in self.clients:
                if client.subscriber.is_live and not client.subscriber.tail:
                    client.check(self.log.last_id, self.published)

    @invariant()
    def the_hub_counts_right(self) -> None:
        statistics = self.hub.statistics()
        online = [client.subscriber for client in self.clients if client.is_online]
        live = [subscriber for subscriber in online if subscriber.is_live]
        assert statistics.subscribers == len(online)
        assert statistics.behind == len(online) - len(live)
        assert statistics.feeds == len({subscriber.feed for subscriber in online})
        for subscriber in online:
            assert subscriber.feed is not None
            members = subscriber.feed.live.get(subscriber.form, {})
            assert (subscriber in members) == subscriber.is_live
            # Only in the middle of a flush may a live one not have everything that was flushed.
            assert not subscriber.is_live or self.flushing or subscriber.position >= subscriber.feed.flushed


def test_contiguous_or_a_gap_was_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.hub, "SENDS_PER_TURN", 1)
    monkeypatch.setattr(tricast.hub, "CATCH_UP_BYTES", SLICE_BYTES)
    run_state_machine_as_test(Contiguity, settings=STATES)
