"""The bare prototype that Tricast's delivery path is held against: Trio, h11 and wsproto, and nothing else.

Non-blocking sockets of the standard library driven by `trio.lowlevel`, one task per connection, each event encoded once
and sent with one call per subscriber. No topics, no log, no keepalive, no limits but one: a subscriber that is a
MiB behind is cut off.
"""

import gc
import socket
from contextlib import suppress

import h11
import trio
from publishing import announce, event_stream_event, listening_socket
from wsproto import Connection, ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Ping, TextMessage
from wsproto.handshake import H11Handshake

_ACCEPTS = 64
_SENDS = 256
_BEHIND_BYTES = 1024 * 1024
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n:ok\n\n"
)

# Frames from server to client are the same for all, so one connection encodes them.
_ENCODER = Connection(ConnectionType.SERVER)
_GREETING = _ENCODER.send(TextMessage("ok"))


class Subscriber:
    """A socket, what it did not take yet, and the form its events have."""

    __slots__ = ("form", "sock", "tail")

    def __init__(self, sock: socket.socket, form: int) -> None:
        self.sock = sock
        self.form = form
        self.tail: bytes | memoryview = b""


class Server:
    """All there is."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._subscribers: set[Subscriber] = set()
        self._published = 0
        self._waiting: tuple[list[bytes], list[bytes]] = ([], [])
        self._wake = trio.Event()

    async def accept(self, listener: socket.socket) -> None:
        """Takes up to so many connections whenever there are some."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            with suppress(BlockingIOError):
                for _ in range(_ACCEPTS):
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._nursery.start_soon(self._serve, sock)

    async def flush(self) -> None:
        """Sends what was published since the last round, as one block."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            blocks = [b"".join(events) for events in self._waiting]
            self._waiting = ([], [])
            for number, subscriber in enumerate(list(self._subscribers)):
                self._send(subscriber, blocks[subscriber.form])
                if number % _SENDS == _SENDS - 1:
                    await trio.lowlevel.checkpoint()

    def _send(self, subscriber: Subscriber, block: bytes) -> None:
        if subscriber.tail:
            subscriber.tail = bytes(subscriber.tail) + block
            if len(subscriber.tail) > _BEHIND_BYTES:
                subscriber.sock.shutdown(socket.SHUT_RDWR)  # its own task sees the end
            return
        try:
            sent = subscriber.sock.send(block)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # its own task sees it too
        if sent < len(block):
            subscriber.tail = memoryview(block)[sent:]
            self._nursery.start_soon(self._catch_up, subscriber)

    async def _catch_up(self, subscriber: Subscriber) -> None:
        with suppress(OSError, trio.ClosedResourceError):
            while subscriber.tail:
                await trio.lowlevel.wait_writable(subscriber.sock)
                sent = subscriber.sock.send(subscriber.tail)
                subscriber.tail = memoryview(subscriber.tail)[sent:]

    async def _serve(self, sock: socket.socket) -> None:
        try:
            subscriber = await self._serve_http(sock)
            if subscriber is None:
                return
            self._subscribers.add(subscriber)
            websocket = Connection(ConnectionType.SERVER) if subscriber.form else None
            try:
                while data := await self._receive(sock):
                    if websocket is not None and not self._answer(subscriber, websocket, data):
                        return
            finally:
                self._subscribers.discard(subscriber)
        except (OSError, h11.RemoteProtocolError):
            pass
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()

    async def _receive(self, sock: socket.socket) -> bytes:
        await trio.lowlevel.wait_readable(sock)
        return sock.recv(65536)

    def _answer(self, subscriber: Subscriber, websocket: Connection, data: bytes) -> bool:
        """What wsproto has to say to what came; False when that was the end."""
        websocket.receive_data(data)
        for event in websocket.events():
            if isinstance(event, (Ping, CloseConnection)):
                self._send(subscriber, websocket.send(event.response()))
            if isinstance(event, CloseConnection):
                return False
        return True

    async def _serve_http(self, sock: socket.socket) -> Subscriber | None:
        """Serves requests until one of them is a subscription."""
        http = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    http.receive_data(await self._receive(sock))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return None
            assert request is not None
            if request.method == b"GET":
                return self._subscribe(sock, request)
            self._publish(body)
            sock.send(http.send(h11.Response(status_code=204, headers=[])) or b"")
            http.send(h11.EndOfMessage())
            http.start_next_cycle()

    def _subscribe(self, sock: socket.socket, request: h11.Request) -> Subscriber:
        if request.target.startswith(b"/events"):
            sock.send(_STREAM)
            return Subscriber(sock, 0)
        handshake = H11Handshake(ConnectionType.SERVER)
        handshake.initiate_upgrade_connection(list(request.headers), request.target.decode())
        sock.send(handshake.send(AcceptConnection()) + _GREETING)
        return Subscriber(sock, 1)

    def _publish(self, data: bytes) -> None:
        self._published += 1
        streams, websockets = self._waiting
        streams.append(event_stream_event(self._published, data))
        websockets.append(_ENCODER.send(TextMessage(data.decode())))
        self._wake.set()


async def main() -> None:
    """Serves until it is ended."""
    listener = listening_socket()
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        nursery.start_soon(server.flush)
        nursery.start_soon(server.accept, listener)
        announce(listener)


gc.set_threshold(100_000, 20, 100)
gc.collect()
gc.freeze()
trio.run(main)
