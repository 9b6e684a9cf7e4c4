"""aiohttp with uvloop: SSE and WebSocket, a queue per subscriber, a comment every 15 s or its own heartbeat of 30 s."""

import asyncio
from collections import defaultdict

import uvloop
from aiohttp import WSMsgType, web
from publishing import QUEUED, announce, event_stream_event, listening_socket

_KEEPALIVE = 15
_HEARTBEAT = 30


class Subscriber:
    """A queue that ends when it is full; what is in it is ready to be sent."""

    def __init__(self) -> None:
        self.queue = asyncio.Queue[bytes | str | None](QUEUED + 1)

    def put(self, event: bytes | str) -> None:
        """Adds an event, or the end."""
        if self.queue.qsize() < QUEUED:
            self.queue.put_nowait(event)
        elif not self.queue.full():
            self.queue.put_nowait(None)


class Server:
    """The handlers."""

    def __init__(self) -> None:
        self._streams: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._sockets: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._published = 0

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events?topic=T``."""
        topic, subscriber = request.query["topic"], Subscriber()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        self._streams[topic].add(subscriber)
        try:
            await response.write(b":ok\n\n")
            while isinstance(event := await subscriber.queue.get(), bytes):
                await response.write(event)
        finally:
            self._leave(self._streams, topic, subscriber)
        return response

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """``GET /ws?topic=T``."""
        topic, subscriber = request.query["topic"], Subscriber()
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, compress=False)
        await socket.prepare(request)
        self._sockets[topic].add(subscriber)
        writer = asyncio.create_task(self._write(socket, subscriber))
        try:
            async for _ in socket:
                pass
        finally:
            writer.cancel()
            self._leave(self._sockets, topic, subscriber)
        return socket

    async def _write(self, socket: web.WebSocketResponse, subscriber: Subscriber) -> None:
        try:
            await socket.send_str("ok")
            while isinstance(event := await subscriber.queue.get(), str):
                await socket.send_str(event)
            await socket.close(code=1013)
        except ConnectionError:
            pass

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        """``GET /echo``."""
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def publish(self, request: web.Request) -> web.Response:
        """``POST /publish?topic=T``."""
        topic, data = request.query["topic"], await request.read()
        self._published += 1
        event, text = event_stream_event(self._published, data), data.decode()
        for subscriber in self._streams.get(topic, ()):
            subscriber.put(event)
        for subscriber in self._sockets.get(topic, ()):
            subscriber.put(text)
        return web.Response(status=204)

    def _leave(self, topics: defaultdict[str, set[Subscriber]], topic: str, subscriber: Subscriber) -> None:
        topics[topic].discard(subscriber)
        if not topics[topic]:
            del topics[topic]

    async def keep_alive(self) -> None:
        """A comment for every event stream now and then."""
        while True:
            await asyncio.sleep(_KEEPALIVE)
            for subscribers in self._streams.values():
                for subscriber in subscribers:
                    subscriber.put(b":\n\n")


async def main() -> None:
    """Serves until it is ended."""
    server, app = Server(), web.Application()
    app.add_routes(
        [
            web.get("/events", server.events),
            web.get("/ws", server.websocket),
            web.get("/echo", server.echo),
            web.post("/publish", server.publish),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = listening_socket()
    await web.SockSite(runner, sock, backlog=4096).start()
    announce(sock)
    await server.keep_alive()


uvloop.run(main())
