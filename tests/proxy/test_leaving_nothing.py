"""Each await on a peer is cut off there, in every way; and ten thousand ends of all kinds. Nothing is left of any."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Closed, Wire, ask, head, read_answer, read_head
from clocks import HANG_SECONDS
from encryption import tls_section
from forwarding import forwarding
from proxy.origins import OK, Origin, Visit, origin
from serving import open_descriptors, until, what_is_open

from tricast_proxy.proxy import Proxy
from tricast_proxy.timers import Watch

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
#: A part of an answer, after which comes what the path says.
PARTS = {
    "nothing": b"",
    "head": b"HTTP/1.1 200 OK\r\nContent-",
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "body": CHUNKED + b"5\r\nhello\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    "open": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "nonsense": b"nonsense\r\n\r\n",
    "chunk": CHUNKED + b"nonsense\r\n",
    "more": OK + OK,
    "ok": OK,
    "tunnel": SWITCHED + b"hello",
}


async def obey(visit: Visit) -> None:
    """Does what the path says: a part of an answer, and then an end, or none."""
    while True:
        asked = await visit.head()
        _, part, end = asked.line.split()[1].split("/")
        if end == "unread":
            await trio.sleep_forever()
        await visit.wire.send(PARTS[part])
        if end == "flood":
            while True:
                await visit.wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n" if part == "body" else b"x" * 65536)
        elif end == "stay":
            await visit.wire.rest()
            return
        elif end == "reset":
            visit.wire.reset()
            return
        elif end == "close":
            return


class World:
    """A proxy and an origin that obeys paths.

    Attributes:
        proxy: the proxy.
        server: the origin.
    """

    def __init__(self, proxy: Proxy, server: Origin) -> None:
        self.proxy = proxy
        self.server = server

    def assert_idle(self) -> None:
        """There is nothing that is not there when there are no clients."""
        assert not self.proxy.clients
        assert [server.active for server in self.proxy.servers] == [0] * len(self.proxy.servers)
        waited_for = [entry[2] for entry in self.proxy._shared.timers._heap if not entry[2].has_ended]
        assert not [one for one in waited_for if isinstance(one, Watch)]


# One at a time

Stage = Callable[[World, Wire], Awaitable[None]]


async def head_is_awaited(world: World, wire: Wire) -> None:
    await until(lambda: bool(world.proxy.clients))


async def head_is_read(world: World, wire: Wire) -> None:
    await wire.send(b"GET / HTTP/1.1\r\n")
    await until(lambda: any(client.data for client in world.proxy.clients))


async def next_request_is_awaited(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/ok/go"))
    await read_answer(wire)


async def body_is_read(world: World, wire: Wire) -> None:
    await wire.send(head("POST", "/nothing/stay", "Content-Length: 9") + b"hello")
    await world.server.wait_requests(1)


async def body_is_stored(world: World, wire: Wire) -> None:
    # What is not known to have a length must be had whole for a server of HTTP/1.0, which is the second one.
    await wire.send(head("POST", "/nothing/stay", "Transfer-Encoding: chunked", "X-Stored: 1") + b"5\r\nhello\r\n")
    await until(lambda: bool(world.proxy.clients))


async def body_is_not_taken(world: World, wire: Wire) -> None:
    await wire.send(head("POST", "/nothing/unread", "Content-Length: 100000000"))
    with trio.move_on_after(0.1):
        await wire.send(b"x" * 10**8)
    await world.server.wait_requests(1)


async def answer_is_awaited(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/nothing/stay"))
    await world.server.wait_requests(1)


async def answer_has_begun_to_come(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/head/stay"))
    await world.server.wait_requests(1)


async def final_answer_is_awaited(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/interim/stay"))
    assert (await read_head(wire)).status == 103


async def answer_is_awaited_with_requests_behind_it(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/nothing/stay") + head("GET", "/ok/go") * 100)
    await world.server.wait_requests(1)


async def more_of_the_answer_is_awaited(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/body/stay"))
    assert (await read_head(wire)).status == 200


async def answer_is_not_read(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/body/flood"))
    await until(lambda: any(client.connection.has_tail for client in world.proxy.clients))


async def tunnel_is_silent(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/tunnel/stay", *WEBSOCKET_HEADERS))
    assert (await read_head(wire)).status == 101
    await wire.exactly(5)


async def tunnel_is_not_read_by_the_client(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/tunnel/flood", *WEBSOCKET_HEADERS))
    await until(lambda: any(client.tunnel and client.connection.has_tail for client in world.proxy.clients))


async def tunnel_is_not_read_by_the_server(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/nothing/unread", *WEBSOCKET_HEADERS, "X-Blind: 1"))
    await world.server.wait_requests(1)
    with trio.move_on_after(0.1):
        await wire.send(b"x" * 10**8)


async def tunnel_is_closed_by_the_server(world: World, wire: Wire) -> None:
    await wire.send(head("GET", "/tunnel/close", *WEBSOCKET_HEADERS))
    assert (await wire.rest()).endswith(b"hello")


async def last_answer_is_lingered_for(world: World, wire: Wire) -> None:
    await wire.send(b"nonsense\r\n\r\n")
    assert (await read_answer(wire)).status == 400


STAGES: list[Stage] = [
    head_is_awaited,
    head_is_read,
    next_request_is_awaited,
    body_is_read,
    body_is_stored,
    body_is_not_taken,
    answer_is_awaited,
    answer_has_begun_to_come,
    final_answer_is_awaited,
    answer_is_awaited_with_requests_behind_it,
    more_of_the_answer_is_awaited,
    answer_is_not_read,
    tunnel_is_silent,
    tunnel_is_not_read_by_the_client,
    tunnel_is_not_read_by_the_server,
    tunnel_is_closed_by_the_server,
    last_answer_is_lingered_for,
]


#: Those in which the origin reads nothing.
NOT_TAKEN = (body_is_not_taken, tunnel_is_not_read_by_the_server)


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", ["close", "reset", "cancel", "drain"])
@pytest.mark.parametrize("stage", STAGES)
async def test_nothing_is_left(stage: Stage, how: str, has_tls: bool) -> None:
    before = open_descriptors()
    sections = {
        "drain": {"grace": "30ms"},
        "client": {"header_timeout": "1h", "body_timeout": "1h", "send_timeout": "1h", "keepalive_timeout": "1h"},
        # That a client has left is not seen while what it said before finds no taker.
        "upstream": {"send_timeout": "200ms" if stage in NOT_TAKEN else "1h", "keepalive_timeout": "1h"},
        "tunnel": {"idle_timeout": "1h", "check_101": stage is not tunnel_is_not_read_by_the_server},
        "request": {"buffering": "full" if stage is body_is_stored else "off"},
        "tls": tls_section() if has_tls else {},
    }
    with ExitStack() as wires:
        async with origin(obey) as server:
            async with forwarding(server.url, **sections) as proxy:
                world = World(proxy, server)
                during = open_descriptors()
                wire = wires.enter_context(await Wire.open(proxy.url, receive_buffer=4096))
                await stage(world, wire)
                if how == "drain":
                    proxy.drain()
                    await proxy.wait_stopped()
                    world.assert_idle()
                elif how != "cancel":  # that is what the end of the block does, with the client still there
                    getattr(wire, how)()
                    await until(lambda: not proxy.clients)
                    world.assert_idle()
                    if stage is next_request_is_awaited:
                        assert server.open == 1  # it waits for whoever comes next
                    elif stage not in NOT_TAKEN:  # an origin that does not read does not notice
                        await server.wait_left()
                        assert not open_descriptors() - during
            assert not proxy.clients
            assert [one.active for one in proxy.servers] == [0]
    assert not open_descriptors() - before


@pytest.mark.parametrize("mode", ["http", "tcp"])
@pytest.mark.parametrize("how", ["close", "cancel", "drain"])
async def test_nothing_is_left_of_one_for_whom_a_connection_is_opened(how: str, mode: str) -> None:
    before = open_descriptors()
    # A server whose backlog is full lets nobody in.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as wires:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        wires.enter_context(socket.create_connection(listener.getsockname()))
        sections = {"upstream": {"connect_timeout": "300ms"}, "drain": {"grace": "30ms"}, "retry": {"tries": 1}}
        async with forwarding(address, proxy={"mode": mode}, **sections) as proxy:
            wire = wires.enter_context(await Wire.open(proxy.url))
            await wire.send(head("GET", "/"))
            await until(lambda: any(server.counts["requests"] for server in proxy.servers))
            if how == "drain":
                proxy.drain()
                await proxy.wait_stopped()
            elif how == "close":
                wire.close()
                await until(lambda: not proxy.clients)
        assert not proxy.clients
    assert not open_descriptors() - before


async def test_nothing_is_left_of_a_handshake_that_does_not_go_on() -> None:
    before = open_descriptors()
    async with forwarding("127.0.0.1:1", tls=tls_section(), client={"header_timeout": "100ms"}) as proxy:
        with await Wire.open(proxy.url.replace("https", "http")) as wire:
            await wire.send(b"\x16\x03\x01")
            await wire.rest()
            await until(lambda: not proxy.clients)
        assert proxy.counters.accepted == 1
    assert not open_descriptors() - before


# Ten thousand

ENDS = 10_000
_TIMERS = {
    "client": {"header_timeout": "400ms", "body_timeout": "400ms", "keepalive_timeout": "400ms"},
    "upstream": {"response_header_timeout": "400ms", "read_timeout": "400ms", "keepalive_timeout": "400ms"},
    "tunnel": {"idle_timeout": "400ms"},
}

Leave = Callable[[Wire], None]
Kind = Callable[[Wire], Awaitable[None]]


def says(data: bytes, leave: Leave) -> Kind:
    """Says something, and leaves at once."""

    async def end(wire: Wire) -> None:
        await wire.send(data)
        leave(wire)

    return end


def hears(data: bytes, leave: Leave | None = None) -> Kind:
    """Says something, and leaves when it has heard something, or at the end of the connection."""

    async def end(wire: Wire) -> None:
        await wire.send(data)
        if leave is None:
            await wire.rest()
        else:
            await wire.receive()
            leave(wire)

    return end


def _kinds() -> list[Kind]:
    leaves = (Wire.close, Wire.reset, Wire.finish_sending)
    begun = [
        b"",
        b"GET / HT",
        head("GET", "/ok/go"),
        head("GET", "/ok/go") * 3 + b"GET",
        head("GET", "/nothing/stay"),
        head("GET", "/body/stay"),
        head("GET", "/body/flood"),
        head("GET", "/tunnel/stay", *WEBSOCKET_HEADERS) + b"frames",
        head("GET", "/tunnel/flood", *WEBSOCKET_HEADERS),
        head("POST", "/nothing/stay", "Content-Length: 9") + b"hello",
        head("POST", "/ok/go", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n",
    ]
    answered = [head("GET", f"/{part}/{end}", "Connection: close") for part in PARTS for end in ("close", "reset")]
    upgraded = [head("GET", f"/tunnel/{end}", *WEBSOCKET_HEADERS) for end in ("close", "reset")]
    late = [
        b"",
        b"GET / HT",
        *(head("GET", f"/{part}/stay") for part in ("nothing", "head", "interim", "body", "open")),
    ]
    late += [head("POST", "/nothing/stay", "Content-Length: 9") + b"hello", head("GET", "/ok/go")]
    late += [head("GET", "/tunnel/stay", *WEBSOCKET_HEADERS)]
    refused = [b"nonsense\r\n\r\n", head("CONNECT", "a:1"), head("POST", "/ok/go", "Transfer-Encoding: chunked") + b"x"]
    return [
        *(says(data, leave) for data in begun for leave in leaves),
        *(hears(data, leave) for data in begun[2:9] for leave in leaves),
        *map(hears, answered + upgraded + late + refused),
    ]


async def test_nothing_is_left_of_ten_thousand_ends() -> None:
    kinds, limit = _kinds(), trio.CapacityLimiter(40)
    done = 0

    async def one(url: str, kind: Kind) -> None:
        nonlocal done
        async with limit:
            with await Wire.open(url, receive_buffer=4096) as wire, suppress(Closed):
                await kind(wire)
        done += 1

    async with origin(obey) as server, forwarding(server.url, within=4 * HANG_SECONDS, **_TIMERS) as proxy:
        world = World(proxy, server)
        assert (await ask(proxy.url, "GET", "/ok/go")).status == 200
        await server.wait_left()
        before = what_is_open()
        async with trio.open_nursery() as nursery:
            for number in range(ENDS):
                nursery.start_soon(one, proxy.url, kinds[number % len(kinds)])
        await until(lambda: not proxy.clients)
        await server.wait_left()
        assert done == ENDS
        world.assert_idle()
        await until(lambda: not len(proxy._shared.timers))
        assert not what_is_open() - before
        # And it is as good as new.
        assert (await ask(proxy.url, "GET", "/ok/go")).status == 200
        assert {"2xx", "4xx", "5xx"} <= set(proxy.counters.requests)
        assert proxy.counters.tunnels  # how many become one in time depends on how busy the machine is
