"""The WebSocket subprotocol ``tricast.v1``: event frames for subscribers, and the operations that clients send.

Frames from server to client are unmasked (RFC 6455 5.1), so that one is written once for all who get it. Of what
clients send, the frames that nearly all of them are (whole, short, masked, not compressed) are read here; wsproto,
which takes many times as long, reads the others and everything behind them, and does the closing handshake.
"""

import re
import struct
import zlib
from enum import Enum
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from tricast.errors import RemoteProtocolError
from tricast.event import Event, Gap, shorten
from tricast.wire.form import StreamForm, encode_gap_json, encode_json

SUBPROTOCOL = b"tricast.v1"
OPERATIONS = ("subscribe", "unsubscribe", "publish", "ping", "auth")

Reference = str | int | float | bool | None


#: RFC 6455 5.2: FIN with the opcodes, and RSV1, which RFC 7692 6 makes "compressed".
_FIN_TEXT, _FIN_BINARY, _FIN_CLOSE, _FIN_PING, _FIN_PONG, _RSV1 = 0x81, 0x82, 0x88, 0x89, 0x8A, 0x40
#: A ping without payload (RFC 6455 5.5.2).
PING = bytes((_FIN_PING, 0))


def text_frame(payload: bytes) -> bytes:
    """One whole text message in one frame from a server."""
    return _frame(_FIN_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """One whole binary message in one frame from a server."""
    return _frame(_FIN_BINARY, payload)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping with this payload (RFC 6455 5.5.3)."""
    return _frame(_FIN_PONG, payload)


def deflated_frame(payload: bytes, *, window_bits: int = zlib.MAX_WBITS) -> bytes:
    """One whole text message, compressed without context takeover (RFC 7692 7.2.1); as it is where that is shorter."""
    compressor = zlib.compressobj(wbits=-window_bits)
    deflated = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_DEFLATE_TAIL)
    return _frame(_FIN_TEXT | _RSV1, deflated) if len(deflated) < len(payload) else text_frame(payload)


def _frame(first_byte: int, payload: bytes) -> bytes:
    size = len(payload)
    if size <= 125:
        return b"%c%c%b" % (first_byte, size, payload)
    if size <= 0xFFFF:
        return b"%c\x7e%b%b" % (first_byte, struct.pack("!H", size), payload)
    return b"%c\x7f%b%b" % (first_byte, struct.pack("!Q", size), payload)


def encode_event(event: Event) -> bytes:
    """The event as JSON in a text frame."""
    return text_frame(encode_json(event))


def encode_event_deflated(event: Event, *, window_bits: int) -> bytes:
    """The event as JSON in a compressed text frame."""
    return deflated_frame(encode_json(event), window_bits=window_bits)


def encode_gap(gap: Gap) -> bytes:
    """``{"gap":{…}}`` in a text frame."""
    return text_frame(b'{"gap":%b}' % encode_gap_json(gap))


FORM = StreamForm("websocket", encode_event, encode_gap)
#: What a client may have us compress with (RFC 7692 7.1.2.1). zlib makes no stream with the window of 8 bits.
_WINDOWS = range(9, zlib.MAX_WBITS + 1)
#: For those who negotiated permessage-deflate, by the bits of the window: one compressed frame for all who have the
#: same. Nearly all leave the largest to us.
DEFLATED_FORMS = {
    bits: StreamForm(f"websocket-deflate-{bits}", partial(encode_event_deflated, window_bits=bits), encode_gap)
    for bits in _WINDOWS
}


# What comes in


class Kind(Enum):
    """What a frame is, as far as it is read here."""

    TEXT = _FIN_TEXT
    BINARY = _FIN_BINARY
    PING = _FIN_PING
    PONG = _FIN_PONG
    #: Fragments, compressed messages, closings, mistakes: for wsproto.
    OTHER = 0


class InboundFrame(NamedTuple):
    """One frame from a client.

    Attributes:
        kind: what it is.
        payload: unmasked; a str for text.
        size: how many bytes it took on the wire.
    """

    kind: Kind
    payload: str | bytes
    size: int


_OTHER = InboundFrame(Kind.OTHER, b"", 0)
_KINDS = {kind.value: kind for kind in Kind if kind is not Kind.OTHER}


class _Other(Exception):
    """A frame that is not read here."""


def read_frame(received: bytes | bytearray, max_payload: int) -> InboundFrame | None:
    """The frame that the bytes begin with, or None when more is needed (RFC 6455 5.2).

    Args:
        received: from the beginning of a frame on, and not within a fragmented message.
        max_payload: how long a payload may be to be read here.
    """
    try:
        # Who begins with something else is told before he sends more of it.
        kind = _KINDS.get(received[0]) if received else None
        extent = _extent_of(received, kind, max_payload) if received else None
        if kind is None or extent is None:
            return None
        begin, end = extent
        payload = _unmask(received[begin - 4 : begin], received[begin:end])
        return InboundFrame(kind, payload.decode() if kind is Kind.TEXT else payload, end)
    except (_Other, UnicodeDecodeError):
        return _OTHER


def _extent_of(received: bytes | bytearray, kind: Kind | None, max_payload: int) -> tuple[int, int] | None:
    """Where the payload begins and ends, or None when more is needed."""
    if kind is None:
        raise _Other
    if len(received) < 2:
        return None
    begin, size = 6, received[1] & 0x7F
    if not received[1] & 0x80 or (size > 125 and kind in (Kind.PING, Kind.PONG)):
        raise _Other
    if size > 125:
        begin = 8 if size == 126 else 14
        if len(received) < begin:
            return None
        size = int.from_bytes(received[2 : begin - 4])
        # Lengths are to be written as short as possible; wsproto knows what to say to others.
        if size <= (125 if begin == 8 else 0xFFFF):
            raise _Other
    if size > max_payload:
        raise _Other
    return (begin, begin + size) if len(received) >= begin + size else None


def _unmask(mask: bytes | bytearray, payload: bytes | bytearray) -> bytes:
    """RFC 6455 5.3, as one exclusive or of two long numbers, which takes no loop in Python."""
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")


# permessage-deflate (RFC 7692)

DEFLATE = "permessage-deflate"
#: Without context takeover in either direction: outwards because one frame is for all, inwards because a window for
#: every client would be 32 KiB each. A server may ask for both, whatever was offered (RFC 7692 7.1.1).
DEFLATE_ACCEPTED = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
#: What ends every compressed message, and is left away (RFC 7692 7.2.1).
_DEFLATE_TAIL = b"\x00\x00\xff\xff"
#: Behind a block that says it is the last (RFC 7692 7.2.3.4), an empty one may be what follows; or what was left away
#: is of that block itself, where it is an empty one.
_BEHIND_LAST_BLOCK = (_DEFLATE_TAIL, b"\x00" + _DEFLATE_TAIL, b"")
_MAX_BEHIND_LAST_BLOCK = max(map(len, _BEHIND_LAST_BLOCK))
#: How much longer than the longest message a compressed one may be: deflate adds 5 bytes to 64 KiB that it cannot
#: compress (RFC 1951 3.2.4), and to what is flushed; more than this, and somebody sends blocks with nothing in them.
_DEFLATED_FACTOR, _DEFLATED_EXTRA = 2, 2**10
#: RFC 6455 9.1: a parameter with its value, if it has one, which may stand in quotes.
_PARAMETER = re.compile(r"""([^\s="]+)(?:\s*=\s*(?:([^\s="]+)|"([^\s="]+)"))?""")
#: The parameters of an offer, with the values they may have here (RFC 7692 7.1); None is for none.
_ACCEPTABLE: dict[str, frozenset[str | None]] = {
    "server_no_context_takeover": frozenset({None}),
    "client_no_context_takeover": frozenset({None}),
    "server_max_window_bits": frozenset(map(str, _WINDOWS)),
    "client_max_window_bits": frozenset({None, *map(str, range(8, 16))}),
}


class Agreement(NamedTuple):
    """What was agreed on of permessage-deflate.

    Attributes:
        answer: the header ``Sec-WebSocket-Extensions`` of the answer.
        window_bits: what the client lets us compress with.
    """

    answer: bytes
    window_bits: int


def accept_deflate(offers: str) -> Agreement | None:
    """The answer to the first offer in ``Sec-WebSocket-Extensions`` that can be accepted (RFC 7692 5.1, 7.1), or None.

    Args:
        offers: the header's value; several lines joined with commas.
    """
    return next((agreed for offer in offers.split(",") if (agreed := _answer_to(offer)) is not None), None)


def _answer_to(offer: str) -> Agreement | None:
    name, *parameters = (part.strip() for part in offer.split(";"))
    pairs = [_PARAMETER.fullmatch(parameter.lower()) for parameter in parameters]
    given = {pair[1]: pair[2] or pair[3] for pair in pairs if pair is not None}
    if name.lower() != DEFLATE or len(given) != len(parameters):
        return None
    if not all(value in _ACCEPTABLE.get(key, ()) for key, value in given.items()):
        return None
    window = given.get("server_max_window_bits")
    if window is None:
        return Agreement(DEFLATE_ACCEPTED, zlib.MAX_WBITS)
    # Who names a window for the server has to be told that it is so (RFC 7692 7.1.2.1).
    return Agreement(DEFLATE_ACCEPTED + b"; server_max_window_bits=%b" % window.encode(), int(window))


class BoundedInflate(Extension):
    """permessage-deflate for wsproto, for what comes in only, and with an end: a few bytes can inflate to gigabytes.

    Args:
        max_message: bytes that a message may inflate to. Before it has, it is not much more either: empty blocks
            inflate to nothing, and would come without an end.
    """

    name = DEFLATE

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        self._left = 0
        self._deflated_left = 0
        self._inflater: Any = None
        self._is_data = False

    def enabled(self) -> bool:
        """Always: it is only made for who negotiated it."""
        return True

    def offer(self) -> bool:
        """A server offers nothing."""
        return False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002 - wsproto's signature
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,  # noqa: ARG002
    ) -> CloseReason | RsvBits:
        """Sees whether a message is compressed, which only its first frame says (RFC 7692 6.1)."""
        self._is_data = not opcode.iscontrol()
        if rsv.rsv1 and (not self._is_data or opcode is Opcode.CONTINUATION):
            return CloseReason.PROTOCOL_ERROR
        if self._is_data and opcode is not Opcode.CONTINUATION:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if rsv.rsv1 else None
            self._left = self._max_message
            self._deflated_left = _DEFLATED_FACTOR * self._max_message + _DEFLATED_EXTRA
        return RsvBits(rsv1=True, rsv2=False, rsv3=False)

    def frame_inbound_payload_data(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002
        data: bytes,
    ) -> bytes | CloseReason:
        """Inflates a part of a message."""
        return self._inflate(data) if self._is_data and self._inflater is not None else data

    def frame_inbound_complete(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002
        fin: bool,
    ) -> bytes | CloseReason | None:
        """Ends a message."""
        if not fin or not self._is_data or self._inflater is None:
            return None
        rest = self._inflate(_DEFLATE_TAIL)
        if self._inflater.eof and self._inflater.unused_data not in _BEHIND_LAST_BLOCK:
            rest = CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflater = None
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        try:
            inflated: bytes = self._inflater.decompress(data, max(self._left, 0) + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._left -= len(inflated)
        self._deflated_left -= len(data)
        if len(self._inflater.unused_data) > _MAX_BEHIND_LAST_BLOCK:
            # All that comes behind it would be kept, and a frame may be as long as it likes.
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return CloseReason.MESSAGE_TOO_BIG if self._left < 0 or self._deflated_left < 0 else inflated


class Operation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every operation may carry.

    Attributes:
        op: which one it is.
        ref: anything simple; the reply repeats it.
    """

    op: str
    ref: Reference | msgspec.UnsetType = msgspec.UNSET


class Subscribe(Operation, kw_only=True):
    """Adds topics. With ``last_id`` the whole stream goes back to that position, for all its topics."""

    topics: list[str]
    last_id: str | None = None


class Unsubscribe(Operation, kw_only=True):
    """Takes topics away."""

    topics: list[str]


class Publish(Operation, kw_only=True):
    """Publishes one event; ``data`` is passed on unparsed."""

    topic: str
    data: msgspec.Raw
    type: str = "message"


class Ping(Operation):
    """Asks for a reply, for clients that cannot see WebSocket pings (browsers)."""


class Authenticate(Operation, kw_only=True):
    """Brings a newer token of the same account, so that the connection may live on when the old one is over."""

    token: str


class BadOperation(RemoteProtocolError):
    """The message is not an operation. The connection goes on.

    Attributes:
        ref: the message's ``ref``, as far as it could be read.
    """

    def __init__(self, detail: str, ref: Reference | msgspec.UnsetType = msgspec.UNSET) -> None:
        super().__init__(detail, code="bad-operation")
        self.ref = ref


class _Head(msgspec.Struct):
    op: str | None = None
    ref: Reference | msgspec.UnsetType = msgspec.UNSET


_head_decoder = msgspec.json.Decoder(_Head)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "subscribe": msgspec.json.Decoder(Subscribe),
    "unsubscribe": msgspec.json.Decoder(Unsubscribe),
    "publish": msgspec.json.Decoder(Publish),
    "ping": msgspec.json.Decoder(Ping),
    "auth": msgspec.json.Decoder(Authenticate),
}


def parse_operation(text: str | bytes) -> Subscribe | Unsubscribe | Publish | Ping | Authenticate:
    """Reads one message of a client.

    Raises:
        BadOperation: binary, not JSON, not an object, no such operation, or fields missing, unknown or of a wrong kind.
    """
    if isinstance(text, bytes):
        raise BadOperation("operations are text messages, found a binary one")
    try:
        head = _head_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise BadOperation(f"a message is a JSON object with an op: {error}") from None
    decoder = _decoders.get(head.op or "")
    if decoder is None:
        found = "none" if head.op is None else shorten(head.op)
        raise BadOperation(f"op must be one of {', '.join(OPERATIONS)}; found {found}", head.ref)
    try:
        operation: Subscribe | Unsubscribe | Publish | Ping | Authenticate = decoder.decode(text)
    except msgspec.DecodeError as error:
        raise BadOperation(f"{head.op}: {error}", head.ref) from None
    return operation


def encode_reply(
    kind: Literal["ok", "error"], value: object, ref: Reference | msgspec.UnsetType, **fields: object
) -> bytes:
    """A reply to an operation: ``{"ok":"publish",…,"ref":…}`` or ``{"error":{"code","message"},"ref":…}``."""
    reply = {kind: value, **fields}
    if ref is not msgspec.UNSET:
        reply["ref"] = ref
    return msgspec.json.encode(reply)
