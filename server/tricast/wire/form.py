"""The wire form: how events become one block of bytes that all subscribers of a kind share."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tricast.event import Event, Gap, Position


class Form(Protocol):
    """One way to write events. Two subscribers with the same form and the same events get the same bytes object.

    Attributes:
        weight: what handing a block to one subscriber costs, in plain sends.
    """

    weight: int

    def block(self, events: Sequence[Event], gap: Gap | None = None) -> bytes:
        """The events, in id order, as bytes that stand on their own.

        Args:
            events: in id order; may be empty only when there is a gap.
            gap: announced before them, also where some of them are within it, being kept when others were not: who is
                cut off between the two comes back for what follows upon an event, and would not be told of what was
                missing before it.
        """
        ...


class StreamForm:
    """A form in which each event is a piece of its own, and pieces follow one another for as long as it lasts.

    Args:
        name: under which an event keeps its encoded piece; forms that differ only in framing may share it.
        encode: one event to its piece.
        encode_gap: the same for a gap.
        frame: wraps the joined pieces, for instance into an HTTP chunk; the default leaves them as they are.
    """

    __slots__ = ("_encode", "_encode_gap", "_frame", "name")

    weight = 1

    def __init__(
        self,
        name: str,
        encode: Callable[[Event], bytes],
        encode_gap: Callable[[Gap], bytes],
        frame: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.name = name
        self._encode = encode
        self._encode_gap = encode_gap
        self._frame = frame

    def block(self, events: Sequence[Event], gap: Gap | None = None) -> bytes:
        """See ``Form.block``."""
        pieces = [self._piece(event) for event in events]
        if gap is not None:
            pieces.insert(0, self._encode_gap(gap))
        return self._frame(b"".join(pieces))

    def _piece(self, event: Event) -> bytes:
        piece = event.encoded.get(self.name)
        if piece is None:
            piece = event.encoded[self.name] = self._encode(event)
        return piece


def encode_id(position: Position) -> bytes:
    """A position as clients see it, and send it back."""
    return str(position).encode()


def encode_json(event: Event) -> bytes:
    """The event as one JSON object, ``{"id","topic","type","data"}``; the data goes through unparsed."""
    text = event.encoded.get("json")
    if text is None:
        text = event.encoded["json"] = b'{"id":"%b","topic":%b,"type":%b,"data":%b}' % (
            encode_id(event.id),
            msgspec.json.encode(event.topic),
            msgspec.json.encode(event.type),
            event.data,
        )
    return text


def encode_gap_json(gap: Gap) -> bytes:
    """The gap as one JSON object, ``{"reason","after","resumed_at"}``."""
    return msgspec.json.encode({"reason": gap.reason, "after": str(gap.after), "resumed_at": str(gap.resumed_at)})
