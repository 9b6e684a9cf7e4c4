"""The server inside another Trio program, and application handlers: those that ship with it, and others."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from clients import (
    BINARY,
    CONTINUATION,
    TEXT,
    Closed,
    WebSocket,
    ask,
    close_frame,
    frame,
    open_websocket,
    subscribe,
)
from clocks import HANG_SECONDS
from serving import capturing_logger, serving, until
from structlog.testing import LogCapture

import tricast
from tricast import Session

ECHO = {"handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}]}
CHAT = {"handler": [{"path": "/chat", "handler": "tricast.handlers:chat"}]}


# echo


async def test_echo_sends_back_text_as_text_and_binary_as_binary() -> None:
    async with serving(websocket=ECHO) as server:
        with await open_websocket(server.url, "/echo") as websocket:
            for message in ("hello", b"\x00\xff", "", b"", "größe 😀", "x" * 65_536, b"\x80" * 65_536):
                is_text = isinstance(message, str)
                data = message.encode() if isinstance(message, str) else message
                await websocket.wire.send(frame(TEXT if is_text else BINARY, data))
                assert await websocket.message() == message
            await websocket.wire.send(
                frame(TEXT, "é".encode()[:1], fin=False) + frame(CONTINUATION, "é".encode()[1:] + b"!")
            )
            assert await websocket.message() == "é!"
            await websocket.wire.send(close_frame(4321, b"bye"))
            assert (await websocket.closed()).code == 4321
        await until(lambda: server.connections == 0)


async def test_a_handlers_path_speaks_websocket_only() -> None:
    async with serving(websocket=ECHO) as server:
        assert (await ask(server.url, "GET", "/echo")).status == 426
        assert (await ask(server.url, "POST", "/echo")).status == 405


# chat


async def enter(server: tricast.Server, query: str) -> WebSocket:
    return await open_websocket(server.url, f"/chat?{query}")


async def test_chat_is_a_stream_of_events_like_any_other() -> None:
    async with serving(websocket=CHAT) as server:
        with await subscribe("sse", server.url, "chat.lobby") as listener:
            with await enter(server, "name=Ada") as ada:
                assert (await ada.event()).data == {"name": "Ada"}
                with await enter(server, "room=lobby&name=Bob") as bob:
                    for websocket in (ada, bob):
                        event = await websocket.event()
                        assert (event.topic, event.type, event.data) == ("chat.lobby", "joined", {"name": "Bob"})
                    await bob.wire.send(frame(TEXT, b"hello") + frame(BINARY, b"not said"))
                    said = await ada.event()
                    assert (said.type, said.data) == ("said", {"name": "Bob", "text": "hello"})
                    assert await bob.event() == said
                    bob.wire.reset()
                left = await ada.event()
                assert (left.type, left.data) == ("left", {"name": "Bob"})
                ada.wire.close()
            types = [(await listener.event()).type for _ in range(5)]
            assert types == ["joined", "joined", "said", "left", "left"]
        # Who comes back says from where.
        with await enter(server, f"name=Ada&last_id={said.id}") as again:
            assert [(await again.event()).type for _ in range(3)] == ["left", "left", "joined"]


async def test_chat_rooms_are_apart() -> None:
    async with serving(websocket=CHAT) as server:
        with await enter(server, "room=a") as first, await enter(server, "room=b") as second:
            assert (await first.event()).data == {"name": "anonymous"}
            assert (await second.event()).topic == "chat.b"


@pytest.mark.parametrize("query", ["room=a%20b", "room=a..b", "last_id=nonsense"])
async def test_chat_closes_with_1008_when_it_cannot_be(query: str) -> None:
    async with serving(websocket=CHAT) as server:
        with await enter(server, query) as websocket:
            closed = await websocket.closed()
            assert closed.code == 1008
            assert closed.reason


# Others


async def with_handler(
    monkeypatch: pytest.MonkeyPatch,
    handler: Callable[[Session], Awaitable[None]],
    client: Callable[[tricast.Server, WebSocket], Awaitable[None]],
    target: str = "/own",
    **sections: Any,
) -> None:
    """Runs a client against a handler of its own."""
    monkeypatch.setattr("tricast.handlers.own", handler, raising=False)
    entry = {"path": "/own", "handler": "tricast.handlers:own"}
    async with serving(websocket={"handler": [entry]} | sections) as server:
        with await open_websocket(server.url, target) as websocket:
            await client(server, websocket)
        await until(lambda: server.connections == 0)


async def test_a_handler_that_returns_closes_with_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(session: Session) -> None:
        await session.send(f"{session.request.path} {session.request.parameter('q')} {session.peer}")

    async def client(server: tricast.Server, websocket: WebSocket) -> None:
        assert await websocket.message() == "/own ü 127.0.0.1"
        assert (await websocket.closed()).code == 1000

    await with_handler(monkeypatch, handler, client, "/own?q=%C3%BC")


async def test_a_handler_may_close_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(session: Session) -> None:
        await session.close(4000, "é" * 100)
        await session.close(4001, "only the first counts")
        with pytest.raises(tricast.ConnectionLost):
            await session.send("text")
        with pytest.raises(tricast.ConnectionLost):
            await session.send(b"binary")

    async def client(server: tricast.Server, websocket: WebSocket) -> None:
        closed = await websocket.closed()
        assert (closed.code, closed.reason) == (4000, "é" * 61)

    await with_handler(monkeypatch, handler, client)


async def test_a_handler_sees_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int | None] = []

    async def handler(session: Session) -> None:
        assert session.close_code is None
        async for _ in session:
            pass
        codes.append(session.close_code)

    async def closes(server: tricast.Server, websocket: WebSocket) -> None:
        await websocket.wire.send(close_frame(4444))
        await websocket.closed()

    async def says_nothing(server: tricast.Server, websocket: WebSocket) -> None:
        await websocket.wire.send(b"\x88\x80\0\0\0\0")
        await websocket.closed()

    async def just_ends(server: tricast.Server, websocket: WebSocket) -> None:
        websocket.wire.finish_sending()
        await websocket.wire.rest()

    for client in (closes, says_nothing, just_ends):
        await with_handler(monkeypatch, handler, client)
    assert codes == [4444, 1005, 1006]


async def test_a_handler_may_subscribe_and_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(session: Session) -> None:
        await session.subscribe("a", "b.*", last_id="0-0")
        assert session.topics == {"a", "b.*"}
        async for message in session:
            assert isinstance(message, str)
            await session.unsubscribe("a")
            await session.publish("a", "unseen")
            await session.publish("b.c", {"heard": message}, type="t")

    async def client(server: tricast.Server, websocket: WebSocket) -> None:
        await server.hub.publish("a", 1)
        assert (await websocket.event()).data == 1
        await websocket.wire.send(frame(TEXT, b"hello"))
        event = await websocket.event()
        assert (event.topic, event.type, event.data) == ("b.c", "t", {"heard": "hello"})

    await with_handler(monkeypatch, handler, client)


async def test_cancelling_the_wait_for_a_message_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 500

    async def handler(session: Session) -> None:
        for n in range(count):
            message: str | bytes | None = None
            with trio.CancelScope() as scope:
                scope.cancel()
                message = await anext(session)
            if message is None:  # cut off at a checkpoint, of which there is one now and then
                message = await anext(session)
            assert message == str(n)
        await session.send("all")

    async def client(server: tricast.Server, websocket: WebSocket) -> None:
        await websocket.wire.send(b"".join(frame(TEXT, str(n).encode()) for n in range(count)))
        assert await websocket.message() == "all"

    await with_handler(monkeypatch, handler, client)


# Embedding


async def test_two_servers_in_one_program_are_apart() -> None:
    async with serving() as first, serving() as second:
        assert first.port != second.port
        with await subscribe("sse", first.url, "news") as one, await subscribe("sse", second.url, "news") as two:
            await first.hub.publish("news", 1)
            await second.hub.publish("news", 2)
            assert ((await one.event()).data, (await two.event()).data) == (1, 2)


async def test_a_program_ends_its_server_with_the_nursery() -> None:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            config = tricast.Config.model_validate({"server": {"port": 0}})
            server = await nursery.start(partial(tricast.serve, config, logger=capturing_logger(LogCapture())))
            subscriber = await subscribe("sse", server.url, "news")
            nursery.cancel_scope.cancel()
        with subscriber, pytest.raises(Closed):
            await subscriber.event()


async def test_an_address_in_use_is_an_os_error() -> None:
    async with serving() as server:
        config = tricast.Config.model_validate({"server": {"port": server.port}})
        with pytest.raises(OSError, match="in use"):
            await tricast.serve(config)


async def test_a_handler_that_is_not_there_is_a_config_error() -> None:
    entries = [{"path": "/a", "handler": "tricast.handlers:nothing"}, {"path": "/b", "handler": "nowhere:echo"}]
    config = tricast.Config.model_validate({"server": {"port": 0}, "websocket": {"handler": entries}})
    with pytest.raises(tricast.ConfigError) as raised:
        await tricast.serve(config)
    assert [problem.key for problem in raised.value.problems] == [
        "websocket.handler.0.handler",
        "websocket.handler.1.handler",
    ]


async def test_the_default_logger_is_the_standard_librarys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tricast")
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            config = tricast.Config.model_validate({"server": {"port": 0}, "logging": {"access": True}})
            server = await nursery.start(tricast.serve, config)
            await ask(server.url, "GET", "/healthz")
            nursery.cancel_scope.cancel()
    assert f"listening on {server.url}" in caplog.text
    assert "request" in caplog.text


async def test_it_listens_on_ipv6_as_well() -> None:
    async with serving(server={"host": "::1"}) as server:
        assert server.url.startswith("http://[::1]:")
        assert (await ask(server.url, "GET", "/healthz")).status == 200
