"""How a proxy introduces its client, where a listener wants the PROXY protocol: read, and believed."""

import trio

from tricast.connection import Connection
from tricast.errors import RemoteProtocolError
from tricast.wire.proxy_protocol import MAX_HEADER_BYTES, parse_introduction


async def be_introduced(connection: Connection, seconds: float) -> None:
    """Has the connection be the client's that the peer names; its own where it speaks for itself.

    Of a client whose address it cannot tell, no more is believed than of any other: its requests are its own words.

    Cancelling leaves a connection that can only be closed.

    Args:
        connection: on which nothing was received yet, and whose peer is trusted.
        seconds: that it may take.

    Raises:
        RemoteProtocolError: what came is no introduction, or it did not come in time.
        ConnectionLost: the peer is gone.
    """
    with trio.move_on_after(seconds) as scope:
        introduction = await connection.receive_front(parse_introduction, MAX_HEADER_BYTES)
        if introduction.client is not None:
            connection.peer = connection.client = introduction.client
    if scope.cancelled_caught:
        raise RemoteProtocolError(
            f"PROXY protocol: nothing, or not all of it, came within {seconds:g} s",
            code="proxy-protocol-timeout",
            status=408,
            closes=True,
        )
