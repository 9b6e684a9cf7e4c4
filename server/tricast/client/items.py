"""What a subscription yields, and how it is read from and written as JSON. Sans-I/O."""

from typing import NamedTuple, TypeVar

import msgspec

from tricast.client.failures import ClientError
from tricast.errors import RemoteProtocolError
from tricast.event import Event, Gap, GapReason, Position, parse_position, shorten
from tricast.wire.form import encode_json


class Connected(NamedTuple):
    """A connection stands.

    Attributes:
        transport: ``ws``, ``sse`` or ``poll``.
        position: from where events come, or None for "from now on".
    """

    transport: str
    position: str | None


class Disconnected(NamedTuple):
    """A connection ended, or was not made; another one will be tried.

    Attributes:
        why: in words.
        delay: seconds until then.
    """

    why: str
    delay: float


Item = Event | Gap | Connected | Disconnected


class WireEvent(msgspec.Struct):
    """An event as the server writes it."""

    id: str
    topic: str
    type: str
    data: msgspec.Raw


class WireGap(msgspec.Struct):
    """A gap as the server writes it."""

    reason: GapReason
    after: str
    resumed_at: str


class WireError(msgspec.Struct):
    """What went wrong, as the server says it within a WebSocket."""

    code: str = ""
    message: str = ""


class Frame(msgspec.Struct):
    """Whatever the server sends in one WebSocket frame: an event, a gap, a reply or an error."""

    id: str = ""
    topic: str = ""
    type: str = ""
    data: msgspec.Raw = msgspec.Raw()
    gap: WireGap | None = None
    ok: str | None = None
    last_id: str | None = None
    error: WireError | None = None


class PollAnswer(msgspec.Struct):
    """The body of an answer to a long poll."""

    events: list[WireEvent]
    last_id: str
    gap: WireGap | None = None


_Wire = TypeVar("_Wire", WireEvent, WireGap, Frame, PollAnswer)


def decode(kind: type[_Wire], text: bytes | str) -> _Wire:
    """Reads one JSON text from the server.

    Args:
        kind: what it should be.
        text: the JSON text.

    Raises:
        ClientError: it is something else, so this is no Tricast server, and asking again would not help.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        excerpt = text if isinstance(text, str) else text.decode(errors="replace")
        raise ClientError(f"the server sent what Tricast does not send: {error}: {shorten(excerpt)}") from None


def event_from(wire: WireEvent | Frame) -> Event:
    """The event that the server wrote.

    Raises:
        ClientError: its id is none.
    """
    return Event(id_from(wire.id), wire.topic, wire.type, bytes(wire.data))


def gap_from(wire: WireGap) -> Gap:
    """The gap that the server wrote.

    Raises:
        ClientError: an id in it is none.
    """
    return Gap(wire.reason, id_from(wire.after), id_from(wire.resumed_at))


def event_as_line(event: Event) -> bytes:
    """The event as one line of JSON."""
    return encode_json(Event(event.id, event.topic, event.type, data_as_line(event)))


def data_as_line(event: Event) -> bytes:
    """The data of the event as one line of JSON. If it has line ends, white space between its parts goes."""
    data = event.data
    return msgspec.json.format(data, indent=-1) if b"\n" in data or b"\r" in data else data


def id_from(text: str) -> Position:
    """The id that the server wrote.

    Raises:
        ClientError: it is none.
    """
    try:
        return parse_position(text)
    except RemoteProtocolError:
        raise ClientError(f"the server sent what is not an event id: {shorten(text)}") from None
