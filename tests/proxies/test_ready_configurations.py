"""The ready configurations in ``config/``: what works in front of the server with each of the real proxies.

All proxies of a test run at the same time, each in front of a server of its own.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from clients import (
    TRANSPORTS,
    WEBSOCKET_HEADERS,
    Closed,
    Ended,
    EventStream,
    Subscription,
    WebSocket,
    Wire,
    ask,
    attempt,
    head,
    open_websocket,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from proxies.ready import CONFIG, READY, edited, ready_proxy
from serving import serving, until

import tricast
from tricast.addresses import Networks
from tricast.wire.forwarded import origin_by_x_forwarded
from tricast.wire.http1 import Request

TOKEN = "sixteen-letters-or-more"

Check = Callable[[str, tricast.Server, str], Awaitable[None]]

#: Seconds: the timers of the proxies, and how often the server breaks the silence meanwhile.
IDLE = 5
PING = "500ms"
#: So many of them take longer than twice the timer.
PINGS = 22


async def behind_each(check: Check, *, idle: int = 0, **sections: object) -> None:
    """Runs a check behind each of the proxies: with its name, the server, and the URL by which clients reach it."""

    async def run(kind: str) -> None:
        try:
            async with serving(**sections) as server, ready_proxy(kind, server.port, idle=idle) as proxy:
                await check(kind, server, proxy.url)
        except Exception as error:
            error.add_note(f"behind {kind}")
            raise

    async with trio.open_nursery() as nursery:
        for kind in READY:
            nursery.start_soon(run, kind)


async def test_events_arrive_at_once_over_every_transport() -> None:
    """Each before the next is published, while the stream stays open, and faster than HAProxy by itself sends any."""
    alone = trio.Lock()  # what one has to do would be late for another

    async def check(kind: str, server: tricast.Server, url: str) -> None:
        async with alone:
            for transport in TRANSPORTS:
                await check_transport(transport, url)

    async def check_transport(transport: str, url: str) -> None:
        start = await publish(url, "news", "before")
        with await subscribe(transport, url, "news", last_id=start) as subscriber:
            took = []
            for n in range(60):
                before = trio.current_time()
                event_id = await publish(url, "news", n)
                event = await subscriber.event()
                assert (event.id, event.data) == (event_id, n)
                took.append(trio.current_time() - before)
            # Behind HAProxy without http-no-delay, each alone waits 200 ms; a machine is not always busy.
            assert min(took) < 0.15, transport

    await behind_each(check)


async def test_clients_resume_where_they_were_over_every_transport() -> None:
    async def check(kind: str, server: tricast.Server, url: str) -> None:
        for transport in TRANSPORTS:
            start = await publish(url, "news", "before")
            with await subscribe(transport, url, "news", last_id=start, by_header=True) as subscriber:
                ids = [await publish(url, "news", 1)]
                assert (await subscriber.event()).id == ids[0]
                last_id = subscriber.last_id
            ids += [await publish(url, "news", n) for n in (2, 3)]
            with await subscribe(transport, url, "news", last_id=last_id, by_header=True) as subscriber:
                assert [event.id for event in await subscriber.events(2)] == ids[1:]

    await behind_each(check)


async def test_who_asks_for_the_same_does_not_wait_for_another() -> None:
    async def check(kind: str, server: tricast.Server, url: str) -> None:
        with await subscribe("poll", url, "news") as first, await subscribe("poll", url, "news") as second:
            await until(lambda: server.hub.statistics().subscribers == 2)
            await publish(url, "news", 1)
            assert (await first.event()).data == (await second.event()).data == 1

    await behind_each(check)


async def test_the_client_is_who_it_is_whatever_it_says() -> None:
    """As a server sees it that trusts the proxy."""

    async def check(kind: str, server: tricast.Server, url: str) -> None:
        lies = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.test")
        for headers in ((), lies):
            echo = await ask(as_client(url), "GET", f"/.tricast/probe/echo?token={TOKEN}", *headers)
            fields = [(name.lower().encode(), value.encode()) for name, value in echo.json()["headers"]]
            origin = origin_by_x_forwarded(Request(b"GET", b"/", fields, b"1.1"), "127.0.0.1", Networks(("127.0.0.1",)))
            assert origin.client == "127.0.0.7"
            assert origin.scheme == "http"
            assert origin.authority in (None, "test")

    def as_client(url: str) -> str:
        return url.replace("://", "://127.0.0.7@")

    await behind_each(check, probe={"token": TOKEN})


async def test_what_is_asked_for_reaches_the_server_as_it_is() -> None:
    """Publishing up to the limit, the page, the origin of pages, and a refusal in the server's own words."""

    async def check(kind: str, server: tricast.Server, url: str) -> None:
        line = b'{"topic":"news","data":"%s"}\n' % (b"x" * 40_000)
        batch = await ask(url, "POST", "/publish", "Content-Type: application/x-ndjson", body=line * 20)
        assert len(batch.json()["ids"]) == 20
        replies = [await ask(url, "POST", "/publish?topic=news", "Idempotency-Key: once", body=b"1") for _ in range(2)]
        assert replies[0].json() == replies[1].json()
        page = await ask(url, "GET", "/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (await attempt("sse", url, "topic=")).code
        with await open_websocket(url, "/ws", "Origin: http://test") as websocket:
            reply = await websocket.operate(op="publish", topic="news", data=1)
            assert reply["ok"] == "publish"
        assert (await attempt("ws", url, "topic=news", "Origin: http://elsewhere")).status == 403
        assert (await ask(server.url, "GET", "/metrics")).status == 200
        assert (await ask(url, "GET", "/metrics")).status == 403

    await behind_each(check)


async def test_pings_outlive_the_idle_timer() -> None:
    async def check(kind: str, server: tricast.Server, url: str) -> None:
        start = await publish(url, "news", "before")
        with (
            await subscribe("sse", url, "news") as stream,
            await subscribe("ws", url, "news") as websocket,
            await subscribe("poll", url, "news", last_id=start) as poll,
        ):
            assert isinstance(stream, EventStream)
            assert isinstance(websocket, WebSocket)
            async with trio.open_nursery() as nursery:
                for subscriber in (stream, websocket, poll):
                    nursery.start_soon(expect, subscriber)
                await until(lambda: stream.comments >= PINGS and websocket.pings >= PINGS)
                await publish(url, "news", "still here")

    async def expect(subscriber: Subscription) -> None:
        assert (await subscriber.event()).data == "still here"

    await behind_each(
        check, idle=IDLE, sse={"keepalive": PING}, websocket={"ping_interval": PING}, poll={"timeout": "1s"}
    )


async def test_silence_is_cut_by_the_idle_timer() -> None:
    """Without pings: so it is they that keep a stream alive."""

    async def check(kind: str, server: tricast.Server, url: str) -> None:
        async with trio.open_nursery() as nursery:
            for transport in ("sse", "ws"):
                nursery.start_soon(cut, transport, url)
            nursery.start_soon(unanswered, url)

    async def cut(transport: str, url: str) -> None:
        with await subscribe(transport, url, "news") as subscriber, pytest.raises((Closed, Ended)):
            await subscriber.next()

    async def unanswered(url: str) -> None:
        assert (await attempt("poll", url, "topic=news")).status in (502, 503, 504)

    await behind_each(
        check, idle=IDLE, sse={"keepalive": "5m"}, websocket={"ping_interval": "50s"}, poll={"timeout": "5m"}
    )


async def test_the_server_notices_that_a_client_has_left() -> None:
    async def check(kind: str, server: tricast.Server, url: str) -> None:
        # Apache and Varnish learn that the client has left only when they have something for it.
        noticed = ("sse", "ws") if kind in ("apache", "varnish") else ("poll", "sse", "ws")
        for transport in noticed:
            with await subscribe(transport, url, "news"):
                await until(lambda: server.hub.statistics().subscribers == 1)
            await until(lambda: server.hub.statistics().subscribers == 0)

    await behind_each(check, sse={"keepalive": "100ms"}, websocket={"ping_interval": "100ms"}, poll={"timeout": "5m"})


async def test_a_goodbye_reaches_the_clients() -> None:
    """A server that goes down tells each when to come back, and the end of its stream is an end, not a cut."""

    async def check(kind: str, server: tricast.Server, url: str) -> None:
        with (
            await subscribe("sse", url, "news") as stream,
            await subscribe("ws", url, "news") as websocket,
            await Wire.open(url) as poll,
        ):
            assert isinstance(stream, EventStream)
            assert isinstance(websocket, WebSocket)
            await poll.send(head("GET", "/events?topic=news"))
            await until(lambda: server.hub.statistics().subscribers == 3)
            server.drain()
            with pytest.raises(Ended):
                await stream.event()
            assert stream.retry is not None
            assert stream.retry >= 7000
            assert (await websocket.closed()).code == 1012
            answer = await read_answer(poll)
            assert answer.status == 204
            assert int(answer.headers["retry-after"]) >= 7

    await behind_each(check, drain={"period": "0s", "grace": "10s", "retry_after": "7s"})


async def test_another_server_takes_over(tmp_path: Path) -> None:
    """Two servers that share a log: both get clients, and when one is gone the other one has them all."""

    async def check(kind: str) -> None:
        log = {"url": f"sqlite:///{tmp_path}/{kind}.db"}
        async with serving(log=log) as stays, trio.open_nursery() as nursery:
            goes = await nursery.start(run_until_told, log)
            async with ready_proxy(kind, stays.port, second_port=goes.server.port) as proxy:
                with_both = [await subscribe("sse", proxy.url, "news") for _ in range(8)]
                assert stays.hub.statistics().subscribers
                assert goes.server.hub.statistics().subscribers
                first = await publish(stays.url, "news", 1)
                for subscriber in with_both:
                    with subscriber:
                        assert (await subscriber.event()).id == first
                goes.told.set()
                await goes.gone.wait()
                second = await publish(stays.url, "news", 2)
                # Varnish tries another server only for what is asked with a plain GET.
                transport = "sse" if kind == "varnish" else "ws"
                for subscriber in with_both:
                    with await subscribe(transport, proxy.url, "news", last_id=subscriber.last_id) as again:
                        assert (await again.event()).id == second

    async with trio.open_nursery() as nursery:
        for kind in READY:
            nursery.start_soon(check, kind)


class Leaving:
    """A server that goes down when it is told to."""

    def __init__(self, server: tricast.Server) -> None:
        self.server = server
        self.told = trio.Event()
        self.gone = trio.Event()


async def run_until_told(log: dict[str, str], task_status: trio.TaskStatus[Leaving]) -> None:
    async with serving(log=log) as server:
        leaving = Leaving(server)
        task_status.started(leaving)
        await leaving.told.wait()
    leaving.gone.set()


async def test_lines_without_which_it_does_not_work() -> None:
    """What the tests above would find missing."""

    async def check(kind: str, before: str, after: str, is_missed: Callable[[str], Awaitable[bool]]) -> None:
        async with (
            serving() as server,
            ready_proxy(kind, server.port, changed=((before, after),)) as proxy,
        ):
            assert await is_missed(proxy.url), (kind, before)

    async def websocket_is_refused(url: str, *headers: str) -> bool:
        with await Wire.open(url) as wire:
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS, *headers))
            return (await read_head(wire)).status != 101

    async def own_origin_is_refused(url: str) -> bool:
        return await websocket_is_refused(url, "Origin: http://test")

    async def events_are_held_back(url: str) -> bool:
        with await subscribe("sse", url, "news") as subscriber:
            before = trio.current_time()
            for n in range(5):
                await publish(url, "news", n)
                await subscriber.event()
            return trio.current_time() - before > 0.5

    lines: list[tuple[str, str, str, Callable[[str], Awaitable[bool]]]] = [
        ("nginx", "proxy_set_header Upgrade $http_upgrade;", "", websocket_is_refused),
        ("nginx", "proxy_set_header Host $http_host;", "", own_origin_is_refused),
        ("haproxy", "    option http-no-delay\n", "", events_are_held_back),
        ("apache", '@origin_port@" upgrade=websocket', '@origin_port@"', websocket_is_refused),
        ("apache", "ProxyPreserveHost On", "", own_origin_is_refused),
        ("varnish", "return (pipe);", "", websocket_is_refused),
        ("varnish", "set bereq.http.Upgrade = req.http.Upgrade;", "", websocket_is_refused),
    ]
    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(check, *line)


def test_timers_fit_the_servers_defaults() -> None:
    """Twice as long as the server is ever silent; and connections are kept for less time than it keeps them."""
    config = tricast.Config()
    needed = max(2 * config.sse.keepalive, 2 * config.websocket.ping_interval, config.poll.timeout)
    for ready in READY.values():
        timers = [int(re.findall(r"\d+", before)[-1]) for before, _ in ready.timers if "timeout" in before.lower()]
        assert min(timers) > needed, ready.file
    kept = {"nginx": r"keepalive_timeout (\d+)s;", "caddy": r"\tkeepalive (\d+)s\n", "apache": r" ttl=(\d+) "}
    for kind, pattern in kept.items():
        times = re.findall(pattern, (CONFIG / READY[kind].file).read_text(encoding="utf-8"))
        assert times
        assert max(map(int, times)) < config.limits.idle_timeout


def test_an_edit_that_does_not_fit_is_an_error() -> None:
    assert edited("listen 80;", (("80", "81"),)) == "listen 81;"
    with pytest.raises(ValueError, match="'90' is there 0 times"):
        edited("listen 80;", (("90", "81"),))
    with pytest.raises(ValueError, match="'80' is there 2 times"):
        edited("listen 80; listen 80;", (("80", "81"),))
