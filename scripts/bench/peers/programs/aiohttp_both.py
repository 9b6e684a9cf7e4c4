"""aiohttp with uvloop: SSE and WebSocket, a queue per subscriber, a comment every 15 s or its own heartbeat of 30 s."""

import asyncio

import uvloop
from aiohttp import WSMsgType, web
from publishing import announce, event_stream_event, listening_socket
from queues import Topics

_KEEPALIVE = 15
_HEARTBEAT = 30


class Server:
    """The handlers."""

    def __init__(self) -> None:
        self._streams = Topics[bytes]()
        self._sockets = Topics[str]()
        self._published = 0

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events?topic=T``."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        with self._streams.subscribed(request.query["topic"]) as queue:
            await response.write(b":ok\n\n")
            while (event := await queue.get()) is not None:
                await response.write(event)
        return response

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """``GET /ws?topic=T``."""
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, compress=False)
        await socket.prepare(request)
        with self._sockets.subscribed(request.query["topic"]) as queue:
            writer = asyncio.create_task(self._write(socket, queue))
            try:
                async for _ in socket:
                    pass
            finally:
                writer.cancel()
        return socket

    async def _write(self, socket: web.WebSocketResponse, queue: "asyncio.Queue[str | None]") -> None:
        try:
            await socket.send_str("ok")
            while (event := await queue.get()) is not None:
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
        self._streams.publish(topic, event_stream_event(self._published, data))
        self._sockets.publish(topic, data.decode())
        return web.Response(status=204)

    async def keep_alive(self) -> None:
        """A comment for every event stream now and then."""
        while True:
            await asyncio.sleep(_KEEPALIVE)
            self._streams.publish_everywhere(b":\n\n")


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
