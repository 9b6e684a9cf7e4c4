"""websockets on Trio: a memory channel and two tasks per subscriber, its own keepalive, no compression."""

import logging

import trio
from channels import Topics
from publishing import announce, listening_socket, serve_publishing_trio, topic_of
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import ServerConnection, serve


async def write(connection: ServerConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Sends until the channel ends."""
    try:
        async for event in events:
            await connection.send(event)
        await connection.aclose(1013)
    except ConnectionClosed:
        pass


async def follow(connection: ServerConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Serves one subscriber until it is gone."""
    await connection.send("ok")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, connection, events)
        async for _ in connection:
            pass
        nursery.cancel_scope.cancel()


async def main() -> None:
    """Serves until it is ended."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a client that is gone is no news here
    topics = Topics[str]()

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/echo":
            async for message in connection:
                await connection.send(message)
        else:
            with topics.subscribed(topic_of(connection.request.path)) as events:
                await follow(connection, events)

    subscribers, publishers = listening_socket(), listening_socket()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(subscribers))
    announce(subscribers, publishers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_publishing_trio, publishers, lambda topic, data: topics.publish(topic, data.decode()))
        await serve(handle, listeners=[listener], compression=None)


trio.run(main)
