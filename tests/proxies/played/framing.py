"""Requests whose framing is wrong, doubtful or at a limit: what the RFCs forbid, and what some programs let through."""

import re
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import trio
from proxies.recorder import Gone
from proxies.scenarios import APART, SOON, Cell, Outcome, add, framing_of, send_apart

_POST = "POST @ HTTP/1.1|Host: test.example|"
_CHUNKED = _POST + "Transfer-Encoding: chunked|"
_GET = "GET @ HTTP/1.1|Host: test.example|"
_INNER = "GET @?inner HTTP/1.1|Host: test.example||"


#: A request that is refused. What comes in chunks may have gone up until then.
REFUSED = r"(4\d\d|50[15]), FIN / (nothing|a request with chunks)"
PASSED = r"200 'origin', stays open / a request with .*"


class Vector(NamedTuple):
    """A request.

    Attributes:
        title: what is odd about it.
        text: with ``|`` for a line's end, ``@`` for the path by which it is recognised, ``^`` for a NUL, and the other
            control characters as they are.
        rule: that it breaks, or that a program has to keep; empty if there is none.
        strict: pattern of the outcomes with a program that keeps to the rule.
    """

    title: str
    text: str
    rule: str = ""
    strict: str = REFUSED

    @property
    def is_streamed(self) -> bool:
        """Whether what is odd is in the chunks, so that the head goes up before anybody sees them."""
        return self.text.startswith(_CHUNKED + "|")

    def data(self, name: str) -> bytes:
        """The request's bytes."""
        values = {"|": "\r\n", "@": f"/{name}", "^": "\0"}
        return re.sub(r"[|@^]", lambda match: values[match[0]], self.text).encode("latin-1")


VECTORS = [
    # None of these breaks a rule.
    Vector("nothing odd", _POST + "Content-Length: 5||whole"),
    Vector("nothing odd, in chunks", _CHUNKED + "|5|whole|0||"),
    Vector("two requests at once", _GET + "|" + _INNER),
    Vector("empty line before the request line", "|" + _GET + "|", "RFC 9112 2.2: it is ignored", PASSED),
    Vector("chunk extension", _CHUNKED + "|5;a=b|whole|0||", "RFC 9112 7.1.1: it is ignored", PASSED),
    Vector("trailer field", _CHUNKED + "|5|whole|0|X-A: b||", "RFC 9112 7.1.2: it may be left out", PASSED),
    Vector("chunk size with leading zeros", _CHUNKED + "|0005|whole|0||"),
    Vector("method of one's own", _GET.replace("GET", "BREW") + "|"),
    Vector("HTTP/1.0", "GET @ HTTP/1.0|Host: test.example||"),
    Vector("HTTP/1.0 without Host", "GET @ HTTP/1.0||"),
    Vector("absolute target", "GET http://test.example@ HTTP/1.1|Host: test.example||"),
    Vector("HTTP/1.2", "GET @ HTTP/1.2|Host: test.example||", "RFC 9110 2.5: it is taken for HTTP/1.1", PASSED),
    # Lengths and transfer codings (RFC 9112 6)
    Vector("length and chunks", _CHUNKED + "Content-Length: 5||0||" + _INNER, "RFC 9112 6.1"),
    Vector("chunks and length, HTTP/1.0", "POST @ HTTP/1.0|Host: a|Content-Length: 5|Transfer-Encoding: chunked||0||",
           "RFC 9112 6.1"),
    Vector("chunks in HTTP/1.0", "POST @ HTTP/1.0|Host: a|Transfer-Encoding: chunked||0||", "RFC 9112 6.1"),
    Vector("two lengths that differ", _POST + "Content-Length: 5|Content-Length: 6||whole!", "RFC 9112 6.3"),
    Vector("two lengths that agree", _POST + "Content-Length: 5|Content-Length: 5||whole", "RFC 9110 8.6"),
    Vector("list of lengths that agree", _POST + "Content-Length: 5, 5||whole", "RFC 9110 8.6"),
    Vector("list of lengths that differ", _POST + "Content-Length: 5, 6||whole!", "RFC 9112 6.3"),
    Vector("length with a plus", _POST + "Content-Length: +5||whole", "RFC 9112 6.3"),
    Vector("length with a minus", _POST + "Content-Length: -5||whole", "RFC 9112 6.3"),
    Vector("length in hexadecimal", _POST + "Content-Length: 0x5||whole", "RFC 9112 6.3"),
    Vector("length with a space in it", _POST + "Content-Length: 1 0||whole-body", "RFC 9112 6.3"),
    Vector("length with an underscore", _POST + "Content-Length: 1_0||whole-body", "RFC 9112 6.3"),
    Vector("empty length", _POST + "Content-Length:||", "RFC 9112 6.3"),
    Vector("length of twenty digits", _POST + "Content-Length: 99999999999999999999||whole", "RFC 9110 8.6"),
    Vector("unknown transfer coding", _POST + "Transfer-Encoding: odd||5|whole|0||", "RFC 9112 6.3"),
    Vector("chunked is not the last coding", _POST + "Transfer-Encoding: chunked, identity||5|whole|0||",
           "RFC 9112 6.3"),
    Vector("chunked behind another coding", _POST + "Transfer-Encoding: gzip, chunked||5|whole|0||", "RFC 9112 6.1"),
    Vector("chunked twice", _POST + "Transfer-Encoding: chunked, chunked||5|whole|0||", "RFC 9112 6.1"),
    Vector("two fields of transfer codings", _CHUNKED + "Transfer-Encoding: identity||5|whole|0||", "RFC 9112 6.3"),
    Vector("chunked with a tab before it", _POST + "Transfer-Encoding:\tchunked||5|whole|0||",
           "RFC 9110 5.5: a tab is white space", PASSED),
    Vector("chunked with a vertical tab", _POST + "Transfer-Encoding: \x0bchunked||5|whole|0||", "RFC 9110 5.5"),
    Vector("chunked in quotes", _POST + 'Transfer-Encoding: "chunked"||5|whole|0||', "RFC 9112 6.1"),
    # Chunks (RFC 9112 7.1)
    Vector("chunk size with a plus", _CHUNKED + "|+5|whole|0||", "RFC 9112 7.1"),
    Vector("chunk size with 0x", _CHUNKED + "|0x5|whole|0||", "RFC 9112 7.1"),
    Vector("chunk size with a space before it", _CHUNKED + "| 5|whole|0||", "RFC 9112 7.1"),
    Vector("chunk size with an underscore", _CHUNKED + "|0_5|whole|0||", "RFC 9112 7.1"),
    Vector("empty chunk size", _CHUNKED + "||whole|0||", "RFC 9112 7.1"),
    Vector("chunk size of seventeen digits", _CHUNKED + "|10000000000000005|whole|0||", "RFC 9112 7.1"),
    Vector("no line end behind a chunk", _CHUNKED + "|5|whole0||", "RFC 9112 7.1"),
    Vector("other bytes behind a chunk", _CHUNKED + "|5|wholeXX0||", "RFC 9112 7.1"),
    Vector("chunk line that ends in LF", _CHUNKED + "|5\nwhole|0||", "RFC 9112 2.2"),
    Vector("chunk data that end in LF", _CHUNKED + "|5|whole\n0||", "RFC 9112 2.2"),
    Vector("chunk extension with LF in it", _CHUNKED + "|5;a\nb|whole|0||", "RFC 9112 2.2"),
    Vector("chunk extension of 20 KB", _CHUNKED + "|5;" + "a" * 20_000 + "|whole|0||", "RFC 9112 7.1.1"),
    # Lines and fields (RFC 9112 2.2, 3 and 5)
    Vector("lines that end in LF", "GET @ HTTP/1.1\nHost: test.example\n\n", "RFC 9112 2.2"),
    Vector("one field that ends in LF", _GET + "X-A: b\nX-C: d||", "RFC 9112 2.2"),
    Vector("CR in a value", _GET + "X-A: b\rX-C: d||", "RFC 9110 5.5"),
    Vector("NUL in a value", _GET + "X-A: b^c||", "RFC 9110 5.5"),
    Vector("control character in a value", _GET + "X-A: b\x01c||", "RFC 9110 5.5"),
    Vector("space before a colon", _GET + "X-A : b||", "RFC 9112 5.1"),
    Vector("space before the length's colon", _POST + "Content-Length : 5||whole", "RFC 9112 5.1"),
    Vector("tab before a colon", _GET + "X-A\t: b||", "RFC 9112 5.1"),
    Vector("folded field", _GET + "X-A: b| c||", "RFC 9112 5.2"),
    Vector("folded coding", _POST + "Transfer-Encoding:| chunked||5|whole|0||", "RFC 9112 5.2"),
    Vector("space before the first field", "GET @ HTTP/1.1| X-A: b|Host: test.example||", "RFC 9112 2.2"),
    Vector("field without a name", _GET + ": b||", "RFC 9112 5"),
    Vector("field without a colon", _GET + "X-A b||", "RFC 9112 5"),
    Vector("name that is no token", _GET + "X(A): b||", "RFC 9110 5.1"),
    Vector("name with NUL", _GET + "X^A: b||", "RFC 9110 5.1"),
    Vector("no Host", "GET @ HTTP/1.1||", "RFC 9112 3.2"),
    Vector("two Hosts", _GET + "Host: other.example||", "RFC 9112 3.2"),
    Vector("two Hosts that agree", _GET + "Host: test.example||", "RFC 9112 3.2"),
    Vector("Host that is none", "GET @ HTTP/1.1|Host: a@b/c||".replace("a@b", "a#b"), "RFC 9112 3.2"),
    Vector("Host with a space", "GET @ HTTP/1.1|Host: a b||", "RFC 9112 3.2"),
    Vector("absolute target and another Host", "GET http://test.example@ HTTP/1.1|Host: other.example||",
           "RFC 9112 3.2.2: the target counts", PASSED),
    Vector("target with a fragment", "GET @#part HTTP/1.1|Host: test.example||", "RFC 9112 3.2"),
    Vector("target with a space", "GET @ x HTTP/1.1|Host: test.example||", "RFC 9112 3"),
    Vector("target with a control character", "GET @\x01 HTTP/1.1|Host: test.example||", "RFC 9112 3.2"),
    Vector("target beyond ASCII", "GET @\xe4 HTTP/1.1|Host: test.example||", "RFC 9112 3.2"),
    Vector("target without a slash", "GET x@ HTTP/1.1|Host: test.example||", "RFC 9112 3.2"),
    Vector("two spaces in the request line", "GET  @ HTTP/1.1|Host: test.example||", "RFC 9112 3"),
    Vector("tab in the request line", "GET\t@ HTTP/1.1|Host: test.example||", "RFC 9112 3"),
    Vector("no version", "GET @||", "RFC 9112 3"),
    Vector("HTTP/2.0", "GET @ HTTP/2.0|Host: test.example||", "RFC 9110 2.5"),
    Vector("HTTP/9.9", "GET @ HTTP/9.9|Host: test.example||", "RFC 9110 2.5"),
    Vector("http/1.1 in small letters", "GET @ http/1.1|Host: test.example||", "RFC 9112 2.3"),
    Vector("HTTP/1.10", "GET @ HTTP/1.10|Host: test.example||", "RFC 9112 2.3"),
    Vector("CONNECT", "CONNECT test.example:80 HTTP/1.1|Host: test.example:80|X-Name: @||", "RFC 9110 9.3.6"),
    Vector("Connection that names Host", _GET + "Connection: Host||", "RFC 9110 7.6.1: Host is for all", PASSED),
    Vector("Connection that names the length", _POST + "Content-Length: 5|Connection: Content-Length||whole",
           "RFC 9110 7.6.1: the length is for all", PASSED),
    # Limits
    Vector("request line of 7 KB", "GET @?" + "a" * 7000 + " HTTP/1.1|Host: test.example||"),
    Vector("request line of 9 KB", "GET @?" + "a" * 9000 + " HTTP/1.1|Host: test.example||"),
    Vector("field of 7 KB", _GET + "X-A: " + "a" * 7000 + "||"),
    Vector("field of 9 KB", _GET + "X-A: " + "a" * 9000 + "||"),
    Vector("two fields of 7 KB", _GET + "".join(f"X-{n}: {'a' * 7000}|" for n in range(2)) + "|"),
    Vector("three fields of 7 KB", _GET + "".join(f"X-{n}: {'a' * 7000}|" for n in range(3)) + "|"),
    Vector("six fields of 7 KB", _GET + "".join(f"X-{n}: {'a' * 7000}|" for n in range(6)) + "|"),
    Vector("50 fields", _GET + "X-A: a|" * 49 + "|"),
    Vector("80 fields", _GET + "X-A: a|" * 79 + "|"),
    Vector("120 fields", _GET + "X-A: a|" * 119 + "|"),
]  # fmt: skip


async def play_vector(cell: Cell, vector: Vector) -> Outcome:
    """What comes for the request, and what of it reaches the origin."""
    client = await cell.connect()
    data = vector.data(cell.name)
    cell.begun = trio.current_time()
    with suppress(Gone):  # it is told as how it ended
        await send_apart(client, data) if vector.is_streamed else await client.send(data)
    await client.wait(lambda: b"\r\n\r\n" in client.data, SOON)
    await client.wait_end(SOON / 2)
    await cell.exchange(APART)
    story = []
    for exchange in cell.origin.of(cell.name):
        inner = "another request" if "?inner" in exchange.request_line else "a request"
        story.append(f"{inner} with {framing_of(exchange)}")
    if not story and cell.origin.saw(cell.name.encode() + b" "):
        story.append("part of a request")
    return Outcome(tuple(cell.told(client)), tuple(story or ["nothing"]))


for one in VECTORS:
    add(
        "framing",
        one.title,
        partial(play_vector, vector=one),
        rule=one.rule,
        strict=one.strict if one.rule else "",
    )
