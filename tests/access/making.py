"""What tests of access are made of: keys, tokens, also wrong ones, and an ``Access`` with a clock of its own."""

import base64
import hashlib
import hmac
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.access.access import Access, Credentials
from tricast.access.identity import Identity
from tricast.access.jwks import Fetch
from tricast.access.uses import Uses
from tricast.config import AuthSection

NOW = 1_800_000_000.0
SECRET = "a secret that is long enough for HS256"
URL = "https://keys.example/jwks.json"


class Clock:
    """Unix seconds that stand still until they are changed."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def private_key(algorithm: str, serial: int = 0) -> Any:
    """A key; the same for the same arguments."""
    return _private_key(algorithm, serial)


@cache
def _private_key(algorithm: str, serial: int) -> Any:
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def private_pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwk(algorithm: str, serial: int = 0, **members: Any) -> dict[str, Any]:
    """The public half of a key, as it stands in a JWK set."""
    public = private_key(algorithm, serial).public_key()
    return jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True) | members


def jwk_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def token(
    algorithm: str = "HS256",
    key: Any = SECRET,
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A token of bob's, good for a minute; a claim that is None is left out."""
    said = {"sub": "bob", "exp": NOW + 60, "subscribe": ["users.{sub}.>"], "publish": ["chat.*"]} | claims
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers=headers)


def b64(data: bytes | str) -> str:
    data = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_token(header: bytes | str, payload: bytes | str, secret: bytes | str = SECRET) -> str:
    """A token with any header and payload, which is signed as HS256 has it, whatever the header says."""
    signed = f"{b64(header)}.{b64(payload)}"
    secret = secret.encode() if isinstance(secret, str) else secret
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def auth_of(**keys: Any) -> AuthSection:
    """A configuration with one shared secret, unless it says which keys there are."""
    keys.setdefault("key", [{"algorithm": "HS256", "secret": SECRET}])
    return AuthSection.model_validate(keys)


class Fixture:
    """An ``Access``, its clock and its log.

    Args:
        fetch: how to fetch keys.
        uses: of tickets.
        keys: of the configuration, see ``auth_of``.
    """

    def __init__(self, fetch: Fetch | None = None, *, uses: Uses | None = None, **keys: Any) -> None:
        self.clock = Clock()
        self.log = LogCapture()
        self.auth = auth_of(**keys)
        logger = capturing_logger(self.log)
        self.access = Access(self.auth, clock=self.clock, logger=logger, fetch=fetch, uses=uses)

    async def identify(self, token: str = "", api_key: str = "") -> Identity:
        return await self.access.identify(Credentials(token, api_key))
