"""What proxies say of the client: it counts as far as they are trusted, and no client can say it for them."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.addresses import Networks
from tricast.errors import RemoteProtocolError
from tricast.wire.forwarded import Origin, origin_by_forwarded, origin_by_x_forwarded
from tricast.wire.http1 import Request

NEAR, FAR, CLIENT = "10.0.0.1", "10.0.0.2", "192.0.2.1"
TRUSTED = Networks(("10.0.0.0/8", "unix"))


def request(*fields: tuple[str, str]) -> Request:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    return Request(b"GET", b"/", headers, b"1.1")


def x(*fields: tuple[str, str], peer: str = NEAR) -> Origin:
    return origin_by_x_forwarded(request(*(("x-forwarded-" + name, value) for name, value in fields)), peer, TRUSTED)


def f(*lines: str, peer: str = NEAR) -> Origin:
    return origin_by_forwarded(request(*(("forwarded", line) for line in lines)), peer, TRUSTED)


# X-Forwarded


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", CLIENT),
        ("192.0.2.1:4711", CLIENT),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:DB8::1]:4711", "2001:db8::1"),
        # The rightmost untrusted one: what stands to its left is what that one says of itself.
        ("203.0.113.9, 192.0.2.1", CLIENT),
        ("203.0.113.9, 192.0.2.1, 10.0.0.2", CLIENT),
        ("10.0.0.3, 192.0.2.1, 10.0.0.2", CLIENT),
        ("127.0.0.1,192.0.2.1 ,\t10.0.0.2", CLIENT),
        ("nonsense, \"', 192.0.2.1", CLIENT),
        # All of them trusted: somebody behind the proxies.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # A client that a proxy does not know, or does not tell of.
        ("unknown", NEAR),
        ("192.0.2.1, unknown, 10.0.0.2", FAR),
        ("192.0.2.1, _hidden", NEAR),
        ("", NEAR),
        (" , ", NEAR),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy(value: str, client: str) -> None:
    assert x(("for", value)).client == client


def test_lines_of_the_same_name_are_one_list() -> None:
    assert x(("for", "203.0.113.9"), ("for", "192.0.2.1, 10.0.0.2"), ("for", "10.0.0.3")).client == CLIENT


def test_who_is_not_trusted_says_nothing_that_counts() -> None:
    assert x(("for", "203.0.113.9"), ("proto", "https"), ("host", "a.test"), peer=CLIENT) == (CLIENT, None, None)
    assert x(("for", "no address"), ("proto", "?"), peer=CLIENT) == (CLIENT, None, None)


def test_who_comes_over_a_unix_socket() -> None:
    assert x(("for", CLIENT), peer="unix").client == CLIENT
    nobody = Networks(())
    assert origin_by_x_forwarded(request(("x-forwarded-for", CLIENT)), "unix", nobody).client == "unix"


@pytest.mark.parametrize(
    ("names", "proto", "host", "told"),
    [
        (CLIENT, "https", "a.test", ("https", "a.test")),
        (CLIENT, "HTTPS", "a.test:8443", ("https", "a.test:8443")),
        (CLIENT, "wss", "[2001:db8::1]:80", ("https", "[2001:db8::1]:80")),
        (CLIENT, "ws", None, ("http", None)),
        # Each proxy added its own.
        ("192.0.2.1, 10.0.0.2", "https, http", "a.test, b.test", ("https", "a.test")),
        # A client's own words are further left.
        ("192.0.2.1, 10.0.0.2", "http, https, http", "evil.test, a.test, b.test", ("https", "a.test")),
        ("192.0.2.1", "http, https", "evil.test, a.test", ("https", "a.test")),
        # The first proxy said it, and the others left it.
        ("192.0.2.1, 10.0.0.2, 10.0.0.3", "https", "a.test", ("https", "a.test")),
        # A proxy that tells nothing of the client.
        (None, "https", "a.test", ("https", "a.test")),
        ("unknown", "https", None, ("https", None)),
    ],
)
def test_scheme_and_host_are_what_the_clients_own_proxy_says(
    names: str | None, proto: str, host: str | None, told: tuple[str | None, str | None]
) -> None:
    fields = (("for", names), ("proto", proto), ("host", host))
    assert x(*((name, value) for name, value in fields if value is not None))[1:] == told


@pytest.mark.parametrize(
    "fields",
    [
        [("for", "192.0.2")],
        [("for", "192.0.2.1, a.test")],
        [("for", "bogus, 10.0.0.2")],
        [("for", '"192.0.2.1"')],
        [("for", "192.0.2.1\xe9")],
        [("for", CLIENT), ("proto", "gopher")],
        [("for", CLIENT), ("proto", "https://")],
        [("for", CLIENT), ("host", "a b")],
        [("for", CLIENT), ("host", "a.test/path")],
        [("for", CLIENT), ("host", "user@a.test")],
        [("for", CLIENT), ("host", "a.test:port")],
    ],
)
def test_what_a_trusted_proxy_cannot_have_meant_is_refused(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        x(*fields)
    assert (caught.value.code, caught.value.status) == ("bad-forwarded", 400)
    assert caught.value.detail.isascii()


# Forwarded


@pytest.mark.parametrize(
    ("lines", "origin"),
    [
        (["for=192.0.2.1"], (CLIENT, None, None)),
        (["For=192.0.2.1;Proto=https;Host=a.test"], (CLIENT, "https", "a.test")),
        (['for="192.0.2.1:4711";proto="https";host="a.test:8443"'], (CLIENT, "https", "a.test:8443")),
        (['for="[2001:db8::1]:4711"'], ("2001:db8::1", None, None)),
        (["for=192.0.2.1:4711"], (CLIENT, None, None)),
        (["by=203.0.113.43; for=192.0.2.1 ; secret=x"], (CLIENT, None, None)),
        (['for=192.0.2.1;host="a\\.test"'], (CLIENT, None, "a.test")),
        (["for=203.0.113.9;host=evil.test,for=192.0.2.1;host=a.test, for=10.0.0.2;host=b"], (CLIENT, None, "a.test")),
        (["for=203.0.113.9", "for=192.0.2.1, for=10.0.0.2", "", "for=10.0.0.3"], (CLIENT, None, None)),
        ([", ,for=192.0.2.1,;,"], (CLIENT, None, None)),
        (["for=unknown;proto=https;host=a.test"], (NEAR, "https", "a.test")),
        (["for=192.0.2.1, for=_hidden;proto=https"], (NEAR, "https", None)),
        (["proto=https"], (NEAR, "https", None)),
        (["for=10.0.0.3;proto=https, for=10.0.0.2"], ("10.0.0.3", "https", None)),
        ([""], (NEAR, None, None)),
        ([], (NEAR, None, None)),
    ],
)
def test_the_rfcs_own_field(lines: list[str], origin: tuple[str, str | None, str | None]) -> None:
    assert f(*lines) == origin


@pytest.mark.parametrize(
    "line",
    [
        'for="',
        'for=", for=192.0.2.1',
        'for="x, for="[2001:db8::1]"',
        "for",
        "for=",
        "=x",
        "for=192.0.2.1 proto=https",
        "for=192.0.2.1;for=192.0.2.2",
        "for=192.0.2.1;FOR=192.0.2.2",
        "for =192.0.2.1",
        "for= 192.0.2.1",
        'for="192.0.2.1"x',
        'for="\x00"',
        "for=(comment)",
        "for=2001:db8::1]",
        "for=192.0.2.999",
        "for=192.0.2.1;proto=gopher",
        'for=192.0.2.1;host="a b"',
    ],
)
def test_a_malformed_field_is_refused_as_a_whole(line: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        f(line)
    assert caught.value.code == "bad-forwarded"
    assert f(line, peer=CLIENT) == (CLIENT, None, None), "nobody reads what does not count"


LINES = st.text(st.sampled_from('for=by,;"\\ []:_ab.129\t'), max_size=40)


@given(LINES)
def test_no_client_can_hide_what_the_proxy_has_added(line: str) -> None:
    """The proxy appends to whatever the client has sent: the client is told by that, or the request is refused."""
    for added in ('for=192.0.2.1;by="x"', 'for="192.0.2.1:80"', "for=192.0.2.1"):
        for lines in ([f"{line}, {added}"], [line, added]):
            with suppress(RemoteProtocolError):
                assert f(*lines).client == CLIENT


@given(LINES)
def test_no_client_can_hide_what_the_proxy_has_added_to_the_other_one(line: str) -> None:
    assert x(("for", f"{line}, {CLIENT}")).client == CLIENT
    assert x(("for", line), ("for", CLIENT)).client == CLIENT


def test_the_longest_of_them_are_read_in_no_time() -> None:
    """16 KiB of what is hardest to read: the time must not grow with more than the length."""
    for line in ("for=10.0.0.2," * 1300, "a" * 16000, ",;" * 8000, 'a="' + "\\a" * 8000, "a=" + "[" * 16000):
        began = time.process_time()
        with suppress(RemoteProtocolError):
            f(line)
        assert time.process_time() - began < 1, line[:20]
    assert x(("for", "10.0.0.2," * 1800)).client == FAR
