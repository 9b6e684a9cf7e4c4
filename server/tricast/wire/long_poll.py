"""Long polling: one JSON object an answer, shared by everybody who waited for the same events."""

from collections.abc import Sequence

from tricast.event import Event, EventId, Gap
from tricast.wire.form import encode_gap_json, encode_json

CONTENT_TYPE = b"application/json"


class LongPollForm:
    """The body of one answer: ``{"events":[…],"last_id":"…"}``, with a ``gap`` member when there is one."""

    __slots__ = ()

    def block(self, events: Sequence[Event], gap: Gap | None = None) -> bytes:
        """See ``Form.block``."""
        announced = b',"gap":%b' % encode_gap_json(gap) if gap is not None else b""
        return b'{"events":[%b],"last_id":"%d-%d"%b}' % (
            b",".join(map(encode_json, events)),
            *last_id(events, gap),
            announced,
        )


def last_id(events: Sequence[Event], gap: Gap | None) -> EventId:
    """The position behind the events and the gap, of which there is at least one."""
    positions = [event.id for event in events[-1:]]
    return max(positions if gap is None else [*positions, gap.resumed_at])


FORM = LongPollForm()
