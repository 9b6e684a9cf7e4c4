"""trio-websocket: a memory channel and a writer task per subscriber, beside the task that reads."""

from collections import defaultdict

import trio
from publishing import QUEUED, announce, listening_socket, serve_publishing_trio, topic_of
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

_PING_INTERVAL = 30
_PING_TIMEOUT = 30


async def write(connection: WebSocketConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Sends until the channel is closed, which is how one that is too slow is cut off."""
    async for event in events:
        await connection.send_message(event)
    await connection.aclose(1013)


async def keep_alive(connection: WebSocketConnection) -> None:
    """Pings, as the library's documentation shows."""
    while True:
        await trio.sleep(_PING_INTERVAL)
        with trio.move_on_after(_PING_TIMEOUT) as waiting:
            await connection.ping()
        if waiting.cancelled_caught:
            await connection.aclose(1011)
            return


async def main() -> None:
    """Serves until it is ended."""
    topics: defaultdict[str, set[trio.MemorySendChannel[str]]] = defaultdict(set)

    async def follow(connection: WebSocketConnection, topic: str) -> None:
        sender, receiver = trio.open_memory_channel[str](QUEUED)
        topics[topic].add(sender)
        try:
            await connection.send_message("ok")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, connection, receiver)
                nursery.start_soon(keep_alive, connection)
                while True:
                    await connection.get_message()
        finally:
            topics[topic].discard(sender)
            if not topics[topic]:
                del topics[topic]

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        try:
            if request.path == "/echo":
                while True:
                    await connection.send_message(await connection.get_message())
            await follow(connection, topic_of(request.path))
        except* ConnectionClosed:
            pass

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
        await WebSocketServer(handle, [listener]).run()


trio.run(main)
