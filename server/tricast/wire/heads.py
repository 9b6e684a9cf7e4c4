"""The heads of requests and responses: found in what came in, and checked, on the bytes as they came. No I/O.

h11 says what may be in them, and refuses a good deal; what it leaves to its user is checked here. ``strict`` refuses
whatever the RFC lets a recipient refuse; ``rfc`` accepts what it lets a recipient accept; ``lenient`` is what proxies
do that forward what they do not understand. The server is strict; for the proxy that is a setting.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import h11

Strictness = Literal["strict", "rfc", "lenient"]
#: Which of its limits a head exceeds.
Limit = Literal["", "request_line", "header", "header_count"]

#: RFC 9112 2.2: at least one empty line before a request is to be ignored; more than a few are something else.
EMPTY_LINES = 2
#: No length of a message is as long as this (RFC 9110 8.6 has the recipient anticipate large numbers).
MAX_LENGTH = 2**63 - 1
#: What a request is counted by that is TLS, sent to a port without.
TLS_HELLO = "tls-hello"

#: What lines are made of: tab, space, visible ASCII and what is beyond ASCII (RFC 9110 5.5).
_TEXT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_FOLD = re.compile(rb"\n[ \t]")
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
_DIGITS = re.compile(rb"[0-9]+")
#: RFC 9112 3, as far as it says where the parts begin.
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/([0-9]\.[0-9])")
#: Where h11 begins to repeat what was sent.
_REPEATED = re.compile(r":? (?:bytearray\(|b['\"])")


class BadHead(Exception):
    """A head that cannot be accepted.

    Attributes:
        status: what a client is told; for an answer of a server it is up to whoever asked it.
        detail: what is wrong, for people; nothing of what was sent, which may be a secret.
        code: a short machine-readable name.
        limit: which one is exceeded, where it is that.
    """

    def __init__(self, detail: str, *, status: int = 400, code: str = "bad-http", limit: Limit = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
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
        if data and not 0x20 < data[0] < 0x7F:
            self._check_beginning(data)
        start = max(0, self._searched - 3)
        if self._strictness == "strict":
            found = data.find(b"\r\n\r\n", start)
            end = -1 if found < 0 else found + 4
            # Behind the head may be a body, in which anything is allowed.
            begin, last = self._searched, len(data) if end < 0 else end
            if begin and data[begin - 1] == 0x0D:
                begin -= 1
            if data.count(b"\n", begin, last) != data.count(b"\r\n", begin, last):
                raise BadHead("a line ends in a bare LF")
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

    def _check_beginning(self, data: bytearray) -> None:
        """Skips empty lines, and refuses at once what begins as no head does, and may never have a line's end."""
        while data and not 0x20 < data[0] < 0x7F:
            ends = (b"\r\n",) if self._strictness == "strict" else (b"\r\n", b"\n")
            if data.startswith(ends):
                self._empty_lines -= 1
                if self._empty_lines < 0:
                    raise BadHead("empty lines instead of a head")
                self._searched = 0
                del data[: data.index(b"\n") + 1]
            elif data == b"\r":
                return
            elif data[0] == 0x16:  # a record that holds a handshake (RFC 8446 5.1)
                raise BadHead("this is TLS, and here HTTP is spoken without: http://, not https://", code=TLS_HELLO)
            else:
                raise BadHead("not the beginning of a head")

    def _check_size(self, head: bytes | bytearray) -> None:
        limits = self._limits
        size = len(head)
        # The first line has a CR behind it, or may have one.
        if size > limits.first_line + 1:
            first_end = head.find(b"\n")
            if (first_end if first_end >= 0 else size) > limits.first_line + 1:
                detail = f"the first line is longer than {limits.first_line} bytes"
                raise BadHead(detail, status=414, limit="request_line")
        if size > limits.total:
            raise BadHead(f"the head is larger than {limits.total} bytes", status=431, limit="header")
        if head.count(b"\n") - 2 > limits.fields:
            raise BadHead(f"more than {limits.fields} fields", status=431, limit="header_count")
        if size > limits.line and any(len(line) > limits.line + 1 for line in head.split(b"\n")[1:]):
            raise BadHead(f"a field is longer than {limits.line} bytes", status=431, limit="header")


class ParsedRequest(NamedTuple):
    """The head of a request, taken apart.

    Attributes:
        event: as h11 has it; of its version, ``version`` is what counts.
        fields: (lower-case name, value) pairs in wire order.
        version: ``b"1.0"`` or ``b"1.1"``.
        authority: of the absolute form, which goes before ``Host`` (RFC 9112 3.2.2); else empty.
        target: in origin form, as sent: nothing of it is decoded or put in order (RFC 9110 7.7).
        framing: where its body ends.
    """

    event: h11.Request
    fields: list[tuple[bytes, bytes]]
    version: bytes
    authority: bytes
    target: bytes
    framing: "Framing"


class Framing(NamedTuple):
    """What the fields of a head say of where its body ends, and what is looked for on the same walk over them.

    Attributes:
        host: that they name; None where they name none.
        is_chunked: whether the body is in chunks.
        length: of the body by its own word; None where that is not given.
        expectation: in lower case, ``b"100-continue"`` only if there is no other one; None where there is none.
    """

    host: bytes | None
    is_chunked: bool
    length: int | None
    expectation: bytes | None = None


def parse_request(head: bytes, strictness: Strictness) -> ParsedRequest:
    """Takes the head of a request apart.

    Raises:
        BadHead: it must not be acted on.
    """
    event = _request_of(checked_lines(head, strictness, is_request=True))
    version = _known_version(event)
    authority, target = _split_target(event.method, event.target)
    fields = list(event.headers)  # once: h11's sequence is slow to walk
    framing = check_framing(fields, is_http_11=version == b"1.1")
    host = framing.host
    if framing.length is not None and strictness == "strict":
        check_only_length(head)
    if host is None and version == b"1.1":
        raise BadHead("there is no Host")  # RFC 9112 3.2
    for name in (host, authority):
        if name and _HOST.fullmatch(name) is None:
            raise BadHead("the host is not valid")
    return ParsedRequest(event, fields, version, authority, target, framing)


def _request_of(lines: bytes) -> h11.Request:
    """The request that these lines are.

    They are only parted here. What a method, a target and the fields may be is decided by h11, which is handed the
    parts. Its ``Connection`` would part them as well, but most of what that costs is for a state that nobody looks at.

    Args:
        lines: a head that was checked, so that each CR ends a line.

    Raises:
        BadHead: they are none.
    """
    first, *others = lines.replace(b"\r\n", b"\n").removesuffix(b"\n\n").split(b"\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise BadHead("illegal request line")
    method, target, version = match.groups()
    fields = []
    for line in others:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadHead("illegal header line")
        fields.append((name, value.strip(b" \t")))
    try:
        return h11.Request(method=method, target=target, headers=fields, http_version=version)
    except h11.LocalProtocolError as error:
        raise refused_by_h11(error) from None


def check_only_length(head: bytes) -> None:
    """Refuses a head that names its length more than once, even where they agree: RFC 9110 8.6 leaves it to us.

    Args:
        head: with a Content-Length in it.

    Raises:
        BadHead: it does.
    """
    lengths = _LENGTHS.findall(head)
    if len(lengths) > 1 or b"," in lengths[0]:
        raise BadHead("more than one Content-Length")


def refused_by_h11(error: h11.ProtocolError) -> BadHead:
    """The same in our own words: its own repeat what was sent."""
    error.__traceback__ = None  # h11 raises it in a method of its own, whose frame would keep it: a cycle
    detail = _REPEATED.split(str(error))[0].replace("Receive buffer too long", "the head is too large")
    return BadHead(detail, status=error.error_status_hint)


def _known_version(request: h11.Request) -> bytes:
    """The version that is spoken to who sent this.

    Raises:
        BadHead: none.
    """
    version = request.http_version
    if version in (b"1.1", b"1.0"):
        return version
    if request.method == b"PRI" and version == b"2.0":  # RFC 9113 3.4
        raise BadHead("HTTP/2 is not spoken here, nor h2c: speak HTTP/1.1", status=505)
    if not version.startswith(b"1."):
        raise BadHead("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
    return b"1.1"  # RFC 9110 2.5: a higher minor version is spoken to as if it were the one that is known


def checked_lines(head: bytes, strictness: Strictness, *, is_request: bool) -> bytes:
    """A head as h11 may have it.

    Raises:
        BadHead: something in it is not for anybody.
    """
    # Without anything odd, all control characters are pairs of CR and LF; this takes a microsecond.
    if len(head.translate(None, _TEXT)) == 2 * head.count(b"\r\n") and _FOLD.search(head) is None:
        return head
    folded = _OBS_FOLD.search(head)
    if folded is not None:
        # RFC 9112 5.2: refused, or replaced by a space; a space in place of the first field is refused (RFC 9112 2.2).
        if is_request and strictness == "strict":
            raise BadHead("a field goes on in a second line, which is obsolete")
        if head.rfind(b"\n", 0, folded.end()) == head.find(b"\n"):
            raise BadHead("a space stands before the first field")
        head = _OBS_FOLD.sub(b" ", head)
    if _BARE_CR.search(head):
        raise BadHead("a CR stands alone")  # RFC 9112 2.2
    controls = _CONTROLS if strictness != "lenient" else re.compile(rb"\x00")
    if controls.search(head):
        raise BadHead("a control character in the head")
    if is_request and strictness == "strict":
        raise BadHead("a line ends in a bare LF")  # nothing else is left that is odd
    return head


def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """The authority, where the target names one, and the target in origin form.

    Raises:
        BadHead: neither form, or one that is not served.
    """
    if method == b"CONNECT":
        raise BadHead("nobody is connected from here: CONNECT is for forward proxies", status=501)  # RFC 9110 9.3.6
    if b"#" in target:
        raise BadHead("the target has a fragment")  # RFC 9112 3.2: no form has one
    if target.startswith(b"/"):
        return b"", target
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is not None:
        if not match[2]:
            raise BadHead("the target names no host")  # RFC 9110 4.2.1
        rest = match[3]
        if not rest and method == b"OPTIONS":
            return match[2], b"*"  # RFC 9112 3.2.4
        return match[2], rest if rest.startswith(b"/") else b"/" + rest
    if target != b"*" or method != b"OPTIONS":
        raise BadHead("the target must begin with a slash")
    return b"", target


def check_framing(fields: Iterable[tuple[bytes, bytes]], *, is_http_11: bool) -> Framing:
    """What tells where a body ends must be beyond doubt: where two readers differ, requests are smuggled.

    Args:
        fields: (lower-case name, value) pairs, as h11 shows them.
        is_http_11: whether the sender speaks HTTP/1.1.

    Raises:
        BadHead: it is not.
    """
    host = coding = length = expectation = None
    for name, value in fields:
        if name == b"host":
            host = value
        elif name == b"transfer-encoding":
            coding = value
        elif name == b"content-length":
            length = value
        elif name == b"expect" and expectation in (None, b"100-continue"):
            expectation = value.lower()
    if coding is not None and (length is not None or not is_http_11):
        raise BadHead("Transfer-Encoding with Content-Length, or in HTTP/1.0")  # RFC 9112 6.1
    if length is None:
        return Framing(host, coding is not None, None, expectation)
    if _DIGITS.fullmatch(length) is None or len(length) > 19 or int(length) > MAX_LENGTH:
        raise BadHead("the Content-Length is not a number that can be")
    return Framing(host, is_chunked=False, length=int(length), expectation=expectation)
