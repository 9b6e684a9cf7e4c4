"""Whose fault it is that an exchange fails: a server that did nothing wrong goes on getting requests."""

from clients import Wire, ask, head, read_answer
from clocks import jump
from forwarding import forwarding
from proxy.origins import OK, Visit, always, origin, silent
from trio.testing import MockClock

from tricast_proxy.proxy import Proxy


def failed(proxy: Proxy) -> list[int]:
    """How many exchanges each server is held to account for."""
    return [server.counts["failed"] for server in proxy.servers]


async def answers_once(visit: Visit) -> None:
    """Closes its connection when it is used again, if not before."""
    await visit.request()
    await visit.wire.send(OK)
    await visit.request()


async def test_a_kept_connection_that_is_just_being_closed_says_nothing_of_the_server() -> None:
    async with origin(answers_once) as one, origin(always(OK)) as other, forwarding(one.url, other.url) as proxy:
        assert [(await ask(proxy.url, "GET", "/")).status for _ in range(2)] == [200, 200]
        # What may not be sent twice is not, and yet it is nobody's fault.
        assert (await ask(proxy.url, "POST", "/", body=b"once")).status == 502
        assert (len(one.requests), len(other.requests)) == (2, 1)
        assert failed(proxy) == [0, 0]
        assert proxy.counters.refused["stale"] == 1


async def test_a_client_that_pauses_in_its_request_says_nothing_of_the_server(running_clock: MockClock) -> None:
    sections = {"upstream": {"response_header_timeout": "30s"}, "retry": {"on": ["connect", "timeout"]}}
    async with origin(silent) as one, origin(silent) as other, forwarding(one.url, other.url, **sections) as proxy:
        for begun, server in ((b"", one), (b"123", other)):
            with await Wire.open(proxy.url) as wire:
                await wire.send(head("PUT", "/", "Content-Length: 10") + begun)
                await server.wait_requests(1)
                await jump(running_clock, 30)
                assert (await read_answer(wire, "PUT")).status == 504
        assert failed(proxy) == [0, 0]
        assert (proxy.counters.retries, proxy.counters.refused["request-timeout"]) == (0, 2)


async def test_a_server_that_has_the_request_and_does_not_answer_is_at_fault(running_clock: MockClock) -> None:
    sections = {"upstream": {"response_header_timeout": "30s"}}
    async with origin(silent) as one, origin(silent) as other, forwarding(one.url, other.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("PUT", "/", "Content-Length: 3") + b"123")
            await one.wait_requests(1)
            await jump(running_clock, 30)
            assert (await read_answer(wire, "PUT")).status == 504
        assert failed(proxy) == [1, 0]
