"""Application handlers that talk more than their clients listen."""

import trio

from tricast.transports.websocket import Session

#: More than the sockets of both sides hold together where their buffers are small.
MUCH = bytes(2**20)
PIECE = bytes(2**10)


async def talk(session: Session) -> None:
    """Sends much, and behind it as many pieces at a time as the client says; then says that it is done."""
    async for message in session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.send, MUCH)
            while not session.connection.has_tail:
                await trio.lowlevel.checkpoint()
            for _ in range(int(message)):
                nursery.start_soon(session.send, PIECE)
        await session.send("done")


async def publish(session: Session) -> None:
    """Publishes each message, and lets through whatever is wrong with that."""
    async for message in session:
        await session.publish("news", message)
        await session.send("published")
