"""An answer that goes on as it comes, from a real socket to another: what becomes of its last piece, and of its cut."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from proxy.fake_bodies import response_head
from trio.testing import wait_all_tasks_blocked

from tricast.connection import Connection
from tricast.wire.bodies import BodyReader, ChunkedBody, LengthBody, OpenBody
from tricast_proxy.config import ServerEntry
from tricast_proxy.pump import Pump
from tricast_proxy.relay import Cut, relay_at_once
from tricast_proxy.servers import Server
from tricast_proxy.streams import ClientBody, ServerBody
from tricast_proxy.timers import Timers, Watch
from tricast_proxy.upstream import Upstream

#: More than there is room for on the way to the client, and less than on the way from the server.
_LARGE = b"x" * 2**16


class World:
    """An answer on its way, and both who are at its ends.

    Attributes:
        source: it, as it comes.
        sink: it, as it goes on.
        pump: what passes it on.
        server: says it.
        client: hears it.
        from_server: the proxy's connection to the server.
        to_client: the proxy's connection to the client.
    """

    def __init__(self, reader: BodyReader, length: int | None) -> None:
        server, upstream = socket.socketpair()
        client, downstream = socket.socketpair()
        upstream.setblocking(False)
        downstream.setblocking(False)
        downstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.pump, self.server, self.client = Pump(), server, trio.socket.from_stdlib_socket(client)
        self.to_client = Connection(downstream, "client", write_timeout=1000)
        self.from_server = Connection(upstream, "server", write_timeout=1000)
        head, watch = response_head(), Watch(Timers())
        is_chunked = isinstance(reader, ChunkedBody)
        self.source = ServerBody(
            Upstream(self.from_server, Server(ServerEntry(address="127.0.0.1:1"))),
            self.pump,
            head,
            reader,
            is_chunked=is_chunked,
            length=length,
            watch=watch,
            passed=lambda trailers: trailers,
        )
        self.sink = ClientBody(
            self.to_client,
            head,
            watch,
            knows_chunks=is_chunked,
            is_framed=True,
            has_body=True,
            length=length,
            closing=lambda: False,
            ignores_loss=False,
        )

    async def heard(self) -> bytes:
        """All that the client gets, until the proxy says no more."""
        got = b""
        while data := await self.client.recv(2**16):
            got += data
        return got

    def close(self) -> None:
        self.pump.close()
        self.server.close()
        self.client.close()
        self.to_client.close()
        self.from_server.close()


@asynccontextmanager
async def relaying(reader: BodyReader, length: int | None = None) -> AsyncIterator[World]:
    """An answer whose pump runs during the block."""
    world = World(reader, length)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.pump.run)
        yield world
        nursery.cancel_scope.cancel()
    world.close()


async def relay(world: World) -> None:
    """Relays all of it, and says no more."""
    await relay_at_once(world.source, world.sink)
    world.to_client.shutdown_write()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_the_last_piece_waits_for_room_like_any_other(is_chunked: bool) -> None:
    reader = ChunkedBody(max_extensions=0, max_trailers=100) if is_chunked else LengthBody(len(_LARGE))
    async with relaying(reader, None if is_chunked else len(_LARGE)) as world, trio.open_nursery() as nursery:
        nursery.start_soon(relay, world)
        await wait_all_tasks_blocked()
        world.server.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LARGE), _LARGE) if is_chunked else _LARGE)
        got = await world.heard()
        assert got.partition(b"\r\n\r\n")[2].count(b"x") == len(_LARGE)
        assert not world.to_client.has_tail


async def test_the_last_piece_is_not_lost_where_something_else_waits_for_room() -> None:
    async with relaying(LengthBody(4), 4) as world, trio.open_nursery() as nursery:
        nursery.start_soon(relay, world)
        await wait_all_tasks_blocked()
        world.to_client.send_now(_LARGE)  # as TLS answers by itself now and then
        assert world.to_client.has_tail
        world.server.send(b"last")
        assert (await world.heard()).endswith(b"xlast")


async def test_what_is_broken_at_once_is_cut_at_once() -> None:
    async with relaying(ChunkedBody(max_extensions=0, max_trailers=100)) as world:
        world.server.send(b"nonsense\r\n")
        with pytest.raises(Cut, match="broken"):
            await relay_at_once(world.source, world.sink)
        assert world.sink.has_begun


async def test_a_reset_at_once_does_not_end_what_ends_with_the_connection() -> None:
    async with relaying(OpenBody()) as world:
        world.from_server.send_now(b"not read by the server, so that its end is a reset")
        world.server.close()
        with pytest.raises(Cut, match="broke off"):
            await relay_at_once(world.source, world.sink)
        assert world.sink.has_begun
