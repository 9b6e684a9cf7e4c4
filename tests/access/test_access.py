"""What somebody may do, whoever that is; and API keys."""

from functools import partial

import pytest
from access.making import NOW, SECRET, Fixture, token

from tricast.access import api_keys
from tricast.access.access import Credentials
from tricast.access.identity import ANYBODY, Identity
from tricast.errors import Forbidden, RemoteProtocolError, Unauthorized

KEY = "tricast_" + "k" * 43


def entry(name: str, key: str = KEY, **grants: object) -> dict[str, object]:
    return {"name": name, "hash": api_keys.hash_of(key), **grants}


def refusal_of(fixture: Fixture, doing: str, identity: Identity, topic: str) -> RemoteProtocolError:
    """Why it may not; there is no reason where it may."""
    access = fixture.access
    checks = {
        "subscribe": partial(access.check_subscribe, names=[topic]),
        "publish": partial(access.check_publish, topic=topic),
    }
    with pytest.raises((Unauthorized, Forbidden)) as caught:
        checks[doing](identity)
    return caught.value


# Where nobody is asked


async def test_everybody_may_do_everything() -> None:
    fixture = Fixture(key=[])
    assert not fixture.access.is_on
    for shown in ((), ("nonsense",), ("", "nonsense"), (token(),)):
        assert await fixture.identify(*shown) is ANYBODY
    assert fixture.access.anonymous is ANYBODY
    fixture.access.check_subscribe(ANYBODY, [">", "a", "*.b"])
    fixture.access.check_publish(ANYBODY, "a")


# Who shows nothing


async def test_who_shows_nothing_may_do_nothing() -> None:
    fixture = Fixture()
    identity = await fixture.identify()
    assert identity == fixture.access.anonymous
    assert identity.account == ""
    for doing in ("subscribe", "publish"):
        refused = refusal_of(fixture, doing, identity, "news")
        assert (refused.status, refused.code) == (401, "token-missing")
        assert refused.detail == f"not everybody may {doing} to 'news': show a token"
        assert [name for name, _ in refused.headers] == [b"www-authenticate"]
    fixture.access.check_subscribe(identity, [])


async def test_rules_for_everybody() -> None:
    fixture = Fixture(key=[], anonymous_subscribe=["public.>", "news"], anonymous_publish=["inbox.*"])
    assert fixture.access.is_on
    identity = await fixture.identify()
    fixture.access.check_subscribe(identity, ["public.a.b", "public.*", "news"])
    fixture.access.check_publish(identity, "inbox.a")
    for doing, topic in (("subscribe", "public"), ("subscribe", ">"), ("publish", "inbox.a.b"), ("publish", "news")):
        assert refusal_of(fixture, doing, identity, topic).code == "token-missing"
    with pytest.raises(Unauthorized):
        fixture.access.check_subscribe(identity, ["news", "public.a", "other"])
    # Where there are no keys, no token is good.
    with pytest.raises(Unauthorized) as caught:
        await fixture.identify(token())
    assert caught.value.code == "token-algorithm"


async def test_who_shows_a_token_may_do_what_everybody_may() -> None:
    fixture = Fixture(anonymous_subscribe=["public.>"], anonymous_publish=["inbox.*"])
    identity = await fixture.identify(token())
    fixture.access.check_subscribe(identity, ["public.a", "users.bob.a"])
    fixture.access.check_publish(identity, "inbox.a")
    fixture.access.check_publish(identity, "chat.a")


# Who shows something


async def test_what_a_token_does_not_allow() -> None:
    fixture = Fixture()
    identity = await fixture.identify(token(publish=["chat.*", "log"]))
    fixture.access.check_subscribe(identity, ["users.bob.a", "users.bob.>"])
    fixture.access.check_publish(identity, "chat.a")
    refused = refusal_of(fixture, "publish", identity, "users.bob.a")
    assert (refused.status, refused.code, refused.close_code) == (403, "topic-not-allowed", 4403)
    assert refused.detail == (
        "you may not publish to 'users.bob.a': publish grants 'chat.*', 'log', which does not cover it"
    )
    refused = refusal_of(fixture, "subscribe", identity, "users.eve.a")
    assert "subscribe grants 'users.bob.>'" in refused.detail
    assert refusal_of(fixture, "subscribe", identity, ">").status == 403


async def test_long_reasons_are_cut() -> None:
    fixture = Fixture()
    identity = await fixture.identify(token(publish=[f"topic{number}" for number in range(50)]))
    detail = refusal_of(fixture, "publish", identity, "x" * 1000).detail
    assert "'topic4', …, which does not cover it" in detail
    assert len(detail) < 300
    nothing = await fixture.identify(token(publish=None))
    assert "publish grants nothing" in refusal_of(fixture, "publish", nothing, "\u001b[2J").detail
    assert refusal_of(fixture, "publish", nothing, "\u001b[2J").detail.isprintable()


async def test_answers_do_not_get_mixed_up() -> None:
    """They are remembered, by the patterns and the topic."""
    fixture = Fixture()
    for _ in range(2):
        for name in ("a", "b"):
            identity = Identity("", None, (), (f"{name}.*",))
            fixture.access.check_publish(identity, f"{name}.x")
            other = "b" if name == "a" else "a"
            assert refusal_of(fixture, "publish", identity, f"{other}.x").status == 403
            assert refusal_of(fixture, "subscribe", identity, f"{name}.x").status == 403


# API keys


async def test_an_api_key() -> None:
    other = api_keys.make()
    fixture = Fixture(
        key=[], api_key=[entry("ci", publish=["ci.>"], subscribe=["ci.log"]), entry("web", other, publish=["web"])]
    )
    ci = Identity("key:ci", None, ("ci.log",), ("ci.>",))
    assert await fixture.identify(api_key=KEY) == ci
    # Those that are made here can come where a token can.
    assert await fixture.identify(KEY) == ci
    assert (await fixture.identify(api_key=other)).account == "key:web"
    for wrong in (KEY + "k", KEY[:-1], KEY.upper(), "x", "tricast_", "\ud800" * 40, KEY + "\x00", "k" * 10_000):
        with pytest.raises(Unauthorized) as caught:
            await fixture.identify(api_key=wrong)
        assert (caught.value.code, caught.value.status) == ("api-key-unknown", 401)
        assert wrong not in caught.value.detail


async def test_a_key_that_is_replaced() -> None:
    new = api_keys.make()
    fixture = Fixture(key=[], api_key=[entry("ci", publish=["a"]), entry("ci", new, publish=["b"])])
    assert (await fixture.identify(api_key=KEY)).publish == ("a",)
    assert (await fixture.identify(api_key=new)).publish == ("b",)


@pytest.mark.parametrize("weak", ["hunter2", "k" * 31, "x"])
async def test_a_key_that_could_be_guessed_is_none(weak: str) -> None:
    """Its hash is in the configuration, from which it could be undone."""
    fixture = Fixture(key=[], api_key=[entry("ci", weak)])
    with pytest.raises(Unauthorized):
        await fixture.identify(api_key=weak)
    assert await Fixture(key=[], api_key=[entry("ci", "k" * 32)]).identify(api_key="k" * 32)
    long = "k" * 256
    assert await Fixture(key=[], api_key=[entry("ci", long)]).identify(api_key=long)
    with pytest.raises(Unauthorized):
        await Fixture(key=[], api_key=[entry("ci", long)]).identify(api_key=long + "k")


def test_keys_that_are_made() -> None:
    made = {api_keys.make() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("tricast_") and len(key) == 51 and key.isascii() for key in made)
    assert api_keys.hash_of("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


async def test_a_token_counts_before_an_api_key() -> None:
    fixture = Fixture(api_key=[entry("ci", publish=["ci.>"])])
    assert (await fixture.identify(token(), KEY)).account == "sub:bob"
    with pytest.raises(Unauthorized) as caught:
        await fixture.identify(token(exp=NOW - 100), KEY)
    assert caught.value.code == "token-expired"


# What nobody may see


def test_credentials_are_not_in_their_representation() -> None:
    shown = Credentials("hunter2", "hunter3")
    assert "hunter" not in f"{shown!r} {shown}"
    assert repr(Credentials()) == "Credentials(, )"


async def test_nothing_is_logged() -> None:
    fixture = Fixture(api_key=[entry("ci")])
    for shown in ((token(),), (token(key=SECRET + "x"),), ("nonsense",), ("", KEY), ("", "x" * 50), ()):
        try:
            await fixture.identify(*shown)
        except Unauthorized as error:
            assert not [text for text in shown if text and text in f"{error!r}"]  # noqa: PT017 - of some of them
    assert fixture.log.entries == []


# Who was somebody


async def test_who_is_over_may_do_nothing() -> None:
    fixture = Fixture(leeway="0s")
    identity = await fixture.identify(token(exp=NOW + 60))
    for now, is_over in ((NOW + 59, False), (NOW + 60, True)):
        fixture.clock.now = now
        for doing, topic in (("subscribe", "users.bob.a"), ("publish", "chat.a")):
            if is_over:
                assert refusal_of(fixture, doing, identity, topic).code == "token-expired"
            else:
                fixture.access.check_subscribe(identity, ["users.bob.a"])
                fixture.access.check_publish(identity, "chat.a")


# Memory


async def test_names_that_are_too_long_are_not_remembered() -> None:
    fixture = Fixture()
    identity = await fixture.identify(token())
    for size in (200, 300):
        refusal_of(fixture, "publish", identity, "x" * size)
        assert fixture.access._remembering.cache_info().currsize == 2  # of the token's patterns, and of everybody's
