"""HTTP/1.1 without I/O: the parsed request, what it asks for, and the pieces of an answer.

Heads are read in ``heads.py`` and bodies in ``bodies.py``; this module says what the parsed thing means to Tricast.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from tricast.errors import RemoteProtocolError, Unavailable

Headers = Sequence[tuple[bytes, bytes]]

#: RFC 9112 7.1: the chunk of size zero, with no trailers behind it.
LAST_CHUNK = b"0\r\n\r\n"
PROBLEM_TYPE = b"application/problem+json"


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 7.1). The payload must not be empty: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Request:
    """The head of a request.

    Attributes:
        method: as sent, case-sensitive (RFC 9110 9.1).
        target: in origin form, as sent.
        path: the target's path, percent-decoded.
        query: (name, value) pairs in the order sent, percent-decoded.
        headers: (lower-case name, value) byte pairs in wire order.
        is_http_11: whether the client speaks HTTP/1.1, so that chunks and keep-alive are possible.
        authority: the host that is asked, with its port where one is named: of the target in absolute form, which goes
            before ``Host`` (RFC 9112 3.2.2); empty where neither names one.
    """

    __slots__ = ("_authority", "headers", "is_http_11", "method", "path", "query", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, http_version: bytes, authority: bytes = b""
    ) -> None:
        self.method = method.decode("ascii")
        self.target = target
        self.headers = headers
        self.is_http_11 = http_version == b"1.1"
        self._authority = authority
        self.path, self.query = _split_again(target) if len(target) <= _MAX_REMEMBERED_BYTES else split_target(target)

    @property
    def authority(self) -> bytes:
        """See the class."""
        return self._authority or self.header(b"host") or b""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, or None."""
        for found, value in self.headers:  # with ``next`` and a generator it takes twice as long
            if found == name:
                return value
        return None

    def members(self, name: bytes) -> list[bytes]:
        """A comma-separated header's members, over all its lines (RFC 9110 5.6.1)."""
        values = b",".join([value for found, value in self.headers if found == name])
        return [member.strip() for member in values.split(b",")] if values else []

    def tokens(self, name: bytes) -> set[bytes]:
        """The same members where their case does not matter, in lower case."""
        return {member.lower() for member in self.members(name)} - {b""}

    def parameters(self, name: str) -> list[str]:
        """All values of a query parameter."""
        return [value for found, value in self.query if found == name]

    def parameter(self, name: str) -> str | None:
        """The only value of a query parameter, or None.

        Raises:
            RemoteProtocolError: it is there more than once, and taking one would be guessing.
        """
        values = self.parameters(name)
        if len(values) > 1:
            raise RemoteProtocolError(f"{name} is given {len(values)} times", code="bad-query")
        return values[0] if values else None

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send another request (RFC 9112 9.3); HTTP/1.0 is not kept alive here."""
        return self.is_http_11 and b"close" not in self.tokens(b"connection")

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for an upgrade: by GET (RFC 6455 4.1), and not in HTTP/1.0 (RFC 9110 7.8)."""
        if self.method != "GET" or not self.is_http_11 or self.header(b"upgrade") is None:
            return False
        return b"websocket" in self.tokens(b"upgrade") and b"upgrade" in self.tokens(b"connection")

    @property
    def wants_event_stream(self) -> bool:
        """Whether ``Accept`` names text/event-stream; a mere ``*/*`` gets a long poll."""
        for member in self.tokens(b"accept"):
            media_type, *parameters = (part.strip() for part in member.split(b";"))
            if media_type == b"text/event-stream" and not any(
                p.replace(b" ", b"") in _ZERO_QUALITY for p in parameters
            ):
                return True
        return False


#: RFC 9110 12.4.2: a weight of zero means "not acceptable".
_ZERO_QUALITY = {b"q=0", b"q=0.", b"q=0.0", b"q=0.00", b"q=0.000"}


class Response(NamedTuple):
    """A whole answer, small enough to be held in memory.

    Attributes:
        status: the status code.
        headers: without framing, ``Date`` and ``Connection``, which the connection adds.
        body: empty where the status allows none.
        closes: whether the connection ends after it.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""
    closes: bool = False


_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
#: Asks for the body that the client holds back (RFC 9110 10.1.1).
CONTINUE = _STATUS_LINES[100] + b"\r\n"
CLOSE = b"connection: close\r\n"
END_OF_HEAD = b"\r\n"


def encode_head(status: int, *lines: bytes) -> bytes:
    """A response up to its body, or to where the caller goes on (RFC 9112 4).

    Written here and not by h11, which checks every field on its way out by what it is: that was a third of what an
    answer cost. That nothing ends a line but its end is seen to in ``encode_headers``, for a hundredth of it.

    Args:
        status: the status code.
        lines: header lines (see ``encode_headers``), and the empty line that ends them.
    """
    return b"".join((_STATUS_LINES[status], *lines))


def encode_headers(headers: Headers) -> bytes:
    """Headers as the lines of a head (RFC 9112 5), in wire order.

    Raises:
        ValueError: something in them would end a line, so that the rest would be another field, or another answer.
    """
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not lines.count(b"\n") == lines.count(b"\r") == len(headers) or b"\0" in lines:
        raise ValueError("a header would be more than one line")
    return lines


def encode_response(response: Response, *, has_body: bool = True) -> bytes:
    """A whole answer that has a body, with nothing but its own headers: where no ``Date`` is at hand, or none is due.

    Args:
        response: the answer.
        has_body: whether the body goes out as well, which it does not for HEAD.
    """
    length = (b"content-length", b"%d" % len(response.body))
    closing = CLOSE if response.closes else b""
    body = response.body if has_body else b""
    return encode_head(response.status, encode_headers((*response.headers, length)), closing, END_OF_HEAD, body)


def split_target(target: bytes) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The path and the query pairs of a request target in origin form, or of the asterisk.

    Raises:
        RemoteProtocolError: neither, or not UTF-8 behind the percent signs.
    """
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and target != b"*":
        raise RemoteProtocolError("the request target must begin with a slash", code="bad-target")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
        return unquote_to_bytes(path).decode(), tuple(pairs)
    except UnicodeDecodeError:
        raise RemoteProtocolError("the request target is not UTF-8 in percent encoding", code="bad-target") from None


#: Subscribers of one topic ask for the same target, thousands of them; longer ones would make this a lot of memory.
_MAX_REMEMBERED_BYTES = 256
_split_again = lru_cache(maxsize=1024)(split_target)


def json_response(status: int, value: object, headers: Headers = ()) -> Response:
    """An answer with a JSON body."""
    return Response(status, ((b"content-type", b"application/json"), *headers), msgspec.json.encode(value) + b"\n")


def problem(status: int, detail: str, *, code: str, headers: Headers = (), closes: bool = False) -> Response:
    """An error as RFC 9457 writes it: ``type``, ``title``, ``status`` and ``detail`` in application/problem+json."""
    body = msgspec.json.encode(
        {
            "type": f"urn:tricast:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
        }
    )
    return Response(
        status,
        ((b"content-type", PROBLEM_TYPE), (b"cache-control", b"no-store"), *headers),
        body + b"\n",
        closes,
    )


def problem_of(error: RemoteProtocolError | Unavailable) -> Response:
    """The answer to a client's mistake, or to a request that cannot be served now."""
    if isinstance(error, Unavailable):
        return problem(503, error.detail, code=error.code, headers=(retry_after(error.retry_after),))
    return problem(error.status, error.detail, code=error.code, headers=error.headers, closes=error.closes)


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """A ``Retry-After`` header, which knows whole seconds only (RFC 9110 10.2.3); never early, so rounded up."""
    return (b"retry-after", b"%d" % max(1, -int(-seconds // 1)))


def allow(methods: Iterable[str]) -> tuple[bytes, bytes]:
    """An ``Allow`` header (RFC 9110 10.2.1)."""
    return (b"allow", ", ".join(methods).encode())
