"""Invariant: a batch is refused as the client's mistake, or every event in it comes out of every transport as one event
whose topic, type and data are those that Python's own JSON reads in its line.
"""

import json

from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import TextMessage

from tricast.client.event_stream_parser import EventStreamParser
from tricast.errors import RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft, Event, EventId, check_topic, check_type
from tricast.publish import batch_drafts
from tricast.wire import long_poll, sse, websocket

#: What inputs are made of.
DICTIONARY = (
    *(b'{"topic":"a","data":1}', b'{"topic":"a","type":"t","data":{"n":[]}}', b"\n", b"\r\n", b"\r", b'"data":'),
    *(b'"type":', b'"\\u2028"', b'"\\ud800"', b'"\\u0000"', b"1e999", b"-0", b"NaN", b"[[[[[[[[", b'{"":{"":'),
    *(b"tricast.gap", b"\xef\xbb\xbf"),
)
_PLENTY = 2**20


def check(data: bytes) -> None:
    """The body is the input."""
    try:
        drafts = batch_drafts(data, max_events=1000, check=_checked)
    except RemoteProtocolError as error:
        assert 400 <= error.status < 500
        return
    lines = [line for line in data.split(b"\n") if line.strip()]
    assert len(drafts) == len(lines)
    for number, (line, draft) in enumerate(zip(lines, drafts, strict=True), start=1):
        said = json.loads(line.decode(errors="replace"))  # what is said twice is only looked at the last time
        assert (draft.topic, draft.type) == (said["topic"], said.get("type", DEFAULT_TYPE))
        assert json.loads(draft.data) == said["data"]
        _check_forms(Event(EventId(1, number), *draft))


def _checked(draft: Draft) -> Draft:
    check_topic(draft.topic, max_bytes=255)
    check_type(draft.type)
    return draft


def _check_forms(event: Event) -> None:
    value = json.loads(event.data)
    whole = {"id": str(event.id), "topic": event.topic, "type": event.type, "data": value}
    (found,) = EventStreamParser(max_bytes=_PLENTY).feed(sse.encode_event(event))
    assert (found.type, found.last_event_id, json.loads(found.data)) == (event.type, str(event.id), value)
    (enveloped,) = EventStreamParser(max_bytes=_PLENTY).feed(sse.encode_envelope(event))
    assert (enveloped.type, json.loads(enveloped.data)) == ("message", whole)
    client = Protocol(ConnectionType.CLIENT)
    client.receive_data(websocket.encode_event(event))
    assert json.loads("".join(part.data for part in client.events() if isinstance(part, TextMessage))) == whole
    polled = long_poll.FORM.block([event]).partition(b"\r\n\r\n")[2]
    assert json.loads(polled) == {"events": [whole], "last_id": str(event.id)}
