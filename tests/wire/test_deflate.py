"""permessage-deflate (RFC 7692): which offers are taken, what is compressed, and what is inflated, up to a limit."""

import json
import random
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from clients import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as PingEvent
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, Opcode, RsvBits

from tricast.event import Event, EventId, Gap, GapReason
from tricast.wire.form import encode_json
from tricast.wire.websocket import (
    DEFLATE_ACCEPTED,
    DEFLATED_FORMS,
    FORM,
    BoundedInflate,
    accept_deflate,
    deflated_frame,
    encode_gap,
    text_frame,
)

RSV1 = 4
TAIL = b"\x00\x00\xff\xff"


def deflate(data: bytes, *, level: int = 6, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """A message's payload as a client without context takeover compresses it (RFC 7692 7.2.1)."""
    compressor = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    return (compressor.compress(data) + compressor.flush(flush)).removesuffix(TAIL)


# The offer


@pytest.mark.parametrize(
    "offers",
    [
        "permessage-deflate",  # Firefox
        "permessage-deflate; client_max_window_bits",  # Chromium, Safari, websockets, ws
        "permessage-deflate; server_max_window_bits=15; client_max_window_bits=15",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate;client_max_window_bits=8",
        'permessage-deflate; client_max_window_bits="10"; server_max_window_bits="15"',
        'permessage-deflate ; client_max_window_bits = "10"',
        "PerMessage-Deflate; Client_Max_Window_Bits",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; server_max_window_bits=14; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8,permessage-deflate; client_max_window_bits",
        'permessage-foo; x="y"; z, permessage-deflate',
        "permessage-deflate, permessage-deflate; server_max_window_bits=10",
        ", permessage-deflate,",
    ],
)
def test_offers_that_can_be_accepted(offers: str) -> None:
    agreed = accept_deflate(offers)
    assert agreed in (
        (DEFLATE_ACCEPTED, 15),
        *((DEFLATE_ACCEPTED + b"; server_max_window_bits=%d" % bits, bits) for bits in (9, 10, 14, 15)),
    )


@pytest.mark.parametrize(
    "offers",
    [
        "",
        ",",
        "permessage-bzip2",
        "permessage-deflate2",
        "x-webkit-deflate-frame",
        "deflate; permessage-deflate",
        # zlib does not compress with that one.
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=8; client_max_window_bits",
        # RFC 7692 7: an offer with a parameter that is unknown, is there twice or has a wrong value is declined.
        "permessage-deflate; level=9",
        "permessage-deflate; client_max_window_bits; level",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; Server_No_Context_Takeover",
        "permessage-deflate; server_no_context_takeover=true",
        "permessage-deflate; client_no_context_takeover=15",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=015",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=08",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; client_max_window_bits=",
        'permessage-deflate; client_max_window_bits=""',
        'permessage-deflate; client_max_window_bits="10',
        "permessage-deflate; client_max_window_bits 10",
        "permessage-deflate; server_no_context_takeover=",
        "permessage-deflate; =15",
        "permessage-deflate;",
        "permessage-deflate; ; client_max_window_bits",
    ],
)
def test_offers_that_are_declined(offers: str) -> None:
    assert accept_deflate(offers) is None


@given(st.text(alphabet='permessage-deflate;,= "15_client_max_window_bits\t', max_size=200))
def test_no_offer_is_a_surprise(offers: str) -> None:
    accept_deflate(offers)
    assert accept_deflate(offers + ", permessage-deflate")


@pytest.mark.parametrize(
    ("offers", "window"),
    [
        ("permessage-deflate; server_max_window_bits=15", 15),
        ('permessage-deflate; client_max_window_bits; server_max_window_bits="12"', 12),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", None),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", 9),
        ("permessage-deflate, permessage-deflate; server_max_window_bits=15", None),
    ],
)
def test_who_asks_for_a_window_is_answered(offers: str, window: int | None) -> None:
    if window is None:
        assert accept_deflate(offers) == (DEFLATE_ACCEPTED, 15)
    else:
        assert accept_deflate(offers) == (DEFLATE_ACCEPTED + b"; server_max_window_bits=%d" % window, window)


@pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; client_max_window_bits"])
def test_the_answer_is_one_that_a_client_takes(offer: str) -> None:
    client = PerMessageDeflate()
    client.finalize(DEFLATE_ACCEPTED.decode())
    assert client.enabled()
    assert client.server_no_context_takeover
    assert client.client_no_context_takeover
    assert (client.client_max_window_bits, client.server_max_window_bits) == (15, 15)


# What goes out


def inflated(data: bytes) -> list[str]:
    """The messages that a client sees who negotiated what the server answers."""
    extension = PerMessageDeflate()
    extension.finalize(DEFLATE_ACCEPTED.decode())
    client = Connection(ConnectionType.CLIENT, [extension], data)
    messages, parts = [], []
    for event in client.events():
        assert isinstance(event, TextMessage), event
        parts.append(event.data)
        if event.message_finished:
            messages.append("".join(parts))
            parts.clear()
    assert not parts
    return messages


def is_compressed(data: bytes) -> bool:
    return bool(data[0] & 0x40)


@pytest.mark.parametrize("window_bits", sorted(DEFLATED_FORMS))
def test_who_has_a_small_window_can_inflate(window_bits: int) -> None:
    event = Event(EventId(1, 0), "news", "message", b'"%b"' % random.Random(1).randbytes(2000).hex().encode() * 20)
    first, second = (DEFLATED_FORMS[window_bits].block([event]) for _ in range(2))
    assert first is second
    size = int.from_bytes(first[2:4])
    inflater = zlib.decompressobj(-window_bits)
    assert is_compressed(first)
    assert inflater.decompress(first[4 : 4 + size] + TAIL) == encode_json(event)


@given(st.text())
def test_what_a_client_inflates_is_the_payload(text: str) -> None:
    payload = text.encode()
    for message in (payload, payload * 50):
        data = deflated_frame(message) + deflated_frame(b"and another") + deflated_frame(b"x" * 1000)
        assert inflated(data) == [message.decode(), "and another", "x" * 1000]


@pytest.mark.parametrize("size", [30, 126, 200, 4000, 65535, 65536, 70_000, 1_000_000])
def test_frames_of_every_length_shrink(size: int) -> None:
    source = random.Random(size)
    payload = bytes(source.choices(b"abcdefgh", k=size - 20)) + b"x" * 20
    data = deflated_frame(payload)
    assert is_compressed(data)
    assert len(data) < len(text_frame(payload))
    assert inflated(data) == [payload.decode()]


@pytest.mark.parametrize("payload", [b"", b"x", b"{}", "grüße".encode(), bytes(range(32, 127))])
def test_what_does_not_shrink_goes_as_it_is(payload: bytes) -> None:
    assert deflated_frame(payload) == text_frame(payload)


def test_a_compressed_block_is_a_frame_for_each_event_and_a_plain_one_for_a_gap() -> None:
    events = [Event(EventId(n, 0), "news", "message", b'"%b"' % (b"x" * n)) for n in (2, 70_000)]
    gap = Gap(GapReason.RESTARTED, EventId(1, 0), EventId(2, 0))
    block = DEFLATED_FORMS[15].block(events, gap)
    assert inflated(block) == [*inflated(FORM.block(events[:1], gap)), *inflated(FORM.block(events[1:]))]
    assert encode_gap(gap) in block
    assert json.loads(inflated(block)[2])["data"] == "x" * 70_000
    assert len(block) < 1000


def test_an_event_is_compressed_once() -> None:
    event = Event(EventId(1, 0), "news", "message", b'"%b"' % (b"x" * 1000))
    first = DEFLATED_FORMS[15].block([event])
    assert event.encoded.keys() == {"json", "websocket-deflate-15"}
    assert event.encoded["websocket-deflate-15"] == first
    event.encoded["websocket-deflate-15"] = b"as it was"
    assert DEFLATED_FORMS[15].block([event]) == b"as it was"
    FORM.block([event])
    assert event.encoded.keys() == {"json", "websocket-deflate-15", "websocket"}


# What comes in

Seen = list[str | bytes | tuple[str, bytes] | int]


def read(extension: BoundedInflate, pieces: Iterable[bytes]) -> Seen:
    """What a server sees: messages, pings and the code with which it ends."""
    server = Connection(ConnectionType.SERVER, [extension])
    seen: Seen = []
    parts: list[str | bytes] = []
    for piece in pieces:
        server.receive_data(piece)
        for event in server.events():
            match event:
                case TextMessage() | BytesMessage():
                    parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
                    if event.message_finished:
                        seen.append(parts[0][:0].join(parts))  # type: ignore[arg-type]
                        parts.clear()
                case PingEvent():
                    seen.append(("ping", bytes(event.payload)))
                case CloseConnection():
                    assert server.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
                    return [*seen, int(event.code)]
    return seen


def fragments(opcode: int, payload: bytes, cuts: Iterable[int], *, between: bytes = b"", reserved: int = RSV1) -> bytes:
    """One message, in as many frames as there are cuts and one more; only the first has the bits."""
    bounds = sorted({0, *(cut % (len(payload) + 1) for cut in cuts)})
    parts = [payload[a:b] for a, b in zip(bounds, [*bounds[1:], len(payload)], strict=True)]
    return between.join(
        frame(opcode if n == 0 else CONTINUATION, part, fin=n == len(parts) - 1, reserved=reserved if n == 0 else 0)
        for n, part in enumerate(parts)
    )


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    bounds = sorted({0, *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in zip(bounds, [*bounds[1:], len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 2**16), max_size=8)
MESSAGES = st.one_of(
    st.text(), st.binary(), st.builds(lambda text, n: text * n, st.text(min_size=1), st.integers(1, 99))
)


@given(
    st.lists(st.tuples(MESSAGES, CUTS, st.booleans(), st.booleans(), st.sampled_from([0, 1, 6, 9])), max_size=5), CUTS
)
def test_what_comes_in_is_what_was_compressed(
    messages: list[tuple[str | bytes, list[int], bool, bool, int]], cuts: list[int]
) -> None:
    data, expected = b"", Seen()
    for message, where, is_compressed_, has_pings, level in messages:
        raw = message.encode() if isinstance(message, str) else message
        data += fragments(
            TEXT if isinstance(message, str) else BINARY,
            deflate(raw, level=level) if is_compressed_ else raw,
            where,
            between=frame(PING, b"p") if has_pings else b"",
            reserved=RSV1 if is_compressed_ else 0,
        )
        expected += [("ping", b"p")] * (data.count(frame(PING, b"p")) - expected.count(("ping", b"p")))
        expected.append(message)
    assert read(BoundedInflate(2**20), split(data, cuts)) == expected
    assert read(BoundedInflate(2**20), [data]) == expected
    assert read(BoundedInflate(2**20), [bytes([byte]) for byte in data]) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"\xf2\x48\xcd\xc9\xc9\x07\x00",  # 7.2.3.1: one block
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",  # 7.2.3.3: without compression
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",  # 7.2.3.4: a block that says it is the last
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",  # 7.2.3.5: two blocks
        deflate(b"Hello", flush=zlib.Z_FULL_FLUSH),
        deflate(b"Hello", flush=zlib.Z_FINISH),
        deflate(b"Hello", flush=zlib.Z_FINISH) + b"\x00",
    ],
)
def test_the_examples_of_the_rfc_say_hello(payload: bytes) -> None:
    data = frame(TEXT, payload, reserved=RSV1)
    assert read(BoundedInflate(5), [data * 2]) == ["Hello", "Hello"]
    assert read(BoundedInflate(5), [data[n : n + 1] for n in range(len(data))] * 2) == ["Hello", "Hello"]
    assert read(BoundedInflate(4), [data]) == [1009]


@pytest.mark.parametrize(
    "payload", [b"\x00", b"\x01", b"\x02\x00", deflate(b""), b"\x03\x00", b"\x03\x00\x00", b"", b"\x00" + TAIL]
)
def test_empty_messages(payload: bytes) -> None:
    data = frame(TEXT, payload, reserved=RSV1) + frame(TEXT, deflate(b"x"), reserved=RSV1)
    assert read(BoundedInflate(1), [data]) == ["", "x"]


def test_messages_do_not_know_of_those_before() -> None:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    first, second = (
        (compressor.compress(b"hello, hello, hello") + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
        for _ in range(2)
    )
    data = frame(TEXT, first, reserved=RSV1)
    assert read(BoundedInflate(100), [data * 3]) == ["hello, hello, hello"] * 3
    # It points back into the first.
    assert read(BoundedInflate(100), [data + frame(TEXT, second, reserved=RSV1)]) == ["hello, hello, hello", 1007]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff\xff\xff\xff", reserved=RSV1), 1007),
        (frame(BINARY, b"\x07", reserved=RSV1), 1007),  # there is no third kind of block
        (frame(BINARY, b"\x00\x05\x00\xfa\xfe12345", reserved=RSV1), 1007),  # a length that contradicts itself
        (frame(TEXT, deflate(b"\xff"), reserved=RSV1), 1007),
        (frame(TEXT, deflate(b"\xc3"), reserved=RSV1), 1007),
        # Behind the last block only an empty one can be.
        (frame(TEXT, deflate(b"x", flush=zlib.Z_FINISH) + b"\x00" + TAIL, reserved=RSV1), 1007),
        (frame(TEXT, deflate(b"x", flush=zlib.Z_FINISH) + b"\x01", reserved=RSV1), 1007),
        (frame(TEXT, deflate(b"x", flush=zlib.Z_FINISH) + deflate(b"y"), reserved=RSV1), 1007),
        # RFC 7692 6.1: the first frame of a message says whether it is compressed, and only that.
        (frame(TEXT, deflate(b"x"), fin=False, reserved=RSV1) + frame(CONTINUATION, b"", reserved=RSV1), 1002),
        (frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"\x00", reserved=RSV1), 1002),
        (frame(CONTINUATION, deflate(b"x"), reserved=RSV1), 1002),
        (frame(PING, b"\x00", reserved=RSV1), 1002),
        (frame(PONG, reserved=RSV1), 1002),
        (frame(CLOSE, reserved=RSV1), 1002),
        *[(frame(opcode, b"\x00", reserved=bits), 1002) for opcode in (TEXT, BINARY) for bits in (1, 2, 3, 5, 6, 7)],
        (frame(TEXT, deflate(b"x"), fin=False, reserved=RSV1) + frame(TEXT, deflate(b"y"), reserved=RSV1), 1002),
    ],
)
def test_what_breaks_the_protocol_ends_it(data: bytes, code: int) -> None:
    good = frame(TEXT, deflate(b"good"), reserved=RSV1)
    assert read(BoundedInflate(100), [good + data + good]) == ["good", code]
    assert read(BoundedInflate(100), [bytes([byte]) for byte in good + data]) == ["good", code]


@given(st.binary(min_size=1, max_size=200), CUTS)
def test_noise_is_inflated_or_refused(payload: bytes, cuts: list[int]) -> None:
    whole = read(BoundedInflate(1000), [frame(BINARY, payload, reserved=RSV1)])
    assert len(whole) == 1
    assert isinstance(whole[0], bytes) or whole[0] in (1007, 1009)
    assert read(BoundedInflate(1000), [fragments(BINARY, payload, cuts)]) == whole


# Bombs


@pytest.mark.parametrize("limit", [1, 1000, 65_536])
def test_messages_up_to_the_limit_and_no_byte_more(limit: int) -> None:
    for is_fragmented in (False, True):
        for size in (limit - 1, limit, limit + 1):
            data = fragments(BINARY, deflate(b"x" * size), range(100) if is_fragmented else ())
            assert read(BoundedInflate(limit), [data]) == [b"x" * size if size <= limit else 1009]


@pytest.mark.parametrize("layout", ["whole", "small pieces", "fragments"])
def test_a_bomb_takes_no_more_memory_than_a_message(layout: str) -> None:
    bomb = deflate(bytes(100 * 2**20), level=9)
    assert len(bomb) < 120_000
    data = fragments(BINARY, bomb, range(0, len(bomb), 1000) if layout == "fragments" else ())
    pieces = [data] if layout == "whole" else [data[n : n + 1000] for n in range(0, len(data), 1000)]
    tracemalloc.start()
    try:
        assert read(BoundedInflate(2**16), pieces) == [1009]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_bomb_in_slices_is_cut_off_at_the_limit() -> None:
    bomb = deflate(bytes(2**30 // 64), level=9)  # 16 MiB out of 16 KiB
    extension = BoundedInflate(2**16)
    data = frame(BINARY, bomb, reserved=RSV1)
    for size in (1, 7, 4096):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        tracemalloc.start()
        try:
            assert read(extension, pieces) == [1009]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20


@pytest.mark.parametrize(("blocks", "codes"), [(400, []), (500, [1009])])
def test_blocks_with_nothing_in_them_come_to_an_end(blocks: int, codes: list[int]) -> None:
    # Of 5 bytes each; a message of 500 may take 2,024.
    server = Connection(ConnectionType.SERVER, [BoundedInflate(500)])
    server.receive_data(frame(BINARY, b"\x00\x00\x00\xff\xff" * blocks, reserved=RSV1, fin=False))
    assert [event.code for event in server.events() if isinstance(event, CloseConnection)] == codes


def test_what_cannot_be_compressed_may_be_as_long_as_any_message() -> None:
    data = random.Random(7).randbytes(2**18)
    for level in (0, 9):
        assert read(BoundedInflate(len(data)), [frame(BINARY, deflate(data, level=level), reserved=RSV1)]) == [data]


def test_what_comes_behind_the_last_block_is_not_kept() -> None:
    extension = BoundedInflate(2**16)
    begin = deflate(b"x", flush=zlib.Z_FINISH)
    size = 2**30
    server = Connection(ConnectionType.SERVER, [extension])
    server.receive_data(frame(BINARY, reserved=RSV1)[:1] + b"\xff" + size.to_bytes(8, "big") + bytes(4) + begin)
    assert [event.data for event in server.events() if isinstance(event, BytesMessage)] == [b"x"]
    server.receive_data(bytes(2**16))
    assert [event.code for event in server.events() if isinstance(event, CloseConnection)] == [1007]


def test_a_message_that_was_too_big_does_not_go_on() -> None:
    extension = BoundedInflate(10)
    decoder = FrameDecoder(client=False)
    assert extension.frame_inbound_header(decoder, Opcode.BINARY, RsvBits(True, False, False), 9) == (
        True,
        False,
        False,
    )
    bomb = deflate(bytes(2**20))
    assert extension.frame_inbound_payload_data(decoder, bomb[:500]) is CloseReason.MESSAGE_TOO_BIG
    tracemalloc.start()
    try:
        assert extension.frame_inbound_payload_data(decoder, bomb[500:]) is CloseReason.MESSAGE_TOO_BIG
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**16


def test_the_extension_is_only_made_for_who_negotiated_it() -> None:
    extension = BoundedInflate(10)
    assert extension.enabled()
    assert extension.offer() is False
    # What goes out is not its business.
    server = Connection(ConnectionType.SERVER, [extension])
    assert server.send(TextMessage(data="x" * 100)) == text_frame(b"x" * 100)
