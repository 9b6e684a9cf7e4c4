"""Each await on a peer is cut off there, in every way, and then the registries and the descriptors are looked at."""

import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
import trio
from clients import TEXT, WEBSOCKET_HEADERS, Wire, frame, head, read_answer, read_head
from encryption import tls_section
from serving import no_garbage, open_descriptors, serving, until

import tricast

SMALL = {"send_buffer": 4096}
TIMEOUTS = {"head_timeout": "1h", "body_timeout": "1h", "idle_timeout": "1h", "write_timeout": "1h"}


async def head_is_read(server: tricast.Server, wire: Wire) -> None:
    await wire.send(b"GET /events?topic=news HTTP/1.1\r\n")


async def next_request_is_waited_for(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/healthz"))
    await read_answer(wire)


async def body_is_read(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("POST", "/publish?topic=news", "Transfer-Encoding: chunked", "Expect: 100-continue"))
    assert (await read_head(wire)).status == 100
    await wire.send(b"5\r\nhe")


async def long_poll_waits(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/events?topic=news&topic=a.*"))
    await until(lambda: server.hub.statistics().subscribers == 1)


async def long_poll_waits_with_requests_behind_it(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/events?topic=news") + head("GET", "/healthz") * 4000)
    await until(lambda: server._runtime.counters.streams["poll"] == 1)  # it does not wait for long


async def long_poll_was_answered(server: tricast.Server, wire: Wire) -> None:
    for n in range(3):
        await long_poll_waits(server, wire)
        await server.hub.publish("news", n)
        assert (await read_answer(wire)).status == 200


async def long_poll_waits_again(server: tricast.Server, wire: Wire) -> None:
    await long_poll_was_answered(server, wire)
    await long_poll_waits(server, wire)


async def long_poll_waits_behind_another(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/events?topic=news") * 3)
    await until(lambda: server.hub.statistics().subscribers == 1)
    await server.hub.publish("news", 1)
    await read_answer(wire)
    await until(lambda: server.hub.statistics().subscribers == 1)


async def answer_to_a_long_poll_is_not_read(server: tricast.Server, wire: Wire) -> None:
    await long_poll_waits(server, wire)
    await server.hub.publish("news", "x" * 60_000)
    await has_tail(server)


async def long_poll_waits_behind_answers_that_are_not_read(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/tricast.js") + head("GET", "/events?topic=news"))
    await until(lambda: server.hub.statistics().subscribers == 1)


async def answers_are_not_read(server: tricast.Server, wire: Wire) -> None:
    with trio.move_on_after(0.1):
        await wire.send(head("GET", "/metrics") * 10_000)


async def stream_is_silent(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream"))
    await until(lambda: server.hub.statistics().subscribers == 1)


async def stream_is_not_read(server: tricast.Server, wire: Wire) -> None:
    await stream_is_silent(server, wire)
    await fall_behind(server)


async def websocket_is_silent(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/events?topic=news", *WEBSOCKET_HEADERS))
    await until(lambda: server.hub.statistics().subscribers == 1)


async def websocket_is_not_read(server: tricast.Server, wire: Wire) -> None:
    await websocket_is_silent(server, wire)
    await fall_behind(server)


async def compressing_websocket_is_not_read(server: tricast.Server, wire: Wire) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate"
    await wire.send(head("GET", "/events?topic=news", *WEBSOCKET_HEADERS, offer))
    await until(lambda: server.hub.statistics().subscribers == 1)
    source = random.Random(1)
    while not server.hub.statistics().behind:
        await server.hub.publish("news", "".join(source.choices("0123456789abcdef", k=60_000)))
        await trio.lowlevel.checkpoint()


async def compressed_message_is_read(server: tricast.Server, wire: Wire) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate"
    await wire.send(head("GET", "/echo", *WEBSOCKET_HEADERS, offer) + frame(TEXT, b"\xf2\x48", fin=False, reserved=4))
    assert (await read_head(wire)).headers["sec-websocket-extensions"]


async def replies_to_operations_are_not_read(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
    with trio.move_on_after(0.1):
        while True:
            await wire.send(frame(TEXT, b'{"op":"publish","topic":"a","data":1}') * 500)


async def replies_are_not_read(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/echo", *WEBSOCKET_HEADERS))
    await read_head(wire)
    with trio.move_on_after(0.1):
        while True:
            await wire.send(frame(TEXT, b"x" * 60_000))


async def close_is_not_answered(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("GET", "/echo", *WEBSOCKET_HEADERS) + frame(TEXT, b"x" * 70_000))
    await wire.until(b"\x88")


async def last_answer_is_lingered_for(server: tricast.Server, wire: Wire) -> None:
    await wire.send(head("POST", "/publish?topic=news", "Content-Length: 99999999"))
    assert (await read_answer(wire)).status == 413


async def has_tail(server: tricast.Server) -> None:
    (connection,) = server._runtime.open
    await until(lambda: connection.has_tail)


async def fall_behind(server: tricast.Server) -> None:
    for _ in range(50):
        await server.hub.publish("news", "x" * 60_000)
        await trio.lowlevel.checkpoint()
    await until(lambda: server.hub.statistics().behind == 1)


STAGES = [
    head_is_read,
    next_request_is_waited_for,
    body_is_read,
    long_poll_waits,
    long_poll_waits_with_requests_behind_it,
    long_poll_was_answered,
    long_poll_waits_again,
    long_poll_waits_behind_another,
    answer_to_a_long_poll_is_not_read,
    long_poll_waits_behind_answers_that_are_not_read,
    answers_are_not_read,
    stream_is_silent,
    stream_is_not_read,
    websocket_is_silent,
    websocket_is_not_read,
    compressing_websocket_is_not_read,
    compressed_message_is_read,
    replies_to_operations_are_not_read,
    replies_are_not_read,
    close_is_not_answered,
    last_answer_is_lingered_for,
]


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", ["close", "reset", "cancel", "drain"])
@pytest.mark.parametrize("stage", STAGES)
async def test_nothing_is_left(
    stage: Callable[[tricast.Server, Wire], Awaitable[None]],
    how: str,
    has_tls: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit in ("_LINGER_SECONDS", "_LINGER_SILENCE_SECONDS"):
        monkeypatch.setattr(tricast.connection, limit, 3600.0)
    before = open_descriptors()
    with ExitStack() as wires:
        async with serving(
            limits=SMALL | TIMEOUTS,
            # Behind a flood of requests the end of a client is seen when its poll is answered.
            poll={"timeout": "300ms" if stage is long_poll_waits_with_requests_behind_it else "1h"},
            websocket={
                "close_timeout": "1h",
                "permessage_deflate": True,
                "handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}],
            },
            drain={"period": "0s", "grace": "100ms"},
            tls=tls_section() if has_tls else {},
        ) as server:
            during = open_descriptors()
            with no_garbage():
                wire = wires.enter_context(await Wire.open(server.url, receive_buffer=4096))
                await stage(server, wire)
                assert server.connections == 1
                if how == "drain":
                    server.drain()
                    await until(lambda: server.connections == 0)
                elif how != "cancel":  # that is what the end of the block does, with the client still there
                    getattr(wire, how)()
                    await until(lambda: server.connections == 0)
                    assert not open_descriptors() - during
        assert server.connections == 0
        assert_empty(server)
    assert not open_descriptors() - before


def assert_empty(server: tricast.Server) -> None:
    statistics = server.hub.statistics()
    assert (statistics.subscribers, statistics.feeds, statistics.behind) == (0, 0, 0)
    assert len(server._runtime.wheel) == 0
    assert not server._runtime.open
