"""Requests and what they ask for; answers and their headers."""

import json
from http import HTTPStatus

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.errors import LimitExceeded, LogUnavailable, RemoteProtocolError
from tricast.wire.http1 import (
    CLOSE,
    CONTINUE,
    END_OF_HEAD,
    LAST_CHUNK,
    Headers,
    Request,
    Response,
    allow,
    chunk,
    encode_head,
    encode_headers,
    encode_response,
    json_response,
    problem,
    problem_of,
    retry_after,
    split_target,
)


def request(target: bytes = b"/", headers: Headers = (), version: bytes = b"1.1") -> Request:
    return Request(b"GET", target, headers, version)


# The head


def test_the_authority() -> None:
    host = [(b"x", b"y"), (b"host", b"a:80")]
    assert request(headers=host).authority == b"a:80"
    assert Request(b"GET", b"/", host, b"1.1", b"b:81").authority == b"b:81"
    assert request().authority == b""


def test_the_head() -> None:
    found = Request(b"POST", b"/a?b=c", [(b"x", b"1"), (b"y", b"2"), (b"x", b"3")], b"1.1")
    assert (found.method, found.target, found.path, found.query) == ("POST", b"/a?b=c", "/a", (("b", "c"),))
    assert (found.header(b"x"), found.header(b"y"), found.header(b"z")) == (b"1", b"2", None)
    assert found.is_http_11
    assert not request(version=b"1.0").is_http_11


def test_tokens_of_several_lines() -> None:
    headers = [(b"connection", b"Keep-Alive, , UPGRADE"), (b"x", b"y"), (b"connection", b"\tclose ")]
    assert request(headers=headers).tokens(b"connection") == {b"keep-alive", b"upgrade", b"close"}
    assert request().tokens(b"connection") == set()


def test_members_of_several_lines() -> None:
    headers = [(b"x", b" a, B;q=1 ,"), (b"y", b"c"), (b"x", b""), (b"x", b"\td\t,a")]
    assert request(headers=headers).members(b"x") == [b"a", b"B;q=1", b"", b"", b"d", b"a"]
    assert request(headers=headers).members(b"y") == [b"c"]
    assert request(headers=headers).members(b"z") == []
    assert request(headers=headers).tokens(b"x") == {b"a", b"b;q=1", b"d"}


@pytest.mark.parametrize(
    ("headers", "version", "keeps"),
    [
        ([], b"1.1", True),
        ([(b"connection", b"keep-alive")], b"1.1", True),
        ([(b"connection", b"closed")], b"1.1", True),
        ([(b"x-connection", b"close")], b"1.1", True),
        ([(b"connection", b"close")], b"1.1", False),
        ([(b"connection", b"CLOSE")], b"1.1", False),
        ([(b"connection", b"upgrade , close")], b"1.1", False),
        ([(b"connection", b"keep-alive"), (b"connection", b"close")], b"1.1", False),
        ([], b"1.0", False),
        ([(b"connection", b"keep-alive")], b"1.0", False),
    ],
)
def test_who_wants_to_send_another_request(headers: Headers, version: bytes, keeps: bool) -> None:
    assert request(headers=headers, version=version).keeps_alive is keeps


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", ()),
        (b"/events?topic=a&topic=b", "/events", (("topic", "a"), ("topic", "b"))),
        (b"/events?", "/events", ()),
        (b"/events?topic", "/events", (("topic", ""),)),
        (b"/events?topic=", "/events", (("topic", ""),)),
        (b"/events?a=1?b=2", "/events", (("a", "1?b=2"),)),
        (b"/%C3%BC/%2F?%C3%BC=%26+%2B", "/ü//", (("ü", "& +"),)),
        (b"/%", "/%", ()),
        (b"/%zz?a=%zz", "/%zz", (("a", "%zz"),)),
        (b"//double", "//double", ()),
        (b"*", "*", ()),
    ],
)
def test_targets(target: bytes, path: str, query: tuple[tuple[str, str], ...]) -> None:
    assert split_target(target) == (path, query)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (b"", "slash"),
        (b"events", "slash"),
        (b"?a=b", "slash"),
        (b"*?a=b", "slash"),
        (b"ftp://example.org/", "slash"),
        (b"example.org:443", "slash"),
        (b"/%ff", "UTF-8"),
        (b"/%ed%a0%80", "UTF-8"),
        (b"/\xff", "UTF-8"),
        (b"/?a=%ff", "UTF-8"),
        (b"/?%ff=a", "UTF-8"),
        (b"/?a=\xc3\xbc", "UTF-8"),
    ],
)
def test_targets_that_are_none(target: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says) as caught:
        request(target)
    assert (caught.value.status, caught.value.code) == (400, "bad-target")


def test_query_parameters() -> None:
    found = request(b"/?a=1&b=2&a=3&c=")
    assert found.parameters("a") == ["1", "3"]
    assert found.parameters("d") == []
    assert (found.parameter("b"), found.parameter("c"), found.parameter("d")) == ("2", "", None)
    with pytest.raises(RemoteProtocolError, match="a is given 2 times") as caught:
        found.parameter("a")
    assert caught.value.code == "bad-query"


# What is asked for


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], False),
        ([b"*/*"], False),
        ([b"text/*"], False),
        ([b"application/json"], False),
        ([b"text/event-stream"], True),
        ([b"Text/Event-Stream"], True),
        ([b"application/json, text/event-stream"], True),
        ([b"application/json", b"text/event-stream;q=0.1"], True),
        ([b"text/event-stream; charset=utf-8"], True),
        ([b"text/event-stream;q=0"], False),
        ([b"text/event-stream ; Q=0.000"], False),
        ([b"text/event-stream;q = 0.0, */*"], False),
        ([b"text/event-stream;charset=utf-8;q=0."], False),
        ([b"text/event-stream;q=0.001"], True),
        ([b"text/event-stream;q=0, text/event-stream"], True),
        ([b"text/event-streams"], False),
        ([b""], False),
    ],
)
def test_who_wants_an_event_stream(accept: list[bytes], wanted: bool) -> None:
    assert request(headers=[(b"accept", value) for value in accept]).wants_event_stream is wanted


@pytest.mark.parametrize(
    ("headers", "version", "wanted"),
    [
        ([(b"upgrade", b"websocket"), (b"connection", b"Upgrade")], b"1.1", True),
        ([(b"upgrade", b"h2c, WebSocket"), (b"connection", b"keep-alive, upgrade")], b"1.1", True),
        ([(b"upgrade", b"websocket"), (b"connection", b"Upgrade")], b"1.0", False),
        ([(b"upgrade", b"websocket")], b"1.1", False),
        ([(b"upgrade", b"h2c"), (b"connection", b"Upgrade")], b"1.1", False),
        ([(b"connection", b"Upgrade")], b"1.1", False),
        ([], b"1.1", False),
    ],
)
def test_who_wants_a_websocket(headers: Headers, version: bytes, wanted: bool) -> None:
    assert request(headers=headers, version=version).wants_websocket is wanted


# Answers


def test_chunks() -> None:
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"


def parsed(data: bytes) -> h11.Response | h11.InformationalResponse:
    """What a client reads."""
    client = h11.Connection(h11.CLIENT)
    upgrade = [("connection", "upgrade"), ("upgrade", "websocket")]  # without which 101 would be none
    client.send(h11.Request(method="GET", target="/", headers=[("host", "test"), *upgrade]))
    client.receive_data(data)
    event = client.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse), event
    assert client.trailing_data[0] == b""
    return event


@pytest.mark.parametrize("status", list(HTTPStatus))
def test_heads_of_every_status(status: HTTPStatus) -> None:
    found = parsed(encode_head(status.value, encode_headers([(b"x-a", b"b: c"), (b"empty", b"")]), CLOSE, END_OF_HEAD))
    assert (found.status_code, bytes(found.reason).decode()) == (status, status.phrase)
    assert list(found.headers) == [(b"x-a", b"b: c"), (b"empty", b""), (b"connection", b"close")]
    assert bytes(found.http_version) == b"1.1"


def test_a_head_without_headers() -> None:
    assert encode_head(200, END_OF_HEAD) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert encode_headers(()) == b""
    assert parsed(CONTINUE).status_code == 100


@given(
    st.lists(
        st.tuples(
            st.from_regex(rb"x-[a-z0-9]{1,9}", fullmatch=True),
            st.from_regex(rb"[!-~\x80-\xff]([ -~\t]{0,20}[!-~])?", fullmatch=True),
        ),
        max_size=10,
    )
)
def test_headers_are_read_as_they_were_written(headers: Headers) -> None:
    head = encode_head(200, encode_headers(headers), b"content-length: 0\r\n", END_OF_HEAD)
    assert list(parsed(head).headers) == [*headers, (b"content-length", b"0")]


@pytest.mark.parametrize("odd", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\r\n\r\nb", b"\r\n", b"\n", b"\0", b"a\r\n b"])
def test_headers_that_would_be_more_than_one_line_are_no_headers(odd: bytes) -> None:
    for header in ((b"x", odd), (odd, b"x")):
        with pytest.raises(ValueError, match="more than one line"):
            encode_headers([(b"a", b"b"), header, (b"c", b"d")])


def test_a_json_answer() -> None:
    found = json_response(200, {"id": "1-0"}, [(b"x", b"y")])
    assert (found.status, found.closes) == (200, False)
    assert list(found.headers) == [(b"content-type", b"application/json"), (b"x", b"y")]
    assert found.body == b'{"id":"1-0"}\n'


def test_a_problem() -> None:
    found = problem(404, 'no "such" page', code="not-found", headers=[(b"x", b"y")], closes=True)
    assert dict(found.headers) == {
        b"content-type": b"application/problem+json",
        b"cache-control": b"no-store",
        b"x": b"y",
    }
    assert (found.status, found.closes) == (404, True)
    assert json.loads(found.body) == {
        "type": "urn:tricast:not-found",
        "title": "Not Found",
        "status": 404,
        "detail": 'no "such" page',
    }


def test_the_problem_of_a_mistake() -> None:
    found = problem_of(
        RemoteProtocolError("why", code="no-method", status=405, headers=[allow(["GET", "HEAD"])], closes=True)
    )
    assert (found.status, found.closes) == (405, True)
    assert dict(found.headers)[b"allow"] == b"GET, HEAD"
    assert json.loads(found.body)["detail"] == "why"


@pytest.mark.parametrize(("actual", "says"), [(11, "found 11"), (None, "found more")])
def test_the_problem_of_a_limit(actual: int | None, says: str) -> None:
    found = problem_of(LimitExceeded("publish.max_body", 10, actual))
    assert found.status == 413
    assert json.loads(found.body)["detail"] == f"publish.max_body allows 10, {says}"


def test_the_problem_of_what_cannot_be_done_now() -> None:
    found = problem_of(LogUnavailable("gone fishing"))
    assert (found.status, dict(found.headers)[b"retry-after"]) == (503, b"5")
    assert json.loads(found.body)["type"] == "urn:tricast:log-unavailable"
    assert "gone fishing" in json.loads(found.body)["detail"]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, b"1"), (0.2, b"1"), (1, b"1"), (1.0001, b"2"), (2.3, b"3"), (60.0, b"60")]
)
def test_retry_after_is_rounded_up(seconds: float, expected: bytes) -> None:
    assert retry_after(seconds) == (b"retry-after", expected)


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("has_body", [False, True])
def test_a_whole_answer(*, closes: bool, has_body: bool) -> None:
    found = encode_response(Response(404, ((b"x-a", b"b"),), b"gone", closes), has_body=has_body)
    head = b"HTTP/1.1 404 Not Found\r\nx-a: b\r\ncontent-length: 4\r\n%b\r\n" % (b"connection: close\r\n" * closes)
    assert found == head + b"gone" * has_body
