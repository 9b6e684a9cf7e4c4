"""WebSocket (RFC 6455): sessions for application handlers, and ``tricast.v1``, the handler that serves topics.

wsproto parses what comes in and keeps the closing handshake's state. Its events are turned into messages here, and
its errors into closings; nothing above sees a wsproto type.
"""

from collections.abc import Iterable
from typing import Any, Self

import msgspec
import trio
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from tricast.connection import Connection
from tricast.errors import ConnectionLost, LimitExceeded, RemoteProtocolError, Unavailable
from tricast.event import DEFAULT_TYPE, Draft, EventId, TopicSet
from tricast.runtime import Handler, Runtime
from tricast.transports.stream import Start, Stream, check_topics, last_id_of, settle, start_of
from tricast.wire import websocket as wire
from tricast.wire.http1 import Request

#: Frames handled in a row before others get a turn: 64 KiB may hold ten thousand empty ones.
_FRAMES_PER_TURN = 32
#: Close codes with their meaning (RFC 6455 7.4.1, and the registry for 1012 and 1013).
NORMAL, INTERNAL_ERROR, RESTARTING, TRY_AGAIN_LATER = 1000, 1011, 1012, 1013


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

    Attributes:
        request: the opening request: ``path``, ``query``, ``headers``.
        close_code: the code that the peer closed the connection with, 1005 for none, 1006 when it just ended; None
            while it is open.
    """

    __slots__ = (
        "_frames", "_handler", "_is_broken", "_parts", "_pinged_at", "_protocol", "_size", "_topics", "close_code",
        "request",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, runtime: Runtime, request: Request, handler: Handler, received: bytes
    ) -> None:
        super().__init__(connection, runtime, wire.FORM)
        self._protocol = Protocol(ConnectionType.SERVER, [], received)
        self._handler: Handler | None = handler
        self._topics: frozenset[str] = frozenset()
        self._parts: list[Any] = []  # str or bytes: wsproto does not mix kinds within a message
        self._size = 0
        self._frames = 0
        self._is_broken = False
        self._pinged_at = 0.0
        self.close_code: int | None = None
        self.request = request
        runtime.counters.streams["websocket"] += 1

    # For applications

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.connection.peer

    @property
    def topics(self) -> frozenset[str]:
        """The topics and patterns that this connection is subscribed to."""
        return self._topics

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """The next message. Cancelling loses none.

        Raises:
            StopAsyncIteration: the connection is closed, or was closed for a mistake of the client's.
            ConnectionLost: it was reset.
        """
        while self.close_code is None:
            message = await self._parse()
            if message is not None:
                return message
            if self.close_code is None:
                await self._receive()
        raise StopAsyncIteration

    async def send(self, message: str | bytes) -> None:
        """Sends one message, text or binary; returns when the kernel has it all.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        # First the tail: behind it may come a close frame, and nothing may follow that (RFC 6455 5.5.1).
        await self.connection.drain()
        if isinstance(message, str) and self._protocol.state is ConnectionState.OPEN:
            await self.connection.send(wire.text_frame(message.encode()))
        else:
            kind = TextMessage if isinstance(message, str) else BytesMessage
            await self._send_event(kind(data=message))  # type: ignore[arg-type]  # each gets its own kind of data

    async def publish(self, topic: str, data: object, *, type: str = DEFAULT_TYPE) -> EventId:  # noqa: A002
        """Publishes an event to everybody who is subscribed to the topic. See ``Hub.publish``."""
        return await self.runtime.hub.publish(topic, data, type=type)

    async def subscribe(self, *topics: str, last_id: str | None = None) -> EventId:
        """Adds topics: their events are sent as JSON, like those of ``tricast.v1``, between this handler's messages.

        Args:
            topics: names and patterns.
            last_id: moves the whole subscription to this position, so that all behind it is sent (again).

        Returns:
            The position from which the events go on.

        Raises:
            RemoteProtocolError: a topic or the position is not one.
        """
        together, start = await self.check_subscription(topics, last_id)
        self.resubscribe(together, start)
        return start.position

    async def unsubscribe(self, *topics: str) -> None:
        """Takes topics away. Those that were not subscribed to do not matter."""
        self.resubscribe(self._topics - set(topics), Start(self._here(), is_given=False))

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Closes the connection; messages that come in from now on are thrown away.

        Args:
            code: a close code an endpoint may send (RFC 6455 7.4).
            reason: what to tell the client, cut to 123 bytes of UTF-8.
        """
        # Nothing may follow a close frame (RFC 6455 5.5.1), so no more events are sent.
        self.pause()
        if self._protocol.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            await self._send_event(CloseConnection(code=code, reason=reason or None))

    # Subscriptions

    async def check_subscription(self, topics: Iterable[str], last_id: str | None) -> tuple[frozenset[str], Start]:
        """What all topics and the position would be with these topics added; changes nothing.

        Raises:
            RemoteProtocolError: a topic or the position is not one, there is none, or there are too many.
        """
        together = check_topics({*self._topics, *check_topics(topics, self.runtime)}, self.runtime)
        start = await settle(start_of(last_id, self._here()), TopicSet(together), self.runtime.hub)
        return together, start

    def pause(self) -> None:
        """Sends no more events, and keeps the position, until ``resubscribe``."""
        self.runtime.hub.leave(self)

    def resubscribe(self, topics: frozenset[str], start: Start) -> None:
        """Follows these topics, and no others, from there on.

        Raises:
            ConnectionLost: the connection is closed, on either side.
        """
        if self._protocol.state is not ConnectionState.OPEN:
            raise ConnectionLost("the WebSocket is closed", reason="closed")
        self._topics = topics
        if topics:
            self.follow(TopicSet(topics), start)
        else:
            self.pause()

    def _here(self) -> EventId:
        """The position now: topics that are added begin here, like those that are there already go on from here."""
        hub = self.runtime.hub
        if self.feed is None:
            return self.position if self._topics else hub.last_id
        return hub.settled(self) if self.is_live else self.position

    # What comes in

    async def _receive(self) -> None:
        data = await self.connection.receive()
        if data:
            self._protocol.receive_data(data)
        else:
            self.close_code = 1006

    async def _parse(self) -> str | bytes | None:
        """The next message out of what was received so far, or None when more is needed or it is over."""
        events = self._protocol.events()
        while True:
            if self._frames % _FRAMES_PER_TURN == 0:  # before the next one is taken, which cancelling would lose
                await trio.lowlevel.checkpoint()
            event = next(events, None)
            if event is None:
                return None
            self._frames += 1
            match event:
                case TextMessage() | BytesMessage() | Ping() if self._protocol.state is not ConnectionState.OPEN:
                    continue  # nothing can be said to it any more
                case TextMessage() | BytesMessage():
                    if self._take_part(event):
                        return self._whole_message(event)
                    if self._size > self.runtime.config.websocket.max_message:
                        await self._refuse_message()
                        return None
                case Ping():
                    await self._send_event(event.response())
                case CloseConnection():
                    await self._closed_by_peer(event)
                    return None

    def _take_part(self, event: TextMessage | BytesMessage) -> bool:
        """Keeps a part of a message; returns whether the message is whole and not too long."""
        if event.data:
            # Empty parts are not kept: a million of them must not take memory.
            self._parts.append(event.data)
            is_ascii = not isinstance(event.data, str) or event.data.isascii()
            self._size += len(event.data) if is_ascii else len(str(event.data).encode())
        return event.message_finished and self._size <= self.runtime.config.websocket.max_message

    def _whole_message(self, event: TextMessage | BytesMessage) -> str | bytes:
        parts, self._parts, self._size = self._parts, [], 0
        if isinstance(event, TextMessage):
            return "".join(parts)
        return b"".join(parts)

    async def _refuse_message(self) -> None:
        limit = LimitExceeded("websocket.max_message", self.runtime.config.websocket.max_message)
        self._parts, self.close_code = [], limit.close_code
        await self.close(limit.close_code, limit.detail)

    async def _closed_by_peer(self, event: CloseConnection) -> None:
        # In state OPEN it was not a close frame, but wsproto's word for input that breaks the protocol (RFC 6455
        # 7.1.7). Nothing that follows such input can be read, not even a close frame.
        self._is_broken = self._protocol.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)
        self.close_code = int(event.code)
        await self.close(event.code, event.reason or "")

    # What keeps it going, and what ends it

    async def serve(self) -> None:
        """See ``Stream.serve``: runs the handler, then closes."""
        handler, self._handler = self._handler, None
        assert handler is not None
        try:
            await handler(self)
        except ConnectionLost:
            # Its last word may have met a connection that is being closed from here, for instance by a drain.
            if self._protocol.state is not ConnectionState.LOCAL_CLOSING:
                raise
        except Exception as error:
            with trio.move_on_after(self.runtime.config.websocket.close_timeout, shield=True):
                await self._finish(TRY_AGAIN_LATER if isinstance(error, Unavailable) else INTERNAL_ERROR)
            raise
        await self._finish(NORMAL)

    async def _finish(self, code: int) -> None:
        """The closing handshake, bounded in time (RFC 6455 7.1.1: the server closes the TCP connection first)."""
        with trio.move_on_after(self.runtime.config.websocket.close_timeout):
            try:
                await self.close(code)
                if self._protocol.state is ConnectionState.LOCAL_CLOSING and not self._is_broken:
                    await self._wait_closed_by_peer()
                await self.connection.linger()
            except (ConnectionLost, LocalProtocolError):
                return

    async def _wait_closed_by_peer(self) -> None:
        while True:
            for event in self._protocol.events():
                await trio.lowlevel.checkpoint()
                # Either the answer, or wsproto's word for what breaks the protocol; behind both nothing can be read.
                if isinstance(event, CloseConnection):
                    return
            data = await self.connection.receive()
            if not data:
                return
            self._protocol.receive_data(data)

    async def _send_event(self, event: Event) -> None:
        await self.connection.drain()
        try:
            data = self._protocol.send(event)
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
        if now >= silent_since + config.ping_timeout:
            raise ConnectionLost(f"silent for {config.ping_timeout:g} s", reason="ping-timeout")
        if now >= max(silent_since, self._pinged_at) + config.ping_interval:
            self._pinged_at = now
            if self._protocol.state is ConnectionState.OPEN and not self.connection.has_tail:
                self.send_aside(bytes(self._protocol.send(Ping())))
        return min(max(silent_since, self._pinged_at) + config.ping_interval, silent_since + config.ping_timeout)

    def say_goodbye(self, retry_after: float) -> None:
        """Closes with 1012 and the delay in the reason, and gives the client a moment to answer it."""
        if self._protocol.state is ConnectionState.OPEN:
            reason = f"restarting, come back in {retry_after:.1f} s"
            self.send_aside(bytes(self._protocol.send(CloseConnection(code=RESTARTING, reason=reason))))
        self.nursery.cancel_scope.deadline = trio.current_time() + self.runtime.config.websocket.close_timeout


async def serve_topics(session: Session) -> None:
    """The subprotocol ``tricast.v1``: events out, operations in. The URL's topics are subscribed to at once."""
    initial = _initial_subscription(session.request)
    if initial is not None:
        await _subscribe(session, initial)
    # A kilobyte or two of headers, which nothing here needs any more.
    del session.request, initial
    async for message in session:
        await _operate(session, message)


def _initial_subscription(request: Request) -> wire.Subscribe | None:
    """What the URL asks for; it was checked before the upgrade, so that a mistake in it got an HTTP answer."""
    topics = request.parameters("topic")
    return wire.Subscribe(op="subscribe", topics=topics, last_id=last_id_of(request)) if topics else None


async def _operate(session: Session, message: str | bytes) -> None:
    """Does what one message says, and replies."""
    ref: wire.Reference | msgspec.UnsetType = msgspec.UNSET
    try:
        operation = wire.parse_operation(message)
        ref = operation.ref
        await _perform(session, operation)
    except wire.BadOperation as error:
        await session.send(_error(error, error.ref))
    except RemoteProtocolError as error:
        await session.send(_error(error, ref))
    except Unavailable as error:
        await session.send(_error(error, ref))


async def _perform(session: Session, operation: wire.Operation) -> None:
    match operation:
        case wire.Publish():
            hub = session.runtime.hub
            draft = hub.check(Draft(operation.topic, operation.type, bytes(operation.data)))
            (event_id,) = await hub.append([draft])
            await session.send(wire.encode_reply("ok", "publish", operation.ref, id=str(event_id)))
        case wire.Subscribe():
            await _subscribe(session, operation)
        case wire.Unsubscribe():
            await session.unsubscribe(*operation.topics)
            await session.send(wire.encode_reply("ok", "unsubscribe", operation.ref, topics=sorted(session.topics)))
        case _:
            await session.send(wire.encode_reply("ok", operation.op, operation.ref))


async def _subscribe(session: Session, operation: wire.Subscribe) -> None:
    topics, start = await session.check_subscription(operation.topics, operation.last_id)
    # The reply says from where the events go on, so it comes before them; meanwhile they wait in the log.
    session.pause()
    await session.send(
        wire.encode_reply("ok", "subscribe", operation.ref, topics=sorted(topics), last_id=str(start.position))
    )
    session.resubscribe(topics, start)


def _error(error: RemoteProtocolError | Unavailable, ref: wire.Reference | msgspec.UnsetType) -> str:
    return wire.encode_reply("error", {"code": error.code, "message": error.detail}, ref)
