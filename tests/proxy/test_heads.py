"""Heads as they come in: what is refused, and in which strictness; whole, byte by byte, and with more behind them."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.wire.heads import BadHead, HeadLimits, HeadReader, Strictness
from tricast_proxy.config import LimitsSection
from tricast_proxy.heads import (
    Head,
    RequestHead,
    ResponseHead,
    ResponseParser,
    encode_request,
    encode_response,
    limits_of_requests,
    limits_of_responses,
    parse_request,
)

STRICTNESSES: tuple[Strictness, ...] = ("strict", "rfc", "lenient")
REQUESTS = limits_of_requests(LimitsSection())
RESPONSES = limits_of_responses(LimitsSection())
BEHIND = b"\n\x00\r\n\r\nGET /"


def request_in(data: bytes, strictness: Strictness, size: int, limits: HeadLimits = REQUESTS) -> RequestHead | int:
    """What a request becomes that comes in pieces of a size: its head, or the status that it is refused with."""
    reader, received = HeadReader(limits, strictness), bytearray()
    try:
        for at in range(0, len(data), size):
            received += data[at : at + size]
            if (head := reader.take(received)) is not None:
                assert data[: at + size].endswith(head + received)
                return parse_request(head, strictness)
    except BadHead as bad:
        return bad.status
    raise AssertionError("not the end of a head")


def outcomes(data: bytes, strictness: Strictness, limits: HeadLimits = REQUESTS) -> Iterator[RequestHead | int]:
    """The same, however it comes."""
    for size in (len(data), 1, 7):
        yield request_in(data, strictness, size, limits)
    yield request_in(data + BEHIND, strictness, len(data + BEHIND), limits)


def outcome(data: bytes, strictness: Strictness, limits: HeadLimits = REQUESTS) -> int:
    """The status that it is refused with, or 0; the same however it comes."""
    found = {0 if isinstance(one, RequestHead) else one for one in outcomes(data, strictness, limits)}
    assert len(found) == 1, found
    return found.pop()


def accepted(data: bytes, strictness: Strictness = "strict") -> RequestHead:
    """What it becomes, the same however it comes."""
    first, *others = outcomes(data, strictness)
    assert isinstance(first, RequestHead), first
    for other in others:
        assert isinstance(other, RequestHead)
        assert (other.method, other.target, other.fields) == (first.method, first.target, first.fields)
    return first


def test_a_request_is_taken_apart() -> None:
    request = accepted(b"M-SEARCH /a%2F../b?q=%41 HTTP/1.1\r\nHOST: a:80\r\nX: 1\r\nx:\t2 \r\nEmpty:\r\n\r\n")
    assert (request.method, request.target, request.version) == (b"M-SEARCH", b"/a%2F../b?q=%41", b"1.1")
    assert request.fields == [(b"HOST", b"a:80"), (b"X", b"1"), (b"x", b"2"), (b"Empty", b"")]
    assert (request.host, request.path) == (b"a:80", b"/a%2F../b")
    assert (request.all(b"x"), request.get(b"x"), request.get(b"y")) == ([b"1", b"2"], b"1", None)
    assert (request.has_body, request.keeps_alive, request.is_http_11, request.upgrades) == (False, True, True, [])


#: What is refused at every level, and with which status.
REFUSED = {
    "Transfer-Encoding with Content-Length": (b"Transfer-Encoding: chunked\r\nContent-Length: 3", 400),
    "Content-Length with Transfer-Encoding": (b"Content-Length: 3\r\nTransfer-Encoding: chunked", 400),
    "chunked is not the last coding": (b"Transfer-Encoding: chunked, gzip", 501),
    "another coding before chunked": (b"Transfer-Encoding: gzip, chunked", 501),
    "a coding that nobody knows": (b"Transfer-Encoding: xchunked", 501),
    "the coding identity": (b"Transfer-Encoding: identity", 501),
    "an empty coding": (b"Transfer-Encoding:", 501),
    "chunked with a parameter": (b"Transfer-Encoding: chunked;q=1", 501),
    "chunked behind a vertical tab": (b"Transfer-Encoding: \x0bchunked", 400),
    "chunked twice in a line": (b"Transfer-Encoding: chunked, chunked", 501),
    "chunked in two lines": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
    "chunked and identity": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 501),
    "a length with a sign": (b"Content-Length: +3", 400),
    "a negative length": (b"Content-Length: -1", 400),
    "a hexadecimal length": (b"Content-Length: 0x3", 400),
    "an underscore in a length": (b"Content-Length: 1_0", 400),
    "a length with a space": (b"Content-Length: 1 0", 400),
    "an empty length": (b"Content-Length:", 400),
    "a length that is a word": (b"Content-Length: three", 400),
    "a length of other digits": (b"Content-Length: \xb2", 400),
    "two lengths that differ": (b"Content-Length: 3\r\nContent-Length: 4", 400),
    "a list of lengths that differ": (b"Content-Length: 3, 4", 400),
    "a list of lengths with an empty member": (b"Content-Length: 3,", 400),
    "a length of 20 digits": (b"Content-Length: 99999999999999999999", 400),
    "a length of 21 digits": (b"Content-Length: 000000000000000000003", 400),
    "a length of 2**63": (b"Content-Length: 9223372036854775808", 400),
    "a space before the colon": (b"X : y", 400),
    "a tab before the colon": (b"X\t: y", 400),
    "no name": (b": y", 400),
    "no colon": (b"X y", 400),
    "a name with a slash": (b"X/Y: z", 400),
    "a name that is not ASCII": (b"X\xe4: z", 400),
    "NUL in a value": (b"X: a\x00b", 400),
    "CR in a value": (b"X: a\rb", 400),
    "CR before the end of a line": (b"X: a\r", 400),
    "NUL in a name": (b"X\x00: a", 400),
    "two hosts": (b"Host: b", 400),
    "two hosts that agree": (b"Host: test", 400),
}


@pytest.mark.parametrize("strictness", STRICTNESSES)
@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_are_refused(name: str, strictness: Strictness) -> None:
    lines, status = REFUSED[name]
    assert outcome(b"POST / HTTP/1.1\r\nHost: test\r\n" + lines + b"\r\n\r\n", strictness) == status


#: What is refused only where the recipient may choose (RFC 9112 2.2, 5.2; RFC 9110 5.5, 8.6): strict, rfc, lenient.
CHOSEN = {
    "two lengths that agree": (b"Content-Length: 3\r\nContent-Length: 3", (400, 0, 0)),
    "two lengths that agree, with a line between": (b"content-length: 3\r\nX: y\r\nContent-Length:3", (400, 0, 0)),
    "a list of lengths that agree": (b"Content-Length: 3, 3", (400, 0, 0)),
    "a bare LF": (b"X: y\nZ: a", (400, 0, 0)),
    "a field in two lines": (b"X: y\r\n z", (400, 0, 0)),
    "a field in two lines, with a tab": (b"X: y\r\n\tz", (400, 0, 0)),
    "a length in two lines": (b"Content-Length:\r\n 3", (400, 0, 0)),
    "a space before the end": (b"X: y\r\n ", (400, 0, 0)),
    "a control character": (b"X: a\x01b", (400, 400, 0)),
    "the control character DEL": (b"X: a\x7fb", (400, 400, 0)),
}


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("name", CHOSEN)
def test_fields_that_may_be_refused(name: str, level: int) -> None:
    lines, statuses = CHOSEN[name]
    assert outcome(b"POST / HTTP/1.1\r\nHost: test\r\n" + lines + b"\r\n\r\n", STRICTNESSES[level]) == statuses[level]


#: Whole heads: strict, rfc, lenient.
HEADS = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", (400, 400, 400)),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", (400, 400, 0)),
    "no host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", (0, 0, 0)),
    "Transfer-Encoding in HTTP/1.0": (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", (400, 400, 400)),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", (0, 0, 0)),
    "HTTP/1.9": (b"GET / HTTP/1.9\r\nHost: a\r\n\r\n", (0, 0, 0)),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", (505, 505, 505)),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", (505, 505, 505)),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", (505, 505, 505)),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505, 505, 505)),
    "HTTP/11.1": (b"GET / HTTP/11.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "http in lower case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "no version": (b"GET /\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a version with a comma": (b"GET / HTTP/1,1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "two spaces before the version": (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a tab in the request line": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a space behind the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a space before the method": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a method that is no token": (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a control character in the target": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a target that is not ASCII": (b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a target without a slash": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "an asterisk for GET": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a fragment": (b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a fragment in absolute form": (b"GET http://a/#a HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "another scheme": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "an absolute form without a host": (b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "an absolute form with a user": (b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "an absolute form with two ports": (b"GET http://a:1:2/ HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", (501, 501, 501)),
    "a host with a slash": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", (400, 400, 400)),
    "a host with a user": (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", (400, 400, 400)),
    "a host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", (400, 400, 400)),
    "a host with a query": (b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", (400, 400, 400)),
    "a host with half a bracket": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", (400, 400, 400)),
    "a host with a port that is a word": (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", (400, 400, 400)),
    "two hosts in one": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", (400, 400, 400)),
    "a future address with more behind it": (b"GET / HTTP/1.1\r\nHost: [v1.a]b]\r\n\r\n", (400, 400, 400)),
    "a space before the first field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", (400, 400, 400)),
    "a tab before the first field": (b"GET / HTTP/1.1\r\n\tX: a\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a space before the first field, behind a LF": (b"GET / HTTP/1.1\n Host: a\r\n\r\n", (400, 400, 400)),
    "a CR in the request line": (b"GET / HTTP/1.1\rX\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "a CR where a line should end": (b"GET / HTTP/1.1\rHost: a\r\n\r\n", (400, 400, 400)),
    "nothing but LF": (b"GET / HTTP/1.1\nHost: a\n\n", (400, 0, 0)),
    "LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", (400, 0, 0)),
    "LF and CR LF at the end": (b"GET / HTTP/1.1\r\nHost: a\n\r\n", (400, 0, 0)),
    "one empty line before it": (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (0, 0, 0)),
    "two empty lines before it": (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (0, 0, 0)),
    "three empty lines before it": (b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 400, 400)),
    "an empty line of LF": (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 0, 0)),
    "a line of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400, 400, 400)),
}


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str, level: int) -> None:
    data, statuses = HEADS[name]
    assert outcome(data, STRICTNESSES[level]) == statuses[level]


@pytest.mark.parametrize(
    ("target", "host", "origin_form"),
    [
        ("/", "test", "/"),
        ("//a/b", "test", "//a/b"),
        ("http://A.example/", "A.example", "/"),
        ("HTTP://a.example:81/x?y", "a.example:81", "/x?y"),
        ("https://[::1]:8/x", "[::1]:8", "/x"),
        ("http://[v1.a:b]/x", "[v1.a:b]", "/x"),
        ("http://a.example", "a.example", "/"),
        ("http://a.example?x", "a.example", "/?x"),
        ("/http://b.example/", "test", "/http://b.example/"),
    ],
)
def test_the_absolute_form_goes_before_the_host(target: str, host: str, origin_form: str) -> None:
    request = accepted(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    assert (request.host, request.target) == (host.encode(), origin_form.encode())


def test_what_the_server_as_such_can_do_may_be_asked_for() -> None:
    assert accepted(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"
    assert accepted(b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"
    assert accepted(b"OPTIONS http://b/ HTTP/1.1\r\nHost: a\r\n\r\n").target == b"/"


def test_no_host_need_be_named_in_http_1_0() -> None:
    assert accepted(b"GET / HTTP/1.0\r\n\r\n").host == b""


def test_lengths() -> None:
    assert accepted(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n").length == 2**63 - 1
    assert accepted(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").has_body is False
    assert accepted(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0007\r\n\r\n").length == 7
    for lines in (b"Content-Length: 3, 3", b"Content-Length: 3\r\nContent-Length: 3"):
        request = accepted(b"PUT / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n\r\n", "rfc")
        assert (request.length, request.all(b"content-length")) == (3, [b"3"])
    chunked = accepted(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
    assert (chunked.is_chunked, chunked.has_body, chunked.length) == (True, True, None)


def test_a_field_in_two_lines_is_one_where_it_is_accepted() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX: y \r\n\t z\r\n  \r\n\r\n"
    assert accepted(data, "rfc").get(b"x") == b"y  z"


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "X, CLOSE", False),
        ("1.1", "keep-alive, close", False),
        ("1.0", "", False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_how_long_a_connection_lasts(version: str, connection: str, keeps_alive: bool) -> None:
    data = f"GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n"
    assert accepted(data.encode()).keeps_alive is keeps_alive


@pytest.mark.parametrize(
    ("version", "connection", "upgrade", "asked"),
    [
        ("1.1", "Upgrade", "websocket", [b"websocket"]),
        ("1.1", "keep-alive, UPGRADE", "WebSocket, h2c", [b"websocket", b"h2c"]),
        ("1.1", "upgrade", "", []),
        ("1.1", "keep-alive", "websocket", []),
        ("1.1", "", "websocket", []),
        ("1.0", "upgrade", "websocket", []),
    ],
)
def test_what_counts_as_asking_for_an_upgrade(version: str, connection: str, upgrade: str, asked: list[bytes]) -> None:
    lines = f"Host: a\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\r\n"
    assert accepted(f"GET / HTTP/{version}\r\n{lines}".encode()).upgrades == asked


# Limits


def take_all(reader: HeadReader, data: bytes, size: int) -> None:
    """Gives it all of the data, in pieces of a size."""
    received = bytearray()
    for at in range(0, len(data), size):
        received += data[at : at + size]
        reader.take(received)


SMALL = HeadLimits(20, 16, 64, 4, 2)


@pytest.mark.parametrize(
    ("data", "status", "limit"),
    [
        (b"GET /2345678 HTTP/1.1\r\nHost: a\r\n\r\n", 414, "request_line"),
        (b"GET /234567890123456789", 414, "request_line"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 01234567890123\r\n\r\n", 431, "header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 0123456789012345678901234567890", 431, "header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: 012345678\r\nA: 012345678\r\nA: 012345678\r\n\r\n", 431, "header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\nD:\r\nE:\r\n\r\n", 431, "header_count"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\nD:\r\nE:\r\nF:\r\nG", 431, "header_count"),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_limits(data: bytes, status: int, limit: str, size: int) -> None:
    with pytest.raises(BadHead) as raised:
        take_all(HeadReader(SMALL, "strict"), data, size)
    assert (raised.value.status, raised.value.limit) == (status, limit)


def test_what_is_as_large_as_it_may_be() -> None:
    data = b"GET /234567 HTTP/1.1\r\nHost: a\r\nX: 0123456789012\r\nY:\r\nZ:\r\n\r\n"
    assert len(data) <= 64
    assert outcome(data, "strict", SMALL) == 0
    assert outcome(b"\r\n\r\n" + data, "strict", SMALL) == 0


def test_what_can_no_longer_become_a_head_is_refused_before_its_end() -> None:
    for begun in (b"\r\n\r\n\r\n", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: a\n", b"\n"):
        with pytest.raises(BadHead):
            HeadReader(REQUESTS, "strict").take(bytearray(begun))


@given(st.lists(st.integers(1, 30), min_size=1), st.sampled_from(STRICTNESSES), st.integers(0, 3))
def test_splitting_changes_nothing(sizes: list[int], strictness: Strictness, empty_lines: int) -> None:
    data = (
        b"\r\n" * empty_lines + b"PUT /a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nX: " + b"y" * 40 + b"\r\n\r\n"
    )
    reader, received, heads, at = HeadReader(REQUESTS, strictness), bytearray(), [], 0
    stream = data + b"hello"
    while at < len(stream) and not heads:
        size = sizes[at % len(sizes)]
        received += stream[at : at + size]
        at += size
        try:
            head = reader.take(received)
        except BadHead:
            assert empty_lines == 3
            return
        heads += [head] if head is not None else []
    assert heads == [data[2 * empty_lines :]]
    assert bytes(received) == stream[len(data) : at]


# Answers


def answer(
    data: bytes, strictness: Strictness = "strict", request: bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
) -> Head:
    """What a server's answer becomes, whole and byte by byte."""
    heads = []
    for size in (1, len(data)):
        reader, received = HeadReader(RESPONSES, strictness), bytearray()
        parser = ResponseParser(parse_request(request, strictness), strictness)
        for at in range(0, len(data), size):
            received += data[at : at + size]
            if (head := reader.take(received)) is not None:
                heads.append(parser.parse(head))
    *_, last = heads
    assert heads[0].fields == heads[len(heads) // 2].fields
    return last


def test_an_answer_is_taken_apart() -> None:
    response = answer(b"HTTP/1.0 404 Not  Found\r\nX: y\r\nContent-Type: Text/Event-Stream; a=b\r\n\r\n")
    assert isinstance(response, ResponseHead)
    assert (response.status, response.reason, response.version) == (404, b"Not  Found", b"1.0")
    assert response.is_event_stream
    assert response.has_body(b"GET")
    assert not response.has_body(b"HEAD")
    for status in (100, 204, 304):
        assert not ResponseHead(status, b"", [], b"1.1").has_body(b"GET")


def test_interim_answers_come_before_the_final_one() -> None:
    data = b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 299 \r\n\r\n"
    reader, parser = (
        HeadReader(RESPONSES, "strict"),
        ResponseParser(parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "strict"), "strict"),
    )
    received, statuses = bytearray(data), []
    while (head := reader.take(received)) is not None:
        statuses.append(parser.parse(head).status)
    assert statuses == [103, 100, 299]


BAD_ANSWERS = {
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "no version": b"200 OK\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "the body at once": b"<html>\r\n\r\n",
    "status 600": b"HTTP/1.1 600 No\r\n\r\n",
    "status 99": b"HTTP/1.1 099 No\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status with a sign": b"HTTP/1.1 +20 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "an empty line before it": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "Transfer-Encoding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Transfer-Encoding with Content-Length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n"
    b"\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length that is too large": b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    "a space before the first field": b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n",
    "a space before the first field, behind a LF": b"HTTP/1.1 200 OK\n Set-Cookie: y\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
    "a CR in the reason": b"HTTP/1.1 200 OK\rX: y\r\n\r\n",
    "a protocol that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("strictness", STRICTNESSES)
@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_answers_that_are_refused(name: str, strictness: Strictness) -> None:
    with pytest.raises(BadHead):
        answer(BAD_ANSWERS[name], strictness)


def test_answers_that_may_be_refused() -> None:
    for data in (
        b"HTTP/1.1 200 OK\nX: y\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x01\r\n\r\n",
    ):
        with pytest.raises(BadHead):
            answer(data)
        assert answer(data, "lenient").fields


def test_a_field_of_an_answer_in_two_lines_is_made_one() -> None:
    # RFC 9112 5.2 has a gateway refuse the answer or replace the fold.
    assert answer(b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n").fields == [(b"X", b"y z")]


def test_the_head_of_an_answer_is_limited() -> None:
    limits = HeadLimits(50, 50, 50, 2)
    for data in (
        b"HTTP/1.1 200 " + b"x" * 60,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60,
        b"HTTP/1.1 200 OK\r\nA:\r\nA:\r\nA:\r\n\r\n",
    ):
        with pytest.raises(BadHead):
            HeadReader(limits, "lenient").take(bytearray(data))


def test_heads_are_written() -> None:
    fields = [(b"Host", b"a"), (b"X", b"")]
    assert encode_request(b"GET", b"/a", fields, b"1.1") == b"GET /a HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"
    assert encode_response(299, b"", fields) == b"HTTP/1.1 299 \r\nHost: a\r\nX: \r\n\r\n"
