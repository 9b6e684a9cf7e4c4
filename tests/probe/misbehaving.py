"""Proxies that misbehave, each in one way or several: what stands between the probe and a server in tests."""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import h11
import trio

HOST = "127.0.0.1"
_MAX_HEAD = 2**20

Fields = list[tuple[bytes, bytes]]


@dataclass(kw_only=True)
class Relay:
    """What it does to what passes; nothing, unless it is told.

    Attributes:
        origins: ports of the servers, asked in turn.
        upgrade: ``pass``, ``strip``, ``deny`` (403), ``dead`` for a tunnel through which nothing goes, or ``lie`` for a
            wrong Sec-WebSocket-Accept.
        hold: whether bodies of answers are held until they are complete.
        step: bytes that are sent on at a time, or 0.
        period: seconds for which bytes are collected, or 0.
        honours_accel: whether ``X-Accel-Buffering: no`` keeps it from holding, stepping and collecting.
        gzip: ``""``, ``flushed`` or ``held``.
        honours_no_transform: whether ``Cache-Control: no-transform`` keeps it from compressing.
        shares: whether streams without Authorization are shared among those who ask for the same.
        keeps: whether they are also kept for those who come later.
        request: what it makes of the fields of a request.
        target: what it makes of its target.
        holds_request: whether bodies of requests are held until they are complete.
        answers_expect: whether it answers ``Expect: 100-continue`` itself, and takes it out.
        retries: methods that are sent again when the server closes without an answer.
        longest_field: longer ones are answered with 400, by a page of its own.
        cookie: by which clients stay with one of the servers, or empty.
    """

    origins: list[int]
    upgrade: str = "pass"
    hold: bool = False
    step: int = 0
    period: float = 0.0
    honours_accel: bool = False
    gzip: str = ""
    honours_no_transform: bool = False
    shares: bool = False
    keeps: bool = False
    request: Callable[[Fields], Fields] = list
    target: Callable[[bytes], bytes] = bytes
    holds_request: bool = False
    answers_expect: bool = False
    retries: tuple[str, ...] = ()
    longest_field: int = 2**20
    cookie: str = ""
    turn: int = 0
    streams: dict[bytes, "Shared"] = field(default_factory=dict)

    async def serve(self, nursery: trio.Nursery, stream: trio.SocketStream) -> None:
        """Serves one client's connection: one request."""
        try:
            await _Exchange(self, nursery, stream).run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError, h11.LocalProtocolError):
            pass
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                await stream.aclose()

    def origin_of(self, fields: Fields) -> int:
        """The port of the server that gets this request."""
        if self.cookie:
            for name, value in fields:
                if name.lower() == b"cookie" and value.startswith(f"{self.cookie}=".encode()):
                    return int(value.partition(b"=")[2])
        self.turn += 1
        return self.origins[self.turn % len(self.origins)]


class Shared:
    """An answer that several get."""

    def __init__(self) -> None:
        self.pieces: list[h11.Event] = []
        self.more = trio.Event()
        self.is_over = False

    def add(self, piece: h11.Event) -> None:
        self.pieces.append(piece)
        self.is_over = isinstance(piece, h11.EndOfMessage)
        self.more.set()
        self.more = trio.Event()


class _Exchange:
    def __init__(self, relay: Relay, nursery: trio.Nursery, client: trio.SocketStream) -> None:
        self.relay = relay
        self.nursery = nursery
        self.client = client
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def run(self) -> None:
        request = await _next(self.http, self.client)
        if not isinstance(request, h11.Request):
            return
        fields = list(request.headers.raw_items())
        if any(len(value) > self.relay.longest_field for _, value in fields):
            page = b"<hr><center>nginx/1.0</center>"
            await self.answer(400, [(b"Content-Length", b"%d" % len(page)), (b"Server", b"nginx/1.0")], page)
            return
        wants_upgrade = any(name.lower() == b"upgrade" for name, _ in fields)
        if wants_upgrade and self.relay.upgrade == "deny":
            await self.answer(403, [(b"Content-Length", b"0")])
            return
        is_tunnel = wants_upgrade and self.relay.upgrade != "strip"
        key = request.target
        is_shared = self.relay.shares and not any(name.lower() == b"authorization" for name, _ in fields)
        if is_shared and b"/sse" in key:
            await self.share(request, fields, key)
        elif is_tunnel:
            await self.tunnel(request, fields)
        else:
            await self.pass_on(request, fields)

    async def answer(self, status: int, fields: Fields, body: bytes = b"") -> None:
        head = h11.Response(status_code=status, headers=[*fields, (b"Connection", b"close")])
        for event in (head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()):
            await self.to_client(event)

    async def to_client(self, event: h11.Event) -> None:
        await self.client.send_all(self.http.send(event) or b"")

    async def tunnel(self, request: h11.Request, fields: Fields) -> None:
        async with _connected(self.relay.origin_of(fields)) as server:
            await server.send_all(_head(request, request.target, fields))
            head = await server.receive_some(65536)
            if self.relay.upgrade == "lie":
                head = head.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x")
                head = head.replace(b"sec-websocket-accept: ", b"sec-websocket-accept: x")
            head, end, rest = head.partition(b"\r\n\r\n")
            is_dead = self.relay.upgrade == "dead"
            await self.client.send_all(head + end + (b"" if is_dead else rest))
            async with trio.open_nursery() as both:

                async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    while data := await source.receive_some(65536):
                        if not is_dead:
                            await sink.send_all(data)
                    both.cancel_scope.cancel()

                both.start_soon(copy, self.client, server)
                both.start_soon(copy, server, self.client)

    async def pass_on(self, request: h11.Request, fields: Fields) -> None:
        method, has_answer = request.method.decode(), False
        hop = {b"connection", b"upgrade"} if self.relay.upgrade == "strip" else {b"connection"}
        if self.relay.answers_expect and any(name.lower() == b"expect" for name, _ in fields):
            await self.to_client(h11.InformationalResponse(status_code=100, headers=[]))
            hop.add(b"expect")
        kept = [item for item in self.relay.request(fields) if item[0].lower() not in hop]
        kept.append((b"Connection", b"close"))
        body: list[h11.Event] = []
        port = self.relay.origin_of(fields)
        for _ in range(2 if method in self.relay.retries else 1):
            async with _connected(port) as server:
                has_answer = await self.exchange(server, request, kept, body, port)
            if has_answer:
                return
        await self.answer(502, [(b"Content-Length", b"0")])

    async def exchange(
        self, server: trio.SocketStream, request: h11.Request, fields: Fields, body: list[h11.Event], port: int
    ) -> bool:
        """Sends the request, with what is known of its body and the rest; returns whether an answer came."""
        there = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        head = h11.Request(method=request.method, target=self.relay.target(request.target), headers=fields)
        has_answer = False
        async with trio.open_nursery() as both:

            async def up() -> None:
                held = bytearray(there.send(head) or b"")
                for event in body:
                    held += there.send(event) or b""
                while not body or not isinstance(body[-1], h11.EndOfMessage):
                    if not self.relay.holds_request and held:
                        await server.send_all(bytes(held))
                        held.clear()
                    event = await _next(self.http, self.client)
                    if not isinstance(event, h11.Data | h11.EndOfMessage):
                        both.cancel_scope.cancel()
                        return
                    body.append(event)
                    held += there.send(event) or b""
                with suppress(trio.BrokenResourceError):
                    await server.send_all(bytes(held))
                if not await self.client.receive_some(1):  # it has left
                    both.cancel_scope.cancel()

            both.start_soon(up)
            with suppress(h11.RemoteProtocolError, trio.BrokenResourceError):
                while not isinstance(answer := await _next(there, server), h11.Response):
                    if not isinstance(answer, h11.InformationalResponse):
                        break
                    await self.to_client(answer)
                else:
                    has_answer = True
                    await self.send_back(answer, partial(_next, there, server), _wants_gzip(request), port)
            both.cancel_scope.cancel()
        return has_answer

    async def send_back(
        self, head: h11.Response, following: Callable[[], Awaitable[object]], wants_gzip: bool, port: int
    ) -> None:
        given = {name.lower(): value for name, value in head.headers.raw_items()}
        fields = [item for item in head.headers.raw_items() if item[0].lower() not in (b"connection", b"keep-alive")]
        is_coded = wants_gzip and bool(self.relay.gzip) and b"event-stream" in given.get(b"content-type", b"")
        if self.relay.honours_no_transform and b"no-transform" in given.get(b"cache-control", b""):
            is_coded = False
        if is_coded:
            fields.append((b"Content-Encoding", b"gzip"))
        if self.relay.cookie:
            fields.append((b"Set-Cookie", f"{self.relay.cookie}={port}; HttpOnly".encode()))
        await self.to_client(h11.Response(status_code=head.status_code, headers=[*fields, (b"Connection", b"close")]))
        is_free = self.relay.honours_accel and given.get(b"x-accel-buffering") == b"no"
        shaper = _Shaper(self.to_client, self.relay, is_free=is_free)
        code = zlib.compressobj(wbits=31) if is_coded else None
        async with trio.open_nursery() as timer:
            if self.relay.period and not is_free:
                timer.start_soon(shaper.keep_flushing)
            while isinstance(event := await following(), h11.Data):
                data = bytes(event.data)
                if code is not None:
                    data = code.compress(data)
                    data += code.flush(zlib.Z_SYNC_FLUSH) if self.relay.gzip == "flushed" else b""
                await shaper.take(data)
            timer.cancel_scope.cancel()
        await shaper.flush(code.flush() if code is not None else b"")
        if isinstance(event, h11.EndOfMessage):
            await self.to_client(h11.EndOfMessage())

    async def share(self, request: h11.Request, fields: Fields, key: bytes) -> None:
        shared = self.relay.streams.get(key)
        if shared is None or (shared.is_over and not self.relay.keeps):
            shared = self.relay.streams[key] = Shared()
            self.nursery.start_soon(_fetch, shared, request, fields, self.relay.origin_of(fields))
        sent = 0
        while True:
            more = shared.more
            for event in shared.pieces[sent:]:
                await self.to_client(event)
            sent = len(shared.pieces)
            if shared.is_over:
                return
            await more.wait()


async def _fetch(shared: Shared, request: h11.Request, fields: Fields, port: int) -> None:
    there = h11.Connection(h11.CLIENT)
    async with _connected(port) as server:
        await server.send_all(_head(request, request.target, fields))
        there.send(h11.Request(method=request.method, target=request.target, headers=fields))
        there.send(h11.EndOfMessage())
        while not shared.is_over:
            event = await _next(there, server)
            assert isinstance(event, h11.Event)
            shared.add(event)


class _Shaper:
    """Holds back what is to be sent, as its relay has it."""

    def __init__(self, send: Callable[[h11.Event], Awaitable[None]], relay: Relay, *, is_free: bool) -> None:
        self._send = send
        self._hold = relay.hold and not is_free
        self._step = 0 if is_free else relay.step
        self._period = 0.0 if is_free else relay.period
        self._held = bytearray()

    async def take(self, data: bytes) -> None:
        self._held += data
        if self._step:
            while len(self._held) >= self._step:
                piece, self._held = self._held[: self._step], self._held[self._step :]
                await self._send(h11.Data(data=bytes(piece)))
        elif not self._hold and not self._period:
            await self.flush()

    async def flush(self, more: bytes = b"") -> None:
        held, self._held = bytes(self._held) + more, bytearray()
        if held:
            await self._send(h11.Data(data=held))

    async def keep_flushing(self) -> None:
        while True:
            await trio.sleep(self._period)
            await self.flush()


def _wants_gzip(request: h11.Request) -> bool:
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in request.headers)


def _head(request: h11.Request, target: bytes, fields: Fields) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method, target), *(b"%b: %b" % item for item in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _next(http: h11.Connection, stream: trio.SocketStream) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await stream.receive_some(65536))
    return event


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream(HOST, port)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def relaying(*origins: int, **options: object) -> AsyncIterator[str]:
    """A relay on a free port in front of servers on these; yields its URL."""
    relay = Relay(origins=list(origins), **options)
    listeners = await trio.open_tcp_listeners(0, host=HOST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(relay.serve, nursery), listeners)
        yield f"http://{HOST}:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
