"""A subscriber with a wire of limited room instead of a socket, and what its client has got over it."""

import os
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, settings

from tricast.event import BEGINNING, Event, Gap, GapReason, Position, TopicSet, parse_position, whole
from tricast.hub import Feed, Hub, Subscriber
from tricast.log.base import Committed, Skipped, Slice
from tricast.log.memory import MemoryLog
from tricast.sent import Sent
from tricast.wire.form import StreamForm

T = TypeVar("T")

#: How state tests of the hub look for examples.
STATES = settings(
    deadline=None,
    max_examples=300,
    stateful_step_count=50,
    derandomize="CI" in os.environ,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Got(NamedTuple):
    """An event as a client saw it."""

    id: Position
    topic: str


class Switched(NamedTuple):
    """The answer to a client that asked for other topics."""

    position: Position
    topics: TopicSet


Item = Got | Gap | Switched


def _encode_event(event: Event) -> bytes:
    return f"event {event.id} {event.topic}\n".encode()


def _encode_gap(gap: Gap) -> bytes:
    return f"gap {gap.reason} {gap.after} {gap.resumed_at}\n".encode()


#: Two forms, so that a feed has to be flushed in two.
FORMS = (StreamForm("lines", _encode_event, _encode_gap), StreamForm("more-lines", _encode_event, _encode_gap))


def decode(line: bytes) -> Item:
    """Reads back what the forms and ``FakeSubscriber.switch`` write."""
    kind, *words = line.decode().split(" ")
    if kind == "event":
        return Got(parse_position(words[0]), words[1])
    if kind == "gap":
        return Gap(GapReason(words[0]), parse_position(words[1]), parse_position(words[2]))
    assert kind == "switched"
    return Switched(parse_position(words[0]), TopicSet(words[1:]))


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that does not wait, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        value: T = stopped.value
        return value
    coroutine.close()
    raise AssertionError("it waited")


class Turn:
    """Awaited by a fake log where a real one waits: whoever steps through it goes on with something else."""

    def __await__(self) -> Generator[None]:
        yield


class _Reading(NamedTuple):
    """A read that has begun: for which feed, from where, and what is left of it."""

    feed: Feed
    position: Position
    coroutine: Coroutine[Any, Any, Slice]


class FakeSubscriber(Subscriber):
    """Does what a stream's transport does, in steps that a test takes one at a time.

    Attributes:
        room: bytes that the wire takes before it blocks; None for any number.
        tail: what waits for room.
        items: what has arrived at the client, whole.
        error: raised by the next push.
        failures: what ``fail`` was given.
        is_catching_up: whether its task would be reading from the log.
        pushed: called with every block, before anything is done with it.
        blocks: the blocks pushed, as they were.
    """

    def __init__(self, position: Position = BEGINNING, form: StreamForm = FORMS[0]) -> None:
        super().__init__(form, position)
        self.room: int | None = None
        self.tail = b""
        self.items: list[Item] = []
        self.error: Exception | None = None
        self.failures: list[Exception] = []
        self.is_catching_up = False
        self.pushed: Callable[[], None] = lambda: None
        self.blocks: list[bytes] = []
        self._line = b""
        self._reading: _Reading | None = None
        self._found: Slice | None = None

    @property
    def ids(self) -> list[Position]:
        """The ids of the events that arrived."""
        return [item.id for item in self.items if isinstance(item, Got)]

    @property
    def gaps(self) -> list[Gap]:
        """The gaps that arrived."""
        return [item for item in self.items if isinstance(item, Gap)]

    # What the hub calls

    def push(self, block: bytes) -> Sent:
        self.blocks.append(block)
        self.pushed()
        if self.error is not None:
            raise self.error
        return self._send(block)

    def fell_behind(self) -> None:
        self.is_catching_up = True

    def fail(self, error: Exception) -> None:
        self.failures.append(error)

    # The wire

    def _send(self, data: bytes) -> Sent:
        if self.tail:
            return Sent.NOTHING
        count = len(data) if self.room is None else min(len(data), self.room)
        if self.room is not None:
            self.room -= count
        self._arrive(data[:count])
        self.tail = data[count:]
        return Sent.PART if self.tail else Sent.ALL

    def _arrive(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        self.items += map(decode, lines)

    def block(self, room: int) -> None:
        """From now on the wire takes so many bytes and no more."""
        self.room = room

    def unblock(self) -> None:
        """The wire takes everything again, and first what waits."""
        self.room = None
        tail, self.tail = self.tail, b""
        self._arrive(tail)

    def cut(self) -> None:
        """The connection is gone, with everything that has not arrived."""
        self.tail = self._line = b""
        self.room = None
        self.error = None
        self.is_catching_up = False
        self._forget()

    # What the connection's own task does

    @property
    def has_read(self) -> bool:
        """Whether it holds a slice of the log that it has not handed over."""
        return self._found is not None

    def follow(self, hub: Hub, topics: TopicSet, position: Position, *, is_given: bool) -> None:
        """Begins to follow topics, on a new connection or on this one."""
        hub.leave(self)
        self.position = position
        self.was_live = False
        hub.join(self, topics)
        if is_given or not hub.last_id >= position or not hub.try_go_live(self):
            self.fell_behind()

    def switch(self, hub: Hub, topics: TopicSet) -> None:
        """Follows other topics from where it is, and tells the client."""
        position = whole(hub.settled(self) if self.is_live else self.position)
        self.follow(hub, topics, position, is_given=False)
        answer = f"switched {position} {' '.join(sorted(topics.names))}\n".encode()
        if self.tail:
            self.tail += answer
        else:
            self._send(answer)

    def catch_up(self, hub: Hub, *, max_bytes: int = 2**16) -> None:
        """Takes one step: reads from the log, as far as that does not wait, or hands over what was read."""
        if not self.is_catching_up or self.tail:
            return
        if self._reading is None and (self.feed is None or self.is_live):
            self.is_catching_up = False
        elif self._reading is None:
            assert self.feed is not None
            self._reading = _Reading(self.feed, self.position, hub.read(self, max_bytes=max_bytes))
            self._read_on()
        elif self._found is None:
            self._read_on()
        else:
            reading, found = self._reading, self._found
            self._forget()
            if self.feed is reading.feed and self.position is reading.position:
                self._hand_over(hub, found)

    def _read_on(self) -> None:
        assert self._reading is not None
        try:
            self._reading.coroutine.send(None)
        except StopIteration as stopped:
            self._found = stopped.value

    def _forget(self) -> None:
        if self._reading is not None:
            self._reading.coroutine.close()
        self._reading = self._found = None

    def _hand_over(self, hub: Hub, found: Slice) -> None:
        if found.events or found.gap is not None:
            self._send(hub.block(self, found))
        hub.advance(self, found)
        if found.complete and not self.tail:
            hub.try_go_live(self)


class DeafLog(MemoryLog):
    """Hands nothing over while it is deaf, as if another process had appended it."""

    is_deaf = False

    def open(self, committed: Committed, skipped: Skipped | None = None) -> AbstractAsyncContextManager[None]:
        def hand_over(events: Sequence[Event]) -> None:
            if not self.is_deaf:
                committed(events)

        return super().open(hand_over, skipped)
