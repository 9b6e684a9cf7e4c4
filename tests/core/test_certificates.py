"""Certificates: what is said of those that cannot be used, what they say, and how one follows another."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from encryption import authority, tls_section

from tricast.certificates import load_encryption
from tricast.config import TlsSection
from tricast.errors import ConfigError


class Files:
    """Files of every kind, good and bad, in the current folder."""

    def __init__(self, folder: Path) -> None:
        certificate, other = authority().issue_cert("localhost"), authority().issue_cert("localhost")
        (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
        other.private_key_pem.write_to_path(folder / "other.pem")
        key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
        encrypted = BestAvailableEncryption(b"password")
        (folder / "pkcs8.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
        traditional = PrivateFormat.TraditionalOpenSSL
        (folder / "encrypted.pem").write_bytes(key.private_bytes(Encoding.PEM, traditional, encrypted))
        (folder / "text.pem").write_bytes(b"hello")
        (folder / "der.pem").write_bytes(ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode()))
        for name in ("CERTIFICATE", "PRIVATE KEY"):
            broken = f"-----BEGIN {name}-----\nabcd\n-----END {name}-----\n"
            (folder / f"broken {name.lower()}.pem").write_text(broken)
        (folder / "empty.pem").touch()


CANNOT = "tls.certificate: the certificate in cert.pem cannot be used with its key: "


@pytest.mark.parametrize(
    ("certificate", "key", "problems"),
    [
        ("missing.pem", "key.pem", ["tls.certificate: missing.pem: No such file or directory"]),
        ("cert.pem", "missing.pem", ["tls.key: missing.pem: No such file or directory"]),
        (
            "missing.pem",
            "text.pem",
            [
                "tls.certificate: missing.pem: No such file or directory",
                "tls.key: text.pem: holds no private key in PEM format",
            ],
        ),
        (".", "key.pem", ["tls.certificate: .: Is a directory"]),
        ("a\0b", "key.pem", ["tls.certificate: a\0b: embedded null byte"]),
        ("text.pem", "key.pem", ["tls.certificate: text.pem: holds no certificate in PEM format"]),
        ("der.pem", "key.pem", ["tls.certificate: der.pem: holds no certificate in PEM format"]),
        ("empty.pem", "", ["tls.certificate: empty.pem: holds no certificate in PEM format"]),
        ("cert.pem", "text.pem", ["tls.key: text.pem: holds no private key in PEM format"]),
        (
            "cert.pem",
            "",
            ["tls.certificate: cert.pem: holds no private key in PEM format, and tls.key names no other file"],
        ),
        (
            "key.pem",
            "cert.pem",
            [
                "tls.certificate: key.pem: holds no certificate in PEM format",
                "tls.key: cert.pem: holds no private key in PEM format",
            ],
        ),
        ("cert.pem", "other.pem", [CANNOT + "key values mismatch"]),
        ("cert.pem", "broken private key.pem", [CANNOT + "one is broken between BEGIN and END"]),
        (
            "broken certificate.pem",
            "key.pem",
            [CANNOT.replace("cert.pem", "broken certificate.pem") + "one is broken between BEGIN and END"],
        ),
        ("cert.pem", "pkcs8.pem", [CANNOT + "the key is encrypted, and a server has nobody to ask for its password"]),
        (
            "cert.pem",
            "encrypted.pem",
            [CANNOT + "the key is encrypted, and a server has nobody to ask for its password"],
        ),
    ],
)
def test_what_is_wrong_with_the_files_is_said_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: str, key: str, problems: list[str]
) -> None:
    Files(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_encryption(TlsSection(certificate=certificate, key=key))
    assert [str(problem) for problem in caught.value.problems] == [f"configuration: {problem}" for problem in problems]


@pytest.mark.parametrize(("certificate", "key"), [("cert.pem", "key.pem"), ("both.pem", ""), ("both.pem", "both.pem")])
def test_certificate_and_key_may_be_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: str, key: str
) -> None:
    Files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_encryption(TlsSection(certificate=certificate, key=key)) is not None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert load_encryption(TlsSection()) is None


def test_what_may_be_negotiated() -> None:
    encryption = load_encryption(TlsSection.model_validate(tls_section()))
    assert encryption is not None
    context = encryption.context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    # Forward secrecy, and encryption that authenticates.
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher
