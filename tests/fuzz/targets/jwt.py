"""Invariant: a token is taken only if it was signed with the key of the configuration, in its algorithm, is not over,
has begun, and is for this server by an issuer that is trusted; whoever is taken has valid patterns only; every other
token is refused with a code that is known, and no message holds the token or the secret, or breaks out of its line.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable
from typing import Any

from tricast.access.identity import Identity
from tricast.access.keys import load_keys
from tricast.access.tokens import Tokens
from tricast.config import AuthSection
from tricast.errors import LimitExceeded, Unauthorized
from tricast.event import is_valid_pattern

_SECRET = "fuzzing-is-no-secret-but-this-is-one"
_NOW = 1_000_000
_AUTH = AuthSection.model_validate(
    {"key": [{"algorithm": "HS256", "secret": _SECRET}], "audience": ["us"], "issuer": ["them"], "leeway": "10s"}
)
#: What inputs are made of.
DICTIONARY = (
    *(b'{"alg":"HS256"}\n', b'"alg":"none"', b'"alg":"RS256"', b'"alg":"HS512"', b'"kid":"k"', b'"crit":["b64"]'),
    *(b'"b64":false', b'"exp":1000100', b'"exp":999989', b'"nbf":1000011', b'"iss":"them"', b'"aud":"us"'),
    *(b'"aud":["us"]', b'"sub":"a"', b'"subscribe":["news","u.{sub}.>"]', b'"publish":"news"', b"1e999", b"NaN"),
    *(b"[[[[[[", b"null", b"."),
    b"eyJhbGciOiJub25lIn0",
)
_CODES = frozenset(
    ("malformed", "signature", "expired", "not-yet", "audience", "issuer", "algorithm", "key-unknown", "claims")
)
_RIGHT, _WRONG, _NONE = range(3)


def check(data: bytes) -> None:
    """The first byte says how it is signed: as it is, or as made of a line for the head and the rest for the claims."""
    if not data:
        return
    manner, rest = data[0] % 4, data[1:]
    head, _, claims = rest.partition(b"\n")
    text = rest.decode("latin-1") if manner > _NONE else _token(head, claims, manner)
    identity = _identify(text)
    if identity is not None:
        assert manner == _RIGHT or _is_signed(text), "it was not signed with the key"
        _check_identity(identity, _claims_in(claims) if manner == _RIGHT else None)


def _claims_in(claims: bytes) -> Any:
    """What it says; a claim that nobody asks for is not looked at."""
    return json.loads(claims.decode(errors="replace"))


def _token(head: bytes, claims: bytes, manner: int) -> str:
    signed = b".".join((_encoded(head), _encoded(claims)))
    secret = _SECRET.encode() if manner == _RIGHT else b""
    signature = b"" if manner == _NONE else hmac.digest(secret, signed, hashlib.sha256)
    return b".".join((signed, _encoded(signature))).decode()


def _encoded(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _is_signed(text: str) -> bool:
    """For what was found as it is: nobody else can make one."""
    signed, _, signature = text.encode("latin-1").rpartition(b".")
    return _encoded(hmac.digest(_SECRET.encode(), signed, hashlib.sha256)) == signature.rstrip(b"=")


def _identify(text: str) -> Identity | None:
    tokens = Tokens(_AUTH, load_keys(_AUTH), None, clock=lambda: float(_NOW))
    try:
        return _at_once(tokens.identify(text))
    except Unauthorized as error:
        assert error.code.removeprefix("token-") in _CODES, error.code
        message = error.detail
    except LimitExceeded as error:
        assert error.limit in ("auth.max_token", "auth.max_patterns")
        message = error.detail
    assert _SECRET not in message
    assert len(text) < 40 or text not in message
    assert message.isprintable(), "a message would break out of its line"
    return None


def _at_once(awaitable: Awaitable[Identity]) -> Identity:
    """The result of what has nothing to wait for, as there are no keys to fetch."""
    coroutine: Any = awaitable
    try:
        coroutine.send(None)
    except StopIteration as result:
        identity: Identity = result.value
        return identity
    raise AssertionError("it waits")


def _check_identity(identity: Identity, claims: Any) -> None:
    assert all(map(is_valid_pattern, (*(identity.subscribe or ()), *(identity.publish or ()))))
    if claims is None:
        return
    assert identity.expires_at == claims["exp"] + 10 > _NOW
    assert claims.get("nbf", 0) <= _NOW + 10
    assert claims["iss"] == "them"
    assert "us" in (claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]])
    assert identity.subject == claims.get("sub")
    assert len(identity.subscribe or ()) <= len(claims.get("subscribe", ()))
