"""What HTTP clients should not do: each gets a clear answer, and nobody else notices.

What cannot be taken for a request beyond doubt is in ``test_strict_http.py``.
"""

import random

import pytest
import trio
from clients import Closed, Wire, ask, head, publish, read_answer, say, subscribe
from serving import harmless, serving, until

OK = head("GET", "/healthz")


# Heads


async def test_a_malformed_request_behind_good_ones_is_answered_in_its_turn() -> None:
    async with harmless() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(OK + OK + b"nonsense\r\n\r\n" + OK)
            statuses = [(await read_answer(wire)).status for _ in range(3)]
            assert statuses == [200, 200, 400]
            assert await wire.rest() == b""


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("GET", "/healthz", "X: " + "x" * 20_000), 431),
        (head("GET", "/healthz", *(f"X{n}: {'x' * 300}" for n in range(60))), 431),
        (head("GET", "/healthz", *(f"X{n}: x" for n in range(150))), 431),
        (head("GET", "/healthz?" + "x" * 10_000), 414),
        (head("GET", "/" + "x" * 200_000), 414),
        (b"x" * 200_000, 414),
        (head("GET", "/healthz", "X: " + "x" * 200_000)[:-4], 431),
    ],
)
async def test_an_oversized_head_is_refused(data: bytes, status: int, in_pieces: bool) -> None:
    async with harmless() as server:
        with await Wire.open(server.url) as wire:
            try:
                for start in range(0, len(data), 1000 if in_pieces else len(data)):
                    await wire.send(data[start : start + (1000 if in_pieces else len(data))])
            except Closed:
                pass  # it was answered before the end
            answer = await read_answer(wire)
            assert answer.status == status
            assert answer.headers["connection"] == "close"


async def test_as_large_a_head_as_allowed() -> None:
    async with serving() as server:
        for headers in ([f"X{n}: x" for n in range(99)], ["X: " + "x" * 16_000]):
            assert (await ask(server.url, "GET", "/healthz", *headers)).status == 200
        assert (await ask(server.url, "GET", "/healthz?" + "x" * 8180)).status == 200


async def test_a_slow_head_is_not_waited_for() -> None:
    async with harmless(limits={"head_timeout": "500ms"}) as server:
        answer = await say(server.url, b"GET /healthz HTTP/1.1\r\nHo")
        assert answer.status == 408
        with await Wire.open(server.url) as silent:
            assert await silent.rest() == b""
        with await Wire.open(server.url) as second:
            # The second request of a connection as well, from its first byte on.
            await second.send(OK + b"GET")
            assert (await read_answer(second)).status == 200
            assert (await read_answer(second)).status == 408
            assert await second.rest() == b""


async def test_bytes_now_and_then_do_not_prolong_a_head() -> None:
    async with harmless(limits={"head_timeout": "500ms", "head_size": "1MiB"}) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /healthz HTTP/1.1\r\nX: ")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drip, wire)
                answer = await read_answer(wire)
                assert (answer.status, answer.code) == (408, "too-slow")
                nursery.cancel_scope.cancel()
        assert server._runtime.counters.refusals["limits.head_timeout"] == 1


async def test_who_goes_on_sending_a_head_is_waited_for() -> None:
    # Each byte buys a second, so that it may take long in all, but not for want of any.
    async with harmless(limits={"head_timeout": "1s", "receive_rate": "1B"}) as server:
        for before in (b"", OK):
            with await Wire.open(server.url) as wire:
                await wire.send(before)
                for _ in before and [OK]:
                    assert (await read_answer(wire)).status == 200
                begun = trio.current_time()
                await wire.send(OK[:-4] + b"\r\nX: ")
                while trio.current_time() < begun + 1.1:
                    await wire.send(b"x")
                    await trio.sleep(0.01)
                await wire.send(b"\r\n\r\n")
                assert (await read_answer(wire)).status == 200


async def drip(wire: Wire) -> None:
    """Sends a byte now and then, for ever."""
    while True:
        await wire.send(b"x")
        await trio.sleep(0.01)


# Bodies


async def test_a_slow_body_is_not_waited_for() -> None:
    async with harmless(limits={"body_timeout": "500ms"}) as server:
        for framing in ("Content-Length: 10", "Transfer-Encoding: chunked"):
            answer = await say(server.url, head("POST", "/publish?topic=news", framing) + b"3\r\n")
            assert (answer.status, answer.code) == (408, "too-slow")
        assert server._runtime.counters.refusals["limits.body_timeout"] == 2
        assert server.hub.statistics().published == 0


async def test_a_body_that_breaks_off_publishes_nothing() -> None:
    async with harmless() as server:
        for framing, body in [("Content-Length: 10", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhel")]:
            for leave in ("finish_sending", "close", "reset"):
                with await Wire.open(server.url) as wire:
                    await wire.send(head("POST", "/publish?topic=news", framing) + body)
                    getattr(wire, leave)()
                    if leave == "finish_sending":
                        assert (await read_answer(wire)).status == 400
                        assert await wire.rest() == b""
        await until(lambda: server.connections == 2)
        assert server.hub.statistics().published == 0


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("topic=news&type=a%00b", b"1", 400, "bad-type"),
        ("topic=news&type=a%0Ab", b"1", 400, "bad-type"),
        ("topic=news&type=a%0Db", b"1", 400, "bad-type"),
        ("topic=news&type=a%C2%85b", b"1", 400, "bad-type"),
        ("topic=news&type=a%E2%80%A8b", b"1", 400, "bad-type"),
        ("topic=news&type=", b"1", 400, "bad-type"),
        ("topic=news&type=tricast.gap", b"1", 400, "bad-type"),
        ("topic=news&type=" + "x" * 256, b"1", 400, "limit-exceeded"),
        ("topic=news&type=a&type=b", b"1", 400, "bad-query"),
        ("topic=a&topic=b", b"1", 400, "bad-query"),
        ("", b"1", 400, "bad-topic"),
        ("topic=", b"1", 400, "bad-topic"),
        ("topic=a.*", b"1", 400, "bad-topic"),
        ("topic=%3E", b"1", 400, "bad-topic"),
        ("topic=a%0Ab", b"1", 400, "bad-topic"),
        ("topic=" + "x" * 256, b"1", 400, "limit-exceeded"),
        ("topic=news", b"\xff\xfe", 400, "bad-data"),
        ("topic=news", b'"\xed\xa0\x80"', 400, "bad-data"),
        ("topic=news", b"x" * (64 * 1024 + 1), 413, "limit-exceeded"),
    ],
)
async def test_a_wrong_publish_is_told_why_and_publishes_nothing(
    query: str, body: bytes, status: int, code: str
) -> None:
    async with harmless() as server:
        answer = await ask(server.url, "POST", f"/publish?{query}", body=body)
        assert (answer.status, answer.code) == (status, code)
        assert server.hub.statistics().published == 0


async def test_deeply_nested_data_is_data() -> None:
    async with harmless() as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            await publish(server.url, "news", b"[" * 60_000)
            assert (await subscriber.event()).data == "[" * 60_000


# Those who come and go


@pytest.mark.parametrize("leave", ["close", "reset", "finish_sending"])
async def test_clients_may_leave_at_any_byte(leave: str) -> None:
    requests = [
        head("GET", "/events?topic=news", "Accept: text/event-stream"),
        head("GET", "/events?topic=news"),
        head("POST", "/publish?topic=left", "Content-Length: 5") + b"hello",
        head("GET", "/ws", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==") + b"\x81\x85\0\0\0\0hello\x88\x82\0\0\0\0\x03\xe8",
    ]  # fmt: skip
    async with harmless() as server:
        for data in requests:
            for end in range(0, len(data) + 1, 3):
                with await Wire.open(server.url) as wire:
                    await wire.send(data[:end])
                    getattr(wire, leave)()
                    if leave == "finish_sending":
                        await wire.rest()
        await until(lambda: server.connections == 2)


async def test_noise() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    samples = [
        head("POST", "/publish?topic=noise", "Content-Length: 5") + b"hello",
        head("POST", "/publish?topic=noise", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        head("GET", "/events?topic=noise&last_id=0-0", "Accept: text/event-stream"),
        head("GET", "/nothing", "Expect: 100-continue"),
    ]
    async with harmless(limits={"head_timeout": "2s", "body_timeout": "2s"}) as server:
        for _ in range(200):
            data = bytearray(source.choice(samples))
            for _ in range(source.randint(1, 4)):
                data[source.randrange(len(data))] = source.randrange(256)
            with await Wire.open(server.url) as wire:
                await wire.send(bytes(data))
                wire.finish_sending()
                answered = await wire.rest()
                assert answered.startswith(b"HTTP/1.1 ") or not answered
                assert b"HTTP/1.1 500" not in answered
        await until(lambda: server.connections == 2)
