"""The WebSocket subprotocol ``tricast.v1``: event frames for subscribers, and the operations that clients send.

Frames from client to server, control frames and the closing handshake are wsproto's. Only text frames from server
to client are written here, once for all who get them: they are unmasked (RFC 6455 5.1), so the bytes are the same.
"""

import struct
from typing import Any, Literal

import msgspec

from tricast.errors import RemoteProtocolError
from tricast.event import Event, Gap, shorten
from tricast.wire.form import StreamForm, encode_gap_json, encode_json

SUBPROTOCOL = "tricast.v1"
OPERATIONS = ("subscribe", "unsubscribe", "publish", "ping")

Reference = str | int | float | bool | None


def text_frame(payload: bytes) -> bytes:
    """One whole text message in one frame from a server (RFC 6455 5.2: FIN and opcode 1, no mask)."""
    size = len(payload)
    if size <= 125:
        return b"\x81%c%b" % (size, payload)
    if size <= 0xFFFF:
        return b"\x81\x7e%b%b" % (struct.pack("!H", size), payload)
    return b"\x81\x7f%b%b" % (struct.pack("!Q", size), payload)


def encode_event(event: Event) -> bytes:
    """The event as JSON in a text frame."""
    return text_frame(encode_json(event))


def encode_gap(gap: Gap) -> bytes:
    """``{"gap":{…}}`` in a text frame."""
    return text_frame(b'{"gap":%b}' % encode_gap_json(gap))


FORM = StreamForm("websocket", encode_event, encode_gap)


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
}


def parse_operation(text: str | bytes) -> Subscribe | Unsubscribe | Publish | Ping:
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
        operation: Subscribe | Unsubscribe | Publish | Ping = decoder.decode(text)
    except msgspec.DecodeError as error:
        raise BadOperation(f"{head.op}: {error}", head.ref) from None
    return operation


def encode_reply(
    kind: Literal["ok", "error"], value: object, ref: Reference | msgspec.UnsetType, **fields: object
) -> str:
    """A reply to an operation: ``{"ok":"publish",…,"ref":…}`` or ``{"error":{"code","message"},"ref":…}``."""
    reply = {kind: value, **fields}
    if ref is not msgspec.UNSET:
        reply["ref"] = ref
    return msgspec.json.encode(reply).decode()
