"""WebSocket (RFC 6455): sessions for application handlers, and ``tricast.v1``, the handler that serves topics.

What nearly all clients send is parsed by ``wire.websocket``; a session that gets anything else has wsproto parse it,
and all that follows. Its events are turned into messages here, and its errors into closings; nothing above sees a
wsproto type.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

import msgspec
import trio
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError

from tricast.access.access import Credentials
from tricast.access.identity import ANYBODY, Identity
from tricast.connection import Connection
from tricast.errors import (
    ConnectionLost,
    LimitExceeded,
    RemoteProtocolError,
    TooFast,
    Unavailable,
)
from tricast.event import DEFAULT_TYPE, Draft, Position, TopicSet
from tricast.runtime import Handler, Runtime
from tricast.transports.stream import Farewell, Start, Stream, check_topics, settle, start_of
from tricast.wire import websocket as wire
from tricast.wire.http1 import Request
from tricast.wire.websocket import Kind

#: Frames handled in a row before others get a turn: 64 KiB may hold ten thousand empty ones.
_FRAMES_PER_TURN = 32
#: One that is so many bytes longer counts once more: a hundred bytes may inflate to ``websocket.max_message``.
_BYTES_PER_FRAME = 8 * 2**10
#: Operations that publish are taken together, so that they cost the log one append and the client's socket one send.
_MAX_TOGETHER = 100
#: Close codes with their meaning (RFC 6455 7.4.1, and the registry for 1013).
NORMAL, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1009, 1011, 1013
_NOTHING = TopicSet(())


class Subscription(NamedTuple):
    """What a session follows, and from where on.

    Attributes:
        topics: names and patterns, checked.
        start: where it begins.
    """

    topics: TopicSet
    start: Start


class Session(Stream):
    """One WebSocket connection, as an application handler sees it.

    Iterate over it for messages (``str`` for text, ``bytes`` for binary); the iteration ends when either side has
    closed. When the handler returns, the connection is closed with 1000; when it raises, with 1011.

    Args:
        connection: its connection, behind the 101 response.
        runtime: what all connections share.
        request: the opening request.
        handler: what serves it.
        received: bytes that came in behind the opening request.
        subscription: what it follows from the start.
        window_bits: what the client lets us compress with, where permessage-deflate was negotiated.
        identity: who asks for it.

    Attributes:
        identity: who is at the other end: ``subject``, and what that one may do.
        request: the opening request: ``path``, ``query``, ``headers``.
        close_code: the code that the peer closed the connection with, 1005 for none, 1006 when it just ended; None
            while it is open.
    """

    __slots__ = (
        "_fragments", "_frames", "_handler", "_is_broken", "_parts", "_pinged_at", "_pings", "_protocol", "_received",
        "_subscription", "_topics", "close_code", "request",
    )  # fmt: skip
    transport = "websocket"

    def __init__(
        self,
        connection: Connection,
        runtime: Runtime,
        request: Request,
        handler: Handler,
        received: bytes,
        *,
        subscription: Subscription | None = None,
        window_bits: int | None = None,
        identity: Identity = ANYBODY,
    ) -> None:
        form = wire.FORM if window_bits is None else wire.DEFLATED_FORMS[window_bits]
        super().__init__(connection, runtime, form, identity)
        #: Only from the first thing on that needs it: a client that listens, and answers pings, costs no such object.
        self._protocol: Protocol | None = None
        self._received: bytearray | None = bytearray(received) if received else None
        self._handler: Handler | None = handler
        self._subscription = subscription
        self._topics = _NOTHING
        self._parts: bytearray | None = None  # of a message in fragments; text in UTF-8
        self._fragments = 0
        self._frames = 0
        self._is_broken = False
        self._pinged_at = 0.0
        self._pings = 0  # that nothing has come after
        self.close_code: int | None = None
        self.request = request

    def opening(self) -> bytes:
        """What goes out with the answer to the handshake: the reply to the subscription that was made with it."""
        return b"" if self._subscription is None else wire.text_frame(_subscribed(self._subscription, msgspec.UNSET))

    # For applications

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.connection.client

    @property
    def topics(self) -> frozenset[str]:
        """The topics and patterns that this connection is subscribed to."""
        return self._topics.names

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """The next message. Cancelling loses none.

        Raises:
            StopAsyncIteration: the connection is closed, or was closed for a mistake of the client's.
            ConnectionLost: it was reset.
        """
        while self.close_code is None:
            message = await self.parse()
            if message is not None:
                return message
            if self.close_code is None:
                # Not in a method of its own, whose frame would be memory for every connection that waits.
                data = await self.connection.receive()
                self._take(data)
        raise StopAsyncIteration

    async def send(self, message: str | bytes) -> None:
        """Sends one message, text or binary; returns when the kernel has it all.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        await self._wait_turn(len(message))
        frame = wire.text_frame(message.encode()) if isinstance(message, str) else wire.binary_frame(message)
        await self.connection.send(frame)

    async def reply(self, message: bytes) -> None:
        """Sends one text message with what follows it, and before anything is received.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        await self._wait_turn(len(message))
        await self.connection.send_soon(wire.text_frame(message))

    async def refuse(self, error: RemoteProtocolError | Unavailable, ref: "Reference") -> None:
        """Replies to an operation that was not done.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        self.runtime.counters.refusals[error.reason] += 1
        await self.reply(wire.encode_reply("error", {"code": error.code, "message": error.detail}, ref))

    async def _wait_turn(self, size: int) -> None:
        """Returns when a message of this size may be sent.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        # First the tail: behind it may come a close frame, and nothing may follow that (RFC 6455 5.5.1).
        await self.connection.drain(holding=size)
        # One that waits for the same comes first, or who always has something to send would never leave.
        while self._is_leaving and self._is_open:
            await trio.lowlevel.checkpoint()
            await self.connection.drain(holding=size)
        self._check_open()

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConnectionLost("the WebSocket is closed", reason="closed")

    @property
    def _is_open(self) -> bool:
        return self._protocol is None or self._protocol.state is ConnectionState.OPEN

    def _wsproto(self) -> Protocol:
        """Wsproto's state of this connection, which from now on parses what comes in."""
        if self._protocol is None:
            has_deflate = self.form is not wire.FORM
            extensions = [wire.BoundedInflate(self.runtime.config.websocket.max_message)] if has_deflate else []
            self._protocol = Protocol(ConnectionType.SERVER, [*extensions], bytes(self._received or b""))
            self._received = None
        return self._protocol

    async def publish(self, topic: str, data: object, *, type: str = DEFAULT_TYPE) -> Position:  # noqa: A002
        """Publishes an event to everybody who is subscribed to the topic, as the client. See ``Hub.publish``.

        Raises:
            RemoteProtocolError: the client may not (``Forbidden``, ``Unauthorized``), or not so soon (``TooFast``);
                where a handler lets it through, the connection is closed with its code, and that is no failure.
            Unavailable: not now; the client is told to come back, where a handler lets it through.
        """
        self.charge_for_event(topic)
        return await self.runtime.hub.publish(topic, data, type=type)

    def charge_for_event(self, topic: str) -> None:
        """Counts one event that the client is about to publish, if it may.

        Raises:
            RemoteProtocolError: see ``publish``.
            Unavailable: the server has no memory for it.
        """
        self.runtime.access.check_publish(self.identity, topic)
        self.runtime.check_memory()
        self.runtime.accounts.charge(self.account, 1)

    async def subscribe(self, *topics: str, last_id: str | None = None) -> Position:
        """Adds topics: their events are sent as JSON, like those of ``tricast.v1``, between this handler's messages.

        Args:
            topics: names and patterns.
            last_id: moves the whole subscription to this position, so that all behind it is sent (again).

        Returns:
            The position from which the events go on.

        Raises:
            RemoteProtocolError: a topic or the position is not one, a topic has no room, or the client may not
                subscribe to all of them (``Forbidden``, ``Unauthorized``).
            Unavailable: the server has no memory for it.
        """
        subscription = await self.check_subscription(topics, last_id)
        self.runtime.hub.reserve(self, subscription.topics)
        self.resubscribe(subscription)
        return subscription.start.position

    async def unsubscribe(self, *topics: str) -> None:
        """Takes topics away. Those that were not subscribed to do not matter."""
        rest = TopicSet(self.topics.difference(topics))
        self.resubscribe(Subscription(rest, Start(self._here(), is_given=False)))

    async def authenticate(self, token: str) -> None:
        """Lets the connection live on with a newer token of the same account, or on an error as before.

        Raises:
            Unauthorized: the token is not good.
            Forbidden: it is another account's, or does not allow all that is subscribed to.
        """
        if self.runtime.access.is_on:
            self.renew(await self.runtime.access.identify(Credentials(token=token)))

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Closes the connection; messages that come in from now on are thrown away.

        Args:
            code: a close code an endpoint may send (RFC 6455 7.4).
            reason: what to tell the client, cut to 123 bytes of UTF-8.
        """
        # Nothing may follow a close frame (RFC 6455 5.5.1), so no more events are sent.
        self.runtime.hub.leave(self)
        if self._wsproto().state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            await self._send_event(CloseConnection(code=code, reason=reason or None))

    # Subscriptions

    async def check_subscription(self, topics: Iterable[str], last_id: str | None) -> Subscription:
        """What the session would follow with these topics added; changes nothing.

        Raises:
            RemoteProtocolError: a topic or the position is not one, there is none, there are too many, or the client
                may not.
            Unavailable: the server has no memory for it.
        """
        self.runtime.check_memory()
        added = check_topics(topics, self.runtime)
        self.runtime.access.check_subscribe(self.identity, added.names)
        together = check_topics(self.topics | added.names, self.runtime)
        start = await settle(start_of(last_id, self._here()), together, self.runtime.hub)
        return Subscription(together, start)

    def pause(self) -> None:
        """Sends no more events, and keeps the position, until ``resubscribe``."""
        self.runtime.hub.pause(self)

    def resubscribe(self, subscription: Subscription) -> None:
        """Follows these topics, and no others, from there on.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        self._check_open()
        self._topics = subscription.topics
        if self._topics:
            self.follow(self._topics, subscription.start)
        else:
            self.runtime.hub.leave(self)
        if self.feed is not None:
            self._topics = self.feed.topics  # the same, shared with all who follow it

    def _here(self) -> Position:
        """The position now: topics that are added begin here, like those that are there already go on from here."""
        hub = self.runtime.hub
        if self.is_live:
            return hub.settled(self)
        return self.position if self._topics or self.feed is not None else hub.last_id

    # What comes in

    def _take(self, data: bytes) -> None:
        if not data:
            self.close_code = 1006
        elif self._protocol is not None:
            self._protocol.receive_data(data)
        elif self._received is None:
            self._received = bytearray(data)
        else:
            self._received += data

    async def parse(self) -> str | bytes | None:
        """The next message out of what was received so far, or None when more is needed or it is over."""
        while self._protocol is None:
            await self._give_turn()  # before the next one is taken, which cancelling would lose
            if self._received is None:  # none is left, or wsproto has them: meanwhile a drain may have closed
                break
            frame = wire.read_frame(self._received, self.runtime.config.websocket.max_message)
            if frame is None:
                return None
            if frame.kind is Kind.OTHER:
                self._wsproto()
                break
            if (limit := self._too_fast()) is not None:
                await self._refuse(limit)
                return None
            self._drop(frame)
            if frame.kind is Kind.PING:
                await self.connection.send(wire.pong_frame(bytes(frame.payload)))  # type: ignore[arg-type]
            elif frame.kind is not Kind.PONG:
                return frame.payload
        return None if self._protocol is None else await self._parse_with(self._protocol)

    def parse_text(self) -> str | None:
        """The next message, if it was received already, is text, and nothing stands before it."""
        if self._received is None:
            return None
        frame = wire.read_frame(self._received, self.runtime.config.websocket.max_message)
        if frame is None or frame.kind is not Kind.TEXT or self._too_fast() is not None:
            return None
        self._frames += 1  # the turn of the others comes with the next one that may be waited for
        self._drop(frame)
        return str(frame.payload)

    def _drop(self, frame: wire.InboundFrame) -> None:
        assert self._received is not None
        if frame.size == len(self._received):
            self._received = None
        else:
            del self._received[: frame.size]

    async def _give_turn(self) -> None:
        self._frames += 1
        if self._frames > _FRAMES_PER_TURN:
            self._frames = 0
            await trio.lowlevel.checkpoint()

    async def _parse_with(self, protocol: Protocol) -> str | bytes | None:
        events = protocol.events()
        while True:
            await self._give_turn()
            event = next(events, None)
            if event is None:
                return None
            match event:
                case TextMessage() | BytesMessage() | Ping() | Pong() if protocol.state is not ConnectionState.OPEN:
                    continue  # nothing can be said to it any more
                case _ if (limit := self._limit_reached(event)) is not None:
                    await self._refuse(limit)
                    return None
                case TextMessage() | BytesMessage():
                    self._frames += len(event.data) // _BYTES_PER_FRAME
                    if event.message_finished:
                        return self._whole_message(event)
                    self._keep(event)
                case Ping():
                    await self._send_event(event.response())
                case CloseConnection():
                    await self._closed_by_peer(event)
                    return None

    def _limit_reached(self, event: Event) -> LimitExceeded | None:
        """What the client has too much of with this event, or too soon; which is counted."""
        if isinstance(event, TextMessage | BytesMessage):
            config = self.runtime.config.websocket
            if len(self._parts or b"") + _size_of(event.data) > config.max_message:
                return LimitExceeded("websocket.max_message", config.max_message)
            self._fragments += event.frame_finished
            if self._fragments > config.max_fragments:
                return LimitExceeded("websocket.max_fragments", config.max_fragments, close_code=1008)
            return self._too_fast() if event.message_finished else None
        return self._too_fast() if isinstance(event, Ping | Pong) else None

    def _too_fast(self) -> TooFast | None:
        """Counts a message or a control frame; returns what to refuse it with, where it came too soon."""
        wait = self.runtime.messages.take(self)
        return TooFast("websocket.message_rate", self.runtime.messages.rate, wait) if wait else None

    def _keep(self, event: TextMessage | BytesMessage) -> None:
        """Keeps a part of a message; empty ones, of which there may be many, are nothing."""
        if event.data:
            self._parts = self._parts or bytearray()
            self._parts += event.data.encode() if isinstance(event.data, str) else event.data

    def _whole_message(self, event: TextMessage | BytesMessage) -> str | bytes:
        self._fragments = 0
        if self._parts is None:
            return event.data if isinstance(event.data, str) else bytes(event.data)
        self._keep(event)
        parts, self._parts = self._parts, None
        return parts.decode() if isinstance(event, TextMessage) else bytes(parts)

    async def _refuse(self, limit: LimitExceeded) -> None:
        """Closes the connection for something that goes too far.

        What follows is read no more, not even for the answer to the closing: it may be more of the same.
        """
        self.runtime.counters.refusals[limit.reason] += 1
        self._is_broken = True
        self._parts, self.close_code = None, limit.close_code
        await self.close(limit.close_code, limit.detail)

    async def _closed_by_peer(self, event: CloseConnection) -> None:
        # In state OPEN it was not a close frame, but wsproto's word for input that breaks the protocol (RFC 6455
        # 7.1.7). Nothing that follows such input can be read, not even a close frame.
        self._is_broken = self._wsproto().state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)
        if self._wsproto().state is ConnectionState.OPEN:
            # A message that inflates to too much is seen before it gets here.
            is_too_big = event.code == TOO_BIG
            self.runtime.counters.refusals["websocket.max_message" if is_too_big else "bad-websocket"] += 1
        self.close_code = int(event.code)
        await self.close(event.code, event.reason or "")

    # What keeps it going, and what ends it

    async def serve(self) -> None:
        """See ``Stream.serve``: runs the handler, then closes."""
        handler, self._handler = self._handler, None
        assert handler is not None
        try:
            if self._subscription is not None:
                subscription, self._subscription = self._subscription, None
                self.resubscribe(subscription)
                del subscription
            await handler(self)
        except ConnectionLost:
            # Its last word may have met a connection that is being closed from here, for instance by a drain.
            if self._wsproto().state is not ConnectionState.LOCAL_CLOSING:
                raise
        except RemoteProtocolError as error:
            # What the client asked for was refused, and the handler had nothing to say to it.
            self.runtime.counters.refusals[error.reason] += 1
            await self._finish(error.close_code, error.detail)
            return
        except Exception as error:
            code = INTERNAL_ERROR
            if isinstance(error, Unavailable):
                self.runtime.counters.refusals[error.reason] += 1
                code = TRY_AGAIN_LATER
            with trio.move_on_after(self.runtime.config.websocket.close_timeout, shield=True):
                await self._finish(code)
            raise
        await self._finish(NORMAL)

    async def _finish(self, code: int, reason: str = "") -> None:
        """The closing handshake, bounded in time (RFC 6455 7.1.1: the server closes the TCP connection first)."""
        with trio.move_on_after(self.runtime.config.websocket.close_timeout):
            try:
                await self.close(code, reason)
                if self._wsproto().state is ConnectionState.LOCAL_CLOSING and not self._is_broken:
                    await self._wait_closed_by_peer()
                await self.connection.linger()
            except (ConnectionLost, LocalProtocolError):
                return

    async def _wait_closed_by_peer(self) -> None:
        protocol = self._wsproto()
        while True:
            for event in protocol.events():
                await trio.lowlevel.checkpoint()
                # Either the answer, or wsproto's word for what breaks the protocol; behind both nothing can be read.
                if isinstance(event, CloseConnection):
                    return
            data = await self.connection.receive()
            if not data:
                return
            protocol.receive_data(data)

    async def _send_event(self, event: Event) -> None:
        await self.connection.drain()
        try:
            data = self._wsproto().send(event)
        except LocalProtocolError:
            raise ConnectionLost("the WebSocket is closed", reason="closed") from None
        await self.connection.send(bytes(data))

    def keep_alive(self, now: float) -> float:
        """Pings after a silence, and gives up after a long one. Any byte that came in ends a silence.

        Raises:
            ConnectionLost: the silence was too long.
        """
        config = self.runtime.config.websocket
        silent_since = self.connection.last_received
        if silent_since > self._pinged_at:
            self._pings = 0
        if now >= silent_since + config.ping_timeout:
            raise ConnectionLost(f"silent for {config.ping_timeout:g} s", reason="ping-timeout")
        if now >= max(silent_since, self._pinged_at) + config.ping_interval:
            if self._pings == config.max_pings:
                raise ConnectionLost(f"{self._pings} pings were not answered", reason="ping-timeout")
            self._pinged_at = now
            if self._is_open and not self.connection.has_tail:
                self.send_aside(wire.PING)
                self._pings += 1
        return min(max(silent_since, self._pinged_at) + config.ping_interval, silent_since + config.ping_timeout)

    def abandon(self) -> None:
        """See ``Stream.abandon``."""
        super().abandon()
        self.runtime.messages.forget(self)

    def say_goodbye(self, farewell: Farewell) -> None:
        """Closes with the delay in the reason, and gives the client a moment to answer it."""
        if self._is_open:
            seconds = farewell.retry_after
            reason = farewell.reason if seconds is None else f"{farewell.reason}, come back in {seconds:.1f} s"
            self.send_aside(bytes(self._wsproto().send(CloseConnection(code=farewell.code, reason=reason))))
        self.nursery.cancel_scope.deadline = trio.current_time() + self.runtime.config.websocket.close_timeout


async def serve_topics(session: Session) -> None:
    """The subprotocol ``tricast.v1``: events out, operations in."""
    # A kilobyte or two of headers, which nothing here needs any more.
    del session.request
    async for message in session:
        batch = _Publishing(session)
        await _operate(session, message, batch)
        # What came with it: where many publish at once, or one publishes much, the log and the socket are used once.
        for _ in range(_MAX_TOGETHER):
            following = session.parse_text()
            if following is None:
                break
            await _operate(session, following, batch)
        await batch.end()


Reference = wire.Reference | msgspec.UnsetType


def _size_of(data: str | bytes | bytearray) -> int:
    return len(data) if not isinstance(data, str) or data.isascii() else len(data.encode())


class _Publishing:
    """The operations that publish, of those that were received together: appended at once, and then replied to.

    Args:
        session: who sent them.
    """

    __slots__ = ("_drafts", "_references", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._drafts: list[Draft] = []
        self._references: list[Reference] = []

    def add(self, operation: wire.Publish) -> None:
        """Takes one, if it may be published.

        Raises:
            RemoteProtocolError: it may not.
            Unavailable: the server has no memory for it.
        """
        session = self._session
        session.runtime.check_certified(session.connection)
        draft = session.runtime.hub.check(Draft(operation.topic, operation.type, bytes(operation.data)))
        session.charge_for_event(draft.topic)
        self._drafts.append(draft)
        self._references.append(operation.ref)

    async def end(self) -> None:
        """Publishes what was added, and replies to each."""
        drafts, references, self._drafts, self._references = self._drafts, self._references, [], []
        if not drafts:
            return
        hub = self._session.runtime.hub
        try:
            if hub.log_waits:
                await self._session.connection.flush()  # replies to what came before do not wait for this
            ids = await hub.append(drafts)
        except Unavailable as error:
            for ref in references:
                await self._session.refuse(error, ref)
        else:
            for event_id, ref in zip(ids, references, strict=True):
                await self._session.reply(wire.encode_reply("ok", "publish", ref, id=str(event_id)))


async def _operate(session: Session, message: str | bytes, batch: _Publishing) -> None:
    """Does what one message says, and replies; publishing is left to the end of the batch."""
    ref: Reference = msgspec.UNSET
    try:
        operation = wire.parse_operation(message)
        ref = operation.ref
        if isinstance(operation, wire.Publish):
            batch.add(operation)
        else:
            await batch.end()
            await _perform(session, operation)
    except wire.BadOperation as error:
        await batch.end()  # replies come in the order of the operations
        await session.refuse(error, error.ref)
    except (RemoteProtocolError, Unavailable) as error:
        await batch.end()
        await session.refuse(error, ref)


async def _perform(session: Session, operation: wire.Operation) -> None:
    if isinstance(operation, wire.Subscribe | wire.Unsubscribe):
        # A hundred topics, or patterns, take half a millisecond or more, and one read may hold many such operations.
        await trio.lowlevel.checkpoint()
    match operation:
        case wire.Subscribe():
            await _subscribe(session, operation)
        case wire.Unsubscribe():
            await session.unsubscribe(*operation.topics)
            await session.reply(wire.encode_reply("ok", "unsubscribe", operation.ref, topics=sorted(session.topics)))
        case wire.Authenticate():
            await session.authenticate(operation.token)
            until = session.identity.expires_at
            fields = {} if until is None else {"expires_at": int(until)}
            await session.reply(wire.encode_reply("ok", "auth", operation.ref, **fields))
        case _:
            await session.reply(wire.encode_reply("ok", operation.op, operation.ref))


async def _subscribe(session: Session, operation: wire.Subscribe) -> None:
    subscription = await session.check_subscription(operation.topics, operation.last_id)
    session.runtime.hub.reserve(session, subscription.topics)
    # The reply says from where the events go on, so it comes before them; meanwhile they wait in the log.
    session.pause()
    await session.reply(_subscribed(subscription, operation.ref))
    session.resubscribe(subscription)


def _subscribed(subscription: Subscription, ref: Reference) -> bytes:
    topics, start = subscription
    return wire.encode_reply("ok", "subscribe", ref, topics=sorted(topics.names), last_id=str(start.position))
