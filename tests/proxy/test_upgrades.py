"""Upgrades through the proxy, and what is left of them when one is refused, cut, or drained."""

from typing import Any

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Closed, Wire, ask, head, read_answer, read_head
from clocks import HANG_SECONDS, jump
from encryption import tls_section
from forwarding import forwarding
from proxy.origins import OK, Visit, always, once, origin, silent
from serving import until
from trio.testing import MockClock

from tricast import connection

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: y\r\n\r\n"
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA")
UPGRADE = head("GET", "/ws", *WEBSOCKET_HEADERS)


async def echo(visit: Visit) -> None:
    """Agrees to the first protocol that it is asked for, and says everything again; without one, answers."""
    while not (protocol := (await visit.request()).all("upgrade")):
        await visit.wire.send(OK)
    await visit.wire.send(ACCEPTED.replace(b"websocket", protocol[0].encode()))
    while await visit.wire.receive():
        await visit.wire.send(bytes(visit.wire.buffer))
        visit.wire.buffer.clear()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_bytes_go_through_both_ways_and_nothing_is_made_of_them(scheme: str) -> None:
    tls = {"tls": tls_section()} if scheme == "https" else {}
    async with origin(echo) as server, forwarding(server.url, **tls) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE)
            got = await read_head(wire)
            assert (got.status, got.headers) == (101, {"x": "y", "connection": "upgrade", "upgrade": "websocket"})
            for data in (b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 4000):
                await wire.send(data)
                assert await wire.exactly(len(data)) == data
        await server.wait_left()
        [asked] = server.requests
        assert asked.line == "GET /ws HTTP/1.1"
        assert asked.all("connection") == ["upgrade"]
        assert asked.all("upgrade") == ["websocket"]
        assert asked.all("sec-websocket-key") == ["dGhlIHNhbXBsZSBub25jZQ=="]
        assert proxy.counters.tunnels == 1


async def test_what_comes_with_the_handshake_goes_through() -> None:
    async def talk_first(visit: Visit) -> None:
        await visit.request()
        assert not visit.wire.buffer
        await visit.wire.send(ACCEPTED + b"from the server")
        assert await visit.wire.exactly(15) == b"from the client"
        await visit.wire.send(b" and on")

    async with origin(talk_first) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE + b"from the client")
            assert (await read_head(wire)).status == 101
            assert await wire.exactly(22) == b"from the server and on"
            assert await wire.rest() == b""


async def test_more_than_is_held_may_come_with_the_handshake() -> None:
    go_on = trio.Event()

    async def take_late(visit: Visit) -> None:
        await visit.request()
        await go_on.wait()
        await visit.wire.send(ACCEPTED)
        assert await visit.wire.exactly(2_000_000) == b"x" * 2_000_000
        await visit.wire.send(b"all")

    async with origin(take_late) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.send, UPGRADE + b"x" * 2_000_000)
                await server.wait_requests(1)
                go_on.set()
                assert (await read_head(wire)).status == 101
                assert await wire.exactly(3) == b"all"


@pytest.mark.parametrize(
    ("policy", "fields", "seen", "status"),
    [
        ("any", WEBSOCKET_HEADERS, ["websocket"], 101),
        ("any", H2C, ["h2c"], 101),
        ("any", ("Connection: upgrade", "Upgrade: h2c, websocket"), ["h2c, websocket"], 101),
        ("any", ("Upgrade: websocket",), [], 200),
        ("any", ("Connection: upgrade",), [], 200),
        ("any", (*WEBSOCKET_HEADERS, "Content-Length: 2"), [], 200),
        ("websocket", WEBSOCKET_HEADERS, ["websocket"], 101),
        ("websocket", ("Connection: UPGRADE", "Upgrade: WebSocket"), ["WebSocket"], 101),
        ("websocket", H2C, [], 200),
        ("websocket", ("Connection: upgrade", "Upgrade: h2c, websocket"), [], 200),
        ("strip", WEBSOCKET_HEADERS, [], 200),
        ("deny", WEBSOCKET_HEADERS, None, 403),
        ("deny", (), [], 200),
    ],
)
async def test_which_upgrades_are_forwarded(
    policy: str, fields: tuple[str, ...], seen: list[str] | None, status: int
) -> None:
    async def choose_the_first(visit: Visit) -> None:
        asked = await visit.request()
        protocol = ", ".join(asked.all("upgrade")).split(",")[0]
        await visit.wire.send(ACCEPTED.replace(b"websocket", protocol.encode()) if protocol else OK)

    async with origin(choose_the_first) as server, forwarding(server.url, tunnel={"upgrade": policy}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", *fields) + (b"ab" if "Content-Length: 2" in fields else b""))
            got = await read_head(wire)
            assert got.status == status
            if seen is None:
                assert got.headers["connection"] == "close"
                assert not server.visits
            else:
                assert server.requests[0].all("upgrade") == seen
                assert server.requests[0].all("connection") == (["upgrade"] if seen else [])
                if policy == "strip":
                    assert server.requests[0].all("sec-websocket-version") == ["13"]


async def test_http_1_0_knows_no_upgrades() -> None:
    async with origin(echo) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", *WEBSOCKET_HEADERS, version="1.0"))
            assert (await read_answer(wire)).status == 200
        assert server.requests[0].all("upgrade") == []


async def test_which_status_denies() -> None:
    async with origin(echo) as server, forwarding(server.url, tunnel={"upgrade": "deny", "deny_status": 426}) as proxy:
        got = await ask(proxy.url, "GET", "/", *WEBSOCKET_HEADERS)
        assert (got.status, got.headers["proxy-status"]) == (426, "tricast; error=http_request_denied")
        assert not server.visits


async def test_a_refused_upgrade_is_http_and_stays_it() -> None:
    refusal = b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: a, b\r\nContent-Length: 2\r\n\r\nno"
    async with origin(always(refusal, OK)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            inner = head("GET", "/inner", "X-Forwarded-For: 10.0.0.1", host="inner")
            await wire.send(UPGRADE + inner)
            got = await read_answer(wire)
            assert (got.status, got.headers["upgrade"], got.headers["connection"]) == (426, "a, b", "upgrade")
            assert (await read_answer(wire)).status == 200
        # What came behind it was forwarded as a request, with all that is done to one.
        assert server.requests[1].line == "GET /inner HTTP/1.1"
        assert server.requests[1].all("via") == ["1.1 tricast"]
        assert server.requests[1].all("x-forwarded-for") == ["10.0.0.1, 127.0.0.1"]


async def test_frames_behind_a_refused_upgrade_reach_nobody() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE + b"\x81\x85abcd" + b"\r\n\r\n")
            assert (await read_answer(wire)).status == 200
            got = await read_answer(wire)
            assert (got.status, got.headers["connection"]) == (400, "close")
            assert await wire.rest() == b""
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("upgrade", "answered"),
    [("", "websocket"), ("websocket", "h2c"), ("websocket", ""), ("websocket", "websocket, h2c"), ("a, b", "c")],
)
async def test_what_nobody_asked_for_is_no_tunnel(upgrade: str, answered: str) -> None:
    lines = f"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {answered}\r\n\r\nevil"
    fields = ("Connection: upgrade", f"Upgrade: {upgrade}") if upgrade else ()
    async with origin(once(lines.encode())) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", *fields))
            got = await read_answer(wire)
            assert got.status == 502
            assert ("connection" in got.headers) == bool(upgrade)  # the client may have gone on as if it were a yes
            assert b"evil" not in got.body
        await server.wait_left()


async def test_an_upgrade_that_fails_ends_the_connection() -> None:
    async with forwarding("127.0.0.1:1") as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE + b"frames")
            got = await read_answer(wire)
            assert (got.status, got.headers["connection"]) == (502, "close")
            assert await wire.rest() == b""


async def test_a_proxy_that_does_not_look_is_a_blind_one() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, tunnel={"check_101": False}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE + head("GET", "/inner", host="inner"))
            for _ in range(2):
                assert await wire.exactly(len(OK)) == OK
        assert server.requests[1].fields == [("Host", "inner")]


# Ends


@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
async def test_a_client_that_leaves_takes_the_server_along(end: Any) -> None:
    async with origin(echo) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE)
            await read_head(wire)
            end(wire)
            await server.wait_left()
        await until(lambda: not proxy.clients)


async def test_what_a_server_says_last_reaches_a_client_that_is_still_talking(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LINGER_SECONDS", "_LINGER_SILENCE_SECONDS"):  # the client is in the same process
        monkeypatch.setattr(connection, name, HANG_SECONDS)

    async def say_goodbye(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(ACCEPTED)
        await visit.wire.exactly(1)
        await visit.wire.send(b"x" * 300_000 + b"goodbye")
        visit.wire.finish_sending()
        await visit.wire.rest()

    async def talk(wire: Wire) -> None:
        try:
            while True:
                await wire.send(b"y" * 1000)
                await trio.sleep(0.001)
        except Closed:
            return

    async with origin(say_goodbye) as server, forwarding(server.url, tunnel={"half_close": "close-both"}) as proxy:
        with await Wire.open(proxy.url, receive_buffer=8192) as wire:
            await wire.send(UPGRADE)
            await read_head(wire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, wire)
                await trio.sleep(0.1)
                assert (await wire.exactly(300_007)).endswith(b"goodbye")
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("half_close", ["forward", "close-both", "forward-client"])
async def test_a_client_that_stops_sending(half_close: str) -> None:
    async def answer_at_the_end(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(ACCEPTED)
        assert await visit.wire.rest() == b"last"
        await visit.wire.send(b"heard")

    async with origin(answer_at_the_end) as server, forwarding(server.url, tunnel={"half_close": half_close}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE)
            await read_head(wire)
            await wire.send(b"last")
            wire.finish_sending()
            assert await wire.rest() == (b"" if half_close == "close-both" else b"heard")
        await server.wait_left()


@pytest.mark.parametrize(
    ("on_idle", "last"), [("fin", b""), ("close-frame", b"\x88\x02\x03\xe9"), ("rst", None), ("silent-then-rst", None)]
)
@pytest.mark.parametrize("abort", ["fin", "rst"])
async def test_how_an_idle_tunnel_ends(on_idle: str, last: bytes | None, abort: str) -> None:
    ends = []

    async def listen(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(ACCEPTED)
        try:
            ends.append(await visit.wire.receive())
        except Closed:
            ends.append(None)

    sections = {"tunnel": {"idle_timeout": "100ms", "on_idle": on_idle}, "upstream": {"abort": abort}}
    async with origin(listen) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE)
            await read_head(wire)
            if on_idle == "silent-then-rst":
                with trio.move_on_after(0.3):
                    raise AssertionError(await wire.receive())
                await wire.send(b"is anybody there?")
            if last is None:
                with pytest.raises(Closed, match="reset"):
                    await wire.receive()
            else:
                assert await wire.rest() == last
        if on_idle == "silent-then-rst":
            await until(lambda: bool(proxy.counters.accepted))
            return  # the server is not told anything until it says something
        await server.wait_left()
        assert ends == [False if abort == "fin" else None]
        assert proxy.counters.cuts == {"tunnel-idle": 1}


# Going down


async def test_going_down_ends_what_is_idle_and_waits_for_what_is_not() -> None:
    go_on = trio.Event()

    async def answer_later(visit: Visit) -> None:
        while True:
            asked = await visit.request()
            if asked.line.startswith("GET /later"):
                await go_on.wait()
            await visit.wire.send(OK)

    async with origin(answer_later) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as idle, await Wire.open(proxy.url) as new, await Wire.open(proxy.url) as busy:
            await idle.send(head("GET", "/"))
            await read_answer(idle)
            await busy.send(head("GET", "/later") + head("GET", "/"))
            await server.wait_requests(2)
            with await Wire.open(proxy.url) as partly:
                await partly.send(b"GET / HT")
                await until(lambda: proxy.counters.accepted == 4)
                await until(lambda: sum(client.data.startswith(b"GET") for client in proxy.clients) >= 1)
                proxy.drain()
                assert await idle.rest() == b""
                assert await new.rest() == b""
                with pytest.raises(OSError, match="refused"):
                    await Wire.open(proxy.url)
                go_on.set()
                got = await read_answer(busy)
                assert (got.status, got.headers["connection"]) == (200, "close")
                assert await busy.rest() == b""
                await partly.send(b"TP/1.1\r\nHost: a\r\n\r\n")
                got = await read_answer(partly)
                assert (got.status, got.headers["connection"]) == (200, "close")
        await proxy.wait_stopped()
        await server.wait_left()  # those that waited to be used again as well


@pytest.mark.parametrize(
    ("cut", "fields", "last"),
    [
        ("close-frame", WEBSOCKET_HEADERS, b"\x88\x02\x03\xf4"),
        ("fin", WEBSOCKET_HEADERS, b""),
        ("close-frame", H2C, b""),
    ],
)
async def test_going_down_cuts_tunnels_after_the_grace(
    cut: str, fields: tuple[str, ...], last: bytes, running_clock: MockClock
) -> None:
    async with origin(echo) as server, forwarding(server.url, drain={"grace": "30s", "cut": cut}) as proxy:
        with await Wire.open(proxy.url) as wire, await Wire.open(proxy.url) as waiting:
            await wire.send(head("GET", "/", *fields))
            await read_head(wire)
            proxy.drain()
            await wire.send(b"still")
            assert await wire.exactly(5) == b"still"
            await wire.send(b"nobody reads this any more" * 1000)
            await jump(running_clock, 30)
            received = await wire.rest()
            assert received.endswith(last)
            assert await waiting.rest() == b""
        await proxy.wait_stopped()
        await server.wait_left()


async def test_going_down_cuts_answers_after_the_grace() -> None:
    async def stall(visit: Visit) -> None:
        asked = await visit.request()
        if asked.line.startswith("GET /begun"):
            await visit.wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        await visit.wire.rest()

    async with origin(stall) as server, forwarding(server.url, drain={"grace": "100ms"}) as proxy:
        with await Wire.open(proxy.url) as begun, await Wire.open(proxy.url) as waiting:
            await begun.send(head("GET", "/begun"))
            await waiting.send(head("GET", "/"))
            await server.wait_requests(2)
            await read_head(begun)
            proxy.drain()
            assert await begun.rest() == b"2\r\nok\r\n"
            assert await waiting.rest() == b""
        await proxy.wait_stopped()
        await server.wait_left()


async def test_going_down_does_not_wait_for_clients_that_never_close() -> None:
    async with origin(echo) as server, forwarding(server.url, drain={"grace": "0s"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(UPGRADE)
            await read_head(wire)
            proxy.drain()
            with trio.fail_after(HANG_SECONDS):
                await proxy.wait_stopped()
            assert await wire.exactly(4) == b"\x88\x02\x03\xf4"


async def test_going_down_with_nobody_there() -> None:
    async with origin(silent) as server, forwarding(server.url) as proxy:
        proxy.drain()
        await proxy.wait_stopped()
        assert not server.visits
