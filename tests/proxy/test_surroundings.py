"""What is around the exchanges: what is told of them, answers that several share, and trouble with accepting."""

import resource

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Wire, ask, head, read_answer, read_head
from clocks import HANG_SECONDS, jump
from encryption import tls_section
from forwarding import forwarding
from proxy.origins import OK, Visit, always, origin, read_any, silent
from serving import capturing_logger, until
from structlog.testing import LogCapture
from trio.testing import MockClock

from tricast_proxy.config import ProxyConfig
from tricast_proxy.overview import ConnectionView, State
from tricast_proxy.proxy import Proxy, serve

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


async def by_path(visit: Visit) -> None:
    """Does as much as the path says, and then nothing."""
    while True:
        asked = await visit.head()
        path = asked.line.split()[1].partition("?")[0]
        if path == "/ok":
            await visit.wire.send(OK)
            continue
        await visit.wire.send({"/begun": CHUNKED + b"2\r\nok\r\n", "/tunnel": SWITCHED}.get(path, b""))
        await visit.wire.rest()
        return


async def test_what_is_done_for_clients_can_be_seen() -> None:
    async with origin(by_path) as server, forwarding(server.url) as proxy:

        async def sees(state: State, received: int) -> ConnectionView:
            """The only connection, once it is in a state."""
            is_busy = state not in (State.IDLE, State.HEAD)
            expected = (state, received, is_busy, is_busy)
            await until(
                lambda: (
                    [(v.state, v.received, bool(v.server), bool(v.request)) for v in proxy.connections()] == [expected]
                )
            )
            [view] = proxy.connections()
            return view

        for data, state in (
            (b"", State.IDLE),
            (b"GET / HT", State.HEAD),
            (head("POST", "/x?y=\u00e4".replace("\u00e4", "%e4"), "Content-Length: 9") + b"hello", State.REQUEST),
            (head("GET", "/waiting"), State.WAITING),
            (head("GET", "/begun"), State.RESPONSE),
            (head("GET", "/tunnel", *WEBSOCKET_HEADERS), State.TUNNEL),
            (head("GET", "/ok"), State.IDLE),
        ):
            with await Wire.open(proxy.url) as wire:
                await wire.send(data)
                if b"/ok" in data:
                    await read_answer(wire)
                view = await sees(state, len(data))
                assert view.age >= view.idle_received >= 0
            await until(lambda: not proxy.clients)


async def test_each_request_is_logged_with_how_it_ended() -> None:
    records = LogCapture()
    async with (
        origin(by_path) as server,
        forwarding(server.url, records=records, logging={"access": True}) as proxy,
    ):
        await ask(proxy.url, "GET", "/ok")
        with await Wire.open(proxy.url) as wire:
            await wire.send(b"nonsense\r\n\r\n")
            await read_answer(wire)
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/begun"))
            await read_head(wire)
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/tunnel", *WEBSOCKET_HEADERS))
            await read_head(wire)
        await until(lambda: not proxy.clients)
    lines = [entry for entry in records.entries if "status" in entry]
    assert sorted(str(entry["status"]) for entry in lines) == ["101", "200", "200", "400"]


async def test_what_clients_say_who_they_are_with_is_not_logged() -> None:
    records = LogCapture()
    async with (
        origin(by_path) as server,
        forwarding(server.url, records=records, logging={"access": True}) as proxy,
    ):
        await ask(proxy.url, "GET", "/ok?topic=news&ticket=s3cret")
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/begun?access_token=s3cret&x=1"))
            await read_head(wire)
            assert [view.request for view in proxy.connections()] == ["GET /begun?access_token=...&x=1"]
        await until(lambda: not proxy.clients)
    lines = [entry["target"] for entry in records.entries if "status" in entry]
    assert lines == ["/ok?topic=news&ticket=...", "/begun?access_token=...&x=1"]
    assert "s3cret" in str(server.requests)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_what_is_to_go_on_at_once_is_refused_where_it_would_be_held(who: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nIncremental: ?1\r\nContent-Length: 2\r\n\r\nok" if who == "server" else OK
    sections = {"response": {"incremental": "refuse", "buffering": "full"}, "request": {"buffering": "full"}}
    async with origin(always(answer)) as server, forwarding(server.url, **sections) as proxy:
        fields = ["Incremental: ?1"] if who == "client" else []
        got = await ask(proxy.url, "POST", "/", *fields, body=b"hello")
        assert (got.status, got.headers["proxy-status"]) == (501, "tricast; error=incremental_refused")
        assert len(server.requests) == (who == "server")


async def test_whoever_shares_an_answer_has_all_of_it(running_clock: MockClock) -> None:
    goes_on = trio.Semaphore(0)

    async def drip(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED)
        for _ in range(4):
            await goes_on.acquire()
            await visit.wire.send(b"1\r\nx\r\n")
        await visit.wire.send(b"0\r\n\r\n")

    sections = {
        "response": {"cache": "coalesce"},
        # None of these is about an answer that goes on.
        "upstream": {"response_header_timeout": "10s", "read_timeout": "60s", "stream_idle_timeout": "60s"},
    }
    bodies: list[bytes] = []

    async def get(url: str) -> None:
        with await Wire.open(url) as wire:
            await wire.send(head("GET", "/"))
            bodies.append((await read_any(wire)).body)

    async with origin(drip) as server, forwarding(server.url, **sections) as proxy:
        async with trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(get, proxy.url)
                await until(lambda n=n: len(proxy.clients) == n + 1)
                await server.wait_requests(1)
                await jump(running_clock, 20)
                goes_on.release()
            await jump(running_clock, 20)
            goes_on.release()
        assert bodies == [b"x" * 4] * 3
        assert len(server.requests) == 1
        assert not proxy.counters.cuts


async def test_an_answer_that_is_shared_is_cut_for_all_when_the_server_stalls(running_clock: MockClock) -> None:
    async def stall(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED + b"2\r\nok\r\n")
        await visit.wire.rest()

    sections = {"response": {"cache": "coalesce"}, "upstream": {"read_timeout": "30s"}}
    async with origin(stall) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as one, await Wire.open(proxy.url) as other:
            for wire in (one, other):
                await wire.send(head("GET", "/"))
                await read_head(wire)
            await jump(running_clock, 30)
            for wire in (one, other):
                assert await wire.rest() == b"2\r\nok\r\n"
        assert len(server.requests) == 1
        await server.wait_left()


async def test_without_descriptors_clients_wait_until_there_are_some() -> None:
    records = LogCapture()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with origin(always(OK)) as server, forwarding(server.url, records=records) as proxy:
        wire = await Wire.open(proxy.url)
        await until(lambda: bool(proxy.clients))
        try:
            with trio.socket.socket() as sock:
                resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # whatever is closed meanwhile
                await sock.connect(("127.0.0.1", proxy.port))
                await until(lambda: any(entry["event"] == "cannot accept" for entry in records.entries))
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await until(lambda: len(proxy.clients) == 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            wire.close()
        assert (await ask(proxy.url, "GET", "/")).status == 200


async def test_an_address_that_is_taken_is_named() -> None:
    async with forwarding("127.0.0.1:1") as proxy:
        config = ProxyConfig.model_validate({"proxy": {"port": proxy.port}})
        with pytest.raises(ExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, config)
        assert raised.group_contains(OSError, match=f"127.0.0.1:{proxy.port}")


async def test_a_proxy_that_is_asked_twice_goes_down_once() -> None:
    async with origin(silent) as server:
        config = ProxyConfig.model_validate(
            {
                "proxy": {"port": 0},
                "server": [{"address": server.url.removeprefix("http://")}],
                "drain": {"grace": "1h"},
            }
        )
        async with trio.open_nursery() as nursery:
            proxy: Proxy = await nursery.start(lambda task_status: serve(
                config, logger=capturing_logger(LogCapture()), task_status=task_status
            ))  # fmt: skip
            proxy.drain()
            proxy.drain()
            with trio.fail_after(HANG_SECONDS):
                await proxy.wait_stopped()


async def test_a_handshake_that_does_not_come_is_not_waited_for() -> None:
    async with origin(silent) as server, forwarding(server.url, tls=tls_section(), drain={"grace": "1h"}) as proxy:
        with await Wire.open(f"http://127.0.0.1:{proxy.port}") as wire:
            await until(lambda: proxy.clients)
            proxy.drain()
            assert await wire.rest() == b""
        await proxy.wait_stopped()
