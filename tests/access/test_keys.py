"""Keys: from where they are read, and what is not taken for one."""

import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from access.making import SECRET, auth_of, jwk, jwk_set, private_key, private_pem, public_pem, token
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from tricast.access.keys import (
    Key,
    UnusableKey,
    algorithm_of,
    keys_of,
    keys_of_set,
    load_keys,
    private_key_of,
)
from tricast.config import KeyEntry
from tricast.errors import ConfigError

PUBLIC = ("RS256", "ES256", "EdDSA")
ROOT = Path(__file__).parents[2]


def has_signed(key: Key, text: str) -> bool:
    signed, _, signature = text.rpartition(".")
    return key.has_signed(signed.encode(), jwt.utils.base64url_decode(signature))


def entry(algorithm: str, **members: str) -> KeyEntry:
    return KeyEntry.model_validate({"algorithm": algorithm, **members})


# Secrets


@pytest.mark.parametrize("secret", ["x" * 32, "\u00fc" * 16, SECRET * 10])
def test_a_secret_that_is_long_enough(secret: str) -> None:
    (key,) = keys_of(entry("HS256", secret=secret))
    assert has_signed(key, token(key=secret))
    assert not has_signed(key, token(key=secret + "x"))


@pytest.mark.parametrize("secret", ["x" * 31, "\u00fc" * 15, "x"])
def test_a_secret_that_is_too_short(secret: str) -> None:
    with pytest.raises(UnusableKey, match=r"^expected a secret of 32 bytes or more .* found") as caught:
        keys_of(entry("HS256", secret=secret))
    assert secret * 2 not in str(caught.value)


@pytest.mark.parametrize("file", ["README.md", "config/server.toml"])
def test_the_secret_of_the_examples_is_none(file: str) -> None:
    (secret,) = re.findall(r'(?m)^#?secret = "(.*)"$', (ROOT / file).read_text())
    with pytest.raises(UnusableKey, match="which everybody knows: use the output of: openssl rand"):
        keys_of(entry("HS256", secret=secret))


@pytest.mark.parametrize("algorithm", PUBLIC)
def test_what_is_public_is_no_secret(algorithm: str) -> None:
    public = private_key(algorithm).public_key()
    for text in (public_pem(private_key(algorithm)), json.dumps(jwk(algorithm)), private_pem(private_key(algorithm))):
        with pytest.raises(UnusableKey, match="nothing that is public"):
            keys_of(entry("HS256", secret=text))
    with pytest.raises(UnusableKey, match="expected a secret for HS256"):
        Key("HS256", "", public)
    with pytest.raises(UnusableKey, match=f"for {algorithm}"):
        Key(algorithm, "", SECRET.encode())


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_in_a_file(tmp_path: Path, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET.encode() + end.encode())
    (key,) = keys_of(entry("HS256", file=str(file)))
    assert has_signed(key, token())


# Public keys


@pytest.mark.parametrize("algorithm", PUBLIC)
def test_a_public_key_in_each_format(tmp_path: Path, algorithm: str) -> None:
    key = private_key(algorithm)
    good, bad = (token(algorithm, private_key(algorithm, serial)) for serial in (0, 1))
    texts = [public_pem(key), private_pem(key), json.dumps(jwk(algorithm)), jwk_set(jwk(algorithm)).decode()]
    for number, text in enumerate(texts):
        file = tmp_path / str(number)
        file.write_text(text)
        for each in (entry(algorithm, public=text), entry(algorithm, file=str(file))):
            (read,) = keys_of(each)
            assert read.algorithm == algorithm
            assert has_signed(read, good)
            assert not has_signed(read, bad)


def test_a_certificate(tmp_path: Path) -> None:
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("tokens.example")
    (read,) = keys_of(entry("ES256", public=issued.cert_chain_pems[0].bytes().decode()))
    assert has_signed(read, token("ES256", private_key_of(issued.private_key_pem.bytes(), "ES256")))


@pytest.mark.parametrize("algorithm", PUBLIC)
@pytest.mark.parametrize("other", PUBLIC)
def test_a_key_for_another_algorithm(algorithm: str, other: str) -> None:
    if algorithm == other:
        return
    for text in (public_pem(private_key(other)), private_pem(private_key(other)), json.dumps(jwk(other))):
        with pytest.raises(UnusableKey, match=f"for {algorithm}"):
            keys_of(entry(algorithm, public=text))


def _pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        ("RS256", _pem(rsa.generate_private_key(65537, 1024))),
        ("ES256", _pem(ec.generate_private_key(ec.SECP384R1()))),
        ("ES256", _pem(ec.generate_private_key(ec.SECP256K1()))),
        ("EdDSA", _pem(ed448.Ed448PrivateKey.generate())),
        ("RS256", _pem(dsa.generate_private_key(1024))),
        ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
        ("RS256", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("RS256", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("RS256", "ssh-rsa AAAA"),
        ("RS256", "{"),
        ("RS256", "{}"),
        ("RS256", '{"keys":[]}'),
        ("RS256", '{"keys":5}'),
        ("RS256", "nonsense"),
        ("RS256", "\x00"),
    ],
)
def test_what_is_no_key_for_it(algorithm: str, text: str) -> None:
    with pytest.raises(UnusableKey) as caught:
        keys_of(entry(algorithm, public=text))
    assert text not in str(caught.value)


def test_a_key_with_a_password(tmp_path: Path) -> None:
    closed = private_key("ES256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    with pytest.raises(UnusableKey):
        keys_of(entry("ES256", public=closed.decode()))
    with pytest.raises(UnusableKey, match="without a password"):
        private_key_of(closed, "ES256")


def test_a_key_of_a_set_by_its_id(tmp_path: Path) -> None:
    text = jwk_set(jwk("ES256", 0, kid="a"), jwk("ES256", 1, kid="b"), jwk("RS256", kid="c")).decode()
    assert [key.id for key in keys_of(entry("ES256", public=text))] == ["a", "b"]
    assert [key.id for key in keys_of(entry("ES256", public=text, id="b"))] == ["b"]
    with pytest.raises(UnusableKey, match="no key with the id c for ES256"):
        keys_of(entry("ES256", public=text, id="c"))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    auth = auth_of(
        key=[
            {"algorithm": "HS256", "secret": "hunter2"},
            {"algorithm": "HS256", "secret": SECRET},
            {"algorithm": "RS256", "file": str(tmp_path / "none")},
            {"algorithm": "ES256", "file": "a\x00b"},
            {"algorithm": "EdDSA", "public": "hunter2"},
        ]
    )
    with pytest.raises(ConfigError) as caught:
        load_keys(auth)
    problems = caught.value.problems
    assert [problem.key for problem in problems] == [
        "auth.key.0.secret",
        "auth.key.2.file",
        "auth.key.3.file",
        "auth.key.4.public",
    ]
    assert problems[1].message == f"{tmp_path / 'none'}: No such file or directory"
    assert "hunter2" not in str(caught.value)


def test_a_private_key_to_sign_with() -> None:
    for algorithm in PUBLIC:
        pem = private_pem(private_key(algorithm)).encode()
        assert algorithm_of(pem) == algorithm
        assert private_key_of(pem, algorithm)
        with pytest.raises(UnusableKey):
            private_key_of(public_pem(private_key(algorithm)).encode(), algorithm)
    with pytest.raises(UnusableKey, match="expected an elliptic curve key on P-256 for ES256"):
        private_key_of(private_pem(private_key("RS256")).encode(), "ES256")
    weak = private_pem(rsa.generate_private_key(65537, 1024)).encode()
    with pytest.raises(UnusableKey):
        algorithm_of(weak)
    with pytest.raises(UnusableKey):
        algorithm_of(private_pem(ed448.Ed448PrivateKey.generate()).encode())


# JWK sets


def test_what_in_a_set_is_no_key_to_check_signatures_with() -> None:
    private = jwt.get_algorithm_by_name("ES256").to_jwk(private_key("ES256"), as_dict=True) | {"key_ops": ["verify"]}
    assert "d" in private
    weak = _weak_jwk()
    passed_over = [
        jwk("ES256", kid="enc", use="enc"),
        jwk("ES256", kid="wrap", key_ops=["wrapKey"]),
        jwk("ES256", kid="ops", key_ops=5),
        jwk("RS256", kid="ps", alg="PS256"),
        jwk("RS256", kid="hs", alg="HS256"),
        jwk("RS256", kid="unknown", alg="XS256"),
        jwk("RS256", kid="none", alg="none"),
        {"kty": "oct", "k": "x" * 64, "kid": "shared", "alg": "HS256"},
        {"kty": "oct", "k": "x" * 64, "kid": "shared"},
        private,
        weak,
        {"kty": "EC", "crv": "P-256", "x": 5, "y": None},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "\u00fc", "e": "AQAB"},
        {"kty": "OKP", "crv": "Ed25519", "x": ""},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": ["EC"]},
        {"kty": 5},
        {},
        jwk("ES256", kid=7),
    ]
    kept = [jwk("ES256", kid="a"), jwk("RS256", kid="b", use="sig", alg="RS256"), jwk("EdDSA", key_ops=["verify"])]
    keys = keys_of_set(jwk_set(*passed_over, *kept))
    assert [(key.algorithm, key.id) for key in keys] == [("ES256", "a"), ("RS256", "b"), ("EdDSA", "")]
    for jwk_ in passed_over:
        with pytest.raises(UnusableKey, match="there is no key for RS256, ES256, EdDSA"):
            keys_of_set(jwk_set(jwk_))


def _weak_jwk() -> dict[str, Any]:
    public = rsa.generate_private_key(65537, 1024).public_key()
    return jwt.get_algorithm_by_name("RS256").to_jwk(public, as_dict=True)


def test_the_largest_set() -> None:
    keys = [jwk("EdDSA", kid=str(number)) for number in range(101)]
    assert len(keys_of_set(jwk_set(*keys[:100]))) == 100
    with pytest.raises(UnusableKey, match="100 keys at most, found 101"):
        keys_of_set(jwk_set(*keys))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b'{"keys":{}}', b"\xff", b"[" * 100_000, b'{"a":' * 9999])
def test_what_is_no_set(data: bytes) -> None:
    with pytest.raises(UnusableKey):
        keys_of_set(data)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["kty", "crv", "x", "y", "n", "e", "k", "kid", "alg", "use", "key_ops"]),
            st.none()
            | st.integers()
            | st.text(max_size=3)
            | st.sampled_from(["EC", "RSA", "oct", "OKP", "P-256", "AQAB", "sig", "RS256", "Ed25519", "A" * 43])
            | st.lists(st.sampled_from(["verify", "x"]), max_size=2),
        ),
        max_size=3,
    )
)
def test_any_set_has_an_answer(keys: list[dict[str, object]]) -> None:
    try:
        found = keys_of_set(jwk_set(*keys))
    except UnusableKey:
        return
    assert {key.algorithm for key in found} <= set(PUBLIC)


def test_a_key_is_not_in_its_representation() -> None:
    (key,) = keys_of(entry("HS256", secret=SECRET, id="main"))
    assert repr(key) == "Key('HS256', 'main')"


@pytest.mark.parametrize("algorithm", ["HS256", *PUBLIC])
def test_signatures_of_any_length(algorithm: str) -> None:
    material = SECRET.encode() if algorithm == "HS256" else private_key(algorithm).public_key()
    key = Key(algorithm, "", material)
    for length in (0, 1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 5000):
        for signature in (bytes(length), b"\xff" * length):
            assert not key.has_signed(b"message", signature)
