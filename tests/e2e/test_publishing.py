"""Publishing over HTTP and WebSocket: one event, batches, repeats, and what is too much."""

import json
from collections.abc import Sequence

import pytest
import trio
from clients import (
    TEXT,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    publish,
    read_answer,
    subscribe,
)
from serving import serving, until

import tricast
from tricast.event import Draft, EventId
from tricast.log.base import IdempotencyKey
from tricast.log.memory import MemoryLog

NDJSON = "Content-Type: application/x-ndjson"


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


async def kept(server: tricast.Server, pattern: str = ">") -> list[object]:
    """The data of everything that the log holds."""
    answer = await ask(server.url, "GET", f"/events?topic={pattern}&last_id=0-0&x")
    return [event["data"] for event in answer.json()["events"]]


async def test_one_event() -> None:
    async with serving() as server:
        first = await publish(server.url, "news", {"n": 1}, type="t")
        assert str(server.hub.last_id) == first
        assert await kept(server) == [{"n": 1}]


async def test_a_publish_from_the_same_run() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            event_id = await server.hub.publish("news", {"n": 1}, type="t")
            event = await subscriber.event()
            assert (event.id, event.type, event.data) == (str(event_id), "t", {"n": 1})
        with pytest.raises(tricast.RemoteProtocolError):
            await server.hub.publish("a b", 1)


async def test_a_batch_is_in_order_and_side_by_side() -> None:
    async with serving() as server:
        with await subscribe("ws", server.url, ">") as subscriber:
            body = lines({"topic": "a", "data": 1}, {"topic": "b", "type": "t", "data": {"x": None}}) + b"\r\n \n"
            body += b'{"topic":"a","data":"no newline at the end"}'
            answer = await ask(server.url, "POST", "/publish", f"{NDJSON}; charset=utf-8", body=body)
            assert answer.status == 200
            events = await subscriber.events(3)
            assert [event.id for event in events] == answer.json()["ids"]
            assert [(event.topic, event.type) for event in events] == [("a", "message"), ("b", "t"), ("a", "message")]
            assert [event.data for event in events] == [1, {"x": None}, "no newline at the end"]


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        (b"nonsense", 400, "bad-data"),
        (b"[]", 400, "bad-data"),
        (b'{"topic":"a"}', 400, "bad-data"),
        (b'{"data":1}', 400, "bad-data"),
        (b'{"topic":"a","data":1,"x":1}', 400, "bad-data"),
        (b'{"topic":"a","data":{"a":}}', 400, "bad-data"),
        (b'{"topic":"a","data":"\\x"}', 400, "bad-data"),
        (b'{"topic":"a","data":"\xff"}', 400, "bad-data"),
        (b'{"topic":"a","data":' + b"[" * 50_000, 400, "bad-data"),
        (b'{"topic":"a.*","data":1}', 400, "bad-topic"),
        (b'{"topic":"a","type":"x\\ny","data":1}', 400, "bad-type"),
        (b'{"topic":"a","type":7,"data":1}', 400, "bad-data"),
        (b'{"topic":"a","data":"' + b"x" * 65_536 + b'"}', 413, "limit-exceeded"),
    ],
)
async def test_a_batch_is_published_whole_or_not_at_all(wrong: bytes, status: int, code: str) -> None:
    async with serving() as server:
        good = b'{"topic":"a","data":1}\n'
        answer = await ask(server.url, "POST", "/publish", NDJSON, body=good * 2 + wrong + b"\n" + good)
        assert (answer.status, answer.code) == (status, code)
        assert "line 3" in answer.json()["detail"]
        assert server.hub.statistics().published == 0


async def test_an_empty_batch_is_none() -> None:
    async with serving() as server:
        for body in (b"", b"\n\n"):
            answer = await ask(server.url, "POST", "/publish", NDJSON, body=body)
            assert (answer.status, answer.code) == (400, "bad-data")


async def test_a_batch_of_too_many_is_refused_whole() -> None:
    async with serving(publish={"max_batch": 3}) as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            too_many = lines(*({"topic": "news", "data": n} for n in range(4)))
            for key in ((), ("Idempotency-Key: k",)):
                answer = await ask(server.url, "POST", "/publish", NDJSON, *key, body=too_many)
                assert (answer.status, answer.code) == (413, "limit-exceeded")
                assert "publish.max_batch allows 3, found more" in answer.json()["detail"]
            assert server.hub.statistics().published == 0
            just_enough = lines(*({"topic": "news", "data": n} for n in range(3)))
            assert (await ask(server.url, "POST", "/publish", NDJSON, body=just_enough)).status == 200
            assert [event.data for event in await subscriber.events(3)] == [0, 1, 2]


# Repeats


async def test_a_repeated_key_gets_the_first_answer_and_publishes_once() -> None:
    async with serving() as server:
        key = "Idempotency-Key: 7f9c"
        first = await ask(server.url, "POST", "/publish?topic=news", key, body=b"1")
        again = await ask(server.url, "POST", "/publish?topic=news", key, body=b"1")
        assert first.json() == again.json()
        assert server.hub.statistics().published == 1
        batch = lines({"topic": "a", "data": 1}, {"topic": "a", "data": 2})
        answers = [await ask(server.url, "POST", "/publish", NDJSON, key + "b", body=batch) for _ in range(3)]
        assert answers[0].json() == answers[1].json() == answers[2].json()
        assert server.hub.statistics().published == 3


@pytest.mark.parametrize(
    ("target", "headers", "body"),
    [
        ("/publish?topic=news", (), b"2"),
        ("/publish?topic=other", (), b"1"),
        ("/publish?topic=news&type=t", (), b"1"),
        ("/publish?topic=news", (NDJSON,), b'{"topic":"news","data":1}'),
        ("/publish?topic=news", ("Content-Type: text/plain",), b"1"),
    ],
)
async def test_a_key_is_for_one_request(target: str, headers: tuple[str, ...], body: bytes) -> None:
    async with serving() as server:
        key = "Idempotency-Key: k"
        assert (await ask(server.url, "POST", "/publish?topic=news", key, body=b"1")).status == 200
        answer = await ask(server.url, "POST", target, key, *headers, body=body)
        assert (answer.status, answer.code) == (422, "idempotency-key-reused")
        assert server.hub.statistics().published == 1


async def test_what_was_refused_may_be_tried_again_with_its_key() -> None:
    async with serving() as server:
        key = "Idempotency-Key: k"
        assert (await ask(server.url, "POST", "/publish?topic=a..b", key, body=b"1")).status == 400
        assert (await ask(server.url, "POST", "/publish?topic=news", key, body=b"1")).status == 200


async def test_a_key_that_is_none() -> None:
    async with serving() as server:
        for key in ("", "x" * 256):
            answer = await ask(server.url, "POST", "/publish?topic=news", f"Idempotency-Key: {key}", body=b"1")
            assert (answer.status, answer.code) == (400, "bad-idempotency-key")


class SlowLog(MemoryLog):
    """Holds every append until it is let go, or fails it."""

    def __init__(self) -> None:
        super().__init__(history=100, history_age=1000.0, history_size=10**6, clock=lambda: 1000.0)
        self.asked = trio.Event()
        self.let_go = trio.Event()
        self.error: Exception | None = None

    @property
    def waits(self) -> bool:
        return True

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        self.asked.set()
        await self.let_go.wait()
        if self.error is not None:
            raise self.error
        return await super().append(drafts, key)


async def test_a_copy_that_comes_during_the_first_gets_its_answer() -> None:
    log = SlowLog()
    async with serving(log=log) as server:
        answers = []

        async def publish() -> None:
            answers.append(await ask(server.url, "POST", "/publish?topic=news", "Idempotency-Key: k", body=b"1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await log.asked.wait()
            nursery.start_soon(publish)
            await until(lambda: server.connections == 2)
            log.let_go.set()
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert server.hub.statistics().committed == 1


async def test_a_publisher_that_leaves_in_the_middle_frees_its_key() -> None:
    log = SlowLog()
    async with serving(log=log) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("POST", "/publish?topic=news", "Idempotency-Key: k"))
            await log.asked.wait()
        log.let_go.set()
        await until(lambda: server.connections == 0)
        assert (await ask(server.url, "POST", "/publish?topic=news", "Idempotency-Key: k")).status == 200
        assert server.hub.statistics().published == 1  # the first had been kept, so this was its answer


async def test_a_log_that_is_not_available_is_told() -> None:
    log = SlowLog()
    log.let_go.set()
    async with serving(log=log) as server:
        log.error = tricast.LogUnavailable("gone fishing")
        answer = await ask(server.url, "POST", "/publish?topic=news", "Idempotency-Key: k", body=b"1")
        assert (answer.status, answer.code) == (503, "log-unavailable")
        assert answer.headers["retry-after"]
        with await open_websocket(server.url, "/ws") as websocket:
            reply = await websocket.operate(op="publish", topic="news", data=1, ref=5)
            assert (reply["error"]["code"], reply["ref"]) == ("log-unavailable", 5)
            log.error = None
            assert "id" in await websocket.operate(op="publish", topic="news", data=1)
        assert (await ask(server.url, "POST", "/publish?topic=news", "Idempotency-Key: k", body=b"1")).status == 200


# Framing and limits


async def test_chunks_of_one_byte() -> None:
    async with serving() as server:
        body = json.dumps({"text": "x" * 2000}).encode()
        chunks = b"".join(b"1;ext=1\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: yes\r\n\r\n"
        with await Wire.open(server.url) as wire:
            await wire.send(head("POST", "/publish?topic=news", "Transfer-Encoding: chunked") + chunks)
            assert (await read_answer(wire)).status == 200
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200
        assert await kept(server) == [{"text": "x" * 2000}]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_without_waiting_for_its_end(is_chunked: bool) -> None:
    async with serving(publish={"max_body": "10KiB", "max_event": "10KiB"}) as server:
        with await Wire.open(server.url) as wire:
            if is_chunked:
                data = (
                    head("POST", "/publish?topic=news", "Transfer-Encoding: chunked")
                    + b"400\r\n%b\r\n" % (b"x" * 1024) * 11
                )
            else:
                data = head("POST", "/publish?topic=news", "Content-Length: 10241")
            await wire.send(data)
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (413, "limit-exceeded")
            assert answer.headers["connection"] == "close"
            assert await wire.rest() == b""
        assert (await ask(server.url, "POST", "/publish?topic=news", body=b'"%b"' % (b"x" * 10238))).status == 200


async def test_an_answer_survives_what_the_client_is_still_sending() -> None:
    # Closing with unread input would make the kernel reset the connection, and lose the answer (RFC 9112 9.6).
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            size = 2**20 + 500_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    wire.send, head("POST", "/publish?topic=news", f"Content-Length: {size}") + b"x" * 900_000
                )
                assert (await read_answer(wire)).status == 413


async def test_an_event_is_limited_apart_from_the_body() -> None:
    async with serving(publish={"max_event": 10}) as server:
        assert (await ask(server.url, "POST", "/publish?topic=news", body=b"x" * 8)).status == 200
        # As a JSON string it has two quotes as well.
        answer = await ask(server.url, "POST", "/publish?topic=news", body=b"x" * 9)
        assert (answer.status, answer.code) == (413, "limit-exceeded")
        with await open_websocket(server.url, "/ws") as websocket:
            assert "id" in await websocket.operate(op="publish", topic="news", data="x" * 8)
            reply = await websocket.operate(op="publish", topic="news", data="x" * 9)
            assert reply["error"]["code"] == "limit-exceeded"


# Over WebSocket


async def test_publishing_over_websocket() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/events?topic=news") as websocket:
            assert (await websocket.reply())["topics"] == ["news"]
            reply = await websocket.operate(op="publish", topic="news", data={"n": [1, 2.5, "é"]}, type="t", ref="r")
            assert reply["ok"] == "publish"
            assert reply["ref"] == "r"
            event = await websocket.event()
            assert (event.id, event.topic, event.type, event.data) == (reply["id"], "news", "t", {"n": [1, 2.5, "é"]})
            await websocket.wire.send(frame(TEXT, b'{"op":"publish","topic":"news","data":  {"spaced" :\n1 }  }'))
            assert (await websocket.event()).data == {"spaced": 1}


async def test_operations_in_one_segment_are_answered_in_order() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(
                b"".join(
                    frame(TEXT, json.dumps({"op": "publish", "topic": "news", "data": n, "ref": n}).encode())
                    for n in range(500)
                )
            )
            assert [(await websocket.reply())["ref"] for _ in range(500)] == list(range(500))
        assert await kept(server) == list(range(500))


async def test_drafts_of_many_topics_reach_those_who_asked_for_them() -> None:
    async with serving() as server:
        with await subscribe("sse", server.url, "t7", "t9.*") as subscriber:
            await server.hub.append([Draft(f"t{n}", "message", b"%d" % n) for n in range(20)])
            await server.hub.append([Draft(f"t{n}.x", "message", b"%d" % n) for n in range(20)])
            assert [event.data for event in await subscriber.events(2)] == [7, 9]


# Subscribing by operation


async def test_topics_come_and_go_on_one_websocket() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            reply = await websocket.operate(op="subscribe", topics=["a"], ref=1)
            assert reply == {"ok": "subscribe", "topics": ["a"], "last_id": str(server.hub.last_id), "ref": 1}
            first = await server.hub.publish("a", 1)
            await server.hub.publish("b", 2)
            assert (await websocket.event()).data == 1
            assert (await websocket.operate(op="subscribe", topics=["b"]))["topics"] == ["a", "b"]
            await server.hub.publish("b", 3)
            await server.hub.publish("a", 4)
            assert [event.data for event in await websocket.events(2)] == [3, 4]
            assert (await websocket.operate(op="unsubscribe", topics=["a", "never"]))["topics"] == ["b"]
            await server.hub.publish("a", 5)
            await server.hub.publish("b", 6)
            assert (await websocket.event()).data == 6
            # A position takes the whole subscription back.
            await websocket.operate(op="subscribe", topics=["a"], last_id=str(first))
            assert [event.data for event in await websocket.events(5)] == [2, 3, 4, 5, 6]
            assert (await websocket.operate(op="unsubscribe", topics=["a", "b"]))["topics"] == []
            assert server.hub.statistics().subscribers == 0
            await server.hub.publish("a", 7)
            assert await websocket.operate(op="ping") == {"ok": "ping"}
