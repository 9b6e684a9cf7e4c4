"""Tokens for tests, and a server's ``[auth]`` that takes them."""

import time
from typing import Any

import jwt

SECRET = "a secret of a test, and long enough for HS256"
API_KEY = "tricast_" + "k" * 43
API_KEY_HASH = "sha256:64916c5059c45749e8bcd07b633b1a50fff2bfd09692aeabc586440375f70ae7"
AUTH: dict[str, Any] = {
    "key": [{"algorithm": "HS256", "id": "main", "secret": SECRET}],
    "issuer": ["https://issuer.test"],
    "audience": ["tricast"],
    "leeway": "0s",
}


def token(*, secret: str = SECRET, algorithm: str = "HS256", kid: str | None = "main", **claims: Any) -> str:
    """A token of ada's, good for a minute, that allows everything but for what is given; None leaves a claim out."""
    good = {
        "sub": "ada",
        "iss": "https://issuer.test",
        "aud": "tricast",
        "exp": time.time() + 60,
        "subscribe": [">"],
        "publish": [">"],
    }
    said = {name: value for name, value in (good | claims).items() if value is not None}
    return jwt.encode(said, secret, algorithm, headers={} if kid is None else {"kid": kid})


def bearer(text: str) -> str:
    """The header that shows a token."""
    return f"Authorization: Bearer {text}"
