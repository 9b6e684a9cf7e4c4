"""What counts for an account: taken on each transport, given back however a connection ends, told in the answers."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from clients import (
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Answer,
    Closed,
    WebSocket,
    WebSocketClosed,
    Wire,
    ask,
    attempt,
    frame,
    head,
    open_websocket,
    publish,
    read_answer,
    read_head,
    subscription_headers,
)
from clocks import Clock
from credentials import AUTH, bearer, token
from serving import harmless, metrics_of, no_garbage, serving, until

import tricast
from tricast.connection import Connection
from tricast.errors import ConnectionLost

ONE = {"connections_per_subject": 1, "subscribers_per_topic": 1}
KINDS = ("poll", "sse", "ws")
REFUSED = (429, 503)


async def begin(kind: str, url: str, target: str = "/events?topic=news") -> Wire:
    """Subscribes, and returns when the server has taken it, as far as that can be seen."""
    wire = await Wire.open(url)
    await wire.send(head("GET", target, *subscription_headers(kind)))
    if kind != "poll":
        await read_head(wire)
    return wire


async def has_room(server: tricast.Server) -> bool:
    """Whether one more may subscribe, who then leaves in peace."""
    answer = await attempt("poll", server.url, "topic=news&last_id=0-0")
    assert answer.status in (200, *REFUSED)
    return answer.status == 200


def close(wire: Wire) -> None:
    wire.close()


def reset(wire: Wire) -> None:
    wire.reset()


def finish(wire: Wire) -> None:
    wire.finish_sending()


# Given back


@pytest.mark.parametrize("end", [close, reset, finish])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_place_is_given_back_when_the_client_leaves(kind: str, end: Callable[[Wire], None]) -> None:
    async with serving(limits=ONE) as server:
        await server.hub.publish("news", 1)
        for _ in range(3):
            with await begin(kind, server.url) as wire:
                await until(lambda: server.hub.statistics().subscribers == 1)
                assert not await has_room(server)
                end(wire)
                await until(lambda: server.connections == 0)
                assert await has_room(server)


async def test_a_place_is_given_back_when_a_poll_is_answered() -> None:
    async with serving(limits=ONE) as server:
        with await Wire.open(server.url) as wire:
            for _ in range(3):
                await wire.send(head("GET", "/events?topic=news"))
                await until(lambda: server.hub.statistics().subscribers == 1)
                assert not await has_room(server)
                await server.hub.publish("news", 1)
                assert (await read_answer(wire)).status == 200
                assert await has_room(server)  # its connection is there still


async def test_a_place_is_given_back_by_a_stream_that_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(self: Connection, data: bytes) -> None:
        raise ConnectionLost("gone before its answer")

    async with serving(limits=ONE) as server:
        await server.hub.publish("news", 1)
        monkeypatch.setattr(Connection, "send", lose)
        for kind in ("sse", "ws"):
            with await Wire.open(server.url) as wire:
                await wire.send(head("GET", "/events?topic=news", *subscription_headers(kind)))
                assert await wire.rest() == b""
        monkeypatch.undo()
        assert await has_room(server)


@pytest.mark.parametrize("kind", ["sse", "ws"])
async def test_a_place_is_given_back_when_the_server_ends_the_stream(kind: str) -> None:
    limits = ONE | {"send_buffer": 4096, "write_timeout": "50ms"}
    async with serving(limits=limits, publish={"max_event": "1MiB"}, events={"history": 1}) as server:
        with await begin(kind, server.url) as wire:
            await server.hub.publish("news", "x" * (3 * 2**18))
            await until(lambda: server.connections == 0)
            await server.hub.publish("news", "little")  # so that the answer is taken at once, whoever is slow
            assert await has_room(server)
            with suppress(Closed):
                await wire.rest()


async def test_nothing_is_left_of_those_who_had_a_place() -> None:
    with no_garbage():
        async with serving(limits=ONE, publish={"rate": 1000, "burst": 1000}) as server:
            for kind in KINDS:
                with await begin(kind, server.url):
                    await until(lambda: server.hub.statistics().subscribers == 1)
                await until(lambda: server.connections == 0)


# Topics of a WebSocket


async def test_topics_that_are_full_are_refused_and_the_old_ones_stay() -> None:
    async with serving(limits={"subscribers_per_topic": 1}) as server:
        with (
            await open_websocket(server.url, "/ws") as first,
            await open_websocket(server.url, "/events?topic=b") as second,
        ):
            await second.reply()
            assert (await first.operate(op="subscribe", topics=["a"]))["ok"] == "subscribe"
            refused = await first.operate(op="subscribe", topics=["c", "b"])
            assert refused["error"]["code"] == "limit-exceeded"
            assert "limits.subscribers_per_topic" in refused["error"]["message"]
            await publish(server.url, "a", 1)
            assert (await first.event()).data == 1
            assert (await second.operate(op="subscribe", topics=["c"]))["ok"] == "subscribe"  # nobody has taken it
            assert "error" in await second.operate(op="subscribe", topics=["a"])
            assert (await first.operate(op="unsubscribe", topics=["a"]))["topics"] == []
            assert (await second.operate(op="subscribe", topics=["a"]))["topics"] == ["a", "b", "c"]
            assert (await second.operate(op="unsubscribe", topics=["b"]))["topics"] == ["a", "c"]
            assert (await first.operate(op="subscribe", topics=["b"]))["topics"] == ["b"]


# How fast they publish


def told(answer: Answer) -> tuple[str, str]:
    """What the answer tells of the rate."""
    return answer.headers["ratelimit-policy"], answer.headers["ratelimit"]


async def test_each_answer_tells_what_is_left() -> None:
    async with serving(publish={"rate": 0.01, "burst": 5}) as server:
        server._runtime.accounts._published._clock = Clock()  # which stands still: all of this is at once
        batch = b'{"topic":"news","data":1}\n' * 3
        answer = await ask(server.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=batch)
        assert told(answer) == ('"publish";q=5;w=500', '"publish";r=2;t=300')
        answer = await ask(server.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=batch)
        assert (answer.status, answer.headers["retry-after"]) == (429, "100")
        assert told(answer) == ('"publish";q=5;w=500', '"publish";r=2;t=100')
        for left in (1, 0):
            answer = await ask(server.url, "POST", "/publish?topic=news", body=b"1")
            assert told(answer)[1] == f'"publish";r={left};t={500 - left * 100}'
        with await Wire.open(server.url) as wire:  # which goes on
            for _ in range(2):
                await wire.send(head("POST", "/publish?topic=news", "Content-Length: 1") + b"1")
                answer = await read_answer(wire)
                assert (answer.status, answer.code) == (429, "limit-exceeded")
                assert answer.json()["detail"].startswith("publish.rate allows 0.01 a second; come back in ")
        assert server.hub.statistics().published == 5


async def test_nothing_is_told_where_there_is_no_rate() -> None:
    async with serving() as server:
        answer = await ask(server.url, "POST", "/publish?topic=news", body=b"1")
        assert not [name for name in answer.headers if name.startswith("ratelimit")]


async def test_an_account_has_one_rate_over_all_its_connections() -> None:
    handler = [{"path": "/publish-all", "handler": "talking:publish"}]
    async with serving(publish={"rate": 0.001, "burst": 3}, websocket={"handler": handler}) as server:
        with (
            await open_websocket(server.url, "/ws") as websocket,
            await open_websocket(server.url, "/publish-all") as app,
        ):
            await publish(server.url, "news", 1)
            assert (await websocket.operate(op="publish", topic="news", data=1))["ok"] == "publish"
            await app.wire.send(frame(TEXT, b"hello"))
            assert await app.message() == "published"
            refused = await websocket.operate(op="publish", topic="news", data=1, ref=7)
            assert (refused["error"]["code"], refused["ref"]) == ("limit-exceeded", 7)
            assert "publish.rate allows 0.001 a second" in refused["error"]["message"]
            await app.wire.send(frame(TEXT, b"hello"))
            assert (await app.closed()).code == 1008
            assert (await ask(server.url, "POST", "/publish?topic=news", body=b"1")).status == 429
            assert server.hub.statistics().published == 3


async def test_who_shows_a_token_is_its_subject_wherever_it_comes_from() -> None:
    limits = {"connections_per_subject": 1}
    async with serving(limits=limits, publish={"rate": 0.001, "burst": 1}, auth=AUTH) as server:
        ada, same, other = (bearer(token(sub=sub, iat=number)) for number, sub in enumerate(("ada", "ada", "grace")))
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream", ada))
            assert (await read_head(wire)).status == 200
            for kind in KINDS:
                refused = await attempt(kind, server.url, "topic=news", same)
                assert (refused.status, refused.code) == (429, "limit-exceeded")
                assert 1 <= int(refused.headers["retry-after"]) <= 8
            for header, status in ((same, 200), (ada, 429), (other, 200), (other, 429)):
                assert (await ask(server.url, "POST", "/publish?topic=news", header, body=b"1")).status == status
            assert (await attempt("poll", server.url, "topic=news&last_id=0-0", other)).status == 200
        await until(lambda: server.connections == 0)
        assert (await attempt("poll", server.url, "topic=news&last_id=0-0", same)).status == 200


async def test_those_without_a_token_are_their_addresses() -> None:
    auth = {"anonymous_subscribe": [">"], "anonymous_publish": [">"]}
    proxies = {"trusted_proxies": ["127.0.0.1"]}
    async with serving(publish={"rate": 0.001, "burst": 1}, auth=auth, server=proxies) as server:
        for address, status in (
            ("192.0.2.1", 200),
            ("192.0.2.2", 200),
            ("192.0.2.1", 429),
            ("2001:db8::1", 200),
            ("2001:db8::ffff:1", 429),  # of the same network
            ("2001:db8:0:1::1", 200),
        ):
            answer = await ask(server.url, "POST", "/publish?topic=news", f"X-Forwarded-For: {address}", body=b"1")
            assert answer.status == status


# Floods


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        (frame(TEXT, b'{"op":"ping"}') * 1000, 1008),
        (frame(PING) * 1000, 1008),
        (frame(PONG) * 1000, 1008),
        (b"".join([frame(TEXT, b"", fin=False), *[frame(PING), frame(CONTINUATION, fin=False)] * 1000]), 1008),
        (frame(TEXT, b'{"op":"subscribe","topics":["news"]}') * 1000, 1008),
    ],
    ids=["operations", "pings", "pongs", "pings between fragments", "subscriptions"],
)
async def test_a_flood_ends_its_connection_and_nobody_else_notices(flood: bytes, code: int) -> None:
    async with harmless(websocket={"message_rate": 1, "message_burst": 100}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            with suppress(Closed):  # it need not be read to the end
                await websocket.wire.send(flood)
            assert (await websocket.closed()).code == code
        await until(lambda: server.connections == 2)
        metrics = await metrics_of(server.url)
        assert metrics["refusals_total", "websocket.message_rate"] == 1


async def test_a_million_empty_fragments_are_not_looked_at() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            async with trio.open_nursery() as nursery:
                flood = frame(TEXT, b"", fin=False) + frame(CONTINUATION, fin=False) * 10**6
                nursery.start_soon(send_as_much_as_is_taken, websocket, flood)
                with pytest.raises(WebSocketClosed) as closed:
                    await websocket.message()
                assert closed.value.code == 1008
                nursery.cancel_scope.cancel()
        await until(lambda: server.connections == 2)
        assert (await metrics_of(server.url))["refusals_total", "websocket.max_fragments"] == 1


async def send_as_much_as_is_taken(websocket: WebSocket, data: bytes) -> None:
    with suppress(Closed):
        await websocket.wire.send(data)


async def test_who_paces_its_messages_may_go_on() -> None:
    async with serving(websocket={"message_rate": 200, "message_burst": 1}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            for number in range(10):
                assert (await websocket.operate(op="ping", ref=number))["ref"] == number
                await trio.sleep(0.01)  # twice as long as it has to
