"""Subscribers of the three transports, each on one connection at a time, that check what they get.

They do as a good client does: they take the position of what they got last along when they come back, wait as long as
the server asks for, and answer pings.
"""

import os
from abc import ABC, abstractmethod
from base64 import b64encode
from collections import deque
from collections.abc import Iterable
from time import monotonic_ns
from typing import NamedTuple

from wsproto.utilities import generate_accept_token

from tricast.bench.blocks import Block, BlockReader, Memo
from tricast.bench.engine import WRITABLE, Engine
from tricast.bench.http_answers import Head, Malformed, split_head
from tricast.bench.ledger import Ledger
from tricast.bench.link import Link, LinkLost, Target
from tricast.bench.streams import (
    Begun,
    Ended,
    EventStreamSplitter,
    FrameSplitter,
    Item,
    Items,
    Pinged,
    Polled,
    PollSplitter,
    Refused,
    Retry,
)
from tricast.bench.tally import Tally, add_up
from tricast.client.endpoint import Endpoint

#: How long a subscription may take to be in force.
_OPENING_SECONDS = 10.0
_FIRST_RETRY_SECONDS = 0.2
#: Whatever a server asks for, it is not asked again sooner than this after a failure.
_SHORTEST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 5.0
#: Why a connection has ended whose server is going down, which is no error.
_GOODBYE = "the server asked to come back later"
#: Connections under way at the same time: fewer than a server's backlog, and enough to keep it busy.
_MOST_OPENING = 128


class Surroundings(NamedTuple):
    """What the subscribers of one process share.

    Attributes:
        engine: the loop.
        target: where the server is.
        endpoint: the server as its URL names it.
        headers: lines that every request has.
        reader: finds the run's events.
        publishers: how many publish.
    """

    engine: Engine
    target: Target
    endpoint: Endpoint
    headers: tuple[str, ...]
    reader: BlockReader
    publishers: int


class Subscriber(ABC):
    """One subscriber.

    Args:
        around: what all share.
        group: what those of its transport share.
        index: its number in the whole run.
        topic: what it subscribes to.
        topic_index: the number of that topic.

    Attributes:
        ledger: what it has got.
        topic_index: the number of its topic.
        has_begun: whether it was ever subscribed.
        is_live: whether it is subscribed now.
        why_ended: what has ended its last connection.
    """

    __slots__ = (
        "_around", "_attempt", "_group", "_index", "_is_dismissed", "_is_leaving", "_link", "_position", "_retry",
        "_retry_asked", "_tally", "_topic", "has_begun", "is_live", "ledger", "topic_index", "why_ended",
    )  # fmt: skip

    def __init__(self, around: Surroundings, group: "Group", index: int, topic: str, topic_index: int) -> None:
        self._around = around
        self._group = group
        self._index = index
        self._topic = topic
        self._tally = group.tally
        self._link: Link | None = None
        self._position = b""
        self._attempt = 0
        self._is_dismissed = False
        self._is_leaving = False
        self._retry = _FIRST_RETRY_SECONDS
        self._retry_asked: float | None = None
        self.topic_index = topic_index
        self.ledger = Ledger(around.publishers)
        self.has_begun = False
        self.is_live = False
        self.why_ended = ""

    # Its connection

    def open(self) -> None:
        """Begins to connect; whatever comes of it is told to the group."""
        if self._is_dismissed or self._link is not None:
            return
        self._attempt += 1
        attempt = self._attempt
        self._around.engine.call_in(_OPENING_SECONDS, lambda: self._give_up(attempt))
        try:
            self._link = Link(self._around.engine, self, self._around.target, self._index)
        except LinkLost as lost:
            self._broken(str(lost))

    def close(self) -> None:
        """Closes the connection, if there is one."""
        self.is_live = False
        if self._link is not None:
            self._link.close()
            self._link = None

    def dismiss(self) -> None:
        """Closes the connection for good."""
        self._is_dismissed = True
        self.close()

    def _give_up(self, attempt: int) -> None:
        if attempt == self._attempt and self._link is not None and not self.is_live:
            self._broken("no subscription in time")

    def _broken(self, why: str) -> None:
        """Comes back later, and counts an error unless the server has said that this would happen."""
        if self._is_leaving:
            why = _GOODBYE
        else:
            self._tally.error(why)
        delay = self._retry if self._retry_asked is None else max(self._retry_asked, _SHORTEST_RETRY_SECONDS)
        self._retry_asked = None
        self._retry = min(self._retry * 2, _LONGEST_RETRY_SECONDS)
        self._come_back(delay, why)

    def _come_back(self, delay: float, why: str) -> None:
        self.why_ended = why
        self._is_leaving = False
        self.close()
        self._around.engine.call_in(delay, self.open)
        self._group.opening_ended(self)

    def ready(self, mask: int) -> None:
        """See ``Party.ready``."""
        link = self._link
        assert link is not None
        try:
            if link.is_open:
                if mask & WRITABLE:
                    link.flush()
                if data := link.receive():
                    self._tally.received_bytes += len(data)
                    self._received(data)
            elif link.go_on():
                self._connected()
        except LinkLost as lost:
            self._broken(str(lost))
        except Malformed as malformed:
            self._broken(f"protocol: {malformed}")

    def _send(self, data: bytes) -> None:
        assert self._link is not None
        self._link.send(data)

    # What comes

    @abstractmethod
    def _connected(self) -> None:
        """Asks for the subscription."""

    @abstractmethod
    def _received(self, data: bytes) -> None:
        """Takes bytes."""

    def _enter(self, block: Block) -> None:
        if block.last_id:
            self._position = block.last_id
        if not block.parts:
            return
        tally = self._tally
        self.ledger.enter(block, tally)
        tally.events += block.events
        if block.due:
            tally.last_delivery = now = monotonic_ns()
            tally.deliveries += len(block.due)
            record = tally.histogram.record
            for due in block.due:
                record(now - due)

    def _begin(self, position: bytes) -> None:
        """The subscription is in force."""
        self._position = position or self._position
        if self.is_live:
            return
        if self.has_begun:
            self._tally.reconnects += 1
        self.has_begun = self.is_live = True
        self._retry = _FIRST_RETRY_SECONDS
        self._group.opening_ended(self)

    def _asked_to_come_back(self, seconds: float) -> None:
        self._retry_asked = seconds
        # Every event stream begins with such a time; later, it is a goodbye.
        self._is_leaving = self.is_live

    def _ended(self, ended: Ended) -> None:
        self._is_leaving |= ended.is_goodbye
        self._broken(ended.why)

    def _refused(self, head: Head) -> None:
        self._retry_asked = head.retry_after
        self._broken(f"status {head.status}")

    # What is sent

    def _request(self, method: str, query: Iterable[tuple[str, str]], *headers: str) -> bytes:
        """A request for the events, with the position when there is one."""
        endpoint = self._around.endpoint
        target = endpoint.target("/events", [("topic", self._topic), *query])
        position = [f"Last-Event-ID: {self._position.decode('latin-1')}"] if self._position else []
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: {endpoint.authority}",
            *self._around.headers,
            *headers,
            *position,
        ]
        self._tally.requests += 1
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _StreamSubscriber(Subscriber):
    """A subscriber to whom everything comes on one connection."""

    __slots__ = ()

    def _take(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, Block):
                self._enter(item)
            elif self._link is not None:  # nothing is answered behind a goodbye
                self._handle(item)

    def _handle(self, item: Item) -> None:
        match item:
            case Begun(position):
                self._begin(position)
            case Pinged(payload):
                self._send(_masked_frame(0xA, payload))
            case Retry(seconds):
                self._asked_to_come_back(seconds)
            case Ended():
                self._ended(item)
            case Refused(what):
                self._broken(f"refused: {what}")


class EventStreamSubscriber(_StreamSubscriber):
    """A subscriber by Server-Sent Events."""

    __slots__ = ("_head", "_splitter")

    def _connected(self) -> None:
        self._head = b""
        self._splitter: EventStreamSplitter | None = None
        self._send(self._request("GET", [], "Accept: text/event-stream", "Cache-Control: no-store"))

    def _received(self, data: bytes) -> None:
        if self._splitter is None:
            found = split_head(self._head + data)
            if found is None:
                self._head += data
                return
            head, data = found
            if head.status != 200 or not head.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._refused(head)
                return
            self._head = b""
            memo = self._group.memo(is_chunked=head.is_chunked)
            self._splitter = EventStreamSplitter(self._around.reader, memo, is_chunked=head.is_chunked)
        self._take(self._splitter.feed(data))


class WebSocketSubscriber(_StreamSubscriber):
    """A subscriber by WebSocket."""

    __slots__ = ("_head", "_key", "_splitter")

    def _connected(self) -> None:
        self._head = b""
        self._splitter: FrameSplitter | None = None
        self._key = b64encode(os.urandom(16))
        upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        own = (f"Sec-WebSocket-Key: {self._key.decode()}", "Sec-WebSocket-Protocol: tricast.v1")
        self._send(self._request("GET", [], *upgrade, *own))

    def _received(self, data: bytes) -> None:
        if self._splitter is None:
            found = split_head(self._head + data)
            if found is None:
                self._head += data
                return
            head, data = found
            if head.status != 101:
                self._refused(head)
                return
            if head.headers.get(b"sec-websocket-accept") != generate_accept_token(self._key):
                raise Malformed("a wrong Sec-WebSocket-Accept")
            self._head = b""
            self._splitter = FrameSplitter(self._around.reader, self._group.memo())
        self._take(self._splitter.feed(data))


def _masked_frame(opcode: int, payload: bytes) -> bytes:
    """A control frame from a client (RFC 6455 5.3)."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked


class Poller(Subscriber):
    """A subscriber by long polling."""

    __slots__ = ("_is_learning", "_splitter")

    def _connected(self) -> None:
        self._splitter = PollSplitter(self._around.reader, self._group.memo())
        # A poll is answered with the next event; a HEAD at once, with the position behind which that one comes.
        self._is_learning = not self._position
        if self._is_learning:
            self._send(self._request("HEAD", [], "Accept: application/json"))
        else:
            self._begin(b"")
            self._poll()

    def _poll(self) -> None:
        self._send(self._request("GET", [], "Accept: application/json"))

    def _received(self, data: bytes) -> None:
        for item in self._splitter.feed(data, to_head=self._is_learning):
            assert isinstance(item, Polled)
            head, block = item
            if head.status not in (200, 204) or not block.last_id:
                self._refused(head)
                return
            self._is_learning = False
            self._enter(block)
            self._begin(b"")
            if head.retry_after is not None:
                self._asked_to_come_back(head.retry_after)
                self._broken(_GOODBYE)
            elif head.closes:
                self._come_back(0, "the server ended the connection")
            else:
                self._poll()


_KINDS: dict[str, type[Subscriber]] = {"sse": EventStreamSubscriber, "ws": WebSocketSubscriber, "poll": Poller}


class Group:
    """The subscribers of one transport in one process.

    Args:
        around: what all share.
        transport: ``sse``, ``ws`` or ``poll``.

    Attributes:
        tally: what they count.
        members: all of them.
    """

    def __init__(self, around: Surroundings, transport: str) -> None:
        self._around = around
        self._kind = _KINDS[transport]
        self._memos: dict[bool, Memo[Items]] = {}
        self._waiting: deque[Subscriber] = deque()
        self._opening: set[Subscriber] = set()
        self._began = monotonic_ns()
        self._last_opened = self._began
        self.tally = Tally()
        self.members: list[Subscriber] = []

    def memo(self, *, is_chunked: bool = False) -> Memo[Items]:
        """What blocks were found to hold, by those whose bytes mean the same."""
        return self._memos.setdefault(is_chunked, Memo())

    def add(self, index: int, topic: str, topic_index: int) -> None:
        """Adds a subscriber."""
        member = self._kind(self._around, self, index, topic, topic_index)
        self.members.append(member)
        self._waiting.append(member)
        self.tally.subscribers += 1

    def open_some(self) -> None:
        """Lets so many connect that not too many do at once."""
        while self._waiting and len(self._opening) < _MOST_OPENING:
            member = self._waiting.popleft()
            self._opening.add(member)
            member.open()

    def opening_ended(self, member: Subscriber) -> None:
        """A member is subscribed, or failed to be, for now."""
        if member.is_live:
            self._last_opened = monotonic_ns()
        if member in self._opening:
            self._opening.discard(member)
            # Not here and now: whom this opens may fail at once, and so on.
            self._around.engine.call_in(0, self.open_some)

    @property
    def live(self) -> int:
        """How many are subscribed now."""
        return sum(member.is_live for member in self.members)

    @property
    def are_all_live(self) -> bool:
        """Whether all are subscribed now."""
        return self.live == len(self.members)

    @property
    def begun(self) -> int:
        """How many ever were."""
        return sum(member.has_begun for member in self.members)

    @property
    def last_opened(self) -> int:
        """When the last one was subscribed, in nanoseconds of the monotonic clock."""
        return self._last_opened

    def end_opening(self) -> None:
        """Closes those that never were subscribed: what is published from now on is not for them."""
        self.tally.opened = self.begun
        self.tally.opening_seconds = (self._last_opened - self._began) / 1e9
        self._waiting.clear()
        for member in self.members:
            if not member.has_begun:
                member.dismiss()
        self.members = [member for member in self.members if member.has_begun]

    def close(self) -> None:
        """Closes all, and counts those that had no connection."""
        for member in self.members:
            if not member.is_live:
                add_up(self.tally.away, {member.why_ended: 1})
            member.dismiss()
