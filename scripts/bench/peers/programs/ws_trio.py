"""websockets on Trio: a memory channel and two tasks per subscriber, its own keepalive, no compression."""

import logging
from collections import defaultdict

import trio
from publishing import QUEUED, announce, listening_socket, serve_publishing_trio, topic_of
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import ServerConnection, serve

Channels = defaultdict[str, set["trio.MemorySendChannel[str]"]]


async def write(connection: ServerConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Sends until the channel is closed, which is how one that is too slow is cut off."""
    try:
        async for event in events:
            await connection.send(event)
        await connection.aclose(1013)
    except ConnectionClosed:
        pass


async def follow(connection: ServerConnection, topic: str, topics: Channels) -> None:
    """Serves one subscriber until it is gone."""
    sender, receiver = trio.open_memory_channel[str](QUEUED)
    topics[topic].add(sender)
    try:
        await connection.send("ok")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, connection, receiver)
            async for _ in connection:
                pass
            nursery.cancel_scope.cancel()
    finally:
        topics[topic].discard(sender)
        if not topics[topic]:
            del topics[topic]


async def main() -> None:
    """Serves until it is ended."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    topics: Channels = defaultdict(set)

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/echo":
            async for message in connection:
                await connection.send(message)
        else:
            await follow(connection, topic_of(connection.request.path), topics)

    def publish(topic: str, data: bytes) -> None:
        event = data.decode()
        for channel in list(topics.get(topic, ())):
            try:
                channel.send_nowait(event)
            except trio.WouldBlock:
                topics[topic].discard(channel)
                channel.close()

    subscribers, publishers = listening_socket(), listening_socket()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(subscribers))
    announce(subscribers, publishers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_publishing_trio, publishers, publish)
        await serve(handle, listeners=[listener], compression=None)


trio.run(main)
