"""sse-starlette on uvicorn with uvloop and httptools: a queue per subscriber, the library's own ping every 15 s."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

import uvicorn
from publishing import QUEUED, announce, listening_socket
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Queues = defaultdict[str, set["asyncio.Queue[bytes | None]"]]
topics: Queues = defaultdict(set)
published = 0


async def follow(topic: str) -> AsyncIterator[bytes]:
    """The events of a topic, already encoded; ends when the subscriber was too slow."""
    queue = asyncio.Queue[bytes | None](QUEUED + 1)
    topics[topic].add(queue)
    try:
        yield b":ok\n\n"
        while (event := await queue.get()) is not None:
            yield event
    finally:
        topics[topic].discard(queue)
        if not topics[topic]:
            del topics[topic]


async def events(request: Request) -> Response:
    """``GET /events?topic=T``."""
    return EventSourceResponse(follow(request.query_params["topic"]))


async def publish(request: Request) -> Response:
    """``POST /publish?topic=T``."""
    global published  # noqa: PLW0603  (the whole program is one server)
    topic, data = request.query_params["topic"], await request.body()
    published += 1
    event = ServerSentEvent(id=str(published), data=data.decode(), sep="\n").encode()
    for queue in list(topics.get(topic, ())):
        if queue.qsize() >= QUEUED:
            topics[topic].discard(queue)
            queue.put_nowait(None)
        else:
            queue.put_nowait(event)
    return Response(status_code=204)


def main() -> None:
    """Serves until it is ended."""
    app = Starlette(routes=[Route("/events", events), Route("/publish", publish, methods=["POST"])])
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning", backlog=4096
    )
    sock = listening_socket()
    announce(sock)
    uvicorn.Server(config).run(sockets=[sock])


main()
