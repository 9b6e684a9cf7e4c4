"""Faults in a proxy that runs: what clients and servers see of each, and that nothing is left of it."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
import trio
from clients import (
    TEXT,
    WEBSOCKET_HEADERS,
    Closed,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from clocks import HANG_SECONDS, jump
from forwarding import administer, forwarding
from proxy.origins import OK, Visit, always, origin, read_any, silent
from serving import serving, until, what_is_open
from trio.testing import MockClock, wait_all_tasks_blocked

import tricast
from tricast_proxy.config import FaultEntry
from tricast_proxy.faults import FaultPlan
from tricast_proxy.heads import RequestHead
from tricast_proxy.proxy import Proxy
from tricast_proxy.servers import Health

#: So long without a byte is silence: what is silent here would otherwise say something every few milliseconds.
_SILENCE_SECONDS = 0.7


async def how_it_ends(wire: Wire, expected: str, least: int = 0) -> tuple[int, str]:
    """How many bytes come, and what comes then: in the words of the faults.

    Args:
        wire: the client's.
        expected: what should come then; what is not silence is waited for as long as it takes.
        least: so many bytes as well.
    """
    while True:
        is_silent = expected == "blackhole" and len(wire.buffer) >= least
        with trio.move_on_after(_SILENCE_SECONDS if is_silent else HANG_SECONDS) as scope:
            try:
                is_open = await wire.receive()
            except Closed:
                return len(wire.buffer), "reset"
        if scope.cancelled_caught:
            return len(wire.buffer), "blackhole"
        if not is_open:
            return len(wire.buffer), "close"


async def drip(visit: Visit) -> None:
    """Answers with a little of a body again and again, and listens to whatever comes."""
    await visit.request()
    await visit.wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await visit.wire.send(b"5\r\ndrip\n\r\n")
        await trio.sleep(0.005)


@asynccontextmanager
async def in_front_of_endless(
    kind: str, *faults: dict[str, Any], **sections: Any
) -> AsyncIterator[tuple[Proxy, bytes]]:
    """A proxy with faults, and the request that begins something endless."""
    headers = {"sse": ("Accept: text/event-stream",), "websocket": WEBSOCKET_HEADERS}.get(kind, ())
    request = head("GET", "/events?topic=t", *headers)
    sections |= {"proxy": {"mode": "tcp" if kind == "tcp" else "http"}, "fault": faults}
    if kind in ("http", "tcp"):
        async with origin(drip) as server, forwarding(server.url, **sections) as proxy:
            yield proxy, request
        return
    async with (
        serving() as tricast_server,
        forwarding(tricast_server.url, **sections) as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(publish_forever, tricast_server)
        yield proxy, request
        nursery.cancel_scope.cancel()


async def publish_forever(server: tricast.Server) -> None:
    while True:
        await server.hub.publish("t", "drip")
        await trio.sleep(0.005)


class Books:
    """What there is of tasks and descriptors, to see that there is no more of them later."""

    def __init__(self, before: Counter[str]) -> None:
        self._before = before

    @classmethod
    async def opened(cls) -> Self:
        """As it is when everything has begun."""
        await wait_all_tasks_blocked()
        return cls(what_is_open())

    async def balanced(self) -> None:
        """Returns when there is no more than there was."""
        await until(lambda: not what_is_open() - self._before)


def close_kept(proxy: Proxy) -> None:
    """Closes the connections to the server that wait to be used again."""
    proxy.ask_of(proxy.servers[0], Health.DOWN)


KINDS = ["http", "sse", "websocket", "tcp"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["reset", "close", "blackhole"])
@pytest.mark.parametrize("after", ["1000B", "150ms"])
async def test_how_a_connection_ends(after: str, how: str, kind: str) -> None:
    async with in_front_of_endless(kind, {f"{how}_after": after}) as (proxy, request):
        books = await Books.opened()
        for _ in range(2):
            with await Wire.open(proxy.url) as wire:
                await wire.send(request)
                count, seen = await how_it_ends(wire, how, 1000 if after == "1000B" else 0)
                assert seen == how
                if after == "1000B":
                    assert count == 1000 if how != "reset" else count <= 1000
        await books.balanced()
        assert proxy.clients == ()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\n|hello", b"Transfer-Encoding: chunked\r\n\r\n|5\r\nhello\r\n0\r\n\r\n"]
)
async def test_a_delay_loses_nothing_of_a_body_that_comes_behind_its_head(framing: bytes) -> None:
    fields, _, body = framing.partition(b"|")
    has_head = trio.Event()

    async def in_two_pieces(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\n" + fields)
        await has_head.wait()
        await visit.wire.send(body)
        await visit.wire.rest()

    fault = {"delay_down": "1ms"}
    async with origin(in_two_pieces) as server, forwarding(server.url, fault=[fault]) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", "Connection: close"))
            await read_head(wire)
            has_head.set()
            assert await wire.rest() == body


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_of_what_was_to_come_later(kind: str) -> None:
    later = {"reset_after": "1h", "close_after": "2h", "blackhole_after": "3h", "delay_down": "1ms"}
    async with in_front_of_endless(kind, later) as (proxy, request):
        books = await Books.opened()
        for resets in (False, True):
            with await Wire.open(proxy.url) as wire:
                await wire.send(request)
                await wire.exactly(1000)
                if resets:
                    wire.reset()
        await books.balanced()


async def test_what_was_to_come_later_does_not_come_in_the_next_exchange(running_clock: MockClock) -> None:
    faults = [{"path": "/cut", "close_after": "60s", "delay_down": "1ms"}]
    async with origin(always(OK)) as server, forwarding(server.url, fault=faults) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/well"))
            await read_answer(wire)
            books = await Books.opened()
            await wire.send(head("GET", "/cut"))
            assert (await read_answer(wire)).status == 200
            await books.balanced()
            await jump(running_clock, 70)
            await wait_all_tasks_blocked()
            await wire.send(head("GET", "/well"))
            assert (await read_answer(wire)).status == 200


async def test_behind_a_black_hole_there_is_no_next_exchange() -> None:
    faults = [{"path": "/hole", "blackhole_after": "20B"}]
    async with origin(always(OK)) as server, forwarding(server.url, fault=faults) as proxy:
        books = await Books.opened()
        with await Wire.open(proxy.url) as wire:
            for path in ("/hole", "/well"):
                await wire.send(head("GET", path))
                assert await how_it_ends(wire, "blackhole", 20) == (20, "blackhole")
        await until(lambda: not proxy.clients)
        assert [asked.line for asked in server.requests] == ["GET /hole HTTP/1.1"]
        close_kept(proxy)
        await books.balanced()


@pytest.mark.parametrize("kind", KINDS)
async def test_who_is_in_a_black_hole_does_not_keep_the_proxy(kind: str) -> None:
    async with in_front_of_endless(kind, {"blackhole_after": "300B"}, drain={"grace": "100ms"}) as (proxy, request):
        with await Wire.open(proxy.url) as wire:
            await wire.send(request)
            await wire.exactly(300)
            proxy.drain()
            with trio.fail_after(HANG_SECONDS):
                await proxy.wait_stopped()
            assert await wire.rest() == b""


# Answers, and what is lost of messages


@pytest.mark.parametrize("status", [200, 204, 304, 418, 503, 599])
async def test_an_answer_that_no_server_gave(status: int) -> None:
    async with origin(always(OK)) as server, forwarding(server.url, fault=[{"status": status}]) as proxy:
        with await Wire.open(proxy.url) as wire:
            for method in ("GET", "HEAD", "GET"):
                await wire.send(head(method, "/"))
                answer = await read_any(wire, method)
                assert answer.status == status
                assert status != 204 or "content-length" not in answer.headers
                assert not wire.buffer
        assert not server.requests


@pytest.mark.parametrize("kind", ["http", "sse", "websocket"])
async def test_a_connection_closed_instead_of_an_answer(kind: str) -> None:
    async with in_front_of_endless(kind, {"close_before_response": True}) as (proxy, request):
        books = await Books.opened()
        with await Wire.open(proxy.url) as wire:
            await wire.send(request)
            assert await how_it_ends(wire, "close") == (0, "close")
        await books.balanced()
        assert proxy.counters.cuts == {"fault": 1}


async def test_a_connection_closed_instead_of_an_error() -> None:
    async with forwarding("127.0.0.1:1", fault=[{"close_before_response": True, "status": 418}]) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert await how_it_ends(wire, "close") == (0, "close")


async def test_a_connection_closed_instead_of_a_tunnel_that_nobody_checked() -> None:
    sections: dict[str, Any] = {"tunnel": {"check_101": False}, "fault": [{"close_before_response": True}]}
    async with origin(silent) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", *WEBSOCKET_HEADERS))
            assert await how_it_ends(wire, "close") == (0, "close")
        await server.wait_left()


@pytest.mark.parametrize("status", [0, 418])
async def test_answers_before_the_answer(status: int) -> None:
    fault = {"inject_1xx": [103, 199], "status": status}
    async with origin(always(OK)) as server, forwarding(server.url, fault=[fault]) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):
                await wire.send(head("GET", "/"))
                assert [(await read_head(wire)).status for _ in range(2)] == [103, 199]
                assert (await read_answer(wire)).status == (status or 200)
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", version="1.0"))
            assert (await read_answer(wire)).status == (status or 200)


async def test_fields_that_get_lost() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: a\r\netag: b\r\nX-Kept: c\r\n\r\nok"
    fault = {"drop_request_header": ["last-event-id", "X-Forwarded-For"], "drop_response_header": ["ETAG"]}
    async with origin(always(answer)) as server, forwarding(server.url, fault=[fault]) as proxy:
        got = await ask(proxy.url, "GET", "/", "Last-Event-ID: 1-0", "Cookie: a")
        assert (got.body, got.headers) == (b"ok", {"content-length": "2", "x-kept": "c"})
        [asked] = server.requests
        assert {name.lower() for name, _ in asked.fields} == {"host", "cookie", "via"} | {
            "x-forwarded-proto",
            "x-forwarded-host",
        }


@pytest.mark.parametrize("name", ["Upgrade", "Connection"])
async def test_an_upgrade_that_gets_lost(name: str) -> None:
    async with origin(always(OK)) as server, forwarding(server.url, fault=[{"drop_request_header": [name]}]) as proxy:
        assert (await ask(proxy.url, "GET", "/", *WEBSOCKET_HEADERS)).status == 200
        [asked] = server.requests
        assert not asked.all("upgrade")
        assert not asked.all("connection")


async def test_fields_of_a_handshake_that_get_lost() -> None:
    fault = {"drop_response_header": ["Sec-WebSocket-Accept", "Upgrade"]}
    async with serving() as server, forwarding(server.url, fault=[fault]) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
            answer = await read_head(wire)
            assert answer.status == 101
            assert not answer.headers.keys() & {"sec-websocket-accept", "upgrade"}


async def test_a_position_that_gets_lost() -> None:
    async with serving() as server:
        fault = {"drop_request_header": ["Last-Event-ID"], "path": "/ev"}
        async with forwarding(server.url, fault=[fault]) as proxy:
            first = str(await server.hub.publish("t", 1))
            await server.hub.publish("t", 2)
            with await subscribe("sse", server.url, "t", last_id=first, by_header=True) as stream:
                assert (await stream.event()).data == 2
            with await Wire.open(proxy.url) as wire:
                lines = ("Accept: text/event-stream", f"Last-Event-ID: {first}")
                await wire.send(head("GET", "/events?topic=t", *lines))
                await wire.until(b"retry:")
                await server.hub.publish("t", 3)
                assert b"data: 2" not in await wire.until(b"data: 3")


# Connections to servers


async def test_a_kept_connection_that_is_closed_when_it_is_used() -> None:
    fault = {"stale_keepalive": True, "path": "/stale"}
    async with origin(always(OK)) as server, forwarding(server.url, fault=[fault]) as proxy:
        assert (await ask(proxy.url, "GET", "/stale")).status == 200  # there is none yet
        assert (await ask(proxy.url, "GET", "/well")).status == 200
        assert len(server.visits) == 1
        assert (await ask(proxy.url, "GET", "/stale")).status == 200
        assert len(server.visits) == 2
        assert (await ask(proxy.url, "POST", "/stale", body=b"once")).status == 502
        assert (await ask(proxy.url, "POST", "/well", body=b"once")).status == 200
        assert len(server.visits) == 3
        assert [asked.line.split()[1] for asked in server.requests] == ["/stale", "/well", "/stale", "/well"]


async def test_a_request_that_comes_twice() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, fault=[{"duplicate_request": True}]) as proxy:
        books = await Books.opened()
        assert (await ask(proxy.url, "GET", "/a")).status == 200
        first, second = await server.wait_requests(2)
        assert first.connection != second.connection
        assert first[1:] == second[1:]
        assert (await ask(proxy.url, "POST", "/b", body=b"x")).status == 200
        await until(lambda: server.open == 1)
        close_kept(proxy)
        await books.balanced()
        assert len(server.requests) == 3


async def test_a_second_request_does_not_keep_the_proxy() -> None:
    sections: dict[str, Any] = {"fault": [{"duplicate_request": True}], "drain": {"grace": "1h"}}
    async with origin(silent) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await server.wait_requests(2)
        await until(lambda: not proxy.clients)
        proxy.drain()
        with trio.fail_after(HANG_SECONDS):
            await proxy.wait_stopped()


# Time, and pieces


@asynccontextmanager
async def takes_at_least(seconds: float) -> AsyncIterator[None]:
    began = trio.current_time()
    yield
    assert trio.current_time() - began >= seconds * 0.95


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ({"delay_up": "300ms"}, 0.3),
        ({"delay_down": "300ms"}, 0.3),
        ({"delay_up": "200ms", "delay_down": "200ms"}, 0.4),
        ({"rate_up": "40KB"}, 0.45),
        ({"rate_down": "40KB"}, 0.45),
    ],
)
@pytest.mark.parametrize("mode", ["http", "tcp"])
async def test_what_takes_its_time(mode: str, fault: dict[str, str], seconds: float) -> None:
    large = bytes(range(200)) * 100
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + large
    async with (
        origin(always(answer)) as server,
        forwarding(server.url, proxy={"mode": mode}, fault=[fault]) as proxy,
        takes_at_least(seconds),
    ):
        assert (await ask(proxy.url, "POST", "/", body=large)).body == large
        assert server.requests[0].body == large


async def test_chance_is_the_same_each_time() -> None:
    fault = {"jitter": "300ms"}
    injected = FaultPlan([FaultEntry.model_validate(fault)], 5).choose(0, RequestHead(b"GET", b"/", [], b"1.1"))
    assert injected.chance is not None
    up, down = (injected.chance.uniform(0, 0.3) for _ in range(2))
    assert up + down > 0.1
    async with (
        origin(always(OK)) as server,
        forwarding(server.url, fault=[fault], faults={"seed": 5}) as proxy,
        takes_at_least(up + down),
    ):
        assert (await ask(proxy.url, "GET", "/")).status == 200


async def test_who_is_hit_is_the_same_each_time() -> None:
    async def statuses(seed: int) -> list[int]:
        faults = [{"probability": 0.5, "status": 503}, {"probability": 0.2, "status": 418}]
        async with forwarding(server.url, fault=faults, faults={"seed": seed}) as proxy:
            with await Wire.open(proxy.url) as wire:
                seen = []
                for _ in range(40):
                    await wire.send(head("GET", "/"))
                    seen.append((await read_answer(wire)).status)
                return seen

    async with origin(always(OK)) as server:
        first = await statuses(1)
        assert set(first) == {200, 418, 503}
        assert await statuses(1) == first
        assert await statuses(2) != first


@pytest.mark.parametrize("mode", ["http", "tcp"])
@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_what_comes_in_pieces_comes_whole(transport: str, mode: str) -> None:
    fault = {"segment": "1B", "delay_down": "1ms"}
    async with serving() as server, forwarding(server.url, proxy={"mode": mode}, fault=[fault]) as proxy:
        with await subscribe(transport, proxy.url, "t", last_id="0-0" if transport == "poll" else None) as subscription:
            sent = [f"é{n}" * 20 for n in range(5)]
            for data in sent:
                await publish(server.url, "t", data)
            assert [event.data for event in await subscription.events(5)] == sent


async def test_what_goes_up_in_pieces_comes_whole() -> None:
    fault = {"segment": "3B", "delay_up": "5ms", "rate_up": "50KB"}
    async with serving() as server, forwarding(server.url, fault=[fault]) as proxy:
        with await open_websocket(proxy.url, "/ws", behind=frame(TEXT, b'{"op":"ping","ref":1}')) as ws:
            assert (await ws.reply())["ref"] == 1
            for ref in range(2, 6):
                assert (await ws.operate(op="ping", ref=ref))["ref"] == ref


async def test_pipelined_requests_that_are_held_are_answered() -> None:
    """What is held when one exchange ends belongs to the next, which the fault may have nothing to do with."""
    fault = {"path": "/slow", "delay_up": "20ms", "delay_down": "20ms", "segment": "7B"}
    async with origin(always(OK)) as server, forwarding(server.url, fault=[fault]) as proxy:
        books = await Books.opened()
        with await Wire.open(proxy.url) as wire:
            targets = ["/slow", "/slow", "/well", "/slow", "/well", "/well"]
            await wire.send(head("GET", "/slow"))
            await server.wait_requests(1)
            await wire.send(b"".join(head("GET", target) for target in targets))
            for _ in range(7):
                assert (await read_answer(wire)).body == b"ok"
        assert [asked.line.split()[1] for asked in server.requests] == ["/slow", *targets]
        close_kept(proxy)
        await books.balanced()


# Whom it concerns


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        ({"path": "/events"}, {"http", "sse", "websocket"}),
        ({"path": "/event"}, {"http", "sse", "websocket"}),
        ({"path": "/publish"}, set()),
        ({"transport": "http"}, {"http"}),
        ({"transport": "sse"}, {"sse"}),
        ({"transport": "websocket"}, {"websocket"}),
        ({"transport": "sse", "path": "/publish"}, set()),
        ({"probability": 0}, set()),
    ],
)
async def test_whom_it_concerns(fault: dict[str, Any], hit: set[str]) -> None:
    headers = {"http": (), "sse": ("Accept: text/event-stream",), "websocket": WEBSOCKET_HEADERS}
    async with origin(always(OK)) as server, forwarding(server.url, fault=[fault | {"status": 418}]) as proxy:
        seen = {
            kind for kind, lines in headers.items() if (await ask(proxy.url, "GET", "/events", *lines)).status == 418
        }
        assert seen == hit


async def test_in_a_tunnel_of_bytes_there_is_no_path() -> None:
    faults = [{"path": "/", "reset_after": "0B"}, {"transport": "http", "reset_after": "0B"}]
    async with origin(always(OK)) as server, forwarding(server.url, proxy={"mode": "tcp"}, fault=faults) as proxy:
        assert (await ask(proxy.url, "GET", "/")).status == 200


async def test_faults_change_while_it_runs() -> None:
    sections: dict[str, Any] = {"proxy": {"speed": 20}, "admin": {"enabled": True, "port": 0}}
    sections |= {"client": {"keepalive_timeout": "off"}, "upstream": {"response_header_timeout": "off"}}
    async with origin(always(OK)) as server, forwarding(server.url, fault=[{"status": 418}], **sections) as proxy:
        with await Wire.open(proxy.url) as wire:

            async def status() -> int:
                await wire.send(head("GET", "/"))
                return (await read_answer(wire)).status

            assert await status() == 418
            told = await administer(proxy, "GET", "/fault")
            assert told.json() == [{"status": 418}]
            slow = [{"delay_down": "8s"}]
            assert (await administer(proxy, "PUT", "/fault", json.dumps(slow).encode())).json() == slow
            assert (await administer(proxy, "GET", "/fault")).json() == slow
            async with takes_at_least(0.4):
                with trio.fail_after(HANG_SECONDS):
                    assert await status() == 200
            refused = await administer(proxy, "PUT", "/fault", b'[{"status": 5}]')
            assert refused.status == 400
            assert (await administer(proxy, "GET", "/fault")).json() == slow
            assert (await administer(proxy, "PUT", "/fault", b"[]")).json() == []
            with trio.fail_after(HANG_SECONDS):
                assert await status() == 200
