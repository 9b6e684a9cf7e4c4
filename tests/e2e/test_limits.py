"""Every limit of the configuration: just under it nothing is refused, beyond it the answer and the metrics say which.

A limit is one function, which is called twice: to do as much as is allowed, and to do more. A key that is none has to
be named below, so that a new one cannot go without either.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import jwt
import pytest
import trio
from clients import (
    BINARY,
    CONTINUATION,
    TEXT,
    Answer,
    Closed,
    Wire,
    ask,
    attempt,
    frame,
    head,
    open_websocket,
    query_of,
    read_answer,
    subscribe,
)
from serving import metrics_of, pause, serving, until

import tricast

#: Keys that refuse nothing to anybody, and what they are instead.
NO_LIMITS = {
    "limits.reserved_descriptors": "room for the server itself; what is left is limits.connections",
    "limits.retry_after": "what those are told who are refused",
    "limits.idle_timeout": "ends what nobody uses",
    "limits.send_buffer": "the kernel's",
    "limits.send_ahead": "the kernel's: see test_listening",
    "limits.receive_rate": "with limits.head_timeout and limits.body_timeout",
    **dict.fromkeys(("auth.key", "auth.jwks_url", "auth.api_key", "auth.cookie", "auth.token_in_query"), "lets in"),
    **dict.fromkeys(("auth.anonymous_subscribe", "auth.anonymous_publish", "auth.ticket_secret"), "lets in"),
    **dict.fromkeys(("auth.issuer", "auth.audience", "auth.leeway", "auth.require_exp"), "asks who it is"),
    **dict.fromkeys(("auth.jwks_refresh", "auth.jwks_cooldown", "auth.jwks_timeout"), "when keys are fetched"),
    "auth.jwks_size": "the keys': see test_jwks",
    "auth.cached_tokens": "forgets",
    "auth.ticket_lifetime": "forgets",
    "publish.burst": "with publish.rate",
    "publish.require_client_certificate": "asks who it is",
    "publish.idempotency_window": "forgets",
    "publish.idempotency_keys": "forgets",
    "websocket.ping_interval": "asks",
    "websocket.close_timeout": "ends what is closed already",
    "websocket.message_burst": "with websocket.message_rate",
    "websocket.permessage_deflate": "offers",
    "websocket.handler": "offers",
}
#: Ends of connections that are this side's doing.
CUT_OFF = {"write-timeout", "write-rate", "unsent", "ping-timeout"}
SSE = "Accept: text/event-stream"


class Limit(NamedTuple):
    """One limit.

    Attributes:
        go: goes up to it, or beyond, and checks how that was answered.
        reason: by which going beyond is counted.
        sections: of the configuration.
        beyond: those for going beyond it, where they differ.
    """

    go: Callable[[tricast.Server, bool], Awaitable[None]]
    reason: str
    sections: dict[str, Any]
    beyond: dict[str, Any]


LIMITS: dict[str, Limit] = {}
Go = Callable[[tricast.Server, bool], Awaitable[None]]


def limit(
    key: str,
    value: object,
    *,
    beyond: object = None,
    reason: str = "",
    patiently: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Callable[[Go], Go]:
    """Makes a function the test of a limit.

    Args:
        key: the limit's.
        value: that it has.
        beyond: that it has where it is to be exceeded, if that is another one.
        reason: to be counted by; the default is the key.
        patiently: what else its section says where it is not to be exceeded, however busy the machine is.
        sections: what else there is in the configuration.
    """
    section, _, name = key.partition(".")

    def with_value(value: object, more: dict[str, Any]) -> dict[str, Any]:
        return sections | {section: {name: value} | sections.get(section, {}) | more}

    def register(go: Go) -> Go:
        under = with_value(value, patiently or {})
        LIMITS[key] = Limit(go, reason or key, under, with_value(value if beyond is None else beyond, {}))
        return go

    return register


async def counted(server: tricast.Server) -> set[str]:
    """By what something was counted that the server would not do."""
    metrics = await metrics_of(server.admin_urls[0])
    refused = {name[1] for name, count in metrics.items() if name[0] == "refusals_total" and count}
    lost = {name[1] for name, count in metrics.items() if name[0] == "connections_lost_total" and count}
    return refused | (lost & CUT_OFF)


async def until_counted(server: tricast.Server, reason: str) -> None:
    """Returns when something was counted by this reason."""
    while reason not in await counted(server):
        await pause()


def expect(answer: Answer, *, refused: int | None, code: str = "limit-exceeded") -> None:
    """Checks an answer: refused with this status, or not refused."""
    if refused is None:
        assert answer.status < 300, answer
    else:
        assert (answer.status, answer.code) == (refused, code)
        assert ("retry-after" in answer.headers) == (refused in (429, 503))


# How many may be there


async def hold(server: tricast.Server, is_beyond: bool, *, status: int, code: str = "limit-exceeded") -> None:
    """Subscribes twice, or three times, where two are allowed; then those who leave make room."""
    with ExitStack() as held:
        for _ in range(1 + is_beyond):
            held.enter_context(await subscribe("sse", server.url, "news"))
        if is_beyond:
            expect(await attempt("sse", server.url, "topic=news"), refused=status, code=code)
        else:
            held.enter_context(await subscribe("ws", server.url, "news"))
    await until(lambda: server.connections == 0)
    assert (await attempt("poll", server.url, "topic=news&last_id=0-0")).status == 200


def holding(status: int, code: str = "limit-exceeded") -> Go:
    async def go(server: tricast.Server, is_beyond: bool) -> None:
        await server.hub.publish("news", 1)
        await hold(server, is_beyond, status=status, code=code)

    return go


limit("limits.connections", 2)(holding(503, "overloaded"))
limit("limits.connections_per_address", 2)(holding(429))
limit("limits.connections_per_subject", 2)(holding(429))
limit("limits.subscribers_per_topic", 2)(holding(503))


async def arrive(server: tricast.Server, is_beyond: bool, *, status: int) -> None:
    answers: list[Answer] = []

    async def come() -> None:
        answers.append(await ask(server.url, "HEAD", "/events?topic=news"))

    async with trio.open_nursery() as nursery:
        for _ in range(30 if is_beyond else 2):  # one a second; nobody takes half a minute for thirty
            nursery.start_soon(come)
    assert {answer.status for answer in answers} == ({200, status} if is_beyond else {200})


@limit("limits.accept_rate", 2)
async def arrive_in_all(server: tricast.Server, is_beyond: bool) -> None:
    await arrive(server, is_beyond, status=503)


@limit("limits.accept_rate_per_address", 2)
async def arrive_from_one_address(server: tricast.Server, is_beyond: bool) -> None:
    await arrive(server, is_beyond, status=429)


@limit("limits.memory", "1000GiB", beyond="1B")
async def take_memory(server: tricast.Server, is_beyond: bool) -> None:
    ready = await ask(server.admin_urls[0], "GET", "/readyz")
    while is_beyond and ready.status == 200:  # before it was looked at
        ready = await ask(server.admin_urls[0], "GET", "/readyz")
    for answer in (
        ready,
        await ask(server.url, "HEAD", "/events?topic=news", SSE),
        await ask(server.url, "POST", "/publish?topic=news", body=b"1"),
    ):
        assert answer.status == (503 if is_beyond else 200)
        assert ("retry-after" in answer.headers) is is_beyond
    assert ((await metrics_of(server.admin_urls[0]))["memory_over",] == 1) is is_beyond


KEY = "the secret of those who are let in"


KEYS = [{"algorithm": "HS256", "secret": KEY}]


@limit("auth.max_tickets_per_subject", 2, auth={"key": KEYS, "max_tickets": 3})
async def trade_tickets(server: tricast.Server, is_beyond: bool) -> None:
    bearers = {name: f"Authorization: Bearer {token_of(name)}" for name in ("greedy", "other")}
    for _ in range(2):
        expect(await ask(server.url, "POST", "/ticket", bearers["greedy"]), refused=None)
    if is_beyond:
        expect(await ask(server.url, "POST", "/ticket", bearers["greedy"]), refused=429)
    expect(await ask(server.url, "POST", "/ticket", bearers["other"]), refused=None)  # there is room for others


@limit("auth.max_tickets", 2, auth={"key": KEYS, "max_tickets_per_subject": 0})
async def use_tickets(server: tricast.Server, is_beyond: bool) -> None:
    await server.hub.publish("news", 1)
    for number in range(2 + is_beyond):
        bearer = f"Authorization: Bearer {token_of('ada', subscribe=['news'])}"
        ticket = (await ask(server.url, "POST", "/ticket", bearer)).json()["ticket"]
        answer = await ask(server.url, "GET", f"/events?topic=news&last_id=0-0&ticket={ticket}")
        expect(answer, refused=503 if number == 2 else None)


@limit("auth.max_token", 200, auth={"key": KEYS})
async def show_a_long_token(server: tricast.Server, is_beyond: bool) -> None:
    await server.hub.publish("news", 1)
    bearer = f"Authorization: Bearer {token_of('a' * (100 if is_beyond else 1), subscribe=['news'])}"
    expect(await ask(server.url, "GET", "/events?topic=news&last_id=0-0", bearer), refused=431 if is_beyond else None)


@limit("auth.max_patterns", 2, auth={"key": KEYS})
async def show_a_token_for_much(server: tricast.Server, is_beyond: bool) -> None:
    await server.hub.publish("a", 1)
    bearer = f"Authorization: Bearer {token_of('ada', subscribe=['a', 'b', 'c'][: 2 + is_beyond])}"
    expect(await ask(server.url, "GET", "/events?topic=a&last_id=0-0", bearer), refused=431 if is_beyond else None)


def token_of(subject: str, **claims: Any) -> str:
    return jwt.encode({"sub": subject, "exp": time.time() + 600, **claims}, KEY, "HS256")


# Requests


@limit("limits.head_size", 500)
async def send_a_large_head(server: tricast.Server, is_beyond: bool) -> None:
    answer = await ask(server.url, "HEAD", "/events?topic=news", "X: " + "x" * (600 if is_beyond else 350))
    assert answer.status == (431 if is_beyond else 200)


@limit("limits.head_fields", 4)
async def send_many_fields(server: tricast.Server, is_beyond: bool) -> None:
    fields = ["X: x"] * (3 + is_beyond)  # beside Host
    assert (await ask(server.url, "HEAD", "/events?topic=news", *fields)).status == (431 if is_beyond else 200)


@limit("limits.target_size", 30)
async def send_a_long_target(server: tricast.Server, is_beyond: bool) -> None:
    target = "/events?topic=".ljust(30 + is_beyond, "x")
    assert (await ask(server.url, "HEAD", target)).status == (414 if is_beyond else 200)


@limit("limits.head_timeout", "1h", beyond="500ms")
async def send_a_head_slowly(server: tricast.Server, is_beyond: bool) -> None:
    data = head("GET", "/events?topic=news&last_id=0-0")
    await server.hub.publish("news", 1)
    with await Wire.open(server.url) as wire:
        await wire.send(data[:20])
        if not is_beyond:
            await trio.sleep(0.1)
            await wire.send(data[20:])
        assert (await read_answer(wire)).status == (408 if is_beyond else 200)


@limit("limits.body_timeout", "1h", beyond="500ms")
async def send_a_body_slowly(server: tricast.Server, is_beyond: bool) -> None:
    with await Wire.open(server.url) as wire:
        await wire.send(head("POST", "/publish?topic=news", "Content-Length: 2") + b"1")
        if not is_beyond:
            await trio.sleep(0.1)
            await wire.send(b"1")
        assert (await read_answer(wire)).status == (408 if is_beyond else 200)


# Topics and events


@limit("limits.topics", 3)
async def name_many_topics(server: tricast.Server, is_beyond: bool) -> None:
    answer = await attempt("sse", server.url, query_of([f"t{n}" for n in range(4)])) if is_beyond else None
    if answer is not None:
        expect(answer, refused=400)
        return
    with await subscribe("ws", server.url, "t1", "t2") as websocket:
        assert len((await websocket.operate(op="subscribe", topics=["t2", "t3"]))["topics"]) == 3  # type: ignore[attr-defined]


@limit("limits.topic_size", 5)
async def name_a_long_topic(server: tricast.Server, is_beyond: bool) -> None:
    topic = "é" * 2 + "xx"[: 1 + is_beyond]
    answer = await ask(server.url, "POST", f"/publish?{query_of([topic])}", body=b"1")
    expect(answer, refused=400 if is_beyond else None)


@limit("publish.max_event", 100)
async def publish_a_large_event(server: tricast.Server, is_beyond: bool) -> None:
    body = b"1" * (100 + is_beyond)
    expect(await ask(server.url, "POST", "/publish?topic=news", body=body), refused=413 if is_beyond else None)


@limit("publish.max_body", 100, publish={"max_event": 10})
async def publish_a_large_body(server: tricast.Server, is_beyond: bool) -> None:
    body = b'{"topic":"news","data":1}\n'.ljust(100 + is_beyond)
    answer = await ask(server.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=body)
    expect(answer, refused=413 if is_beyond else None)


@limit("publish.max_batch", 3)
async def publish_a_large_batch(server: tricast.Server, is_beyond: bool) -> None:
    body = b'{"topic":"news","data":1}\n' * (3 + is_beyond)
    answer = await ask(server.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=body)
    expect(answer, refused=413 if is_beyond else None)


@limit("publish.rate", 0.001, publish={"burst": 3})
async def publish_often(server: tricast.Server, is_beyond: bool) -> None:
    for _ in range(3):
        expect(await ask(server.url, "POST", "/publish?topic=news", body=b"1"), refused=None)
    if is_beyond:
        expect(await ask(server.url, "POST", "/publish?topic=news", body=b"1"), refused=429)


# WebSocket


@limit("websocket.max_message", 100)
async def send_a_large_message(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/ws") as websocket:
        await websocket.wire.send(frame(TEXT, b'{"op":"ping"}'.ljust(100 + is_beyond)))
        if is_beyond:
            assert (await websocket.closed()).code == 1009
        else:
            assert await websocket.reply() == {"ok": "ping"}


@limit("websocket.max_fragments", 3)
async def send_many_fragments(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/ws") as websocket:
        for _ in range(2):  # of each message
            pieces = [frame(CONTINUATION, fin=False)] * (1 + is_beyond)
            data = [frame(TEXT, b'{"op":', fin=False), *pieces, frame(CONTINUATION, b'"ping"}')]
            await websocket.wire.send(b"".join(data))
            if is_beyond:
                assert (await websocket.closed()).code == 1008
                break
            assert await websocket.reply() == {"ok": "ping"}


@limit("websocket.message_rate", 0.001, websocket={"message_burst": 5})
async def send_many_messages(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/ws") as websocket:
        ping = frame(TEXT, b'{"op":"ping"}')
        await websocket.wire.send(ping * (5 + is_beyond))
        for _ in range(5):
            assert await websocket.reply() == {"ok": "ping"}
        if is_beyond:
            assert (await websocket.closed()).code == 1008


QUICK_PINGS = {"ping_interval": "20ms"}
MANY_PINGS = QUICK_PINGS | {"max_pings": 10**6}


@limit("websocket.ping_timeout", "1h", beyond="60ms", reason="ping-timeout", websocket=MANY_PINGS)
async def be_silent(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/events?topic=news") as websocket:
        await websocket.reply()
        websocket.answers_pings = False
        if is_beyond:
            with pytest.raises(Closed):
                await websocket.message()
        else:
            await server.hub.publish("news", 1)
            assert (await websocket.event()).data == 1


@limit("websocket.max_pings", 3, reason="ping-timeout", websocket=QUICK_PINGS | {"ping_timeout": "1h"})
async def answer_no_ping(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/events?topic=news") as websocket:
        await websocket.reply()
        websocket.answers_pings = not is_beyond
        if is_beyond:
            with pytest.raises(Closed):
                await websocket.message()
            assert websocket.pings == 3
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.event)
                await until(lambda: websocket.pings > 3)
                await server.hub.publish("news", 1)


# Slow readers

SMALL = {"send_buffer": 4096}
LARGE = {"max_event": "1MiB"}
BLOCK = "x" * 2**18


async def read_at(wire: Wire, piece: int, pause: float) -> None:
    """Reads so many bytes and pauses, to the end.

    Raises:
        Closed: the server has cut it off.
    """
    while True:
        await wire.exactly(piece)
        await trio.sleep(pause)


@limit(
    "limits.write_timeout", "1h", beyond="100ms", reason="write-timeout", limits=SMALL, publish={"max_event": "1MiB"}
)
async def read_nothing(server: tricast.Server, is_beyond: bool) -> None:
    with await subscribe("sse", server.url, "news", receive_buffer=4096) as subscriber:
        await server.hub.publish("news", BLOCK)
        if is_beyond:
            await until_counted(server, "write-timeout")
            with pytest.raises(Closed):
                await subscriber.event()
        else:
            await trio.sleep(0.3)
            assert (await subscriber.event()).data == BLOCK


@limit(
    "limits.write_rate",
    "1KB",
    beyond="10MB",
    reason="write-rate",
    patiently={"write_timeout": "1h"},
    limits=SMALL | {"write_timeout": "4s"},
    publish=LARGE,
)
async def read_slowly(server: tricast.Server, is_beyond: bool) -> None:
    with await subscribe("sse", server.url, "news", receive_buffer=4096) as subscriber:
        await server.hub.publish("news", BLOCK)
        if is_beyond:
            with pytest.raises(Closed):
                await read_at(subscriber.wire, 2**10, 0.05)
        else:
            while len(subscriber.wire.buffer) < len(BLOCK):
                await subscriber.wire.exactly(0)
                await subscriber.wire.more()
                await trio.sleep(0.001)
            assert (await subscriber.event()).data == BLOCK


@limit(
    "limits.unsent",
    "10KiB",
    reason="unsent",
    limits=SMALL,
    websocket={"handler": [{"path": "/talk", "handler": "talking:talk"}]},
)
async def listen_to_little(server: tricast.Server, is_beyond: bool) -> None:
    with await open_websocket(server.url, "/talk", receive_buffer=4096) as websocket:
        await websocket.wire.send(frame(BINARY, b"11" if is_beyond else b"10"))
        if is_beyond:
            await until_counted(server, "unsent")
            with pytest.raises(Closed):
                await websocket.message()
        else:
            sizes = [len(await websocket.message()) for _ in range(12)]
            assert sizes == [2**20, *[2**10] * 10, len("done")]


# All of them


@pytest.mark.parametrize("is_beyond", [False, True], ids=["under", "beyond"])
@pytest.mark.parametrize("key", sorted(LIMITS))
async def test_a_limit(key: str, is_beyond: bool) -> None:
    each = LIMITS[key]
    sections = each.beyond if is_beyond else each.sections
    async with serving(admin={"enabled": True, "port": 0}, **sections) as server:
        await each.go(server, is_beyond)
        assert await counted(server) == ({each.reason} if is_beyond else set())


def test_every_key_is_a_limit_or_none() -> None:
    config = tricast.Config()
    keys = {
        f"{name}.{key}"
        for name in ("limits", "publish", "websocket", "auth")
        for key in type(getattr(config, name)).model_fields
    }
    assert keys == LIMITS.keys() | NO_LIMITS.keys()
    assert not LIMITS.keys() & NO_LIMITS.keys()
