"""permessage-deflate (RFC 7692): negotiated where it is switched on and offered, one compressed frame for all."""

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
import trio
from clients import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    WEBSOCKET_HEADERS,
    Answer,
    Closed,
    WebSocket,
    WebSocketClosed,
    Wire,
    attempt,
    close_frame,
    frame,
    head,
    open_websocket,
    read_head,
    subscribe,
)
from clocks import HANG_SECONDS
from serving import harmless, serving, until
from websockets.sync.client import ClientConnection, connect

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
ACCEPTED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
ECHO = {"path": "/echo", "handler": "tricast.handlers:echo"}
ON = {"permessage_deflate": True, "close_timeout": "5s", "handler": [ECHO]}
#: RSV1 of the first byte of a frame (RFC 7692 6).
RSV1 = 4


def deflate(data: bytes, *, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def inflate(data: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data + b"\x00\x00\xff\xff")


async def handshake(wire: Wire, target: str, *headers: str) -> Answer:
    await wire.send(head("GET", target, *WEBSOCKET_HEADERS, *headers))
    answer = await read_head(wire)
    assert answer.status == 101
    return answer


async def raw_frame(wire: Wire) -> bytes:
    """A frame as it is on the wire; it must be shorter than 64 KiB."""
    begin = await wire.exactly(2)
    if begin[1] == 126:
        begin += await wire.exactly(2)
        return begin + await wire.exactly(int.from_bytes(begin[2:]))
    assert begin[1] < 126
    return begin + await wire.exactly(begin[1])


def text_of(raw: bytes) -> bytes:
    """A text frame's payload, inflated where that is said."""
    assert raw[0] in (0x81, 0xC1)
    payload = raw[4 if raw[1] == 126 else 2 :]
    return inflate(payload) if raw[0] == 0xC1 else payload


# The negotiation


@pytest.mark.parametrize(
    ("is_on", "offers", "accepted"),
    [
        (False, ["permessage-deflate"], None),
        (False, ["permessage-deflate; client_max_window_bits"], None),
        (True, [], None),
        (True, ["permessage-deflate"], ACCEPTED),
        (True, ["permessage-deflate; client_max_window_bits"], ACCEPTED),
        (True, ["permessage-deflate; server_max_window_bits=8"], None),
        (True, ["permessage-deflate; server_max_window_bits=9"], ACCEPTED + "; server_max_window_bits=9"),
        (True, ["permessage-deflate; server_max_window_bits=8, permessage-deflate"], ACCEPTED),
        (True, ["permessage-deflate; server_max_window_bits=8", "permessage-deflate"], ACCEPTED),
        (True, ["x-unknown", "permessage-deflate; x=y"], None),
    ],
)
@pytest.mark.parametrize("target", ["/ws", "/events?topic=news", "/echo"])
async def test_what_is_answered_to_an_offer(
    is_on: bool, offers: Sequence[str], accepted: str | None, target: str
) -> None:
    async with serving(websocket=ON | {"permessage_deflate": is_on}) as server:
        with await Wire.open(server.url) as wire:
            answer = await handshake(wire, target, *(f"Sec-WebSocket-Extensions: {offer}" for offer in offers))
            assert answer.headers.get("sec-websocket-extensions") == accepted


async def test_an_offer_changes_nothing_for_those_who_ask_for_something_else() -> None:
    async with serving(websocket=ON) as server:
        answer = await attempt("ws", server.url, "topic=a..b", OFFER)
        assert (answer.status, answer.code) == (400, "bad-topic")
        assert "sec-websocket-extensions" not in answer.headers


# Events


async def test_all_who_negotiated_it_get_the_same_bytes() -> None:
    async with serving(websocket=ON) as server:
        wires = [await Wire.open(server.url) for _ in range(3)]
        for wire in wires:
            await handshake(wire, "/events?topic=news", OFFER)
            assert json.loads(text_of(await raw_frame(wire)))["ok"] == "subscribe"
        with await subscribe("ws", server.url, "news") as plain:
            await until(lambda: server.hub.statistics().subscribers == 4)
            for n in range(20):
                await server.hub.publish("news", {"n": n, "text": "again and " * 10 * n})
            for n in range(20):
                event = await plain.event()
                assert event.data["n"] == n
                frames = [await raw_frame(wire) for wire in wires]
                assert len(set(frames)) == 1
                assert json.loads(text_of(frames[0])) == event._asdict()
                # Of the first, there is little to gain, and from the tenth on hardly anything left.
                assert (frames[0][0] == 0xC1) is (len(frames[0]) - 4 < len(text_of(frames[0])))
                assert n < 10 or len(frames[0]) < 250 < len(text_of(frames[0]))
        for wire in wires:
            wire.close()


async def test_what_was_missed_comes_compressed_too_and_a_gap_as_it_is() -> None:
    async with serving(websocket=ON, events={"history": 5}) as server:
        first = await server.hub.publish("news", "gone")
        for n in range(6):
            await server.hub.publish("news", f"{n}" * 500)
        with await Wire.open(server.url) as wire:
            await handshake(wire, f"/events?topic=news&last_id={first}", OFFER)
            texts = [json.loads(text_of(raw)) for raw in [await raw_frame(wire) for _ in range(7)]]
            assert [text["data"][0] for text in texts if "data" in text] == list("12345")
            assert sum("gap" in text for text in texts) == 1


async def test_who_did_not_offer_it_gets_frames_as_ever() -> None:
    async with serving(websocket=ON) as server:
        with await subscribe("ws", server.url, "news") as plain:
            assert isinstance(plain, WebSocket)
            await server.hub.publish("news", "x" * 1000)
            assert (await plain.event()).data == "x" * 1000  # the client takes no reserved bits
            await plain.wire.send(frame(TEXT, deflate(b'{"op":"ping"}'), reserved=RSV1))
            assert (await plain.closed()).code == 1002


# Messages


async def test_operations_may_be_compressed_or_not() -> None:
    async with serving(websocket=ON) as server:
        with await open_websocket(server.url, "/ws", OFFER) as websocket:
            for ref in range(20):
                operation = json.dumps(
                    {"op": "publish", "topic": "other", "data": "x" * 100 * ref, "ref": ref}
                ).encode()
                data = frame(TEXT, deflate(operation), reserved=RSV1) if ref % 3 else frame(TEXT, operation)
                await websocket.wire.send(data + frame(PING, b"p"))
                reply = await websocket.reply()
                assert (reply["ok"], reply["ref"]) == ("publish", ref)
                assert await websocket.pong() == b"p"
            assert server.hub.statistics().published == 20
            payload = deflate(b'{"op":"ping","ref":"in pieces"}')
            data = (
                frame(TEXT, payload[:5], fin=False, reserved=RSV1)
                + frame(PING, b"p")
                + frame(CONTINUATION, payload[5:])
            )
            for byte in data:
                await websocket.wire.send(bytes([byte]))
            assert await websocket.pong() == b"p"
            assert (await websocket.reply())["ref"] == "in pieces"
            await websocket.wire.send(close_frame(1000, b"bye"))
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.message()
            assert closed.value.code == 1000
            assert await websocket.wire.rest() == b""


async def test_what_comes_with_the_handshake_may_be_compressed() -> None:
    async with serving(websocket=ON) as server:
        behind = frame(TEXT, deflate(b'{"op":"ping","ref":1}'), reserved=RSV1)
        with await open_websocket(server.url, "/ws", OFFER, behind=behind) as websocket:
            assert await websocket.reply() == {"ok": "ping", "ref": 1}


@pytest.mark.parametrize("target", ["/ws", "/events?topic=news", "/echo"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff\xff\xff\xff", reserved=RSV1), 1007),
        (frame(TEXT, deflate(b"\xff"), reserved=RSV1), 1007),
        (frame(TEXT, deflate(b"x"), reserved=RSV1 | 2), 1002),
        (frame(TEXT, b"x", reserved=1), 1002),
        (frame(PING, b"x", reserved=RSV1), 1002),
        (frame(TEXT, b"x", fin=False) + frame(CONTINUATION, deflate(b"x"), reserved=RSV1), 1002),
        (frame(BINARY, deflate(bytes(64 * 2**10 + 1)), reserved=RSV1), 1009),
        (frame(BINARY, deflate(bytes(100 * 2**20), level=9), reserved=RSV1), 1009),
        (frame(TEXT, b"x" * (64 * 2**10 + 1)), 1009),
    ],
)
async def test_what_breaks_the_protocol_closes_it_and_nobody_notices(data: bytes, code: int, target: str) -> None:
    async with harmless(websocket=ON) as server:
        with await open_websocket(server.url, target, OFFER) as websocket:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_what_is_taken, websocket.wire, data)
                assert (await websocket.closed()).code == code
        await until(lambda: server.connections == 2)


async def send_what_is_taken(wire: Wire, data: bytes) -> None:
    with suppress(Closed):  # it need not be read to the end
        await wire.send(data)


async def test_bits_that_were_not_negotiated_close_it() -> None:
    async with harmless(websocket=ON | {"permessage_deflate": False}) as server:
        for target in ("/ws", "/echo"):
            with await open_websocket(server.url, target, OFFER) as websocket:
                await websocket.wire.send(frame(TEXT, deflate(b'{"op":"ping"}'), reserved=RSV1))
                assert (await websocket.closed()).code == 1002


async def test_messages_up_to_the_limit() -> None:
    async with serving(websocket=ON) as server:
        with await open_websocket(server.url, "/echo", OFFER) as websocket:
            for size in (0, 1, 60_000, 64 * 2**10):
                await websocket.wire.send(frame(BINARY, deflate(bytes(size)), reserved=RSV1))
                assert await websocket.message() == bytes(size)


async def test_a_drain_closes_as_ever() -> None:
    async with serving(websocket=ON, drain={"period": "0s", "grace": "1h"}) as server:
        with await open_websocket(server.url, "/events?topic=news", OFFER) as websocket:
            await websocket.reply()
            server.drain()
            assert (await websocket.closed()).code == 1012


# A client that others wrote


def talk(url: str) -> list[str]:
    """Subscribes, publishes to itself, and returns the events as they came."""
    with connect(f"{url}/events?topic=news".replace("http", "ws"), compression="deflate") as websocket:
        assert_negotiated(websocket)
        assert json.loads(websocket.recv(HANG_SECONDS))["ok"] == "subscribe"
        for n in range(5):
            websocket.send(json.dumps({"op": "publish", "topic": "news", "data": f"{n}" * 300 * n}))
        texts = [str(websocket.recv(HANG_SECONDS)) for _ in range(10)]
        assert sum('"ok":"publish"' in text for text in texts) == 5
        return [text for text in texts if '"ok"' not in text]


def assert_negotiated(websocket: ClientConnection) -> None:
    assert websocket.response is not None
    assert websocket.response.headers["Sec-WebSocket-Extensions"] == ACCEPTED


async def test_websockets_gets_and_sends_compressed_messages() -> None:
    async with serving(websocket=ON) as server:
        with await subscribe("ws", server.url, "news") as plain:
            texts = await trio.to_thread.run_sync(talk, server.url)
            assert [json.loads(text) for text in texts] == [event._asdict() for event in await plain.events(5)]


def echo(url: str) -> None:
    with connect(f"{url}/echo".replace("http", "ws"), compression="deflate") as websocket:
        assert_negotiated(websocket)
        for message in ("", "x", "grüße " * 5000, b"", b"\x00\xff" * 1000, "x" * 64 * 2**10):
            websocket.send(message)
            assert websocket.recv(HANG_SECONDS) == message
        websocket.send(["in ", "pieces ", "x" * 1000])
        assert websocket.recv(HANG_SECONDS) == "in pieces " + "x" * 1000
        websocket.ping().wait(HANG_SECONDS)


async def test_websockets_echoes_compressed_messages() -> None:
    async with serving(websocket=ON) as server:
        await trio.to_thread.run_sync(echo, server.url)


def without(url: str) -> str:
    with connect(f"{url}/ws".replace("http", "ws"), compression="deflate") as websocket:
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers
        websocket.send('{"op":"ping"}')
        return str(websocket.recv(HANG_SECONDS))


async def test_websockets_is_told_no_unless_it_is_switched_on() -> None:
    async with serving() as server:
        assert json.loads(await trio.to_thread.run_sync(without, server.url)) == {"ok": "ping"}


async def test_messages_that_inflate_to_much_let_others_have_their_turn() -> None:
    count = 200
    message = frame(TEXT, deflate(b" " * 60_000), reserved=RSV1)
    async with serving(websocket=ON) as server:
        with await open_websocket(server.url, "/ws", OFFER) as websocket:
            refusals = server._runtime.counters.refusals
            await websocket.wire.send(message * count)
            seen = [0]
            while seen[-1] < count:
                await trio.lowlevel.checkpoint()
                seen.append(refusals["bad-operation"])
    # Five at a time; the turns of two tasks come in any order, so that this one may miss one.
    assert max(after - before for before, after in pairwise(seen)) <= 10
