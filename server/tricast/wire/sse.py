"""Server-Sent Events (HTML 9.2): events, gaps and keepalives as lines of a text/event-stream."""

import re

import msgspec

from tricast.event import Event, Gap, Position
from tricast.wire.form import StreamForm, encode_gap_json, encode_id, encode_json
from tricast.wire.http1 import chunk

CONTENT_TYPE = b"text/event-stream"
#: A comment (HTML 9.2.6: a line that begins with a colon is ignored), which is all that proxies need to see. Without an
#: empty line behind it, for there are client libraries that take that for an event.
KEEPALIVE = b":\n"

#: HTML 9.2.5 ends a line at LF, CR or CRLF, and at nothing else: U+2028 and the like are ordinary characters.
_LINE_END = re.compile(rb"\r\n|\r|\n")


def encode_event(event: Event) -> bytes:
    """The event with its id, type and data; data of several lines becomes as many ``data:`` lines."""
    return b"id: %b\nevent: %b\n%b\n" % (encode_id(event.id), event.type.encode(), _data_lines(event.data))


def encode_envelope(event: Event) -> bytes:
    """The whole event as JSON, without ``event:``, so that one listener for ``message`` sees every type."""
    return b"id: %b\n%b\n" % (encode_id(event.id), _data_lines(encode_json(event)))


def encode_gap(gap: Gap) -> bytes:
    """The gap, with the id from which the stream goes on, so that a browser resumes behind it."""
    return b"id: %b\nevent: tricast.gap\n%b\n" % (encode_id(gap.resumed_at), _data_lines(encode_gap_json(gap)))


def opening(*, retry_ms: int, position: Position) -> bytes:
    """What a stream begins with: a comment that makes proxies pass on the head, the retry time and the position.

    An ``id:`` without data dispatches no event but is remembered (HTML 9.2.6), so a client that drops before its
    first event resumes from where it began and misses nothing.
    """
    return b": tricast\nretry: %d\nid: %b\n\n" % (retry_ms, encode_id(position))


def lease(stream: str, expires_at: float) -> bytes:
    """Tells a client how long it has been let in for, and the name under which ``POST /refresh`` finds its stream.

    It has no ``id:``, so that what a browser resumes from stays as it is.
    """
    data = msgspec.json.encode({"stream": stream, "expires_at": int(expires_at)})
    return b"event: tricast.lease\n%b\n" % _data_lines(data)


def farewell(reason: str, *, retry_ms: int | None) -> bytes:
    """What a stream ends with: why, and when to come back, if that is worth while."""
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    return b": %b\n%b\n" % (reason.encode(), retry)


def _data_lines(data: bytes) -> bytes:
    return b"".join(b"data: %b\n" % line for line in _LINE_END.split(data))


#: For HTTP/1.1, in chunks. Keyed by whether the client wants the envelope.
CHUNKED = {
    False: StreamForm("sse", encode_event, encode_gap, chunk),
    True: StreamForm("sse-envelope", encode_envelope, encode_gap, chunk),
}
#: For HTTP/1.0, which knows no chunks: the end of the connection ends the stream.
UNFRAMED = {
    False: StreamForm("sse", encode_event, encode_gap),
    True: StreamForm("sse-envelope", encode_envelope, encode_gap),
}
