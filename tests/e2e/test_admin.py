"""The admin listener, which has room when the public one has none, and what the metrics tell there."""

from contextlib import ExitStack

import pytest
import trio
from clients import WebSocket, Wire, ask, attempt, head, publish, query_of, read_answer, say, subscribe
from serving import about, metrics_of, serving, until

import tricast

ADMIN = {"enabled": True, "port": 0}
OPERATIONS = ("/healthz", "/readyz", "/metrics")


async def refused(url: str) -> None:
    answer = await ask(url, "GET", "/events?topic=news")
    assert (answer.status, answer.code) == (503, "overloaded")


# Room


async def test_health_is_told_when_all_connections_are_in_use() -> None:
    async with serving(limits={"connections": 1}, admin=ADMIN) as server:
        (admin,) = server.admin_urls
        for _ in range(3):  # places are free again when connections end
            with await subscribe("sse", server.url, "news") as stream:
                await refused(server.url)
                for path in OPERATIONS:
                    assert (await ask(admin, "GET", path)).status == 200
                await until(lambda: server.connections == 1)
                await refused(server.url)
                await server.hub.publish("news", 1)
                assert (await stream.event()).data == 1
            await until(lambda: server.connections == 0)
        assert (await ask(server.url, "GET", "/")).status == 200
        metrics = await metrics_of(admin)
        assert metrics["connections_refused_total",] == 6
        assert metrics["connections_accepted_total",] == 3 + 9 + 1 + 1


async def test_connections_to_the_admin_listener_take_no_public_place() -> None:
    async with serving(limits={"connections": 1}, admin=ADMIN) as server:
        (admin,) = server.admin_urls
        with ExitStack() as wires:
            for _ in range(5):
                wire = wires.enter_context(await Wire.open(admin))
                await wire.send(head("GET", "/healthz"))
                assert (await read_answer(wire)).status == 200
            assert server.connections == 5
            with await subscribe("ws", server.url, "news"):
                await refused(server.url)


async def test_the_admin_listener_has_its_own_limit() -> None:
    async with serving(limits={"reserved_descriptors": 8}, admin=ADMIN) as server:
        (admin,) = server.admin_urls
        with await Wire.open(admin) as first, await Wire.open(admin):
            await until(lambda: server.connections == 2)
            assert (await ask(admin, "GET", "/healthz")).status == 503
            assert (await ask(server.url, "GET", "/")).status == 200
            await first.send(head("GET", "/healthz", "Connection: close"))
            assert (await read_answer(first)).status == 200
            assert await first.rest() == b""
        await until(lambda: server.connections == 0)
        assert (await ask(admin, "GET", "/healthz")).status == 200


async def test_the_public_listener_tells_nothing_that_the_admin_listener_tells() -> None:
    async with serving(admin=ADMIN) as server:
        (admin,) = server.admin_urls
        for path in OPERATIONS:
            assert (await ask(server.url, "GET", path)).status == 404
        for path in ("/", "/events?topic=news", "/ws"):
            assert (await ask(admin, "GET", path)).status == 404
        assert (await ask(admin, "POST", "/publish?topic=news", body=b"1")).status == 404
        assert server.hub.statistics().published == 0


# Metrics


async def test_nothing_has_happened() -> None:
    async with serving(admin=ADMIN) as server:
        (admin,) = server.admin_urls
        metrics = await metrics_of(admin)
        about_the_log = {key: value for key, value in metrics.items() if key[0].startswith("log_")}
        assert about_the_log.pop(("log_available",)) == 1
        assert about_the_log
        assert set(about_the_log.values()) == {0}
        assert {key: value for key, value in metrics.items() if not key[0].startswith("log_")} == {
            ("connections",): 1,
            ("subscribers",): 0,
            ("subscribers_behind",): 0,
            ("feeds",): 0,
            ("draining",): 0,
            ("memory_over",): 0,
            ("events_published_total",): 0,
            ("events_committed_total",): 0,
            ("flushes_total",): 0,
            ("deliveries_total",): 0,
            ("fell_behind_total",): 0,
            ("gaps_total",): 0,
            ("connections_accepted_total",): 1,
            ("connections_refused_total",): 0,
            ("connections_failed_total",): 0,
            ("connections_unavailable_total",): 0,
        }


async def test_exactly_what_happened_is_counted() -> None:
    async with serving(admin=ADMIN, events={"history": 3}) as server:
        (admin,) = server.admin_urls
        first_id = str(server.hub.last_id)
        with (
            await subscribe("sse", server.url, "news") as stream,
            await subscribe("ws", server.url, "news") as websocket,
            await subscribe("poll", server.url, "news", "other") as poll,
        ):
            subscribers = (stream, websocket, poll)
            await until(lambda: server.hub.statistics().subscribers == 3)
            await publish(server.url, "news", 1)
            for subscriber in subscribers:
                assert (await subscriber.event()).data == 1
            lines = b'{"topic":"news","data":2}\n' * 2
            await ask(server.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=lines)
            for subscriber in (stream, websocket):
                await subscriber.events(2)
            assert isinstance(websocket, WebSocket)
            assert (await websocket.operate(op="publish", topic="nobody.asks", data=1))["ok"] == "publish"
            # More than the history, so that one who comes back has missed something.
            await server.hub.publish("news", 3)
            for subscriber in (stream, websocket):
                await subscriber.event()
            assert (await ask(server.url, "GET", f"/events?{query_of(['news'], first_id)}")).json()["gap"]

            assert (await attempt("sse", server.url, "topic=")).status == 400
            assert (await ask(server.url, "GET", "/made/up")).status == 404
            assert (await ask(server.url, "GET", "/made/up/too")).status == 404
            assert (await ask(server.url, "DELETE", "/publish")).status == 405
            assert (await say(server.url, b"nonsense\r\n\r\n")).status == 400
            await until(lambda: server.connections == 3)

            metrics = await metrics_of(admin)
            assert about(metrics, "streams_total") == {("sse",): 1, ("websocket",): 1, ("poll",): 2}
            assert about(metrics, "http_requests_total") == {
                ("/events", "200"): 3,
                ("/events", "101"): 1,
                ("/events", "400"): 1,
                ("/publish", "200"): 2,
                ("/publish", "405"): 1,
                ("other", "404"): 2,
                ("malformed", "400"): 1,
            }
            assert about(metrics, "connections_lost_total") == {}
            totals = {name: value for (name, *labels), value in metrics.items() if not labels}
            assert {name: value for name, value in totals.items() if not name.startswith("log_")} == {
                "connections": 4,
                "subscribers": 2,
                "subscribers_behind": 0,
                "feeds": 1,
                "draining": 0,
                "memory_over": 0,
                "events_published_total": 5,
                "events_committed_total": 5,
                "flushes_total": 3,
                "deliveries_total": 3 + 2 + 2,
                "fell_behind_total": 0,
                "gaps_total": 1,
                "connections_accepted_total": 3 + 3 + 5 + 1,
                "connections_refused_total": 0,
                "connections_failed_total": 0,
                "connections_unavailable_total": 0,
            }
        assert about(await metrics_of(admin), "http_requests_total")["/metrics", "200"] == 1


async def lost(server: tricast.Server, reason: str, count: int = 1) -> None:
    """Returns when so many connections were lost, all of them for this reason."""
    (admin,) = server.admin_urls
    await until(lambda: server._runtime.counters.lost.total() == count)
    assert about(await metrics_of(admin), "connections_lost_total") == {(reason,): count}


async def test_clients_that_leave_are_counted() -> None:
    async with serving(admin=ADMIN) as server:
        for count, transport in enumerate(("poll", "sse", "poll", "sse"), start=1):
            with await subscribe(transport, server.url, "news"):
                await until(lambda: server.hub.statistics().subscribers == 1)
            await lost(server, "left", count)


async def test_a_websocket_that_is_closed_is_not_lost() -> None:
    async with serving(admin=ADMIN) as server:
        with await subscribe("ws", server.url, "news") as websocket:
            await websocket.wire.send(b"\x88\x80\0\0\0\0")
            assert isinstance(websocket, WebSocket)
            await websocket.closed()
        await until(lambda: server.connections == 0)
        (admin,) = server.admin_urls
        assert about(await metrics_of(admin), "connections_lost_total") == {}


async def test_clients_that_reset_are_counted() -> None:
    async with serving(admin=ADMIN) as server:
        for count, transport in enumerate(("poll", "sse", "ws"), start=1):
            with await subscribe(transport, server.url, "news") as subscriber:
                await until(lambda: server.hub.statistics().subscribers == 1)
                subscriber.wire.reset()
                await lost(server, "reset", count)


async def test_websockets_that_answer_no_ping_are_counted() -> None:
    timing = {"ping_interval": "10ms", "ping_timeout": "50ms"}
    async with serving(admin=ADMIN, websocket=timing) as server:
        with await subscribe("ws", server.url, "news"):
            await lost(server, "ping-timeout")


async def test_clients_that_take_nothing_are_counted() -> None:
    limits = {"write_timeout": "50ms", "send_buffer": 4096}
    async with serving(admin=ADMIN, limits=limits) as server:
        with await subscribe("sse", server.url, "news", receive_buffer=4096):
            while server.hub.statistics().behind == 0:
                await server.hub.publish("news", "x" * 2000)
                await trio.lowlevel.checkpoint()
            await lost(server, "write-timeout")
            (admin,) = server.admin_urls
            assert (await metrics_of(admin))["fell_behind_total",] == 1


@pytest.mark.parametrize("query", ["exclude=lug", "exclude=", "exclude=log&exclude=log"])
async def test_only_the_log_can_be_left_out_of_what_is_ready(query: str) -> None:
    async with serving() as server:
        answer = await ask(server.url, "GET", f"/readyz?{query}")
        assert (answer.status, answer.code) == (400, "bad-query")
        server._runtime.is_leaving = True
        assert (await ask(server.url, "GET", "/readyz?exclude=log")).status == 503
