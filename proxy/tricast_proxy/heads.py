"""The heads of requests and responses as the proxy forwards them. No I/O.

How they are found in what came in, and what is refused, is in ``tricast.wire.heads``.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import h11

from tricast.wire import heads
from tricast.wire.heads import (
    EMPTY_LINES,
    BadHead,
    HeadLimits,
    Strictness,
    check_framing,
    check_only_length,
    checked_lines,
    refused_by_h11,
)
from tricast_proxy.config import LimitsSection

#: (name, value) byte pairs in wire order, names as they were written.
Fields = list[tuple[bytes, bytes]]
_HTTP_1 = re.compile(rb"HTTP/1\.[0-9]")


def limits_of_requests(limits: LimitsSection) -> HeadLimits:
    """How large the head of a request may be."""
    return HeadLimits(limits.request_line, limits.header_line, limits.header_total, limits.header_count, EMPTY_LINES)


def limits_of_responses(limits: LimitsSection) -> HeadLimits:
    """How large the head of an answer may be."""
    line, total = limits.response_header_line, limits.response_header_total
    return HeadLimits(line, line, total, limits.response_header_count)


class Head:
    """What requests and answers have in common.

    Attributes:
        fields: (name, value) pairs in wire order.
        version: ``b"1.0"`` or ``b"1.1"``.
    """

    __slots__ = ("fields", "version")

    def __init__(self, fields: Fields, version: bytes) -> None:
        self.fields = fields
        self.version = version

    def all(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name, given in lower case."""
        return [value for found, value in self.fields if len(found) == len(name) and found.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, or None."""
        values = self.all(name)
        return values[0] if values else None

    def members(self, name: bytes) -> list[bytes]:
        """A comma-separated field's members, in lower case, over all its lines (RFC 9110 5.6.1)."""
        return [member for value in self.all(name) for part in value.split(b",") if (member := part.strip().lower())]

    @property
    def is_http_11(self) -> bool:
        """Whether the sender speaks HTTP/1.1."""
        return self.version == b"1.1"

    @property
    def is_chunked(self) -> bool:
        """Whether the body is in chunks."""
        return self.get(b"transfer-encoding") is not None

    @property
    def length(self) -> int | None:
        """The length of the body by its own word, or None."""
        value = self.get(b"content-length")
        return None if value is None else int(value)

    @property
    def keeps_alive(self) -> bool:
        """Whether the sender means to go on with the connection (RFC 9112 9.3)."""
        options = self.members(b"connection")
        return b"close" not in options and (self.is_http_11 or b"keep-alive" in options)


class RequestHead(Head):
    """The head of a request.

    Attributes:
        method: as sent.
        target: in origin form, as sent: nothing of it is decoded or put in order (RFC 9110 7.7).
        authority: of the absolute form, which goes before ``Host`` (RFC 9112 3.2.2); else empty.
    """

    __slots__ = ("authority", "method", "target")

    def __init__(self, method: bytes, target: bytes, fields: Fields, version: bytes, authority: bytes = b"") -> None:
        super().__init__(fields, version)
        self.method = method
        self.target = target
        self.authority = authority

    @property
    def host(self) -> bytes:
        """The host that is asked, with its port where one is named."""
        return self.authority or self.get(b"host") or b""

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def has_body(self) -> bool:
        """Whether a body follows (RFC 9112 6.3)."""
        return self.is_chunked or self.length not in (None, 0)

    @property
    def upgrades(self) -> list[bytes]:
        """The protocols that the client would rather speak; none in HTTP/1.0 (RFC 9110 7.8)."""
        if not self.is_http_11 or b"upgrade" not in self.members(b"connection"):
            return []
        return self.members(b"upgrade")


class ResponseHead(Head):
    """The head of an answer.

    Attributes:
        status: 100 to 599.
        reason: the words behind it; may be empty.
    """

    __slots__ = ("reason", "status")

    def __init__(self, status: int, reason: bytes, fields: Fields, version: bytes) -> None:
        super().__init__(fields, version)
        self.status = status
        self.reason = reason

    def has_body(self, method: bytes) -> bool:
        """Whether a body can follow, whatever the fields say (RFC 9112 6.3)."""
        return method != b"HEAD" and self.status >= 200 and self.status not in (204, 304)

    @property
    def is_event_stream(self) -> bool:
        """Whether it is a stream of Server-Sent Events."""
        return (self.get(b"content-type") or b"").partition(b";")[0].strip().lower() == b"text/event-stream"


def parse_request(head: bytes, strictness: Strictness) -> RequestHead:
    """Takes the head of a request apart.

    Raises:
        BadHead: it must not be forwarded.
    """
    event, _, version, authority, target, _ = heads.parse_request(head, strictness)
    request = RequestHead(event.method, target, list(event.headers.raw_items()), version, authority)
    if not request.host and request.is_http_11 and strictness != "lenient":
        raise BadHead("the request names no host")  # RFC 9110 4.2.1: there is no such URI
    return request


class ResponseParser:
    """Takes the answers to one request apart: any number of interim ones, and the final one.

    Args:
        request: as it was sent to the server.
        strictness: see the module.
    """

    __slots__ = ("_parser", "_strictness")

    def __init__(self, request: RequestHead, strictness: Strictness) -> None:
        self._strictness = strictness
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**24)
        self._parser.send(_asked(request.method, b", ".join(request.upgrades)))

    def parse(self, head: bytes) -> ResponseHead:
        """Takes the next head apart.

        Raises:
            BadHead: it must not be forwarded.
        """
        if _HTTP_1.match(head) is None:
            raise BadHead("not an answer in HTTP/1")
        self._parser.receive_data(checked_lines(head, self._strictness, is_request=False))
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise refused_by_h11(error) from None
        if not isinstance(event, (h11.Response, h11.InformationalResponse)) or event.status_code > 599:
            raise BadHead("not an answer")
        version = b"1.0" if event.http_version == b"1.0" else b"1.1"
        response = ResponseHead(event.status_code, event.reason, list(event.headers.raw_items()), version)
        framing = check_framing(event.headers, is_http_11=version == b"1.1")
        if framing.length is not None and self._strictness == "strict":
            check_only_length(head)
        return response


@lru_cache(maxsize=64)
def _asked(method: bytes, upgrades: bytes) -> h11.Request:
    """As much of a request as h11 has to know of to read its answers. Making one takes longer than reading one."""
    upgrade = [(b"connection", b"upgrade"), (b"upgrade", upgrades)] if upgrades else []
    return h11.Request(method=method, target=b"/", headers=[(b"host", b"server"), *upgrade])


def nominated(head: Head) -> set[bytes]:
    """The fields that ``Connection`` names as being for this connection alone (RFC 9110 7.6.1)."""
    return set(head.members(b"connection"))


def encode_request(method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]], version: bytes) -> bytes:
    """The head of a request as bytes. All parts were checked when they came in, or are our own."""
    return b"".join(_lines(b"%b %b HTTP/%b\r\n" % (method, target, version), fields))


def encode_response(status: int, reason: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of an answer as bytes; always of HTTP/1.1, whatever the client speaks (RFC 9112 2.3)."""
    return b"".join(_lines(b"HTTP/1.1 %d %b\r\n" % (status, reason), fields))


def _lines(first: bytes, fields: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    yield first
    for field in fields:
        yield b"%b: %b\r\n" % field
    yield b"\r\n"
