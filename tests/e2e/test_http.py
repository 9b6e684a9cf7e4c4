"""HTTP/1.1 as clients use it: methods, keep-alive, pipelining, expectations, old versions, other origins."""

import socket

import pytest
import trio
from clients import (
    Ended,
    EventStream,
    Wire,
    ask,
    head,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from serving import serving, until

# Methods and paths


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/events?topic=news", "GET, HEAD, OPTIONS"),
        ("DELETE", "/events", "GET, HEAD, OPTIONS"),
        ("POST", "/ws", "GET, HEAD, OPTIONS"),
        ("GET", "/publish?topic=news", "OPTIONS, POST"),
        ("HEAD", "/publish?topic=news", "OPTIONS, POST"),
        ("PUT", "/healthz", "GET, HEAD, OPTIONS"),
        ("BREW", "/", "GET, HEAD, OPTIONS"),
        ("get", "/healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_is_not_for_a_path(method: str, path: str, allow: str) -> None:
    async with serving() as server:
        answer = await ask(server.url, method, path)
        assert answer.status == 405
        assert answer.headers["allow"] == allow
        assert method == "HEAD" or answer.code == "method-not-allowed"
        assert server._runtime.counters.refusals == {"method-not-allowed": 1}


@pytest.mark.parametrize(
    "path", ["/nothing", "/events/", "//events", "/EVENTS", "/..%2fevents", "/events%00", "/%F0%9F%98%80"]
)
async def test_a_path_where_there_is_nothing(path: str) -> None:
    async with serving() as server:
        answer = await ask(server.url, "GET", path)
        assert (answer.status, answer.code) == (404, "not-found")
        assert server._runtime.counters.refusals == {"not-found": 1}


async def test_percent_encoding_and_absolute_targets_are_understood() -> None:
    async with serving() as server:
        assert (await ask(server.url, "GET", "/health%7a")).status == 200
        assert (await ask(server.url, "GET", f"{server.url}/healthz")).status == 200
        assert (await ask(server.url, "GET", "http://elsewhere.test/healthz?x")).status == 200


async def test_options() -> None:
    async with serving() as server:
        for path, allow in [
            ("/events", "GET, HEAD, OPTIONS"),
            ("/publish", "OPTIONS, POST"),
            ("/", "GET, HEAD, OPTIONS"),
        ]:
            answer = await ask(server.url, "OPTIONS", path)
            assert (answer.status, answer.headers["allow"]) == (204, allow)
        assert (await ask(server.url, "OPTIONS", "*")).status == 204
        assert (await ask(server.url, "GET", "*")).status == 400


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/", "/style.css", "/events?topic=news", "/nothing"]
)
async def test_head_is_get_without_the_body(path: str) -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("HEAD", path) + head("GET", "/healthz"))
            answer = await read_answer(wire, "HEAD")
            # Were there a body, it would be taken for the next answer.
            assert (await read_answer(wire)).json() == {"status": "ok"}
        if not path.startswith("/events"):  # that one would wait
            same = await ask(server.url, "GET", path)
            assert answer.status == same.status
            assert answer.headers["content-type"] == same.headers["content-type"]
        assert server.hub.statistics().subscribers == 0


async def test_head_of_an_event_stream_ends() -> None:
    async with serving() as server:
        answer = await ask(server.url, "HEAD", "/events?topic=news", "Accept: text/event-stream")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_head_of_the_events_does_not_tell_a_length(accept: str) -> None:
    # What GET would answer is not known, and a length that is wrong is worse than none (RFC 9110 8.6).
    async with serving() as server:
        last_id = str(await server.hub.publish("news", 1))
        answer = await ask(server.url, "HEAD", "/events?topic=news", f"Accept: {accept}")
        assert (answer.status, answer.headers["content-type"]) == (200, accept)
        assert "content-length" not in answer.headers
        assert answer.headers.get("last-event-id") == (last_id if accept == "application/json" else None)


async def test_head_of_a_poll_tells_the_position_to_poll_from() -> None:
    async with serving() as server:
        for _ in range(2):
            answer = await ask(server.url, "HEAD", "/events?topic=news&last_id=0-0")
            assert answer.headers["last-event-id"] == str(server.hub.last_id)
            assert answer.headers["cache-control"] == "no-store"
            await server.hub.publish("other", 1)
        await server.hub.publish("news", 1)
        answer = await ask(server.url, "HEAD", "/events?topic=news&last_id=0-0")
        assert answer.headers["last-event-id"] == "0-0"


@pytest.mark.parametrize("path", ["/events?topic=news", "/ws"])
async def test_head_does_not_open_a_websocket(path: str) -> None:
    # RFC 6455 4.1: the method of a handshake is GET.
    async with serving() as server:
        headers = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        answer = await ask(server.url, "HEAD", path, *headers, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        assert answer.status in (200, 426)


async def test_every_answer_says_when_and_by_whom() -> None:
    async with serving() as server:
        for path in ("/healthz", "/nothing", "/events"):
            answer = await ask(server.url, "GET", path)
            assert answer.headers["server"] == "tricast"
            assert answer.headers["date"].endswith(" GMT")


async def test_metrics_count_what_happened() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            await publish(server.url, "news", 1)
            await subscriber.event()
            text = (await ask(server.url, "GET", "/metrics")).body.decode()
        assert "\ntricast_events_published_total 1.0\n" in text
        assert "\ntricast_subscribers 1.0\n" in text
        assert '\ntricast_streams_total{transport="sse"} 1.0\n' in text
        assert '\ntricast_http_requests_total{path="/publish",status="200"} 1.0\n' in text


async def test_the_admin_listener_has_the_operations_to_itself() -> None:
    async with serving(admin={"enabled": True, "port": 0}) as server:
        (admin,) = server.admin_urls
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await ask(admin, "GET", path)).status == 200
            assert (await ask(server.url, "GET", path)).status == 404
        assert (await ask(admin, "GET", "/events?topic=news")).status == 404


async def test_the_page_is_revalidated() -> None:
    async with serving() as server:
        first = await ask(server.url, "GET", "/tricast.js")
        again = await ask(server.url, "GET", "/tricast.js", f"If-None-Match: {first.headers['etag']}")
        assert (again.status, again.body) == (304, b"")
        assert (await ask(server.url, "GET", "/tricast.js", 'If-None-Match: "other"')).body == first.body


async def test_without_the_page() -> None:
    async with serving(server={"page": False}) as server:
        assert (await ask(server.url, "GET", "/")).status == 404
        assert (await ask(server.url, "GET", "/healthz")).status == 200


# Connections


async def test_keep_alive_and_its_end() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            for _ in range(5):
                await wire.send(head("GET", "/healthz"))
                assert "connection" not in (await read_answer(wire)).headers
            await wire.send(head("GET", "/healthz", "Connection: close"))
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await wire.rest() == b""


async def test_a_mistake_does_not_end_a_connection_that_can_go_on() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            for target, status in [("/nothing", 404), ("/events?topic=", 400), ("/ws", 426), ("/healthz", 200)]:
                await wire.send(head("GET", target))
                assert (await read_answer(wire)).status == status


async def test_http_10_ends_after_the_answer() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz", version="1.0", host=None))
            answer = await read_answer(wire)
            assert answer.json() == {"status": "ok"}
            assert answer.headers["connection"] == "close"
            assert await wire.rest() == b""


async def test_an_event_stream_on_http_10_has_no_chunks() -> None:
    async with serving(sse={"keepalive": "50ms"}) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream", version="1.0"))
            answer = await read_head(wire)
            assert "transfer-encoding" not in answer.headers
            stream = await EventStream(wire, None, is_chunked=False).begun()
            await publish(server.url, "news", {"n": 1})
            assert (await stream.event()).data == {"n": 1}
            await stream.wait_comment()
            server.drain()
            assert b"retry: " in await wire.rest()


async def test_a_long_poll_on_http_10() -> None:
    async with serving() as server:
        await server.hub.publish("news", {"n": 1})
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news&last_id=0-0", version="1.0"))
            assert [event["data"] for event in (await read_answer(wire)).json()["events"]] == [{"n": 1}]
            assert await wire.rest() == b""


async def test_an_upgrade_on_http_10_is_ignored() -> None:
    # RFC 9110 7.8.
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/ws", "Connection: upgrade", "Upgrade: websocket", version="1.0"))
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (426, "upgrade-required")


async def test_an_upgrade_to_something_else_is_ignored() -> None:
    # RFC 9113 3.1 has a server ignore h2c; clients of some languages ask for it with every first request.
    async with serving(poll={"timeout": "20ms"}) as server:
        with await Wire.open(server.url) as wire:
            h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
            for _ in range(2):
                await wire.send(head("GET", "/", *h2c))
                answer = await read_answer(wire)
                assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
                await wire.send(head("POST", "/publish?topic=news", *h2c, "Content-Length: 1") + b"1")
                assert (await read_answer(wire)).status == 200
                await wire.send(head("GET", "/events?topic=other", *h2c))
                assert (await read_answer(wire)).status == 204
                await wire.send(head("GET", "/healthz"))
                assert (await read_answer(wire)).json() == {"status": "ok"}


@pytest.mark.parametrize("is_admin", [False, True])
async def test_accepted_sockets_are_set_as_they_should_be(is_admin: bool) -> None:
    limits = {"write_timeout": "7s", "send_buffer": 20_000}
    async with serving(limits=limits, admin={"enabled": True, "port": 0}) as server:
        with await Wire.open(server.admin_urls[0] if is_admin else server.url):
            await until(lambda: server.connections == 1)
            (connection,) = server._runtime.open
            sock = connection._sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 20_000  # Linux doubles it (socket(7))
            assert not sock.getblocking()


async def test_the_kernel_sizes_the_send_buffer_unless_configured() -> None:
    async with serving() as server:
        with await Wire.open(server.url), socket.socket() as ordinary:
            await until(lambda: server.connections == 1)
            (connection,) = server._runtime.open
            size = connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert size >= ordinary.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


async def test_requests_in_one_segment_are_answered_in_order() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            body = b'{"n":1}'
            await wire.send(
                head("GET", "/healthz")
                + head("POST", "/publish?topic=news", f"Content-Length: {len(body)}")
                + body
                + head("GET", "/nothing")
                + head("POST", "/publish?topic=news", "Transfer-Encoding: chunked")
                + b'3\r\n{"n\r\n4\r\n":2}\r\n0\r\n\r\n'
                + head("GET", "/events?topic=news&last_id=0-0")
                + head("GET", "/readyz", "Connection: close")
            )
            answers = [await read_answer(wire) for _ in range(6)]
            statuses = [answer.status for answer in answers]
            assert statuses == [200, 200, 404, 200, 200, 200]
            assert [event["data"] for event in answers[4].json()["events"]] == [{"n": 1}, {"n": 2}]
            assert await wire.rest() == b""


async def test_requests_byte_by_byte() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            data = head("POST", "/publish?topic=news", "Transfer-Encoding: chunked") + b"1\r\n1\r\n0\r\n\r\n"
            for byte in data + head("GET", "/healthz"):
                await wire.send(bytes([byte]))
            assert (await read_answer(wire)).status == 200
            assert (await read_answer(wire)).json() == {"status": "ok"}


async def test_thousands_of_pipelined_requests_let_others_have_their_turn() -> None:
    async with serving() as server:
        before = 0
        largest_step = 0

        async def watch(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            nonlocal before, largest_step
            task_status.started()
            while True:
                answered = server._runtime.counters.requests["/healthz", 200]
                largest_step = max(largest_step, answered - before)
                before = answered
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            with await Wire.open(server.url) as wire:
                nursery.start_soon(wire.send, head("GET", "/healthz") * 3000)
                await nursery.start(watch)
                for _ in range(3000):
                    assert (await read_answer(wire)).status == 200
            nursery.cancel_scope.cancel()
        assert 0 < largest_step <= 10


async def test_requests_behind_a_long_poll_wait_for_it() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news"))
            await until(lambda: server.hub.statistics().subscribers == 1)
            await wire.send(head("GET", "/healthz") + head("GET", "/nothing")[:20])
            await wire.send(head("GET", "/nothing")[20:])
            await publish(server.url, "news", {"n": 1})
            assert [event["data"] for event in (await read_answer(wire)).json()["events"]] == [{"n": 1}]
            assert (await read_answer(wire)).json() == {"status": "ok"}
            assert (await read_answer(wire)).status == 404


async def test_a_flood_behind_a_long_poll_waits_in_the_kernel() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news"))
            await until(lambda: server.hub.statistics().subscribers == 1)
            count = 4000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.send, head("GET", "/healthz") * count)
                await publish(server.url, "news", {"n": 1})
                assert (await read_answer(wire)).json()["events"]
                for _ in range(count):
                    assert (await read_answer(wire)).status == 200


async def test_an_event_streams_client_may_say_what_it_likes() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            await subscriber.wire.send(head("GET", "/healthz") * 1000 + b"\x00\xff" * 10000)
            await publish(server.url, "news", {"n": 1})
            assert (await subscriber.event()).data == {"n": 1}


@pytest.mark.parametrize("target", ["/events?topic=news&last_id=0-0", "/healthz", "/events?topic="])
async def test_a_body_that_nobody_reads_ends_the_connection(target: str) -> None:
    # What follows the answer would have to be told from what is left of the body.
    async with serving() as server:
        await server.hub.publish("news", 1)
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", target, "Content-Length: 5") + b"hello" + head("GET", "/healthz"))
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await wire.rest() == b""


# Expect


async def test_a_client_that_expects_100_gets_it_before_its_body() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            for _ in range(2):
                await wire.send(head("POST", "/publish?topic=news", "Content-Length: 2", "Expect: 100-continue"))
                assert (await read_head(wire)).status == 100
                await wire.send(b"42")
                assert (await read_answer(wire)).status == 200


async def test_a_client_that_expects_100_and_need_not_send_its_body() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("POST", "/publish?topic=news", "Content-Length: 999999999", "Expect: 100-Continue"))
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (413, "limit-exceeded")
            assert await wire.rest() == b""


async def test_an_expectation_that_nobody_knows() -> None:
    async with serving() as server:
        for value in ("foo", "100-continue, foo", ""):
            answer = await ask(server.url, "POST", "/publish?topic=news", f"Expect: {value}", body=b"1")
            assert answer.status == 417


# Long polls


async def test_a_long_poll_without_events_ends_with_204_and_a_position() -> None:
    async with serving(poll={"timeout": "50ms"}) as server:
        last_id = str(await server.hub.publish("other", 1))
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news"))
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
            assert "content-length" not in answer.headers
            assert "retry-after" not in answer.headers
            # What is published between two requests is not missed.
            event_id = await publish(server.url, "news", {"n": 1})
            await wire.send(head("GET", f"/events?topic=news&last_id={last_id}"))
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["last-event-id"]) == (200, event_id)
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["cache-control"] == "no-store"


async def test_accept_decides_between_stream_and_long_poll() -> None:
    async with serving() as server:
        await server.hub.publish("news", 1)
        for accept, expected in [
            ("text/event-stream", "text/event-stream"),
            ("application/json, TEXT/Event-Stream ;q=0.5", "text/event-stream"),
            ("text/event-stream;q=0, application/json", "application/json"),
            ("*/*", "application/json"),
            ("text/*", "application/json"),
        ]:
            with await Wire.open(server.url) as wire:
                await wire.send(head("GET", "/events?topic=news&last_id=0-0", f"Accept: {accept}"))
                assert (await read_head(wire)).headers["content-type"] == expected


# Other origins


async def test_no_origin_is_allowed_unless_configured() -> None:
    async with serving() as server:
        answer = await ask(server.url, "OPTIONS", "/events", "Origin: https://a.test")
        assert answer.status == 204
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("headers", [(), ("Accept: text/event-stream",)])
async def test_configured_origins_may_subscribe(headers: tuple[str, ...]) -> None:
    async with serving(server={"cors_origins": ["https://a.test", "https://b.test"]}) as server:
        await server.hub.publish("news", 1)
        for origin, allowed in [
            ("https://a.test", "https://a.test"),
            ("https://b.test", "https://b.test"),
            ("https://c.test", None),
        ]:
            for target in ("/events?topic=news&last_id=0-0", "/events?topic="):
                with await Wire.open(server.url) as wire:
                    await wire.send(head("GET", target, f"Origin: {origin}", *headers))
                    answer = await read_head(wire)
                    assert answer.headers.get("access-control-allow-origin") == allowed
                    assert answer.headers["vary"] == "origin"
                    exposed = answer.headers.get("access-control-expose-headers")
                    told = "last-event-id, retry-after, ratelimit, ratelimit-policy"
                    assert exposed == (None if allowed is None else told)
            answer = await ask(server.url, "OPTIONS", "/events", f"Origin: {origin}")
            assert ("access-control-allow-headers" in answer.headers) == (allowed is not None)


async def test_every_origin_may_be_allowed() -> None:
    async with serving(server={"cors_origins": ["*"]}) as server:
        answer = await ask(
            server.url, "OPTIONS", "/events", "Origin: null", "Access-Control-Request-Headers: last-event-id"
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
        assert "last-event-id" in answer.headers["access-control-allow-headers"]


# Ends, and limits


async def test_drained_streams_end_as_bodies_end() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            await server.hub.publish("news", {"n": 1})
            await subscriber.event()
            server.drain()
            with pytest.raises(Ended):
                await subscriber.event()


async def test_topics_of_the_configured_length_only() -> None:
    async with serving(limits={"topic_size": 10}) as server:
        assert (await ask(server.url, "POST", f"/publish?topic={'x' * 10}", body=b"1")).status == 200
        answer = await ask(server.url, "POST", f"/publish?topic={'x' * 11}", body=b"1")
        assert (answer.status, answer.code) == (400, "limit-exceeded")
