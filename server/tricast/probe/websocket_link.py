"""WebSocket on one connection: every frame with its time, nothing answered unless it is asked for."""

from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from secrets import token_bytes
from typing import NamedTuple

import trio
import wsproto.events as ws
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token

from tricast.probe.http_link import Fields, Head, HttpLink
from tricast.probe.link import Cut, End, Ending, Link, open_link
from tricast.probe.target import Target


class Kind(StrEnum):
    """What a frame is."""

    MESSAGE = "message"
    PING = "ping"
    PONG = "pong"


class Frame(NamedTuple):
    """One frame that came; of a message, one part.

    Attributes:
        at: ``trio.current_time()`` of it.
        kind: what it is.
        payload: text as UTF-8.
    """

    at: float
    kind: Kind
    payload: bytes


class Handshake(NamedTuple):
    """How the server, or whatever answered for it, took the handshake.

    Attributes:
        head: the answer's.
        is_open: whether it is ``101`` with the right Sec-WebSocket-Accept, so that frames may follow.
        http: the connection, for the body of an answer that refuses.
    """

    head: Head
    is_open: bool
    http: HttpLink


class WebSocketLink:
    """A WebSocket. Pings are not answered but told.

    Args:
        link: the connection.
        target: whose Host header is sent.
    """

    def __init__(self, link: Link, target: Target) -> None:
        self._target = target
        self._protocol = Protocol(ConnectionType.CLIENT)
        self._frames: deque[Frame] = deque()
        self._ending: Ending | None = None
        self.link = link

    async def shake_hands(self, path: str, fields: Fields = ()) -> Handshake:
        """Asks for a WebSocket (RFC 6455 4.1).

        Args:
            path: the request target.
            fields: headers beside those of every handshake.

        Raises:
            Cut: no answer came.
        """
        key = b64encode(token_bytes(16))
        http = HttpLink(self.link, self._target)
        handshake = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        await http.ask("GET", path, [*handshake, *fields])
        head = await http.head()
        is_open = head.status == 101 and head.header("sec-websocket-accept") == generate_accept_token(key).decode()
        if is_open:
            self._take(http.trailing_bytes())
        return Handshake(head, is_open, http)

    async def send(self, message: str) -> None:
        """Sends a text message.

        Raises:
            Cut: the connection is gone.
        """
        await self._send(ws.TextMessage(data=message))

    async def ping(self, payload: bytes = b"") -> None:
        """Sends a ping.

        Raises:
            Cut: the connection is gone.
        """
        await self._send(ws.Ping(payload=payload))

    async def pong(self, payload: bytes = b"") -> None:
        """Sends a pong.

        Raises:
            Cut: the connection is gone.
        """
        await self._send(ws.Pong(payload=payload))

    async def send_close(self, code: int = 1000) -> None:
        """Sends a close frame; what the other side says to it comes as the ``Cut`` of ``frame``.

        Raises:
            Cut: the connection is gone.
        """
        await self._send(ws.CloseConnection(code=code))

    async def frame(self) -> Frame:
        """Waits for the next frame.

        Raises:
            Cut: a close frame came, the connection ended, or what came is no frame.
        """
        while not self._frames:
            if self._ending is not None:
                raise Cut(self._ending)
            self._take(await self.link.receive())
        return self._frames.popleft()

    async def pong_of(self, payload: bytes) -> Frame:
        """Sends a ping with this payload, and waits for its pong; other frames are dropped.

        Raises:
            Cut: it does not come any more.
        """
        await self.ping(payload)
        while True:
            frame = await self.frame()
            if frame.kind is Kind.PONG and frame.payload == payload:
                return frame

    async def _send(self, event: ws.Event) -> None:
        if self._protocol.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            raise Cut(self._ending or Ending(End.CLOSE, self.link.last_sent))
        try:
            data = self._protocol.send(event)
        except LocalProtocolError:
            raise Cut(self._ending or Ending(End.CLOSE, self.link.last_received)) from None
        await self.link.send(data)

    def _take(self, data: bytes) -> None:
        at = self.link.last_received
        try:
            if data:
                self._protocol.receive_data(data)
            for event in self._protocol.events():
                self._take_event(event, at)
        except RemoteProtocolError as error:
            self._ending = Ending(End.GARBLED, at, why=str(error))

    def _take_event(self, event: ws.Event, at: float) -> None:
        match event:
            case ws.CloseConnection() if self._protocol.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                # Wsproto's own word, for what came is no frame.
                self._ending = Ending(End.GARBLED, at, why=event.reason or "")
            case ws.CloseConnection():
                self._ending = Ending(End.CLOSE, at, int(event.code))
            case ws.TextMessage():
                self._frames.append(Frame(at, Kind.MESSAGE, event.data.encode()))
            case ws.BytesMessage():
                self._frames.append(Frame(at, Kind.MESSAGE, bytes(event.data)))
            case ws.Ping():
                self._frames.append(Frame(at, Kind.PING, bytes(event.payload)))
            case ws.Pong():
                self._frames.append(Frame(at, Kind.PONG, bytes(event.payload)))


@asynccontextmanager
async def open_websocket(target: Target) -> AsyncIterator[WebSocketLink]:
    """A new connection to the target, on which hands are still to be shaken; closed at the end of the block.

    Raises:
        Lost: it cannot be made now.
        ClientError: it can never be made.
    """
    link = await open_link(target)
    try:
        yield WebSocketLink(link, target)
    finally:
        await trio.aclose_forcefully(link.stream)
