"""A server that does what a script says, connection by connection: for what the real one would never do."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import h11
import trio
import trio.testing
from clocks import HANG_SECONDS
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from tricast.client import ClientSettings, Connected, Disconnected
from tricast.client.endpoint import Endpoint

#: Waits are drawn from next to nothing, so that tests on real sockets do not wait for them; and what is answered there
#: may be answered late, on a machine that is busy.
EAGER = ClientSettings(
    backoff_first=1e-6,
    backoff_longest=1e-6,
    connect_timeout=HANG_SECONDS,
    first_bytes_timeout=HANG_SECONDS,
    answer_timeout=HANG_SECONDS,
)


def event_json(number: int, *, data: str = '{"n":1}', topic: str = "news", kind: str = "message") -> str:
    return f'{{"id":"{number}-0","topic":"{topic}","type":"{kind}","data":{data}}}'


def sse_event(number: int) -> bytes:
    return f"id: {number}-0\ndata: {event_json(number)}\n\n".encode()


def gap_json(after: int, resumed_at: int, reason: str = "evicted") -> str:
    return f'{{"reason":"{reason}","after":"{after}-0","resumed_at":"{resumed_at}-0"}}'


class Left(Exception):
    """The client closed the connection instead of asking for more."""


class Heard(NamedTuple):
    """A request, as the server received it; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class Peer:
    """One connection, seen from the server.

    Attributes:
        heard: every request that was read on it.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)
        self.ws = Connection(ConnectionType.SERVER)
        self.request: h11.Request | None = None
        self.body = b""
        self.heard: list[Heard] = []

    @property
    def target(self) -> str:
        return self.heard[-1].target

    @property
    def headers(self) -> dict[str, str]:
        return self.heard[-1].headers

    async def read_request(self) -> None:
        """Reads one whole request into ``request`` and ``body``.

        Raises:
            Left: there is none, which ends the scene.
        """
        if self.request is not None:
            self.http.start_next_cycle()
        self.request, self.body = None, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                self.request = event
                headers = {name.decode(): value.decode() for name, value in event.headers}
                self.heard.append(Heard(event.method.decode(), event.target.decode(), headers))
            elif isinstance(event, h11.Data):
                self.body += event.data
            elif isinstance(event, h11.ConnectionClosed):
                raise Left
            else:
                assert isinstance(event, h11.EndOfMessage), event
                return

    async def respond(self, status: int, body: bytes | str = b"", **headers: str) -> None:
        """Sends one whole response, to a HEAD without its body; underscores in header names stand for hyphens."""
        body = body.encode() if isinstance(body, str) else body
        length = [] if status == 204 else [("Content-Length", b"%d" % len(body))]
        fields = [(name.replace("_", "-"), value.encode("latin-1")) for name, value in headers.items()] + length
        await self._send(h11.Response(status_code=status, headers=fields, reason=b"Reason"))
        if body and self.request.method != b"HEAD":
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def problem(self, status: int, detail: str, *, code: str = "x", **headers: str) -> None:
        body = f'{{"type":"urn:tricast:{code}","title":"Title","status":{status},"detail":"{detail}"}}'
        await self.respond(status, body, Content_Type="application/problem+json", **headers)

    async def begin_stream(self, opening: bytes = b": hi\nretry: 1\nid: 5-0\n\n") -> None:
        """Reads the request and answers with an open event stream."""
        await self.read_request()
        await self._send(h11.Response(status_code=200, headers=[("Content-Type", "text/event-stream; charset=utf-8")]))
        if opening:
            await self.chunk(opening)

    async def begin_polls(self, position: str = "5-0", **headers: str) -> None:
        """Reads the HEAD that comes before polls and answers it."""
        await self.read_request()
        assert self.request.method == b"HEAD"
        await self.respond(200, Last_Event_ID=position, **headers)

    async def read_poll(self) -> None:
        """Reads a request, which must be a GET."""
        await self.read_request()
        assert self.request.method == b"GET"

    async def chunk(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end_stream(self) -> None:
        await self._send(h11.EndOfMessage())

    async def accept(self, hello: str = '{"ok":"subscribe","topics":["news"],"last_id":"5-0"}') -> None:
        """Reads the request, upgrades to WebSocket, and says hello in the same bytes."""
        await self.read_request()
        await self.upgrade(hello)

    async def upgrade(self, hello: str) -> None:
        """Answers the request that was read with an upgrade to WebSocket, and says hello in the same bytes."""
        answer = h11.InformationalResponse(
            status_code=101,
            headers=[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Accept", generate_accept_token(self.headers["sec-websocket-key"].encode())),
                ("Sec-WebSocket-Protocol", "tricast.v1"),
            ],
        )
        head = self.http.send(answer)
        await self.stream.send_all(head + (self.ws.send(TextMessage(hello)) if hello else b""))

    async def frame(self, event: Event | str) -> None:
        await self.stream.send_all(self.ws.send(TextMessage(event) if isinstance(event, str) else event))

    async def read_frame(self) -> Event:
        while True:
            for event in self.ws.events():
                return event
            self.ws.receive_data(await self.stream.receive_some(65536) or None)

    async def wait_closed(self) -> None:
        """Waits until the client has closed the connection."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass

    async def _send(self, event: h11.Event) -> None:
        await self.stream.send_all(self.http.send(event))


Scene = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Plays one scene for each connection, in order; after the last it lets connections hang."""

    def __init__(self, *scenes: Scene) -> None:
        self._scenes = list(scenes)
        self.peers: list[Peer] = []
        self.url = "http://server.test"

    async def handle(self, stream: trio.abc.Stream) -> None:
        peer = Peer(stream)
        self.peers.append(peer)
        scene = self._scenes.pop(0) if self._scenes else Peer.wait_closed
        try:
            await scene(peer)
        except Left:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def in_memory(self):
        """Yields a dial for clients, on memory streams."""
        async with trio.open_nursery() as nursery:

            async def dial(endpoint: Endpoint, settings: ClientSettings) -> trio.abc.Stream:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(self.handle, theirs)
                return ours

            failure = None
            try:
                yield dial
            except Exception as error:  # noqa: BLE001 - raised again below
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure  # as it was, not in the nursery's group

    @asynccontextmanager
    async def on_sockets(self, ssl_context=None):
        """Listens on a free port, and sets ``url``."""
        async with trio.open_nursery() as nursery:
            if ssl_context is None:
                serve = partial(trio.serve_tcp, self.handle, 0, host="127.0.0.1")
            else:
                serve = partial(trio.serve_ssl_over_tcp, self.handle, 0, ssl_context, host="127.0.0.1")
            (listener, *_) = await nursery.start(serve)
            sock = getattr(listener, "transport_listener", listener).socket
            scheme = "http" if ssl_context is None else "https"
            self.url = f"{scheme}://{'127.0.0.1' if ssl_context is None else 'localhost'}:{sock.getsockname()[1]}"
            failure = None
            try:
                yield self
            except Exception as error:  # noqa: BLE001 - raised again below
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def take(subscription, count: int) -> list:
    """The next items."""
    return [await anext(subscription) for _ in range(count)]


async def take_events(subscription, count: int) -> list[int]:
    """The numbers of the next events; notices are left out, a gap is not."""
    numbers = []
    while len(numbers) < count:
        item = await anext(subscription)
        if not isinstance(item, Connected | Disconnected):
            numbers.append(item.id.ms)
    return numbers


async def refuse_upgrade(peer: Peer) -> None:
    await peer.read_request()
    await peer.problem(426, "no Upgrade here")


__all__ = [
    "EAGER",
    "CloseConnection",
    "Message",
    "Peer",
    "Ping",
    "ScriptedServer",
    "event_json",
    "gap_json",
    "refuse_upgrade",
    "sse_event",
    "take",
    "take_events",
]
