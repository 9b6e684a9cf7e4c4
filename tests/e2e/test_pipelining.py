"""Much at once on one connection: every answer comes, in its place, and the others have their turn meanwhile."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
from clients import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    WEBSOCKET_HEADERS,
    Closed,
    Event,
    WebSocket,
    WebSocketClosed,
    Wire,
    close_frame,
    frame,
    head,
    open_websocket,
    read_answer,
    read_head,
)
from serving import harmless, serving, until

import tricast
from tricast.event import Draft, EventId
from tricast.http import HttpConnection
from tricast.log.base import IdempotencyKey
from tricast.log.memory import MemoryLog
from tricast.transports.websocket import Session
from tricast.wire.http1 import LAST_CHUNK

# HTTP


def post(body: bytes, *headers: str, topic: str = "news") -> bytes:
    return head("POST", f"/publish?topic={topic}", f"Content-Length: {len(body)}", *headers) + body


async def send_in_pieces(wire: Wire, data: bytes, source: random.Random) -> None:
    """Sends all of it, cut at a few places."""
    cuts = sorted({0, len(data), *(source.randrange(len(data)) for _ in range(source.randrange(10)))})
    for begin, end in pairwise(cuts):
        await wire.send(data[begin:end])
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("count", [2, 100, 101, 102, 1000])
async def test_pipelined_publishes_are_all_answered_in_order(count: int) -> None:
    async with harmless() as server:
        with await Wire.open(server.url) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.send, b"".join(post(b"%d" % n) for n in range(count)))
                ids = [(await read_answer(wire)).json()["id"] for _ in range(count)]
            await wire.send(head("GET", "/events?topic=news&last_id=0-0"))
            events = (await read_answer(wire)).json()["events"]
            assert [(event["id"], event["data"]) for event in events] == list(zip(ids, range(count), strict=True))


async def test_mistakes_between_publishes_keep_their_place() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    async with harmless(publish={"max_event": "1KiB", "max_body": "1KiB"}) as server:
        kinds = [
            (post(b"1"), "POST", 200),
            (post(b'{"n":1}', "Expect: 100-continue"), "POST", 200),
            (head("POST", "/publish?topic=news", "Transfer-Encoding: chunked") + b"1\r\n1\r\n0\r\n\r\n", "POST", 200),
            (post(b"", topic="a..b"), "POST", 400),
            (post(b'{"topic":"a"}\n', "Content-Type: application/x-ndjson"), "POST", 400),
            (head("GET", "/nothing"), "GET", 404),
            (head("GET", "/publish"), "GET", 405),
            (head("HEAD", "/healthz"), "HEAD", 200),
            (head("HEAD", "/nothing"), "HEAD", 404),
            (head("HEAD", "/events?topic=news"), "HEAD", 200),
            (head("OPTIONS", "/publish"), "OPTIONS", 204),
            (head("GET", "/events?topic=news&last_id=0-0"), "GET", 200),
        ]
        await server.hub.publish("news", "so that no poll waits")
        for _ in range(30):
            chosen = source.choices(kinds, k=source.randint(2, 60))
            with await Wire.open(server.url) as wire:
                async with trio.open_nursery() as nursery:
                    data = b"".join(request for request, _, _ in chosen)
                    nursery.start_soon(send_in_pieces, wire, data, source)
                    for _, method, status in chosen:
                        answer = await read_answer(wire, method)
                        if answer.status == 100:
                            answer = await read_answer(wire, method)
                        assert answer.status == status
                        assert "connection" not in answer.headers


async def test_a_body_that_is_waited_for_keeps_no_answer_back() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            expecting = head("POST", "/publish?topic=news", "Content-Length: 2", "Expect: 100-continue")
            await wire.send(head("GET", "/healthz") + head("HEAD", "/healthz") + expecting)
            assert (await read_answer(wire)).json() == {"status": "ok"}
            assert (await read_answer(wire, "HEAD")).status == 200
            assert (await read_head(wire)).status == 100
            await wire.send(b"42" + head("GET", "/nothing") + post(b"12345")[:-4])
            assert (await read_answer(wire)).json()["id"] == str(server.hub.last_id)
            assert (await read_answer(wire)).status == 404
            await wire.send(b"2345")
            assert (await read_answer(wire)).json()["id"] == str(server.hub.last_id)


async def test_the_end_of_a_connection_keeps_no_answer_back() -> None:
    async with serving() as server:
        for end in (head("GET", "/nothing", "Connection: close"), b"no request\r\n\r\n", b"\r\n", b"GET / HT"):
            with await Wire.open(server.url) as wire:
                await wire.send(head("GET", "/healthz") * 3 + end)
                wire.finish_sending()
                for _ in range(3):
                    assert (await read_answer(wire)).json() == {"status": "ok"}
                rest = await wire.rest()
                assert rest.startswith(b"HTTP/1.1 4") or (not rest and end == b"\r\n"), rest


@pytest.mark.parametrize("headers", [("Accept: text/event-stream",), WEBSOCKET_HEADERS])
async def test_answers_before_a_stream_come_before_it(headers: tuple[str, ...]) -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz") + post(b"1") + head("GET", "/events?topic=news", *headers))
            assert (await read_answer(wire)).json() == {"status": "ok"}
            assert (await read_answer(wire)).json()["id"]
            assert (await read_head(wire)).status in (101, 200)


async def test_requests_that_nobody_reads_the_answers_of_take_turns_with_others() -> None:
    limits = {"send_buffer": "4KiB", "write_timeout": "200ms"}
    async with harmless(limits=limits) as server:
        requests = server._runtime.counters.requests
        most, before = 0, 0
        with await Wire.open(server.url, receive_buffer=4096) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_until_closed, wire, head("GET", "/healthz") * 20_000)
                while not server._runtime.counters.lost["write-timeout"]:
                    before = requests.total()
                    await trio.lowlevel.checkpoint()
                    most = max(most, requests.total() - before)
                    assert all(len(busy._ahead) < 2**18 for busy in http_connections(server))
                nursery.cancel_scope.cancel()
        assert 1 <= most <= 3


async def send_until_closed(wire: Wire, data: bytes) -> None:
    with suppress(Closed):
        await wire.send(data)


def http_connections(server: tricast.Server) -> list[HttpConnection]:
    return [busy for busy in server._runtime.open.values() if isinstance(busy, HttpConnection)]


async def test_chunks_of_one_byte_take_turns_with_others() -> None:
    async with harmless() as server:
        data = head("POST", "/publish?topic=news", "Transfer-Encoding: chunked") + b"1\r\n1\r\n" * 10_000 + LAST_CHUNK
        turns = 0
        with await Wire.open(server.url) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.send, data)
                nursery.start_soon(wire.more)
                while not wire.buffer:
                    turns += any(busy._body is not None for busy in http_connections(server))
                    await trio.lowlevel.checkpoint()
            assert (await read_answer(wire)).status == 200
        assert turns > 10_000 // 300


# Operations


def operation(**fields: object) -> bytes:
    return frame(TEXT, json.dumps(fields).encode())


def publishing(ref: object, topic: str = "news") -> bytes:
    return operation(op="publish", topic=topic, data=ref, ref=ref)


@pytest.mark.parametrize("count", [2, 100, 101, 102, 500])
@pytest.mark.parametrize("target", ["/ws", "/events?topic=other"])
async def test_publishes_in_one_read_are_all_acknowledged_in_order(count: int, target: str) -> None:
    async with harmless() as server:
        with await open_websocket(server.url, target) as websocket:
            if target != "/ws":
                await websocket.begun()
            await websocket.wire.send(b"".join(map(publishing, range(count))))
            replies = [await websocket.reply() for _ in range(count)]
            assert [(reply["ok"], reply["ref"]) for reply in replies] == [("publish", n) for n in range(count)]
            await websocket.operate(op="subscribe", topics=["news"], last_id="0-0")
            events = await websocket.events(count)
            assert [(event.id, event.data) for event in events] == [(reply["id"], reply["ref"]) for reply in replies]


async def test_who_publishes_to_itself_gets_its_events_in_order() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/events?topic=news") as websocket:
            await websocket.begun()
            await websocket.wire.send(b"".join(map(publishing, range(300))))
            replies = [await websocket.reply() for _ in range(300)]
            events = await websocket.events(300)
            assert [event.id for event in events] == [reply["id"] for reply in replies]


def mixed(source: random.Random, ref: int) -> tuple[bytes, str]:
    """A frame with the kind of what comes back for it; nothing for a pong."""
    return source.choice(
        [
            (publishing(ref), "publish"),
            (publishing(ref), "publish"),
            (publishing(ref, "other"), "publish"),
            (publishing(ref, "a..b"), "bad-topic"),
            (operation(op="publish", topic="news", ref=ref), "bad-operation"),
            (operation(op="dance", ref=ref), "bad-operation"),
            (frame(TEXT, b'{"op":"publish"'), "bad-operation"),
            (operation(op="ping", ref=ref), "ping"),
            (operation(op="subscribe", topics=["more"], ref=ref), "subscribe"),
            (operation(op="subscribe", topics=["a b"], ref=ref), "bad-topic"),
            (operation(op="unsubscribe", topics=["more"], ref=ref), "unsubscribe"),
            (frame(2, b"binary"), "bad-operation"),
            (frame(PING, b"%d" % ref), "pong"),
            (frame(PONG, b"unasked"), ""),
            # Which only wsproto reads, so that all behind it goes there as well.
            (operation(op="ping", ref=ref)[:1].replace(b"\x81", b"\x01") + operation(op="ping", ref=ref)[1:]
             + frame(0), "ping"),
        ]
    )  # fmt: skip


async def test_operations_of_all_kinds_are_answered_in_order() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    async with harmless() as server:
        for _ in range(40):
            frames = [mixed(source, ref) for ref in range(source.randint(2, 150))]
            with await open_websocket(server.url, "/ws") as websocket:
                end = source.choice([b"", close_frame(1000, b"bye"), frame(CLOSE), frame(TEXT, b"\xff")])
                data = b"".join(data for data, _ in frames) + end
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_in_pieces, websocket.wire, data, source)
                    for ref, (_, expected) in enumerate(frames):
                        if expected:
                            assert await came_back(websocket, ref) == expected
                if end:
                    with pytest.raises(WebSocketClosed) as closed:
                        await websocket.message()
                    assert closed.value.code == {0x81: 1007, 0x88: 1000 if end[1] & 0x7F else None}[end[0]]
                    assert await websocket.wire.rest() == b""


async def came_back(websocket: WebSocket, ref: int) -> str:
    """What kind of reply or pong is next; that it is the one for this operation."""
    opcode, payload = await websocket._frame()
    if opcode == PONG:
        assert payload == b"%d" % ref
        return "pong"
    assert opcode == TEXT
    reply: dict[str, Any] = json.loads(payload)
    assert reply.get("ref", ref) == ref
    return str(reply["ok"] if "ok" in reply else reply["error"]["code"])


async def test_a_subscription_between_publishes_gets_what_comes_behind_it() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            subscribe = operation(op="subscribe", topics=["news"], ref="s")
            await websocket.wire.send(publishing(1) + publishing(2) + subscribe + publishing(3) + publishing(4))
            texts = [json.loads(await websocket.message()) for _ in range(7)]
            replies = [text for text in texts if "ok" in text]
            events = [Event(**text) for text in texts if "ok" not in text]
            assert [reply["ref"] for reply in replies] == [1, 2, "s", 3, 4]
            assert replies[2]["last_id"] == replies[1]["id"]
            assert [event.data for event in events] == [3, 4]
            assert texts.index(replies[2]) < min(n for n, text in enumerate(texts) if "ok" not in text)


async def test_a_close_behind_publishes_is_answered_after_them() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(b"".join(map(publishing, range(150))) + close_frame(4000) + publishing("late"))
            for n in range(150):
                assert (await websocket.reply())["ref"] == n
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.message()
            assert closed.value.code == 4000
            assert await websocket.wire.rest() == b""
        assert server.hub.statistics().published == 150


class FailingLog(MemoryLog):
    """Takes no more than so many events.

    Attributes:
        left: how many it will still take.
    """

    left = 3

    async def append(self, drafts: Any, key: IdempotencyKey | None = None) -> list[EventId]:
        if len(drafts) > self.left:
            raise tricast.LogUnavailable("full")
        self.left -= len(drafts)
        return await super().append(drafts, key)


def failing_log() -> FailingLog:
    return FailingLog(history=10, history_age=60, history_size=2**20, clock=lambda: 1.0)


async def test_a_failing_log_takes_only_so_much() -> None:
    log = failing_log()
    async with log.open(lambda events: None):
        await log.append([Draft("a", "t", b"1")] * 3)
        with pytest.raises(tricast.LogUnavailable):
            await log.append([Draft("a", "t", b"1")])


async def test_publishes_that_the_log_does_not_take_are_told_so_together() -> None:
    async with serving(log=failing_log()) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            # Ended by the ping, the first three are taken; of what is behind it, all or none.
            await websocket.wire.send(
                b"".join(map(publishing, range(3))) + operation(op="ping") + b"".join(map(publishing, range(3, 6)))
            )
            for n in range(3):
                assert (await websocket.reply())["ref"] == n
            assert await websocket.reply() == {"ok": "ping"}
            for n in range(3, 6):
                reply = await websocket.reply()
                assert (reply["error"]["code"], reply["ref"]) == ("log-unavailable", n)
            assert await websocket.operate(op="ping") == {"ok": "ping"}


# Others


def session_of(server: tricast.Server) -> Session:
    (session,) = (busy for busy in server._runtime.open.values() if isinstance(busy, Session))
    return session


@asynccontextmanager
async def turns_of_others(session: Session) -> AsyncIterator[list[float]]:
    """When others get their turns in the block while the session has more to parse."""
    turns: list[float] = []

    async def watch() -> None:
        while True:
            if session._received:
                turns.append(trio.current_time())
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield turns
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("data", [frame(TEXT, b'{"op":"ping"}'), publishing(1), frame(TEXT, b"{}"), frame(PING)])
async def test_thousands_of_frames_in_one_read_let_others_have_their_turn(data: bytes) -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await until(lambda: len(server._runtime.open) == 1)
            session = session_of(server)
            count = 60_000 // len(data)
            async with turns_of_others(session) as turns:
                await websocket.wire.send(data * count)
                for _ in range(count):
                    await websocket._frame()
            assert len(turns) >= count // 150


async def test_operations_of_many_topics_let_others_have_their_turn() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await until(lambda: len(server._runtime.open) == 1)
            session = session_of(server)
            topics = [f"t{number}.*" for number in range(100)]
            operations = [json.dumps({"op": op, "topics": topics}).encode() for op in ("subscribe", "unsubscribe")] * 15
            async with turns_of_others(session) as turns:
                await websocket.wire.send(b"".join(frame(TEXT, operation) for operation in operations))
                for _ in operations:
                    await websocket.reply()
            assert len(turns) >= len(operations) // 2


async def test_a_drain_in_the_middle_of_many_frames_ends_it_all_the_same() -> None:
    async with serving(websocket={"close_timeout": "1h"}) as server:
        for _ in range(10):
            with await open_websocket(server.url, "/ws") as websocket:
                await until(lambda: len(server._runtime.open) == 1)
                session = session_of(server)
                await websocket.wire.send(frame(PING) * 5000 + close_frame(1000))
                await until(lambda: bool(session._received))  # noqa: B023
                session.drain(1.0)
                with pytest.raises(WebSocketClosed) as closed:
                    await websocket.message()
                assert closed.value.code == 1012
                # The client's answer is there already.
                assert await websocket.wire.rest() == b""
            await until(lambda: server.connections == 0)
