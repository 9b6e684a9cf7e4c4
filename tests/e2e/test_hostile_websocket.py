"""What WebSocket clients should not send (RFC 6455): each gets the close code for it, and nobody else notices."""

import json
import random
import struct
from contextlib import suppress

import pytest
import trio
from clients import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WEBSOCKET_HEADERS,
    Closed,
    WebSocket,
    WebSocketClosed,
    Wire,
    ask,
    close_frame,
    frame,
    head,
    open_websocket,
    read_answer,
    read_head,
)
from serving import harmless, serving, until

SUBSCRIBE = json.dumps({"op": "subscribe", "topics": ["news"]}).encode()
PING_OPERATION = b'{"op":"ping"}'


# The handshake


def handshake(*headers: str, without: str = "", target: str = "/ws", version: str = "1.1", host: str = "test") -> bytes:
    kept = [line for line in WEBSOCKET_HEADERS if not line.startswith(without or "-")]
    return head("GET", target, *kept, *headers, version=version, host=host)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (handshake(without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key:", without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: short", without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: AAAA", without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: " + "A" * 64, without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: !!!!IHNhbXBsZSBub25jZQ==", without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: \xff\xfe", without="Sec-WebSocket-Key"), 400),
        (handshake("Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA=="), 400),  # the second of them
        (handshake(without="Sec-WebSocket-Version"), 400),
        (handshake("Sec-WebSocket-Protocol: \xff"), 400),
        (handshake("Sec-WebSocket-Extensions: \xff"), 400),
        (handshake(host="\xff\xfe"), 400),
        (handshake("Content-Length: 5") + b"hello", 400),
        (handshake("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (handshake(without="Upgrade"), 426),
        (handshake(without="Connection"), 426),
        (handshake("Upgrade: h2c", without="Upgrade"), 426),
        (handshake(version="1.0"), 426),
        (handshake(target="/events?topic="), 400),
        (handshake(target="/events?topic=news&last_id=x"), 400),
    ],
)
async def test_a_bad_handshake_is_refused(data: bytes, status: int) -> None:
    async with harmless() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(data)
            answer = await read_answer(wire)
            assert answer.status == status
            assert answer.code
            if status == 426:
                assert answer.headers["upgrade"] == "websocket"
                assert "upgrade" in answer.headers["connection"]


@pytest.mark.parametrize("version", ["0", "8", "14", "13, 8", "x"])
async def test_another_version_is_told_the_right_one(version: str) -> None:
    async with harmless() as server:
        data = handshake(f"Sec-WebSocket-Version: {version}", without="Sec-WebSocket-Version")
        with await Wire.open(server.url) as wire:
            await wire.send(data)
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")
            assert answer.headers["upgrade"] == "websocket"
            assert answer.headers["connection"] == "upgrade"


@pytest.mark.parametrize(
    "headers",
    [
        ("Upgrade: h2c, websocket", "Connection: Upgrade"),
        ("Upgrade: websocket, h2c", "Connection: keep-alive, Upgrade"),
        ("Upgrade: h2c", "Upgrade: WebSocket", "Connection: Upgrade"),
        ("Upgrade: websocket", "Connection: keep-alive", "Connection: Upgrade"),
        ("Upgrade: websocket", "Connection: upgrade", "Connection: HTTP2-Settings"),
        ("Upgrade: websocket", "Connection: Upgrade, Upgrade", "Connection: Upgrade"),
    ],
    ids=" | ".join,
)
async def test_websocket_may_be_one_of_several_protocols_and_options(headers: tuple[str, ...]) -> None:
    async with serving() as server:
        others = (line for line in WEBSOCKET_HEADERS if line.startswith("Sec-"))
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/ws", *headers, *others))
            answer = await read_head(wire)
            assert answer.status == 101
            assert (answer.headers["upgrade"].lower(), answer.headers["connection"].lower()) == ("websocket", "upgrade")
            await wire.send(frame(TEXT, b'{"op":"ping"}'))
            assert await WebSocket(wire, None).reply() == {"ok": "ping"}


async def test_a_host_of_any_name_is_fine() -> None:
    async with serving() as server:
        for host in ("", "127.0.0.1:8080", "[::1]:80", "xn--bcher-kva.test", "a_b.test"):
            with await Wire.open(server.url) as wire:
                await wire.send(handshake(host=host))
                assert (await wire.until(b"\r\n")) == b"HTTP/1.1 101 Switching Protocols\r\n"


async def test_the_subprotocol_is_chosen_only_when_offered() -> None:
    async with serving() as server:
        for offered, chosen in [((), None), (("chat, tricast.v1",), "tricast.v1"), (("chat",), None)]:
            headers = [f"Sec-WebSocket-Protocol: {names}" for names in offered]
            with await open_websocket(server.url, "/ws", *headers) as websocket:
                assert isinstance(websocket, WebSocket)
                assert websocket.subprotocol == chosen


async def test_compression_is_not_negotiated() -> None:
    # A bomb of a thousand times its size could not be seen coming.
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(handshake("Sec-WebSocket-Extensions: permessage-deflate"))
            assert b"sec-websocket-extensions" not in (await wire.until(b"\r\n\r\n")).lower()


async def test_frames_may_come_with_the_handshake() -> None:
    async with serving() as server:
        behind = frame(TEXT, PING_OPERATION) + frame(TEXT, SUBSCRIBE) + frame(PING, b"p")
        with await open_websocket(server.url, "/ws", behind=behind) as websocket:
            assert await websocket.reply() == {"ok": "ping"}
            assert (await websocket.reply())["ok"] == "subscribe"
            assert await websocket.pong() == b"p"


# Frames


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, PING_OPERATION, masked=False), 1002),
        (frame(PING, masked=False), 1002),
        (frame(CLOSE, masked=False), 1002),
        *[(frame(TEXT, b"{}", reserved=bits), 1002) for bits in (1, 2, 4, 7)],
        *[(frame(opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        (frame(PING, b"x", fin=False), 1002),
        (frame(CLOSE, b"", fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PONG, b"x" * 70_000), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        *[(close_frame(code), 1002) for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)],
        (close_frame(1000, b"\xff"), 1007),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(CONTINUATION, b"x", fin=False), 1002),
        (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
        (frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"), 1002),
        (b"\x81\xfe\x00\x05\0\0\0\0hello", 1002),  # a length that has a shorter form
        (b"\x81\xff\0\0\0\0\0\0\0\x05\0\0\0\0hello", 1002),
        (b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0", 1002),  # a length of 2^63
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xc3"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\x28"), 1007),
        (frame(TEXT, b"\xed\xa0", fin=False) + frame(CONTINUATION, b"\x80"), 1007),
        (frame(TEXT, b"\xf4\x90", fin=False) + frame(CONTINUATION, b"\x80\x80"), 1007),
        (frame(TEXT, b"abc", fin=False) + frame(CONTINUATION, b"\xe2\x82"), 1007),
        (frame(TEXT, b"x" * (64 * 1024 + 1)), 1009),
        (frame(BINARY, b"x" * (64 * 1024 + 1)), 1009),
        (frame(TEXT, b"x" * 300_000), 1009),
        (frame(TEXT, "é".encode() * (32 * 1024 + 1)), 1009),
        (frame(TEXT, b"x" * 40_000, fin=False) + frame(CONTINUATION, b"x" * 40_000), 1009),
        (frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"x" * 100, fin=False) * 700, 1009),
        (b"\x82\xff\0\0\0\x7f\xff\xff\xff\xff\0\0\0\0" + b"x" * 70_000, 1009),  # half a terabyte is to come
    ],
)
async def test_frames_against_the_protocol_close_it(data: bytes, code: int) -> None:
    async with harmless(websocket={"close_timeout": "5s"}) as server:
        for target in ("/ws", "/events?topic=news"):
            with await open_websocket(server.url, target) as websocket:
                with suppress(Closed):  # it need not be read to the end
                    await websocket.wire.send(data)
                assert (await websocket.closed()).code == code
        await until(lambda: server.connections == 2)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4000, 4999])
async def test_a_close_is_answered_with_its_code(code: int) -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/events?topic=news") as websocket:
            await websocket.wire.send(close_frame(code, "Grüße".encode()))
            await websocket.reply()
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.message()
            assert closed.value.code == code
            # The server is the first to close (RFC 6455 7.1.1).
            assert await websocket.wire.rest() == b""
        await until(lambda: server.connections == 2)


async def test_what_breaks_the_protocol_while_it_closes_ends_it() -> None:
    async with harmless(websocket={"close_timeout": "1h"}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(frame(TEXT, b"x" * 70_000) + frame(TEXT, reserved=7))
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.message()
            assert closed.value.code == 1009
            assert await websocket.wire.rest() == b""


async def test_a_close_without_a_code() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(frame(CLOSE) + frame(TEXT, PING_OPERATION))
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.message()
            assert closed.value.code is None
            assert await websocket.wire.rest() == b""


async def test_fragments_around_pings_are_one_message() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            pieces = [bytes([byte]) for byte in '{"op":"ping","ref":"größe"}'.encode()]
            data = frame(TEXT, b"", fin=False)
            for piece in pieces:
                data += frame(CONTINUATION, piece, fin=False) + frame(PING, piece)
            data += frame(CONTINUATION)
            for byte in data[:200]:
                await websocket.wire.send(bytes([byte]))
            await websocket.wire.send(data[200:])
            assert [await websocket.pong() for _ in pieces] == pieces
            assert await websocket.reply() == {"ok": "ping", "ref": "größe"}


async def test_as_long_a_message_as_allowed() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            assert (await websocket.operate(op="ping", ref="x" * (64 * 1024 - 25)))["ok"] == "ping"


async def test_a_hundred_thousand_empty_fragments_are_an_empty_message() -> None:
    async with harmless(websocket={"max_fragments": 200_000}) as server:
        with await open_websocket(server.url, "/ws") as websocket:
            async with trio.open_nursery() as nursery:
                empty = frame(CONTINUATION, fin=False) * 100_000
                data = frame(TEXT, fin=False) + empty + frame(CONTINUATION, PING_OPERATION)
                nursery.start_soon(websocket.wire.send, data)
                assert await websocket.reply() == {"ok": "ping"}


async def test_pings_of_a_client_that_never_reads_end_its_connection_only() -> None:
    async with harmless(limits={"send_buffer": 4096, "write_timeout": "200ms"}) as server:
        wire = await Wire.open(server.url, receive_buffer=4096)
        with wire:
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
            with pytest.raises(Closed):
                await send_forever(wire, frame(PING, b"x" * 125) * 100)
        await until(lambda: server.connections == 2)


async def send_forever(wire: Wire, data: bytes) -> None:
    while True:
        await wire.send(data)


async def test_pongs_that_nobody_asked_for_are_nothing() -> None:
    async with harmless() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            await websocket.wire.send(frame(PONG, b"unasked") * 1000 + frame(TEXT, PING_OPERATION))
            assert await websocket.reply() == {"ok": "ping"}


# Operations


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, PING_OPERATION), "bad-operation"),
        (frame(TEXT, b""), "bad-operation"),
        (frame(TEXT, b"hello"), "bad-operation"),
        (frame(TEXT, b"[]"), "bad-operation"),
        (frame(TEXT, b"null"), "bad-operation"),
        (frame(TEXT, b'"ping"'), "bad-operation"),
        (frame(TEXT, b"{}"), "bad-operation"),
        (frame(TEXT, b'{"op":null}'), "bad-operation"),
        (frame(TEXT, b'{"op":7}'), "bad-operation"),
        (frame(TEXT, b'{"op":"dance"}'), "bad-operation"),
        (frame(TEXT, b'{"op":"ping"'), "bad-operation"),
        (frame(TEXT, b'{"op":"ping"} {}'), "bad-operation"),
        (frame(TEXT, b'{"op":"ping","also":1}'), "bad-operation"),
        (frame(TEXT, b'{"op":"ping","ref":{}}'), "bad-operation"),
        (frame(TEXT, b"[" * 60_000), "bad-operation"),
        (frame(TEXT, b'{"op":' + b"[" * 60_000), "bad-operation"),
        (frame(TEXT, b'{"op":"subscribe"}'), "bad-operation"),
        (frame(TEXT, b'{"op":"subscribe","topics":"news"}'), "bad-operation"),
        (frame(TEXT, b'{"op":"subscribe","topics":[7]}'), "bad-operation"),
        (frame(TEXT, b'{"op":"subscribe","topics":["a"],"last_id":7}'), "bad-operation"),
        (frame(TEXT, b'{"op":"subscribe","topics":[]}'), "bad-topic"),
        (frame(TEXT, b'{"op":"subscribe","topics":["a",""]}'), "bad-topic"),
        (frame(TEXT, b'{"op":"subscribe","topics":["a b"]}'), "bad-topic"),
        (frame(TEXT, b'{"op":"subscribe","topics":["\\ud800"]}'), None),
        (frame(TEXT, b'{"op":"subscribe","topics":["a"],"last_id":"x"}'), "bad-last-id"),
        (frame(TEXT, json.dumps({"op": "subscribe", "topics": ["x" * 256]}).encode()), "limit-exceeded"),
        (
            frame(TEXT, json.dumps({"op": "subscribe", "topics": [f"t{n}" for n in range(101)]}).encode()),
            "limit-exceeded",
        ),
        (frame(TEXT, b'{"op":"publish","topic":"news"}'), "bad-operation"),
        (frame(TEXT, b'{"op":"publish","data":1}'), "bad-operation"),
        (frame(TEXT, b'{"op":"publish","topic":"a.*","data":1}'), "bad-topic"),
        (frame(TEXT, b'{"op":"publish","topic":"","data":1}'), "bad-topic"),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":1,"type":"a\\nb"}'), "bad-type"),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":1,"type":"a\\u0000b"}'), "bad-type"),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":1,"type":"tricast.gap"}'), "bad-type"),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":}'), "bad-operation"),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":{"a":}}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":"\\x"}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":"\\ud800"}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":01}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":1.}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":"\x01"}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":NaN}'), None),
        (frame(TEXT, b'{"op":"publish","topic":"news","data":' + b"[" * 60_000 + b"]" * 60_000 + b"}"), None),
    ],
)
async def test_an_operation_that_cannot_be_is_answered_and_the_connection_goes_on(
    data: bytes, code: str | None
) -> None:
    async with harmless(websocket={"max_message": "256KiB"}, publish={"max_event": "256KiB"}) as server:
        with await open_websocket(server.url, "/events?topic=>") as websocket:
            await websocket.reply()
            await websocket.wire.send(data + frame(TEXT, b'{"op":"ping","ref":1}'))
            reply = await websocket.reply()
            assert reply["error"]["message"]
            assert reply["error"]["code"] == code or code is None
            assert await websocket.reply() == {"ok": "ping", "ref": 1}
            assert server.hub.statistics().published == 0


async def test_a_mistake_repeats_the_ref() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            for ref in (1, 2.5, "r", None, True):
                reply = await websocket.operate(op="subscribe", topics=["a b"], ref=ref)
                assert (reply["error"]["code"], reply["ref"]) == ("bad-topic", ref)
            assert "ref" not in await websocket.operate(op="subscribe", topics=["a b"])


async def test_a_refused_subscription_leaves_the_old_one() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/events?topic=news") as websocket:
            await websocket.reply()
            assert "error" in await websocket.operate(op="subscribe", topics=["more", "a b"])
            await server.hub.publish("more", 1)
            await server.hub.publish("news", 2)
            assert (await websocket.event()).data == 2


async def test_noise() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    good = [frame(TEXT, PING_OPERATION), frame(TEXT, SUBSCRIBE), frame(PING, b"x"), frame(TEXT, b"x", fin=False),
            frame(CONTINUATION), close_frame(1000, b"bye")]  # fmt: skip
    async with harmless(websocket={"close_timeout": "5s"}) as server:
        for _ in range(150):
            data = bytearray(b"".join(source.choices(good, k=5)))
            for _ in range(source.randint(0, 3)):
                data[source.randrange(len(data))] = source.randrange(256)
            with await open_websocket(server.url, "/ws") as websocket:
                await websocket.wire.send(
                    bytes(data) + frame(TEXT, b"x" * 200) + struct.pack("!BB", 0x88, 0x80) + b"1234"
                )
                websocket.wire.finish_sending()
                await websocket.wire.rest()
        await until(lambda: server.connections == 2)


async def test_the_answer_to_a_plain_request_says_what_is_spoken() -> None:
    async with serving() as server:
        answer = await ask(server.url, "GET", "/ws")
        assert (answer.status, answer.code) == (426, "upgrade-required")
