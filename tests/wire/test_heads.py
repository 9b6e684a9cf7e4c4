"""Heads for a strict reader. What the proxy's other readers let through as well is in ``proxy/test_heads.py``."""

import re

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tricast.wire.heads import (
    TLS_HELLO,
    BadHead,
    HeadLimits,
    HeadReader,
    ParsedRequest,
    Strictness,
    checked_lines,
    parse_request,
)

LIMITS = HeadLimits(100, 200, 400, 5, 2)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


def parsed(head: bytes) -> ParsedRequest:
    return parse_request(head, "strict")


def refusal(data: bytes, sizes: list[int]) -> BadHead | None:
    """Why the data is no head, taken in pieces of these sizes again and again; None where it is one."""
    reader, received, at, number = HeadReader(LIMITS, "strict"), bytearray(), 0, 0
    try:
        while at < len(data):
            size = sizes[number % len(sizes)]
            received += data[at : at + size]
            at, number = at + size, number + 1
            if (head := reader.take(received)) is not None:
                parsed(head)
                return None
    except BadHead as bad:
        return bad
    raise AssertionError("not the end of a head")


def test_a_request() -> None:
    found = parsed(b"POST /a?b HTTP/1.1\r\nHOST: a:80\r\nX-Y:\t1 \r\nx-y: 2\r\n\r\n")
    assert (found.event.method, found.target, found.version, found.authority) == (b"POST", b"/a?b", b"1.1", b"")
    assert found.fields == [(b"host", b"a:80"), (b"x-y", b"1"), (b"x-y", b"2")]
    assert [name for name, _ in found.event.headers.raw_items()] == [b"HOST", b"X-Y", b"x-y"]


def test_a_higher_minor_version() -> None:
    found = parsed(b"GET / HTTP/1.7\r\nHost: a\r\n\r\n")
    assert (found.version, found.event.http_version) == (b"1.1", b"1.7")
    assert parsed(b"GET / HTTP/1.0\r\n\r\n").version == b"1.0"


@pytest.mark.parametrize(
    ("target", "authority", "origin_form"),
    [
        (b"/a", b"", b"/a"),
        (b"//b/a", b"", b"//b/a"),
        (b"http://b:81/a?c", b"b:81", b"/a?c"),
        (b"HTTPS://b", b"b", b"/"),
        (b"http://b?c", b"b", b"/?c"),
    ],
)
def test_the_authority_of_the_absolute_form(target: bytes, authority: bytes, origin_form: bytes) -> None:
    found = parsed(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert (found.authority, found.target) == (authority, origin_form)


@pytest.mark.parametrize("secret", [b"Cookie : s3cret", b"s3cret", b"Cookie: s3cret\x00", b"Content-Length: s3cret"])
def test_what_is_wrong_is_told_without_what_was_sent(secret: bytes) -> None:
    with pytest.raises(BadHead) as caught:
        parsed(GET + secret + b"\r\n\r\n")
    assert "s3cret" not in caught.value.detail
    assert caught.value.detail


def test_the_preface_of_http_2_is_told_what_to_speak() -> None:
    with pytest.raises(BadHead, match="HTTP/2") as caught:
        parsed(b"PRI * HTTP/2.0\r\n\r\n")
    assert caught.value.status == 505


@pytest.mark.parametrize(
    ("begun", "code"),
    [
        (b"\x16", TLS_HELLO),
        (b"\r\n\x16\x03\x01", TLS_HELLO),
        (b"\x80", "bad-http"),
        (b"\0", "bad-http"),
        (b" ", "bad-http"),
        (b"\n", "bad-http"),
        (b"\rG", "bad-http"),
        (b"\x7f", "bad-http"),
    ],
)
def test_what_no_head_begins_with_is_not_waited_for(begun: bytes, code: str) -> None:
    with pytest.raises(BadHead) as caught:
        HeadReader(LIMITS, "strict").take(bytearray(begun))
    assert (caught.value.status, caught.value.code) == (400, code)


def test_what_may_begin_a_head_is_waited_for() -> None:
    for begun in (b"", b"\r", b"\r\n", b"\r\n\r", b"\r\n\r\n", b"G", b"GET / HTTP/1.1\r"):
        assert HeadReader(LIMITS, "strict").take(bytearray(begun)) is None


# As long as may be


def head_of(size: int) -> bytes:
    lines = GET + b"X: %b\r\nY: %b\r\n\r\n"
    rest = size - len(lines) + 4
    return lines % (b"x" * (rest // 2), b"y" * (rest - rest // 2))


@pytest.mark.parametrize(
    ("fits", "too_much", "limit"),
    [
        (head_of(400), head_of(401), "header"),
        (GET + b"X: " + b"x" * 197 + b"\r\n\r\n", GET + b"X: " + b"x" * 198 + b"\r\n\r\n", "header"),
        (GET + b"X:\r\n" * 4 + b"\r\n", GET + b"X:\r\n" * 5 + b"\r\n", "header_count"),
        (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 86), b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 87),
         "request_line"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sizes", [[1], [7, 1], [1000]])
def test_limits(fits: bytes, too_much: bytes, limit: str, sizes: list[int]) -> None:
    assert refusal(fits, sizes) is None
    bad = refusal(too_much, sizes)
    assert bad is not None
    assert (bad.limit, bad.status) == (limit, 414 if limit == "request_line" else 431)


# However it comes

_PARTS = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b"X: y", b"\r\nX: y", b"\x00", b"\x7f", b"\xff", b"Host", b":"]
)
_SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(st.lists(_PARTS, max_size=6).map(b"".join), _SIZES)
@example(b"\nX: y", [7])
def test_splitting_changes_nothing(odd: bytes, sizes: list[int]) -> None:
    data = GET + odd + b"\r\n\r\n" + b"\r\n\r\n"
    whole, split = refusal(data, [len(data)]), refusal(data, sizes)
    assert (whole is None) is (split is None), (whole, split)


@given(st.lists(_PARTS, max_size=6).map(b"".join))
@example(b"a\rX\nb")
def test_nothing_odd_gets_past_the_quick_look(odd: bytes) -> None:
    head = GET + b"X: " + odd + b"\r\n\r\n"
    is_odd = re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n)|\n[ \t]", head) is not None
    if is_odd:
        with pytest.raises(BadHead):
            checked_lines(head, "strict", is_request=True)
    else:
        assert checked_lines(head, "strict", is_request=True) == head


_LINE_PARTS = st.sampled_from(
    [
        *(b"GET", b" ", b"/a", b"*", b"http://b/", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.10", b"Host", b":", b"\t"),
        *(b"\r\n", b"\n", b"\r\n\r\n", b"\r\n ", b"\x0b", b"\x7f", b"\x00", b"\xff", b"Host: a", b"(", b'"', b"a"),
        *(b"Content-Length: 5", b"Transfer-Encoding: Chunked", b"Expect: 100-continue", b"Connection: upgrade"),
        *(b", 5", b""),
    ]
)


@given(
    st.lists(_LINE_PARTS, max_size=4).map(b"".join),
    st.lists(st.lists(_LINE_PARTS, max_size=4).map(b"".join), max_size=4),
    st.sampled_from(("strict", "rfc", "lenient")),
)
@example(b"", [], "strict")
@example(b"", [b"X:\t1 "], "strict")
@example(b"", [b"Content-Length: 5, 5"], "rfc")
@example(b"", [b"\r\nX: y"], "lenient")
def test_what_h11_is_handed_it_would_have_found_itself(odd: bytes, fields: list[bytes], strictness: Strictness) -> None:
    head = b"\r\n".join([odd or b"GET / HTTP/1.1", b"Host: a", *fields, b"", b""])
    try:
        found = parse_request(head, strictness).event
    except BadHead:
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(checked_lines(head, strictness, is_request=True))
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    assert event == found
    assert event.headers.raw_items() == found.headers.raw_items()
    assert parser.trailing_data[0] == b""
