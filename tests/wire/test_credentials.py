"""What a request shows to say who is asking, and what of it may be logged."""

from base64 import urlsafe_b64encode
from contextlib import suppress

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.access import api_keys
from tricast.access.access import Credentials
from tricast.access.identity import ANYBODY
from tricast.access.tickets import Tickets
from tricast.access.uses import OwnUses
from tricast.config import AuthSection
from tricast.errors import RemoteProtocolError, Unauthorized
from tricast.wire.credentials import Place, Shown, shown_by
from tricast.wire.http1 import Headers, Request
from tricast.wire.secrecy import without_secrets

OPEN = AuthSection(cookie="token", token_in_query=True, anonymous_subscribe=["news"])
UPGRADE = [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]


def shown(
    *headers: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/", auth: AuthSection = OPEN
) -> Shown:
    fields: Headers = headers
    return shown_by(Request(method, target, fields, b"1.1"), auth)


@pytest.mark.parametrize(
    "value", [b"Bearer a.b.c", b"bearer a.b.c", b"BEARER   a.b.c ", b"Bearer  a.b.c"], ids=lambda value: value.decode()
)
def test_authorization(value: bytes) -> None:
    assert shown((b"authorization", value)) == (Place.AUTHORIZATION, Credentials(token="a.b.c"), "")


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer ", b"bearer  "])
def test_bearer_of_nothing(value: bytes) -> None:
    with pytest.raises(Unauthorized) as caught:
        shown((b"authorization", value), (b"cookie", b"token=x"))
    assert caught.value.code == "token-malformed"


def test_bytes_that_are_no_text_are_no_error_here() -> None:
    assert shown((b"authorization", b"Bearer \xff\x80")).credentials.token == "\xff\x80"


def test_another_scheme_does_not_count() -> None:
    assert shown((b"authorization", b"Basic eDp5")) == (Place.NOWHERE, Credentials(), "")
    assert shown((b"authorization", b"Basic eDp5"), (b"x-api-key", b"k")).place is Place.API_KEY


def test_entries_of_subprotocols() -> None:
    entries = (b"sec-websocket-protocol", b"tricast.v1, tricast.token.a.b.c")
    assert shown(*UPGRADE, entries) == (Place.SUBPROTOCOL, Credentials(token="a.b.c"), "")
    assert shown(entries).place is Place.NOWHERE
    assert shown(*UPGRADE, (b"sec-websocket-protocol", b"tricast.v1, tricast.token")).place is Place.NOWHERE


def test_tickets_are_for_get() -> None:
    assert shown(target=b"/events?ticket=abc") == (Place.TICKET, Credentials(), "abc")
    assert shown(target=b"/events?tick%65t=abc").ticket == "abc"
    for method in (b"POST", b"HEAD"):
        assert shown(method=method, target=b"/events?ticket=abc").place is Place.NOWHERE


def test_a_token_in_the_query_has_to_be_configured() -> None:
    assert shown(target=b"/?access_token=a.b") == (Place.QUERY, Credentials(token="a.b"), "")
    with pytest.raises(Unauthorized) as caught:
        shown(target=b"/?access_token=a.b", auth=AuthSection())
    assert caught.value.code == "token-in-query"
    assert "a.b" not in caught.value.detail


@pytest.mark.parametrize(
    "cookies",
    [
        [b"token=a.b"],
        [b"x=1; token=a.b; y=2"],
        [b"x=1;token=a.b"],
        [b"x=1", b"token=a.b"],
        [b'token="a.b"'],
        [b"token=a.b; token=a.b; token="],
        [b"tokens=no; atoken=no; TOKEN=no; token=a.b; other"],
    ],
)
def test_cookies(cookies: list[bytes]) -> None:
    assert shown(*((b"cookie", value) for value in cookies)) == (Place.COOKIE, Credentials(token="a.b"), "")


def test_a_cookie_counts_only_where_there_is_nothing_else_and_it_has_a_name() -> None:
    cookie = (b"cookie", b"token=a")
    assert shown(cookie, (b"authorization", b"Bearer b")).credentials.token == "b"
    assert shown(cookie, target=b"/?ticket=t").place is Place.TICKET
    assert shown(cookie, auth=AuthSection()).place is Place.NOWHERE
    assert shown((b"cookie", b"token=")).place is Place.NOWHERE


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/", [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")]),
        (b"/?ticket=t", [(b"authorization", b"Bearer a")]),
        (b"/?ticket=t&ticket=u", []),
        (b"/?access_token=t", [(b"x-api-key", b"k")]),
        (b"/", [(b"cookie", b"token=a; token=b")]),
        (b"/", [*UPGRADE, (b"sec-websocket-protocol", b"tricast.token.a, tricast.token.b")]),
    ],
)
def test_more_than_one(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(RemoteProtocolError, match="2 times") as caught:
        shown(*headers, target=target)
    assert (caught.value.code, caught.value.status) == ("credentials-twice", 400)


def test_nothing_of_it_is_in_its_representation() -> None:
    found = [shown((b"authorization", b"Bearer s3cret")), shown(target=b"/?ticket=s3cret")]
    assert "s3cret" not in repr(found)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"cookie", b"x-api-key", b"sec-websocket-protocol", b"upgrade"]),
            st.one_of(
                st.binary(max_size=30),
                st.sampled_from([b"Bearer x", b"bearer\t", b"token=a;token", b"websocket", b"tricast.token."]),
            ),
        ),
        max_size=6,
    ),
    st.sampled_from([b"/", b"/?ticket", b"/?ticket=&access_token=%ff%00x", b"/?access_token=a"]),
)
def test_whatever_is_shown_is_one_thing_or_a_mistake(headers: list[tuple[bytes, bytes]], target: bytes) -> None:
    """There is an answer to everything: one thing that was shown, nothing, or an error for the client."""
    with suppress(RemoteProtocolError):
        found = shown(*headers, (b"connection", b"upgrade"), target=target)
        assert bool(found.ticket) + bool(found.credentials.token) + bool(found.credentials.api_key) <= 1


# What may be logged


def written_by_hand(head: bytes) -> str:
    return f"{urlsafe_b64encode(head).decode().rstrip('=')}.e30.{'s' * 43}"


SECRETS = {
    "token": jwt.encode({"sub": "ada"}, "s" * 32),
    "token with spaces": written_by_hand(b'{ "alg": "HS256" }'),
    "token in lines": written_by_hand(b'{\n"alg": "HS256"\n}'),
    "api key": api_keys.make(),
    "ticket": Tickets(AuthSection(), OwnUses(1), clock=lambda: 0.0).issue(ANYBODY),
}


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        (b"/events?topic=a&ticket=abc&x=1", b"/events?topic=a&ticket=...&x=1"),
        (b"/events?ticket=a&ticket=b", b"/events?ticket=...&ticket=..."),
        (b"/events?tick%65t=abc", b"/events?tick%65t=..."),
        (b"/events?access_token=abc", b"/events?access_token=..."),
        (b"/events?Token=abc", b"/events?Token=..."),
        (b"/events?token", b"/events?token"),
        (b"/ticket?topic=ticket", b"/ticket?topic=ticket"),
        (b"/events", b"/events"),
        (b"/events?", b"/events?"),
    ],
)
def test_targets_in_logs(target: bytes, logged: bytes) -> None:
    assert without_secrets(target) == logged


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        "/events?jwt=X",
        "/events?a=1;token=X&b",
        "/events?topic=X",
        "/X",
        "/a/X/b?c",
        "/events?topic%3DX",
        "/events?a=1&amp;x=X",
    ],
)
def test_what_looks_like_a_secret_is_in_no_log_wherever_it_was_put(secret: str, place: str) -> None:
    for written in (secret, secret.replace(".", "%2E"), secret.replace(".", "%2e")):
        assert without_secrets(place.replace("X", written).encode()) == place.replace("X", "...").encode()


@pytest.mark.parametrize(
    "target",
    [
        b"/events?topic=tricast_news.eyJ.eyes",
        b"/events?topic=honeyJar.a.b",
        b"/events?topic=eyJa.b&c=d.e",
        b"/eyes.on.you",
    ],
)
def test_what_does_not_is(target: bytes) -> None:
    assert without_secrets(target) == target


def test_a_long_target_is_looked_at_once() -> None:
    """Each of these could be where a token begins: looked at from each on, this would take minutes."""
    for part in (b"eyJ", b"tricast_", b"eyJ.", b"%00eyJ.a."):
        target = b"/" + part * 200_000
        assert without_secrets(target).startswith(b"/")


@given(st.lists(st.tuples(st.sampled_from(["ticket", "access_token", "a", "%"]), st.text("xyz%=+?/", max_size=8))))
def test_nothing_that_counts_as_a_ticket_is_logged(pairs: list[tuple[str, str]]) -> None:
    """What is read as a ticket or a token has left nothing in the log."""
    target = b"/e?" + "&".join(f"{name}={value}" for name, value in pairs).encode()
    logged = Request(b"GET", without_secrets(target), (), b"1.1")
    for name in ("ticket", "access_token"):
        assert set(logged.parameters(name)) <= {"..."}
