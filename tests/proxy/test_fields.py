"""Header fields on their way through: what is taken off, what is put on, and what nobody can have taken off."""

from typing import Any

import pytest

from tricast.wire.heads import BadHead
from tricast_proxy.config import HeadersSection
from tricast_proxy.fields import FieldPolicy, Hop, forwards_left
from tricast_proxy.heads import Fields, RequestHead, ResponseHead

HOP = Hop("192.0.2.7", 4711, "https", 8443)
TRUSTED = HOP._replace(peer="127.0.0.1")
HOST = (b"Host", b"a.example:81")
#: A policy that adds nothing by itself.
PLAIN = {"via": "", "x_forwarded_for": "keep", "x_forwarded_proto": "keep", "x_forwarded_host": "keep"}


def policy_of(**headers: Any) -> FieldPolicy:
    return FieldPolicy(HeadersSection.model_validate(headers), lambda: 1234.5678, lambda: "id-1")


def request_of(*fields: tuple[bytes, bytes], method: bytes = b"GET", version: bytes = b"1.1") -> RequestHead:
    return RequestHead(method, b"/", [*fields], version)


def sent(*fields: tuple[bytes, bytes], hop: Hop = HOP, method: bytes = b"GET", **headers: Any) -> Fields:
    """What a server gets of a request to a host; without the Host, if it is as it was."""
    request = request_of(HOST, *fields, method=method)
    written = policy_of(**(PLAIN | headers)).for_server(request, hop, "10.0.0.1:9001")
    return [field for field in written if field != HOST]


def answered(*fields: tuple[bytes, bytes], **headers: Any) -> Fields:
    return policy_of(**(PLAIN | headers)).for_client(ResponseHead(200, b"OK", [*fields], b"1.1"))


def of(fields: Fields, name: bytes) -> list[bytes]:
    return [value for found, value in fields if found.lower() == name]


def test_what_is_for_all_passes_as_it_is() -> None:
    fields = [
        (b"x-A", b"1"),
        (b"X-B", b"caf\xe9"),
        (b"x-a", b"2"),
        (b"Sec-WebSocket-Key", b"k"),
        (b"Last-Event-ID", b"3"),
    ]
    assert sent(*fields) == fields
    assert answered(*fields, (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")) == [
        *fields,
        (b"Set-Cookie", b"a"),
        (b"Set-Cookie", b"b"),
    ]


@pytest.mark.parametrize("strip_nominated", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Proxy-Connection",
        b"Keep-Alive",
        b"TE",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Content-Length",
        b"Proxy-Authorization",
        b"Proxy-Authenticate",
        b"pROXY-aUTHENTICATION-iNFO",
    ],
)
def test_what_is_for_one_connection_does_not_pass(name: bytes, strip_nominated: bool) -> None:
    assert sent((name, b"x"), (b"A", b"b"), strip_nominated=strip_nominated) == [(b"A", b"b")]
    assert answered((name, b"x"), (b"A", b"b"), strip_nominated=strip_nominated) == [(b"A", b"b")]


def test_what_connection_names_does_not_pass() -> None:
    fields = [
        (b"Connection", b"close, X-One"),
        (b"X-one", b"1"),
        (b"connection", b"x-TWO ,, \t"),
        (b"X-Two", b"2"),
        (b"X", b"3"),
    ]
    assert sent(*fields) == answered(*fields) == [(b"X", b"3")]
    kept = [(b"X-one", b"1"), (b"X-Two", b"2"), (b"X", b"3")]
    assert sent(*fields, strip_nominated=False) == answered(*fields, strip_nominated=False) == kept


@pytest.mark.parametrize(
    "name",
    [
        b"Cache-Control",
        b"Authorization",
        b"Cookie",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Real-IP",
        b"Forwarded",
        b"Via",
        b"Last-Event-ID",
        b"Origin",
        b"Sec-WebSocket-Protocol",
        b"Content-Type",
        b"Expect",
        b"Range",
    ],
)
def test_nobody_can_have_taken_off_what_is_for_all(name: bytes) -> None:
    assert sent((b"Connection", name.lower()), (name, b"x")) == [(name, b"x")]


def test_the_host_cannot_be_taken_off() -> None:
    request = request_of((b"Connection", b"host"), HOST)
    assert policy_of(**PLAIN).for_server(request, HOP, "b:1") == [HOST]


def test_what_the_proxy_adds_cannot_be_taken_off() -> None:
    # CVE-2022-31813, CVE-2024-45410
    request = request_of(HOST, (b"Connection", b"X-Forwarded-For, X-Forwarded-Host, Via, X-Request-Id"))
    written = policy_of(request_id="X-Request-Id").for_server(request, HOP, "b:1")
    assert of(written, b"x-forwarded-for") == [b"192.0.2.7"]
    assert of(written, b"x-forwarded-host") == [b"a.example:81"]
    assert of(written, b"via") == [b"1.1 tricast"]
    assert of(written, b"x-request-id") == [b"id-1"]


def test_what_a_client_has_taken_off_is_missing() -> None:
    own = [(b"Connection", b"X-Id, Accept-Encoding"), (b"X-Id", b"mine"), (b"Accept-Encoding", b"br")]
    added = [(b"X-Id", b"id-1"), (b"Accept-Encoding", b"gzip")]
    assert sent(*own, request_id="X-Id", accept_encoding="gzip") == added


@pytest.mark.parametrize(
    ("mode", "hop", "before", "after"),
    [
        ("append", HOP, [], [b"192.0.2.7"]),
        ("append", HOP, [b"198.51.100.1"], [b"198.51.100.1, 192.0.2.7"]),
        ("append", HOP, [b"a", b"b, c"], [b"a, b, c, 192.0.2.7"]),
        ("replace", HOP, [b"198.51.100.1"], [b"192.0.2.7"]),
        ("replace", TRUSTED, [b"198.51.100.1"], [b"198.51.100.1, 127.0.0.1"]),
        ("keep", HOP, [b"a", b"b"], [b"a, b"]),
        ("keep", HOP, [], []),
        ("remove", TRUSTED, [b"a"], []),
    ],
)
def test_who_it_is_for(mode: str, hop: Hop, before: list[bytes], after: list[bytes]) -> None:
    fields = [(b"X-Forwarded-For", value) for value in before]
    assert of(sent(*fields, hop=hop, x_forwarded_for=mode), b"x-forwarded-for") == after


def test_who_it_is_for_with_the_port() -> None:
    assert sent(x_forwarded_for="append", x_forwarded_for_port=True) == [(b"X-Forwarded-For", b"192.0.2.7:4711")]
    written = sent(hop=HOP._replace(peer="2001:db8::1"), x_forwarded_for="append", x_forwarded_for_port=True)
    assert written == [(b"X-Forwarded-For", b"[2001:db8::1]:4711")]


@pytest.mark.parametrize(("mode", "expected"), [("set", []), ("append", [b"others"])])
def test_who_names_no_host_has_none_forwarded(mode: str, expected: list[bytes]) -> None:
    request = request_of((b"X-Forwarded-Host", b"others"), version=b"1.0")
    written = policy_of(**(PLAIN | {"x_forwarded_host": mode})).for_server(request, HOP, "10.0.0.1:9001")
    assert of(written, b"x-forwarded-host") == expected


@pytest.mark.parametrize(
    ("peer", "trusted", "is_trusted"),
    [
        ("127.0.0.1", ("127.0.0.0/8",), True),
        ("192.0.2.7", ("127.0.0.0/8", "192.0.2.0/24"), True),
        ("192.0.2.7", (), False),
        ("2001:db8::1", ("2001:db8::/32",), True),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("::1", ("127.0.0.0/8",), False),
        ("a-name", ("0.0.0.0/0",), False),
    ],
)
def test_whom_the_proxy_believes(peer: str, trusted: tuple[str, ...], is_trusted: bool) -> None:
    written = sent(
        (b"X-Forwarded-Proto", b"spoofed"), hop=HOP._replace(peer=peer), trusted=trusted, x_forwarded_proto="set"
    )
    assert written == [(b"X-Forwarded-Proto", b"spoofed" if is_trusted else b"https")]


@pytest.mark.parametrize("name", ["proto", "host", "port"])
def test_how_it_came(name: str) -> None:
    field = f"X-Forwarded-{name.capitalize()}".encode()
    key, value = f"x_forwarded_{name}", {"proto": b"https", "host": b"a.example:81", "port": b"8443"}[name]
    assert sent(**{key: "set"}) == [(field, value)]
    assert sent((field, b"a"), (field, b"b"), **{key: "set"}) == [(field, value)]
    assert sent((field, b"a"), hop=TRUSTED, **{key: "set"}) == [(field, b"a")]
    assert sent(hop=TRUSTED, **{key: "set"}) == [(field, value)]
    assert sent((field, b"a"), **{key: "keep"}) == [(field, b"a")]
    assert sent((field, b"a"), hop=TRUSTED, **{key: "remove"}) == []


@pytest.mark.parametrize(
    ("hop", "before", "after"),
    [
        (HOP, [], b'for=192.0.2.7;host="a.example:81";proto=https'),
        (HOP, [b"for=a"], b'for=192.0.2.7;host="a.example:81";proto=https'),
        (TRUSTED, [b"for=a", b"for=b"], b'for=a, for=b, for=127.0.0.1;host="a.example:81";proto=https'),
        (HOP._replace(peer="2001:db8::1"), [], b'for="[2001:db8::1]";host="a.example:81";proto=https'),
    ],
)
def test_forwarded(hop: Hop, before: list[bytes], after: bytes) -> None:
    fields = [(b"Forwarded", value) for value in before]
    assert sent(*fields, hop=hop, forwarded=True) == [(b"Forwarded", after)]


def test_forwarded_cannot_be_broken_out_of() -> None:
    request = RequestHead(b"GET", b"/", [(b"Host", b'a";x="\\')], b"1.1")
    written = policy_of(**(PLAIN | {"forwarded": True})).for_server(request, HOP, "b:1")
    assert of(written, b"forwarded") == [b'for=192.0.2.7;host="a;x=";proto=https']


def test_via() -> None:
    assert sent(via="me") == [(b"Via", b"1.1 me")]
    assert sent((b"Via", b"1.0 a"), (b"via", b"1.1 b (c)"), via="me") == [(b"Via", b"1.0 a, 1.1 b (c), 1.1 me")]
    request = request_of(HOST, version=b"1.0")
    assert of(policy_of(via="me").for_server(request, HOP, "b:1"), b"via") == [b"1.0 me"]
    assert answered(via="me") == []
    assert answered((b"Via", b"1.1 a"), via="me", via_response=True) == [(b"Via", b"1.1 a, 1.1 me")]


@pytest.mark.parametrize("value", [b"1.1 me", b"1.0 a, 1.1 ME (x)", b"HTTP/1.1\tme", b"1.1  me"])
def test_what_has_been_here_before_is_refused(value: bytes) -> None:
    with pytest.raises(BadHead) as raised:
        policy_of(via="me").check_request(request_of(HOST, (b"Via", value)))
    assert raised.value.status == 508


def test_what_has_been_elsewhere_is_not_refused() -> None:
    for value in (b"1.1 mei", b"1.1 you (1.1 me)", b"me", b""):
        policy_of(via="me").check_request(request_of(HOST, (b"Via", value)))
    policy_of(via="").check_request(request_of(HOST, (b"Via", b"1.1 ")))


def test_underscores() -> None:
    fields = [(b"X_A", b"1"), (b"X-A", b"2")]
    assert sent(*fields) == fields
    assert sent(*fields, underscores="drop") == [(b"X-A", b"2")]
    with pytest.raises(BadHead) as raised:
        policy_of(underscores="reject").check_request(request_of(HOST, *fields))
    assert raised.value.status == 400
    policy_of(underscores="reject").check_request(request_of(HOST, fields[1]))


def test_names_may_change_their_case() -> None:
    field = (b"x-fOO-b", b"Bar")
    assert sent(field, case="preserve") == [field]
    assert sent(field, case="canonical") == [(b"X-Foo-B", b"Bar")]
    assert answered(field, case="lower") == [(b"x-foo-b", b"Bar")]


def test_fields_of_one_name_may_be_joined() -> None:
    fields = [(b"X", b"1"), (b"Cookie", b"a=b"), (b"x", b"2"), (b"cookie", b"c=d"), (b"Y", b"")]
    assert sent(*fields, join=True) == [(b"X", b"1, 2"), (b"Cookie", b"a=b; c=d"), (b"Y", b"")]
    # RFC 6265 3: what sets cookies cannot be joined.
    cookies = [(b"Set-Cookie", b"a"), (b"set-cookie", b"b")]
    assert answered(*cookies, join=True) == cookies


def test_the_host() -> None:
    request = request_of((b"A", b"b"), (b"host", b"a.example"))
    assert policy_of(**PLAIN).for_server(request, HOP, "b:1") == [(b"Host", b"a.example"), (b"A", b"b")]
    assert policy_of(**PLAIN, host="upstream").for_server(request, HOP, "b:1")[0] == (b"Host", b"b:1")
    # RFC 9112 3.2.2: what the target names goes before the field.
    absolute = RequestHead(b"GET", b"/", [(b"Host", b"a.example")], b"1.1", b"c.example")
    assert policy_of(**PLAIN).for_server(absolute, HOP, "b:1") == [(b"Host", b"c.example")]
    nameless = request_of(version=b"1.0")
    assert policy_of(**PLAIN).for_server(nameless, HOP, "b:1") == [(b"Host", b"b:1")]


@pytest.mark.parametrize(
    ("value", "left", "after"),
    [
        (b"0", 0, b"0"),
        (b"00", 0, b"00"),
        (b"1", 1, b"0"),
        (b"010", 10, b"9"),
        (b"9" * 8000, 10**6, b"999999"),
        (b"-1", None, b"-1"),
        (b"", None, b""),
        (b"a", None, b"a"),
    ],
)
def test_how_often_it_may_be_forwarded(value: bytes, left: int | None, after: bytes) -> None:
    assert forwards_left(value) == left
    for method in (b"TRACE", b"OPTIONS"):
        assert sent((b"Max-Forwards", value), method=method) == [(b"Max-Forwards", after)]
    # RFC 9110 7.6.2: for other methods it says nothing.
    assert sent((b"Max-Forwards", value), method=b"GET") == [(b"Max-Forwards", value)]


def test_what_else_a_request_may_get() -> None:
    assert sent(request_id="X-Id") == [(b"X-Id", b"id-1")]
    assert sent((b"x-id", b"mine"), request_id="X-Id") == [(b"x-id", b"mine")]
    assert sent(request_start="X-Start") == [(b"X-Start", b"1234567")]
    assert sent((b"x-start", b"1"), request_start="X-Start") == [(b"X-Start", b"1234567")]
    assert sent(accept_encoding="gzip") == [(b"Accept-Encoding", b"gzip")]
    assert sent((b"accept-encoding", b"br"), accept_encoding="gzip") == [(b"accept-encoding", b"br")]
    assert sent((b"A", b"b"), request_add={"C": "d"}, request_remove=["a"]) == [(b"C", b"d")]


def test_what_else_an_answer_may_get() -> None:
    fields = [(b"Server", b"origin"), (b"Date", b"now"), (b"server", b"2")]
    assert answered(*fields, server="me") == [(b"Server", b"me"), (b"Date", b"now")]
    assert answered((b"A", b"b"), response_add={"C": "d"}, response_remove=["A"]) == [(b"C", b"d")]


def test_trailers_obey_what_the_fields_obey() -> None:
    head = ResponseHead(200, b"OK", [(b"Connection", b"x-secret")], b"1.1")
    trailers = [(b"X-Secret", b"1"), (b"X-Removed", b"2"), (b"X", b"3")]
    policy = policy_of(response_remove=["x-removed"], response_add={"Y": "4"}, case="lower")
    assert policy.trailers_for_client(head, trailers) == [(b"x", b"3")]
