"""Silence: what is sent into it, and when it is taken for death. Waited for, never measured."""

import pytest
import trio
from clients import (
    TEXT,
    EventStream,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    read_answer,
    subscribe,
)
from serving import harmless, serving, until

from tricast.errors import ConnectionLost
from tricast.transports.websocket import Session


async def test_a_silent_event_stream_gets_comments_and_goes_on() -> None:
    async with serving(sse={"keepalive": "30ms"}) as server:
        with await subscribe("sse", server.url, "news") as stream:
            assert isinstance(stream, EventStream)
            for n in range(3):
                await stream.wait_comment()
                await server.hub.publish("news", n)
                assert (await stream.event()).data == n


async def test_a_long_poll_is_not_kept_alive_but_answered() -> None:
    async with serving(poll={"timeout": "60ms"}, sse={"keepalive": "10ms"}) as server:
        for _ in range(2):
            answer = await ask(server.url, "GET", "/events?topic=news")
            assert (answer.status, answer.body) == (204, b"")


async def test_a_silent_websocket_is_pinged_and_lives_by_its_answers() -> None:
    async with serving(websocket={"ping_interval": "30ms", "ping_timeout": "1h"}) as server:
        with await open_websocket(server.url, "/events?topic=news") as websocket:
            await websocket.reply()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.event)
                await until(lambda: websocket.pings >= 4)
                await server.hub.publish("news", 1)
            assert server.connections == 1


async def test_a_websocket_that_answers_no_ping_is_dropped_and_nobody_else() -> None:
    # For the pings that it did not answer, and not for a time in which this process may have been held up.
    async with serving(websocket={"ping_interval": "30ms", "ping_timeout": "1h"}) as server:
        with await open_websocket(server.url, "/events?topic=news") as dead:
            dead.answers_pings = False
            await dead.reply()
            with await open_websocket(server.url, "/events?topic=news") as alive:
                await alive.reply()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(alive.event)
                    assert await dead.wire.rest()  # pings, and then the end
                    await until(lambda: server.connections == 1)
                    assert server.hub.statistics().subscribers == 1
                    await server.hub.publish("news", 1)
        await until(lambda: server.connections == 0)


async def test_any_byte_is_life() -> None:
    async with serving(websocket={"ping_interval": "30ms", "ping_timeout": "1h", "max_pings": 5}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            websocket.answers_pings = False
            # A message that comes byte by byte, and between two bytes a ping: more of them than may go unanswered.
            data = frame(TEXT, b'{"op":"ping"}')
            for byte in data[:-1]:
                pings = websocket.pings
                await websocket.wire.send(bytes([byte]))
                while websocket.pings == pings:
                    opcode, _ = await websocket._frame()
                    websocket.pings += opcode == 9
            await websocket.wire.send(data[-1:])
            assert await websocket.reply() == {"ok": "ping"}


async def test_a_websocket_is_given_up_when_its_last_byte_is_too_long_ago() -> None:
    async with serving(websocket={"ping_interval": "30m", "ping_timeout": "1h"}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(frame(TEXT, b'{"op":"ping"}'))
            assert await websocket.reply() == {"ok": "ping"}
            (session,) = [item for items in server._runtime.wheel._slots.values() for item in items]
            assert isinstance(session, Session)
            connection, first = session.connection, session.connection.last_received
            session.keep_alive(first + 3599)
            await websocket.wire.send(frame(TEXT, b'{"op":"ping"}'))
            assert await websocket.reply() == {"ok": "ping"}
            assert connection.last_received > first
            connection.last_received = first + 3000  # as if it had come then
            session.keep_alive(first + 3000 + 3599)
            with pytest.raises(ConnectionLost, match="silent for 3600 s"):
                session.keep_alive(first + 3000 + 3600)


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(limits={"idle_timeout": "1s"}) as server:
        with await Wire.open(server.url) as wire:
            for _ in range(2):
                await wire.send(head("GET", "/healthz"))
                assert (await read_answer(wire)).status == 200
            assert await wire.rest() == b""
        await until(lambda: server.connections == 0)


async def test_who_takes_nothing_is_dropped() -> None:
    async with harmless(limits={"write_timeout": "100ms", "send_buffer": 4096}) as server:
        for transport in ("sse", "ws"):
            with await subscribe(transport, server.url, "news", receive_buffer=4096):
                while server.connections == 3:
                    await server.hub.publish("news", "x" * 2000)
                    await trio.lowlevel.checkpoint()
                assert server.hub.statistics().subscribers == 2


async def test_a_stream_that_is_behind_gets_no_comment_between() -> None:
    # A comment in the middle of a chunk would break the body.
    async with serving(sse={"keepalive": "10ms"}, limits={"send_buffer": 4096}) as server:
        with await subscribe("sse", server.url, "news", receive_buffer=4096) as stream:
            sent = 0
            while server.hub.statistics().behind == 0:
                await server.hub.publish("news", {"n": sent, "text": "x" * 2000})
                sent += 1
                await trio.lowlevel.checkpoint()
            with await subscribe("sse", server.url, "other") as clock:
                assert isinstance(clock, EventStream)
                for _ in range(5):
                    await clock.wait_comment()
            assert [event.data["n"] for event in await stream.events(sent)] == list(range(sent))
            assert isinstance(stream, EventStream)
            await stream.wait_comment()
