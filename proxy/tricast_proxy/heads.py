"""The heads of requests and responses: found in what came in, checked, and taken apart. No I/O.

h11 takes them apart, and refuses a good deal; what it leaves to its user is checked here, on the bytes as they came.
``strict`` refuses whatever the RFC lets a recipient refuse; ``rfc`` accepts what it lets a recipient accept; and
``lenient`` is what proxies do that forward what they do not understand.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import h11

from tricast_proxy.config import LimitsSection

Strictness = Literal["strict", "rfc", "lenient"]
#: (name, value) byte pairs in wire order, names as they were written.
Fields = list[tuple[bytes, bytes]]

#: RFC 9112 2.2: at least one empty line before a request is to be ignored; more than a few are something else.
_EMPTY_LINES = 2
#: No length of a message is as long as this (RFC 9110 8.6 has the recipient anticipate large numbers).
MAX_LENGTH = 2**63 - 1

_BARE_LF = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_OBS_FOLD = re.compile(rb"\r?\n[ \t]+")
_LENIENT_END = re.compile(rb"\r?\n\r?\n")
#: A length as it was written, of which h11 shows one even where there are several that agree.
_LENGTHS = re.compile(rb"\ncontent-length:([^\r\n]*)", re.IGNORECASE)
#: RFC 9110 5.5: control characters in a field's value are invalid, but for the tab.
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: RFC 3986 3.2.2 and 3.2.3, without userinfo, which RFC 9110 4.2.4 has a recipient treat as an error.
_HOST = re.compile(
    rb"(\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?"
)
_ABSOLUTE_FORM = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_DIGITS = re.compile(rb"[0-9]+")


class BadHead(Exception):
    """A head that cannot be accepted.

    Attributes:
        status: what a client is told; for an answer of a server it is the configuration's ``bad_response``.
        detail: what is wrong, for people.
        limit: the key of ``[errors]`` that says the status, where a limit is exceeded.
    """

    def __init__(self, detail: str, *, status: int = 400, limit: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.limit = limit


class HeadLimits(NamedTuple):
    """How large a head may be.

    Attributes:
        first_line: bytes of the request line, or of the status line.
        line: bytes of a field.
        total: bytes of all.
        fields: how many.
        empty_lines: how many may stand before it.
    """

    first_line: int
    line: int
    total: int
    fields: int
    empty_lines: int = 0

    @classmethod
    def of_requests(cls, limits: LimitsSection) -> "HeadLimits":
        """What is configured for requests."""
        return cls(limits.request_line, limits.header_line, limits.header_total, limits.header_count, _EMPTY_LINES)

    @classmethod
    def of_responses(cls, limits: LimitsSection) -> "HeadLimits":
        """What is configured for answers."""
        line, total = limits.response_header_line, limits.response_header_total
        return cls(line, line, total, limits.response_header_count)


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


class HeadReader:
    """Takes heads off what comes in.

    Args:
        limits: how large they may be.
        strictness: see the module.
    """

    __slots__ = ("_empty_lines", "_limits", "_searched", "_strictness")

    def __init__(self, limits: HeadLimits, strictness: Strictness) -> None:
        self._limits = limits
        self._strictness = strictness
        self._searched = 0
        self._empty_lines = limits.empty_lines

    def take(self, data: bytearray) -> bytes | None:
        """Takes a whole head off the beginning of what came in; None while there is none.

        Raises:
            BadHead: what is there cannot become a head.
        """
        strict = self._strictness == "strict"
        self._skip_empty_lines(data)
        if strict and _BARE_LF.search(data, max(0, self._searched - 1), self._end_of_bare_search(data)):
            raise BadHead("a line ends in a bare LF")
        start = max(0, self._searched - 3)
        if strict:
            found = data.find(b"\r\n\r\n", start)
            end = -1 if found < 0 else found + 4
        else:
            match = _LENIENT_END.search(data, start)
            end = -1 if match is None else match.end()
        if end < 0:
            self._searched = len(data)
            self._check_size(data)
            return None
        self._searched = 0
        head = bytes(data[:end])
        self._check_size(head)
        del data[:end]
        return head

    def _skip_empty_lines(self, data: bytearray) -> None:
        ends = (b"\r\n",) if self._strictness == "strict" else (b"\r\n", b"\n")
        while data.startswith(ends):
            self._empty_lines -= 1
            if self._empty_lines < 0:
                raise BadHead("empty lines instead of a head")
            self._searched = 0
            del data[: data.index(b"\n") + 1]

    def _end_of_bare_search(self, data: bytearray) -> int:
        # Behind the head may be a body, in which anything is allowed.
        found = data.find(b"\r\n\r\n", max(0, self._searched - 3))
        return len(data) if found < 0 else found + 4

    def _check_size(self, head: bytes | bytearray) -> None:
        limits = self._limits
        first_end = head.find(b"\n")
        # The line has a CR behind it, or may have one.
        if (first_end if first_end >= 0 else len(head)) > limits.first_line + 1:
            raise BadHead(f"the first line is longer than {limits.first_line} bytes", status=414, limit="request_line")
        if len(head) > limits.total:
            raise BadHead(f"the head is larger than {limits.total} bytes", status=431, limit="header")
        lines = head.split(b"\n")[1:]
        if len(lines) - 2 > limits.fields:
            raise BadHead(f"more than {limits.fields} fields", status=431, limit="header_count")
        if len(head) > limits.line and any(len(line) > limits.line + 1 for line in lines):
            raise BadHead(f"a field is longer than {limits.line} bytes", status=431, limit="header")


def parse_request(head: bytes, strictness: Strictness) -> RequestHead:
    """Takes the head of a request apart.

    Raises:
        BadHead: it must not be forwarded.
    """
    line = head.partition(b"\n")[0].rstrip(b"\r")
    _check_version(line.rpartition(b" ")[2])
    lines = _checked_lines(head, strictness, is_request=True)
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=max(2**20, len(lines)))
    parser.receive_data(lines)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHead(_in_words(error), status=error.error_status_hint) from None
    if not isinstance(event, h11.Request):
        raise BadHead("not a request")
    fields = list(event.headers.raw_items())
    version = b"1.0" if event.http_version == b"1.0" else b"1.1"
    authority, target = _split_target(event.method, event.target)
    request = RequestHead(event.method, target, fields, version, authority)
    _check_framing(request)
    if not request.host and request.is_http_11 and strictness != "lenient":
        raise BadHead("the request names no host")  # RFC 9110 4.2.1: there is no such URI
    for host in (request.get(b"host"), authority):
        if host and _HOST.fullmatch(host) is None:
            raise BadHead("the host is not valid")
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
        line = head.partition(b"\n")[0].rstrip(b"\r")
        if _VERSION.match(line) is None or not line.startswith(b"HTTP/1."):
            raise BadHead("not an answer in HTTP/1")
        self._parser.receive_data(_checked_lines(head, self._strictness, is_request=False))
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise BadHead(_in_words(error)) from None
        if not isinstance(event, (h11.Response, h11.InformationalResponse)) or event.status_code > 599:
            raise BadHead("not an answer")
        version = b"1.0" if event.http_version == b"1.0" else b"1.1"
        response = ResponseHead(event.status_code, event.reason, list(event.headers.raw_items()), version)
        _check_framing(response)
        return response


@lru_cache(maxsize=64)
def _asked(method: bytes, upgrades: bytes) -> h11.Request:
    """As much of a request as h11 has to know of to read its answers. Making one takes longer than reading one."""
    upgrade = [(b"connection", b"upgrade"), (b"upgrade", upgrades)] if upgrades else []
    return h11.Request(method=method, target=b"/", headers=[(b"host", b"server"), *upgrade])


def _in_words(error: h11.RemoteProtocolError) -> str:
    return str(error).replace("Receive buffer too long", "the head is too large")


def _check_version(version: bytes) -> None:
    match = _VERSION.fullmatch(version)
    if match is None:
        return  # h11 has the words for it
    if match[1] != b"1":  # RFC 9110 2.5: a higher minor version is spoken to as if it were the one that is known
        raise BadHead("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)


def _checked_lines(head: bytes, strictness: Strictness, *, is_request: bool) -> bytes:
    """The head as h11 may have it.

    Raises:
        BadHead: something in it is not for anybody.
    """
    folded = _OBS_FOLD.search(head)
    if folded is not None:
        # RFC 9112 5.2: refused, or replaced by a space; a space in place of the first field is refused (RFC 9112 2.2).
        if is_request and strictness == "strict":
            raise BadHead("a field goes on in a second line, which is obsolete")
        if head.rfind(b"\n", 0, folded.end()) == head.find(b"\n"):
            raise BadHead("a space stands before the first field")
        head = _OBS_FOLD.sub(b" ", head)
    lengths = _LENGTHS.findall(head)
    if strictness == "strict" and (len(lengths) > 1 or b"," in b"".join(lengths)):
        raise BadHead("more than one Content-Length")  # RFC 9110 8.6: may be refused, even where they agree
    if _BARE_CR.search(head):
        raise BadHead("a CR stands alone")  # RFC 9112 2.2
    controls = _CONTROLS if strictness != "lenient" else re.compile(rb"\x00")
    if controls.search(head.replace(b"\t", b" ").replace(b"\r\n", b" ").replace(b"\n", b" ")):
        raise BadHead("a control character in the head")
    return head


def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """The authority, where the target names one, and the target in origin form.

    Raises:
        BadHead: neither form, or one that a gateway does not serve.
    """
    if method == b"CONNECT":
        raise BadHead("this is a gateway: it connects nobody", status=501)  # RFC 9110 9.3.6
    if b"#" in target:
        raise BadHead("the target has a fragment")  # RFC 9112 3.2: no form has one
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is not None:
        if not match[2]:
            raise BadHead("the target names no host")  # RFC 9110 4.2.1
        rest = match[3]
        if not rest and method == b"OPTIONS":
            return match[2], b"*"  # RFC 9112 3.2.4
        return match[2], rest if rest.startswith(b"/") else b"/" + rest
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise BadHead("the target must begin with a slash")
    return b"", target


def _check_framing(head: Head) -> None:
    """What tells where a body ends must be beyond doubt: where two readers differ, requests are smuggled.

    Raises:
        BadHead: it is not.
    """
    codings = head.all(b"transfer-encoding")
    lengths = head.all(b"content-length")
    if codings and (lengths or not head.is_http_11):
        raise BadHead("Transfer-Encoding with Content-Length, or in HTTP/1.0")  # RFC 9112 6.1
    for length in lengths:
        if _DIGITS.fullmatch(length) is None or len(length) > 19 or int(length) > MAX_LENGTH:
            raise BadHead("the Content-Length is not a number that can be")


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
