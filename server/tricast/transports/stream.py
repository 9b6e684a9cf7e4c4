"""What SSE and WebSocket have in common: a subscriber that stays, and reads on from the log when it fell behind."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import trio

from tricast.access.identity import ANYBODY, Identity
from tricast.connection import Connection
from tricast.errors import Forbidden, LimitExceeded, RemoteProtocolError, Unavailable
from tricast.event import BEGINNING, Position, TopicSet, check_pattern, parse_position
from tricast.hub import Hub, Subscriber
from tricast.runtime import NothingToEnd, Runtime
from tricast.sent import PART, Sent
from tricast.wire.form import Form
from tricast.wire.http1 import Request

#: The registry of close codes (RFC 6455 11.7): come back, and not all at once.
RESTARTING = 1012


class Farewell(NamedTuple):
    """Why this side ends a stream, and what its client shall do then.

    Attributes:
        code: the WebSocket close code: 1012, or one of our own that says not to come back as before (4000 and up).
        reason: in words, without what ends a line.
        retry_after: seconds after which to come back; None where coming back would change nothing.
    """

    code: int
    reason: str
    retry_after: float | None


def restarting(retry_after: float) -> Farewell:
    """The farewell of a server that goes down, or wants the connection to be made anew."""
    return Farewell(RESTARTING, "restarting", retry_after)


#: What a client was let in with is over. It may come back with something newer.
EXPIRED = Farewell(4401, "token expired", None)


class Stream(Subscriber):
    """A subscriber with a connection of its own, for as long as that lasts.

    The connection's nursery is opened and owned by whoever calls ``run``; it outlives this object.

    Attributes:
        transport: what it is counted as.
        identity: who is at the other end.
        account: whom its limits count for.
        expires_at: when what the client was let in with is over, by ``trio.current_time()``.
    """

    __slots__ = (
        "_is_catching_up", "_is_leaving", "account", "connection", "expires_at", "identity", "nursery", "runtime",
        "slot",
    )  # fmt: skip
    transport: ClassVar[str]

    def __init__(self, connection: Connection, runtime: Runtime, form: Form, identity: Identity = ANYBODY) -> None:
        super().__init__(form, BEGINNING)
        self.slot = -1
        self.connection = connection
        self.runtime = runtime
        self.nursery: trio.Nursery
        self._is_catching_up = False
        self._is_leaving = False
        self.account = ""
        self._let_in(identity)

    def _let_in(self, identity: Identity) -> None:
        self.identity = identity
        left = self.runtime.time_left(identity)
        # The sum would be a number of its own for each of those that may stay for ever.
        self.expires_at = math.inf if left == math.inf else trio.current_time() + left

    def renew(self, identity: Identity) -> None:
        """See ``tricast.leases.Leased``."""
        if self._is_leaving:
            raise RemoteProtocolError("the stream is ending", code="stream-unknown", status=404)
        if (identity.account, identity.is_anonymous) != (self.identity.account, self.identity.is_anonymous):
            raise Forbidden("this is for the account that the stream was opened with", code="other-account")
        if self.feed is not None:
            self.runtime.access.check_subscribe(identity, self.feed.topics.names)
        self._let_in(identity)
        self.runtime.wheel.add(self, trio.current_time())  # it may have less time now than before

    def take_places(self, account: str, topics: TopicSet | None = None) -> None:
        """Takes the stream's places, which are given back when ``run`` ends, or by ``abandon``.

        Args:
            account: whom it counts for.
            topics: what it follows from the start.

        Raises:
            LimitExceeded: there is none left; nothing was taken.
        """
        self.runtime.accounts.let_in(self, account)
        self.account = account
        if topics is not None:
            try:
                self.runtime.hub.reserve(self, topics)
            except LimitExceeded:
                self.abandon()
                raise
        self.runtime.counters.streams[self.transport] += 1

    def abandon(self) -> None:
        """Gives back what it has: its places, and its position among the subscribers."""
        self.runtime.hub.leave(self)
        self.runtime.accounts.let_go(self)

    async def run(self, nursery: trio.Nursery) -> None:
        """Serves the connection until it ends. Cancelling it leaves no trace in the hub or on the wheel."""
        self.nursery = nursery
        self.runtime.open[self.connection] = self
        self.runtime.wheel.add(self, trio.current_time())
        try:
            if self.runtime.is_draining:
                # It began after this one was let in, and found nothing here that it could end.
                self.drain(self.runtime.returns.delay())
            await self.serve()
        finally:
            self.runtime.open[self.connection] = NothingToEnd()
            self.runtime.wheel.discard(self)
            self.abandon()

    @abstractmethod
    async def serve(self) -> None:
        """What this kind of subscriber does until it ends."""

    @abstractmethod
    def keep_alive(self, now: float) -> float:
        """Does what is due at this time, without waiting, and returns when to look again."""

    @abstractmethod
    def say_goodbye(self, farewell: Farewell) -> None:
        """Begins to end the connection, without waiting, and tells the client why and when to come back.

        Called when there is room; no more events are sent from then on.
        """

    def sweep(self, now: float) -> float | None:
        """See ``Swept.sweep``. The task that calls it serves all others as well, so what it raises stays here."""
        try:
            if now >= self.expires_at:
                self.runtime.counters.refusals["token-expired"] += 1
                self.depart(EXPIRED)
                return None
            if now >= self.connection.rotates_at:
                self.drain(self.runtime.jitter(self.runtime.config.drain.retry_after))
                return None
            return min(self.keep_alive(now), self.expires_at, self.connection.rotates_at)
        except Exception as error:  # noqa: BLE001
            self.fail(error)
            return None

    def drain(self, retry_after: float) -> None:
        """See ``Drainable.drain``."""
        self.depart(restarting(retry_after))

    def depart(self, farewell: Farewell) -> None:
        """Begins to end the connection, without waiting; one that is ending already is left to that.

        The task that calls it serves all others as well, so what it raises stays here.
        """
        if self._is_leaving:
            return
        self._is_leaving = True
        if self.connection.has_tail:
            self.nursery.start_soon(self._say_goodbye_later, farewell)
        else:
            try:
                self.say_goodbye(farewell)
            except Exception as error:  # noqa: BLE001
                self.fail(error)
        # Nothing follows a goodbye, and behind a tail there is to be room for it.
        self.runtime.hub.leave(self)

    async def _say_goodbye_later(self, farewell: Farewell) -> None:
        await self.connection.drain()
        self.say_goodbye(farewell)

    def send_aside(self, data: bytes) -> None:
        """Sends something that is not an event, unless there is no room for it now."""
        if self.connection.send_now(data) is PART:
            # The rest would wait for the next event otherwise; catching up begins with sending it.
            self.fell_behind()

    def follow(self, topics: TopicSet, start: "Start") -> None:
        """Begins, or begins anew, to follow topics from a position; not on the way out, for a goodbye comes last.

        Raises:
            LimitExceeded: there is no place left; where it was reserved there is. Nothing is followed then.
        """
        if self._is_leaving:
            return
        hub = self.runtime.hub
        hub.pause(self)
        self.position = start.position
        self.was_live = False
        hub.join(self, topics)
        # A position that a client brought must be looked up: the log may not reach back, or forward, that far. One
        # ahead of the log was brought as well, and taken over before it was looked up.
        if start.is_given or not hub.last_id >= start.position or not hub.try_go_live(self):
            self.fell_behind()

    def push(self, block: bytes) -> Sent:
        """See ``Subscriber.push``."""
        return self.connection.send_now(block)

    def fell_behind(self) -> None:
        """See ``Subscriber.fell_behind``."""
        if not self._is_catching_up:
            self._is_catching_up = True
            self.nursery.start_soon(self._catch_up)

    def fail(self, error: Exception) -> None:
        """Ends the connection with this error, from wherever it was noticed."""
        self.runtime.hub.leave(self)
        self.nursery.start_soon(_raise, error)

    async def _catch_up(self) -> None:
        """Reads on from the log until this subscriber is live, no faster than the peer takes it."""
        hub = self.runtime.hub
        await self.connection.drain()
        await self.runtime.catching_up.pass_through()
        while (feed := self.feed) is not None and not self.is_live:
            position, recovered = self.position, self.runtime.log_recovered
            try:
                found = await hub.read(self)
            except Unavailable as error:
                # It would find no more elsewhere: to a client the log is the same everywhere.
                with trio.move_on_after(self.runtime.jitter(error.retry_after)):
                    await recovered.wait()
                await self.runtime.catching_up.pass_through()
                continue
            # While this waited, the client may have subscribed to something else, or been sent an answer that waits.
            if self.feed is feed and self.position is position and not self.connection.has_tail:
                if found.events or found.gap is not None:
                    self.connection.send_now(hub.block(self, found))
                hub.advance(self, found)
                if found.complete and not self.connection.has_tail:
                    hub.try_go_live(self)
            await self.connection.drain()
            await self.runtime.catching_up.pass_through()
        self._is_catching_up = False


class Start(NamedTuple):
    """Where a subscription begins.

    Attributes:
        position: everything behind it is wanted.
        is_given: whether a client named it, rather than the server.
    """

    position: Position
    is_given: bool


def check_topics(topics: Iterable[str], runtime: Runtime) -> TopicSet:
    """The topics and patterns of a subscription, of which there is at least one.

    Raises:
        RemoteProtocolError: one of them is not a topic or a pattern, or there is none, or there are too many.
    """
    names = frozenset(topics)
    feed = runtime.hub.feed_of(names)
    if feed is not None:
        return feed.topics  # somebody was let in with them already
    limits = runtime.config.limits
    if not names:
        raise RemoteProtocolError("name at least one topic", code="bad-topic")
    if len(names) > limits.topics:  # before they are looked at: there may be thousands
        raise LimitExceeded("limits.topics", limits.topics, len(names), status=400)
    for name in names:
        check_pattern(name, max_bytes=limits.topic_size)
    return TopicSet(names)


def start_of(last_id: str | None, here: Position) -> Start:
    """Where a subscription begins that may have been given a position.

    Raises:
        RemoteProtocolError: the position is not an id.
    """
    return Start(here, is_given=False) if last_id is None else Start(parse_position(last_id), is_given=True)


async def settle(start: Start, topics: TopicSet, hub: Hub) -> Start:
    """Where a subscription begins, as its client is told it; "all that is kept" is now when nothing is kept.

    A client that got nothing yet comes back with the position it was told. Were that still ``0-0``, what is dropped in
    the meantime would be missing without a gap.
    """
    if not start.is_given:
        return start._replace(position=hub.seen_in(topics, start.position))
    position = start.position
    while start.position == BEGINNING:
        found = await hub.peek(topics, position)
        if found.events:
            break
        position = found.upto
        if found.complete:
            return Start(position, is_given=False)
        await trio.lowlevel.checkpoint()
    return start


def last_id_of(request: Request) -> str | None:
    """The position a request asks for: the ``Last-Event-ID`` header, which a browser sends, else ``last_id``.

    The header comes first because an EventSource that reconnects repeats its URL, while the header has moved on.
    """
    header = request.header(b"last-event-id")
    return header.decode("latin-1") if header is not None else request.parameter("last_id")


async def _raise(error: Exception) -> None:
    try:
        raise error
    finally:
        del error  # its traceback holds this frame: a cycle, with all of the connection
