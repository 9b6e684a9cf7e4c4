"""Positions that are taken over before they were looked up."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from clients import TEXT, TRANSPORTS, WebSocket, WebSocketClosed, frame, open_websocket, subscribe
from clocks import HANG_SECONDS
from hub.fakes import DeafLog
from serving import serving, until

import tricast
from tricast.runtime import Handler


async def test_topics_added_right_behind_a_position_that_is_ahead_of_the_log() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            assert isinstance(websocket, WebSocket)
            ahead = "9999999999999-0"
            operations = [
                {"op": "subscribe", "topics": ["a"], "last_id": ahead},
                {"op": "subscribe", "topics": ["b"]},
            ]
            await websocket.wire.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in operations))
            for _ in operations:
                assert (await websocket.reply())["ok"] == "subscribe"
            gap = await websocket.gap()
            assert (gap.reason, gap.after) == ("unknown_id", ahead)
            await server.hub.publish("a", 1)
            await server.hub.publish("b", 2)
            assert [event.data for event in await websocket.events(2)] == [1, 2]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_not_handed_over_is_read_from_the_log(transport: str) -> None:
    log = DeafLog(history=3, history_age=1000.0, history_size=10**6, clock=lambda: 1000.0)
    async with serving(log=log, poll={"timeout": "100s"}) as server:
        first = str(await server.hub.publish("news", 0))
        with await subscribe(transport, server.url, "news", last_id=first) as subscriber:
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    # A poll that waits is answered at once, with nothing, so that the next one is told.
                    assert (await subscriber.gap()).reason == "evicted"
                    assert [event.data for event in await subscriber.events(3)] == [3, 4, 5]

                nursery.start_soon(follow)
                await until(lambda: server.hub.statistics().subscribers == 1 and not server.hub.statistics().behind)
                log.is_deaf = True
                for n in range(1, 6):
                    await server.hub.publish("news", n)
                log.is_deaf = False
                server.hub.skipped(log.last_id)


async def test_publishing_nothing() -> None:
    async with serving() as server:
        assert await server.hub.append([]) == []


async def test_topics_that_are_added_begin_now_even_when_something_is_pending() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws?topic=a") as websocket:
            assert isinstance(websocket, WebSocket)
            await websocket.reply()
            for n in range(5):
                await server.hub.publish("b", n)
            operations = [
                {"op": "publish", "topic": "a", "data": "first"},
                {"op": "subscribe", "topics": ["b"]},
                {"op": "publish", "topic": "b", "data": "last"},
            ]
            await websocket.wire.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in operations))
            assert [event.data for event in await websocket.events(2)] == ["first", "last"]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], dict[str, Any]]:
    """Makes a handler the one at ``/own``, and returns the section of the configuration that says so."""

    def configure(handler: Handler) -> dict[str, Any]:
        monkeypatch.setattr("tricast.handlers.own", handler, raising=False)
        return {"handler": [{"path": "/own", "handler": "tricast.handlers:own"}]}

    return configure


async def test_a_pause_keeps_the_position(own: Callable[[Handler], dict[str, Any]]) -> None:
    async def handler(session: tricast.Session) -> None:
        await session.subscribe("a")
        session.pause()
        await session.publish("a", "meanwhile")
        await session.subscribe("b")
        await session.publish("b", "after")
        async for _ in session:
            pass

    async with serving(websocket=own(handler)) as server:
        with await open_websocket(server.url, "/own") as websocket:
            assert [event.data for event in await websocket.events(2)] == ["meanwhile", "after"]


async def test_nothing_follows_a_goodbye_that_waits_for_room(own: Callable[[Handler], dict[str, Any]]) -> None:
    seen = []

    async def handler(session: tricast.Session) -> None:
        await session.subscribe("a")
        while not session.connection.has_tail:
            await session.publish("a", "x" * 2000)
            await trio.lowlevel.checkpoint()
        session.drain(1.0)
        await session.subscribe("b")
        seen.append(session.feed)
        async for _ in session:
            pass

    async with serving(websocket=own(handler), limits={"send_buffer": 4096}) as server:
        with await open_websocket(server.url, "/own", receive_buffer=4096) as websocket:
            await until(lambda: bool(seen))
            assert seen == [None]
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.events(10**6)
            assert closed.value.code == 1012


@pytest.mark.parametrize("how", ["cancelled", "drained"])
async def test_whoever_waits_for_the_end_is_told(how: str) -> None:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def serve(task_status: trio.TaskStatus[tricast.Server]) -> None:
                with scope:
                    await tricast.serve(tricast.Config(server={"port": 0}), task_status=task_status)

            server: tricast.Server = await nursery.start(serve)
            if how == "cancelled":
                scope.cancel()
            else:
                server.drain()
            await server.wait_stopped()
