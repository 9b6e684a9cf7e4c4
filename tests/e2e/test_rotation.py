"""Connections of a certain age are asked to come back: calmly, in no herd, and nothing is missed."""

import pytest
import trio
from clients import (
    TRANSPORTS,
    Closed,
    Ended,
    EventStream,
    WebSocket,
    WebSocketClosed,
    Wire,
    head,
    read_answer,
    subscribe,
)
from serving import serving, until

import tricast

AGE = 0.2
ROTATING = {"max_connection_age": f"{AGE}s"}
#: No machine is so slow that a test lasts for so long.
YOUNG = {"max_connection_age": "1h"}


def grow_old(server: tricast.Server) -> None:
    """Lets the only connection have been there for long enough."""
    (connection,) = server._runtime.open
    connection.rotates_at = 0.0


async def test_an_event_stream_ends_as_in_a_drain_and_the_server_goes_on() -> None:
    async with serving(server=ROTATING, drain={"retry_after": "7s"}) as server:
        begun = trio.current_time()
        with await subscribe("sse", server.url, "news") as stream:
            with pytest.raises(Ended):
                await stream.event()
            assert trio.current_time() - begun >= AGE * 0.8
            assert isinstance(stream, EventStream)
            assert stream.retry is not None
            assert 7000 <= stream.retry <= 10_500
            assert await stream.wire.rest() == b""
        assert not server.is_draining


async def test_a_websocket_closes_with_1012() -> None:
    async with serving(server=ROTATING) as server:
        with await subscribe("ws", server.url, "news") as websocket:
            assert isinstance(websocket, WebSocket)
            closed = await websocket.closed()
            assert closed.code == 1012
            assert "come back in" in closed.reason


@pytest.mark.parametrize("target", ["/healthz", "/events?topic=news&last_id=0-0"])
async def test_a_kept_connection_closes_with_an_answer(target: str) -> None:
    async with serving(server=YOUNG) as server:
        await server.hub.publish("news", 1)
        with await Wire.open(server.url) as wire:
            for closes in (False, False, True):
                if closes:
                    grow_old(server)
                await wire.send(head("GET", target))
                answer = await read_answer(wire)
                assert (answer.status, answer.headers.get("connection")) == (200, "close" if closes else None)
            assert await wire.rest() == b""


async def test_a_poll_that_waits_is_answered_when_there_is_something_and_closes_then() -> None:
    async with serving(server=ROTATING) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news"))
            await until(lambda: server.hub.statistics().subscribers == 1)
            (connection,) = server._runtime.open
            await until(lambda: server._runtime.wheel.now >= connection.rotates_at)
            await server.hub.publish("news", 1)
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await wire.rest() == b""


async def test_an_idle_connection_is_left_for_its_next_request() -> None:
    async with serving(server=YOUNG) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz"))
            await read_answer(wire)
            grow_old(server)
            then = trio.current_time()
            await until(lambda: server._runtime.wheel.now > then)
            await wire.send(head("GET", "/healthz"))
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_comes_back_misses_nothing(transport: str) -> None:
    async with serving(server=ROTATING) as server:
        ids = []
        received: list[str] = []
        last_id = str(server.hub.last_id)
        connections = 0
        while connections < 4 or len(received) <= 4:
            with await subscribe(transport, server.url, "news", last_id=last_id) as subscriber:
                connections += 1
                try:
                    while True:
                        ids.append(str(await server.hub.publish("news", len(ids))))
                        received.append((await subscriber.event()).id)
                        last_id = received[-1]
                except (Closed, Ended, WebSocketClosed):
                    pass
        assert received == ids[: len(received)]


async def test_not_all_that_came_at_once_go_at_once() -> None:
    async with serving(server={"max_connection_age": "1h"}) as server:
        wires = [await Wire.open(server.url) for _ in range(50)]
        await until(lambda: server.connections == len(wires))
        ages = sorted(connection.rotates_at - trio.current_time() for connection in server._runtime.open)
        for wire in wires:
            wire.close()
    assert 0.79 * 3600 < ages[0] < 0.9 * 3600
    assert 0.9 * 3600 < ages[-1] <= 3600


async def test_none_has_an_age_unless_it_is_asked_for() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "news"):
            (connection,) = server._runtime.open
            assert connection.rotates_at > trio.current_time() + 10**9
