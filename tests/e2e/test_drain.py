"""Going down: everybody is told when to come back, and nobody is cut off in the middle."""

import json
import random
import signal
import socket
from contextlib import ExitStack
from functools import partial

import pytest
import trio
import trio.testing
from clients import (
    TRANSPORTS,
    Closed,
    Ended,
    EventStream,
    Subscription,
    WebSocket,
    WebSocketClosed,
    Wire,
    ask,
    head,
    open_websocket,
    publish,
    read_answer,
    subscribe,
)
from clocks import HANG_SECONDS
from serving import capturing_logger, failures, serving, serving_process, until
from structlog.testing import LogCapture

import tricast
from tricast.event import Draft
from tricast.http import Handover, HttpConnection

QUICK = {"period": "0s", "grace": "1h"}


async def test_an_event_stream_is_told_when_to_come_back_and_ends_as_bodies_end() -> None:
    async with serving(drain={"retry_after": "7s"} | QUICK) as server:
        with await subscribe("sse", server.url, "news") as stream:
            await server.hub.publish("news", 1)
            await stream.event()
            server.drain()
            with pytest.raises(Ended):
                await stream.event()
            assert isinstance(stream, EventStream)
            assert stream.retry is not None
            assert 7000 <= stream.retry <= 10_500
            assert await stream.wire.rest() == b""


async def test_a_websocket_closes_with_1012_and_says_when_to_come_back() -> None:
    async with serving(drain={"retry_after": "7s"} | QUICK) as server:
        with await subscribe("ws", server.url, "news") as websocket:
            server.drain()
            assert isinstance(websocket, WebSocket)
            closed = await websocket.closed()
            assert closed.code == 1012
            assert closed.reason.startswith("restarting, come back in ")


async def test_a_long_poll_is_answered_with_its_position_and_when_to_come_back() -> None:
    async with serving(drain={"retry_after": "7s"} | QUICK) as server:
        last_id = str(await server.hub.publish("news", 1))
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news"))
            await until(lambda: server.hub.statistics().subscribers == 1)
            server.drain()
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
            assert 7 <= int(answer.headers["retry-after"]) <= 11
            assert answer.headers["connection"] == "close"
            assert await wire.rest() == b""


async def test_idle_connections_are_closed() -> None:
    async with serving(drain=QUICK) as server:
        with await Wire.open(server.url) as used, await Wire.open(server.url) as unused:
            await used.send(head("GET", "/healthz"))
            await read_answer(used)
            await until(lambda: server.connections == 2)
            server.drain()
            assert await used.rest() == b""
            assert await unused.rest() == b""


async def test_a_publish_under_way_is_answered() -> None:
    async with serving(drain=QUICK) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("POST", "/publish?topic=news", "Content-Length: 2") + b"4")
            await until(lambda: server.connections == 1)
            server.drain()
            await until(lambda: server._runtime.is_draining)
            await wire.send(b"2")
            answer = await read_answer(wire)
            assert answer.json()["id"] == str(server.hub.last_id)
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("target", ["/readyz", "/events?topic=news", "/ws"])
async def test_a_request_under_way_is_told_that_it_is_too_late(target: str) -> None:
    async with serving(drain=QUICK) as server:
        with await Wire.open(server.url) as wire:
            data = head("GET", target, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
            await wire.send(data[:20])
            await has_read(server)
            server.drain()
            await wire.send(data[20:])
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 2


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_who_was_let_in_before_and_begins_after_it_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    hand_over, is_let_in, may_begin = HttpConnection._hand_over, trio.Event(), trio.Event()

    async def late(self: HttpConnection, handover: Handover) -> None:
        is_let_in.set()
        await may_begin.wait()
        await hand_over(self, handover)

    monkeypatch.setattr(HttpConnection, "_hand_over", late)
    async with serving(drain={"retry_after": "7s"} | QUICK) as server, trio.open_nursery() as nursery:
        nursery.start_soon(begin_late, server, is_let_in, may_begin)
        with await subscribe(transport, server.url, "news") as subscriber:
            assert 7 <= await told_to_come_back_in(subscriber) <= 11


async def begin_late(server: tricast.Server, is_let_in: trio.Event, may_begin: trio.Event) -> None:
    """Has the only connection begin what it was let in for when all have been told to end."""
    await is_let_in.wait()
    server.drain()
    await until(lambda: server._runtime.is_draining)
    await trio.testing.wait_all_tasks_blocked()
    may_begin.set()


async def test_health_is_still_told_and_readiness_is_not() -> None:
    async with serving(drain=QUICK) as server:
        assert (await ask(server.url, "GET", "/readyz")).json() == {"status": "ready"}
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /healthz HTTP/1.1\r\n")
            await has_read(server)
            server.drain()
            await wire.send(b"Host: test\r\n\r\n")
            assert (await read_answer(wire)).json() == {"status": "ok"}


async def has_read(server: tricast.Server) -> None:
    """Returns when the only connection has taken what was sent so far."""
    await until(lambda: any(isinstance(it, HttpConnection) and it._ahead for it in busy_with(server)))


def busy_with(server: tricast.Server) -> list[object]:
    """What the connections are busy with."""
    return list(server._runtime.open.values())


async def test_nobody_new_is_let_in() -> None:
    async with serving(drain=QUICK) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /healthz HTTP/1.1\r\n")
            await has_read(server)
            server.drain()
            assert server.is_draining
            with pytest.raises((OSError, Closed)):
                await knock_until_refused(server.url)


async def knock_until_refused(url: str) -> None:
    while True:
        with await Wire.open(url) as late:
            await late.more()


async def test_with_notice_readiness_goes_first_and_everything_else_goes_on() -> None:
    drain = QUICK | {"notice": "1h"}
    async with serving(drain=drain, admin={"enabled": True, "port": 0}) as server:
        with ExitStack() as subscribers:
            early = subscribers.enter_context(await subscribe("sse", server.url, "news"))
            server.drain()
            answer = await ask(server.admin_urls[0], "GET", "/readyz")
            assert (answer.status, answer.code) == (503, "draining")
            assert (await ask(server.admin_urls[0], "GET", "/healthz")).status == 200
            assert b"tricast_draining 1.0" in (await ask(server.admin_urls[0], "GET", "/metrics")).body
            crowd = [subscribers.enter_context(await subscribe(each, server.url, "news")) for each in TRANSPORTS]
            await until(lambda: server.hub.statistics().subscribers == 1 + len(crowd))
            last_id = await publish(server.url, "news", 1)
            for subscriber in [early, *crowd]:
                assert (await subscriber.event()).id == last_id
            server.close_doors()  # then nobody is left who could notice
            for subscriber in [early, *crowd[1:]]:
                with pytest.raises((Ended, WebSocketClosed)):
                    await subscriber.event()


async def test_the_notice_has_an_end() -> None:
    async with serving(drain=QUICK | {"notice": "100ms"}) as server:
        with await subscribe("sse", server.url, "news") as stream:
            server.drain()
            with pytest.raises(Ended):
                await stream.event()
            await server.wait_stopped()


async def test_nobody_is_given_notice_where_nobody_can_come_in() -> None:
    async with serving(drain=QUICK | {"notice": "1h"}) as server:
        with await Wire.open(server.url) as idle:
            await until(lambda: server.connections == 1)
            server.close_doors()
            server.drain()
            assert await idle.rest() == b""
            await server.wait_stopped()


async def test_grace_ends_what_does_not_end_itself() -> None:
    async with serving(drain={"period": "0s", "grace": "100ms"}) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /healthz HTTP/1.1\r\n")
            await has_read(server)
            server.drain()
            assert await wire.rest() == b""
            await until(lambda: server.connections == 0)


async def test_all_are_told_within_the_period_and_the_server_is_done() -> None:
    records = LogCapture()
    config = tricast.Config.model_validate({"server": {"port": 0}, "drain": {"period": "200ms", "grace": "10s"}})
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            server: tricast.Server = await nursery.start(
                partial(tricast.serve, config, logger=capturing_logger(records))
            )
            streams = [await subscribe("sse", server.url, "news") for _ in range(50)]
            last_id = await publish(server.url, "news", 1)
            server.drain()
            retries = set()
            for stream in streams:
                with stream:
                    assert isinstance(stream, EventStream)
                    assert (await stream.event()).id == last_id
                    with pytest.raises(Ended):
                        await stream.event()
                    retries.add(stream.retry)
            assert len(retries) > 10  # spread, so that they do not all come back at once
        # The nursery has ended by itself.
        assert server.connections == 0


async def test_all_transports_are_told_to_come_back_out_of_one_budget() -> None:
    drain = {"period": "0s", "grace": "10s", "retry_after": "2s", "reconnects_per_second": 2}
    async with serving(drain=drain) as server:
        with ExitStack() as streams:
            subscribers = [
                streams.enter_context(await subscribe(transport, server.url, "news"))
                for transport in ("sse", "ws", "poll") * 8
            ]
            await until(lambda: server.hub.statistics().subscribers == len(subscribers))
            server.drain()
            delays = sorted([await told_to_come_back_in(subscriber) for subscriber in subscribers])
    assert 2.0 <= delays[0] <= 3.0  # a poll is told whole seconds
    assert 13.0 <= delays[-1] <= 14.5
    # 24 of them, two a second.
    assert delays == pytest.approx([2.0 + number / 2 for number in range(24)], abs=1.1)


async def told_to_come_back_in(subscriber: Subscription) -> float:
    """The seconds, once the server has said that it goes down."""
    if isinstance(subscriber, WebSocket):
        reason = (await subscriber.closed()).reason
        return float(reason.removeprefix("restarting, come back in ").removesuffix(" s"))
    if isinstance(subscriber, EventStream):
        with pytest.raises(Ended):
            await subscriber.event()
        assert subscriber.retry is not None
        return subscriber.retry / 1000
    answer = await read_answer(subscriber.wire)
    assert answer.status == 204
    return float(answer.headers["retry-after"])


async def test_cancelling_ends_all_at_once() -> None:
    config = tricast.Config.model_validate({"server": {"port": 0}})
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            server: tricast.Server = await nursery.start(
                partial(tricast.serve, config, logger=capturing_logger(LogCapture()))
            )
            with await subscribe("sse", server.url, "news") as stream, await subscribe("ws", server.url, "news") as ws:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    for subscriber in (stream, ws):
                        with pytest.raises(Closed):
                            await subscriber.event()


async def test_an_application_is_closed_with_1012_and_may_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = trio.Event()

    async def handler(session: tricast.Session) -> None:
        async for message in session:
            await session.send(message)
        await session.publish("ended", session.close_code)
        ended.set()

    monkeypatch.setattr("tricast.handlers.waiting", handler, raising=False)
    entry = {"path": "/waiting", "handler": "tricast.handlers:waiting"}
    async with serving(drain=QUICK, websocket={"handler": [entry]}) as server:
        with await open_websocket(server.url, "/waiting") as websocket:
            await websocket.wire.send(b"\x81\x82\0\0\0\0hi")
            assert await websocket.message() == "hi"
            server.drain()
            assert (await websocket.closed()).code == 1012
            await ended.wait()


# Those who do not read


async def said_goodbye(subscriber: Subscription) -> None:
    """Reads a goodbye, behind which there is nothing."""
    if isinstance(subscriber, WebSocket):
        closed = await subscriber.closed()
        assert closed.code == 1012
        assert closed.reason.startswith("restarting, come back in ")
    else:
        assert isinstance(subscriber, EventStream)
        with pytest.raises(Ended):
            await subscriber.next()
        assert subscriber.retry is not None
        assert 7000 <= subscriber.retry <= 10_500
        assert await subscriber.wire.rest() == b""


@pytest.mark.parametrize("size", [500, 3000, 60_000])
@pytest.mark.parametrize("transport", ["sse", "sse-envelope", "ws"])
async def test_who_reads_late_gets_what_was_on_its_way_and_then_the_goodbye(transport: str, size: int) -> None:
    async with serving(limits={"send_buffer": 4096}, drain={"retry_after": "7s"} | QUICK) as server:
        with await subscribe(transport, server.url, "news", receive_buffer=4096) as subscriber:
            (connection,) = server._runtime.open
            per_block = max(1, 60_000 // (size + 150))
            sent = blocks = 0
            while not connection.has_tail:
                events = [{"n": sent + n, "text": "x" * size} for n in range(per_block)]
                await server.hub.append([Draft("news", "message", json.dumps(event).encode()) for event in events])
                sent += per_block
                blocks += 1
                await until(lambda: server.hub.statistics().deliveries == blocks)  # noqa: B023
            # It is not in the tail, so it is for when the client has come back.
            await server.hub.publish("news", "later")
            server.drain()
            await until(lambda: server.hub.statistics().subscribers == 0)
            assert connection.has_tail
            assert [event.data["n"] for event in await subscriber.events(sent)] == list(range(sent))
            await said_goodbye(subscriber)


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_a_goodbye_for_which_there_is_no_room_waits_for_it(transport: str) -> None:
    # A comment in a chunk of its own, and a pong that nobody asked for (RFC 6455 5.5.3): neither of them is an event.
    piece = b"2\r\n:\n\r\n" if transport == "sse" else b"\x8a\0"
    async with serving(limits={"send_buffer": 4096}, drain={"retry_after": "7s"} | QUICK) as server:
        with await subscribe(transport, server.url, "news", receive_buffer=4096) as subscriber:
            (connection,) = server._runtime.open
            fill(connection._sock, piece)
            assert not connection.has_tail
            server.drain()
            await until(lambda: server.hub.statistics().subscribers == 0)
            await said_goodbye(subscriber)


def fill(sock: socket.socket, piece: bytes) -> None:
    """Sends whole pieces until there is no room for another."""
    while True:
        try:
            assert sock.send(piece) == len(piece)
        except BlockingIOError:
            return


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_who_never_reads_is_ended_by_the_grace(transport: str) -> None:
    drain = {"period": "0s", "grace": "100ms"}
    async with serving(limits={"send_buffer": 4096, "write_timeout": "1h"}, drain=drain) as server:
        with await subscribe(transport, server.url, "news", receive_buffer=4096) as subscriber:
            (connection,) = server._runtime.open
            await server.hub.publish("news", "x" * 60_000)
            await until(lambda: connection.has_tail)
            server.drain()
            await server.wait_stopped()
            # What the kernel had taken may still come, but not its end.
            received = await subscriber.wire.rest()
            assert received
            assert b"restarting" not in received


# Those who go first


async def test_clients_that_reset_while_it_goes_down_do_not_end_it() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    source = random.Random(seed)
    for _ in range(300):
        await reset_around_a_drain(source)


async def reset_around_a_drain(source: random.Random) -> None:
    """One server that goes down while its clients reset their connections, each at its own moment."""
    records = LogCapture()
    drain = {"period": source.choice(["0s", "1ms"]), "grace": "5s"}
    websocket = {"handler": [{"path": "/chat", "handler": "tricast.handlers:chat"}]}
    config = tricast.Config.model_validate(
        {"server": {"port": 0}, "drain": drain, "limits": {"send_buffer": 4096}, "websocket": websocket}
    )
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            server: tricast.Server = await nursery.start(
                partial(tricast.serve, config, logger=capturing_logger(records))
            )
            wires = [await Wire.open(server.url), (await open_websocket(server.url, "/chat")).wire]
            for _ in range(3):
                transport = source.choice(TRANSPORTS)
                wires.append((await subscribe(transport, server.url, "news", receive_buffer=4096)).wire)
            # More than is taken at once, or less, or nothing.
            await server.hub.publish("news", "x" * source.choice([0, 100, 50_000]))
            for wire in wires:
                nursery.start_soon(reset_after, source.randrange(25), wire)
            for _ in range(source.randrange(10)):
                await trio.lowlevel.checkpoint()
            server.drain()
        # The nursery has ended by itself.
    assert server.connections == 0
    assert failures(records) == []


async def reset_after(rounds: int, wire: Wire) -> None:
    """Resets a connection after so many rounds of the scheduler."""
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()
    wire.reset()


# As a program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: signal.Signals) -> None:
    async with serving_process(drain={"period": "100ms"}) as server:
        with await subscribe("sse", server.url, "news") as stream:
            await publish(server.url, "news", 1)
            await stream.event()
            server.process.send_signal(number)
            with pytest.raises(Ended):
                await stream.event()
        assert await server.process.wait() == 0
        (line,) = await server.wait_said("draining")
        assert number.name in line


async def test_a_second_signal_ends_it_at_once() -> None:
    async with serving_process(drain={"period": "1h", "grace": "1h"}) as server:
        with await subscribe("sse", server.url, "news") as first, await subscribe("sse", server.url, "news") as second:
            server.process.terminate()
            await server.wait_said("draining")
            server.process.terminate()
            for stream in (first, second):
                with pytest.raises((Ended, Closed)):
                    await stream.event()
        assert await server.process.wait() == 0
        await server.wait_said("at once")
