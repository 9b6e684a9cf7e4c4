"""At the door: how many a client may have, how fast they may come, and what it costs to turn them away."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio
from clients import Closed, Wire, ask, head, read_answer, subscribe
from clocks import Clock
from encryption import tls_section
from serving import open_descriptors, serving, until
from structlog.testing import LogCapture

import tricast

#: Addresses that clients may have here.
FIRST, SECOND = "127.0.0.2", "127.0.0.3"


def seen_from(address: str, server: tricast.Server) -> str:
    """The server's URL for a client with this address."""
    return server.url.replace("://", f"://{address}@")


def clock_at_the_door(server: tricast.Server) -> Clock:
    """A clock for how fast clients come, and are told why they may not: it stands still until it is set."""
    places, clock = server._runtime.places, Clock()
    places._arrivals._clock = places._all_arrivals._clock = places._told._clock = clock
    return clock


async def turned_away(url: str, status: int, limit: str) -> None:
    """One connection that must be told why it is not let in."""
    answer = await ask(url, "GET", "/healthz")
    assert (answer.status, answer.code) == (status, "limit-exceeded")
    assert answer.json()["detail"].startswith(f"{limit} allows ")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"


# As many as it may have


@pytest.mark.parametrize("tls", [{}, tls_section()], ids=["plain", "tls"])
async def test_as_many_connections_as_an_address_may_have(tls: dict[str, str]) -> None:
    async with serving(limits={"connections_per_address": 2}, tls=tls) as server:
        first, second = seen_from(FIRST, server), seen_from(SECOND, server)
        with await Wire.open(first), await subscribe("sse", first, "news"):
            for _ in range(3):
                await turned_away(first, 429, "limits.connections_per_address")
            with await subscribe("ws", second, "news") as stream:
                await server.hub.publish("news", 1)
                assert (await stream.event()).data == 1
        await until(lambda: server.connections == 0)
        assert (await ask(first, "GET", "/healthz")).status == 200
        counters = server._runtime.counters
        assert (counters.refusals, counters.refused) == ({"limits.connections_per_address": 3}, 3)
        metrics = (await ask(second, "GET", "/metrics")).body.decode()
        assert 'tricast_refusals_total{reason="limits.connections_per_address"} 3.0\n' in metrics


async def test_the_debug_log_names_who_is_turned_away() -> None:
    records = LogCapture()
    async with serving(records=records, limits={"connections_per_address": 1}) as server:
        with await Wire.open(seen_from(FIRST, server)):
            assert (await ask(seen_from(FIRST, server), "GET", "/healthz")).status == 429
    (entry,) = (entry for entry in records.entries if entry["event"] == "connection refused")
    assert (entry["peer"], entry["why"], entry["log_level"]) == (FIRST, "limits.connections_per_address", "debug")


async def test_in_all_they_are_counted_by_reason_as_well() -> None:
    async with serving(limits={"connections": 1}, admin={"enabled": True, "port": 0}) as server:
        with await Wire.open(server.url) as wire:
            await until(lambda: server.connections == 1)
            assert (await ask(server.url, "GET", "/healthz")).status == 503
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 404, "it is on the admin listener"
        assert server._runtime.counters.refusals == {"limits.connections": 1, "not-found": 1}


async def test_who_runs_the_server_is_let_in_however_often() -> None:
    limits = {"connections_per_address": 1, "accept_rate": 1, "accept_rate_per_address": 1}
    async with serving(limits=limits, admin={"enabled": True, "port": 0}) as server:
        with await Wire.open(server.url):
            for _ in range(5):
                assert (await ask(server.admin_urls[0], "GET", "/healthz")).status == 200


# As fast as they may come


async def test_as_fast_as_an_address_may_come() -> None:
    async with serving(limits={"accept_rate_per_address": 3}) as server:
        clock = clock_at_the_door(server)
        with ExitStack() as wires:
            for _ in range(3):
                wires.enter_context(await Wire.open(seen_from(FIRST, server)))
            await turned_away(seen_from(FIRST, server), 429, "limits.accept_rate_per_address")
            assert server._runtime.counters.refusals == {"limits.accept_rate_per_address": 1}
        assert (await ask(seen_from(SECOND, server), "GET", "/healthz")).status == 200
        clock.now += 0.34
        assert (await ask(seen_from(FIRST, server), "GET", "/healthz")).status == 200
        assert (await ask(seen_from(FIRST, server), "GET", "/healthz")).status == 429


async def test_as_fast_as_all_may_come() -> None:
    async with serving(limits={"accept_rate": 3}) as server:
        clock = clock_at_the_door(server)
        for address in (FIRST, SECOND, FIRST):
            assert (await ask(seen_from(address, server), "GET", "/healthz")).status == 200
        await turned_away(seen_from("127.0.0.4", server), 503, "limits.accept_rate")
        assert server._runtime.counters.refusals == {"limits.accept_rate": 1}
        clock.now += 0.34
        assert (await ask(server.url, "GET", "/healthz")).status == 200
        assert (await ask(server.url, "GET", "/healthz")).status == 503


# Thousands at once


@contextmanager
def cpu_seconds() -> Iterator[list[float]]:
    """What the process has used in the block, once it is over; without coverage, which uses more than all else."""
    used: list[float] = []
    tracer = sys.gettrace()
    sys.settrace(None)
    began = time.process_time()
    try:
        yield used
        used.append(time.process_time() - began)
    finally:
        sys.settrace(tracer)


@pytest.mark.parametrize(
    "limits", [{"connections_per_address": 10}, {"accept_rate_per_address": 10}], ids=lambda limits: next(iter(limits))
)
@pytest.mark.parametrize("tls", [{}, tls_section()], ids=["plain", "tls"])
async def test_one_address_that_opens_thousands_holds_up_nobody(limits: dict[str, int], tls: dict[str, str]) -> None:
    """Each costs a fraction of what it would cost to be served, and leaves nothing behind."""
    count = 1000
    async with serving(limits=limits, tls=tls) as server:
        flood = seen_from(FIRST, server).replace("https:", "http:")  # no more than it takes to connect
        counters = server._runtime.counters
        with ExitStack() as wires, await subscribe("sse", seen_from(SECOND, server), "news") as stream:
            for _ in range(10):
                wires.enter_context(await Wire.open(flood))
            await until(lambda: server.connections == 11)
            before = open_descriptors()

            async def open_many() -> None:
                for number in range(count):
                    with await Wire.open(flood) as wire:
                        if number % 100 == 0:
                            wire.reset()

            with cpu_seconds() as used:
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(open_many)
                    for number in range(20):
                        await server.hub.publish("news", number)
                        assert (await stream.event()).data == number
                        assert (await ask(seen_from(f"127.0.1.{number}", server), "GET", "/healthz")).status == 200
                await until(lambda: counters.refused + counters.accepted == 2 * count + 31)
            assert counters.refused > count, counters.refusals
            assert counters.refusals == {f"limits.{key}": counters.refused for key in limits}
            # The clients' ends are in it: some 200 µs each on a calm machine.
            assert used[0] / counters.refused < 0.002
            await until(lambda: not open_descriptors() - before)
        assert server._runtime.counters.failed == 0


async def test_who_is_turned_away_again_and_again_may_not_see_why_but_is_counted() -> None:
    async with serving(limits={"connections_per_address": 1}) as server:
        clock_at_the_door(server)
        with await Wire.open(seen_from(FIRST, server)), ExitStack() as wires:
            crowd = [wires.enter_context(await Wire.open(seen_from(FIRST, server))) for _ in range(50)]
            await until(lambda: server._runtime.counters.refused == 50)
            told = 0
            for wire in crowd[10:]:
                answer = await read_answer(wire)
                told += answer.status == 429
                assert await wire.rest() == b""
            assert told == 40, "who has said nothing sees the answer, however short it was dealt with"
            with pytest.raises(Closed):
                await crowd[20].until(b"\n")
