"""The proxy in other shapes: faster, stacked, without HTTP, behind TLS."""

from functools import partial

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Wire, ask, head, read_answer, read_head
from clocks import HANG_SECONDS
from encryption import tls_section
from forwarding import forwarding
from proxy.origins import OK, Visit, always, once, origin, read_any, silent
from serving import capturing_logger, failures, until
from structlog.testing import LogCapture

from tricast_proxy import chain
from tricast_proxy.config import ProxyConfig
from tricast_proxy.program import load_stages


async def test_speed_divides_what_is_waited_for() -> None:
    sections = {"proxy": {"speed": 100}, "upstream": {"response_header_timeout": "20s"}}
    async with origin(silent) as server, forwarding(server.url, **sections) as proxy:
        began = trio.current_time()
        assert (await ask(proxy.url, "GET", "/")).status == 504
        assert 0.2 <= trio.current_time() - began < 20


def stacked(*names: str, upstream: str) -> list[ProxyConfig]:
    """The configurations of a chain of profiles."""
    overrides = {
        "proxy": {"chain": list(names), "port": 0},
        "server": [{"address": upstream.removeprefix("http://")}],
        "upstream": {"connect_timeout": HANG_SECONDS},
    }
    return load_stages(None, overrides)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names", [("plain", "plain", "plain"), ("cloudflare", "aws-alb", "nginx-websocket"), ("plain", "nginx-default")]
)
async def test_proxies_one_behind_the_other(names: tuple[str, ...]) -> None:
    records = LogCapture()

    async def answer(visit: Visit) -> None:
        while True:
            asked = await visit.request()
            protocol = asked.all("upgrade")
            await visit.wire.send(
                b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello" if protocol else OK
            )

    async with origin(answer) as server:
        stages = stacked(*names, upstream=server.url)
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                serve = partial(chain.serve, stages, logger=capturing_logger(records))
                proxy = await nursery.start(serve)
                for _ in range(2):
                    got = await ask(proxy.url, "POST", "/", body=b"hello")
                    assert (got.status, got.body) == (200, b"ok")
                assert server.requests[0].body == b"hello"
                via = ", ".join(server.requests[0].all("via"))
                assert via.count("tricast") == names.count("plain")
                with await Wire.open(proxy.url) as wire:
                    await wire.send(head("GET", "/", *WEBSOCKET_HEADERS))
                    if names[-1] == "nginx-default":
                        assert (await read_answer(wire)).status == 200
                    else:
                        assert (await read_head(wire)).status == 101
                        assert await wire.exactly(5) == b"hello"
                proxy.drain()
                await proxy.wait_stopped()
    assert not failures(records)


async def test_what_is_not_http_goes_through() -> None:
    async def shout(visit: Visit) -> None:
        assert await visit.wire.exactly(5) == b"\x00\r\n\r\n"
        await visit.wire.send(b"\xff\n")
        assert await visit.wire.rest() == b"end"
        await visit.wire.send(b"goodbye")

    async with origin(shout) as server, forwarding(server.url, proxy={"mode": "tcp"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(b"\x00\r\n\r\n")
            assert await wire.exactly(2) == b"\xff\n"
            await wire.send(b"end")
            wire.finish_sending()
            assert await wire.rest() == b"goodbye"
        await server.wait_left()
        assert proxy.counters.tunnels == 1


async def test_what_is_not_http_is_not_answered_in_http() -> None:
    async with forwarding("127.0.0.1:1", proxy={"mode": "tcp"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert await wire.rest() == b""
        await until(lambda: not proxy.clients)


async def test_tls_in_front() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, tls=tls_section()) as proxy:
        assert proxy.url.startswith("https://")
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):
                await wire.send(head("POST", "/", "Content-Length: 5") + b"hello")
                assert (await read_answer(wire)).body == b"ok"
        assert server.requests[0].all("x-forwarded-proto") == ["https"]
        assert server.requests[0].body == b"hello"
        with await Wire.open(proxy.url.replace("https", "http")) as wire:
            await wire.send(head("GET", "/"))
            got = await read_answer(wire)
            assert (got.status, got.code) == (400, "https-required")
        await until(lambda: not proxy.clients)
        assert len(server.requests) == 2


async def test_large_bodies_through_tls() -> None:
    body = bytes(range(256)) * 8192

    async def mirror(visit: Visit) -> None:
        asked = await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + asked.body)

    async with origin(mirror) as server, forwarding(server.url, tls=tls_section()) as proxy:
        with await Wire.open(proxy.url) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.send, head("POST", "/", f"Content-Length: {len(body)}") + body)
                got = await read_any(wire)
            assert got.body == body


async def test_the_body_that_http_1_0_sends_up_is_on_disk_where_it_is_large() -> None:
    async with origin(once(OK)) as server, forwarding(server.url, request={"buffering": "full"}) as proxy:
        assert (await ask(proxy.url, "POST", "/", body=b"x" * 3_000_000)).status == 200
        assert len(server.requests[0].body) == 3_000_000
