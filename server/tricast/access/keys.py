"""The keys that tokens are checked with: where they come from, and that each is used with its own algorithm alone.

A token says in its head which algorithm it is for. It is believed only in choosing among keys that are for that
algorithm already, so that no public key can be taken for a shared secret (RFC 8725 2.1). Knows nothing of claims.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import Algorithm

from tricast.config import MIN_SECRET_BYTES, AuthSection, KeyEntry
from tricast.errors import ConfigError, ConfigProblem

#: The secret in the examples of the documentation: long enough, and known to everybody.
EXAMPLE_SECRET = b"use the output of: openssl rand -base64 32"
#: Algorithms with a public key; those of a JWK set are for these.
PUBLIC_ALGORITHMS = ("RS256", "ES256", "EdDSA")

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

#: RFC 7518 3.3.
_MIN_RSA_BITS = 2048
#: A token that names no key is tried with all of its algorithm.
_MAX_KEYS_OF_SET = 100
_WRONG_TYPE = {
    "RS256": f"an RSA key of {_MIN_RSA_BITS} bits or more",
    "ES256": "an elliptic curve key on P-256",
    "EdDSA": "an Ed25519 key",
}
_WRONG_FOR_ALL = f"expected {', '.join(_WRONG_TYPE.values())}"


class UnusableKey(Exception):
    """A key that cannot be used; says why, without any of it."""


class Key:
    """A key, and the one algorithm that it is used with.

    Args:
        algorithm: its name in the head of a token.
        id: the ``kid`` in the head of a token; empty where the key has none.
        material: a secret, or a public key.

    Raises:
        UnusableKey: it is not for this algorithm, or too weak.
    """

    __slots__ = ("_material", "_verifier", "algorithm", "id")

    def __init__(self, algorithm: str, id: str, material: bytes | PublicKey) -> None:  # noqa: A002
        self.algorithm = algorithm
        self.id = id
        self._verifier: Algorithm = jwt.get_algorithm_by_name(algorithm)
        if isinstance(material, bytes):
            if algorithm in PUBLIC_ALGORITHMS:
                raise UnusableKey(f"expected {_WRONG_TYPE[algorithm]} for {algorithm}")
            self._material: Any = check_secret(material)
        elif not _is_for(algorithm, material):
            raise UnusableKey(f"expected {_WRONG_TYPE.get(algorithm, 'a secret')} for {algorithm}")
        else:
            self._material = material

    def __repr__(self) -> str:
        return f"Key({self.algorithm!r}, {self.id!r})"

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature of the message was made with this key, or its private half."""
        return self._verifier.verify(message, self._material, signature)


def check_secret(secret: bytes) -> bytes:
    """Returns the secret for HS256, if it can be one.

    Raises:
        UnusableKey: it is too short, or known to everybody.
    """
    if secret == EXAMPLE_SECRET:
        raise UnusableKey("this is the example's, which everybody knows: use the output of: openssl rand -base64 32")
    if len(secret) < MIN_SECRET_BYTES:
        raise UnusableKey(f"expected a secret of {MIN_SECRET_BYTES} bytes or more (RFC 7518 3.2), found {len(secret)}")
    try:
        checked: bytes = jwt.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError:
        raise UnusableKey("expected a secret, found a key in PEM, SSH or JWK format: nothing that is public") from None
    return checked


def _is_for(algorithm: str, key: object) -> bool:
    if algorithm == "RS256":
        return isinstance(key, RSAPublicKey | RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS
    if algorithm == "ES256":
        return isinstance(key, EllipticCurvePublicKey | EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    return algorithm == "EdDSA" and isinstance(key, Ed25519PublicKey | Ed25519PrivateKey)


# From the configuration


def load_keys(auth: AuthSection) -> tuple[Key, ...]:
    """The keys of the configuration.

    Raises:
        ConfigError: some of them cannot be used; all of these.
    """
    keys: list[Key] = []
    problems = []
    for number, entry in enumerate(auth.key):
        try:
            keys += keys_of(entry)
        except UnusableKey as error:
            where = "file" if entry.file else "public" if entry.public else "secret"
            problems.append(ConfigProblem("configuration", f"auth.key.{number}.{where}", str(error)))
    if problems:
        raise ConfigError(problems)
    return tuple(keys)


def keys_of(entry: KeyEntry) -> tuple[Key, ...]:
    """The key of an entry; more than one where its file is a JWK set.

    Raises:
        UnusableKey: it cannot be read, or is not for its algorithm.
    """
    if entry.algorithm == "HS256":
        return (Key(entry.algorithm, entry.id, secret_of(entry)),)
    data = read_key_file(entry.file) if entry.file else entry.public.encode()
    if data.lstrip().startswith(b"{"):
        return _keys_of_json(entry, data)
    key = _public_key_of(data)
    return (Key(entry.algorithm, entry.id, key),)


def private_key_of(data: bytes, algorithm: str) -> PrivateKey:
    """The private key in PEM format that a file holds, to make tokens with.

    Raises:
        UnusableKey: there is none, or it is not for the algorithm.
    """
    key = _load_private(data)
    if not _is_for(algorithm, key):
        raise UnusableKey(f"expected {_WRONG_TYPE[algorithm]} for {algorithm}")
    return key


def algorithm_of(data: bytes) -> str:
    """Which algorithm the private key in PEM format that a file holds is for.

    Raises:
        UnusableKey: there is none, or it is for none of them.
    """
    key = _load_private(data)
    for algorithm in PUBLIC_ALGORITHMS:
        if _is_for(algorithm, key):
            return algorithm
    raise UnusableKey(_WRONG_FOR_ALL)


def _load_private(data: bytes) -> PrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it takes a password
        raise UnusableKey("there is no private key in PEM format without a password") from None
    if not isinstance(key, PrivateKey):
        raise UnusableKey(_WRONG_FOR_ALL)
    return key


def read_key_file(file: str) -> bytes:
    """What is in the file.

    Raises:
        UnusableKey: it cannot be read.
    """
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise UnusableKey(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def secret_of(entry: KeyEntry) -> bytes:
    """The secret of an entry for HS256.

    Raises:
        UnusableKey: its file cannot be read, or holds none.
    """
    return check_secret(entry.secret.encode() if entry.secret else secret_from(read_key_file(entry.file)))


def secret_from(data: bytes) -> bytes:
    """The secret that a file holds: without the line's end, which an editor adds."""
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _public_key_of(data: bytes) -> PublicKey:
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            key: object = x509.load_pem_x509_certificate(data).public_key()
        elif b"PRIVATE KEY-----" in data:
            key = load_pem_private_key(data, password=None)
        else:
            key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKey("expected a public key, a private key or a certificate in PEM format, or a JWK set") from None
    if isinstance(key, PrivateKey):
        key = key.public_key()
    if not isinstance(key, PublicKey):
        raise UnusableKey(_WRONG_FOR_ALL)
    return key


def _keys_of_json(entry: KeyEntry, data: bytes) -> tuple[Key, ...]:
    keys = tuple(key for key in keys_of_set(data) if key.algorithm == entry.algorithm and entry.id in ("", key.id))
    if not keys:
        named = f" with the id {entry.id}" if entry.id else ""
        raise UnusableKey(f"the JWK set has no key{named} for {entry.algorithm}")
    return keys


# JWK sets


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def keys_of_set(data: bytes) -> tuple[Key, ...]:
    """The keys of a JWK set (RFC 7517 5), or of one JWK, that are there to check signatures with.

    What is for something else, is not known, too weak or secret is left out, as RFC 7517 5 has it for what is not
    understood.

    Raises:
        UnusableKey: it is no JWK set, or there is no such key in it.
    """
    try:
        try:
            found = msgspec.json.decode(data, type=_Set).keys
        except msgspec.ValidationError:
            found = [msgspec.json.decode(data, type=dict[str, Any])]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise UnusableKey("expected a JWK set in JSON") from None
    if len(found) > _MAX_KEYS_OF_SET:
        raise UnusableKey(f"expected a JWK set of {_MAX_KEYS_OF_SET} keys at most, found {len(found)}")
    keys = tuple(_usable(found))
    if not keys:
        raise UnusableKey(f"there is no key for {', '.join(PUBLIC_ALGORITHMS)} in the JWK set")
    return keys


def _usable(found: Iterable[Mapping[str, Any]]) -> Iterable[Key]:
    for jwk in found:
        operations = jwk.get("key_ops", ["verify"])
        is_for_signatures = jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
        # A private or a shared key that is published is nobody's any more.
        is_secret = "d" in jwk or jwk.get("kty") == "oct"
        if not is_for_signatures or is_secret or jwk.get("alg") not in (None, *PUBLIC_ALGORITHMS):
            continue
        try:
            yield _key_of_jwk(jwk)
        except (jwt.PyJWTError, UnusableKey, ValueError, TypeError, AttributeError, KeyError, UnsupportedAlgorithm):
            # PyJWT's errors hold the key, and it lets through what it meets in a key of the wrong shape.
            continue


def _key_of_jwk(jwk: Mapping[str, Any]) -> Key:
    read = jwt.PyJWK.from_dict(dict(jwk))
    key_id = jwk.get("kid", "")
    if read.algorithm_name not in PUBLIC_ALGORITHMS or not isinstance(key_id, str):
        raise UnusableKey("it is for another algorithm")
    return Key(read.algorithm_name, key_id, read.key)
