"""websockets on asyncio with uvloop: its own `broadcast`, its own keepalive, no compression."""

import asyncio
import logging
from collections import defaultdict

import uvloop
from publishing import announce, listening_socket, serve_publishing_asyncio, topic_of
from websockets.asyncio.server import ServerConnection, broadcast, serve


async def main() -> None:
    """Serves until it is ended."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a client that is gone is no news here
    topics: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/echo":
            async for message in connection:
                await connection.send(message)
            return
        topic = topic_of(connection.request.path)
        topics[topic].add(connection)
        try:
            await connection.send("ok")
            await connection.wait_closed()
        finally:
            topics[topic].discard(connection)
            if not topics[topic]:
                del topics[topic]

    def publish(topic: str, data: bytes) -> None:
        broadcast(topics.get(topic, ()), data.decode())

    subscribers, publishers = listening_socket(), listening_socket()
    async with (
        serve(handle, sock=subscribers, backlog=4096, compression=None),
        await serve_publishing_asyncio(publishers, publish),
    ):
        announce(subscribers, publishers)
        await asyncio.get_running_loop().create_future()


uvloop.run(main())
