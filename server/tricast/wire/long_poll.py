"""Long polling: one JSON object an answer, shared by everybody who waited for the same events."""

from collections.abc import Sequence

from tricast.event import Event, Gap, Position
from tricast.wire.form import encode_gap_json, encode_id, encode_json
from tricast.wire.http1 import Headers, encode_headers

CONTENT_TYPE = b"application/json"


class LongPollForm:
    """The end of an answer: the headers that tell of the events, and the body.

    The body is ``{"events":[…],"last_id":"…"}``, with a ``gap`` member when there is one. What comes before it in the
    answer differs from client to client; this is shared.
    """

    __slots__ = ()

    #: An answer has a head of its own, and ends the wait of a connection.
    weight = 4

    def block(self, events: Sequence[Event], gap: Gap | None = None) -> bytes:
        """See ``Form.block``."""
        announced = b',"gap":%b' % encode_gap_json(gap) if gap is not None else b""
        upto = last_id(events, gap)
        body = b'{"events":[%b],"last_id":"%b"%b}' % (b",".join(map(encode_json, events)), encode_id(upto), announced)
        head = encode_headers((*position_headers(upto), (b"content-type", CONTENT_TYPE)))
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def nothing(position: Position, headers: Headers = ()) -> bytes:
    """The end of an answer without events, which has status 204."""
    return encode_headers((*position_headers(position), *headers)) + b"\r\n"


def position_headers(position: Position) -> Headers:
    """What tells the client from where its next request has to go on."""
    return ((b"last-event-id", encode_id(position)), (b"cache-control", b"no-store"))


def last_id(events: Sequence[Event], gap: Gap | None) -> Position:
    """The position behind the events and the gap, of which there is at least one."""
    if gap is None:
        return events[-1].id
    # They are one before the other: the gap is in the slice that the events are of.
    return events[-1].id if events and events[-1].id > gap.resumed_at else gap.resumed_at


FORM = LongPollForm()
