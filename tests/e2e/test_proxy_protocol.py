"""A listener that wants the PROXY protocol: who comes without it, or from elsewhere, does not come in."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from clients import TRANSPORTS, Closed, Wire, ask, head, read_answer, subscription_headers
from encryption import tls_section
from serving import open_descriptors, serving, until
from structlog.testing import LogCapture

import tricast
from tricast.listening import _Arrival

LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n"
OTHER_LINE = LINE.replace(b"192.0.2.1", b"192.0.2.9")
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_BOTH = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + bytes(4)
BINARY = SIGNATURE + b"\x21\x11" + len(_BOTH).to_bytes(2) + _BOTH
WITH_TLVS = SIGNATURE + b"\x21\x11" + (len(_BOTH) + 7).to_bytes(2) + _BOTH + b"\x04\x00\x04\x00\x00\x00\x00"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UNKNOWN = b"PROXY UNKNOWN\r\n"
SECTION = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}


async def introduced(server: tricast.Server, introduction: bytes) -> Wire:
    return await Wire.open(server.url, introduction=introduction)


async def client_of(server: tricast.Server, records: LogCapture, introduction: bytes, *headers: str) -> str:
    """Who the server says has made a request."""
    with await introduced(server, introduction) as wire:
        await wire.send(head("GET", "/healthz", *headers))
        assert (await read_answer(wire)).status == 200
    entry = [entry for entry in records.entries if entry["event"] == "request"][-1]
    return str(entry.get("client", entry["peer"]))


def settled(server: tricast.Server) -> bool:
    return server.connections == len(server._runtime.places) == 0


@pytest.mark.parametrize("tls", [{}, tls_section()], ids=["plain", "tls"])
async def test_who_is_introduced_is_the_client(tls: dict[str, str]) -> None:
    records = LogCapture()
    async with serving(records=records, server=SECTION, tls=tls, logging={"access": True}) as server:
        for introduction in (LINE, BINARY, WITH_TLVS):
            assert await client_of(server, records, introduction) == "192.0.2.1"
        assert await client_of(server, records, LOCAL) == "127.0.0.1"
        assert await client_of(server, records, UNKNOWN) == "unknown"
        # The one introduced is not trusted, whoever introduces it; the proxy itself is.
        assert await client_of(server, records, LINE, "X-Forwarded-For: 198.51.100.1") == "192.0.2.1"
        assert await client_of(server, records, UNKNOWN, "X-Forwarded-For: 198.51.100.1") == "unknown"
        assert await client_of(server, records, LOCAL, "X-Forwarded-For: 198.51.100.1") == "198.51.100.1"
        inner = LINE.replace(b"192.0.2.1", b"127.0.0.1")
        assert await client_of(server, records, inner, "X-Forwarded-For: 198.51.100.1") == "198.51.100.1"
        await until(lambda: settled(server))
        assert not server._runtime.counters.refusals
        assert not server._runtime.counters.failed


@pytest.mark.parametrize("introduction", [LINE, BINARY, WITH_TLVS, LOCAL])
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_it_may_come_in_pieces_and_with_all_the_rest(introduction: bytes, step: int) -> None:
    data = introduction + head("GET", "/healthz") + head("GET", "/readyz")
    async with serving(server=SECTION) as server:
        with await Wire.open(server.url) as wire:
            for start in range(0, len(data), step):
                await wire.send(data[start : start + step])
                await trio.testing.wait_all_tasks_blocked()
            assert (await read_answer(wire)).json() == {"status": "ok"}
            assert (await read_answer(wire)).json() == {"status": "ready"}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_places_are_the_clients(transport: str) -> None:
    async with serving(server=SECTION, limits={"connections_per_address": 1}) as server:
        request = head("GET", "/events?topic=news", *subscription_headers(transport))
        with ExitStack() as wires:
            for introduction in (LINE, OTHER_LINE, LOCAL, LOCAL):
                await wires.enter_context(await introduced(server, introduction)).send(request)
            await until(lambda: server.hub.statistics().subscribers == 4)
            with await introduced(server, BINARY) as wire:
                await wire.send(request)
                answer = await read_answer(wire)
                assert (answer.status, answer.code) == (429, "limit-exceeded")
                assert await wire.rest() == b""
            assert server._runtime.counters.refusals == {"limits.connections_per_address": 1}
        await until(lambda: settled(server))
        with await introduced(server, LINE) as wire:
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200


async def test_a_client_that_opens_thousands_behind_a_proxy_is_dealt_with_shortly() -> None:
    async with serving(server=SECTION, limits={"connections_per_address": 1}) as server:
        with await introduced(server, LINE):
            for _ in range(50):
                (await introduced(server, LINE)).close()
            await until(lambda: server._runtime.counters.refused == 50)
            with await introduced(server, OTHER_LINE) as wire:
                await wire.send(head("GET", "/healthz"))
                assert (await read_answer(wire)).status == 200
        await until(lambda: settled(server))


async def test_all_together_who_come_too_fast_are_dealt_with_shortly() -> None:
    """Also behind one proxy no more of them are told at length than without: their places are others'."""
    limits: dict[str, Any] = {"accept_rate": 1, "reserved_descriptors": 8}
    async with serving(server=SECTION, limits=limits) as server, trio.open_nursery() as nursery:
        with ExitStack() as wires:
            for number in range(50):
                line = LINE.replace(b"192.0.2.1", b"192.0.2.%d" % (number + 10))
                wires.enter_context(await introduced(server, line))
            counters, busy = server._runtime.counters, server._runtime.open
            await until(lambda: counters.accepted == 50 and not any(isinstance(it, _Arrival) for it in busy.values()))
            await trio.testing.wait_all_tasks_blocked()
            assert counters.refused > 10
            assert len(busy) <= 50 - counters.refused + limits["reserved_descriptors"] // 2
        nursery.cancel_scope.cancel()


# Others


@pytest.mark.parametrize("tls", [{}, tls_section()], ids=["plain", "tls"])
async def test_who_is_not_trusted_does_not_come_in(tls: dict[str, str]) -> None:
    async with serving(server=SECTION, tls=tls) as server:
        url = server.url.replace("127.0.0.1", "127.0.0.2@127.0.0.1").replace("https:", "http:")
        for introduction in (LINE, b"", LOCAL) * 5:
            with await Wire.open(url, introduction=introduction) as wire:
                with suppress(Closed):
                    await wire.send(head("GET", "/healthz"))
                assert b"200 OK" not in await wire.rest()
        counters = server._runtime.counters
        assert (counters.refusals, counters.refused) == ({"proxy-protocol-untrusted": 15}, 15)
        assert (counters.accepted, counters.failed) == (0, 0)


@pytest.mark.parametrize(
    "data", [head("GET", "/healthz"), b"\x16\x03\x01\x00\x05", b"PROXY TCP4 a b c d\r\n", SIGNATURE + b"\x31\x11\0\0"]
)
@pytest.mark.parametrize("tls", [{}, tls_section()], ids=["plain", "tls"])
async def test_who_comes_without_is_not_guessed(data: bytes, tls: dict[str, str]) -> None:
    async with serving(server=SECTION, tls=tls) as server:
        with await Wire.open(server.url.replace("https:", "http:")) as wire:
            await wire.send(data)
            if tls:
                assert await wire.rest() == b""
            else:
                answer = await read_answer(wire)
                assert (answer.status, answer.code) == (400, "proxy-protocol-malformed")
                assert await wire.rest() == b""
        await until(lambda: settled(server))
        assert server._runtime.counters.refusals == {"proxy-protocol-malformed": 1}


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 192.0", BINARY[:-1]])
async def test_who_says_nothing_or_not_enough_is_not_waited_for(data: bytes) -> None:
    async with serving(server=SECTION, limits={"head_timeout": "500ms"}) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(data)
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (408, "proxy-protocol-timeout")
        await until(lambda: settled(server))
        assert server._runtime.counters.refusals == {"proxy-protocol-timeout": 1}


@pytest.mark.parametrize("leave", ["close", "reset", "finish_sending"])
@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 192.0", LINE, BINARY[:-1]])
async def test_who_leaves_in_the_middle_leaves_nothing_behind(data: bytes, leave: str) -> None:
    async with serving(server=SECTION, limits={"connections_per_address": 3}) as server:
        before = open_descriptors()
        for _ in range(10):
            with await Wire.open(server.url) as wire:
                await wire.send(data)
                await until(lambda: server.connections > 0)
                getattr(wire, leave)()
                await until(lambda: settled(server))
        assert not open_descriptors() - before
        assert not server._runtime.counters.failed
        assert not server._runtime.counters.refusals


async def test_going_down_does_not_wait_for_introductions() -> None:
    async with trio.open_nursery() as nursery:
        async with serving(server=SECTION, drain={"period": "0s", "grace": "1h"}) as server:
            with await Wire.open(server.url) as wire, await Wire.open(server.url) as other:
                await other.send(b"PROXY TCP4")
                await until(lambda: server.connections == 2)
                server.drain()
                assert await wire.rest() == b""
                assert await other.rest() == b""
                await server.wait_stopped()
        nursery.cancel_scope.cancel()


async def test_being_cut_off_in_the_middle_leaves_nothing_behind() -> None:
    before = open_descriptors()
    async with serving(server=SECTION) as server:
        wire = await Wire.open(server.url)
        await wire.send(b"PROXY TCP4")
        await until(lambda: server.connections == 1)
    wire.close()
    assert server.connections == 0
    assert not open_descriptors() - before


async def test_who_runs_the_server_needs_no_introduction() -> None:
    async with serving(server=SECTION, admin={"enabled": True, "port": 0}) as server:
        assert (await ask(server.admin_urls[0], "GET", "/healthz")).status == 200


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    section = {"host": f"unix:{tmp_path}/socket", "proxy_protocol": True, "trusted_proxies": ["unix"]}
    records = LogCapture()
    async with serving(records=records, server=section, logging={"access": True}) as server:
        assert server.url == f"unix:{tmp_path}/socket"
        assert await client_of(server, records, LINE) == "192.0.2.1"
        assert await client_of(server, records, LOCAL) == "unix"
        answer = await ask(server.url, "GET", "/healthz")
        assert (answer.status, answer.code) == (400, "proxy-protocol-malformed")
