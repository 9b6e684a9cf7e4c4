"""Tokens: each check with a token on both sides of it, and tokens that are made to be taken for others."""

import json
from typing import Any

import jwt
import pytest
from access.making import (
    NOW,
    SECRET,
    Clock,
    Fixture,
    auth_of,
    b64,
    private_key,
    public_pem,
    raw_token,
    token,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tricast.access.api_keys import PREFIX
from tricast.access.identity import Identity
from tricast.access.keys import Key
from tricast.access.tokens import Tokens
from tricast.errors import LimitExceeded, RemoteProtocolError, Unauthorized

HS256 = '{"alg":"HS256"}'
ISSUER, AUDIENCE = "https://issuer.example", "https://audience.example"
PUBLIC = ("RS256", "ES256", "EdDSA")


async def refusal_of(fixture: Fixture, text: str) -> Unauthorized:
    """Why the token is refused."""
    with pytest.raises(Unauthorized) as caught:
        await fixture.identify(text)
    assert (caught.value.status, caught.value.close_code) == (401, 4401)
    return caught.value


def with_public_keys(*algorithms: str, **keys: Any) -> Fixture:
    entries = [{"algorithm": each, "id": each, "public": public_pem(private_key(each))} for each in algorithms]
    return Fixture(key=entries, **keys)


# What is right


async def test_who_that_is_and_what_they_may() -> None:
    identity = await Fixture().identify(token())
    assert identity == Identity("sub:bob", "bob", ("users.bob.>",), ("chat.*",), NOW + 70)


@pytest.mark.parametrize("algorithm", PUBLIC)
@pytest.mark.parametrize("headers", [{}, {"kid": "own"}])
async def test_public_keys(algorithm: str, headers: dict[str, str]) -> None:
    key = private_key(algorithm)
    fixture = Fixture(key=[{"algorithm": algorithm, "id": "own", "public": public_pem(key)}])
    assert (await fixture.identify(token(algorithm, key, headers))).subject == "bob"


async def test_a_token_that_says_nothing_allows_nothing() -> None:
    fixture = Fixture(require_exp=False)
    assert await fixture.identify(jwt.encode({}, SECRET)) == Identity("", None, (), ())


async def test_a_claim_may_be_one_pattern_or_a_list() -> None:
    identity = await Fixture().identify(token(subscribe="a.>", publish=["b", "c.*"]))
    assert (identity.subscribe, identity.publish) == (("a.>",), ("b", "c.*"))


async def test_one_of_several_keys() -> None:
    secrets = [f"{SECRET} {number}" for number in range(3)]
    keys = [{"algorithm": "HS256", "id": f"k{n}", "secret": secret} for n, secret in enumerate(secrets)]
    fixture = Fixture(key=[*keys, {"algorithm": "HS256", "secret": SECRET}])
    for number, secret in enumerate(secrets):
        assert await fixture.identify(token(key=secret))
        assert await fixture.identify(token(key=secret, headers={"kid": f"k{number}"}))
        refused = await refusal_of(fixture, token(key=secret, headers={"kid": f"k{(number + 1) % 3}"}))
        assert refused.code == "token-signature"
    # A key without an id may have any.
    assert await fixture.identify(token(headers={"kid": "any"}))
    assert (await refusal_of(fixture, token(key=secrets[0], headers={"kid": "any"}))).code == "token-signature"


# Ten kinds of bad tokens


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("nonsense", "token-malformed", "this is no JSON Web Token: Not enough segments"),
        ("abc.def.ghi", "token-malformed", "this is no JSON Web Token: its head is not as RFC 7515 has it"),
        ("a.b.c", "token-malformed", "this is no JSON Web Token: Invalid header padding"),
        (raw_token("[]", "{}"), "token-malformed", "this is no JSON Web Token: Invalid header string: must be a json"),
        (raw_token('{"alg":"HS256","kid":1}', "{}"), "token-malformed", "its head is not as RFC 7515 has it"),
        (raw_token('{"alg":"HS256","crit":["x"],"x":1}', "{}"), "token-malformed", "its head is not as RFC 7515"),
        (raw_token('{"alg":"HS256","b64":false,"crit":["b64"]}', ""), "token-malformed", "this is no JSON Web Token"),
        (raw_token("{}", "{}"), "token-algorithm", "signed with nothing that has a name, which this server does not"),
        (raw_token('{"alg":["HS256"]}', "{}"), "token-algorithm", "signed with nothing that has a name"),
        (raw_token('{"alg":"none"}', "{}"), "token-algorithm", "signed with 'none', which this server does not take"),
        (raw_token('{"alg":"HS512"}', "{}"), "token-algorithm", "signed with 'HS512', which this server does not"),
        (raw_token('{"alg":"hs256"}', "{}"), "token-algorithm", "signed with 'hs256', which this server does not"),
        (raw_token('{"alg":"\\n"}', "{}"), "token-algorithm", "signed with '\\n', which this server"),
        (token(key=SECRET + "!"), "token-signature", "the token was not signed with the key of this server"),
        (token(headers={"kid": "old"}), "token-key-unknown", "this server has no key with the id 'old' for HS256"),
        (token(exp=NOW - 12), "token-expired", "the token expired 12 s ago"),
        (token(nbf=NOW + 30), "token-not-yet", "the token is not good before 30 s from now"),
        (token(iss="elsewhere"), "token-issuer", "the token is of another issuer"),
        (token(aud="elsewhere", iss=ISSUER), "token-audience", "the token is for another audience"),
        (token(exp=None), "token-claims", "the token has no exp, and has to expire"),
        (token(sub=5), "token-claims", "the claims of the token cannot be read: Expected `str`, got `int`"),
    ],
)
async def test_a_bad_token_is_told_which_kind_it_is(text: str, code: str, detail: str) -> None:
    keys = [{"algorithm": "HS256", "id": "now", "secret": SECRET}]
    fixture = Fixture(key=keys, issuer=[ISSUER], audience=[AUDIENCE])
    refused = await refusal_of(fixture, text)
    assert refused.code == code
    assert detail in refused.detail
    # And nothing else: not what would have been right, and nothing of what is secret.
    assert not [untold for untold in (SECRET, ISSUER, AUDIENCE, text) if untold in refused.detail]


# Algorithms that are taken for others


@pytest.mark.parametrize("algorithm", PUBLIC)
@pytest.mark.parametrize("others", [[], [{"algorithm": "HS256", "secret": SECRET}]])
@pytest.mark.parametrize("kid", ["", ',"kid":"own"'])
async def test_a_public_key_is_no_shared_secret(algorithm: str, others: list[Any], kid: str) -> None:
    """CVE-2015-9235: whoever knows the public key signs with it as if it were a secret."""
    pem = public_pem(private_key(algorithm))
    fixture = Fixture(key=[{"algorithm": algorithm, "id": "own", "public": pem}, *others])
    claims = json.dumps({"sub": "bob", "exp": NOW + 60})
    for secret in (pem, pem.strip(), pem.encode() + b"\n"):
        refused = await refusal_of(fixture, raw_token(f'{{"alg":"HS256"{kid}}}', claims, secret))
        assert refused.code in ({"token-signature", "token-key-unknown"} if others else {"token-algorithm"})


@pytest.mark.parametrize("said", PUBLIC)
@pytest.mark.parametrize("signed", PUBLIC)
async def test_a_key_is_used_with_its_own_algorithm_alone(said: str, signed: str) -> None:
    good = token(signed, private_key(signed), {"kid": signed})
    forged = ".".join([b64(json.dumps({"alg": said, "kid": signed})), *good.split(".")[1:]])
    assert (await refusal_of(with_public_keys(*PUBLIC), forged)).code in {"token-signature", "token-key-unknown"}


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "nOnE"])
async def test_an_unsigned_token(alg: str) -> None:
    payload = b64(json.dumps({"exp": NOW + 60}))
    head = b64(json.dumps({"alg": alg}))
    for signature in ("", b64("x")):
        assert (await refusal_of(Fixture(), f"{head}.{payload}.{signature}")).code == "token-algorithm"


async def test_a_token_that_is_not_signed_though_it_says_so() -> None:
    head, payload, _ = token().split(".")
    assert (await refusal_of(Fixture(), f"{head}.{payload}.")).code == "token-signature"


async def test_keys_that_a_token_brings_along_do_not_count() -> None:
    """``jwk``, ``jku`` and ``x5c`` in the head are how others were talked into trusting the attacker's own key."""
    key = private_key("ES256", 1)
    brought = jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True)
    headers = {"jwk": brought, "jku": "https://attacker.example/", "x5c": ["MII"], "kid": "ES256"}
    assert (await refusal_of(with_public_keys("ES256"), token("ES256", key, headers))).code == "token-signature"


# Times


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": NOW - 9.5}, ""),
        ({"exp": NOW - 10}, "token-expired"),
        ({"exp": int(NOW) - 9}, ""),
        ({"exp": -1}, "token-expired"),
        ({"nbf": NOW + 10}, ""),
        ({"nbf": NOW + 10.5}, "token-not-yet"),
        ({"nbf": -1.5}, ""),
        ({"exp": True}, "token-claims"),
        ({"exp": "1900000000"}, "token-claims"),
        ({"exp": [NOW]}, "token-claims"),
        ({"exp": NOW * 1000}, "token-claims"),  # milliseconds
        ({"exp": 10**30}, "token-claims"),
        ({"exp": 10**400}, "token-claims"),
        ({"exp": -(10**400)}, "token-claims"),
        ({"nbf": 10**400}, "token-claims"),
        ({"nbf": False}, "token-claims"),
    ],
)
async def test_times(claims: dict[str, Any], code: str) -> None:
    fixture = Fixture(leeway="10s")
    if code:
        assert (await refusal_of(fixture, token(**claims))).code == code
    else:
        assert await fixture.identify(token(**claims))


@pytest.mark.parametrize(
    "value", ["null", "NaN", "Infinity", "1e999", "-1e999", "9" * 5000, "1.5.5", "{}", '""', "0x9"]
)
async def test_an_exp_that_is_no_number(value: str) -> None:
    assert (await refusal_of(Fixture(), raw_token(HS256, f'{{"exp":{value}}}'))).code == "token-claims"


async def test_a_token_that_does_not_expire() -> None:
    fixture = Fixture(require_exp=False)
    identity = await fixture.identify(token(exp=None))
    assert identity.expires_at is None
    fixture.clock.now = NOW * 2
    assert await fixture.identify(token(exp=None)) == identity


# Whose and for whom


@pytest.mark.parametrize(
    ("configured", "aud", "code"),
    [
        ([], None, ""),
        ([], "here", "token-audience"),
        ([], [], "token-audience"),
        (["here"], None, "token-audience"),
        (["here"], "here", ""),
        (["here"], "Here", "token-audience"),
        (["here"], ["there", "here"], ""),
        (["here"], ["there"], "token-audience"),
        (["here"], [], "token-audience"),
        (["here", "there"], "there", ""),
        (["here"], [["here"]], "token-claims"),
        (["here"], {"here": 1}, "token-claims"),
    ],
)
async def test_audiences(configured: list[str], aud: object, code: str) -> None:
    fixture = Fixture(audience=configured)
    if code:
        assert (await refusal_of(fixture, token(aud=aud))).code == code
    else:
        assert await fixture.identify(token(aud=aud))


@pytest.mark.parametrize(
    ("configured", "iss", "code"),
    [
        ([], None, ""),
        ([], "anybody", ""),
        (["me"], None, "token-issuer"),
        (["me"], "me", ""),
        (["me", "you"], "you", ""),
        (["me"], "me2", "token-issuer"),
    ],
)
async def test_issuers(configured: list[str], iss: object, code: str) -> None:
    fixture = Fixture(issuer=configured)
    if code:
        assert (await refusal_of(fixture, token(iss=iss))).code == code
    else:
        assert await fixture.identify(token(iss=iss))


async def test_an_issuer_that_is_no_text() -> None:
    text = raw_token(HS256, json.dumps({"exp": NOW + 60, "iss": ["me"]}))
    assert (await refusal_of(Fixture(issuer=["me"]), text)).code == "token-claims"


# What it grants


@pytest.mark.parametrize("subject", ["bob", "user:7", "a-b_c", "\u00fc", "{sub}"])
async def test_a_subject_that_is_a_word_of_a_topic(subject: str) -> None:
    granted = ["users.{sub}.>", "log.{sub}", "x-{sub}.*"]
    identity = await Fixture().identify(token(sub=subject, subscribe=granted))
    assert identity.subscribe == (f"users.{subject}.>", f"log.{subject}", f"x-{subject}.*")


@pytest.mark.parametrize("subject", ["*", ">", "a.b", "a.*", "a b", "a*", ".", "bob\n", "\x00", "a\u2028b", None])
async def test_a_subject_that_would_reach_what_is_not_its_own(subject: str | None) -> None:
    fixture = Fixture()
    identity = await fixture.identify(token(sub=subject, subscribe=["users.{sub}.>", "{sub}", "open"]))
    assert identity.subscribe == ("open",)
    assert identity.subject == subject


async def test_an_empty_subject() -> None:
    assert (await refusal_of(Fixture(), token(sub=""))).code == "token-claims"


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "a*", ".", "a b", "a\n", "\x00", "{sub}..a"])
async def test_a_claim_with_what_is_no_pattern(pattern: str) -> None:
    refused = await refusal_of(Fixture(), token(publish=["a", pattern]))
    assert refused.code == "token-claims"
    assert "the token's publish has what is no topic or pattern" in refused.detail
    assert refused.detail.isprintable()


@pytest.mark.parametrize("claim", ["subscribe", "publish"])
@pytest.mark.parametrize("value", [1, True, [1], [None], {"a": 1}, [["a"]]])
async def test_a_claim_that_is_no_list_of_patterns(claim: str, value: object) -> None:
    assert (await refusal_of(Fixture(), token(**{claim: value}))).code == "token-claims"


# Limits


async def test_the_longest_token() -> None:
    text = token(sub="s" * 500)
    fixture = Fixture(max_token=len(text))
    assert await fixture.identify(text)
    with pytest.raises(LimitExceeded) as caught:
        await fixture.identify(text + "a")
    assert (caught.value.reason, caught.value.status) == ("auth.max_token", 431)
    assert caught.value.actual == len(text) + 1


@pytest.mark.parametrize("claim", ["subscribe", "publish"])
async def test_the_most_patterns(claim: str) -> None:
    fixture = Fixture(max_patterns=3)
    assert await fixture.identify(token(**{claim: ["a", "b", "c"]}))
    with pytest.raises(LimitExceeded) as caught:
        await fixture.identify(token(**{claim: ["a", "b", "c", "d"]}))
    assert (caught.value.reason, caught.value.actual) == ("auth.max_patterns", 4)


@pytest.mark.parametrize("nest", ['{"a":' * 100_000, "[" * 100_000, '{"x":' + "[" * 50_000 + "]" * 50_000 + "}"])
async def test_claims_that_are_nested_ever_deeper(nest: str) -> None:
    fixture = Fixture(max_token="1MiB")
    assert (await refusal_of(fixture, raw_token(HS256, nest))).code == "token-claims"
    assert (await refusal_of(fixture, raw_token(nest, "{}"))).code == "token-malformed"


# What is known already


class CountingKey(Key):
    """A key that counts how often it is used."""

    def __init__(self) -> None:
        super().__init__("HS256", "", SECRET.encode())
        self.used = 0

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        self.used += 1
        return super().has_signed(message, signature)


def counting(**keys: Any) -> tuple[Tokens, CountingKey, Clock]:
    clock, key = Clock(), CountingKey()
    return Tokens(auth_of(**keys), [key], None, clock=clock), key, clock


async def test_a_token_costs_one_signature_however_often_it_comes() -> None:
    tokens, key, _ = counting()
    assert {await tokens.identify(token()) for _ in range(10)} == {await tokens.identify(token())}
    assert key.used == 1
    await tokens.identify(token(sub="eve"))
    assert key.used == 2
    tokens.forget()
    await tokens.identify(token())
    assert key.used == 3


async def test_what_is_known_expires() -> None:
    tokens, key, clock = counting(leeway="10s")
    text = token(exp=NOW + 60)
    await tokens.identify(text)
    clock.now = NOW + 69.9
    await tokens.identify(text)
    clock.now = NOW + 70
    with pytest.raises(Unauthorized) as caught:
        await tokens.identify(text)
    assert (caught.value.code, caught.value.detail) == ("token-expired", "the token expired 10 s ago")
    assert key.used == 1


async def test_so_many_are_known() -> None:
    tokens, key, _ = counting(cached_tokens=2)
    first, second, third = (token(sub=name) for name in ("a", "b", "c"))
    for text in (first, second, first, second):
        await tokens.identify(text)
    assert key.used == 2
    await tokens.identify(third)
    await tokens.identify(second)
    assert key.used == 3
    await tokens.identify(first)
    assert key.used == 4


async def test_none_may_be_known() -> None:
    tokens, key, _ = counting(cached_tokens=0)
    for _ in range(3):
        await tokens.identify(token())
    assert key.used == 3


async def test_what_is_bad_is_not_known() -> None:
    tokens, key, clock = counting()
    text = token(nbf=NOW + 60)
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await tokens.identify(text)
    clock.now = NOW + 55
    assert (await tokens.identify(text)).subject == "bob"
    assert key.used == 3


def test_nothing_is_in_a_representation() -> None:
    tokens, key, _ = counting()
    read = tokens.read(token(sub="hunter2"))
    assert "hunter2" not in f"{read!r} {read} {tokens.claims_of(read)!r} {key!r} {key}"
    assert SECRET not in f"{key!r} {key} {tokens!r}"


# Whatever comes: an answer, and never an identity without a signature

GOOD = token()


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
@example("\ud800.\ud800.\ud800")
@example("...")
@example("a.b.c.d.e")
@example(PREFIX)
async def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        await Fixture().identify(text or ".")
    assert caught.value.code.startswith("api-key-" if text.startswith(PREFIX) else "token-")


@settings(deadline=None, max_examples=300)
@given(st.data())
async def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    char = data.draw(st.sampled_from("ABCxyz019-_.=+/ \n\u00fc"))
    cut = data.draw(st.integers(0, 2))
    changed = GOOD[:at] + char + GOOD[at + cut :]
    if changed != GOOD:
        await refusal_of(Fixture(), changed)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_claims = st.dictionaries(
    st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "subscribe", "publish", "x"]),
    _json | st.just(NOW + 60) | st.just("a") | st.lists(st.sampled_from(["a.>", "{sub}", "a..b", "*"]), max_size=4),
)


@settings(deadline=None, max_examples=300)
@given(claims=_claims)
async def test_whatever_an_issuer_signs_has_an_answer(claims: dict[str, object]) -> None:
    fixture = Fixture(require_exp=False, max_patterns=3)
    answer: Identity | RemoteProtocolError
    try:
        answer = await fixture.identify(raw_token(HS256, json.dumps(claims)))
    except RemoteProtocolError as error:
        answer = error
    if isinstance(answer, Identity):
        assert all(isinstance(pattern, str) for pattern in answer.subscribe + answer.publish)
        assert answer.expires_at is None or answer.expires_at > NOW
    else:
        assert answer.detail.isprintable()
        assert answer.status in (401, 431)
