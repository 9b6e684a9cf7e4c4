"""How long who was let in may stay: tokens that end, newer ones brought in time, and tickets."""

import time
from typing import Any

import pytest
from clients import (
    WEBSOCKET_HEADERS,
    Answer,
    Ended,
    EventStream,
    WebSocket,
    Wire,
    ask,
    head,
    open_websocket,
    query_of,
    read_answer,
    read_head,
    subscribe,
)
from credentials import API_KEY, API_KEY_HASH, AUTH, bearer, token
from serving import serving, serving_process, until
from structlog.testing import LogCapture

import tricast
from tricast.access.tickets import PREFIX
from tricast.http import HttpConnection
from tricast.transports.stream import Stream

#: Long enough to bring a newer token on a busy machine.
SOON = 3.0


def hurry(server: tricast.Server) -> None:
    """Lets the clock by which who was let in is let out run ahead of the one that tokens are checked with.

    So a token of a minute is good, however busy the machine is, and what it lets in ends in a moment.
    """
    server._runtime._clock = lambda: time.time() + 59.7


async def stream_of(server: tricast.Server, *topics: str, seconds: float = 60, **claims: Any) -> EventStream:
    """An event stream of ada's, or of somebody else's."""
    shown = bearer(token(exp=time.time() + seconds, **claims))
    stream = await subscribe("sse", server.url, *(topics or ("news",)), credentials=(shown,))
    assert isinstance(stream, EventStream)
    while stream.lease is None:
        await stream._read()
    return stream


async def refresh(server: tricast.Server, stream: EventStream, seconds: float = 60, **claims: Any) -> Answer:
    """A newer token for the stream."""
    assert stream.lease is not None
    shown = bearer(token(exp=time.time() + seconds, **claims))
    return await ask(server.url, "POST", f"/refresh?stream={stream.lease['stream']}", shown)


def be_late(server: tricast.Server) -> None:
    """Lets a minute go by for all that is asked of who was let in; no connection has been ended for that yet."""
    access = server._runtime.access
    access._clock = access.tokens._clock = lambda: time.time() + 60


def let_out(server: tricast.Server) -> None:
    """Has the end come in a moment for the only one who is there."""
    hurry(server)
    (stream,) = server._runtime.open.values()
    assert isinstance(stream, Stream)
    stream.renew(stream.identity)


def expired(server: tricast.Server) -> int:
    return server._runtime.counters.refusals["token-expired"]


# The end


async def test_an_event_stream_ends_when_its_token_does() -> None:
    async with serving(auth=AUTH) as server:
        hurry(server)
        begun = time.time()
        with await stream_of(server, seconds=60) as stream:
            assert stream.lease is not None
            assert begun + 59 <= stream.lease["expires_at"] <= time.time() + 60
            with pytest.raises(Ended):
                await stream.event()
            assert time.time() - begun >= 0.2
            assert stream.last_comment == "token expired"
            assert await stream.wire.rest() == b""
        assert expired(server) == 1
        await until(lambda: server.connections == 0)
        assert len(server._runtime.leases) == 0


async def test_a_websocket_closes_with_4401_when_its_token_ends() -> None:
    async with serving(auth=AUTH) as server:
        hurry(server)
        shown = bearer(token())
        with await subscribe("ws", server.url, "news", credentials=(shown,)) as websocket:
            assert isinstance(websocket, WebSocket)
            closed = await websocket.closed()
            assert (closed.code, closed.reason) == (4401, "token expired")
        assert expired(server) == 1


async def test_a_poll_ends_when_its_token_does() -> None:
    async with serving(auth=AUTH) as server:
        hurry(server)
        with await subscribe("poll", server.url, "news", credentials=(bearer(token()),)) as poll:
            # The test may take 20 s, and poll.timeout is 25 s.
            answer = await read_answer(poll.wire)
            assert (answer.status, answer.headers["last-event-id"]) == (204, str(server.hub.last_id))


async def test_a_handler_is_ended_when_the_token_does() -> None:
    echo = {"handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}]}
    async with serving(auth=AUTH, websocket=echo) as server:
        hurry(server)
        with await open_websocket(server.url, "/echo", bearer(token())) as websocket:
            assert (await websocket.closed()).code == 4401


async def test_what_is_behind_ends_as_well() -> None:
    """A client that does not read is not let off: nothing more is sent to it, and it is cut off."""
    async with serving(auth=AUTH, limits={"write_timeout": "1s"}, publish={"max_event": "1MiB"}) as server:
        hurry(server)
        shown = (bearer(token()),)
        with await subscribe("sse", server.url, "news", credentials=shown, receive_buffer=4096) as stream:
            for _ in range(8):
                await server.hub.publish("news", "x" * (2**20 - 2))
            await until(lambda: server.connections == 0)
            assert stream.last_id is not None
        assert server.hub.statistics().subscribers == 0


async def test_who_is_always_sent_something_is_let_out_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that never lets the socket run empty leaves no gap for the goodbye by itself."""

    async def flood(session: tricast.Session) -> None:
        while True:
            await session.send(b"x" * 2**20)

    monkeypatch.setattr("tricast.handlers.flood", flood, raising=False)
    handlers = {"handler": [{"path": "/flood", "handler": "tricast.handlers:flood"}]}
    async with serving(auth=AUTH, websocket=handlers, limits={"send_buffer": "16KiB"}) as server:
        with await open_websocket(server.url, "/flood", bearer(token())) as websocket:
            await websocket.message()
            let_out(server)
            assert (await websocket.closed()).code == 4401
        await until(lambda: server.connections == 0)


@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_body_that_takes_its_time_is_not_published_behind_the_end(is_batch: bool) -> None:
    target, content_type = ("/publish", "application/x-ndjson") if is_batch else ("/publish?topic=news", "text/plain")
    body = b'{"topic":"news","data":1}' if is_batch else b"1"
    async with serving(auth=AUTH) as server:
        with await Wire.open(server.url) as wire:
            fields = (bearer(token()), f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
            await wire.send(head("POST", target, *fields, "Expect: 100-continue"))
            assert (await read_head(wire)).status == 100
            be_late(server)
            await wire.send(body)
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (401, "token-expired")
        assert server.hub.statistics().published == 0


async def test_nothing_more_can_be_done_behind_the_end_on_a_connection_that_is_still_there() -> None:
    async with serving(auth=AUTH) as server:
        with await open_websocket(server.url, "/ws?topic=news", bearer(token())) as websocket:
            await websocket.begun()
            be_late(server)
            for operation in ({"op": "publish", "topic": "a", "data": 1}, {"op": "subscribe", "topics": ["a"]}):
                assert (await websocket.operate(**operation))["error"]["code"] == "token-expired"
            assert server.hub.statistics().published == 0


async def test_chat_says_who_has_left_for_a_token_that_is_over() -> None:
    chat = {"handler": [{"path": "/chat", "handler": "tricast.handlers:chat"}]}
    async with serving(auth=AUTH, websocket=chat) as server:
        with await open_websocket(server.url, "/chat?name=Ada", bearer(token())) as websocket:
            assert (await websocket.event()).type == "joined"
            let_out(server)
            be_late(server)
            assert (await websocket.closed()).code == 4401
        await until(lambda: server.connections == 0)
        assert server.hub.statistics().published == 2


async def test_a_key_has_no_end() -> None:
    auth = AUTH | {"api_key": [{"name": "reader", "hash": API_KEY_HASH, "subscribe": [">"]}]}
    async with serving(auth=auth) as server:
        with await subscribe("sse", server.url, "news", credentials=(f"X-API-Key: {API_KEY}",)) as stream:
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1
            assert isinstance(stream, EventStream)
            assert stream.lease is None


# In place


async def test_an_event_stream_lives_on_with_a_newer_token() -> None:
    async with serving(auth=AUTH) as server:
        with await stream_of(server, seconds=SOON) as stream:
            answer = await refresh(server, stream, seconds=SOON + 60)
            assert answer.status == 200
            assert answer.headers["cache-control"] == "no-store"
            assert answer.json()["expires_at"] > time.time() + 50
            with await stream_of(server, seconds=SOON) as witness, pytest.raises(Ended):
                await witness.event()  # later than the first
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1


async def test_a_websocket_lives_on_with_a_newer_token() -> None:
    async with serving(auth=AUTH) as server:
        with await open_websocket(server.url, "/ws?topic=news", bearer(token(exp=time.time() + SOON))) as websocket:
            await websocket.begun()
            until_then = time.time() + 100
            reply = await websocket.operate(op="auth", token=token(exp=until_then), ref="r")
            assert reply == {"ok": "auth", "expires_at": int(until_then), "ref": "r"}
            with await stream_of(server, seconds=SOON) as witness, pytest.raises(Ended):
                await witness.event()
            await server.hub.publish("news", 1)
            assert (await websocket.event()).data == 1


async def test_a_newer_token_may_end_earlier() -> None:
    async with serving(auth=AUTH) as server:
        with await stream_of(server, seconds=3600) as stream:
            hurry(server)
            assert (await refresh(server, stream, seconds=60)).status == 200
            with pytest.raises(Ended):
                await stream.event()


async def test_a_newer_token_counts_for_what_comes() -> None:
    async with serving(auth=AUTH) as server:
        with await open_websocket(server.url, "/ws", bearer(token(publish=["a"]))) as websocket:
            assert (await websocket.operate(op="publish", topic="b", data=1))["error"]["code"] == "topic-not-allowed"
            await websocket.operate(op="auth", token=token(publish=["b"]))
            assert (await websocket.operate(op="publish", topic="b", data=1))["ok"] == "publish"
            assert (await websocket.operate(op="publish", topic="a", data=1))["error"]["code"] == "topic-not-allowed"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "bob"}, "other-account"),
        ({"sub": None}, "other-account"),
        ({"subscribe": ["news"]}, "topic-not-allowed"),
        ({"subscribe": []}, "topic-not-allowed"),
    ],
)
async def test_a_token_that_does_not_do_changes_nothing(claims: dict[str, Any], code: str) -> None:
    async with serving(auth=AUTH) as server:
        with (
            await stream_of(server, "news", "more.>") as stream,
            await open_websocket(server.url, "/ws?topic=news&topic=more.%3E", bearer(token())) as websocket,
        ):
            await websocket.begun()
            answer = await refresh(server, stream, **claims)
            assert (answer.status, answer.code) == (403, code)
            reply = await websocket.operate(op="auth", token=token(**claims))
            assert reply["error"]["code"] == code
            await server.hub.publish("more.x", 1)
            assert [(await one.event()).data for one in (stream, websocket)] == [1, 1]


async def test_refreshing_what_is_not_there() -> None:
    async with serving(auth=AUTH) as server:
        with await stream_of(server) as stream:
            pass
        await until(lambda: server.connections == 0)
        answer = await refresh(server, stream)
        assert (answer.status, answer.code) == (404, "stream-unknown")
        assert (await ask(server.url, "POST", "/refresh", bearer(token()))).code == "bad-query"


async def test_a_stream_without_a_subject_is_not_everybodys() -> None:
    async with serving(auth=AUTH) as server:
        with await stream_of(server, sub=None) as stream:
            assert (await refresh(server, stream)).code == "other-account"
            assert (await refresh(server, stream, sub=None)).status == 200


# Tickets


async def ticket_for(server: tricast.Server, *headers: str) -> str:
    """A ticket for whoever shows that."""
    answer = await ask(server.url, "POST", "/ticket", *headers)
    assert answer.status == 200, answer
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["expires_in"] == 30
    return str(answer.json()["ticket"])


@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_a_ticket_stands_for_a_token_once(transport: str) -> None:
    logged = LogCapture()
    async with serving(auth=AUTH, records=logged, logging={"access": True, "level": "debug"}) as server:
        ticket = await ticket_for(server, bearer(token(subscribe=["news"])))
        last_id = str(await server.hub.publish("before", 1))
        with await subscribe(transport, server.url, "news", last_id=last_id, ticket=ticket) as stream:
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1
        headers = WEBSOCKET_HEADERS if transport == "ws" else ()
        answer = await ask(server.url, "GET", f"/events?{query_of(['news'], ticket=ticket)}", *headers)
        assert (answer.status, answer.code) == (401, "ticket-used")
    assert "ticket=..." in str(logged.entries)
    assert ticket not in str(logged.entries)


async def test_a_ticket_allows_what_its_token_does_and_for_as_long() -> None:
    async with serving(auth=AUTH) as server:
        shown = bearer(token(subscribe=["news"], publish=[]))
        first, second, third = [await ticket_for(server, shown) for _ in range(3)]
        answer = await ask(server.url, "GET", f"/events?topic=other&ticket={first}")
        assert (answer.status, answer.code) == (403, "topic-not-allowed")
        with await open_websocket(server.url, f"/ws?topic=news&ticket={second}") as websocket:
            await websocket.begun()
            assert (await websocket.operate(op="publish", topic="a", data=1))["error"]["code"] == "topic-not-allowed"
        hurry(server)
        with await open_websocket(server.url, f"/ws?topic=news&ticket={third}") as websocket:
            assert (await websocket.closed()).code == 4401


async def test_a_stream_that_began_with_a_ticket_is_refreshed_with_a_token() -> None:
    async with serving(auth=AUTH) as server:
        ticket = await ticket_for(server, bearer(token()))
        with await subscribe("sse", server.url, "news", ticket=ticket) as stream:
            assert isinstance(stream, EventStream)
            while stream.lease is None:
                await stream._read()
            assert (await refresh(server, stream)).status == 200


@pytest.mark.parametrize(
    ("ticket", "code"),
    [("nonsense", "ticket-malformed"), (f"{PREFIX}{'A' * 80}", "ticket-unknown"), ("", "ticket-malformed")],
)
async def test_tickets_that_are_none(ticket: str, code: str) -> None:
    async with serving(auth=AUTH) as server:
        for headers in ((), WEBSOCKET_HEADERS):
            answer = await ask(server.url, "GET", f"/events?topic=news&ticket={ticket}", *headers)
            assert (answer.status, answer.code) == (401, code)
        assert server._runtime.counters.refusals[code] == 2


async def test_a_ticket_that_no_url_has_room_for_is_not_issued() -> None:
    subscribe = [f"{number}.{{sub}}" for number in range(90)]
    async with serving(auth=AUTH) as server:
        answer = await ask(server.url, "POST", "/ticket", bearer(token(sub="a" * 120, subscribe=subscribe)))
        assert (answer.status, answer.code) == (431, "limit-exceeded")
        assert "the token grants too much" in answer.body.decode()
        assert server._runtime.counters.refusals == {"limits.target_size": 1}


async def test_a_ticket_that_is_too_old() -> None:
    async with serving(auth=AUTH | {"ticket_lifetime": "1ms"}) as server:
        answer = await ask(server.url, "POST", "/ticket", bearer(token()))
        issued = time.time()
        await until(lambda: time.time() > issued + 0.01)
        found = await ask(server.url, "GET", f"/events?topic=news&ticket={answer.json()['ticket']}")
        assert found.code == "ticket-expired"


async def test_a_ticket_is_for_streams_alone() -> None:
    async with serving(auth=AUTH) as server:
        ticket = await ticket_for(server, bearer(token()))
        for target in ("/publish?topic=news&", "/ticket?", "/refresh?stream=x&"):
            answer = await ask(server.url, "POST", f"{target}ticket={ticket}", body=b"1")
            assert answer.code == "token-missing"
        # Nor is it used up by that, or by a handshake that is none.
        bad = await ask(server.url, "GET", f"/ws?topic=news&ticket={ticket}", *WEBSOCKET_HEADERS[:3])
        assert bad.code == "bad-handshake"
        with await subscribe("sse", server.url, "news", ticket=ticket):
            pass


async def test_a_server_that_goes_down_takes_no_ticket() -> None:
    async with serving(auth=AUTH, drain={"period": "0s", "grace": "5s"}) as server:
        ticket = await ticket_for(server, bearer(token()))
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /events?topic=news&ticket=" + ticket.encode())
            busy = server._runtime.open.values()
            await until(lambda: any(isinstance(it, HttpConnection) and it._ahead for it in busy))
            server.drain()
            await wire.send(b" HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await read_answer(wire)).code == "draining"
        assert server._runtime.access.redeem(ticket).subject == "ada"


# With several workers


async def test_every_worker_takes_tickets_once_and_renews_the_streams_of_others() -> None:
    config = {"server": {"port": 0, "workers": 2}, "auth": AUTH, "drain": {"period": "0s", "grace": "5s"}}
    async with serving_process(**config) as server:
        shown = bearer(token())
        with await subscribe("sse", server.url, "news", credentials=(shown,)) as stream:
            assert isinstance(stream, EventStream)
            while stream.lease is None:
                await stream._read()
            # Each on a connection of its own, which the kernel gives to either; all of them to one is not to be feared.
            for _ in range(16):
                later = token(exp=time.time() + 100)
                answer = await ask(server.url, "POST", f"/refresh?stream={stream.lease['stream']}", bearer(later))
                assert answer.status == 200, answer
                answer = await ask(server.url, "POST", f"/refresh?stream={stream.lease['stream']}0", bearer(later))
                assert answer.code == "stream-unknown"
                others = bearer(token(sub="bob"))
                answer = await ask(server.url, "POST", f"/refresh?stream={stream.lease['stream']}", others)
                assert answer.code == "other-account"
                ticket = (await ask(server.url, "POST", "/ticket", shown)).json()["ticket"]
                with await subscribe("sse", server.url, "news", ticket=ticket):
                    pass
                answer = await ask(server.url, "GET", f"/events?topic=news&ticket={ticket}")
                assert answer.code == "ticket-used"
