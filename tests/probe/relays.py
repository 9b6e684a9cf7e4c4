"""Relays that misbehave: what stands between a client and a server, reduced to one fault each.

They know nothing of HTTP beyond what the fault needs.
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a relay does wrong.

    Attributes:
        idle: seconds of silence after which it acts.
        total: seconds from its first request after which it acts, whatever is said.
        told: set when it is to act, where it does so by no timer.
        how: what it does then: ``fin`` or ``rst`` to both sides; ``mixed`` is FIN to the client and RST to the server;
            ``silent`` forgets the connection; ``client`` or ``server`` is FIN to that side alone; ``keeps`` goes on as
            before, except that the server is not told when the client leaves from then on.
        counts: the directions whose bytes keep a connection alive.
        status: what it answers first, where the server has said nothing yet.
        has_last_chunk: whether it ends the body as if it were whole.
        tries: how often it sends a request that was not answered in time.
    """

    idle: float = float("inf")
    total: float = float("inf")
    told: trio.Event | None = None
    how: str = "fin"
    counts: frozenset[str] = frozenset({"up", "down"})
    status: int | None = None
    has_last_chunk: bool = False
    tries: int = 1


@dataclass
class _Pair:
    """One client with its server."""

    client: trio.SocketStream
    began: float
    last: float
    request: bytearray = field(default_factory=bytearray)
    answered: bool = False
    is_forgotten: bool = False


@asynccontextmanager
async def relay(port: int, fault: Fault) -> AsyncIterator[str]:
    """A relay in front of a port of this machine, and its URL; gone at the end of the block."""
    async with trio.open_nursery() as nursery:

        async def serve(client: trio.SocketStream) -> None:
            async with client:
                now = trio.current_time()
                await _serve(_Pair(client, now, now), port, fault)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _serve(pair: _Pair, port: int, fault: Fault) -> None:
    for number in range(fault.tries):
        async with await trio.open_tcp_stream("127.0.0.1", port) as server:
            if number:
                await server.send_all(pair.request)
                pair.last = trio.current_time()
            has_acted = await _relay(pair, server, fault)
            if has_acted and (pair.answered or number == fault.tries - 1):
                await _act(pair, server, fault)
            if not has_acted or pair.answered:
                return


async def _relay(pair: _Pair, server: trio.SocketStream, fault: Fault) -> bool:
    """Forwards until one side ends; returns whether it was the relay that had enough instead."""
    has_acted = False
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:

            async def pump(direction: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await source.receive_some(_BYTES):
                        if pair.is_forgotten:
                            continue
                        if direction == "up":
                            if not pair.request:
                                pair.began = trio.current_time()
                            pair.request += data
                        else:
                            pair.answered = True
                        if direction in fault.counts:
                            pair.last = trio.current_time()
                        await sink.send_all(data)
                if fault.how == "keeps" and direction == "up" and not pair.is_forgotten:
                    await trio.sleep_forever()
                if not pair.is_forgotten:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pump, "up", pair.client, server)
            nursery.start_soon(pump, "down", server, pair.client)
            if fault.told is not None:
                await fault.told.wait()
            while fault.how != "keeps" and fault.told is None:
                due = min(pair.last + fault.idle, pair.began + fault.total)
                if due <= trio.current_time():
                    break
                await trio.sleep_until(due)
            if fault.how in ("silent", "client", "server"):
                pair.is_forgotten = True
                if fault.how != "silent":
                    await (pair.client if fault.how == "client" else server).aclose()
                await trio.sleep_forever()
            if fault.how == "keeps":
                await trio.sleep_forever()
            has_acted = True
            nursery.cancel_scope.cancel()
    return has_acted


async def _act(pair: _Pair, server: trio.SocketStream, fault: Fault) -> None:
    with suppress(trio.BrokenResourceError):
        if fault.status is not None and not pair.answered:
            page = b"HTTP/1.1 %d Late\r\nServer: relay\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % fault.status
            await pair.client.send_all(page)
        elif fault.has_last_chunk:
            await pair.client.send_all(b"0\r\n\r\n")
    if fault.how == "rst":
        _reset(pair.client)
    if fault.how in ("rst", "mixed"):
        _reset(server)


def _reset(stream: trio.SocketStream) -> None:
    """Has closing send a reset (SO_LINGER of zero seconds)."""
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
