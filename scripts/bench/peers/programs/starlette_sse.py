"""sse-starlette on uvicorn with uvloop and httptools: a queue per subscriber, the library's own ping every 15 s."""

from collections.abc import AsyncIterator
from itertools import count

import uvicorn
from publishing import announce, event_stream_event, listening_socket
from queues import Topics
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

topics = Topics[bytes]()
numbers = count(1)


async def follow(topic: str) -> AsyncIterator[bytes]:
    """The events of a topic, already encoded; ends when the subscriber was too slow."""
    with topics.subscribed(topic) as queue:
        yield b":ok\n\n"
        while (event := await queue.get()) is not None:
            yield event


async def events(request: Request) -> Response:
    """``GET /events?topic=T``."""
    return EventSourceResponse(follow(request.query_params["topic"]))


async def publish(request: Request) -> Response:
    """``POST /publish?topic=T``."""
    topics.publish(request.query_params["topic"], event_stream_event(next(numbers), await request.body()))
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
