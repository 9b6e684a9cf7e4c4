"""Certificates: what is said of those that cannot be used, what they say, and how one follows another."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from encryption import authority, authority_file, certificate_file, tls_section, write_certificate
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.certificates import Certificate, Keys, check_certificate, load_encryption, successor_of
from tricast.config import ServerTlsSection, TlsSection
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


# What may be negotiated

#: Mozilla's guidelines 5.7, profile "intermediate", without DHE.
INTERMEDIATE = {
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
}


def test_what_may_be_negotiated() -> None:
    encryption = load_encryption(TlsSection.model_validate(tls_section()))
    assert encryption is not None
    context = encryption.context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert {cipher["name"] for cipher in context.get_ciphers()} == INTERMEDIATE
    assert context.verify_mode is ssl.CERT_NONE


# What a certificate says

NOW = datetime.now(UTC).timestamp()
DAY = 86400.0


def loaded(file: Path) -> Certificate:
    encryption = load_encryption(TlsSection(certificate=str(file)))
    assert encryption is not None
    return encryption.certificate


def test_a_certificate_says_for_whom_and_for_how_long_it_is(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    write_certificate(file, "push.example", "*.push.example", "127.0.0.1", "::1", begins=-1, expires=10)
    certificate = loaded(file)
    assert certificate.names[:3] == ("push.example", "*.push.example", "127.0.0.1")
    assert certificate.begins_at == pytest.approx(NOW - DAY, abs=3600)
    assert certificate.expires_at == pytest.approx(NOW + 10 * DAY, abs=3600)
    for host in ("push.example", "PUSH.example.", "a.push.example", "127.0.0.1", "::1", "0:0::1"):
        assert certificate.is_for(host), host
    for host in ("example", "a.b.push.example", "ush.example", "127.0.0.2", "::2", "*", ""):
        assert not certificate.is_for(host), host


@pytest.mark.parametrize(("begins", "expires", "problem"), [(-2, -1, "expired on "), (1, 2, "is not valid before ")])
def test_one_that_is_not_valid_now_can_be_loaded_and_says_so(
    tmp_path: Path, begins: float, expires: float, problem: str
) -> None:
    file = tmp_path / "pem"
    write_certificate(file, begins=begins, expires=expires)
    certificate = loaded(file)
    assert certificate.problem_at(NOW).startswith(problem)
    assert certificate.problem_at((certificate.begins_at + certificate.expires_at) / 2) == ""
    assert certificate.problem_at(certificate.begins_at) == ""
    assert certificate.problem_at(certificate.expires_at) != ""


Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def signed(
    key: ec.EllipticCurvePrivateKey, name: str, expires: float, *, is_authority: bool
) -> x509.CertificateBuilder:
    """What trustme does not make: an authority that expires."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=expires))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )


def write_chain(path: Path, change: Change = lambda builder: builder) -> None:
    """A certificate for 20 days, of an authority for 10, with that behind it."""
    key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    builders = (
        change(signed(own, "server", 20, is_authority=False)),
        signed(key, "authority", 10, is_authority=True),
    )
    chain = [builder.issuer_name(issuer).sign(key, hashes.SHA256()) for builder in builders]
    pems = [certificate.public_bytes(Encoding.PEM) for certificate in chain]
    unencrypted = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(b"# f\xfcr alle\n" + b"".join((unencrypted, *pems)))


def test_the_chain_may_expire_before_the_certificate(tmp_path: Path) -> None:
    write_chain(tmp_path / "pem")
    certificate = loaded(tmp_path / "pem")
    assert certificate.expires_at == pytest.approx(NOW + 10 * DAY, abs=3600)
    assert certificate.names == ()


def test_one_that_no_client_takes_is_refused(tmp_path: Path) -> None:
    usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    write_chain(tmp_path / "pem", lambda builder: builder.add_extension(usage, critical=False))
    with pytest.raises(ConfigError, match=r"is none that clients take: .* certificate purpose"):
        loaded(tmp_path / "pem")


# Checking


def faults(file: Path, *hosts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_certificate(TlsSection(certificate=str(file)), hosts, NOW)
    beginning = f"the certificate in {file} "
    return [problem.message.removeprefix(beginning) for problem in caught.value.problems]


def test_everything_that_clients_would_not_like_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    write_certificate(file, "push.example", expires=-1, begins=-2)
    expired, *others = faults(file, "push.example", "other.example")
    assert expired.startswith("expired on ")
    assert others == ["is not for other.example, but for push.example"]
    write_chain(file)
    assert faults(file, "server") == ["has no subjectAltName, without which no browser takes it"]


def test_what_clients_would_like_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    write_certificate(file, "push.example")
    certificate = check_certificate(TlsSection(certificate=str(file)), ["push.example"], NOW)
    assert certificate is not None
    assert certificate.names == ("push.example",)
    assert check_certificate(TlsSection(), ["push.example"], NOW) is None


# One after another


class Clock:
    """The time, set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class World:
    """Keys, the file they are in, the time, and what is said."""

    def __init__(self, folder: Path, *, expires: float, warning: float = 14.0) -> None:
        self.file = folder / "pem"
        self.clock = Clock()
        self.records = LogCapture()
        write_certificate(self.file, begins=-1, expires=expires)
        self.config = ServerTlsSection(certificate=str(self.file), expiry_warning=warning * DAY)
        self.keys = Keys(self.config, clock=self.clock, logger=capturing_logger(self.records))

    def said(self) -> list[str]:
        """What was said since this was asked last."""
        said = [f"{entry['log_level']}: {entry['event']}" for entry in self.records.entries]
        self.records.entries.clear()
        return said

    def at(self, days: float) -> list[str]:
        """What is said when a connection comes in, so many days from now."""
        self.clock.now = NOW + days * DAY
        self.keys.context()
        return self.said()


SOON = "warning: the certificate expires soon"


def test_the_end_is_told_when_it_is_near_and_once_a_day_from_then_on(tmp_path: Path) -> None:
    world = World(tmp_path, expires=60)
    assert world.said() == []
    assert world.at(45) == []
    assert world.at(46.1) == [SOON]
    assert world.at(47.0) == []
    assert world.at(47.2) == [SOON]
    (over,) = world.at(60.5)
    assert over.startswith("error: the certificate expired on ")
    assert world.at(61) == []
    (over,) = world.at(62)
    assert over.startswith("error: the certificate expired on ")


def test_the_end_of_a_short_life_is_not_near_all_the_time(tmp_path: Path) -> None:
    world = World(tmp_path, expires=7)  # of eight days
    assert world.said() == []
    assert world.at(4.9) == []
    assert world.at(5.1) == [SOON]


def test_how_near_is_configured(tmp_path: Path) -> None:
    world = World(tmp_path, expires=60, warning=1.0)
    assert world.at(58.9) == []
    assert world.at(59.1) == [SOON]


def test_one_that_is_near_its_end_or_past_it_is_told_at_the_beginning(tmp_path: Path) -> None:
    assert World(tmp_path, expires=0.2).said() == [SOON]
    (said,) = World(tmp_path, expires=-0.5).said()
    assert said.startswith("error: the certificate expired on ")


def test_connections_that_begin_later_get_the_renewed_one(tmp_path: Path) -> None:
    world = World(tmp_path, expires=60)
    before = world.keys.context()
    write_certificate(world.file, begins=-1, expires=90)
    world.keys.renew()
    assert world.said() == ["info: certificate renewed"]
    assert world.keys.context() is not before
    assert world.keys.certificate.expires_at == pytest.approx(NOW + 90 * DAY, abs=3600)
    assert world.at(59) == []


def test_a_renewed_one_may_be_near_its_end_as_well(tmp_path: Path) -> None:
    world = World(tmp_path, expires=60)
    world.keys.renew(ServerTlsSection(certificate=str(world.file), expiry_warning=61 * DAY))
    assert world.said() == ["info: certificate renewed"]
    assert world.at(45.1) == [SOON]  # a quarter of its life


def break_it(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil",
    [
        break_it,
        Path.unlink,
        lambda file: write_certificate(file, begins=-2, expires=-1),
        lambda file: write_certificate(file, begins=1, expires=2),
    ],
    ids=["broken", "missing", "expired", "not yet valid"],
)
def test_what_is_no_good_changes_nothing(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    world = World(tmp_path, expires=60)
    before = world.keys.context(), world.keys.certificate
    spoil(world.file)
    with pytest.raises(ConfigError):
        world.keys.renew()
    assert (world.keys.context(), world.keys.certificate) == before
    assert world.said() == []


def test_tls_does_not_end_by_a_renewal(tmp_path: Path) -> None:
    world = World(tmp_path, expires=60)
    with pytest.raises(ConfigError, match="to end that takes a restart"):
        world.keys.renew(ServerTlsSection())


def test_one_that_has_expired_may_follow_another(tmp_path: Path) -> None:
    # It cannot get worse, and the rest of the section may have changed.
    file = tmp_path / "pem"
    write_certificate(file, begins=-2, expires=-1)
    config = TlsSection(certificate=str(file))
    present = load_encryption(config)
    assert present is not None
    following = successor_of(present, config, NOW)
    assert following is not None
    assert following.fingerprint == present.fingerprint
    write_certificate(file, begins=-2, expires=-1)
    other = load_encryption(config)
    assert other is not None
    assert other.fingerprint != present.fingerprint


# Authorities for clients


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("missing.pem", "missing.pem: No such file or directory"),
        ("text.pem", "text.pem: holds no certificate in PEM format"),
        ("broken certificate.pem", "broken certificate.pem: cannot be used: "),
    ],
)
def test_authorities_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, problem: str
) -> None:
    Files(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_encryption(ServerTlsSection(certificate="both.pem", client_ca=file))
    (found,) = caught.value.problems
    assert found.key == "tls.client_ca"
    assert found.message.startswith(problem)


def test_authorities_are_part_of_what_is_loaded(tmp_path: Path) -> None:
    others = tmp_path / "others.pem"
    trustme.CA().cert_pem.write_to_path(others)
    loads = [
        load_encryption(ServerTlsSection(certificate=certificate_file(), client_ca=file))
        for file in ("", authority_file(), str(others))
    ]
    assert len({encryption.fingerprint for encryption in loads if encryption is not None}) == 3
    assert [encryption.context.verify_mode for encryption in loads if encryption is not None] == [
        ssl.CERT_NONE,
        ssl.CERT_OPTIONAL,
        ssl.CERT_OPTIONAL,
    ]
