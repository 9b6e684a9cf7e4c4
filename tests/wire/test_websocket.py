"""Frames that a client understands, and operations that a server does."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import pytest
from clients import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame
from clients import frame as client_frame
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as PingEvent

from tricast.event import Event, EventId, Gap, GapReason
from tricast.wire.websocket import (
    FORM,
    BadOperation,
    InboundFrame,
    Kind,
    Operation,
    Ping,
    Publish,
    Subscribe,
    Unsubscribe,
    binary_frame,
    encode_reply,
    parse_operation,
    pong_frame,
    read_frame,
    text_frame,
)
from tricast.wire.websocket import (
    PING as PING_FRAME,
)


def received(data: bytes) -> list[str]:
    """The messages that a client sees."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    messages, parts = [], []
    for event in client.events():
        assert isinstance(event, TextMessage)
        parts.append(event.data)
        if event.message_finished:
            messages.append("".join(parts))
            parts.clear()
    assert not parts
    return messages


@pytest.mark.parametrize(
    ("size", "head"), [(0, 2), (1, 2), (125, 2), (126, 4), (127, 4), (65535, 4), (65536, 10), (70000, 10)]
)
def test_frames_of_every_length(size: int, head: int) -> None:
    payload = b"x" * size
    frame = text_frame(payload)
    assert len(frame) == head + size
    assert received(frame + text_frame(b"next")) == [payload.decode(), "next"]


def test_binary_pong_and_ping_frames() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(binary_frame(b"\x00\xff") + pong_frame(b"abc") + pong_frame(b"") + PING_FRAME)
    binary, pong, empty, ping = client.events()
    assert isinstance(binary, BytesMessage)
    assert bytes(binary.data) == b"\x00\xff"
    assert [(type(event).__name__, bytes(event.payload)) for event in (pong, empty, ping)] == [
        ("Pong", b"abc"),
        ("Pong", b""),
        ("Ping", b""),
    ]


def test_a_block_is_a_frame_for_each_event_and_gap() -> None:
    events = [Event(EventId(n, 0), "news", "message", b'"%b"' % (b"x" * n)) for n in (2, 70000)]
    gap = Gap(GapReason.RESTARTED, EventId(1, 0), EventId(2, 0))
    announced, first, second = map(json.loads, received(FORM.block(events, gap)))
    assert first == {"id": "2-0", "topic": "news", "type": "message", "data": "xx"}
    assert announced == {"gap": {"reason": "restarted", "after": "1-0", "resumed_at": "2-0"}}
    assert second["id"] == "70000-0"
    assert events[0].encoded.keys() == {"json", "websocket"}


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ('{"op":"subscribe","topics":["a","b.*"]}', Subscribe(op="subscribe", topics=["a", "b.*"])),
        (
            '{"op":"subscribe","topics":[],"last_id":"1-0","ref":7}',
            Subscribe(op="subscribe", topics=[], last_id="1-0", ref=7),
        ),
        ('{"topics":["a"],"ref":null,"op":"unsubscribe"}', Unsubscribe(op="unsubscribe", topics=["a"], ref=None)),
        ('{"op":"ping"}', Ping(op="ping")),
        ('{"op":"ping","ref":"x"}', Ping(op="ping", ref="x")),
        ('{"op":"ping","ref":1.5}', Ping(op="ping", ref=1.5)),
        ('{"op":"ping","ref":false}', Ping(op="ping", ref=False)),
    ],
)
def test_operations(text: str, operation: Operation) -> None:
    assert parse_operation(text) == operation


def test_the_data_of_a_publish_is_not_touched() -> None:
    found = parse_operation('{"op":"publish","topic":"a","data":{ "n":1.50,\r\n"m":[] }}')
    assert isinstance(found, Publish)
    assert (found.topic, found.type, found.ref) == ("a", "message", msgspec.UNSET)
    assert bytes(found.data) == b'{ "n":1.50,\r\n"m":[] }'


@pytest.mark.parametrize(
    ("text", "says", "ref"),
    [
        (b'{"op":"ping"}', "binary", msgspec.UNSET),
        ("", "a JSON object", msgspec.UNSET),
        ("ping", "a JSON object", msgspec.UNSET),
        ("[]", "a JSON object", msgspec.UNSET),
        ('"ping"', "a JSON object", msgspec.UNSET),
        ("null", "a JSON object", msgspec.UNSET),
        ('{"op":"ping"} {}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping"', "a JSON object", msgspec.UNSET),
        ('{"op":5}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping","ref":[1]}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping","ref":{}}', "a JSON object", msgspec.UNSET),
        ('{"op":"\ud800"}', "a JSON object", msgspec.UNSET),
        ('{"x":' + "[" * 100_000, "a JSON object", msgspec.UNSET),
        ('{"op":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}", "a JSON object", msgspec.UNSET),
        ("{}", "found none", msgspec.UNSET),
        ('{"op":null,"ref":3}', "found none", 3),
        ('{"op":"","ref":3}', "found ''", 3),
        ('{"op":"PING","ref":"r"}', "found 'PING'", "r"),
        ('{"op":"a\\n\\u0000","ref":"r"}', r"found 'a\\n\\x00'", "r"),
        ('{"op":"' + "x" * 1000 + '"}', r"x{60}\\u2026'$", msgspec.UNSET),
        ('{"op":"ping","more":1,"ref":1}', "ping: .*more", 1),
        ('{"op":"subscribe","ref":1}', "subscribe: .*topics", 1),
        ('{"op":"subscribe","topics":"a","ref":1}', "subscribe: .*array", 1),
        ('{"op":"subscribe","topics":[1],"ref":1}', "subscribe: .*str", 1),
        ('{"op":"subscribe","topics":["a"],"last_id":1,"ref":1}', "subscribe: .*last_id", 1),
        ('{"op":"unsubscribe","topics":{},"ref":1}', "unsubscribe: .*array", 1),
        ('{"op":"publish","data":1,"ref":1}', "publish: .*topic", 1),
        ('{"op":"publish","topic":"a","ref":1}', "publish: .*data", 1),
        ('{"op":"publish","topic":"a","data":1,"type":2,"ref":1}', "publish: .*type", 1),
        ('{"op":"publish","topic":"a","data":"\\ud800"}', "a JSON object", msgspec.UNSET),
        ('{"op":"publish","topic":"a","data":[1,}', "a JSON object", msgspec.UNSET),
    ],
)
def test_what_is_no_operation(text: str | bytes, says: str, ref: object) -> None:
    with pytest.raises(BadOperation, match=says) as caught:
        parse_operation(text)
    assert caught.value.ref == ref
    assert caught.value.code == "bad-operation"
    assert len(caught.value.detail) < 250
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize(
    ("ref", "expected"),
    [(msgspec.UNSET, {}), (None, {"ref": None}), (7, {"ref": 7}), ("ü", {"ref": "ü"}), (False, {"ref": False})],
)
def test_replies_repeat_the_reference(ref: Any, expected: dict[str, object]) -> None:
    assert json.loads(encode_reply("ok", "publish", ref, id="1-0")) == {"ok": "publish", "id": "1-0", **expected}
    error = {"code": "bad-topic", "message": "m"}
    assert json.loads(encode_reply("error", error, ref)) == {"error": error, **expected}


# What comes in


class Message(NamedTuple):
    """A whole message."""

    data: str | bytes


class Pinged(NamedTuple):
    """A ping, to be answered."""

    payload: bytes


class Closed(NamedTuple):
    """The end: a close frame of the client's, or a mistake."""

    code: int
    reason: str | None


Seen = list[Message | Pinged | Closed]


class WithWsproto:
    """What wsproto makes of what a client sends.

    Attributes:
        seen: the messages, pings and the end so far.
    """

    def __init__(self, ahead: bytes = b"") -> None:
        self.seen: Seen = []
        self._protocol = Connection(ConnectionType.SERVER, trailing_data=ahead)
        self._parts: list[Any] = []
        self._look()

    def receive(self, data: bytes) -> None:
        if not self.is_over:
            self._protocol.receive_data(data)
            self._look()

    @property
    def is_over(self) -> bool:
        return bool(self.seen) and isinstance(self.seen[-1], Closed)

    def _look(self) -> None:
        for event in self._protocol.events():
            match event:
                case TextMessage() | BytesMessage():
                    self._parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
                    if event.message_finished:
                        self.seen.append(Message(self._parts[0][:0].join(self._parts)))
                        self._parts.clear()
                case PingEvent():
                    self.seen.append(Pinged(bytes(event.payload)))
                case CloseConnection():
                    # What wsproto says of a mistake depends on how much had come when it saw it.
                    is_mistake = self._protocol.state is ConnectionState.OPEN
                    self.seen.append(Closed(int(event.code), None if is_mistake else event.reason))
                    return


class WithReadFrame:
    """The same with ``read_frame``, and wsproto from the first frame on that it does not read.

    Args:
        max_payload: see ``read_frame``.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._seen: Seen = []
        self._received = bytearray()
        self.wsproto: WithWsproto | None = None

    @property
    def seen(self) -> Seen:
        return self._seen + (self.wsproto.seen if self.wsproto is not None else [])

    def receive(self, data: bytes) -> None:
        if self.wsproto is not None:
            self.wsproto.receive(data)
            return
        self._received += data
        while (found := read_frame(self._received, self._max_payload)) is not None:
            if found.kind is Kind.OTHER:
                self.wsproto = WithWsproto(bytes(self._received))
                return
            assert 6 <= found.size <= len(self._received)
            del self._received[: found.size]
            if found.kind is Kind.PING:
                assert isinstance(found.payload, bytes)
                self._seen.append(Pinged(found.payload))
            elif found.kind is not Kind.PONG:
                self._seen.append(Message(found.payload))


def masked(data: bytes, mask: bytes) -> bytes:
    """A frame with a zero mask, with another one."""
    begin = {126: 8, 127: 14}.get(data[1] & 0x7F, 6)
    payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data[begin:]))
    return data[: begin - 4] + mask + payload


def longer_length(opcode: int, payload: bytes, bits: int) -> bytes:
    """A frame with its length in 16 or 64 bits, whether it needs them or not."""
    code = {16: 0xFE, 64: 0xFF}[bits]
    return bytes([0x80 | opcode, code]) + len(payload).to_bytes(bits // 8) + bytes(4) + payload


MASKS = st.one_of(st.just(bytes(4)), st.binary(min_size=4, max_size=4))
#: Around the sizes at which the length is written in another way.
LONG = st.sampled_from([124, 125, 126, 127, 200, 65535, 65536]).map(lambda size: b"x" * size)
TEXTS = st.one_of(st.text(max_size=50).map(str.encode), LONG)
GOOD = st.one_of(
    st.builds(client_frame, st.just(TEXT), TEXTS),
    st.builds(client_frame, st.just(BINARY), st.one_of(st.binary(max_size=50), LONG)),
    st.builds(client_frame, st.sampled_from([PING, PONG]), st.binary(max_size=125)),
)
ODD = st.one_of(
    # Bits, opcodes and payloads in all combinations, and so fragments in and out of their place.
    st.builds(
        client_frame,
        st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3, 11]),
        st.one_of(st.binary(max_size=150), TEXTS),
        fin=st.booleans(),
        reserved=st.sampled_from([0, 0, 0, 1, 2, 4]),
    ),
    st.builds(longer_length, st.sampled_from([TEXT, BINARY, PING]), st.binary(max_size=130), st.sampled_from([16, 64])),
    st.builds(close_frame, st.integers(0, 5000), st.binary(max_size=123)),
    st.text(max_size=20).map(lambda text: client_frame(TEXT, text.encode()[:-1])),
)
FRAGMENTED = st.lists(st.tuples(TEXTS, st.booleans()), min_size=2, max_size=4).map(
    lambda parts: b"".join(
        client_frame(TEXT if n == 0 else CONTINUATION, part, fin=n == len(parts) - 1)
        + (client_frame(PING, part[:5]) if has_ping else b"")
        for n, (part, has_ping) in enumerate(parts)
    )
)
FRAMES = st.lists(
    st.one_of(
        st.builds(masked, st.one_of(GOOD, GOOD, ODD), MASKS),
        FRAGMENTED,
        st.builds(client_frame, st.integers(0, 15), st.binary(max_size=20), masked=st.just(False)),
    ),
    max_size=8,
).map(b"".join)
CUTS = st.lists(st.integers(0, 2**17), max_size=10)


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    bounds = sorted({0, *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in zip(bounds, [*bounds[1:], len(data)], strict=True)]


#: Ends whatever was begun, so that both see it to its end: a whole frame, and one that can only be a mistake.
END = client_frame(PING, b"end") + b"\xff\xff\xff" * 70_000


@given(FRAMES, CUTS, st.one_of(st.just(2**16), st.integers(1, 130), st.just(2**62)))
@example(client_frame(TEXT, b"\xff"), [], 100)
@example(client_frame(TEXT, b"x" * 101), [], 100)
@example(b"\x81\xff\xff" + b"\xff" * 7 + bytes(10), [], 2**62)
def test_what_is_read_is_what_wsproto_alone_reads(data: bytes, cuts: list[int], max_payload: int) -> None:
    alone = WithWsproto(data + END)
    assert alone.is_over
    for pieces in ([*split(data, cuts), END], split(data + END, cuts), [data + END]):
        together = WithReadFrame(max_payload)
        for piece in pieces:
            together.receive(piece)
        assert together.seen == alone.seen


@given(FRAMES.filter(lambda data: len(data) < 2000))
def test_byte_by_byte_it_is_the_same(data: bytes) -> None:
    alone, together = WithWsproto(data + END), WithReadFrame(1000)
    for byte in data:
        together.receive(bytes([byte]))
    together.receive(END)
    assert together.seen == alone.seen


@given(st.lists(st.builds(masked, GOOD, MASKS), max_size=8), CUTS)
def test_what_nearly_all_clients_send_needs_no_wsproto(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    together = WithReadFrame(2**16)
    for piece in split(data, cuts):
        together.receive(piece)
    assert together.wsproto is None
    assert together.seen == WithWsproto(data).seen


@pytest.mark.parametrize("behind", [b"", b"\x81", b"\xff" * 20])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize(
    ("opcode", "kind"), [(TEXT, Kind.TEXT), (BINARY, Kind.BINARY), (PING, Kind.PING), (PONG, Kind.PONG)]
)
def test_a_frame_is_read_when_it_is_whole(opcode: int, kind: Kind, size: int, behind: bytes) -> None:
    payload = (b"abcdefg" * 10_000)[:size]
    data = masked(client_frame(opcode, payload), b"\x01\x80\xff\x00")
    if size > 125 and opcode in (PING, PONG):
        assert read_frame(data[:2], 2**16).kind is Kind.OTHER  # type: ignore[union-attr]
        return
    for end in {*range(min(len(data), 20)), len(data) // 2, len(data) - 1}:
        assert read_frame(data[:end], 2**16) is None
    expected = InboundFrame(kind, payload.decode() if kind is Kind.TEXT else payload, len(data))
    for received_ in (data + behind, bytearray(data + behind)):
        assert read_frame(received_, 2**16) == expected


@pytest.mark.parametrize(
    "begin",
    [
        client_frame(TEXT, b"x", fin=False)[:1],
        client_frame(CONTINUATION, b"x")[:1],
        client_frame(CLOSE)[:1],
        *[client_frame(opcode, reserved=bits)[:1] for opcode in (TEXT, BINARY, PING, PONG) for bits in (1, 2, 4, 7)],
        *[client_frame(opcode)[:1] for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        client_frame(TEXT, masked=False)[:2],
        client_frame(BINARY, b"x" * 200, masked=False)[:2],
        client_frame(PING, b"x" * 126)[:2],
        client_frame(PONG, b"x" * 70_000)[:2],
        # RFC 6455 5.2: the minimal number of bytes is used for the length.
        longer_length(TEXT, b"x" * 125, 16)[:8],
        longer_length(BINARY, b"", 16)[:8],
        longer_length(TEXT, b"x" * 65535, 64)[:14],
        longer_length(BINARY, b"x", 64)[:14],
        b"\x81\xff\x80" + bytes(11),
        # Longer than is allowed.
        client_frame(TEXT, b"x" * 70_001)[:14],
        client_frame(BINARY, b"x" * 2**20)[:14],
        # Whole, but no text (RFC 6455 8.1).
        client_frame(TEXT, b"\xff"),
        client_frame(TEXT, b"\xc3"),
        client_frame(TEXT, b"\xed\xa0\x80"),
    ],
)
def test_what_is_left_to_wsproto_is_known_by_its_beginning(begin: bytes) -> None:
    for received_ in (begin, begin + b"more", bytearray(begin)):
        assert read_frame(received_, 70_000) == InboundFrame(Kind.OTHER, b"", 0)
    assert read_frame(begin[:-1], 70_000) is None


@pytest.mark.parametrize("limit", [1, 5, 125, 126, 65_535, 65_536, 70_000])
def test_payloads_up_to_the_limit(limit: int) -> None:
    at_limit, above = client_frame(BINARY, b"x" * limit), client_frame(BINARY, b"x" * (limit + 1))
    assert read_frame(at_limit, limit) == InboundFrame(Kind.BINARY, b"x" * limit, len(at_limit))
    # Before any of it has come.
    assert read_frame(above[: len(above) - limit - 1], limit) == InboundFrame(Kind.OTHER, b"", 0)
