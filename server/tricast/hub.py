"""Topics, feeds and positions: who gets what next. Synchronous, and without sockets.

A *feed* is one distinct set of topics that somebody is subscribed to; subscribers of the same set share it. A
subscriber of a feed is *live*: it has everything up to the feed's last flush and gets the next block as it is; or it
is *behind*: its own task reads on from the log until it has caught up. Nothing here waits for a subscriber, and no
events are held for any one of them.

What holds at all times: a live subscriber has got everything its feed ever flushed behind the position it began at.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from tricast.errors import LimitExceeded
from tricast.event import (
    DEFAULT_TYPE,
    Draft,
    Event,
    GapReason,
    Position,
    TopicSet,
    check_topic,
    check_type,
    join,
    seen_in,
    whole,
)
from tricast.log.base import IdempotencyKey, Log, Slice
from tricast.log.statistics import Statistics
from tricast.quotas import Seats
from tricast.sent import ALL, NOTHING, Sent
from tricast.wire.form import Form

#: Between two yields of a flush: sends, each of which counts once more for every few kilobytes it is long. At 10 µs
#: each, and twice that with TLS, nobody else waits for more than 4 ms.
SENDS_PER_TURN = 200
_BYTES_PER_SEND = 8 * 2**10
#: Subscribers that are sent to the log between two yields: a waiting poll is answered for it.
_SKIPS_PER_TURN = 50
#: How much a subscriber is given at a time, from the log or by a flush: what it cannot take is kept for it.
CATCH_UP_BYTES = 64 * 2**10
#: Blocks that were read from the log are kept for the next who reads the same, so many of them.
_MAX_BLOCKS = 32
#: Topics whose feeds are remembered while patterns are in use; forgotten all at once when there are more.
_MAX_REMEMBERED_TOPICS = 10_000


class Subscriber(ABC):
    """A position in the log, with a way to write to whoever is at it.

    Attributes:
        form: how it wants events written.
        feed: the feed it belongs to, or None.
        position: everything of its feed up to here has been handed over.
        is_live: whether the flush feeds it.
        was_live: whether it ever was, so that a gap is its own slowness.
    """

    __slots__ = ("feed", "form", "is_live", "position", "was_live")

    def __init__(self, form: Form, position: Position) -> None:
        self.form = form
        self.feed: Feed | None = None
        self.position = position
        self.is_live = False
        self.was_live = False

    @abstractmethod
    def push(self, block: bytes) -> Sent:
        """Sends what can be sent at once, without waiting."""

    @abstractmethod
    def fell_behind(self) -> None:
        """Has its own task read on from the log, with ``Hub.read`` and ``Hub.try_go_live``."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Ends this subscriber's connection: ``push`` raised the error. Must not raise."""


class Feed:
    """One distinct set of topics.

    Attributes:
        topics: the set.
        shards: where their events are; see ``Log.shards_of``.
        live: the live subscribers by form, in the order they came.
        size: all subscribers, live and behind.
        pending: events since the last flush, in id order.
        before_pending: the newest position before the first of them, be it another feed's event.
        flushed: the last event that was flushed.
    """

    __slots__ = ("before_pending", "flushed", "live", "pending", "shards", "size", "topics")

    def __init__(self, topics: TopicSet, flushed: Position, shards: Sequence[int] | None = None) -> None:
        self.topics = topics
        self.shards = shards
        self.live: dict[Form, dict[Subscriber, None]] = {}
        self.size = 0
        self.pending: list[Event] = []
        self.before_pending = flushed
        self.flushed = flushed


class HubStatistics(msgspec.Struct, frozen=True):
    """What the hub has done and holds; counts since the start unless said otherwise."""

    feeds: int  # now
    subscribers: int  # now
    behind: int  # now
    published: int  # taken from publishers here; a copy of a request that comes during it counts as well
    committed: int  # that came out of the log, whoever published them
    flushes: int
    deliveries: int  # blocks handed to live subscribers
    fell_behind: int
    gaps: int


class Hub:
    """Publishes into the log, and brings what the log commits to the subscribers.

    Args:
        log: where events are kept.
        max_topic_bytes: how long a topic may be.
        max_event_bytes: how long the data of an event may be.
        max_topic_subscribers: how many subscribers a topic, or a pattern, may have; 0 for any number.
        wake: called when there is something to flush.

    Attributes:
        recovered: called when the log can be read again that could not.
    """

    def __init__(
        self,
        log: Log,
        *,
        max_topic_bytes: int,
        max_event_bytes: int,
        max_topic_subscribers: int = 0,
        wake: Callable[[], None],
    ) -> None:
        self._log = log
        self._seats: Seats[Subscriber, str] = Seats(max_topic_subscribers)
        self._max_topic_bytes = max_topic_bytes
        self._max_event_bytes = max_event_bytes
        self._wake = wake
        self.recovered: Callable[[], None] = _nothing
        self._feeds: dict[frozenset[str], Feed] = {}
        self._by_topic: dict[str, dict[Feed, None]] = {}
        self._by_pattern: dict[Feed, None] = {}
        self._remembered: dict[str, tuple[Feed, ...]] = {}
        self._dirty: dict[Feed, None] = {}
        #: Those who were live when something was skipped; they are told in the flush's turns.
        self._to_read_on: list[Subscriber] = []
        self._blocks: dict[tuple[frozenset[str], Form, Event, Position, int], bytes] = {}
        self._last_id = log.last_id
        self._subscribers = 0
        self._live = 0
        self._published = 0
        self._committed = 0
        self._flushes = 0
        self._deliveries = 0
        self._fell_behind = 0
        self._gaps = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The scope in which the log works for this hub.

        Raises:
            LogUnavailable: the log cannot be used.
        """
        async with self._log.open(self.committed, self.skipped):
            # Only now does a log know where it is that was there before this process.
            self._last_id = self._log.last_id
            yield

    @property
    def log_waits(self) -> bool:
        """Whether publishing takes longer than a few microseconds, so that no answer should be held back for it."""
        return self._log.waits

    @property
    def log_statistics(self) -> Statistics:
        """What the log has gone through."""
        return self._log.statistics

    @property
    def problem(self) -> str | None:
        """Why nothing can be published now; None while all is well."""
        return self._log.problem

    # Publishing

    async def publish(self, topic: str, data: object, *, type: str = DEFAULT_TYPE) -> Position:  # noqa: A002
        """Publishes one event and returns its id once the log holds it. Never waits for a subscriber.

        Args:
            topic: dot-separated words.
            data: anything that JSON can write.
            type: the name of the event's kind.

        Raises:
            RemoteProtocolError: the topic or the type is not allowed, or the data is too long.
            TypeError: the data cannot be written as JSON.
            LogUnavailable: the event was not kept.
        """
        (event_id,) = await self.append([self.check(Draft(topic, type, msgspec.json.encode(data)))])
        return event_id

    def check(self, draft: Draft) -> Draft:
        """Returns the draft unchanged when it may be published.

        Raises:
            RemoteProtocolError: the topic or the type is not allowed.
            LimitExceeded: the topic or the data is too long.
        """
        check_topic(draft.topic, max_bytes=self._max_topic_bytes)
        check_type(draft.type)
        if len(draft.data) > self._max_event_bytes:
            raise LimitExceeded("publish.max_event", self._max_event_bytes, len(draft.data))
        return draft

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> Sequence[Position]:
        """Publishes checked drafts, all or none, and returns their ids once the log holds them.

        Args:
            drafts: what to publish.
            key: where the log knows it, nothing is published, and the ids are those of the first time.

        Raises:
            LogUnavailable: none was kept.
            RemoteProtocolError: the key was used for something else.
        """
        if not drafts:
            return []
        before = self._last_id
        ids = await self._log.append(drafts, key)
        # A key that is known gets ids of the past.
        if not before >= ids[0]:
            self._published += len(ids)
        return ids

    def committed(self, events: Sequence[Event]) -> None:
        """Takes what the log has committed, in id order, and marks the feeds that it concerns."""
        if not events:
            self.recovered()
        self._committed += len(events)
        for event in events:
            for feed in self._feeds_of(event.topic):
                if not feed.pending:
                    feed.before_pending = self._last_id
                feed.pending.append(event.seen_in(feed.shards))
                self._dirty[feed] = None
            self._last_id = whole(event.id)
        if self._dirty:
            self._wake()

    def skipped(self, upto: Position) -> None:
        """Has everybody who is live read on from the log: of what was committed up to here, not all is handed over."""
        last_id = self._last_id
        # In a log that began anew, its new positions are not always behind the old ones.
        upto = self._last_id = upto if upto == self._log.last_id else join(last_id, upto)
        for feed in self._feeds.values():
            settled = seen_in(feed.before_pending if feed.pending else last_id, feed.shards)
            for subscriber in [each for members in feed.live.values() for each in members]:
                # Of a quiet topic the last event may be long ago, and the log would have to reach back to there.
                if settled >= subscriber.position >= feed.flushed:
                    subscriber.position = settled
                self._stop_live(subscriber)
                subscriber.was_live = False  # if there is a gap, it was not its own slowness
                self._to_read_on.append(subscriber)
            # Nobody becomes live again before having read up to here.
            feed.flushed = upto
            feed.pending.clear()
        if self._to_read_on:
            self._wake()

    # Subscribing

    @property
    def last_id(self) -> Position:
        """The newest position: that of the last event committed."""
        return self._last_id

    def settled(self, subscriber: Subscriber) -> Position:
        """The newest position up to which a live subscriber has everything, though its feed may have been silent."""
        feed = subscriber.feed
        assert feed is not None
        if not subscriber.position >= feed.flushed:
            # In the middle of a flush nothing is pending any more, but not everybody has had his block.
            return subscriber.position
        return seen_in(join(subscriber.position, feed.before_pending if feed.pending else self._last_id), feed.shards)

    def seen_in(self, topics: TopicSet, position: Position) -> Position:
        """The position as those are told it who follow these topics."""
        return seen_in(position, self._log.shards_of(topics))

    async def peek(self, topics: TopicSet, after: Position) -> Slice:
        """The first of what the log holds for topics behind a position.

        Raises:
            LogUnavailable: the log cannot be read now.
        """
        return await self._log.read(topics, after, max_bytes=1)

    def feed_of(self, names: frozenset[str]) -> Feed | None:
        """The feed of exactly these topics and patterns, if somebody is subscribed to them."""
        return self._feeds.get(names)

    def reserve(self, subscriber: Subscriber, topics: TopicSet) -> None:
        """Takes the subscriber's place in these topics, so that ``join`` has room; ``leave`` gives it back.

        Raises:
            LimitExceeded: one of them has as many subscribers as it may have; nothing has changed.
        """
        if self._seats.hold(subscriber, topics.names) is not None:
            raise LimitExceeded("limits.subscribers_per_topic", self._seats.allowed, status=503, close_code=1013)

    def join(self, subscriber: Subscriber, topics: TopicSet) -> None:
        """Makes the subscriber one of the feed for these topics, behind until ``try_go_live`` says otherwise.

        Raises:
            LimitExceeded: see ``reserve``.
        """
        self.reserve(subscriber, topics)
        feed = self._feeds.get(topics.names)
        if feed is None:
            feed = self._feeds[topics.names] = Feed(topics, self._last_id, self._log.shards_of(topics))
            self._index(feed)
        feed.size += 1
        self._subscribers += 1
        subscriber.feed = feed

    def leave(self, subscriber: Subscriber) -> None:
        """Takes the subscriber out of its feed, if it is in one, and gives back its place."""
        self.pause(subscriber)
        self._seats.let_go(subscriber)

    def pause(self, subscriber: Subscriber) -> None:
        """Takes the subscriber out of its feed, if it is in one, until it joins again; its position stays true."""
        feed = subscriber.feed
        if feed is None:
            return
        self._stop_live(subscriber)
        subscriber.feed = None
        self._subscribers -= 1
        feed.size -= 1
        if not feed.size:
            del self._feeds[feed.topics.names]
            self._dirty.pop(feed, None)
            self._unindex(feed)

    async def read(self, subscriber: Subscriber, *, max_bytes: int = CATCH_UP_BYTES) -> Slice:
        """What the log holds for a subscriber behind its position. The position does not move: see ``advance``.

        Raises:
            LogUnavailable: the log cannot be read now.
        """
        assert subscriber.feed is not None
        found = await self._log.read(subscriber.feed.topics, subscriber.position, max_bytes=max_bytes)
        if found.gap is not None and found.gap.reason is GapReason.EVICTED and subscriber.was_live:
            found = found._replace(gap=found.gap._replace(reason=GapReason.SLOW))
        return found

    def block(self, subscriber: Subscriber, found: Slice) -> bytes:
        """What the subscriber gets of a slice that was read for it.

        Those who come back together read the same: they share the bytes, also as what a slow one has not taken yet.
        """
        feed = subscriber.feed
        assert feed is not None
        if found.gap is not None:
            return subscriber.form.block(found.events, found.gap)
        events = found.events
        # The whole first event: in a log of several shards, others may come first to the same place by another one.
        key = (feed.topics.names, subscriber.form, events[0], events[-1].id, len(events))
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = subscriber.form.block(events)
            if len(self._blocks) > _MAX_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return block

    def advance(self, subscriber: Subscriber, handed_over: Slice) -> None:
        """Moves the position behind a slice that was handed over."""
        self._gaps += handed_over.gap is not None
        subscriber.position = handed_over.upto

    def try_go_live(self, subscriber: Subscriber) -> bool:
        """Makes the subscriber live when it has come to the end of the log; returns whether it is."""
        feed = subscriber.feed
        assert feed is not None
        if not subscriber.position >= self._last_id:
            return False
        if not subscriber.is_live:
            feed.live.setdefault(subscriber.form, {})[subscriber] = None
            subscriber.is_live = subscriber.was_live = True
            self._live += 1
        return True

    # Flushing

    def flush(self) -> Iterator[None]:
        """Hands everything committed so far to the live subscribers; yields where others should get a turn.

        A subscriber that cannot take its block leaves the live ones and is told so; it delays nobody.
        """
        for _ in self._tell_of_skip():
            yield
        turn = 0
        while self._dirty:
            feeds, self._dirty = self._dirty, {}
            self._flushes += 1
            for feed in feeds:
                for form, subscribers, events in self._take(feed):
                    block = form.block(events)
                    weight = form.weight + len(block) // _BYTES_PER_SEND
                    for subscriber in subscribers:
                        self._deliver(subscriber, feed, events, block)
                        turn += weight
                        if turn >= SENDS_PER_TURN:
                            turn = 0
                            yield

    def _tell_of_skip(self) -> Iterator[None]:
        subscribers, self._to_read_on = self._to_read_on, []
        for number, subscriber in enumerate(subscribers, start=1):
            if subscriber.feed is not None and not subscriber.is_live:  # it may have left, or come anew
                subscriber.fell_behind()
            if number % _SKIPS_PER_TURN == 0:
                yield

    def _take(self, feed: Feed) -> list[tuple[Form, list[Subscriber], Sequence[Event]]]:
        """Takes a feed's pending events, in parts of bounded size, and those who were live when they were taken.

        A subscriber that cannot take a part is behind from then on, so that it never holds more than one.
        """
        events, feed.pending = feed.pending, []
        if not events:  # flushed already, with what came first, while it was marked again
            return []
        feed.flushed = events[-1].id
        live = [(form, list(subscribers)) for form, subscribers in feed.live.items()]
        return [(form, subscribers, part) for part in _parts(events) for form, subscribers in live]

    def _deliver(self, subscriber: Subscriber, feed: Feed, events: Sequence[Event], block: bytes) -> None:
        # It may have left, moved or fallen behind while others had their turn.
        if not subscriber.is_live or subscriber.feed is not feed:
            return
        position, upto = subscriber.position, events[-1].id
        if position >= events[0].id:
            if position >= upto:
                return
            # It became live between two events of this block.
            block = subscriber.form.block([event for event in events if event.id > position])
        try:
            sent = subscriber.push(block)
        except Exception as error:  # noqa: BLE001 - whatever one connection raises stays with it
            self.leave(subscriber)
            subscriber.fail(error)
            return
        if sent is not NOTHING:
            self._deliveries += 1
            subscriber.position = upto
        if sent is not ALL:
            self._stop_live(subscriber)
            self._fell_behind += 1
            subscriber.fell_behind()

    def _stop_live(self, subscriber: Subscriber) -> None:
        if subscriber.is_live:
            assert subscriber.feed is not None
            subscriber.is_live = False
            self._live -= 1
            members = subscriber.feed.live[subscriber.form]
            del members[subscriber]
            if not members:
                del subscriber.feed.live[subscriber.form]

    # The index from topics to feeds

    def _feeds_of(self, topic: str) -> tuple[Feed, ...]:
        if not self._by_pattern:
            return tuple(self._by_topic.get(topic, ()))
        feeds = self._remembered.get(topic)
        if feeds is None:
            matching = {feed: None for feed in self._by_pattern if topic in feed.topics}
            feeds = tuple({**self._by_topic.get(topic, {}), **matching})
            if len(self._remembered) >= _MAX_REMEMBERED_TOPICS:
                self._remembered.clear()
            self._remembered[topic] = feeds
        return feeds

    def _index(self, feed: Feed) -> None:
        for topic in feed.topics.exact:
            self._by_topic.setdefault(topic, {})[feed] = None
        if feed.topics.has_patterns:
            self._by_pattern[feed] = None
        self._forget(feed)

    def _unindex(self, feed: Feed) -> None:
        for topic in feed.topics.exact:
            feeds = self._by_topic[topic]
            del feeds[feed]
            if not feeds:
                del self._by_topic[topic]
        self._by_pattern.pop(feed, None)
        self._forget(feed)

    def _forget(self, feed: Feed) -> None:
        if feed.topics.has_patterns:
            self._remembered.clear()
        for topic in feed.topics.exact:
            self._remembered.pop(topic, None)

    # What it holds

    def statistics(self) -> HubStatistics:
        """What the hub has done and holds."""
        return HubStatistics(
            feeds=len(self._feeds),
            subscribers=self._subscribers,
            behind=self._subscribers - self._live,
            published=self._published,
            committed=self._committed,
            flushes=self._flushes,
            deliveries=self._deliveries,
            fell_behind=self._fell_behind,
            gaps=self._gaps,
        )


def _nothing() -> None:
    """Is told that the log has recovered while nobody waits for that."""


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The events in the same order, in parts of about ``CATCH_UP_BYTES`` or of one event that is larger."""
    begin = size = 0
    for index, event in enumerate(events):
        size += event.size
        if size > CATCH_UP_BYTES and index > begin:
            yield events[begin:index]
            begin, size = index, event.size
    yield events[begin:]
