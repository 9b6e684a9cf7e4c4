"""Hypercorn on Trio: a plain ASGI application that streams SSE from a memory channel per subscriber."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from channels import Topics
from hypercorn.config import Config
from hypercorn.trio import serve
from publishing import announce, event_stream_event, listening_socket, topic_of

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_KEEPALIVE = 15


class Application:
    """``GET /events?topic=T`` and ``POST /publish?topic=T``."""

    def __init__(self) -> None:
        self._topics = Topics[bytes]()
        self._published = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        topic = topic_of("?" + scope["query_string"].decode())
        if scope["method"] == "POST":
            self._publish(topic, await self._body(receive))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._stream(topic, receive, send)

    async def _body(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def _stream(self, topic: str, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        with self._topics.subscribed(topic) as events:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b":ok\n\n", "more_body": True})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                nursery.cancel_scope.cancel()

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    def _publish(self, topic: str, data: bytes) -> None:
        self._published += 1
        self._topics.publish(topic, event_stream_event(self._published, data))

    async def keep_alive(self) -> None:
        """A comment for everybody now and then."""
        while True:
            await trio.sleep(_KEEPALIVE)
            self._topics.publish_everywhere(b":\n\n")


async def main() -> None:
    """Serves until it is ended."""
    sock = listening_socket()
    config = Config()
    config.bind = [f"fd://{sock.fileno()}"]
    config.backlog = 4096
    config.loglevel = "ERROR"
    application = Application()
    announce(sock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(application.keep_alive)
        await serve(application, config)  # type: ignore[arg-type]  # its own type is wider than what it sends


trio.run(main)
