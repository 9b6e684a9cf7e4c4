"""Requests that two readers could understand differently, and how each is refused.

Each comes whole, byte by byte, and with more behind it. The answer arrives complete though more input comes, says what
is wrong, and is the last: what is behind it is never taken for another request.
"""

import io
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Answer, Wire, ask, head, read_answer
from clocks import HANG_SECONDS
from proxies.played.framing import PASSED, REFUSED, VECTORS, Vector
from serving import harmless, serving, until
from structlog.testing import LogCapture

import tricast
from tricast.config import LoggingSection
from tricast.logs import program_logger

#: Taken for a request, this would publish something; and it is more than one read.
BEHIND = head("POST", "/publish?topic=smuggled", "Content-Length: 1") + b"1" + b"\r\n" + b"x" * 200_000
#: What comes byte by byte is so many pieces at most.
MOST_PIECES = 400


class Case(NamedTuple):
    """A request that is refused.

    Attributes:
        data: it.
        status: of the answer.
        code: what kind of problem it tells of.
        is_head: whether it is a HEAD, whose answer has no body.
    """

    data: bytes
    status: int = 400
    code: str = "bad-http"
    is_head: bool = False


def get(*lines: bytes, first: bytes = b"GET /healthz HTTP/1.1") -> bytes:
    """A head of these lines."""
    return b"\r\n".join((first, *lines, b"", b""))


def first(line: bytes, *lines: bytes) -> bytes:
    """A head with this request line."""
    return get(b"Host: a", *lines, first=line)


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A publish with these lines in its head."""
    return get(b"Host: a", *lines, first=b"POST /publish?topic=smuggled HTTP/" + version) + body


def length(value: bytes, body: bytes = b"hello") -> bytes:
    """A publish with this for its length."""
    return post(b"Content-Length: " + value, body=body)


def chunked(body: bytes) -> bytes:
    """A publish with this for its chunks."""
    return post(b"Transfer-Encoding: chunked", body=body)


CASES: dict[str, Case] = {
    # No HTTP/1.1
    "garbage": Case(b"GARBAGE\r\n\r\n"),
    "bytes": Case(b"\x00\x01\x02\xff\xfe\r\n\r\n"),
    "bytes without a line's end": Case(b"\xff\xfe"),
    "the hello of TLS 1.2": Case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "tls-hello"),
    "the hello of TLS, in one byte": Case(b"\x16", 400, "tls-hello"),
    "a hello of SSL 2": Case(b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80"),
    "the preface of HTTP/2": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
    "HTTP/0.9": Case(b"GET /healthz\r\n\r\n"),
    "HTTP/0.9 by its name": Case(first(b"GET /healthz HTTP/0.9"), 505),
    "HTTP/2.0": Case(first(b"GET /healthz HTTP/2.0"), 505),
    "HTTP/9.9": Case(first(b"GET /healthz HTTP/9.9"), 505),
    "HTTP/9.9, HEAD": Case(first(b"HEAD /healthz HTTP/9.9"), 505, is_head=True),
    "HTTP/11": Case(first(b"GET /healthz HTTP/11")),
    "HTTP/1.10": Case(first(b"GET /healthz HTTP/1.10")),
    "HTTP/1,1": Case(first(b"GET /healthz HTTP/1,1")),
    "http/1.1": Case(first(b"GET /healthz http/1.1")),
    "another protocol": Case(first(b"GET /healthz RTSP/1.0")),
    # The request line
    "two spaces before the target": Case(first(b"GET  /healthz HTTP/1.1")),
    "two spaces behind the target": Case(first(b"GET /healthz  HTTP/1.1")),
    "a tab for a space": Case(first(b"GET\t/healthz HTTP/1.1")),
    "a vertical tab for a space": Case(first(b"GET\x0b/healthz HTTP/1.1")),
    "a space behind the version": Case(first(b"GET /healthz HTTP/1.1 ")),
    "a space before the method": Case(first(b" GET /healthz HTTP/1.1")),
    "a space in the target": Case(first(b"GET /health z HTTP/1.1")),
    "NUL in the target": Case(first(b"GET /h\x00ealthz HTTP/1.1")),
    "a control character in the target": Case(first(b"GET /h\x1bealthz HTTP/1.1")),
    "DEL in the target": Case(first(b"GET /h\x7fealthz HTTP/1.1")),
    "UTF-8 in the target": Case(first(b"GET /h\xc3\xa9 HTTP/1.1")),
    "UTF-8 in the method": Case(first(b"G\xc3\xa9T /healthz HTTP/1.1")),
    "a method that is no token": Case(first(b"G(T /healthz HTTP/1.1")),
    "no method": Case(first(b" /healthz HTTP/1.1")),
    "three empty lines before it": Case(b"\r\n\r\n\r\n" + get(b"Host: a")),
    "an empty line of LF before it": Case(b"\n" + get(b"Host: a")),
    # The target's four forms (RFC 9112 3.2)
    "no form": Case(first(b"GET healthz HTTP/1.1")),
    "a query alone": Case(first(b"GET ?a HTTP/1.1")),
    "a fragment": Case(first(b"GET /healthz#a HTTP/1.1")),
    "authority form for CONNECT": Case(first(b"CONNECT a:80 HTTP/1.1"), 501),
    "authority form for GET": Case(first(b"GET a:80 HTTP/1.1")),
    "asterisk form for GET": Case(first(b"GET * HTTP/1.1")),
    "two asterisks": Case(first(b"OPTIONS ** HTTP/1.1")),
    "another scheme": Case(first(b"GET ftp://a/healthz HTTP/1.1")),
    "a scheme alone": Case(first(b"GET http: HTTP/1.1")),
    "absolute form without an authority": Case(first(b"GET http:///healthz HTTP/1.1")),
    "absolute form with a user": Case(first(b"GET http://me@a/healthz HTTP/1.1")),
    "absolute form with two ports": Case(first(b"GET http://a:1:2/healthz HTTP/1.1")),
    "absolute form with a backslash": Case(first(b"GET http://a\\@b/healthz HTTP/1.1")),
    "absolute form with a fragment": Case(first(b"GET http://a/#b HTTP/1.1")),
    "absolute form without Host": Case(get(first=b"GET http://a/healthz HTTP/1.1")),
    "percent signs that are no UTF-8": Case(first(b"GET /%ff HTTP/1.1"), 400, "bad-target"),
    "percent signs that are no UTF-8, HEAD": Case(first(b"HEAD /%ff HTTP/1.1"), 400, "bad-target", is_head=True),
    "percent signs that are no UTF-8 in a name": Case(first(b"GET /healthz?%ff=1 HTTP/1.1"), 400, "bad-target"),
    "percent signs that are a surrogate": Case(first(b"GET /events?topic=%ed%a0%80 HTTP/1.1"), 400, "bad-target"),
    # Host (RFC 9112 3.2)
    "no Host": Case(get()),
    "no Host in HTTP/1.2": Case(get(first=b"GET /healthz HTTP/1.2")),
    "two Hosts": Case(get(b"Host: a", b"Host: b")),
    "two Hosts that agree": Case(get(b"Host: a", b"host: a")),
    "two Hosts in HTTP/1.0": Case(get(b"Host: a", b"Host: b", first=b"GET /healthz HTTP/1.0")),
    "two Hosts in one": Case(get(b"Host: a, b")),
    "a Host with a space": Case(get(b"Host: a b")),
    "a Host with a user": Case(get(b"Host: me@a")),
    "a Host with a path": Case(get(b"Host: a/b")),
    "a Host with a backslash": Case(get(b"Host: a\\b")),
    "a Host with a query": Case(get(b"Host: a?b")),
    "a Host with a fragment": Case(get(b"Host: a#b")),
    "a Host with quotes": Case(get(b'Host: "a"')),
    "a Host with markup": Case(get(b"Host: <a>")),
    "a Host with a control character": Case(get(b"Host: a\x01b")),
    "a Host beyond ASCII": Case(get(b"Host: \xc3\xa9")),
    "a Host with a port that is a word": Case(get(b"Host: a:http")),
    "a Host with two ports": Case(get(b"Host: a:1:2")),
    "a Host with half a bracket": Case(get(b"Host: [::1")),
    "a Host with a URL": Case(get(b"Host: http://a")),
    # Fields (RFC 9112 5)
    "a space before the colon": Case(get(b"Host : a")),
    "a tab before the colon": Case(get(b"Host: a", b"X\t: b")),
    "a space before the colon of the length": Case(post(b"Content-Length : 1", body=b"1")),
    "a space before the first field": Case(get(b" Host: a")),
    "a tab before the first field": Case(get(b"\tX: y", b"Host: a")),
    "a field in two lines": Case(get(b"Host: a", b"X: b", b" c")),
    "a field in two lines, with a tab": Case(get(b"Host: a", b"X: b", b"\tc")),
    "a coding in two lines": Case(post(b"Transfer-Encoding:", b" chunked", body=b"1\r\n1\r\n0\r\n\r\n")),
    "a space before the end": Case(get(b"Host: a", b" ")),
    "no colon": Case(get(b"Host: a", b"X")),
    "no name": Case(get(b"Host: a", b": x")),
    "a name with a space": Case(get(b"Host: a", b"X Y: x")),
    "a name with NUL": Case(get(b"Host: a", b"X\x00: x")),
    "a name with a bracket": Case(get(b"Host: a", b"X(Y): x")),
    "a name beyond ASCII": Case(get(b"Host: a", b"\xff: x")),
    "NUL in a value": Case(get(b"Host: a", b"X: a\x00b")),
    "CR in a value": Case(get(b"Host: a", b"X: a\rb")),
    "CR before the end of a line": Case(get(b"Host: a", b"X: a\r")),
    "CR for the end of a line": Case(b"GET /healthz HTTP/1.1\rHost: a\r\n\r\n"),
    "LF in a value": Case(get(b"Host: a", b"X: a\nY: b")),
    "LF for the end of the request line": Case(b"GET /healthz HTTP/1.1\nHost: a\r\n\r\n"),
    "LF for the end of the head": Case(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\n"),
    "LF for all ends of lines": Case(b"GET /healthz HTTP/1.1\nHost: a\n\n"),
    "a control character in a value": Case(get(b"Host: a", b"X: a\x08b")),
    "a vertical tab in a value": Case(get(b"Host: a", b"X: a\x0bb")),
    "DEL in a value": Case(get(b"Host: a", b"X: a\x7fb")),
    # Where a body ends (RFC 9112 6)
    "a coding and a length": Case(
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    ),
    "a length and a coding": Case(
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    ),
    "a coding in HTTP/1.0": Case(post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"1.0")),
    "another coding": Case(post(b"Transfer-Encoding: gzip", body=b"0\r\n\r\n"), 501),
    "another coding before chunked": Case(post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "another coding behind chunked": Case(post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 501),
    "the coding identity": Case(post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 501),
    "an empty coding": Case(post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), 501),
    "chunked twice": Case(post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 501),
    "chunked in quotes": Case(post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    "chunked with a parameter": Case(post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"), 501),
    "chunked behind a vertical tab": Case(post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    "chunked behind a no-break space": Case(post(b"Transfer-Encoding: \xa0chunked", body=b"0\r\n\r\n"), 501),
    "a coding with an underscore, and a length": Case(
        post(b"Transfer-Encoding : chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    ),
    **{
        f"the length {value!r}": Case(length(value))
        for value in (
            b"5, 6", b"5, 5", b"5,", b"+5", b"-5", b"5.0", b"0x5", b"five", b"", b" ", b"5 5", b"1e3", b"5_0",
            b"9" * 20, b"9" * 30, "９".encode(), b"5\r\nContent-Length: 6", b"5\r\nContent-Length: 5",
            b"0\r\nContent-Length: 5",
        )
    },
    "a length that is too much": Case(length(b"9" * 18), 413, "limit-exceeded"),
    # Chunks (RFC 9112 7.1)
    **{
        f"the chunks {body[:30]!r}": Case(chunked(body))
        for body in (
            b"zz\r\n", b"-1\r\nx\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n0\r\n\r\n", b"1_0\r\nx\r\n", b" 1\r\nx\r\n",
            b"1 \r\nx\r\n0\r\n\r\n", b"1\t\r\nx\r\n0\r\n\r\n", b"1 ;a\r\x01\nx", b"\r\n\r\n", b";a\r\n\r\n",
            b"f" * 16 + b"\r\nx", b"0" * 16 + b"1\r\nx\r\n0\r\n\r\n", b"1.0\r\nx\r\n", b"1,\r\nx\r\n",
            b"\xef\xbc\x91\r\nx",
            b"5\r\nhelloX\r\n", b"1\r\nab\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n", b"5;a\x00\r\nhello\r\n0\r\n\r\n", b"5;a=\x1b\r\nhello\r\n0\r\n\r\n",
            b"1;" + b"x" * 20_000 + b"\r\n1\r\n0\r\n\r\n", b"1;aaaaaa\r\n1\r\n" * 2500 + b"0\r\n\r\n",
            b"1\r\n1\r\n0\r\nX" + b"x" * 20_000, b"1\r\n1\r\n0\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
            b"1\r\n1\r\n0\r\nbad trailer\r\n\r\n", b"1\r\n1\r\n0\r\nX : y\r\n\r\n",
            b"1\r\n1\r\n0\r\nX: y\r\n z\r\n\r\n",
            b"1\r\n1\r\n0\r\nX: y\n\r\n", b"1\r\n1\r\n0\r\nX: \x00\r\n\r\n", b"1\r\n1\r\n0\r\n\n",
            b"1\r\n1\r\n0\r\n\rX\r\n",
        )
    },
    # Expectations (RFC 9110 10.1.1)
    "another expectation": Case(get(b"Host: a", b"Expect: foo"), 417, "bad-expectation"),
    "another expectation, HEAD": Case(
        first(b"HEAD /healthz HTTP/1.1", b"Expect: foo"), 417, "bad-expectation", is_head=True
    ),
    "another expectation as well": Case(
        get(b"Host: a", b"Expect: 100-continue", b"Expect: foo"), 417, "bad-expectation"
    ),
    "two expectations in one": Case(get(b"Host: a", b"Expect: 100-continue, foo"), 417, "bad-expectation"),
    # Limits
    "a target that is too long": Case(first(b"GET /" + b"x" * 8192 + b" HTTP/1.1"), 414, "limit-exceeded"),
    "a target that is too long, HEAD": Case(
        first(b"HEAD /" + b"x" * 9000 + b" HTTP/1.1"), 414, "limit-exceeded", is_head=True
    ),
    "a target that does not end": Case(b"GET /" + b"x" * 20_000, 414, "limit-exceeded"),
    "a line that does not end": Case(b"x" * 20_000, 414, "limit-exceeded"),
    "a field that is too long": Case(get(b"Host: a", b"X: " + b"x" * 20_000), 431, "limit-exceeded"),
    "a field that does not end": Case(get(b"Host: a", b"X: " + b"x" * 20_000)[:-4], 431, "limit-exceeded"),
    "a head that is too large": Case(
        get(b"Host: a", *(b"X%d: %b" % (n, b"x" * 300) for n in range(60))), 431, "limit-exceeded"
    ),
    "fields that are too many": Case(get(b"Host: a", *(b"X: y" for _ in range(100))), 431, "limit-exceeded"),
    "empty fields that are too many": Case(get(b"Host: a", *(b"X:" for _ in range(5000))), 431, "limit-exceeded"),
}  # fmt: skip


def pieces_of(data: bytes) -> Iterator[bytes]:
    """The data byte by byte, or in as few as it takes not to be too many."""
    step = -(-len(data) // MOST_PIECES)
    yield from (data[at : at + step] for at in range(0, len(data), step))


async def send_whole(wire: Wire, data: bytes) -> None:
    await wire.send(data)


async def send_in_pieces(wire: Wire, data: bytes) -> None:
    wire._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces_of(data):
        await wire.send(piece)
        await trio.lowlevel.checkpoint()


async def send_with_more(wire: Wire, data: bytes) -> None:
    await wire.send(data + BEHIND)


WAYS = [send_whole, send_in_pieces, send_with_more]


async def refused(url: str, case: Case, send: Callable[..., object]) -> Answer:
    """The answer to what is refused, behind which the connection comes to its proper end. All that is sent is taken."""
    with await Wire.open(url) as wire:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, wire, case.data)
            answer = await read_answer(wire, "HEAD" if case.is_head else "GET")
            assert answer.headers["connection"] == "close"
            assert not await wire.receive(), bytes(wire.buffer)
        assert not wire.buffer
    return answer


@pytest.mark.parametrize("send", WAYS)
async def test_what_is_doubtful_is_refused_and_nothing_follows_it(send: Callable[..., object]) -> None:
    wrong = []
    async with harmless() as server:
        refusals = server._runtime.counters.refusals
        for title, case in CASES.items():
            before = refusals.total()
            answer = await refused(server.url, case, send)
            if answer.status != case.status or (not case.is_head and answer.code != case.code):
                wrong.append((title, answer))
            assert refusals.total() == before + 1, title
        await until(lambda: server.connections == 2)
        assert server.hub.statistics().published == 0
    assert not wrong


@pytest.mark.parametrize("send", WAYS)
async def test_the_proxys_vectors_are_refused_by_the_server_too(send: Callable[..., object]) -> None:
    """What must not pass the proxy, whose table is compared with real ones, must not be taken here either."""
    wrong = []
    async with harmless() as server:
        for vector in VECTORS:
            if vector.rule and vector.strict == REFUSED:
                answer = await refused(server.url, Case(vector.data("publish?topic=smuggled")), send)
                if answer.status not in (400, 501, 505):
                    wrong.append((vector.title, answer))
        await until(lambda: server.connections == 2)
        assert server.hub.statistics().published == 0
    assert not wrong


async def test_the_proxys_vectors_that_may_pass_are_requests() -> None:
    passing = [vector for vector in VECTORS if vector.strict == PASSED and vector.rule]
    assert passing
    async with serving() as server:
        for vector in passing:
            answer = await answer_to(server, vector)
            assert (answer.status, answer.code) == (404, "not-found"), vector.title


async def answer_to(server: tricast.Server, vector: Vector) -> Answer:
    with await Wire.open(server.url) as wire:
        await wire.send(vector.data("nothing"))
        return await read_answer(wire)


# What is fine

OK = {
    "origin form": (get(b"Host: a"), 200, True),
    "as many empty lines before it as may be": (b"\r\n\r\n" + get(b"Host: a"), 200, True),
    "an empty Host": (get(b"Host:"), 200, True),
    "a Host with a port": (get(b"Host: a:80"), 200, True),
    "a Host with an empty port": (get(b"Host: a:"), 200, True),
    "a Host that is an address": (get(b"Host: 127.0.0.1:80"), 200, True),
    "a Host that is an address of IPv6": (get(b"Host: [::1]:80"), 200, True),
    "absolute form": (first(b"GET http://a/healthz HTTP/1.1"), 200, True),
    "absolute form with another Host": (first(b"GET http://b:81/healthz HTTP/1.1"), 200, True),
    "absolute form in capitals": (first(b"GET HTTP://A/healthz HTTP/1.1"), 200, True),
    "absolute form with TLS, which is a proxy's business": (first(b"GET https://a/healthz HTTP/1.1"), 200, True),
    "absolute form without a path": (first(b"GET http://a HTTP/1.1"), 200, True),
    "absolute form with nothing but a query": (first(b"GET http://a?b HTTP/1.1"), 200, True),
    "asterisk form": (first(b"OPTIONS * HTTP/1.1"), 204, True),
    "absolute form for the server as a whole": (first(b"OPTIONS http://a HTTP/1.1"), 204, True),
    "HTTP/1.0": (get(first=b"GET /healthz HTTP/1.0"), 200, False),
    "HTTP/1.0 with keep-alive": (get(b"Connection: keep-alive", first=b"GET /healthz HTTP/1.0"), 200, False),
    "HTTP/1.0 with a length": (post(b"Content-Length: 1", body=b"1", version=b"1.0"), 200, False),
    "HTTP/1.0 that expects": (
        post(b"Content-Length: 1", b"Expect: 100-continue", body=b"1", version=b"1.0"), 200, False
    ),
    "HTTP/1.2, which is spoken to as HTTP/1.1": (first(b"GET /healthz HTTP/1.2"), 200, True),
    "a last request": (get(b"Host: a", b"Connection: close"), 200, False),
    "tabs around a value": (get(b"Host:\ta\t", b"X:\t \tb\tc \t"), 200, True),
    "bytes beyond ASCII in a value": (get(b"Host: a", b"X: \xc3\xa9\xff"), 200, True),
    "a length of zero": (length(b"0", b""), 200, True),
    "a length with zeros before it": (length(b"0001", b"1"), 200, True),
    "chunks": (chunked(b"1\r\n1\r\n0\r\n\r\n"), 200, True),
    "chunks in capitals": (post(b"TRANSFER-ENCODING: CHUNKED", body=b"1\r\n1\r\n0\r\n\r\n"), 200, True),
    "chunks with zeros before their sizes": (chunked(b"0001\r\n1\r\n000\r\n\r\n"), 200, True),
    "chunks with extensions": (chunked(b'1;a;b=c;d="e"\r\n1\r\n0;f\r\n\r\n'), 200, True),
    "chunks with a space before an extension": (chunked(b"1 ;a\r\n1\r\n0\t;b\r\n\r\n"), 200, True),
    "chunks with trailers": (chunked(b"1\r\n1\r\n0\r\nX: y\r\nContent-Length: 99\r\n\r\n"), 200, True),
    "what is expected of all": (post(b"Content-Length: 1", b"Expect: 100-Continue", body=b"1"), 200, True),
    "an upgrade that is not known": (get(b"Host: a", b"Connection: upgrade", b"Upgrade: h2c"), 200, True),
}  # fmt: skip


@pytest.mark.parametrize("send", [send_whole, send_in_pieces])
async def test_what_is_fine_is_answered(send: Callable[..., object]) -> None:
    wrong = []
    async with harmless() as server:
        for title, (data, status, stays_open) in OK.items():
            with await Wire.open(server.url) as wire:
                async with trio.open_nursery() as nursery:
                    # The next request tells whether this one was read to its end, and no further.
                    nursery.start_soon(send, wire, data + get(b"Host: a"))
                    answer = await read_answer(wire)
                    if answer.status == 100:
                        answer = await read_answer(wire)
                    closes = answer.headers.get("connection") == "close"
                    follows = bool(wire.buffer) or await wire.receive()
                if (answer.status, closes, follows) != (status, not stays_open, stays_open):
                    wrong.append((title, answer, follows))
                if follows:
                    assert (await read_answer(wire)).json() == {"status": "ok"}, title
    assert not wrong


async def test_the_authority_of_the_target_goes_before_the_host() -> None:
    async with serving() as server:
        for target, host, origin, status in [
            ("http://own.test/publish?topic=news", "other.test", "http://own.test", 200),
            ("http://own.test:81/publish?topic=news", "own.test", "http://own.test", 403),
            ("http://other.test/publish?topic=news", "own.test", "http://own.test", 403),
            ("/publish?topic=news", "own.test", "http://own.test", 200),
        ]:
            with await Wire.open(server.url) as wire:
                await wire.send(head("POST", target, "Content-Length: 1", f"Origin: {origin}", host=host) + b"1")
                assert (await read_answer(wire)).status == status, target


async def test_as_large_as_may_be() -> None:
    async with serving(limits={"head_size": "1KiB", "target_size": "100B", "head_fields": 10}) as server:
        target = "/healthz?" + "x" * 91
        for data, status in [
            (head("GET", target), 200),
            (head("GET", target + "x"), 414),
            (head("GET", "/healthz", *("X: y" for _ in range(9))), 200),
            (head("GET", "/healthz", *("X: y" for _ in range(10))), 431),
            (whole_head_of(1024), 200),
            (whole_head_of(1025), 431),
        ]:
            for send in (send_whole, send_in_pieces):
                with await Wire.open(server.url) as wire:
                    await send(wire, data)
                    assert (await read_answer(wire)).status == status
        refusals = server._runtime.counters.refusals
        assert {key: refusals[key] for key in ("limits.target_size", "limits.head_fields", "limits.head_size")} == {
            "limits.target_size": 2,
            "limits.head_fields": 2,
            "limits.head_size": 2,
        }


def whole_head_of(size: int) -> bytes:
    return head("GET", "/healthz", "X: " + "x" * (size - len(head("GET", "/healthz", "X: "))))


# What people do by mistake


async def test_who_speaks_http_2_is_told_what_to_speak() -> None:
    async with serving() as server:
        answer = await refused(server.url, CASES["the preface of HTTP/2"], send_whole)
        assert "HTTP/2" in answer.json()["detail"]
        assert "HTTP/1.1" in answer.json()["detail"]


async def test_tls_on_a_port_without_is_told_of_once_in_the_log() -> None:
    records = LogCapture()
    async with serving(records=records) as server:
        for _ in range(3):
            answer = await refused(server.url, CASES["the hello of TLS 1.2"], send_whole)
            assert "TLS" in answer.json()["detail"]
        assert server._runtime.counters.refusals["tls-hello"] == 3
    told = [entry for entry in records.entries if "TLS" in entry["event"]]
    assert [(entry["log_level"], entry["peer"]) for entry in told] == [("warning", "127.0.0.1")]


async def test_what_is_wrong_is_told_without_repeating_what_was_sent() -> None:
    async with serving() as server:
        for secret in (b"Authorization : Bearer s3cret", b"Authorization Bearer s3cret", b"Cookie: s3cret\x01"):
            answer = await refused(server.url, Case(get(b"Host: a", secret)), send_whole)
            assert b"s3cret" not in answer.body
        assert b"s3cret" not in (await ask(server.url, "GET s3cret", "/")).body


# What comes back

#: Ends a line, a head and an answer, in as many ways as a URL can write; and what HTTP may not have in a value.
SPLITS = [
    "%0d%0aX-Split:%20yes%0d%0a%0d%0aHTTP/1.1%20200%20OK",
    "%0aX-Split:%20yes",
    "%0dX-Split:%20yes",
    "%00",
    "%E5%98%8A%E5%98%8D",  # whose last bytes are those of LF and CR, eight bits up
]
#: The fields that an answer may have.
KNOWN = {
    "access-control-allow-origin", "access-control-expose-headers", "allow", "cache-control", "connection",
    "content-length", "content-security-policy", "content-type", "date", "etag", "last-event-id", "retry-after",
    "sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-version", "server", "transfer-encoding", "upgrade",
    "vary", "x-accel-buffering", "x-content-type-options",
}  # fmt: skip
TARGETS = [
    "/{}",
    "/events?topic={}",
    "/events?topic=news&last_id={}",
    "/events?topic=news&envelope={}",
    "/ws?topic={}",
    "/publish?topic={}",
    "/publish?topic=news&type={}",
    "/healthz?{}={}",
    "/.tricast/probe/echo?nonce={}&token=sixteen-characters",
    "/.tricast/probe/sse?cc={}&token=sixteen-characters&n=0",
]
#: What a field may have in it all the same, in those that are looked at.
ODD = 'a, \xe9\xff; q="b\\"\t,,=;\'<>(){{}}'
FIELDS = [
    "Origin: https://{}",
    "Last-Event-ID: {}",
    "Idempotency-Key: {}",
    "Content-Type: {}",
    "Accept: {}",
    "If-None-Match: {}",
    "Sec-WebSocket-Protocol: {}",
    "Sec-WebSocket-Key: {}",
    "Sec-WebSocket-Extensions: {}",
    "Connection: {}",
    "Upgrade: {}",
]


async def test_nothing_that_a_client_sends_splits_an_answer() -> None:
    sections = {
        "probe": {"token": "sixteen-characters"},
        "server": {"cors_origins": ["https://app.example"]},
        "poll": {"timeout": "10ms"},
    }
    async with harmless(**sections) as server:
        requests = [
            (method, target.replace("{}", split), ())
            for target in TARGETS
            for split in SPLITS
            for method in ("GET", "POST", "HEAD", "OPTIONS")
        ] + [
            (method, target, (field.format(ODD), *more))
            for field in FIELDS
            for method, target in (
                ("GET", "/events?topic=a&last_id=0-0"),
                ("POST", "/publish?topic=a"),
                ("GET", "/"),
            )
            for more in ((), ("Origin: https://app.example",), WEBSOCKET_HEADERS)
        ]
        for method, target, fields in requests:
            with await Wire.open(server.url) as wire:
                await wire.send(head(method, target, "Content-Length: 0", *fields))
                lines = (await wire.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            assert lines[0].startswith("HTTP/1.1 "), (target, lines)
            assert {line.partition(":")[0].lower() for line in lines[1:-2]} <= KNOWN, (target, lines)
            assert not any(mark in line for line in lines for mark in "\r\n\0"), (target, lines)


@pytest.mark.parametrize("form", ["console", "json"])
async def test_every_line_of_the_log_is_one_line_whatever_is_asked_for(form: str) -> None:
    stream = io.StringIO()
    logger = program_logger(LoggingSection.model_validate({"format": form, "level": "debug"}), stream)
    config = tricast.Config.model_validate({"server": {"port": 0}, "logging": {"access": True}})
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(tricast.serve, config, logger=logger))
            for target in TARGETS:
                for split in SPLITS:
                    await ask(server.url, "HEAD", target.replace("{}", split), "User-Agent: \x9b2J")
            for case in CASES.values():
                await refused(server.url, case, send_whole)
            requests = server._runtime.counters.requests
            answered = sum(count for (label, _), count in requests.items() if label != "malformed")
            nursery.cancel_scope.cancel()
    lines = stream.getvalue().splitlines()
    assert all(map(str.isprintable, lines))
    assert sum(re.search('target[="]', line) is not None for line in lines) == answered > len(TARGETS) * len(SPLITS)
