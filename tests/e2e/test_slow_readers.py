"""Readers that take a little now and then: cut off by the minimum rate, on every transport and in plain answers."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from clients import TEXT, Closed, Wire, frame, head, open_websocket, subscribe
from encryption import tls_section
from serving import about, harmless, metrics_of, serving, until

import tricast

BLOCK = "x" * 2**18
#: The rate is one that a reader of 50 KB a second does not reach, so that nobody has to wait for long.
LIMITS = {"send_buffer": 4096, "write_timeout": "300ms", "write_rate": "10MB"}
SECTIONS = {
    "publish": {"max_event": "1MiB"},
    "poll": {"max_bytes": "1MiB"},
    "websocket": {"handler": [{"path": "/talk", "handler": "talking:talk"}]},
}
Begin = Callable[[tricast.Server], Awaitable[Wire]]


async def live(server: tricast.Server, transport: str) -> Wire:
    """Somebody who is there when much is published."""
    subscriber = await subscribe(transport, server.url, "news", receive_buffer=4096)
    if transport == "poll":
        await until(lambda: server.hub.statistics().subscribers > 0)
    await server.hub.publish("news", BLOCK)
    return subscriber.wire


async def late(server: tricast.Server, transport: str) -> Wire:
    """Somebody who comes for what was published before."""
    for _ in range(4):
        await server.hub.publish("news", BLOCK)
    wire = await Wire.open(server.url, receive_buffer=4096)
    accept = ("Accept: text/event-stream",) if transport == "sse" else ()
    await wire.send(head("GET", "/events?topic=news&last_id=0-0", *accept))
    return wire


async def application(server: tricast.Server) -> Wire:
    """Somebody for whom a handler has much to say."""
    websocket = await open_websocket(server.url, "/talk", receive_buffer=4096)
    await websocket.wire.send(frame(TEXT, b"0"))
    return websocket.wire


async def page(server: tricast.Server) -> Wire:
    """Somebody who asks for files, again and again, in one go."""
    wire = await Wire.open(server.url, receive_buffer=4096)
    await wire.send(head("GET", "/tricast.js") * 20)
    return wire


WAYS: dict[str, Begin] = {
    "live poll": lambda server: live(server, "poll"),
    "live sse": lambda server: live(server, "sse"),
    "live ws": lambda server: live(server, "ws"),
    "late poll": lambda server: late(server, "poll"),
    "late sse": lambda server: late(server, "sse"),
    "application": application,
    "page": page,
}


async def read_slowly(wire: Wire) -> None:
    """Reads a little every few milliseconds.

    Raises:
        Closed: the server has cut it off.
    """
    while True:
        await wire.exactly(500)
        await trio.sleep(0.01)


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_slow_reader_is_cut_off(way: str, has_tls: bool) -> None:
    admin = {"enabled": True, "port": 0}
    async with serving(limits=LIMITS, admin=admin, **SECTIONS, **({"tls": tls_section()} if has_tls else {})) as server:
        with await WAYS[way](server) as wire, pytest.raises(Closed):
            await read_slowly(wire)
        lost = about(await metrics_of(server.admin_urls[0]), "connections_lost_total")
        # Which it is depends on how much the kernel keeps, and so on when there is room for the first time.
        assert lost in ({("write-rate",): 1}, {("write-timeout",): 1})


async def test_a_reader_that_is_slow_but_not_too_slow_gets_everything() -> None:
    async with serving(limits=LIMITS | {"write_rate": "1KB", "write_timeout": "1h"}, **SECTIONS) as server:
        with await subscribe("sse", server.url, "news", receive_buffer=4096) as subscriber:
            await server.hub.publish("news", BLOCK)
            for _ in range(30):
                await subscriber.wire.more()
                await trio.sleep(0.01)
            assert (await subscriber.event()).data == BLOCK
            await server.hub.publish("news", "still there")
            assert (await subscriber.event()).data == "still there"


async def test_many_that_read_nothing_cost_the_others_nothing() -> None:
    limits = {"send_buffer": 4096, "write_timeout": "200ms"}
    async with harmless(limits=limits, **SECTIONS) as server:
        wires = [(await subscribe("sse", server.url, "news", receive_buffer=4096)).wire for _ in range(50)]
        for _ in range(4):
            await server.hub.publish("news", BLOCK)
        await until(lambda: server.connections <= 2)
        for wire in wires:
            wire.close()
