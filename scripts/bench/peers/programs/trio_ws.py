"""trio-websocket: a memory channel and a writer task per subscriber, beside the task that reads."""

import trio
from channels import Topics
from publishing import announce, listening_socket, serve_publishing_trio, topic_of
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

_PING_INTERVAL = 30
_PING_TIMEOUT = 30


async def write(connection: WebSocketConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Sends until the channel ends."""
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


async def follow(connection: WebSocketConnection, events: "trio.MemoryReceiveChannel[str]") -> None:
    """Serves one subscriber until it is gone, which ends all tasks with an exception."""
    await connection.send_message("ok")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, connection, events)
        nursery.start_soon(keep_alive, connection)
        while True:
            await connection.get_message()


async def main() -> None:
    """Serves until it is ended."""
    topics = Topics[str]()

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        try:
            if request.path == "/echo":
                while True:
                    await connection.send_message(await connection.get_message())
            with topics.subscribed(topic_of(request.path)) as events:
                await follow(connection, events)
        except* ConnectionClosed:
            pass

    subscribers, publishers = listening_socket(), listening_socket()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(subscribers))
    announce(subscribers, publishers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_publishing_trio, publishers, lambda topic, data: topics.publish(topic, data.decode()))
        await WebSocketServer(handle, [listener]).run()


trio.run(main)
