"""WebSocket handlers that ship with Tricast, as examples and for trying things out.

Any ``async def handler(session)`` will do. In the configuration::

    [[websocket.handler]]
    path = "/echo"
    handler = "tricast.handlers:echo"
"""

import trio

from tricast.errors import RemoteProtocolError
from tricast.transports.websocket import Session


async def echo(session: Session) -> None:
    """Sends every message back as it came, text as text and binary as binary."""
    async for message in session:
        await session.send(message)


async def chat(session: Session) -> None:
    """A chat room: ``?room=lobby&name=Ada``. Whatever is said is an event of ``chat.<room>``.

    So it is kept, can be resumed with ``?last_id=``, and can be followed over SSE and long polling as well.
    """
    parameters = session.request.parameter
    topic = f"chat.{parameters('room') or 'lobby'}"
    name = parameters("name") or "anonymous"
    try:
        await session.subscribe(topic, last_id=parameters("last_id"))
    except RemoteProtocolError as error:
        await session.close(error.close_code, error.detail)
        return
    await session.publish(topic, {"name": name}, type="joined")
    try:
        async for message in session:
            if isinstance(message, str):
                await session.publish(topic, {"name": name, "text": message}, type="said")
    finally:
        # The others are told even when this connection is being cancelled, as long as that does not take long.
        with trio.move_on_after(1, shield=True):
            # In the room's name: a client that is let go for its token or its rate could not say so any more.
            await session.runtime.hub.publish(topic, {"name": name}, type="left")
